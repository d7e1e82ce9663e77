package txn

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/ops"
)

// Config says what a loop consumes and how it commits.
type Config struct {
	// Stage names the loop: "route" or "presence". The group is "<prefix>.<stage>".
	Stage string
	// Prefix is OFFHOOK_TOPIC_PREFIX.
	Prefix string
	// InstanceID is OFFHOOK_INSTANCE_ID. Empty: a dynamic member with a random transactional id. Otherwise a static
	// member with the transactional id "<prefix>-<stage>-<instance>".
	InstanceID string
	// Topics are consumed, each from the group's committed offsets, or from its beginning. A missing one is waited for.
	Topics []string
	// CommitInterval is how long a transaction stays open at most; a drained input commits at once. 0: 100 ms.
	CommitInterval time.Duration
	// MaxRecordBytes is OFFHOOK_MAX_RECORD_BYTES, of which the producer's limit is made. 0: 1 MiB.
	MaxRecordBytes int
	// PastMarkers has the group's offset pass the markers of the producers' transactions too, so that it reaches a topic's end.
	PastMarkers bool
	// AdvertisedURL is told to the group's members and to whoever describes the group: see [AdvertisedURL]. Empty: nothing is.
	AdvertisedURL string
	// ShutdownTimeout bounds the end: the open transaction and leaving the group. 0: 10 s.
	ShutdownTimeout time.Duration

	// hangingAfter is how old a transaction is at least that a process which is gone has left open; 0: a little less than a member
	// may be silent. Tests shorten it.
	hangingAfter time.Duration
}

// Group is the name of the loop's consumer group.
func (c *Config) Group() string { return c.Prefix + "." + c.Stage }

// staticID is the transactional id of a static member.
func (c *Config) staticID() string { return c.Prefix + "-" + c.Stage + "-" + c.InstanceID }

// Deps are what a loop works with. Stage, Registerer and Membership may be nil.
type Deps struct {
	Kafka      kafka.Config
	Log        *slog.Logger
	Registerer prometheus.Registerer
	Stage      *ops.Stage
	Handler    Handler
	Membership *Membership
}

// Partition names one partition of a consumed topic.
type Partition struct {
	Topic     string
	Partition int32
}

func (p Partition) String() string { return fmt.Sprintf("%s-%d", p.Topic, p.Partition) }

// Input is a consumed record. Its key, value and headers alias the fetched batch: clone what is kept.
type Input struct {
	*kgo.Record
	// TopicID is the id of the record's topic; zero where the broker is older than Kafka 3.1.
	TopicID [16]byte
	// Behind is how many offsets of the partition lay behind this one when it was fetched.
	Behind int64
}

// Handler is the state and the rules that a loop runs. All methods but Restore are called by the loop goroutine,
// one at a time.
type Handler interface {
	// Restore builds the state of a partition that was newly assigned, while the loop goes on with others. It runs on
	// a goroutine of its own; ctx ends when the partition is revoked. install is called by the loop goroutine
	// between two transactions, before the partition's first record; nil installs nothing. An error is tried again
	// with backoff, unless it is Fatal.
	Restore(ctx context.Context, p Partition) (install func(), err error)
	// Revoked drops the state of a partition that was installed.
	Revoked(p Partition)
	// Process handles one record. emit produces a record in the open transaction; its Topic and Partition must be
	// set. more says that the record has more to do than one transaction should hold: it is handed over again in the next
	// one, before those behind it in its partition, and the group's offset passes it when more is false. Other partitions
	// go on meanwhile. An error ends the loop: it is for what must not be skipped and cannot be mended by trying again.
	Process(in Input, emit func(*kgo.Record)) (more bool, err error)
	// Commit makes what Process changed since the last Commit or Rollback lasting; Rollback undoes it.
	Commit()
	Rollback()
	// Reset drops the state of all partitions: what was committed is unknown.
	Reset()
}

// fatalError marks an error that ends Run.
type fatalError struct{ err error }

func (e *fatalError) Error() string { return e.err.Error() }
func (e *fatalError) Unwrap() error { return e.err }

// Fatal marks err as one that trying again cannot mend: Run returns it. nil stays nil.
func Fatal(err error) error {
	if err == nil {
		return nil
	}
	return &fatalError{err}
}

// IsFatal reports whether err was marked by Fatal.
func IsFatal(err error) bool {
	_, ok := errors.AsType[*fatalError](err)
	return ok
}

// Run runs the loop until ctx ends, and returns nil then; what is open is ended within Config.ShutdownTimeout. Any
// error ends the process: it is a sentence for its last line.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	if cfg.CommitInterval <= 0 {
		cfg.CommitInterval = 100 * time.Millisecond
	}
	if cfg.MaxRecordBytes <= 0 {
		cfg.MaxRecordBytes = 1 << 20
	}
	if cfg.ShutdownTimeout <= 0 {
		cfg.ShutdownTimeout = 10 * time.Second
	}
	if cfg.hangingAfter <= 0 {
		cfg.hangingAfter = groupTimeout * 8 / 10
	}
	m, err := newMetrics(deps.Registerer, cfg.Stage)
	if err != nil {
		return fmt.Errorf("register the metrics of %s: %w", cfg.Stage, err)
	}
	defer m.unregister()
	l := &loop{cfg: cfg, deps: deps, metrics: m, log: deps.Log.With("stage", cfg.Stage)}
	l.txnID = cfg.staticID()
	if cfg.InstanceID == "" {
		// Unique, so that no other process fences this one, and the same for all sessions of this process, so that
		// a new session's InitProducerID ends what an earlier one left open.
		var b [12]byte
		rand.Read(b[:])
		l.txnID = cfg.Prefix + "-" + cfg.Stage + "-" + hex.EncodeToString(b[:])
	}
	return l.run(ctx)
}

// loop is what outlives a session.
type loop struct {
	cfg     Config
	deps    Deps
	metrics *metrics
	log     *slog.Logger
	txnID   string

	// begun says that the loop was ready once: from then on a refused authorization is waited for.
	begun bool
	// committed says that a transaction was committed once.
	committed bool
}

func (l *loop) run(ctx context.Context) error {
	defer l.deps.Stage.SetReady(false)
	var delay backoff
	for {
		started := time.Now()
		l.metrics.sessions.Inc()
		err := l.session(ctx)
		l.deps.Stage.SetReady(false)
		l.deps.Handler.Reset()
		switch {
		case err == nil:
			return nil
		case IsFatal(err):
			return err
		case ctx.Err() != nil:
			// The end came amid a failure: nothing was committed that was not said to be.
			l.log.Warn("session failed while stopping", "error", err)
			return nil
		}
		if time.Since(started) > time.Minute {
			delay = backoff{}
		}
		d := delay.next()
		l.log.Warn("session failed; a new one will restore from Kafka", "error", err, "retry_in", d)
		l.deps.Stage.SetWaiting(true) // for Kafka, until the next session has its producer
		if !wait(ctx, d) {
			return nil
		}
	}
}

// classify says whether a broker's refusal ends the process. started is whether the stage has already worked.
func (l *loop) classify(err error, started bool) error {
	switch {
	case err == nil, IsFatal(err):
		return err
	case errors.Is(err, kerr.FencedInstanceID):
		return Fatal(fmt.Errorf("another process runs %s with the same OFFHOOK_INSTANCE_ID=%q; give each process an id of its own: %w", l.cfg.Stage, l.cfg.InstanceID, err))
	case started:
		return err
	}
	if hint := l.refused(err); hint != "" {
		return Fatal(fmt.Errorf("%s: %s: %w", l.cfg.Stage, hint, err))
	}
	if refused := kafka.Refused(err); refused != nil {
		return Fatal(fmt.Errorf("%s: %w", l.cfg.Stage, refused))
	}
	return err
}

// refused says what to grant where err is a refused authorization, and "" otherwise.
func (l *loop) refused(err error) string {
	switch {
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return fmt.Sprintf("the broker refuses a topic; allow Read on the input topics and Read and Write on the topics %s.*", l.cfg.Prefix)
	case errors.Is(err, kerr.GroupAuthorizationFailed):
		return fmt.Sprintf("the broker refuses the group; allow Read on the group %s", l.cfg.Group())
	case errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
		return fmt.Sprintf("the broker refuses the transactional id; allow Write and Describe on transactional ids that begin with %s-%s-", l.cfg.Prefix, l.cfg.Stage)
	case errors.Is(err, kerr.ClusterAuthorizationFailed):
		return "the broker refuses an idempotent producer; allow IdempotentWrite on the cluster"
	}
	return ""
}

// backoff is a delay that doubles from 50 ms to 5 s.
type backoff struct{ n int }

func (b *backoff) next() time.Duration {
	d := 50 * time.Millisecond << min(b.n, 7)
	b.n++
	return min(d, 5*time.Second)
}

// wait waits for d and reports whether ctx is still alive.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// rising lets a line through at rising intervals: at once, then after 5 s, 10 s, 20 s, up to 5 min.
type rising struct {
	next time.Time
	step time.Duration
}

func (r *rising) due(now time.Time) bool {
	if now.Before(r.next) {
		return false
	}
	r.step = min(max(2*r.step, 5*time.Second), 5*time.Minute)
	r.next = now.Add(r.step)
	return true
}

func (r *rising) reset() { *r = rising{} }

// Await waits until a broker answers, saying so in the log at rising intervals and to stage, and returns nil then; or
// ctx's error; or at once an error that says what to change where a broker refuses the login or TLS.
func Await(ctx context.Context, cl *kgo.Client, stage *ops.Stage, log *slog.Logger) error {
	var said rising
	var delay backoff
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := kafka.Ping(attempt, cl)
		cancel()
		if err == nil {
			if said.step != 0 {
				log.Info("broker reached")
				stage.SetWaiting(false)
			}
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if refused := kafka.Refused(err); refused != nil {
			return refused
		}
		stage.SetWaiting(true)
		if said.due(time.Now()) {
			log.Warn("waiting for a broker that answers", "error", err)
		}
		if !wait(ctx, delay.next()) {
			return context.Cause(ctx)
		}
	}
}
