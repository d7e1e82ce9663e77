package sink

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// produceKeyed writes n events to a partition of user.onlinestatus, each of the uid that key says.
func (f *fixture) produceKeyed(t testing.TB, partition int32, n int, key func(i int) string) {
	t.Helper()
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{
			Topic: f.topics.OnlineStatus, Partition: partition, Key: []byte(key(i)), Value: fmt.Appendf(nil, `"uid%d-%d"`, partition, i),
			Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
		}
	}
	if err := f.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner())).ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// distinct has no two events share a uid.
func distinct(i int) string { return fmt.Sprint("uid-", i) }

// deadLetters are those that the topic holds.
func (f *fixture) deadLetters(t testing.TB) []schemas.DeadLetter {
	t.Helper()
	var letters []schemas.DeadLetter
	for _, r := range f.ReadAll(t, f.topics.DeadLetters) {
		headers := make([]schemas.Header, len(r.Headers))
		for i, h := range r.Headers {
			headers[i] = schemas.Header(h)
		}
		letter, err := schemas.DecodeDeadLetter(r.Key, headers, r.Value)
		if err != nil {
			t.Fatal(err)
		}
		letters = append(letters, letter)
	}
	return letters
}

// committed is what the group holds for a partition.
func (f *fixture) committed(t testing.TB, cfg Config, partition int32) (p Plan) {
	t.Helper()
	offsets, err := kadm.NewClient(f.Client(t)).FetchOffsets(t.Context(), cfg.Group())
	if err != nil {
		return Plan{}
	}
	if o, ok := offsets.Lookup(f.topics.OnlineStatus, partition); ok {
		if p, _, err = ParsePlan(o.At, o.Metadata); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// metric is the value of a metric without labels but the sink's.
func metric(t testing.TB, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			m := family.GetMetric()[0]
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return 0
}

// TestPoisonEvent: of 10,000 events one is refused whatever batch it is in. That one is in the dead letters, the others are
// delivered in order, with no more than 14 requests more.
func TestPoisonEvent(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		const n = 10_000 / testPartitions
		f.produce(t, n)
		e := newEndpoint(t, nil)
		e.reply = func(_ http.ResponseWriter, _ *http.Request, body string) int {
			if strings.Contains(body, `"uid1-1237"`) {
				return 422
			}
			return 200
		}
		cfg := f.config(e)
		cfg.BatchMax, cfg.FlushInterval = 100, time.Second
		f.start(t, cfg)
		kafkatest.Wait(t, 60*time.Second, "all events", func() bool { return e.arrived() == n*testPartitions-1 })
		kafkatest.Wait(t, 20*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		letters := f.deadLetters(t)
		if len(letters) != 1 || string(letters[0].Value) != `"uid1-1237"` || letters[0].Reason != schemas.ReasonRefused || letters[0].Status != 422 || letters[0].Attempts != 1 || letters[0].Source.Offset != 1237 {
			t.Errorf("dead letters %+v, want the one event that is refused", letters)
		}
		e.mu.Lock()
		if most := n*testPartitions/cfg.BatchMax + 14; e.requests > most {
			t.Errorf("%d requests, want at most %d", e.requests, most)
		}
		e.items = slices.Insert(e.items, slices.Index(e.items, `"uid1-1236"`)+1, `"uid1-1237"`)
		e.mu.Unlock()
		e.check(t, n)
	})
}

// TestWrongEndpoint: an endpoint that answers what no event can be blamed for keeps its events, and log and plan say why.
func TestWrongEndpoint(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		var mended atomic.Bool
		e := newEndpoint(t, func(int, *http.Request) int {
			if mended.Load() {
				return 200
			}
			return 404
		})
		cfg := f.config(e)
		cfg.GiveUpAfter = time.Millisecond // which is for endpoints that fail, not for wrong ones
		log := newCountLog()
		f.startLog(t, cfg, log)
		f.produce(t, 20)
		kafkatest.Wait(t, 20*time.Second, "the plan to say why", func() bool {
			p := f.committed(t, cfg, 0)
			return p.Trouble.Answer == "404" && p.Trouble.Attempts > 0
		})
		if log.count("the endpoint or its settings are wrong, not the events: they are kept and tried again until that is mended") == 0 {
			t.Error("the log does not say why nothing is delivered")
		}
		mended.Store(true)
		kafkatest.Wait(t, 60*time.Second, "all events", func() bool { return e.arrived() == 20*testPartitions })
		kafkatest.Wait(t, 20*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		e.check(t, 20)
		if letters := f.deadLetters(t); len(letters) > 0 {
			t.Errorf("%d dead letters", len(letters))
		}
		if p := f.committed(t, cfg, 0); p.Trouble != (Trouble{}) {
			t.Errorf("the trouble is over and the plan says %+v", p.Trouble)
		}
	})
}

// TestGiveUp: a batch that the endpoint does not take in time goes to the dead letters whole, and what comes after is delivered.
func TestGiveUp(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		f.produce(t, 30)
		e := newEndpoint(t, nil)
		e.reply = func(_ http.ResponseWriter, _ *http.Request, body string) int {
			if strings.Contains(body, `"uid2-13"`) {
				return 503
			}
			return 200
		}
		cfg := f.config(e)
		cfg.GiveUpAfter = 300 * time.Millisecond
		f.start(t, cfg)
		kafkatest.Wait(t, 30*time.Second, "the others", func() bool { return e.arrived() == 30*testPartitions-10 })
		kafkatest.Wait(t, 20*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		letters := f.deadLetters(t)
		if len(letters) != 10 {
			t.Fatalf("%d dead letters, want the 10 events of the batch", len(letters))
		}
		for i, letter := range letters {
			if letter.Source.Offset != int64(10+i) || letter.Reason != schemas.ReasonGaveUp || letter.Status != 503 || letter.Attempts < 2 {
				t.Errorf("dead letter %d is %+v", i, letter)
			}
		}
	})
}

// TestHonoursRetryAfter: what the endpoint asks for is honoured, by each batch.
func TestHonoursRetryAfter(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 10)
	var mu sync.Mutex
	asked := make(map[string]time.Time)
	e := newEndpoint(t, nil)
	e.reply = func(w http.ResponseWriter, r *http.Request, _ string) int {
		mu.Lock()
		defer mu.Unlock()
		id := r.Header.Get("webhook-id")
		before, ok := asked[id]
		if !ok {
			asked[id] = time.Now()
			w.Header().Set("Retry-After", "1")
			return 429
		}
		if early := time.Since(before); early < time.Second {
			t.Errorf("%s came again after %v", id, early)
		}
		return 200
	}
	f.start(t, f.config(e))
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 10*testPartitions })
	e.check(t, 10)
}

// TestTooLarge: a 413 keeps later batches below the endpoint's limit.
func TestTooLarge(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	e := newEndpoint(t, nil)
	var refused atomic.Int32
	e.reply = func(_ http.ResponseWriter, _ *http.Request, body string) int {
		if len(body) > 300 { // some 27 events
			refused.Add(1)
			return 413
		}
		return 200
	}
	cfg := f.config(e)
	cfg.BatchMax = 100
	f.start(t, cfg)
	f.produce(t, 100)
	kafkatest.Wait(t, 30*time.Second, "all events", func() bool { return e.arrived() == 100*testPartitions })
	first := refused.Load()
	f.produce(t, 2000)
	kafkatest.Wait(t, 30*time.Second, "all events", func() bool { return e.arrived() == 2100*testPartitions })
	if n := refused.Load(); first == 0 || n != first {
		t.Errorf("%d batches were refused as too large at first, %d afterwards", first, n-first)
	}
	e.check(t, 2100)
	if letters := f.deadLetters(t); len(letters) > 0 {
		t.Errorf("%d dead letters", len(letters))
	}
}

// TestRate: requests begin at the rate that is set.
func TestRate(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	e := newEndpoint(t, nil)
	cfg := f.config(e)
	cfg.Rate, cfg.BatchMax = 40, 1
	f.produce(t, 10)
	f.start(t, cfg)
	kafkatest.Wait(t, 10*time.Second, "a request", func() bool { return e.arrived() > 0 })
	began := time.Now()
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 10*testPartitions })
	if took, least := time.Since(began), 30*time.Second/40; took < least {
		t.Errorf("%d requests came in %v, with 40 a second", 10*testPartitions, took)
	}
}

// TestInFlight: batches of a lane that share no uid are under way together, as many as may be.
func TestInFlight(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		f.produceKeyed(t, 1, 400, distinct)
		var e *endpoint
		var full atomic.Bool
		e = newEndpoint(t, func(int, *http.Request) int {
			// Each request waits until the lane's limit has been under way at once.
			for deadline := time.Now().Add(10 * time.Second); !full.Load() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				if e.inFlight.Load() == 5 {
					time.Sleep(50 * time.Millisecond) // for one that is too many
					full.Store(true)
				}
			}
			return 200
		})
		cfg := f.config(e)
		cfg.LaneInFlight = 5
		f.start(t, cfg)
		kafkatest.Wait(t, 30*time.Second, "all events", func() bool { return e.arrived() == 400 })
		if most := e.most.Load(); most != 5 {
			t.Errorf("%d requests were in flight, want 5", most)
		}
		if e.repeats > 0 {
			t.Errorf("%d requests came again", e.repeats)
		}
	})
}

// TestStuckEvent: an event that always gets a 500 holds up those of its uid, and no other lane.
func TestStuckEvent(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 300)
	var mended atomic.Bool
	e := newEndpoint(t, nil)
	e.reply = func(_ http.ResponseWriter, _ *http.Request, body string) int {
		if strings.Contains(body, `"uid2-105"`) && !mended.Load() {
			return 500
		}
		return 200
	}
	reg := prometheus.NewRegistry()
	f.startReg(t, f.config(e), slog.DiscardHandler, reg)
	kafkatest.Wait(t, 20*time.Second, "the other lanes", func() bool { return others(e) == 300*(testPartitions-1) && e.arrived() == 300*(testPartitions-1)+100 })
	f.produceKeyed(t, 2, 1, func(int) string { return "another" })
	if open := metric(t, reg, "offhook_sink_breaker_open"); open != 0 {
		t.Error("the breaker is open for one event")
	}
	mended.Store(true)
	kafkatest.Wait(t, 90*time.Second, "all events", func() bool { return e.arrived() == 300*testPartitions+1 })
}

// TestBreakerSparesEndpoint: while an endpoint takes nothing, 64 lanes have one request under way, once those that were have
// ended; when it is back all go on at once, in order.
func TestBreakerSparesEndpoint(t *testing.T) {
	c := kafkatest.New(t)
	f := &fixture{Cluster: c, topics: kafka.NewTopics(c.Prefix)}
	var err error
	f.owned, err = kafka.Ensure(t.Context(), c.Client(t), kafka.Spec{
		Topics: f.topics, Create: true, Partitions: 64, ReplicationFactor: -1, EventRetention: time.Hour, MaxRecordBytes: 1 << 20,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	const n = 200
	var records []*kgo.Record
	for p := range int32(64) {
		for i := range n {
			records = append(records, &kgo.Record{
				Topic: f.topics.OnlineStatus, Partition: p, Key: fmt.Append(nil, i%20), Value: fmt.Appendf(nil, `"uid%d-%d-%d"`, p, i%20, i/20),
				Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
			})
		}
	}
	if err := f.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner())).ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	var down atomic.Bool
	e := newEndpoint(t, func(n int, _ *http.Request) int {
		if n == 300 {
			down.Store(true)
		}
		if down.Load() {
			time.Sleep(2 * time.Millisecond)
			return 503
		}
		return 200
	})
	cfg := f.config(e)
	cfg.BatchMax, cfg.FlushInterval = 5, 50*time.Millisecond
	reg := prometheus.NewRegistry()
	f.startReg(t, cfg, slog.DiscardHandler, reg)
	kafkatest.Wait(t, 30*time.Second, "the breaker to open", func() bool { return metric(t, reg, "offhook_sink_breaker_open") == 1 })
	kafkatest.Wait(t, 10*time.Second, "the requests under way to end", func() bool { return e.inFlight.Load() <= 1 })
	e.most.Store(0)
	e.mu.Lock()
	before := e.requests
	e.mu.Unlock()
	kafkatest.Wait(t, 30*time.Second, "probes", func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.requests > before+2 })
	if most := e.most.Load(); most > 1 {
		t.Errorf("%d requests were in flight while the breaker was open", most)
	}
	down.Store(false)
	kafkatest.Wait(t, 30*time.Second, "all events", func() bool { return e.arrived() == 64*n })
	if open := metric(t, reg, "offhook_sink_breaker_open"); open != 0 {
		t.Error("the breaker is open still")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	next := make(map[string]int)
	for _, item := range e.items {
		uid, i := item[:strings.LastIndexByte(item, '-')], 0
		if _, err := fmt.Sscanf(item[len(uid):], "-%d", &i); err != nil || i != next[uid] {
			t.Fatalf("%s arrived, want number %d of it", item, next[uid])
		}
		next[uid]++
	}
}

// TestTurns: requests are given out to lanes in turn, however many batches one has to send.
func TestTurns(t *testing.T) {
	s, deep := bareSession(t)
	e := newEndpoint(t, func(int, *http.Request) int { return 200 })
	s.cfg = (&fixture{Cluster: &kafkatest.Cluster{}}).config(e)
	s.cfg.MaxInFlight = 4
	s.transport = NewTransport(s.cfg)
	defer s.transport.Close()
	newLane := func(p int32, batches int) *lane {
		l := &lane{laneKey: laneKey{"t", p}, event: schemas.EventOnlineStatus, timer: time.NewTimer(time.Hour)}
		l.ctx, l.cancel = deep.ctx, deep.cancel
		l.core = NewLane(LaneConfig{InFlight: 8, PlanAhead: 16, BatchMax: 1, BatchBytes: 1 << 20, UIDs: uidsOf(schemas.EventOnlineStatus)}, Plan{TopicID: testTopic}, false, false, epoch)
		for i := range batches {
			r := testRecord(int64(i), 5, epoch)
			r.Key = fmt.Append(nil, i)
			l.core.Read(r)
		}
		l.core.Cut(epoch)
		settle(l.core, nil, epoch)
		s.lanes[l.laneKey] = l
		return l
	}
	lanes := []*lane{newLane(2, 8), newLane(3, 1), newLane(4, 1)}
	for _, l := range lanes {
		s.begin(l, epoch)
	}
	s.dispatch()
	for i, want := range []int{2, 1, 1} {
		underway := 0
		for _, b := range lanes[i].core.batches {
			if b.state == batchUnderway {
				underway++
			}
		}
		if underway != want {
			t.Errorf("lane %d has %d requests under way, want %d", i, underway, want)
		}
	}
	for range 4 { // nobody runs the loop
		(<-s.tasks)()
	}
	s.work.Wait()
}

// TestDispatchEnds: a backoff that ends while dispatch runs does not have it go on for ever.
func TestDispatchEnds(t *testing.T) {
	s, deep := bareSession(t)
	release := make(chan struct{})
	e := newEndpoint(t, func(int, *http.Request) int { <-release; return 200 })
	defer close(release)
	s.cfg = (&fixture{Cluster: &kafkatest.Cluster{}}).config(e)
	s.cfg.MaxInFlight = 1000
	s.transport = NewTransport(s.cfg)
	defer s.transport.Close()
	for try := range 200 {
		s.ready, s.underway = nil, 0
		l := &lane{laneKey: laneKey{"t", int32(2 + try)}, event: schemas.EventOnlineStatus, timer: time.NewTimer(time.Hour)}
		l.ctx, l.cancel = deep.ctx, deep.cancel
		l.core = NewLane(LaneConfig{InFlight: 8, PlanAhead: 16, BatchMax: 1, BatchBytes: 1 << 20, UIDs: uidsOf(schemas.EventOnlineStatus)}, Plan{TopicID: testTopic}, false, false, epoch)
		for i := range int64(2) {
			r := testRecord(i, 5, epoch)
			r.Key = fmt.Append(nil, i)
			l.core.Read(r)
		}
		l.core.Cut(epoch)
		settle(l.core, nil, epoch)
		s.lanes[l.laneKey] = l
		// The second batch waits after a failure; its time comes a moment after dispatch has begun.
		second := l.core.batches[1]
		l.core.Begin(second)
		l.core.Retry(second, answered(503), 0, epoch)
		second.notBefore = time.Now().Add(time.Duration(try) * 2 * time.Microsecond)
		s.begin(l, time.Now())
		done := make(chan struct{})
		go func() { s.dispatch(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("try %d: dispatch does not return", try)
		}
	}
}

// TestOfflineObject: one msg.offline a request, as an object; what was planned longer goes as an array still.
func TestOfflineObject(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	item := func(i int, uid string) []byte { return fmt.Appendf(nil, `{"message_id":%d,"to_uids":["%s"]}`, i, uid) }
	var records []*kgo.Record
	for i := range 6 {
		records = append(records, &kgo.Record{
			Topic: f.topics.Offline, Partition: 1, Value: item(i, fmt.Sprint("uid", i%2)), Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
		})
	}
	if err := f.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner())).ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	offsets := make(kadm.Offsets)
	offsets.Add(kadm.Offset{Topic: f.topics.Offline, Partition: 1, At: 0, LeaderEpoch: -1, Metadata: Plan{
		TopicID: f.owned.IDs[f.topics.Offline], Batches: []Planned{{Last: 1}, {Last: 2}},
	}.Metadata()})
	var mu sync.Mutex
	var bodies []string
	e := newEndpoint(t, nil)
	e.reply = func(_ http.ResponseWriter, _ *http.Request, body string) int {
		mu.Lock()
		defer mu.Unlock()
		bodies = append(bodies, body)
		return 202
	}
	e.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.WriteHeader(e.reply(w, r, string(body)))
	})
	cfg := f.config(e)
	cfg.Events, cfg.OfflineObject = []schemas.Event{schemas.EventOffline}, true
	if err := kadm.NewClient(f.Client(t)).CommitAllOffsets(t.Context(), cfg.Group(), offsets); err != nil {
		t.Fatal(err)
	}
	f.start(t, cfg)
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { mu.Lock(); defer mu.Unlock(); return len(bodies) == 5 })
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(bodies)
	want := []string{"[" + string(item(0, "uid0")) + "," + string(item(1, "uid1")) + "]"}
	for i := 2; i < 6; i++ {
		want = append(want, string(item(i, fmt.Sprint("uid", i%2))))
	}
	if !slices.Equal(bodies, want) {
		t.Errorf("bodies %q, want %q", bodies, want)
	}
}
