package txn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counter is a Handler that numbers the records of each partition and writes "<n> <value>" to the same partition of
// out, from which it restores: a number that is missing or comes twice shows what was lost or done twice.
type counter struct {
	deps Deps
	out  string

	mu       sync.Mutex // tests look in
	n, saved map[int32]int
	owned    map[int32]bool
	restores int
	resets   int
	onRecord func(Input)
	fail     error

	// parts, where not nil, says into how many outputs, one a transaction, a record is cut; part is how many of those of the
	// record at hand are out.
	parts           func(value string) int
	part, savedPart map[int32]int
}

func newCounter(out string) *counter {
	return &counter{out: out, n: map[int32]int{}, saved: map[int32]int{}, owned: map[int32]bool{}, part: map[int32]int{}, savedPart: map[int32]int{}}
}

func (c *counter) Restore(ctx context.Context, p Partition) (func(), error) {
	n, part := 0, 0
	_, err := ReadChangelog(ctx, c.deps.Kafka, c.deps.Log, Partition{c.out, p.Partition}, func(r *kgo.Record) error {
		first, value, _ := strings.Cut(string(r.Value), " ")
		if c.parts != nil {
			value, nth, _ := strings.Cut(value, "/")
			if part, _ = strconv.Atoi(nth); part == c.parts(value) {
				part = 0
			}
		}
		got, err := strconv.Atoi(first)
		if err != nil || got != n+1 {
			return Fatal(fmt.Errorf("changelog has %q after %d", r.Value, n))
		}
		n = got
		return nil
	})
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.n[p.Partition], c.saved[p.Partition], c.owned[p.Partition] = n, n, true
		c.part[p.Partition], c.savedPart[p.Partition] = part, part
		c.restores++
	}, err
}

func (c *counter) Revoked(p Partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.n, p.Partition)
	delete(c.saved, p.Partition)
	delete(c.owned, p.Partition)
}

func (c *counter) Process(in Input, emit func(*kgo.Record)) (more bool, err error) {
	if c.onRecord != nil {
		c.onRecord(in)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.owned[in.Partition] {
		return false, errors.New("a record of a partition that was not restored")
	}
	if c.fail != nil {
		return false, c.fail
	}
	c.n[in.Partition]++
	value := string(in.Value)
	if c.parts != nil {
		c.part[in.Partition]++
		n := c.part[in.Partition]
		if more = n < c.parts(value); !more {
			c.part[in.Partition] = 0
		}
		value += "/" + strconv.Itoa(n)
	}
	emit(&kgo.Record{Topic: c.out, Partition: in.Partition, Value: fmt.Appendf(nil, "%d %s", c.n[in.Partition], value)})
	return more, nil
}

func (c *counter) Commit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(c.saved, c.n)
	maps.Copy(c.savedPart, c.part)
}

func (c *counter) Rollback() {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(c.n, c.saved)
	maps.Copy(c.part, c.savedPart)
}

func (c *counter) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.n)
	clear(c.saved)
	clear(c.owned)
	c.resets++
}

func (c *counter) partitions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.owned)
}

// world is a kfake cluster with the topics in and out, and a client.
type world struct {
	*testing.T
	fake *kfake.Cluster
	cl   *kgo.Client
	adm  *kadm.Client
	sent int
}

const parts = 4

func newWorld(t *testing.T, opts ...kfake.Opt) *world {
	t.Helper()
	fake, err := kfake.NewCluster(append([]kfake.Opt{
		kfake.NumBrokers(2), kfake.SeedTopics(parts, "in", "out"), kfake.BrokerConfigs(map[string]string{"group.initial.rebalance.delay.ms": "0"}),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	w := &world{T: t, fake: fake}
	w.cl, err = kgo.NewClient(kgo.SeedBrokers(fake.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.cl.Close)
	w.adm = kadm.NewClient(w.cl)
	return w
}

// send produces n numbered values, over all partitions of in.
func (w *world) send(n int) {
	w.Helper()
	var rs []*kgo.Record
	for range n {
		rs = append(rs, &kgo.Record{Topic: "in", Partition: int32(w.sent % parts), Value: []byte(strconv.Itoa(w.sent))})
		w.sent++
	}
	if err := w.cl.ProduceSync(w.Context(), rs...).FirstErr(); err != nil {
		w.Fatal(err)
	}
}

// member is one running loop.
type member struct {
	*counter
	cfg  Config
	deps Deps
	reg  *prometheus.Registry
	stop func() error
	done chan struct{}
	err  error

	membership Membership
}

func (w *world) config() Config {
	return Config{Stage: "test", Prefix: "p", Topics: []string{"in"}, CommitInterval: 50 * time.Millisecond}
}

func (w *world) run(cfg Config, before ...func(*counter)) *member {
	w.Helper()
	reg := prometheus.NewRegistry()
	m := &member{counter: newCounter("out"), cfg: cfg, reg: reg, done: make(chan struct{})}
	var out slog.Handler = slog.DiscardHandler
	if os.Getenv("OFFHOOK_TEST_LOG") != "" {
		out = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
	}
	m.deps = Deps{
		Kafka: kafka.Config{Brokers: w.fake.ListenAddrs()}, Log: slog.New(out),
		Registerer: reg, Handler: m.counter, Membership: &m.membership,
	}
	m.counter.deps = m.deps
	m.counter.deps = m.deps
	for _, f := range before {
		f(m.counter)
	}
	m.deps.Stage = m.counter.deps.Stage
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(m.done)
		m.err = Run(ctx, cfg, m.deps)
	}()
	m.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case <-m.done:
			return m.err
		case <-time.After(20 * time.Second):
			return errors.New("Run did not end")
		}
	})
	w.Cleanup(func() {
		if err := m.stop(); err != nil && !w.Failed() && !IsFatal(err) {
			w.Error(err)
		}
	})
	return m
}

func (w *world) wait(what string, cond func() bool) {
	w.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("waited in vain: %s", what)
		}
	}
}

// numbered reads out, read committed, and returns the values by partition; numbers must be 1, 2, 3.
func (w *world) numbered() map[string]bool {
	w.Helper()
	got := make(map[string]bool)
	for p := range int32(parts) {
		n := 0
		_, err := ReadChangelog(w.Context(), kafka.Config{Brokers: w.fake.ListenAddrs()}, slog.New(slog.DiscardHandler), Partition{"out", p}, func(r *kgo.Record) error {
			n++
			num, value, _ := strings.Cut(string(r.Value), " ")
			if num != strconv.Itoa(n) {
				return fmt.Errorf("partition %d has number %s where %d comes", p, num, n)
			}
			if got[value] {
				return fmt.Errorf("value %s came twice", value)
			}
			got[value] = true
			return nil
		})
		if err != nil {
			w.Fatal(err)
		}
	}
	return got
}

// all waits until everything that was sent stands in out, once.
func (w *world) all() {
	w.Helper()
	w.wait(fmt.Sprintf("%d records in out", w.sent), func() bool { return len(w.numbered()) == w.sent })
}

func (m *member) metric(name string) float64 {
	families, err := m.reg.Gather()
	if err != nil {
		panic(err)
	}
	sum := 0.0
	name, label, _ := strings.Cut(name, "/")
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, s := range f.GetMetric() {
			match := label == ""
			for _, l := range s.GetLabel() {
				match = match || l.GetValue() == label
			}
			if match {
				sum += s.GetCounter().GetValue() + s.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestEveryRecordOnce(t *testing.T) {
	w := newWorld(t)
	w.send(100)
	m := w.run(w.config())
	w.all()
	for range 5 {
		w.send(20)
		w.all()
	}
	w.wait("counted", func() bool { return m.metric("offhook_records_consumed_total") == 200 })
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	w.send(50)
	w.run(w.config())
	w.all()
}

// TestRecordInParts: a record that takes several transactions is handed over again until it is done, those behind it wait, and the
// others' partitions go on; through aborts, rebalances and new sessions each part comes once, in order.
func TestRecordInParts(t *testing.T) {
	parts := func(value string) int {
		if n, _ := strconv.Atoi(value); n%16 == 0 { // all in one partition
			return 5
		}
		return 1
	}
	inParts := func(c *counter) { c.parts = parts }
	w := newWorld(t)
	w.send(400)
	first := w.run(w.config(), inParts)
	complete := func() bool {
		n := 0
		for i := range w.sent {
			n += parts(strconv.Itoa(i))
		}
		return len(w.numbered()) == n
	}
	w.wait("all parts", complete)
	w.answer(kmsg.EndTxn, 1, refuse(kerr.TransactionAbortable.Code))
	w.send(200)
	w.wait("all parts through an abort", complete)
	if first.metric("offhook_transactions_total/aborted") == 0 {
		t.Error("nothing was aborted")
	}
	w.answer(kmsg.EndTxn, 1, refuse(kerr.ProducerFenced.Code))
	w.send(200)
	second := w.run(w.config(), inParts)
	w.send(400)
	w.wait("all parts through a new session and a rebalance", complete)
	w.send(400)
	if err := first.stop(); err != nil {
		t.Error(err)
	}
	w.send(200)
	w.wait("all parts as one member leaves", complete)
	if err := second.stop(); err != nil {
		t.Error(err)
	}
	next := make(map[int32][]string) // what out must hold, by partition
	for i := range w.sent {
		value := strconv.Itoa(i)
		for n := range parts(value) {
			p := int32(i % 4)
			next[p] = append(next[p], fmt.Sprintf("%s/%d", value, n+1))
		}
	}
	for p, want := range next {
		var got []string
		_, err := ReadChangelog(t.Context(), kafka.Config{Brokers: w.fake.ListenAddrs()}, slog.New(slog.DiscardHandler), Partition{"out", p}, func(r *kgo.Record) error {
			_, value, _ := strings.Cut(string(r.Value), " ")
			got = append(got, value)
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("partition %d (error %v) has\n%v, want\n%v", p, err, got, want)
		}
	}
}

func TestMetricsAreClean(t *testing.T) {
	reg := prometheus.NewRegistry()
	if _, err := newMetrics(reg, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := newMetrics(reg, "other"); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
}

// answer makes the next times requests of key get the response that fill writes.
func (w *world) answer(key kmsg.Key, times int, fill func(kmsg.Request) kmsg.Response) *atomic.Int32 {
	var n atomic.Int32
	w.fake.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		if int(n.Load()) >= times {
			return nil, nil, false
		}
		resp := fill(req)
		if resp == nil {
			return nil, nil, false
		}
		n.Add(1)
		return resp, nil, true
	})
	return &n
}

// refuse refuses requests with a code, but for the produces of producers without transactions.
func refuse(code int16) func(kmsg.Request) kmsg.Response {
	return func(req kmsg.Request) kmsg.Response {
		if r, ok := req.(*kmsg.ProduceRequest); ok && r.TransactionID == nil {
			return nil
		}
		return kafkatest.Refuse(req, code)
	}
}

func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name    string
		key     kmsg.Key
		fill    func(kmsg.Request) kmsg.Response
		aborted bool // else a new session
	}{
		{"EndTxn TRANSACTION_ABORTABLE", kmsg.EndTxn, refuse(kerr.TransactionAbortable.Code), true},
		{"EndTxn UNKNOWN_SERVER_ERROR", kmsg.EndTxn, refuse(kerr.UnknownServerError.Code), true},
		{"EndTxn PRODUCER_FENCED", kmsg.EndTxn, refuse(kerr.ProducerFenced.Code), false},
		{"EndTxn INVALID_PRODUCER_EPOCH", kmsg.EndTxn, refuse(kerr.InvalidProducerEpoch.Code), false},
		{"TxnOffsetCommit ILLEGAL_GENERATION", kmsg.TxnOffsetCommit, refuse(kerr.IllegalGeneration.Code), true},
		{"TxnOffsetCommit UNKNOWN_SERVER_ERROR", kmsg.TxnOffsetCommit, refuse(kerr.UnknownServerError.Code), true},
		{"TxnOffsetCommit INVALID_COMMIT_OFFSET_SIZE", kmsg.TxnOffsetCommit, refuse(kerr.InvalidCommitOffsetSize.Code), false},
		{"Produce INVALID_RECORD", kmsg.Produce, refuse(kerr.InvalidRecord.Code), true},
		{"Produce INVALID_TXN_STATE", kmsg.Produce, refuse(kerr.InvalidTxnState.Code), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.send(40)
			m := w.run(w.config())
			w.all()
			n := w.answer(tt.key, 2, tt.fill)
			for range 4 {
				w.send(40)
				w.all()
			}
			if n.Load() != 2 {
				t.Fatalf("%d faults happened, want 2", n.Load())
			}
			sessions, aborted := m.metric("offhook_sessions_total"), m.metric("offhook_transactions_total/aborted")
			if tt.aborted && (aborted == 0 || sessions != 1) {
				t.Errorf("%v aborts in %v sessions, want some in one", aborted, sessions)
			}
			if !tt.aborted && sessions < 2 {
				t.Errorf("%v sessions, want a new one", sessions)
			}
		})
	}
}

// kgo reports an abort where EndTxn was applied and its answer said UNKNOWN_SERVER_ERROR.
func TestCommitThatLookedLikeAnAbort(t *testing.T) {
	w := newWorld(t)
	w.send(40)
	m := w.run(w.config())
	w.all()
	var once atomic.Bool
	w.fake.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		if once.Swap(true) {
			return nil, nil, false
		}
		again := *(req.(*kmsg.EndTxnRequest))
		w.fake.SleepControl(func() {
			// The same request by another way: once is true, so it passes.
			if resp, err := again.RequestWith(context.Background(), w.cl); err != nil || resp.ErrorCode != 0 {
				t.Errorf("pass EndTxn on: %v %v", err, resp)
			}
		})
		return refuse(kerr.UnknownServerError.Code)(req), nil, true
	})
	w.send(40)
	w.all()
	w.send(40)
	w.all()
	if got := m.metric("offhook_sessions_total"); got != 2 {
		t.Errorf("%v sessions, want 2: the state was in doubt", got)
	}
}

func TestMembersShareAndMove(t *testing.T) {
	w := newWorld(t)
	w.send(40)
	a := w.run(w.config())
	w.all()
	b := w.run(w.config())
	w.wait("both own two", func() bool { return a.partitions() == 2 && b.partitions() == 2 })
	w.send(200)
	w.all()
	c := w.run(w.config())
	w.wait("three share", func() bool { return a.partitions()+b.partitions()+c.partitions() == 4 && c.partitions() > 0 })
	w.send(200)
	w.all()
	sessions := b.metric("offhook_sessions_total")
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	w.wait("two share again", func() bool { return a.partitions() == 2 && c.partitions() == 2 })
	w.send(200)
	w.all()
	sessions += a.metric("offhook_sessions_total")
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	w.wait("one owns all", func() bool { return c.partitions() == 4 })
	w.send(40)
	w.all()
	if sessions += c.metric("offhook_sessions_total"); sessions != 3 {
		t.Errorf("%v sessions, want one each: a rebalance is no failure", sessions)
	}
}

// An idle member must not go on believing in partitions that later rebalances took: kgo tells of none while the flag
// of an earlier one is up.
func TestIdleMemberKnowsWhatItOwns(t *testing.T) {
	w := newWorld(t)
	a := w.run(w.config())
	w.wait("one owns all", func() bool { return a.partitions() == 4 })
	b := w.run(w.config())
	w.wait("two own two each", func() bool { return a.partitions() == 2 && b.partitions() == 2 })
	c := w.run(w.config())
	d := w.run(w.config())
	w.wait("four own one each", func() bool {
		return a.partitions() == 1 && b.partitions() == 1 && c.partitions() == 1 && d.partitions() == 1
	})
	w.send(40)
	w.all()
	if got := a.metric("offhook_transactions_total/aborted"); got != 0 {
		t.Errorf("%v aborts, want none: the flag of an idle rebalance must be cleared", got)
	}
}

func TestMovesUnderTraffic(t *testing.T) {
	w := newWorld(t)
	a := w.run(w.config())
	stop := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				w.send(8)
			}
		}
	})
	for range 3 {
		b := w.run(w.config())
		w.wait("shared", func() bool { return a.partitions() == 2 && b.partitions() == 2 })
		if err := b.stop(); err != nil {
			t.Error(err)
		}
		w.wait("one owns all", func() bool { return a.partitions() == 4 })
	}
	close(stop)
	sending.Wait()
	w.all()
}

func TestGapAtTheAssignment(t *testing.T) {
	w := newWorld(t)
	w.send(40)
	m := w.run(w.config())
	w.all()
	m.stop()
	w.send(40)
	w.deleteRecords(0, 15) // 10 were committed, 20 are there
	w.sent -= 5
	m = w.run(w.config())
	w.all()
	if got := m.metric("offhook_gap_records_total"); got != 5 {
		t.Errorf("gap of %v records, want 5", got)
	}
}

func (w *world) deleteRecords(partition int32, before int64) {
	w.Helper()
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: "in", Partition: partition, At: before})
	resp, err := w.adm.DeleteRecords(w.Context(), offsets)
	if err := errors.Join(err, resp.Error()); err != nil {
		w.Fatal(err)
	}
}

func TestLogThatBeginsLate(t *testing.T) {
	w := newWorld(t)
	w.send(40)
	w.deleteRecords(1, 4)
	w.sent -= 4
	w.answer(kmsg.EndTxn, 1, refuse(kerr.TransactionAbortable.Code))
	m := w.run(w.config())
	w.all()
	if got := m.metric("offhook_gap_records_total"); got != 0 {
		t.Errorf("gap of %v records, want none: nothing was committed before", got)
	}
}

func TestGapWhileRunning(t *testing.T) {
	w := newWorld(t)
	w.send(4)
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m := w.run(w.config(), func(c *counter) {
		c.onRecord = func(in Input) {
			if string(in.Value) == "block" {
				once.Do(func() { close(entered); <-leave })
			}
		}
	})
	w.all()
	// While the loop is busy with another partition the client fetches ahead, so fetches are held back.
	if err := w.cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Partition: 3, Value: []byte("block")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	<-entered
	var hold atomic.Bool
	hold.Store(true)
	w.fake.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		if !hold.Load() {
			return nil, nil, false
		}
		r := req.(*kmsg.FetchRequest)
		resp := r.ResponseKind().(*kmsg.FetchResponse)
		resp.SessionID = r.SessionID
		return resp, nil, true
	})
	time.Sleep(300 * time.Millisecond) // let the long poll that is under way end
	w.sent = 4
	w.send(40)
	w.deleteRecords(0, 7)
	w.sent -= 6 // partition 0 had offset 0 read, and 1 to 6 are gone
	w.sent++    // "block"
	hold.Store(false)
	close(leave)
	w.all()
	if got := m.metric("offhook_gap_records_total"); got != 6 {
		t.Errorf("gap of %v records, want 6", got)
	}
}

func TestMissingTopicIsWaitedFor(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.Topics = []string{"in", "later"}
	m := w.run(cfg)
	w.send(8)
	w.all()
	if _, err := w.adm.CreateTopic(t.Context(), 1, 1, nil, "later"); err != nil {
		t.Fatal(err)
	}
	if err := w.cl.ProduceSync(t.Context(), &kgo.Record{Topic: "later", Value: []byte("late")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	_ = m
	w.sent++
	w.all()
}

func TestFencedInstanceEnds(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.InstanceID = "pod-0"
	a := w.run(cfg)
	w.wait("owns all", func() bool { return a.partitions() == 4 })
	b := w.run(cfg)
	select {
	case <-a.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the fenced process did not end")
	}
	if a.err == nil || !strings.Contains(a.err.Error(), "OFFHOOK_INSTANCE_ID") {
		t.Errorf("got %v, want an error that names OFFHOOK_INSTANCE_ID", a.err)
	}
	w.send(8)
	w.all()
	_ = b
}

func TestStaticMemberComesBackAtOnce(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.InstanceID = "pod-0"
	a := w.run(cfg)
	w.send(8)
	w.all()
	a.stop()
	began := time.Now()
	w.run(cfg)
	w.send(8)
	w.all()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("came back after %v", d)
	}
}

func TestProcessErrorEnds(t *testing.T) {
	w := newWorld(t)
	w.send(1)
	m := w.run(w.config(), func(c *counter) { c.fail = errors.New("cannot go on") })
	select {
	case <-m.done:
	case <-time.After(20 * time.Second):
		t.Fatal("Run did not end")
	}
	if m.err == nil || !strings.Contains(m.err.Error(), "in-0 offset 0: cannot go on") {
		t.Errorf("got %v", m.err)
	}
	if n := len(w.numbered()); n != 0 {
		t.Errorf("%d records in out, want none", n)
	}
}

func TestBrokerThatIsAwayIsWaitedFor(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := newCounter("out")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := Run(ctx, Config{Stage: "test", Prefix: "p", Topics: []string{"in"}}, Deps{
		Kafka: kafka.Config{Brokers: []string{"127.0.0.1:1"}}, Log: slog.New(slog.DiscardHandler), Registerer: reg, Handler: c,
	})
	if err != nil {
		t.Errorf("got %v, want a clean end", err)
	}
}

func TestRefusedTransactionalIDEnds(t *testing.T) {
	w := newWorld(t)
	w.answer(kmsg.InitProducerID, 1, func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.InitProducerIDResponse)
		resp.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
		return resp
	})
	m := w.run(w.config())
	select {
	case <-m.done:
	case <-time.After(20 * time.Second):
		t.Fatal("Run did not end")
	}
	if m.err == nil || !strings.Contains(m.err.Error(), "p-test-") {
		t.Errorf("got %v, want an error that names the transactional id", m.err)
	}
}
