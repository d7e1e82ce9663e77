package presence

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/ops"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// Stage is the name of the stage, in the group's name, metrics and health.
const Stage = "presence"

// expirePerTransaction bounds how many remembered closes a partition forgets in one transaction.
const expirePerTransaction = 500

// maxEffects is how many changes the stage keeps room for between transactions.
const maxEffects = 16 << 10

// Config is the stage's part of the settings.
type Config struct {
	// Prefix is OFFHOOK_TOPIC_PREFIX: the group is "<prefix>.presence".
	Prefix string
	// InstanceID is OFFHOOK_INSTANCE_ID; empty: a dynamic member.
	InstanceID string
	// CommitInterval is how long a transaction stays open at most; 0: 100 ms.
	CommitInterval time.Duration
	// MaxRecordBytes is the largest input record of offhook, of which the producer's limit is made; 0: 1 MiB.
	MaxRecordBytes int
	// CloseMemory is OFFHOOK_CLOSE_MEMORY: how long a close holds against older events; 0: not at all.
	CloseMemory time.Duration
	// InboxKeep is OFFHOOK_INBOX_KEEP: how long consumed records stay in the inbox at least; 0: until the next purge.
	InboxKeep time.Duration
	// OnlineFlags are the device flags that count as online for msg.offline; empty: all.
	OnlineFlags []uint8
	// ShutdownTimeout bounds the end; 0: 10 s.
	ShutdownTimeout time.Duration

	// purgeEvery is how often the inbox is purged; 0: 10 s. Tests shorten it.
	purgeEvery time.Duration
}

// rules are the table's part of the settings.
func (c *Config) rules() Rules {
	r := Rules{CloseMemory: c.CloseMemory.Milliseconds()}
	if len(c.OnlineFlags) > 0 {
		r.OnlineFlags = new([256]bool)
		for _, flag := range c.OnlineFlags {
			r.OnlineFlags[flag] = true
		}
	}
	return r
}

// Deps are what the stage works with. Registerer and Stage may be nil.
type Deps struct {
	Kafka      kafka.Config
	Topics     kafka.Topics
	Owned      kafka.Owned
	Log        *slog.Logger
	Registerer prometheus.Registerer
	Stage      *ops.Stage
}

// Run runs the stage until ctx ends, and returns nil then. Any error ends the process: it is a sentence for its last
// line.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	if cfg.MaxRecordBytes <= 0 {
		cfg.MaxRecordBytes = 1 << 20
	}
	if cfg.purgeEvery <= 0 {
		cfg.purgeEvery = 10 * time.Second
	}
	m, err := newMetrics(deps.Registerer)
	if err != nil {
		return fmt.Errorf("register the metrics of presence: %w", err)
	}
	defer m.unregister()
	s := &stage{
		cfg: cfg, deps: deps, rules: cfg.rules(), metrics: m, log: deps.Log.With("stage", Stage),
		parts: make(map[int32]*part), owned: make(map[int32]bool),
	}
	var purging sync.WaitGroup
	purgeCtx, stopPurge := context.WithCancel(ctx)
	purging.Go(func() { s.purgeLoop(purgeCtx) })
	defer purging.Wait()
	defer stopPurge()
	return txn.Run(ctx, txn.Config{
		Stage:           Stage,
		Prefix:          cfg.Prefix,
		InstanceID:      cfg.InstanceID,
		Topics:          []string{deps.Topics.Inbox},
		CommitInterval:  cfg.CommitInterval,
		MaxRecordBytes:  cfg.MaxRecordBytes,
		ShutdownTimeout: cfg.ShutdownTimeout,
	}, txn.Deps{Kafka: deps.Kafka, Log: deps.Log, Registerer: deps.Registerer, Stage: deps.Stage, Handler: s})
}

// stage is the handler that txn runs.
type stage struct {
	cfg     Config
	deps    Deps
	rules   Rules
	metrics *metrics
	log     *slog.Logger

	// Of the loop goroutine:
	parts   map[int32]*part
	touched []*part // by the open transaction
	effects Effects // of the open transaction
	tally   tally
	headers []schemas.Header
	offline []string

	ownedMu sync.Mutex
	owned   map[int32]bool // for the purge
}

// part is one live inbox partition.
type part struct {
	table   *Table
	touched bool // in the open transaction, which has had its share of expiry
}

// tally counts what the open transaction did.
type tally struct {
	outcomes map[Outcome]int
	statuses int
	offline  int // msg.offline events
	pushes   int // recipients in them
}

// Revoked drops a partition's table.
func (s *stage) Revoked(p txn.Partition) {
	delete(s.parts, p.Partition)
	s.ownedMu.Lock()
	delete(s.owned, p.Partition)
	s.ownedMu.Unlock()
	s.gauge()
}

// Reset drops all tables.
func (s *stage) Reset() {
	clear(s.parts)
	s.touched = nil
	s.effects, s.tally = Effects{}, tally{}
	s.ownedMu.Lock()
	clear(s.owned)
	s.ownedMu.Unlock()
	s.gauge()
}

// Process applies one inbox record.
func (s *stage) Process(in txn.Input, emit func(*kgo.Record)) error {
	p := s.parts[in.Partition]
	if p == nil {
		return fmt.Errorf("the partition has no table")
	}
	s.headers = s.headers[:0]
	for _, h := range in.Headers {
		s.headers = append(s.headers, schemas.Header(h))
	}
	rec, err := schemas.DecodeInbox(s.headers, in.Value)
	if err != nil {
		return err
	}
	headers := txn.HeadersOf(in.Record)
	now := in.Timestamp.UnixMilli()
	events, changes := len(s.effects.Events), len(s.effects.Changes)
	switch rec.Kind {
	case schemas.InboxConnection:
		if s.tally.outcomes == nil {
			s.tally.outcomes = make(map[Outcome]int)
		}
		s.tally.outcomes[p.table.Apply(&rec.Connection, now, &s.effects)]++
	case schemas.InboxRecipients:
		s.offline = p.table.AppendOffline(s.offline[:0], rec.UIDs)
		if len(s.offline) > 0 {
			s.tally.offline++
			s.tally.pushes += len(s.offline)
			emit(&kgo.Record{
				Topic: s.deps.Topics.Offline, Partition: in.Partition, Headers: headers,
				Value: schemas.AppendOfflineItem(nil, rec.Item, rec.Splice, s.offline),
			})
		}
		clear(s.offline)
	default:
		return fmt.Errorf("inbox record of an unknown kind %d", rec.Kind)
	}
	if !p.touched {
		p.touched = true
		s.touched = append(s.touched, p)
		p.table.Expire(now, expirePerTransaction, &s.effects)
	}
	for i := range s.effects.Events[events:] {
		e := &s.effects.Events[events+i]
		s.tally.statuses++
		emit(&kgo.Record{
			Topic: s.deps.Topics.OnlineStatus, Partition: in.Partition, Headers: headers,
			Key: []byte(e.UID), Value: schemas.AppendOnlineStatus(nil, *e),
		})
	}
	for _, c := range s.effects.Changes[changes:] {
		emit(&kgo.Record{Topic: s.deps.Topics.Presence, Partition: in.Partition, Headers: headers, Key: c.Key, Value: c.Value})
	}
	return nil
}

// Commit makes the tables' changes lasting.
func (s *stage) Commit() {
	for _, p := range s.touched {
		p.table.Commit()
	}
	s.metrics.add(&s.tally)
	s.end()
	s.gauge()
}

// Rollback undoes them.
func (s *stage) Rollback() {
	for _, p := range s.touched {
		p.table.Rollback()
	}
	s.end()
}

// end forgets the open transaction.
func (s *stage) end() {
	for _, p := range s.touched {
		p.touched = false
	}
	clear(s.touched)
	s.touched = s.touched[:0]
	if cap(s.effects.Changes) > maxEffects {
		s.effects = Effects{} // one node_started made it large
	}
	clear(s.effects.Events)
	clear(s.effects.Changes)
	s.effects.Events, s.effects.Changes = s.effects.Events[:0], s.effects.Changes[:0]
	clear(s.tally.outcomes)
	s.tally = tally{outcomes: s.tally.outcomes}
}

// gauge says how many connections and users there are.
func (s *stage) gauge() {
	connections, users := 0, 0
	for _, p := range s.parts {
		connections += p.table.Connections()
		users += p.table.Users()
	}
	s.metrics.connections.Set(float64(connections))
	s.metrics.users.Set(float64(users))
}
