// Package route is the stage that validates the input records and writes each to where its uids live: connection
// events and the recipients of messages to the inbox, messages to msg.notify, what cannot be used to the dead
// letters. It keeps no state; what it emits and the offsets that it has read move in one transaction (package txn).
//
// Where it begins on a topic that it has never read is decided once, before it joins its group (see start.go).
package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/ops"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// Stage is the name of the stage, in the group's name, metrics and health.
const Stage = "route"

// Values of Config.NotifyOrderBy.
const (
	OrderByFrom    = "from_uid"
	OrderByChannel = "channel_id"
)

// Values of Config.ConnectionsStart and MessagesStart.
const (
	Earliest = "earliest"
	Latest   = "latest"
)

// Config is the stage's part of the settings.
type Config struct {
	// ConnectionsTopics and MessagesTopics are the input topics; none may be in both.
	ConnectionsTopics, MessagesTopics []string
	// ConnectionsStart and MessagesStart say where to begin on a topic that was never read: Earliest or Latest.
	// Empty: earliest for connections, latest for messages.
	ConnectionsStart, MessagesStart string
	// Prefix is OFFHOOK_TOPIC_PREFIX: the group is "<prefix>.route".
	Prefix string
	// InstanceID is OFFHOOK_INSTANCE_ID; empty: a dynamic member.
	InstanceID string
	// CommitInterval is how long a transaction stays open at most; 0: 100 ms.
	CommitInterval time.Duration
	// MaxRecordBytes is the largest input record: key, value and headers; 0: 1 MiB.
	MaxRecordBytes int
	// SystemUIDs are never recipients.
	SystemUIDs []string
	// NotifyOrderBy is what orders msg.notify: OrderByFrom (also where it is empty) or OrderByChannel.
	NotifyOrderBy string
	// ConnectionTTL is OFFHOOK_CONNECTION_TTL. Where it is 0, nothing that serves it alone is written to the inbox.
	ConnectionTTL time.Duration
	// ShutdownTimeout bounds the end; 0: 10 s.
	ShutdownTimeout time.Duration
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
func Run(ctx context.Context, cfg Config, deps Deps) (err error) {
	if cfg.MaxRecordBytes <= 0 {
		cfg.MaxRecordBytes = 1 << 20
	}
	if cfg.ConnectionsStart == "" {
		cfg.ConnectionsStart = Earliest
	}
	if cfg.MessagesStart == "" {
		cfg.MessagesStart = Latest
	}
	m, err := newMetrics(deps.Registerer)
	if err != nil {
		return fmt.Errorf("register the metrics of route: %w", err)
	}
	defer m.unregister()
	log := deps.Log.With("stage", Stage)
	if err := begin(ctx, &cfg, &deps, log); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	h := &handler{router: newRouter(&cfg, deps.Topics, deps.Owned.Partitions), metrics: m}
	if cfg.ConnectionTTL > 0 {
		w := &watcher{cfg: &cfg, deps: &deps, log: log, leads: func() bool { return h.leads.Load() > 0 }}
		watching, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- w.run(watching) }()
		defer func() {
			stop()
			err = errors.Join(err, <-ended)
		}()
	}
	return txn.Run(ctx, txn.Config{
		Stage:           Stage,
		Prefix:          cfg.Prefix,
		InstanceID:      cfg.InstanceID,
		Topics:          cfg.inputs(),
		CommitInterval:  cfg.CommitInterval,
		MaxRecordBytes:  cfg.MaxRecordBytes,
		ShutdownTimeout: cfg.ShutdownTimeout,
		PastMarkers:     cfg.ConnectionTTL > 0,
	}, txn.Deps{
		Kafka: deps.Kafka, Log: deps.Log, Registerer: deps.Registerer, Stage: deps.Stage,
		Handler: h,
	})
}

// inputs lists the input topics.
func (c *Config) inputs() []string {
	return append(append([]string(nil), c.ConnectionsTopics...), c.MessagesTopics...)
}

// handler runs a router in the loop: it counts what was committed.
type handler struct {
	router  *router
	metrics *metrics
	leads   atomic.Int32 // of how many topics with connection events this process owns partition 0: their owners speak for all
}

// Restore has nothing to restore.
func (h *handler) Restore(_ context.Context, p txn.Partition) (func(), error) {
	return func() {
		if p.Partition == 0 && h.router.connections[p.Topic] {
			h.leads.Add(1)
		}
	}, nil
}

// Revoked drops nothing.
func (h *handler) Revoked(p txn.Partition) {
	if p.Partition == 0 && h.router.connections[p.Topic] {
		h.leads.Add(-1)
	}
}

// Process routes one record.
func (h *handler) Process(in txn.Input, emit func(*kgo.Record)) (more bool, err error) {
	h.router.route(in, emit)
	return false, nil
}

// Commit counts what the transaction did.
func (h *handler) Commit() {
	h.metrics.add(&h.router.tally)
	h.Rollback()
}

// Rollback forgets what the transaction did.
func (h *handler) Rollback() {
	reasons := h.router.tally.deadLetters
	clear(reasons)
	h.router.tally = tally{deadLetters: reasons}
}

// Reset forgets it too.
func (h *handler) Reset() {
	h.leads.Store(0)
	h.Rollback()
}

// metrics are the stage's counters.
type metrics struct {
	records           *prometheus.CounterVec // input
	deadLetters       *prometheus.CounterVec // reason
	nulls             prometheus.Counter
	dropped           prometheus.Counter
	withoutRecipients prometheus.Counter
	withoutPush       prometheus.Counter
	nodeHeartbeats    prometheus.Counter

	reg prometheus.Registerer
	all []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_route_records_total", Help: "Input records by kind of input: connections, messages.",
		}, []string{"input"}),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_route_dead_letters_total", Help: "Input records that went to the dead-letter topic by reason: invalid, too_large.",
		}, []string{"reason"}),
		nulls:             counter("offhook_route_null_records_total", "Input records without a value, which are skipped."),
		dropped:           counter("offhook_route_dropped_recipients_total", "Elements of to_uids that are no uid, which are dropped."),
		withoutRecipients: counter("offhook_route_messages_without_recipients_total", "Messages to a channel that is no person's, without to_uids: notified, and pushed to nobody."),
		withoutPush:       counter("offhook_route_messages_without_push_total", "Messages with offline_push false: notified, and pushed to nobody."),
		nodeHeartbeats:    counter("offhook_route_node_heartbeats_total", "Heartbeats of whole nodes; without OFFHOOK_CONNECTION_TTL they have no effect."),
	}
	for _, input := range []string{"connections", "messages"} {
		m.records.WithLabelValues(input)
	}
	for _, reason := range []schemas.Reason{schemas.ReasonInvalid, schemas.ReasonTooLarge} {
		m.deadLetters.WithLabelValues(string(reason))
	}
	if reg == nil {
		return m, nil
	}
	m.reg = reg
	for _, c := range []prometheus.Collector{m.records, m.deadLetters, m.nulls, m.dropped, m.withoutRecipients, m.withoutPush, m.nodeHeartbeats} {
		if err := reg.Register(c); err != nil {
			m.unregister()
			return nil, err
		}
		m.all = append(m.all, c)
	}
	return m, nil
}

func (m *metrics) unregister() {
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

func (m *metrics) add(t *tally) {
	m.records.WithLabelValues("connections").Add(float64(t.connections))
	m.records.WithLabelValues("messages").Add(float64(t.messages))
	for reason, n := range t.deadLetters {
		m.deadLetters.WithLabelValues(string(reason)).Add(float64(n))
	}
	m.nulls.Add(float64(t.nulls))
	m.dropped.Add(float64(t.dropped))
	m.withoutRecipients.Add(float64(t.withoutRecipients))
	m.withoutPush.Add(float64(t.withoutPush))
	m.nodeHeartbeats.Add(float64(t.nodeHeartbeats))
}
