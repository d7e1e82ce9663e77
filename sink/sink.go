package sink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/ops"
	"github.com/offhook/offhook/schemas"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// DefaultName is the name of the sink that may begin without [Config.Start].
const DefaultName = "default"

// Config are the settings of one sink: one endpoint.
type Config struct {
	Name        string          // OFFHOOK_SINK_NAME; the group is <prefix>.sink.<name>
	Start       Start           // OFFHOOK_SINK_START; the zero Start: not set
	Prefix      string          // OFFHOOK_TOPIC_PREFIX
	URL         *url.URL        // http or https
	Events      []schemas.Event // at least one
	Credentials                 // what requests carry
	// Current gives what requests carry from now on, where that changes; nil: it never does. It is asked for each request,
	// from many goroutines. What it has given is never changed.
	Current func() *Credentials
	// Proxy is asked for each connection; nil, or a nil URL: none.
	Proxy         func(*http.Request) (*url.URL, error)
	FlushInterval time.Duration
	BatchMax      int  // events
	BatchBytes    int  // bytes
	OfflineObject bool // a msg.offline request is one object, not an array; a longer batch that was planned before is still an array
	Timeout       time.Duration
	MaxInFlight   int           // requests, over all lanes
	LaneInFlight  int           // batches of one lane that are under way, or done behind one that is not
	Rate          int           // requests a second; 0: as many as can be
	GiveUpAfter   time.Duration // a batch goes to the dead letters this long after its first attempt; 0: never
	// MaxRecordBytes is the largest input record; events, and so dead letters, may have somewhat more than twice that.
	MaxRecordBytes int
	// ShutdownTimeout is how long a stop waits for requests under way.
	ShutdownTimeout time.Duration
}

// Credentials are what an endpoint knows offhook by, and offhook an endpoint. The zero value: requests that are not signed, the
// system's authorities.
type Credentials struct {
	Secrets     [][]byte         // newest first; none: requests are not signed
	Headers     http.Header      // beside those of the contract; nil: none
	Certificate *tls.Certificate // the client's; nil: none
	Roots       *x509.CertPool   // the authorities of the endpoint's certificate; nil: the system's
}

// Deps are what a sink works with.
type Deps struct {
	Kafka      kafka.Config
	Topics     kafka.Topics
	Owned      kafka.Owned
	Log        *slog.Logger
	Registerer prometheus.Registerer
	Stage      *ops.Stage
}

// Group is the sink's consumer group.
func (c Config) Group() string { return c.Prefix + ".sink." + c.Name }

// Body is a request's body for items: an array, or the item itself where msg.offline goes as one object.
func (c *Config) Body(event schemas.Event, items [][]byte) []byte {
	if event == schemas.EventOffline && c.OfflineObject && len(items) == 1 {
		return items[0]
	}
	size := 2
	for _, item := range items {
		size += len(item) + 1
	}
	return schemas.AppendBody(make([]byte, 0, size), items)
}

// Start is where a sink begins in a partition for which its group has no offset.
type Start struct {
	kind startKind
	time time.Time
}

type startKind uint8

const (
	startUnset startKind = iota
	startEarliest
	startLatest
	startTime
)

// IsSet reports whether s says something.
func (s Start) IsSet() bool { return s.kind != startUnset }

// ParseStart reads earliest, latest, an RFC 3339 time, or a Unix time in seconds. Empty is not set.
func ParseStart(text string) (Start, error) {
	switch text {
	case "":
		return Start{}, nil
	case "earliest":
		return Start{kind: startEarliest}, nil
	case "latest":
		return Start{kind: startLatest}, nil
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil && seconds >= 0 && seconds < 1e11 {
		return Start{kind: startTime, time: time.Unix(seconds, 0)}, nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return Start{}, errors.New("it is none of earliest, latest, an RFC 3339 time or Unix seconds")
	}
	return Start{kind: startTime, time: at}, nil
}

// ErrStartRequired says that a sink of a name of its own has no offsets and was not told where to begin. It is an
// error in the settings.
var ErrStartRequired = errors.New("OFFHOOK_SINK_START is required: the group of this sink has no offsets, and all events that the topics " +
	"still hold would go out again; set it to latest, earliest or a time such as 2026-01-31T12:00:00Z")

// errRestart ends a session whose group membership cannot be trusted any more; Run begins another.
type errRestart struct{ cause error }

func (e *errRestart) Error() string { return "the session ends: " + e.cause.Error() }
func (e *errRestart) Unwrap() error { return e.cause }

// Run delivers until ctx ends, and then returns nil; an error ends the process.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	log := deps.Log.With("stage", "sink", "sink", cfg.Name)
	metrics := newMetrics(deps.Registerer, cfg.Name)
	transport := NewTransport(cfg)
	defer transport.Close()
	if cfg.Name != DefaultName && !cfg.Start.IsSet() {
		if err := requireOffsets(ctx, cfg, deps, log); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
	endpoint := &endpointState{pace: newPacer(cfg.Rate), body: bodyLimit{configured: cfg.BatchBytes}}
	for failures := 0; ; failures++ {
		began := time.Now()
		err := runSession(ctx, cfg, deps, log, metrics, transport, endpoint)
		deps.Stage.SetReady(false)
		restart, ok := errors.AsType[*errRestart](err)
		if !ok {
			if err != nil {
				return fmt.Errorf("sink %s: %w", cfg.Name, err)
			}
			return nil
		}
		if time.Since(began) > time.Minute {
			failures = 0
		}
		delay := RetryDelay(failures+1, 1)
		metrics.sessions.Inc()
		log.Warn("the sink joins its group anew, with a new member id", "cause", restart.cause, "delay", delay)
		deps.Stage.SetWaiting(true)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		deps.Stage.SetWaiting(false)
	}
}

// requireOffsets returns ErrStartRequired where the group lacks the offset of a partition. It waits for the brokers.
func requireOffsets(ctx context.Context, cfg Config, deps Deps, log *slog.Logger) error {
	client, err := deps.Kafka.NewClient(log)
	if err != nil {
		return err
	}
	defer client.Close()
	deps.Stage.SetWaiting(true)
	defer deps.Stage.SetWaiting(false)
	for attempts := 1; ; attempts++ {
		offsets, err := kadm.NewClient(client).FetchOffsets(ctx, cfg.Group())
		if errors.Is(err, kerr.GroupIDNotFound) {
			return ErrStartRequired
		}
		if err == nil {
			for topic := range eventTopics(cfg.Events, deps.Topics) {
				for p := range deps.Owned.Partitions {
					if o, ok := offsets.Lookup(topic, p); !ok || o.At < 0 {
						return ErrStartRequired
					}
				}
			}
			return nil
		}
		if refused := kafka.Refused(err); refused != nil {
			return fmt.Errorf("fetch the offsets of %s: %w", cfg.Group(), refused)
		}
		if attempts&(attempts-1) == 0 { // at 1, 2, 4, …
			log.Warn("the group's offsets cannot be fetched; trying again", "attempts", attempts, "error", err)
		}
		select {
		case <-time.After(RetryDelay(min(attempts, 5), 1)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// eventTopics are the topics of events, each with its event.
func eventTopics(events []schemas.Event, names kafka.Topics) map[string]schemas.Event {
	topics := make(map[string]schemas.Event, len(events))
	for _, event := range events {
		topics[names.Of(event)] = event
	}
	return topics
}
