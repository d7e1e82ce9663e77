package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/simulator"
	"github.com/offhook/offhook/internal/truth"
	"github.com/offhook/offhook/schemas"
)

// partitions is P of the tests' owned topics.
const partitions = "4"

// realAtOnce are the places of tests that run on Apache Kafka at once: brokers that share the machine with more of them
// show how slow it is, and nothing else.
const realAtOnce = 4

var realPlaces = semaphore.NewWeighted(realAtOnce)

// parallel makes a test run beside others, on Apache Kafka beside a few.
func parallel(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	takePlaces(t, c, 1)
}

// alone makes a test run beside others, on Apache Kafka beside none: one that loads the brokers, or waits for what offhook does
// only while nothing holds it up.
func alone(t *testing.T, c *kafkatest.Cluster) {
	t.Helper()
	takePlaces(t, c, realAtOnce)
}

func takePlaces(t *testing.T, c *kafkatest.Cluster, n int64) {
	t.Helper()
	t.Parallel()
	if c.Fake == nil {
		if err := realPlaces.Acquire(t.Context(), n); err != nil {
			t.Fatalf("wait for a place on the brokers: %v", err)
		}
		t.Cleanup(func() { realPlaces.Release(n) })
	}
}

// system is one installation: input topics, the topics and groups of a prefix, an endpoint.
type system struct {
	t                     *testing.T
	cluster               *kafkatest.Cluster
	endpoint              *endpoint
	connections, messages string // the input topics
	topics                kafka.Topics
}

// newSystem makes the input topics, of n partitions each, with configs as "key=value".
func newSystem(t *testing.T, c *kafkatest.Cluster, e *endpoint, n int32, configs ...string) *system {
	t.Helper()
	s := &system{
		t: t, cluster: c, endpoint: e, connections: c.Prefix + "-im.connections", messages: c.Prefix + "-im.messages",
		topics: kafka.NewTopics(c.Prefix),
	}
	c.CreateTopic(t, s.connections, n, configs...)
	c.CreateTopic(t, s.messages, n, configs...)
	return s
}

// kafkaEnv are the settings that say where Kafka and the topics are.
func (s *system) kafkaEnv(extra ...string) []string {
	return append([]string{
		"OFFHOOK_KAFKA_BROKERS=" + strings.Join(s.cluster.Brokers, ","),
		"OFFHOOK_TOPIC_PREFIX=" + s.cluster.Prefix,
		"OFFHOOK_PARTITIONS=" + partitions,
	}, extra...)
}

// env are the settings of `offhook run`, with short intervals. Of a variable that comes twice the last counts.
func (s *system) env(extra ...string) []string {
	return append(s.kafkaEnv(
		"OFFHOOK_CONNECTIONS_TOPIC="+s.connections,
		"OFFHOOK_MESSAGES_TOPIC="+s.messages,
		"OFFHOOK_WEBHOOK_URL="+s.endpoint.url(),
		"OFFHOOK_COMMIT_INTERVAL=20ms",
		"OFFHOOK_WEBHOOK_FLUSH_INTERVAL=40ms",
		"OFFHOOK_OPS_ADDR=127.0.0.1:0",
	), extra...)
}

// run starts `offhook run`; the caller waits for its readiness.
func (s *system) run(extra ...string) *process {
	s.t.Helper()
	return start(s.t, s.env(extra...), "run")
}

// real reports whether Kafka is Apache Kafka, which takes its time where kfake does not.
func (s *system) real() bool { return s.cluster.Fake == nil }

// quiet is how long a test waits to see that nothing comes.
func (s *system) quiet() time.Duration {
	if s.real() {
		return 2 * time.Second
	}
	return 400 * time.Millisecond
}

// long reports whether what is scaled down by default is to last as long as it would for a user.
func long() bool { return os.Getenv("OFFHOOK_E2E_LONG") == "1" }

// traffic is a simulator that runs.
type traffic struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan struct{}
	truth  truth.Truth // complete when done is closed

	summary simulator.Summary
	err     error
}

// simulate starts traffic that lasts until stop.
func (s *system) simulate(messages, churn float64) *traffic {
	s.t.Helper()
	cfg := simulator.Default()
	cfg.Brokers = s.cluster.Brokers
	cfg.ConnectionsTopic, cfg.MessagesTopic = s.connections, s.messages
	cfg.Users, cfg.Groups = 100, 10
	cfg.Rate, cfg.Churn = messages, churn
	cfg.Settle = time.Millisecond
	// Messages begin when the residents' onlines have arrived: nothing orders messages against connections, so that a stage
	// that stands still would otherwise rightly push to residents.
	settled := func(ctx context.Context, statuses int64) bool {
		for int64(len(s.endpoint.items(schemas.EventOnlineStatus))) < statuses {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return false
			}
		}
		return true
	}
	ctx, cancel := context.WithCancel(context.Background())
	tr := &traffic{t: s.t, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(tr.done)
		tr.summary, tr.err = simulator.Run(ctx, cfg, simulator.Deps{Truth: &tr.truth, Settled: settled})
	}()
	s.t.Cleanup(func() {
		cancel()
		<-tr.done
	})
	return tr
}

// stop ends the traffic and returns what must arrive.
func (tr *traffic) stop() *truth.Truth {
	tr.t.Helper()
	tr.cancel()
	<-tr.done
	if tr.err != nil {
		tr.t.Fatalf("simulate: %v", tr.err)
	}
	if tr.summary.Doubtful > 0 || tr.summary.Messages == 0 || tr.summary.Statuses == 0 {
		tr.t.Fatalf("simulate: traffic that proves nothing: %v", tr.summary)
	}
	tr.t.Logf("simulate: %v", tr.summary)
	return &tr.truth
}
