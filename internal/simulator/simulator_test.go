package simulator

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"hash/fnv"
	"io"
	"net"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/truth"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// sarama's circuit breaker waits out its ten seconds after its producer's end.
		goleak.IgnoreAnyFunction("github.com/eapache/go-resiliency/breaker.(*Breaker).timer"),
		// One for the whole process, made with sarama's first meter.
		goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
	)
}

const partitions = 4

// start starts a broker with the two input topics and returns a small bounded run into it.
func start(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, Config) {
	t.Helper()
	opts = append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(partitions, "im.connections", "im.messages")}, opts...)
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	cfg := Default()
	cfg.Brokers = cluster.ListenAddrs()
	cfg.Run, cfg.Settle = "t", time.Millisecond
	cfg.Churn, cfg.Rate = 20_000, 20_000
	cfg.Connections, cfg.Messages = 1_000, 2_000
	return cluster, cfg
}

// stored reads n records, by topic and partition, in order.
func stored(t *testing.T, brokers []string, n int64) map[string][][]*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics("im.connections", "im.messages"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	byTopic := map[string][][]*kgo.Record{"im.connections": make([][]*kgo.Record, partitions), "im.messages": make([][]*kgo.Record, partitions)}
	for n > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("%d records are missing: %v", n, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			byTopic[r.Topic][r.Partition] = append(byTopic[r.Topic][r.Partition], r)
			n--
		})
	}
	if n < 0 {
		t.Fatalf("%d records more than the summary says", -n)
	}
	return byTopic
}

// withoutTimes is the records' keys and values, but for the timestamps in them.
func withoutTimes(t *testing.T, byTopic map[string][][]*kgo.Record) map[string][][]string {
	t.Helper()
	texts := make(map[string][][]string)
	for topic, partitions := range byTopic {
		texts[topic] = make([][]string, len(partitions))
		for p, records := range partitions {
			for _, r := range records {
				var fields map[string]json.RawMessage
				if err := json.Unmarshal(r.Value, &fields); err != nil {
					t.Fatal(err)
				}
				delete(fields, "timestamp")
				value, err := json.Marshal(fields)
				if err != nil {
					t.Fatal(err)
				}
				texts[topic][p] = append(texts[topic][p], string(r.Key)+" "+string(value))
			}
		}
	}
	return texts
}

func TestRunWritesWhatItsTruthSays(t *testing.T) {
	_, cfg := start(t)
	var known truth.Truth
	var progress strings.Builder
	summary, err := Run(t.Context(), cfg, Deps{Truth: &known, Progress: &progress})
	if err != nil {
		t.Fatal(err)
	}
	if summary.Messages != 2_000 || summary.Connections < 1_040 || summary.Doubtful != 0 {
		t.Errorf("summary = %+v, want 2000 messages, 1000 connections and those of the residents, no doubts", summary)
	}
	records := stored(t, cfg.Brokers, summary.Connections+summary.Messages)

	inKafka := make(map[string]bool)
	var statuses, pushes int64
	for topic, partitions := range records {
		for p, records := range partitions {
			numbers := make(map[string]int)
			for _, r := range records {
				h := fnv.New32a()
				h.Write(r.Key)
				want := int32(h.Sum32()) % int32(len(partitions))
				if want < 0 {
					want = -want
				}
				if want != int32(p) {
					t.Fatalf("a record with key %s is in partition %d, sarama's default partitioner has %d", r.Key, p, want)
				}
				if topic != "im.messages" {
					continue
				}
				numbers[string(r.Key)]++
				no := truth.ClientMsgNo("t", string(r.Key), uint32(numbers[string(r.Key)]))
				if !bytes.Contains(r.Value, []byte(`"`+no+`"`)) {
					t.Fatalf("partition %d has %s where %s comes next", p, r.Value, no)
				}
				inKafka[no] = true
			}
		}
	}
	inTruth := make(map[string]bool)
	for m := range known.Messages() {
		if m.Notify != truth.Must {
			t.Errorf("message %s is in doubt", m.ClientMsgNo)
		}
		inTruth[m.ClientMsgNo] = true
		for _, claim := range known.Recipients(m) {
			if claim == truth.Must {
				pushes++
			}
		}
	}
	if diff := gocmp.Diff(inKafka, inTruth); diff != "" {
		t.Errorf("messages (-Kafka +truth):\n%s", diff)
	}
	for u := range known.Users() {
		statuses += int64(u.Len())
	}
	if summary.Statuses != statuses || summary.Pushes != pushes || statuses == 0 || pushes == 0 {
		t.Errorf("summary = %+v, the truth has %d statuses and %d pushes", summary, statuses, pushes)
	}
}

func TestSeedRepeats(t *testing.T) {
	run := func(seed uint64) map[string][][]string {
		_, cfg := start(t)
		cfg.Seed = seed
		summary, err := Run(t.Context(), cfg, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		return withoutTimes(t, stored(t, cfg.Brokers, summary.Connections+summary.Messages))
	}
	first := run(7)
	if second := run(7); !reflect.DeepEqual(first, second) { // go-cmp is slow on what is equal
		t.Errorf("two runs of seed 7 (-first +second):\n%s", gocmp.Diff(first, second))
	}
	if reflect.DeepEqual(first, run(8)) {
		t.Error("seed 8 wrote what seed 7 wrote")
	}
}

func TestRunEndsByItself(t *testing.T) {
	_, cfg := start(t)
	cfg.Connections, cfg.Messages, cfg.Churn, cfg.Rate = 0, 0, 100, 200
	cfg.Duration = 500 * time.Millisecond
	summary, err := Run(t.Context(), cfg, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	// A machine that is too slow for 200 a second may write fewer, once it has overrun its time.
	if late := summary.Seconds > (cfg.Duration + overrun).Seconds(); summary.Messages != 100 && !late || summary.Messages == 0 || summary.Messages > 100 || summary.Seconds < 0.4 {
		t.Errorf("summary = %+v, want 100 messages in half a second", summary)
	}
}

func TestStoppedRunIsWholeInItsTruth(t *testing.T) {
	_, cfg := start(t)
	cfg.Connections, cfg.Messages = 0, 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var file bytes.Buffer
	w := truth.NewWriter(&file)
	summary, err := Run(ctx, cfg, Deps{Truth: &stopAfter{Recorder: w, left: 3_000, stop: cancel}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	known, err := truth.Read(&file)
	if err != nil {
		t.Fatal(err)
	}
	records := stored(t, cfg.Brokers, summary.Connections+summary.Messages)
	var inKafka, inTruth int64
	for _, partition := range records["im.messages"] {
		inKafka += int64(len(partition))
	}
	for range known.Messages() {
		inTruth++
	}
	if inKafka != inTruth || inTruth != summary.Messages || inTruth == 0 || summary.Doubtful != 0 {
		t.Errorf("Kafka has %d messages, the truth %d, the summary is %+v", inKafka, inTruth, summary)
	}
}

// stopAfter ends a run in its midst.
type stopAfter struct {
	truth.Recorder
	left int
	stop func()
}

func (s *stopAfter) Record(line truth.Line) error {
	if s.left--; s.left == 0 {
		s.stop()
	}
	return s.Recorder.Record(line)
}

func TestRefusedRecordEndsTheRun(t *testing.T) {
	cluster, cfg := start(t)
	cfg.Connections, cfg.Messages = 0, 0
	var produced atomic.Int32
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if produced.Add(1) < 20 {
			return nil, nil, false
		}
		return kafkatest.Refuse(req, kerr.TopicAuthorizationFailed.Code), nil, true
	})
	var file bytes.Buffer
	w := truth.NewWriter(&file)
	summary, err := Run(t.Context(), cfg, Deps{Truth: w})
	if err == nil || !strings.Contains(err.Error(), "write to im.") {
		t.Fatalf("Run = %v, want an error that names the topic", err)
	}
	if summary.Doubtful == 0 {
		t.Error("no record is in doubt")
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	known, err := truth.Read(&file)
	if err != nil {
		t.Fatal(err)
	}
	doubts := 0
	for m := range known.Messages() {
		if m.Notify == truth.May {
			doubts++
		}
	}
	for u := range known.Users() {
		if u.Doubt {
			doubts++
		}
	}
	if doubts == 0 {
		t.Error("the truth doubts nothing")
	}
}

func TestBrokerThatHangsDoesNotHoldAStoppedRun(t *testing.T) {
	_, cfg := start(t)
	cfg.Connections, cfg.Messages = 0, 0
	cfg.FlushTimeout = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var hung atomic.Bool
	cfg.Dialer = func(ctx context.Context, network, host string) (net.Conn, error) {
		if hung.Load() {
			return nil, errors.New("no route")
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, host)
		return hangingConn{conn, &hung, cancel}, err
	}
	var file bytes.Buffer
	w := truth.NewWriter(&file)
	summary, err := Run(ctx, cfg, Deps{Truth: &stopAfter{Recorder: w, left: 1_000, stop: func() { hung.Store(true) }}})
	if err == nil || !strings.Contains(err.Error(), "not acknowledged") || summary.Doubtful == 0 {
		t.Errorf("Run = %+v, %v, want an error about what is not acknowledged", summary, err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := truth.Read(&file); err != nil {
		t.Errorf("the truth is not whole: %v", err)
	}
}

// hangingConn swallows what is written to it once hung says so, and stops the run at the first such write.
type hangingConn struct {
	net.Conn
	hung *atomic.Bool
	stop func()
}

func (c hangingConn) Write(p []byte) (int, error) {
	if !c.hung.Load() {
		return c.Conn.Write(p)
	}
	c.stop()
	return len(p), nil
}

func TestMissingTopicIsNamed(t *testing.T) {
	_, cfg := start(t)
	cfg.MessagesTopic = "im.other"
	config, err := saramaConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	config.Metadata.Retry.Max = 0 // the wait for a topic just made is not what is tested
	_, err = newProducer(cfg, config, Deps{})
	if err == nil || !strings.Contains(err.Error(), "im.other") {
		t.Errorf("error = %v, want one that names im.other", err)
	}
}

func TestStopWhileConnecting(t *testing.T) {
	_, cfg := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	var once sync.Once
	dialed := make(chan struct{})
	cfg.Dialer = func(dial context.Context, _, _ string) (net.Conn, error) {
		once.Do(cancel)
		<-dialed
		return nil, errors.New("no route")
	}
	_, err := Run(ctx, cfg, Deps{})
	close(dialed)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want %v", err, context.Canceled)
	}
}

func TestDialerTLSAndSASL(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			_, cfg := start(t, kfake.TLS(&tls.Config{Certificates: server.TLS.Certificates}),
				kfake.EnableSASL(), kfake.Superuser(mechanism, "user,=", "pass word"))
			var dials atomic.Int32
			cfg.Dialer = func(ctx context.Context, network, host string) (net.Conn, error) {
				dials.Add(1)
				return new(net.Dialer).DialContext(ctx, network, host)
			}
			cfg.Connections, cfg.Messages = 10, 10
			cfg.TLS = &tls.Config{RootCAs: roots, ServerName: "example.com"} // which httptest's certificate is for
			cfg.SASLMechanism, cfg.SASLUsername, cfg.SASLPassword = mechanism, "user,=", "pass word"
			summary, err := Run(t.Context(), cfg, Deps{})
			if err != nil || summary.Messages != 10 || dials.Load() == 0 {
				t.Fatalf("Run = %+v, %v after %d dials", summary, err, dials.Load())
			}
			cfg.SASLPassword = "other"
			config, err := saramaConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			config.Metadata.Retry.Max = 0
			if _, err := newProducer(cfg, config, Deps{}); err == nil {
				t.Error("a wrong password was taken")
			}
		})
	}
}

func TestConfigRefuses(t *testing.T) {
	tests := map[string]func(*Config){
		"brokers":     func(c *Config) { c.Brokers = nil },
		"topics":      func(c *Config) { c.MessagesTopic = c.ConnectionsTopic },
		"run":         func(c *Config) { c.Run = "a-b" },
		"users":       func(c *Config) { c.Users = 2 },
		"groups":      func(c *Config) { c.Groups = -1 },
		"group size":  func(c *Config) { c.GroupSize = 1 },
		"devices":     func(c *Config) { c.Devices = 0 },
		"nodes":       func(c *Config) { c.Nodes = 0 },
		"churn":       func(c *Config) { c.Churn = -1 },
		"group share": func(c *Config) { c.GroupShare = 1.5 },
		"bounds":      func(c *Config) { c.Messages = -1 },
		"zipf":        func(c *Config) { c.Zipf = 1 },
		"crashes":     func(c *Config) { c.Crashes = -1 },
		"late":        func(c *Config) { c.Late = 1.5 },
		"late and":    func(c *Config) { c.Doubled = -1 },
		"skew":        func(c *Config) { c.Skew = -1 },
		"heartbeat":   func(c *Config) { c.Heartbeat = 1 },
	}
	for name, change := range tests {
		cfg := testConfig()
		change(&cfg)
		if _, err := Run(t.Context(), cfg, Deps{}); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: error = %v, want one that names it", name, err)
		}
	}
}

// BenchmarkRun measures a run into a broker in the same process.
func BenchmarkRun(b *testing.B) {
	for _, persist := range []bool{false, true} {
		b.Run(map[bool]string{false: "idempotent", true: "persist"}[persist], func(b *testing.B) {
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(12, "im.connections", "im.messages"))
			if err != nil {
				b.Fatal(err)
			}
			defer cluster.Close()
			cfg := Default()
			cfg.Brokers, cfg.Run, cfg.Persist, cfg.Settle = cluster.ListenAddrs(), "t", persist, 0
			cfg.Churn, cfg.Rate, cfg.Connections, cfg.Messages = 1e6, 1e6, int64(b.N), int64(b.N)
			summary, err := Run(b.Context(), cfg, Deps{Acks: io.Discard})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(summary.Connections+summary.Messages)/summary.Seconds, "records/s")
		})
	}
}
