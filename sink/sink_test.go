package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/ops"
	"github.com/offhook/offhook/schemas"
	"github.com/prometheus/client_golang/prometheus"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testPartitions = 4

var testSecret = []byte("a secret of at least 24 bytes")

// An endpoint records what it takes, and answers what answer says.
type endpoint struct {
	*httptest.Server
	mu       sync.Mutex
	bodies   map[string]string // by webhook-id: what was taken
	changed  []string          // ids that came again with another body
	repeats  int
	items    []string // of requests with a new id, in order
	requests int
	inFlight atomic.Int32
	most     atomic.Int32
	answer   func(n int, r *http.Request) int
	reply    func(w http.ResponseWriter, r *http.Request, body string) int // in the place of answer
	taken    chan struct{}                                                 // a token for each new id
}

func newEndpoint(t testing.TB, answer func(n int, r *http.Request) int) *endpoint {
	e := &endpoint{bodies: make(map[string]string), answer: answer, taken: make(chan struct{}, 1<<20)}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if n := e.inFlight.Add(1); n > e.most.Load() {
			e.most.Store(n)
		}
		defer e.inFlight.Add(-1)
		e.mu.Lock()
		e.requests++
		n := e.requests
		e.mu.Unlock()
		status := http.StatusOK
		switch {
		case e.reply != nil:
			status = e.reply(w, r, string(body))
		case e.answer != nil:
			status = e.answer(n, r)
		}
		if status/100 == 2 {
			e.take(r.Header.Get("webhook-id"), string(body))
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) take(id, body string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if before, ok := e.bodies[id]; ok {
		e.repeats++
		if before != body {
			e.changed = append(e.changed, id)
		}
		return
	}
	e.bodies[id] = body
	var items []json.RawMessage
	if err := json.Unmarshal([]byte(body), &items); err != nil {
		panic(err)
	}
	for _, item := range items {
		e.items = append(e.items, string(item))
	}
	e.taken <- struct{}{}
}

func (e *endpoint) arrived() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.items)
}

// check fails unless each of the n events per partition has arrived once, in order, under ids with one body each.
func (e *endpoint) check(t testing.TB, n int) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.changed) > 0 {
		t.Errorf("ids with another body: %v", e.changed)
	}
	next := make(map[int]int)
	for _, item := range e.items {
		var partition, i int
		if _, err := fmt.Sscanf(item, `"uid%d-%d`, &partition, &i); err != nil {
			t.Fatalf("item %s: %v", item, err)
		}
		if i != next[partition] {
			t.Errorf("partition %d: event %d arrived, want %d", partition, i, next[partition])
			return
		}
		next[partition]++
	}
	for p := range testPartitions {
		if next[p] != n {
			t.Errorf("partition %d: %d events arrived, want %d", p, next[p], n)
		}
	}
}

// A fixture is a cluster with the owned topics, and events to deliver.
type fixture struct {
	*kafkatest.Cluster
	topics   kafka.Topics
	owned    kafka.Owned
	produced int
}

func newFixture(t *testing.T, c *kafkatest.Cluster) *fixture {
	t.Helper()
	f := &fixture{Cluster: c, topics: kafka.NewTopics(c.Prefix)}
	var err error
	f.owned, err = kafka.Ensure(t.Context(), c.Client(t), kafka.Spec{
		Topics: f.topics, Create: true, Partitions: testPartitions, ReplicationFactor: -1, EventRetention: time.Hour, MaxRecordBytes: 1 << 20,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// produce writes n events more to each partition of user.onlinestatus.
func (f *fixture) produce(t testing.TB, n int) {
	t.Helper()
	var records []*kgo.Record
	for p := range int32(testPartitions) {
		for i := range n {
			records = append(records, &kgo.Record{
				Topic: f.topics.OnlineStatus, Partition: p, Key: fmt.Appendf(nil, "uid%d", p),
				Value:   fmt.Appendf(nil, `"uid%d-%d"`, p, f.produced+i),
				Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader()), {Key: "traceparent", Value: fmt.Appendf(nil, "00-%032x-%016x-01", f.produced+i, p)}},
			})
		}
	}
	client := f.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	f.produced += n
}

func (f *fixture) config(e *endpoint) Config {
	u, err := url.Parse(e.URL)
	if err != nil {
		panic(err)
	}
	return Config{
		Name: DefaultName, Prefix: f.Prefix, URL: u, Events: []schemas.Event{schemas.EventOnlineStatus}, FlushInterval: 20 * time.Millisecond,
		BatchMax: 10, BatchBytes: 1 << 20, Timeout: 5 * time.Second, MaxInFlight: 64, LaneInFlight: 8, MaxRecordBytes: 1 << 20, ShutdownTimeout: 5 * time.Second,
	}
}

// start runs a sink; stop ends it and waits, and is called at the test's end if it was not before.
func (f *fixture) start(t *testing.T, cfg Config) (stop func()) {
	t.Helper()
	return f.startLog(t, cfg, slog.NewTextHandler(t.Output(), nil))
}

func (f *fixture) startLog(t *testing.T, cfg Config, log slog.Handler) (stop func()) {
	t.Helper()
	return f.startReg(t, cfg, log, prometheus.NewRegistry())
}

func (f *fixture) startReg(t *testing.T, cfg Config, log slog.Handler, reg *prometheus.Registry) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, cfg, Deps{
			Kafka: f.Config(), Topics: f.topics, Owned: f.owned, Log: slog.New(log),
			Registerer: reg, Stage: ops.NewHealth().Stage("sink"),
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the sink ended: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the sink does not stop")
		}
	})
	t.Cleanup(stop)
	return stop
}

// lag is the sum of the group's lags.
func (f *fixture) lag(t testing.TB, group string) int64 {
	t.Helper()
	admin := kadm.NewClient(f.Client(t))
	lags, err := admin.Lag(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	ends, err := admin.ListEndOffsets(t.Context(), f.topics.OnlineStatus)
	if err != nil {
		t.Fatal(err)
	}
	for p := range int32(testPartitions) {
		end, _ := ends.Lookup(f.topics.OnlineStatus, p)
		l, ok := lags[group].Lag.Lookup(f.topics.OnlineStatus, p)
		if !ok || l.Commit.At < 0 {
			return -1
		}
		total += end.Offset - l.Commit.At
	}
	return total
}

func TestDelivers(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		f.produce(t, 95)
		hook, err := standardwebhooks.NewWebhookRaw(testSecret)
		if err != nil {
			t.Fatal(err)
		}
		var wrong atomic.Value
		e := newEndpoint(t, func(_ int, r *http.Request) int {
			if r.Method != http.MethodPost || r.URL.Query().Get("event") != "user.onlinestatus" || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("X-Api-Key") != "k" {
				wrong.Store(fmt.Sprint(r.Method, r.URL, r.Header))
			}
			return 200
		})
		verifying := newEndpoint(t, nil)
		verifying.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if err := hook.Verify(body, r.Header); err != nil {
				wrong.Store(err.Error())
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			e.Config.Handler.ServeHTTP(w, r)
		})
		cfg := f.config(verifying)
		cfg.Secrets = [][]byte{[]byte("another secret, not known there"), testSecret}
		cfg.Headers = http.Header{"X-Api-Key": {"k"}}
		stop := f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 95*testPartitions })
		kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		f.produce(t, 5)
		kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 100*testPartitions })
		stop()
		e.check(t, 100)
		if w := wrong.Load(); w != nil {
			t.Error(w)
		}
		if e.repeats != 0 {
			t.Errorf("%d requests came again", e.repeats)
		}
		// Stopped and started, it sends nothing again.
		f.start(t, f.config(e))
		f.produce(t, 3)
		kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 103*testPartitions })
		e.check(t, 103)
		if e.repeats != 0 {
			t.Errorf("%d requests came again after a clean stop", e.repeats)
		}
	})
}

// TestOneInFlightPerUID: where all events share a uid, a lane has one request under way.
func TestOneInFlightPerUID(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 60)
	e := newEndpoint(t, func(int, *http.Request) int { time.Sleep(5 * time.Millisecond); return 200 })
	f.start(t, f.config(e))
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 60*testPartitions })
	e.check(t, 60)
	if most := e.most.Load(); most > testPartitions {
		t.Errorf("%d requests were in flight, with %d lanes", most, testPartitions)
	}
}

// TestRetries: what is neither 2xx nor refuses the content is tried again, with the same id and body, in order.
func TestRetries(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 50)
	e := newEndpoint(t, func(n int, _ *http.Request) int {
		return []int{500, 200, 301, 200, 404, 200, 429, 200, 408, 200}[n%10]
	})
	f.start(t, f.config(e))
	kafkatest.Wait(t, 60*time.Second, "all events", func() bool { return e.arrived() == 50*testPartitions })
	e.check(t, 50)
}

// TestUnknownCommit: after a commit of which nobody knows whether it was applied, the sink goes on as another member, with
// the plans as they are then, and no id changes its content. The commit reaches the coordinator never, at once, or when
// the sink has gone on.
func TestUnknownCommit(t *testing.T) {
	for _, tt := range []struct {
		name  string
		delay time.Duration // until the commit reaches the coordinator; negative: never
	}{{"never applied", -1}, {"applied", 0}, {"late", time.Second}} {
		t.Run(tt.name, func(t *testing.T) {
			c := kafkatest.New(t)
			f := newFixture(t, c)
			e := newEndpoint(t, nil)
			cfg := f.config(e)
			client := f.Client(t)
			var commits, broken int
			var calm bool // no further commit breaks: `late` is waited for
			var late sync.WaitGroup
			members := make(map[string]bool)
			resent := make(map[string]bool) // by plan
			text := func(r *kmsg.OffsetCommitRequest) string {
				return fmt.Sprint(r.MemberID, r.Generation, *r.Topics[0].Partitions[0].Metadata)
			}
			var mu sync.Mutex
			c.Fake.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
				mu.Lock()
				defer mu.Unlock()
				c.Fake.KeepControl()
				r := request.(*kmsg.OffsetCommitRequest)
				if resent[text(r)] {
					return nil, nil, false
				}
				members[r.MemberID] = true
				if commits++; calm || commits != 3 && commits != 7 {
					return nil, nil, false
				}
				broken++
				if tt.delay >= 0 {
					resent[text(r)] = true
					again := *r // the fake still reads its own, and a client sets the version of what it sends
					late.Go(func() {
						time.Sleep(tt.delay)
						coordinator := kadm.NewClient(client).FindGroupCoordinators(t.Context(), cfg.Group())[cfg.Group()]
						if _, err := client.Broker(int(coordinator.NodeID)).Request(t.Context(), &again); err != nil {
							t.Errorf("the late commit: %v", err)
						}
					})
				}
				return nil, errors.New("the connection breaks"), true
			})
			f.start(t, cfg)
			for range 10 {
				f.produce(t, 10)
			}
			kafkatest.Wait(t, 60*time.Second, "all events", func() bool { return e.arrived() == 100*testPartitions })
			mu.Lock()
			calm = true
			mu.Unlock()
			late.Wait()
			f.produce(t, 10)
			kafkatest.Wait(t, 60*time.Second, "all events", func() bool { return e.arrived() == 110*testPartitions })
			e.check(t, 110)
			mu.Lock()
			defer mu.Unlock()
			if broken == 0 || len(members) != broken+1 {
				t.Errorf("%d member ids committed, with %d unknown commits", len(members), broken)
			}
		})
	}
}

// TestRebalance: two members share the lanes, one comes and goes; nothing is lost, changed or out of order.
func TestRebalance(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		e := newEndpoint(t, func(int, *http.Request) int { time.Sleep(time.Millisecond); return 200 })
		cfg := f.config(e)
		f.start(t, cfg)
		for range 3 {
			stop := f.start(t, cfg)
			for range 10 {
				f.produce(t, 10)
				time.Sleep(20 * time.Millisecond)
			}
			stop()
			f.produce(t, 10)
		}
		kafkatest.Wait(t, 60*time.Second, "all events", func() bool { return e.arrived() == f.produced*testPartitions })
		e.check(t, f.produced)
	})
}

// TestRewind: an offset that was set by another tool is a rewind, and its events go out under new ids.
func TestRewind(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		e := newEndpoint(t, nil)
		cfg := f.config(e)
		f.produce(t, 20)
		stop := f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 20*testPartitions })
		kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		stop()
		e.check(t, 20)
		offsets := make(kadm.Offsets)
		offsets.AddOffset(f.topics.OnlineStatus, 1, 15, -1)
		if err := kadm.NewClient(f.Client(t)).CommitAllOffsets(t.Context(), cfg.Group(), offsets); err != nil {
			t.Fatal(err)
		}
		stop = f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "the rewound events", func() bool { return e.arrived() == 20*testPartitions+5 })
		kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		stop()
		e.mu.Lock()
		defer e.mu.Unlock()
		if got, want := e.items[20*testPartitions:], []string{`"uid1-15"`, `"uid1-16"`, `"uid1-17"`, `"uid1-18"`, `"uid1-19"`}; !slices.Equal(got, want) {
			t.Errorf("the rewind sent %v, want %v", got, want)
		}
	})
}

// TestRetentionGap: events that retention deleted before they were delivered are counted, what is left of a planned batch goes to
// the dead letters, and the rest is delivered.
func TestRetentionGap(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		f.produce(t, 30)
		var open atomic.Bool
		e := newEndpoint(t, func(int, *http.Request) int {
			if open.Load() {
				return 200
			}
			return 503
		})
		cfg := f.config(e)
		stop := f.start(t, cfg)
		admin := kadm.NewClient(f.Client(t))
		kafkatest.Wait(t, 20*time.Second, "plans", func() bool {
			offsets, err := admin.FetchOffsets(t.Context(), cfg.Group())
			if err != nil {
				return false
			}
			o, _ := offsets.Lookup(f.topics.OnlineStatus, 2)
			p, ours, err := ParsePlan(o.At, o.Metadata)
			return ours && err == nil && len(p.Batches) == 3
		})
		stop()
		offsets := make(kadm.Offsets)
		offsets.AddOffset(f.topics.OnlineStatus, 2, 15, -1)
		if _, err := admin.DeleteRecords(t.Context(), offsets); err != nil {
			t.Fatal(err)
		}
		open.Store(true)
		f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "what is left", func() bool { return e.arrived() == 30*(testPartitions-1)+10 })
		var letters []*kgo.Record
		kafkatest.Wait(t, 20*time.Second, "dead letters", func() bool {
			letters = f.ReadAll(t, f.topics.DeadLetters)
			return len(letters) >= 5
		})
		for i, r := range letters {
			headers := make([]schemas.Header, len(r.Headers))
			for i, h := range r.Headers {
				headers[i] = schemas.Header(h)
			}
			d, err := schemas.DecodeDeadLetter(r.Key, headers, r.Value)
			if err != nil {
				t.Fatal(err)
			}
			if d.Source.Offset != int64(15+i) || d.Reason != schemas.ReasonCut || d.Sink != DefaultName || string(d.Value) != fmt.Sprintf(`"uid2-%d"`, 15+i) {
				t.Errorf("dead letter %d is %+v", i, d)
			}
		}
		kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
	})
}

// TestStartRequired: a sink of a name of its own does not send a week's events again unasked.
func TestStartRequired(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 5)
	e := newEndpoint(t, nil)
	cfg := f.config(e)
	cfg.Name = "audit"
	err := Run(t.Context(), cfg, Deps{
		Kafka: f.Config(), Topics: f.topics, Owned: f.owned, Log: slog.New(slog.DiscardHandler),
		Registerer: prometheus.NewRegistry(), Stage: ops.NewHealth().Stage("sink"),
	})
	if !errors.Is(err, ErrStartRequired) {
		t.Fatalf("Run returned %v, want ErrStartRequired", err)
	}
	cfg.Start, _ = ParseStart("latest")
	stop := f.start(t, cfg)
	kafkatest.Wait(t, 10*time.Second, "the start committed", func() bool { return f.lag(t, cfg.Group()) == 0 })
	f.produce(t, 5)
	kafkatest.Wait(t, 10*time.Second, "new events", func() bool { return e.arrived() == 5*testPartitions })
	stop()
	cfg.Start = Start{}
	f.produce(t, 5)
	f.start(t, cfg) // it has offsets now
	kafkatest.Wait(t, 10*time.Second, "new events", func() bool { return e.arrived() == 10*testPartitions })
}
