package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A countLog counts log lines by message.
type countLog struct {
	mu    sync.Mutex
	lines map[string]int
}

func newCountLog() *countLog { return &countLog{lines: make(map[string]int)} }

func (c *countLog) Enabled(context.Context, slog.Level) bool { return true }
func (c *countLog) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c *countLog) WithGroup(string) slog.Handler            { return c }
func (c *countLog) Handle(_ context.Context, r slog.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines[r.Message]++
	return nil
}

func (c *countLog) count(message string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lines[message]
}

// others is how many events arrived that are not of partition 2, the one that these tests break.
func others(e *endpoint) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, item := range e.items {
		if len(item) > 5 && item[:5] != `"uid2` {
			n++
		}
	}
	return n
}

// TestBadTraceparent: what no HTTP header may hold is not passed on, and holds up nothing.
func TestBadTraceparent(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for i, trace := range []string{"", "00-bad\n", good} {
		c.Produce(t, &kgo.Record{
			Topic: f.topics.OnlineStatus, Key: []byte("uid0"), Value: fmt.Appendf(nil, `"uid0-%d"`, i),
			Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader()), {Key: schemas.HeaderTraceparent, Value: []byte(trace)}},
		})
	}
	var traces []string
	var mu sync.Mutex
	e := newEndpoint(t, func(_ int, r *http.Request) int {
		mu.Lock()
		defer mu.Unlock()
		traces = append(traces, r.Header.Get("traceparent"))
		return 200
	})
	cfg := f.config(e)
	cfg.BatchMax = 1
	f.start(t, cfg)
	kafkatest.Wait(t, 10*time.Second, "all events", func() bool { return e.arrived() == 3 })
	mu.Lock()
	defer mu.Unlock()
	if slices.Sort(traces); !slices.Equal(traces, []string{"", "", good}) {
		t.Errorf("traceparents %q", traces)
	}
}

// TestLaneWithoutLeader: a partition of which nobody can say where its log begins holds up no other lane.
func TestLaneWithoutLeader(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 10)
	var healed atomic.Bool
	c.Fake.ControlKey(int16(kmsg.ListOffsets), func(request kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		r := request.(*kmsg.ListOffsetsRequest)
		if healed.Load() || !slices.ContainsFunc(r.Topics, func(t kmsg.ListOffsetsRequestTopic) bool {
			return t.Topic == f.topics.OnlineStatus && slices.ContainsFunc(t.Partitions, func(p kmsg.ListOffsetsRequestTopicPartition) bool { return p.Partition == 2 })
		}) {
			return nil, nil, false
		}
		response := r.ResponseKind().(*kmsg.ListOffsetsResponse)
		for _, topic := range r.Topics {
			answer := kmsg.NewListOffsetsResponseTopic()
			answer.Topic = topic.Topic
			for _, p := range topic.Partitions {
				listed := kmsg.NewListOffsetsResponseTopicPartition()
				listed.Partition, listed.Offset = p.Partition, 0
				if p.Timestamp == -1 {
					listed.Offset = 10
				}
				if p.Partition == 2 {
					listed.ErrorCode = kerr.OffsetNotAvailable.Code
				}
				answer.Partitions = append(answer.Partitions, listed)
			}
			response.Topics = append(response.Topics, answer)
		}
		return response, nil, true
	})
	e := newEndpoint(t, nil)
	f.start(t, f.config(e))
	kafkatest.Wait(t, 15*time.Second, "the other partitions' events", func() bool { return e.arrived() == 10*(testPartitions-1) })
	healed.Store(true)
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 10*testPartitions })
	e.check(t, 10)
}

// TestRefusedLane: a lane whose plans are refused holds up no other lane.
func TestRefusedLane(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	var bad atomic.Bool
	var refused, neighbours atomic.Int32
	refuse(c, func(p int32, _ string) int16 {
		switch {
		case bad.Load() && p == 2:
			refused.Add(1)
			return kerr.TopicAuthorizationFailed.Code
		case bad.Load() && p == 1:
			neighbours.Add(1)
		}
		return 0
	})
	e := newEndpoint(t, nil)
	f.start(t, f.config(e))
	f.produce(t, 10)
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 10*testPartitions })
	bad.Store(true)
	f.produce(t, 300)
	kafkatest.Wait(t, 60*time.Second, "the other lanes", func() bool { return others(e) == 310*(testPartitions-1) })
	if r, n := refused.Load(), neighbours.Load(); r == 0 || 2*r > n {
		t.Errorf("the refused lane was in %d commits and its neighbour in %d: it waits with the lane that is refused", r, n)
	}
	bad.Store(false)
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 310*testPartitions })
	e.check(t, 310)
}

// refuse answers commits that hold a partition for which code is not 0 with that code for it. The others of the request are
// answered as accepted and are not applied, so the tests that use it must not restart the sink.
func refuse(c *kafkatest.Cluster, code func(partition int32, metadata string) int16) {
	c.Fake.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		r := request.(*kmsg.OffsetCommitRequest)
		response := r.ResponseKind().(*kmsg.OffsetCommitResponse)
		refused := false
		for _, topic := range r.Topics {
			answer := kmsg.NewOffsetCommitResponseTopic()
			answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
			for _, p := range topic.Partitions {
				answered := kmsg.NewOffsetCommitResponseTopicPartition()
				answered.Partition, answered.ErrorCode = p.Partition, code(p.Partition, *p.Metadata)
				refused = refused || answered.ErrorCode != 0
				answer.Partitions = append(answer.Partitions, answered)
			}
			response.Topics = append(response.Topics, answer)
		}
		if !refused {
			return nil, nil, false
		}
		return response, nil, true
	})
}

// TestCommitRefusedForCertain: after a refusal that leaves no doubt the lanes go on as the same member, and nothing is sent again.
func TestCommitRefusedForCertain(t *testing.T) {
	for _, refusal := range []*kerr.Error{kerr.RebalanceInProgress, kerr.IllegalGeneration} {
		t.Run(refusal.Message, func(t *testing.T) {
			c := kafkatest.New(t)
			f := newFixture(t, c)
			e := newEndpoint(t, nil)
			var commits atomic.Int32
			refuse(c, func(int32, string) int16 {
				if n := commits.Add(1); n > 8 && n <= 20 {
					return refusal.Code
				}
				return 0
			})
			f.start(t, f.config(e))
			for range 5 {
				f.produce(t, 20)
			}
			kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 100*testPartitions })
			e.check(t, 100)
			if e.repeats != 0 {
				t.Errorf("%d requests came again", e.repeats)
			}
			if commits.Load() < 20 {
				t.Errorf("only %d commits: nothing was refused", commits.Load())
			}
		})
	}
}

// TestBrokerWithLessMetadata: where the brokers take less metadata than is Kafka's default, fewer batches are planned ahead.
func TestBrokerWithLessMetadata(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 200)
	var refusals atomic.Int32
	refuse(c, func(_ int32, metadata string) int16 {
		if strings.Count(metadata, ",") >= 2 {
			refusals.Add(1)
			return kerr.OffsetMetadataTooLarge.Code
		}
		return 0
	})
	e := newEndpoint(t, nil)
	f.start(t, f.config(e))
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 200*testPartitions })
	e.check(t, 200)
	if refusals.Load() == 0 {
		t.Error("nothing was refused")
	}
}

// TestReadErrors: errors of a partition's fetches are said with growing distance, and end when the fetches do well again.
func TestReadErrors(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 10)
	e := newEndpoint(t, nil)
	var healed atomic.Bool
	var fetches atomic.Int32
	c.Fake.ControlKey(int16(kmsg.Fetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		if healed.Load() {
			return nil, nil, false
		}
		r := request.(*kmsg.FetchRequest)
		response := r.ResponseKind().(*kmsg.FetchResponse)
		for _, topic := range r.Topics {
			answer := kmsg.NewFetchResponseTopic()
			answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
			for _, p := range topic.Partitions {
				fetches.Add(1) // not the requests: they come together, or one by one
				answered := kmsg.NewFetchResponseTopicPartition()
				answered.Partition, answered.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
				answer.Partitions = append(answer.Partitions, answered)
			}
			response.Topics = append(response.Topics, answer)
		}
		return response, nil, true
	})
	log := newCountLog()
	f.startLog(t, f.config(e), log)
	kafkatest.Wait(t, 20*time.Second, "errors", func() bool { return fetches.Load() >= 4*testPartitions })
	if n := log.count("events cannot be read; beginning the lane anew"); n == 0 || n > 6*testPartitions {
		t.Errorf("%d lines about it after %d fetches", n, fetches.Load())
	}
	healed.Store(true)
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 10*testPartitions })
	e.check(t, 10)
}

// TestDataLoss: a running lane that hears that the log has lost its end begins anew, and does not skip what comes at the
// same offsets.
func TestDataLoss(t *testing.T) {
	s, l := bareSession(t)
	l.core = NewLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8}, Plan{TopicID: testTopic, Offset: 10}, false, false, epoch)
	l.reading = true
	s.fetched(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "t", Partitions: []kgo.FetchPartition{
		{Partition: 1, Err: &kgo.ErrDataLoss{Topic: "t", Partition: 1, ConsumedTo: 20, ResetTo: 15}},
	}}}}})
	if now := s.lanes[l.laneKey]; !l.dead || now == l || now == nil || now.core != nil {
		t.Errorf("the lane goes on: dead %v", l.dead)
	}
}

// TestKeepsCopies: what a lane keeps of a fetch does not pin the fetch.
func TestKeepsCopies(t *testing.T) {
	s, l := bareSession(t)
	l.core = NewLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 10, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: time.Hour}, Plan{TopicID: testTopic}, false, false, epoch)
	l.reading = true
	fetch := []byte(`keyvalue00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`)
	s.fetched(kgo.Fetches{{Topics: []kgo.FetchTopic{{Topic: "t", Partitions: []kgo.FetchPartition{{Partition: 1, Records: []*kgo.Record{{
		Topic: "t", Partition: 1, Key: fetch[:3], Value: fetch[3:8], Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader()), {Key: "traceparent", Value: fetch[8:]}},
	}}}}}}}})
	want := string(fetch)
	clear(fetch)
	if len(l.core.queue) != 1 {
		t.Fatalf("%d records", len(l.core.queue))
	}
	r := l.core.queue[0]
	if got := string(r.Key) + string(r.Value) + string(r.Traceparent); got != want {
		t.Errorf("the lane holds %q, want %q", got, want)
	}
}

// TestFullLanePauses: a lane whose endpoint takes nothing holds no more than its bound and one fetch, and goes on later.
func TestFullLanePauses(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	var open atomic.Bool
	e := newEndpoint(t, func(int, *http.Request) int {
		if open.Load() {
			return 200
		}
		return 503
	})
	cfg := f.config(e)
	cfg.BatchBytes, cfg.BatchMax = 1<<10, 1000
	reg := prometheus.NewRegistry()
	f.startReg(t, cfg, slog.DiscardHandler, reg)
	for range 40 {
		f.produce(t, 500)
	}
	buffered := func() (bytes float64) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			if family.GetName() == "offhook_sink_buffered_bytes" {
				bytes = family.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return bytes
	}
	kafkatest.Wait(t, 20*time.Second, "requests", func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.requests > 2*testPartitions })
	held := buffered()
	// One turn of the reader takes pollRecords records of some 150 bytes at most.
	if bound := float64(testPartitions*2<<10 + pollRecords*200); held == 0 || held > bound {
		t.Errorf("%v bytes are held, want at most %v", held, bound)
	}
	open.Store(true)
	kafkatest.Wait(t, 60*time.Second, "all events", func() bool { return e.arrived() == f.produced*testPartitions })
	e.check(t, f.produced)
	kafkatest.Wait(t, 10*time.Second, "nothing held", func() bool { return buffered() == 0 })
}

// TestTopicMadeAnew: a topic that is deleted and created again is delivered from its start, under other ids.
func TestTopicMadeAnew(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		f.produce(t, 20)
		e := newEndpoint(t, nil)
		cfg := f.config(e)
		stop := f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 20*testPartitions })
		kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		stop()
		client := f.Client(t)
		admin := kadm.NewClient(client)
		if _, err := admin.DeleteTopic(t.Context(), f.topics.OnlineStatus); err != nil {
			t.Fatal(err)
		}
		kafkatest.Wait(t, 20*time.Second, "the topic created", func() bool {
			_, err := admin.CreateTopic(t.Context(), testPartitions, -1, nil, f.topics.OnlineStatus)
			return err == nil
		})
		// Kafka forgets the offsets of a deleted topic; where they were set again the plan says of which topic they are.
		old := make(kadm.Offsets)
		for p := range int32(testPartitions) {
			old.Add(kadm.Offset{Topic: f.topics.OnlineStatus, Partition: p, At: 20, LeaderEpoch: -1, Metadata: Plan{TopicID: f.owned.IDs[f.topics.OnlineStatus], Offset: 20}.Metadata()})
		}
		kafkatest.Wait(t, 20*time.Second, "the old offsets set", func() bool { return admin.CommitAllOffsets(t.Context(), cfg.Group(), old) == nil })
		f.produced = 0
		f.produce(t, 30)
		e.mu.Lock()
		e.items = nil
		e.mu.Unlock()
		f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 30*testPartitions })
		e.check(t, 30)
	})
}

// TestStopDrains: a stop waits for requests under way, acknowledges them and begins none.
func TestStopDrains(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 50)
	release := make(chan struct{})
	e := newEndpoint(t, func(int, *http.Request) int { <-release; return 200 })
	cfg := f.config(e)
	stop := f.start(t, cfg)
	kafkatest.Wait(t, 20*time.Second, "requests", func() bool { return e.inFlight.Load() == testPartitions })
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Fatal("it stopped with requests under way")
	case <-time.After(300 * time.Millisecond):
	}
	close(release)
	<-stopped
	if n := e.arrived(); n != 10*testPartitions {
		t.Errorf("%d events arrived, want those of the requests that were under way", n)
	}
	f.start(t, cfg)
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 50*testPartitions })
	e.check(t, 50)
	if e.repeats != 0 {
		t.Errorf("%d requests came again: the stop did not acknowledge them", e.repeats)
	}
}

// TestStopIsBounded: whatever hangs, a stop ends soon after the shutdown timeout.
func TestStopIsBounded(t *testing.T) {
	const timeout = time.Second
	stops := func(t *testing.T, stop func()) {
		t.Helper()
		began := time.Now()
		stop()
		if took := time.Since(began); took > timeout+leaveTimeout+3*time.Second {
			t.Errorf("the stop took %v", took)
		}
	}
	t.Run("the endpoint hangs", func(t *testing.T) {
		c := kafkatest.New(t)
		f := newFixture(t, c)
		f.produce(t, 10)
		release := make(chan struct{})
		defer close(release)
		e := newEndpoint(t, func(int, *http.Request) int { <-release; return 200 })
		cfg := f.config(e)
		cfg.ShutdownTimeout, cfg.Timeout = timeout, time.Minute
		stop := f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "requests", func() bool { return e.inFlight.Load() == testPartitions })
		stops(t, stop)
	})
	t.Run("the group's join hangs", func(t *testing.T) {
		c := kafkatest.New(t)
		f := newFixture(t, c)
		cfg := f.config(newEndpoint(t, nil))
		cfg.ShutdownTimeout = timeout
		joins := make(chan struct{}, 100)
		c.Fake.ControlKey(int16(kmsg.JoinGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
			c.Fake.KeepControl()
			joins <- struct{}{}
			return nil, nil, true // never answered
		})
		stop := f.start(t, cfg)
		<-joins
		stops(t, stop)
	})
	t.Run("dead letters hang", func(t *testing.T) {
		c := kafkatest.New(t)
		f := newFixture(t, c)
		f.produce(t, 30)
		e := newEndpoint(t, func(int, *http.Request) int { return 503 })
		cfg := f.config(e)
		cfg.ShutdownTimeout = timeout
		admin := kadm.NewClient(f.Client(t))
		cut := make(kadm.Offsets)
		cut.Add(kadm.Offset{Topic: f.topics.OnlineStatus, Partition: 2, At: 10, LeaderEpoch: -1, Metadata: Plan{
			TopicID: f.owned.IDs[f.topics.OnlineStatus], Offset: 10, Batches: []Planned{{Last: 19, Dead: Dead{Reason: schemas.ReasonCut}}},
		}.Metadata()})
		if err := admin.CommitAllOffsets(t.Context(), cfg.Group(), cut); err != nil {
			t.Fatal(err)
		}
		var produces atomic.Int32
		c.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			c.Fake.KeepControl()
			produces.Add(1)
			return nil, errors.New("the answer is lost"), true
		})
		stop := f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "a dead letter", func() bool { return produces.Load() > 1 })
		stops(t, stop)
	})
}
