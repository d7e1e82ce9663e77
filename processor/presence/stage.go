package presence

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/semaphore"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/ops"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// Stage is the name of the stage, in the group's name, metrics and health.
const Stage = "presence"

// expirePerTransaction is how many remembered closes a partition forgets in one transaction, beside two for each change.
const expirePerTransaction = 500

// closesAtOnce bounds how many connections a node's start closes in one transaction, in one partition.
const closesAtOnce = 5_000

// A sweep for silent connections takes sweepSteps caught_up records or more, of which one comes a second, and looks at
// sweepLeast users at each at least.
const (
	sweepSteps = 10
	sweepLeast = 1_000
)

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
	// BackgroundIsOnline is OFFHOOK_BACKGROUND_IS_ONLINE.
	BackgroundIsOnline bool
	// ConnectionTTL is OFFHOOK_CONNECTION_TTL: a connection that is silent for so long is closed; 0: none is.
	ConnectionTTL time.Duration
	// AdvertisedURL is OFFHOOK_ADVERTISED_URL, which the group's members are told; empty: nothing is.
	AdvertisedURL string
	// ShutdownTimeout bounds the end; 0: 10 s.
	ShutdownTimeout time.Duration

	// purgeEvery is how often the inbox is purged; 0: 10 s. Tests shorten it.
	purgeEvery time.Duration
}

// rules are the table's part of the settings.
func (c *Config) rules() Rules {
	r := Rules{CloseMemory: c.CloseMemory.Milliseconds(), BackgroundIsOnline: c.BackgroundIsOnline, ClosesAtOnce: closesAtOnce}
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
	Query      *Query // answers from the stage's tables while it runs; nil: nobody asks
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
	s := newStage(cfg, deps, m)
	membership := new(txn.Membership)
	s.membership = membership
	deps.Query.attach(s)
	defer deps.Query.attach(nil)
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
		AdvertisedURL:   cfg.AdvertisedURL,
		ShutdownTimeout: cfg.ShutdownTimeout,
	}, txn.Deps{Kafka: deps.Kafka, Log: deps.Log, Registerer: deps.Registerer, Stage: deps.Stage, Handler: s, Membership: membership})
}

// stage is the handler that txn runs.
type stage struct {
	cfg     Config
	deps    Deps
	rules   Rules
	metrics *metrics
	log     *slog.Logger

	membership holder

	// tables has one token for each query that reads: the loop takes all of them to change parts, or the tables in it, and keeps
	// them until the transaction has ended. Who waits is served in turn.
	tables *semaphore.Weighted
	held   bool // by the loop

	// Of the loop goroutine, which changes them while it holds tables:
	parts   map[int32]*part
	touched []*part // by the open transaction
	effects Effects // of the open transaction
	tally   tally
	offline []string

	ownedMu sync.Mutex
	owned   map[int32]bool // for the purge
}

// newStage returns a stage without partitions.
func newStage(cfg Config, deps Deps, m *metrics) *stage {
	return &stage{
		cfg: cfg, deps: deps, rules: cfg.rules(), metrics: m, log: deps.Log.With("stage", Stage),
		parts: make(map[int32]*part), owned: make(map[int32]bool), tables: semaphore.NewWeighted(readersAtOnce),
	}
}

// part is one live inbox partition.
type part struct {
	table    *Table
	liveness Liveness
	begun    bool // a record was processed
	touched  bool // in the open transaction, which has had its share of expiry
}

// tally counts what the open transaction did.
type tally struct {
	outcomes map[Outcome]int
	statuses int
	offline  int // msg.offline events
	pushes   int // recipients in them
	expires  int // connections whose close was asked for
}

// hold keeps queries from the tables until release.
func (s *stage) hold() {
	if !s.held {
		_ = s.tables.Acquire(context.Background(), readersAtOnce) // fails with the context alone
		s.held = true
	}
}

func (s *stage) release() {
	if s.held {
		s.held = false
		s.tables.Release(readersAtOnce)
	}
}

// Revoked drops a partition's table.
func (s *stage) Revoked(p txn.Partition) {
	s.hold()
	defer s.release()
	delete(s.parts, p.Partition)
	s.ownedMu.Lock()
	delete(s.owned, p.Partition)
	s.ownedMu.Unlock()
	s.gauge()
}

// Reset drops all tables.
func (s *stage) Reset() {
	s.hold()
	defer s.release()
	clear(s.parts)
	s.touched = nil
	s.effects, s.tally = Effects{}, tally{}
	s.ownedMu.Lock()
	clear(s.owned)
	s.ownedMu.Unlock()
	s.gauge()
}

// Process applies one inbox record.
func (s *stage) Process(in txn.Input, emit func(*kgo.Record)) (more bool, err error) {
	p := s.parts[in.Partition]
	if p == nil {
		return false, fmt.Errorf("the partition has no table")
	}
	rec, err := schemas.DecodeInbox(in.Headers, in.Value)
	if err != nil {
		return false, err
	}
	s.hold()
	headers := txn.HeadersOf(in.Record)
	at := Mark{Time: in.Timestamp.UnixMilli(), Offset: in.Offset}
	if !p.begun {
		p.begun = true
		p.table.Begin(in.Offset + max(0, in.Behind)) // the inbox's end, also where it is read again
	}
	events, changes := len(s.effects.Events), len(s.effects.Changes)
	switch rec.Kind {
	case schemas.InboxConnection:
		var outcome Outcome
		outcome, more = p.table.Apply(&rec.Connection, at, &s.effects)
		s.count(outcome)
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
	case schemas.InboxCaughtUp:
		p.liveness.CaughtUp(&rec.CaughtUp, at, in.Behind)
		s.sweep(p, in.Partition, headers, emit)
	case schemas.InboxExpire:
		s.count(p.table.ExpireConnection(&rec.Expire, at.Time, &s.effects))
	default:
		return false, fmt.Errorf("inbox record of an unknown kind %d", rec.Kind)
	}
	// More is forgotten than is made, or a load that closes for long would outgrow any memory.
	forget := 2 * (len(s.effects.Changes) - changes)
	if !p.touched {
		p.touched = true
		s.touched = append(s.touched, p)
		forget += expirePerTransaction
	}
	p.table.Expire(at.Time, forget, &s.effects)
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
	return more, nil
}

func (s *stage) count(o Outcome) {
	if s.tally.outcomes == nil {
		s.tally.outcomes = make(map[Outcome]int)
	}
	s.tally.outcomes[o]++
}

// sweep asks for the close of silent connections, by records in the inbox: what was heard of one until it is read counts.
func (s *stage) sweep(p *part, partition int32, headers []kgo.RecordHeader, emit func(*kgo.Record)) {
	since, ok := p.liveness.Since()
	if !ok {
		return
	}
	p.table.Sweep(max(sweepLeast, p.table.Users()/sweepSteps), since, func(x schemas.Expire) {
		s.tally.expires++
		emit(&kgo.Record{
			Topic: s.deps.Topics.Inbox, Partition: partition, Headers: headers, Key: []byte(x.UID), Value: schemas.AppendInboxExpire(nil, &x),
		})
	})
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
	s.release()
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
