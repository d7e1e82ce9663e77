package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

var (
	otherTopic  = [16]byte{15: 9}
	operateTime = time.Unix(1_700_000_000, 0)
)

// viewOf is a lane whose log holds the offsets 100 to 199, and for which committed is what is committed.
func viewOf(committed *committedOffset) view {
	return view{
		laneKey: laneKey{"t", 3}, event: schemas.EventNotify, topicID: testTopic, committed: committed,
		logStart: 100, logEnd: 200, stable: 200,
	}
}

func committedPlan(p Plan) *committedOffset {
	return &committedOffset{Offset: p.Offset, Metadata: p.Metadata()}
}

func TestLaneStatus(t *testing.T) {
	trouble := Trouble{Since: 1_699_999_000, Last: 1_699_999_990, Attempts: 37, Answer: "404"}
	unread := viewOf(committedPlan(Plan{TopicID: testTopic, Offset: 120}))
	unread.err = errors.New("its offsets are not known: NOT_LEADER_FOR_PARTITION")
	for _, tt := range []struct {
		name string
		view view
		want LaneStatus
	}{
		{"nothing committed", viewOf(nil), LaneStatus{Notes: []string{"nothing is committed: OFFHOOK_SINK_START says where it begins"}}},
		{"all done", viewOf(committedPlan(Plan{TopicID: testTopic, Offset: 200})), LaneStatus{
			Committed: new(int64(200)), Backlog: new(int64(0)),
		}},
		{"planned", viewOf(committedPlan(Plan{TopicID: testTopic, Rewind: 7, Offset: 120, Batches: []Planned{{Last: 129}, {Last: 131}}})), LaneStatus{
			Committed: new(int64(120)), Backlog: new(int64(80)), Planned: 2,
			FirstBatch: &BatchStatus{ID: BatchID(testTopic, 3, 120, 129, 7), First: 120, Last: 129, Events: 10},
		}},
		{"in trouble", viewOf(committedPlan(Plan{
			TopicID: testTopic, Offset: 120, Batches: []Planned{{Last: 129}, {Last: 131, Dead: Dead{Reason: schemas.ReasonRefused, Status: 400}}}, Trouble: trouble,
		})), LaneStatus{
			Committed: new(int64(120)), Backlog: new(int64(80)), Planned: 2, Dead: 1,
			FirstBatch: &BatchStatus{ID: BatchID(testTopic, 3, 120, 129, 0), First: 120, Last: 129, Events: 10, Trouble: &TroubleStatus{
				Answer: "404", Attempts: 37, Since: time.Unix(1_699_999_000, 0).UTC(), Last: time.Unix(1_699_999_990, 0).UTC(),
			}},
		}},
		{"another tool's offset", viewOf(&committedOffset{Offset: 150, Metadata: "by hand"}), LaneStatus{
			Committed: new(int64(150)), Backlog: new(int64(50)), Notes: []string{"no sink wrote this offset: a rewind, under new ids, at the next start"},
		}},
		{"another topic", viewOf(committedPlan(Plan{TopicID: otherTopic, Offset: 120, Batches: []Planned{{Last: 129}}})), LaneStatus{
			Committed: new(int64(120)), Backlog: new(int64(100)), Notes: []string{"the topic was made anew: it begins at the topic's beginning"},
		}},
		{"cut", viewOf(committedPlan(Plan{TopicID: testTopic, Offset: 80, Batches: []Planned{{Last: 89}, {Last: 109}, {Last: 119}}})), LaneStatus{
			Committed: new(int64(80)), Backlog: new(int64(100)), Planned: 2, Dead: 1,
			FirstBatch: &BatchStatus{ID: BatchID(testTopic, 3, 100, 109, 0), First: 100, Last: 109, Events: 10, Dead: schemas.ReasonCut},
			Notes:      []string{"retention has deleted events before they were delivered"},
		}},
		{"truncated", viewOf(committedPlan(Plan{TopicID: testTopic, Offset: 190, Batches: []Planned{{Last: 230}}})), LaneStatus{
			Committed: new(int64(190)), Backlog: new(int64(10)), Notes: []string{"the log ends before what was planned: it goes on under new ids"},
		}},
		{"newer", viewOf(&committedOffset{Offset: 120, Metadata: "offhook/9 x"}), LaneStatus{
			Committed: new(int64(120)), Notes: []string{(&PlanVersionError{9}).Error()},
		}},
		{"not readable", unread, LaneStatus{Committed: new(int64(120)), Notes: []string{unread.err.Error()}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.want
			want.Event, want.Topic, want.Partition, want.LogEnd = schemas.EventNotify, "t", 3, 200
			if want.Notes == nil {
				want.Notes = []string{}
			}
			if diff := cmp.Diff(want, laneStatus(tt.view, operateTime)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	lane := func(partition int32, backlog int64, answer string, since int64) LaneStatus {
		s := LaneStatus{Event: schemas.EventNotify, Partition: partition, Backlog: &backlog}
		if answer != "" {
			s.FirstBatch = &BatchStatus{Trouble: &TroubleStatus{Answer: answer, Since: time.Unix(since, 0)}}
		}
		return s
	}
	dead := lane(9, 5, "500", 1)
	dead.FirstBatch.Dead = schemas.ReasonSkipped
	const (
		settings = "the endpoint or its settings are wrong"
		refused  = "the endpoint refuses the content"
		among    = "stuck on one batch, while other lanes are not in trouble"
		alone    = "stuck on one batch"
		all      = "the endpoint fails for every lane that has something to send"
	)
	online := LaneStatus{Event: schemas.EventOnlineStatus, Partition: 7, Backlog: new(int64(0))}
	for _, tt := range []struct {
		name  string
		lanes []LaneStatus
		want  []string // "partition: note"
	}{
		{"nothing", nil, nil},
		{"no trouble", []LaneStatus{lane(1, 5, "", 0), lane(0, 0, "", 0), online}, []string{"7: ", "0: ", "1: "}},
		{"one of several", []LaneStatus{lane(0, 3, "", 0), lane(1, 5, "500", 9)}, []string{"1: " + among, "0: "}},
		{"one that has something", []LaneStatus{lane(0, 0, "", 0), lane(1, 5, "timeout", 9)}, []string{"1: " + alone, "0: "}},
		{"all", []LaneStatus{lane(0, 3, "503", 9), lane(1, 5, "connection", 8), lane(2, 0, "", 0)}, []string{"1: " + all, "0: " + all, "2: "}},
		{"verdicts", []LaneStatus{lane(0, 3, "404", 9), lane(1, 5, "302", 9), lane(2, 5, "413", 9), lane(3, 5, "429", 9)}, []string{
			"0: " + settings, "1: " + settings, "2: " + refused, "3: " + all,
		}},
		{"a dead batch is no trouble", []LaneStatus{dead, lane(1, 5, "500", 2)}, []string{"1: " + among, "9: "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			explain(tt.lanes)
			var got []string
			for _, s := range tt.lanes {
				got = append(got, fmt.Sprintf("%d: %s", s.Partition, strings.Join(s.Notes, ";")))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSkipFirst(t *testing.T) {
	skipped := func(status int) Dead { return Dead{Reason: schemas.ReasonSkipped, Status: status} }
	for _, tt := range []struct {
		name      string
		committed *committedOffset
		want      []Planned // nil: nothing to skip
		nothing   string
		trouble   Trouble
	}{
		{
			name:      "the whole first batch",
			committed: committedPlan(Plan{TopicID: testTopic, Offset: 120, Batches: []Planned{{Last: 129}, {Last: 139}}}),
			want:      []Planned{{129, skipped(0)}, {Last: 139}},
		},
		{
			name:      "with a status",
			committed: committedPlan(Plan{TopicID: testTopic, Offset: 120, Batches: []Planned{{Last: 129}}, Trouble: Trouble{1, 2, 3, "500"}}),
			want:      []Planned{{129, skipped(500)}}, trouble: Trouble{1, 2, 3, "500"},
		},
		{
			name:      "without an answer",
			committed: committedPlan(Plan{TopicID: testTopic, Offset: 120, Batches: []Planned{{Last: 129}}, Trouble: Trouble{1, 2, 3, "timeout"}}),
			want:      []Planned{{129, skipped(0)}}, trouble: Trouble{1, 2, 3, "timeout"},
		},
		{
			name:      "later batches that are dead stay so",
			committed: committedPlan(Plan{TopicID: testTopic, Offset: 120, Batches: []Planned{{Last: 129}, {130, Dead{schemas.ReasonRefused, 400}}}}),
			want:      []Planned{{129, skipped(0)}, {130, Dead{schemas.ReasonRefused, 400}}},
		},
		{
			name:      "after one that retention took",
			committed: committedPlan(Plan{TopicID: testTopic, Offset: 90, Batches: []Planned{{Last: 99}, {Last: 109}}, Trouble: Trouble{1, 2, 3, "500"}}),
			want:      []Planned{{Last: 99}, {109, skipped(0)}}, trouble: Trouble{1, 2, 3, "500"},
		},
		{name: "dead already", committed: committedPlan(Plan{TopicID: testTopic, Offset: 120, Batches: []Planned{{129, Dead{schemas.ReasonSkipped, 500}}}}), nothing: "dead already (skipped)"},
		{name: "cut", committed: committedPlan(Plan{TopicID: testTopic, Offset: 90, Batches: []Planned{{Last: 109}}}), nothing: "dead already (cut)"},
		{name: "nothing planned", committed: committedPlan(Plan{TopicID: testTopic, Offset: 120}), nothing: "nothing is planned here: nothing to skip"},
		{name: "nothing committed", nothing: "nothing is planned here"},
		{name: "another tool's offset", committed: &committedOffset{Offset: 120}, nothing: "no sink wrote this offset"},
		{name: "another topic", committed: committedPlan(Plan{TopicID: otherTopic, Offset: 120, Batches: []Planned{{Last: 129}}}), nothing: "the topic was made anew"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plan, s, err := skipFirst(viewOf(tt.committed), operateTime)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(s.Nothing, tt.nothing) || (s.Nothing == "") != (tt.want != nil) {
				t.Errorf("nothing to skip: %q, want %q", s.Nothing, tt.nothing)
			}
			if tt.want == nil {
				return
			}
			want := Plan{TopicID: testTopic, Offset: tt.committed.Offset, Batches: tt.want, Trouble: tt.trouble}
			if diff := cmp.Diff(want, plan); diff != "" {
				t.Error(diff)
			}
			if read, ours, err := ParsePlan(plan.Offset, plan.Metadata()); err != nil || !ours || !read.Equal(plan) {
				t.Errorf("the plan is read back as %+v, %v", read, err)
			}
		})
	}
	if _, _, err := skipFirst(viewOf(&committedOffset{Offset: 120, Metadata: "offhook/9 x"}), operateTime); err == nil {
		t.Error("a newer release's plan was marked")
	}
}

func TestRewindTo(t *testing.T) {
	now := operateTime.Unix()
	for _, tt := range []struct {
		name      string
		committed *committedOffset
		target    int64
		want      Rewound
	}{
		{"back", committedPlan(Plan{TopicID: testTopic, Offset: 150}), 120, Rewound{From: new(int64(150)), To: new(int64(120)), Events: 30, Rewind: now}},
		{"again in the same second", committedPlan(Plan{TopicID: testTopic, Offset: 150, Rewind: now}), 120, Rewound{From: new(int64(150)), To: new(int64(120)), Events: 30, Rewind: now + 1}},
		{"after one by a clock ahead", committedPlan(Plan{TopicID: testTopic, Offset: 150, Rewind: now + 100}), 120, Rewound{From: new(int64(150)), To: new(int64(120)), Events: 30, Rewind: now + 101}},
		{"after an old one", committedPlan(Plan{TopicID: testTopic, Offset: 150, Rewind: 5}), 120, Rewound{From: new(int64(150)), To: new(int64(120)), Events: 30, Rewind: now}},
		{"with dead batches", committedPlan(Plan{TopicID: testTopic, Offset: 150, Batches: []Planned{{Last: 155}, {156, Dead{schemas.ReasonRefused, 400}}, {160, Dead{schemas.ReasonSkipped, 0}}}}), 149, Rewound{
			From: new(int64(150)), To: new(int64(149)), Events: 1, Rewind: now, DeadDropped: 2,
		}},
		{"before the log's start", committedPlan(Plan{TopicID: testTopic, Offset: 150}), 20, Rewound{From: new(int64(150)), To: new(int64(100)), Events: 50, Rewind: now}},
		{"another tool's offset", &committedOffset{Offset: 150}, 120, Rewound{From: new(int64(150)), To: new(int64(120)), Events: 30, Rewind: now}},
		{"another tool's offset past the end", &committedOffset{Offset: 500}, 120, Rewound{From: new(int64(200)), To: new(int64(120)), Events: 80, Rewind: now}},
		{"truncated", committedPlan(Plan{TopicID: testTopic, Offset: 250, Rewind: now}), 120, Rewound{From: new(int64(200)), To: new(int64(120)), Events: 80, Rewind: now + 1}},
		{"there already", committedPlan(Plan{TopicID: testTopic, Offset: 120}), 120, Rewound{From: new(int64(120)), Stays: "it is not past that time"}},
		{"never forward", committedPlan(Plan{TopicID: testTopic, Offset: 120}), 150, Rewound{From: new(int64(120)), Stays: "it is not past that time"}},
		{"log start past the plan", committedPlan(Plan{TopicID: testTopic, Offset: 80, Batches: []Planned{{Last: 89}}}), 85, Rewound{From: new(int64(100)), Stays: "it is not past that time"}},
		{"nothing committed", nil, 120, Rewound{Stays: resumeSentences[resumeStart]}},
		{"another topic", committedPlan(Plan{TopicID: otherTopic, Offset: 150}), 120, Rewound{Stays: resumeSentences[resumeRecreated]}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plan, got, err := rewindTo(viewOf(tt.committed), tt.target, operateTime)
			if err != nil {
				t.Fatal(err)
			}
			want := tt.want
			want.Event, want.Topic, want.Partition = schemas.EventNotify, "t", 3
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			var wantPlan Plan
			if want.To != nil {
				wantPlan = Plan{TopicID: testTopic, Offset: *want.To, Rewind: want.Rewind}
			}
			if diff := cmp.Diff(wantPlan, plan); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, _, err := rewindTo(viewOf(&committedOffset{Offset: 150, Metadata: "offhook/9 x"}), 120, operateTime); err == nil {
		t.Error("a newer release's plan was thrown away")
	}
}

func TestFirstEvent(t *testing.T) {
	at := time.UnixMilli(1_700_000_000_123)
	var marker kgo.Record
	marker.Attrs = controlAttrs(t)
	records := func(offsets ...int64) (all []*kgo.Record) {
		for _, o := range offsets { // negative: a marker
			r := &kgo.Record{Offset: o, Value: []byte("x"), Timestamp: at}
			if o < 0 {
				r.Offset, r.Attrs = -o, marker.Attrs
			}
			all = append(all, r)
		}
		return all
	}
	tombstone := &kgo.Record{Offset: 10, Timestamp: at}
	for _, tt := range []struct {
		name    string
		records []*kgo.Record
		found   bool
		done    bool
	}{
		{"none", nil, false, false},
		{"an event", records(10, 11), true, true},
		{"before the start", records(8, 9), false, false},
		{"after a marker", records(9, -10, 11), true, true},
		{"a marker alone", records(-10), false, false},
		{"a marker at the end", records(-19), false, true},
		{"past the end", records(20), false, true},
		{"a record without value", []*kgo.Record{tombstone}, false, false},
	} {
		got, done := firstEvent(tt.records, 10, 20)
		if got.Equal(at) != tt.found || got.IsZero() == tt.found || done != tt.done {
			t.Errorf("%s: %v, %v; want %v, %v", tt.name, got, done, tt.found, tt.done)
		}
	}
}

func TestHolds(t *testing.T) {
	key := laneKey{"t", 3}
	plan := Plan{TopicID: testTopic, Offset: 120, Batches: []Planned{{Last: 129}}}
	for _, tt := range []struct {
		name      string
		partition int32
		offset    int64
		metadata  string
		err       error
		want      bool
	}{
		{"the same", 3, 120, plan.Metadata(), nil, true},
		{"another partition", 4, 120, plan.Metadata(), nil, false},
		{"another offset", 3, 130, plan.Metadata(), nil, false},
		{"another plan", 3, 120, "", nil, false},
		{"nobody knows", 3, 120, plan.Metadata(), kerr.UnstableOffsetCommit, false},
	} {
		offsets := kadm.OffsetResponses{"t": {tt.partition: {Offset: kadm.Offset{Topic: "t", Partition: tt.partition, At: tt.offset, Metadata: tt.metadata}, Err: tt.err}}}
		if got := holds(offsets, map[laneKey]Plan{key: plan}); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// controlAttrs are those of a transaction's marker, as a client reads it.
func controlAttrs(t *testing.T) kgo.RecordAttrs {
	t.Helper()
	c := kafkatest.New(t)
	c.CreateTopic(t, "marked", 1)
	producer := c.Client(t, kgo.TransactionalID(c.Prefix), kgo.DefaultProduceTopic("marked"))
	if err := producer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := producer.ProduceSync(t.Context(), &kgo.Record{Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := producer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	reader := c.Client(t, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"marked": {0: kgo.NewOffset().At(1)}}), kgo.KeepControlRecords())
	fetches := reader.PollFetches(t.Context())
	for _, r := range fetches.Records() {
		if r.Attrs.IsControl() {
			return r.Attrs
		}
	}
	t.Fatal("no marker")
	return kgo.RecordAttrs{}
}

func (f *fixture) operator(t *testing.T, cfg Config) *Operator {
	t.Helper()
	o, err := NewOperator(Config{Name: cfg.Name, Prefix: cfg.Prefix, Events: cfg.Events}, Deps{
		Kafka: f.Config(), Topics: f.topics, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

func (f *fixture) status(t *testing.T, o *Operator) Status {
	t.Helper()
	s, err := o.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// lane is the status of a partition of user.onlinestatus.
func (s Status) lane(t *testing.T, partition int32) LaneStatus {
	t.Helper()
	i := slices.IndexFunc(s.Lanes, func(l LaneStatus) bool { return l.Event == schemas.EventOnlineStatus && l.Partition == partition })
	if i < 0 {
		t.Fatalf("no lane %d in %+v", partition, s)
	}
	return s.Lanes[i]
}

// planCommitted commits a plan for a partition of user.onlinestatus, as a sink would have.
func (f *fixture) planCommitted(t *testing.T, group string, partition int32, p Plan) {
	t.Helper()
	p.TopicID = f.owned.IDs[f.topics.OnlineStatus]
	offsets := make(kadm.Offsets)
	offsets.Add(kadm.Offset{Topic: f.topics.OnlineStatus, Partition: partition, At: p.Offset, LeaderEpoch: -1, Metadata: p.Metadata()})
	if err := kadm.NewClient(f.Client(t)).CommitAllOffsets(t.Context(), group, offsets); err != nil {
		t.Fatal(err)
	}
}

// letters are the dead letters, n of them.
func (f *fixture) letters(t *testing.T, n int) []schemas.DeadLetter {
	t.Helper()
	var records []*kgo.Record
	kafkatest.Wait(t, 20*time.Second, "dead letters", func() bool {
		records = f.ReadAll(t, f.topics.DeadLetters)
		return len(records) >= n
	})
	letters := make([]schemas.DeadLetter, len(records))
	for i, r := range records {
		headers := make([]schemas.Header, len(r.Headers))
		for i, h := range r.Headers {
			headers[i] = schemas.Header(h)
		}
		var err error
		if letters[i], err = schemas.DecodeDeadLetter(r.Key, headers, r.Value); err != nil {
			t.Fatal(err)
		}
	}
	if len(letters) != n {
		t.Fatalf("%d dead letters, want %d", len(letters), n)
	}
	return letters
}

// TestOperatorStatus: a running sink, a group that is stopped, and offsets of all kinds.
func TestOperatorStatus(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		var open atomic.Bool
		open.Store(true)
		e := newEndpoint(t, func(int, *http.Request) int {
			if open.Load() {
				return 200
			}
			return 404
		})
		cfg := f.config(e)
		o := f.operator(t, cfg)
		if _, err := o.Status(t.Context()); !errors.Is(err, ErrNoGroup) || !strings.Contains(err.Error(), cfg.Group()) {
			t.Errorf("Status without a group: %v", err)
		}
		f.produce(t, 5)
		stop := f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 5*testPartitions })
		kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		s := f.status(t, o)
		if s.State != "Stable" || len(s.Members) != 1 || s.Group != cfg.Group() || s.Sink != DefaultName || len(s.Lanes) != testPartitions {
			t.Errorf("a running sink: %+v", s)
		}
		for i, lane := range s.Lanes {
			if lane.Partition != int32(i) || lane.Owner == nil || lane.Owner.MemberID != s.Members[0].MemberID || lane.Owner.Host == "" || *lane.Backlog != 0 || lane.Oldest != nil || len(lane.Notes) != 0 {
				t.Errorf("a running sink's lane: %+v", lane)
			}
		}
		open.Store(false)
		before := time.Now().Add(-time.Second)
		f.produce(t, 3)
		kafkatest.Wait(t, 20*time.Second, "troubles", func() bool {
			s = f.status(t, o)
			return !slices.ContainsFunc(s.Lanes, func(l LaneStatus) bool { return l.trouble() == nil })
		})
		for _, lane := range s.Lanes {
			if trouble := lane.trouble(); trouble.Answer != "404" || trouble.Attempts < 1 || trouble.Since.Before(before.Add(-time.Second)) || !slices.Contains(lane.Notes, "the endpoint or its settings are wrong") {
				t.Errorf("a lane whose endpoint answers 404: %+v, %v", trouble, lane.Notes)
			}
			if *lane.Backlog != 3 || lane.Oldest == nil || lane.Oldest.Before(before) || *lane.OldestAge < 0 || *lane.OldestAge > 60 || lane.FirstBatch.First != 5 {
				t.Errorf("a lane with a backlog: %+v", lane)
			}
		}
		stop()
		s = f.status(t, o)
		if s.State != groupEmpty || len(s.Members) != 0 || s.lane(t, 0).Owner != nil {
			t.Errorf("a stopped sink: %+v", s)
		}
		since := time.Now().Add(-time.Minute).Unix()
		f.planCommitted(t, cfg.Group(), 2, Plan{Offset: 5, Batches: []Planned{{Last: 6}}, Trouble: Trouble{since, since + 5, 12, "404"}})
		f.planCommitted(t, cfg.Group(), 3, Plan{Offset: 4})
		s = f.status(t, o)
		if s.Lanes[0].Partition != 2 || s.Lanes[0].FirstBatch.Trouble.Attempts != 12 || !slices.Contains(s.Lanes[0].Notes, "the endpoint or its settings are wrong") {
			t.Errorf("the lane in trouble is not the first: %+v", s.Lanes)
		}
		if id := s.Lanes[0].FirstBatch.ID; id != BatchID(f.owned.IDs[f.topics.OnlineStatus], 2, 5, 6, 0) {
			t.Errorf("the first batch is %s", id)
		}
		if lane := s.lane(t, 3); *lane.Backlog != 4 || lane.Oldest == nil || lane.FirstBatch != nil {
			t.Errorf("a lane without a plan: %+v", lane)
		}
	})
}

// TestOperatorOldest: the age of the oldest event is found behind what is no event, also where nothing follows.
func TestOperatorOldest(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		cfg := f.config(newEndpoint(t, nil))
		producer := f.Client(t, kgo.TransactionalID(c.Prefix), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		at := time.UnixMilli(time.Now().Add(-time.Hour).UnixMilli())
		write := func(end kgo.TransactionEndTry, partition int32, values ...[]byte) {
			t.Helper()
			if err := producer.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			for _, value := range values {
				r := &kgo.Record{Topic: f.topics.OnlineStatus, Partition: partition, Value: value, Timestamp: at, Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())}}
				if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			if err := producer.EndTransaction(t.Context(), end); err != nil {
				t.Fatal(err)
			}
		}
		big := []byte(strings.Repeat("x", 3*probePartitionBytes))
		write(kgo.TryAbort, 0, big)               // 0, 1: nobody sees them
		write(kgo.TryCommit, 0, []byte(`"uid0"`)) // 2, 3
		write(kgo.TryCommit, 1, []byte(`"uid1"`)) // 0, 1: all delivered but for the marker
		for p := range int32(testPartitions) {
			f.planCommitted(t, cfg.Group(), p, Plan{Offset: 0})
		}
		f.planCommitted(t, cfg.Group(), 1, Plan{Offset: 1})
		for range 3 {
			write(kgo.TryCommit, 2, big)
			write(kgo.TryCommit, 3, big)
		}
		began := time.Now()
		s := f.status(t, f.operator(t, cfg))
		if took := time.Since(began); took >= probeTimeout {
			t.Errorf("it took %v", took)
		}
		for _, p := range []int32{0, 2, 3} {
			if lane := s.lane(t, p); lane.Oldest == nil || !lane.Oldest.Equal(at) || *lane.OldestAge < 3599 || *lane.OldestAge > 3700 {
				t.Errorf("lane %d: oldest event %v, want %v", p, lane.Oldest, at)
			}
		}
		if lane := s.lane(t, 1); *lane.Backlog != 1 || lane.Oldest != nil {
			t.Errorf("a marker counts as an event: %+v", lane)
		}
	})
}

// TestOperatorSkip: the first batch of a lane goes to the dead letters, whole, and the rest is delivered.
func TestOperatorSkip(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		f.produce(t, 30)
		var open atomic.Bool
		e := newEndpoint(t, func(_ int, r *http.Request) int {
			if open.Load() || !strings.Contains(r.Header.Get("webhook-id"), "-2-") {
				return 200
			}
			return 500
		})
		cfg := f.config(e)
		o := f.operator(t, cfg)
		stop := f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "the other lanes' events", func() bool { return e.arrived() == 30*(testPartitions-1) })
		kafkatest.Wait(t, 20*time.Second, "the trouble", func() bool {
			lane := f.status(t, o).lane(t, 2)
			return lane.trouble() != nil && lane.trouble().Answer == "500" && slices.Equal(lane.Notes, []string{"stuck on one batch"})
		})
		if _, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 2, true); !isBusy(err, 1) {
			t.Errorf("a skip while the sink runs: %v", err)
		}
		if s, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 2, false); err != nil || s.Committed || s.Obstacle == "" {
			t.Errorf("a dry skip while the sink runs: %+v, %v", s, err)
		}
		stop()
		before := f.status(t, o).lane(t, 2)
		dry, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 2, false)
		if err != nil || dry.Committed || dry.Nothing != "" || dry.Obstacle != "" || dry.Batch == nil || dry.Batch.ID != before.FirstBatch.ID || dry.Batch.Events != 10 {
			t.Errorf("a dry skip: %+v, %v", dry, err)
		}
		if diff := cmp.Diff(before.FirstBatch, f.status(t, o).lane(t, 2).FirstBatch); diff != "" {
			t.Errorf("a dry skip changed the plan: %s", diff)
		}
		if s, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 2, true); err != nil || !s.Committed {
			t.Fatalf("skip: %+v, %v", s, err)
		}
		if s, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 2, true); err != nil || s.Committed || !strings.Contains(s.Nothing, "dead already (skipped)") {
			t.Errorf("a second skip: %+v, %v", s, err)
		}
		if s, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 1, true); err != nil || s.Committed || !strings.Contains(s.Nothing, "nothing is planned") {
			t.Errorf("a skip of nothing: %+v, %v", s, err)
		}
		if lane := f.status(t, o).lane(t, 2); lane.Dead != 1 || lane.FirstBatch.Dead != schemas.ReasonSkipped {
			t.Errorf("after a skip: %+v", lane)
		}
		open.Store(true)
		f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "what is left", func() bool { return e.arrived() == 30*testPartitions-10 })
		kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		for i, d := range f.letters(t, 10) {
			if d.Source.Partition != 2 || d.Source.Offset != int64(i) || d.Reason != schemas.ReasonSkipped || d.Status != 500 || d.Attempts < 1 || string(d.Value) != fmt.Sprintf(`"uid2-%d"`, i) {
				t.Errorf("dead letter %d is %+v", i, d)
			}
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		for i := range 10 {
			if slices.Contains(e.items, fmt.Sprintf(`"uid2-%d"`, i)) {
				t.Errorf("event %d was skipped and delivered", i)
			}
		}
	})
}

func isBusy(err error, members int) bool {
	busy, ok := errors.AsType[*BusyError](err)
	return ok && busy.Members == members && strings.Contains(err.Error(), "stop all processes of this sink first")
}

// TestOperatorRewind: every event from the time on comes again exactly once, under new ids, after each rewind.
func TestOperatorRewind(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		e := newEndpoint(t, nil)
		cfg := f.config(e)
		o := f.operator(t, cfg)
		f.produce(t, 20)
		middle := f.pause(t)
		f.produce(t, 15)
		stop := f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 35*testPartitions })
		kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		if _, err := o.Rewind(t.Context(), middle, "", -1, true); !isBusy(err, 1) {
			t.Errorf("a rewind while the sink runs: %v", err)
		}
		stop()
		e.check(t, 35)
		first := e.ids()

		// Partition 3 is behind that time already.
		f.planCommitted(t, cfg.Group(), 3, Plan{Offset: 18})
		// What is marked dead and not written yet is sent again.
		f.planCommitted(t, cfg.Group(), 0, Plan{Offset: 34, Batches: []Planned{{34, Dead{schemas.ReasonRefused, 400}}}})
		for _, commit := range []bool{false, true} {
			lanes, err := o.Rewind(t.Context(), middle, schemas.EventOnlineStatus, -1, commit)
			if err != nil || len(lanes) != testPartitions {
				t.Fatalf("rewind: %+v, %v", lanes, err)
			}
			for _, w := range lanes {
				switch {
				case w.Partition == 3 && (w.Stays == "" || w.Committed):
					t.Errorf("a lane went forward: %+v", w)
				case w.Partition != 3 && (w.Stays != "" || *w.To != 20 || w.Committed != commit || (w.DeadDropped == 1) != (w.Partition == 0)):
					t.Errorf("a lane was not rewound: %+v", w)
				}
			}
		}
		// The same second, further back and one lane alone: new ids again.
		lanes, err := o.Rewind(t.Context(), time.Now().Add(-time.Hour), schemas.EventOnlineStatus, 1, true)
		if err != nil || len(lanes) != 1 || *lanes[0].From != 20 || *lanes[0].To != 0 || !lanes[0].Committed {
			t.Fatalf("the second rewind: %+v, %v", lanes, err)
		}
		s := f.status(t, o)
		rewinds := map[int32]int64{1: lanes[0].Rewind, 3: 0}
		for p, offset := range map[int32]int64{0: 20, 1: 0, 2: 20, 3: 18} {
			if got := *s.lane(t, p).Committed; got != offset {
				t.Errorf("partition %d stands at %d, want %d", p, got, offset)
			}
		}
		offsets, err := kadm.NewClient(f.Client(t)).FetchOffsets(t.Context(), cfg.Group())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []int32{0, 2} {
			committed, _ := offsets.Lookup(f.topics.OnlineStatus, p)
			plan, _, err := ParsePlan(committed.At, committed.Metadata)
			if err != nil || plan.Rewind == 0 || plan.Rewind >= rewinds[1] {
				t.Errorf("partition %d: rewind %d, and the second one %d; %v", p, plan.Rewind, rewinds[1], err)
			}
			rewinds[p] = plan.Rewind
		}

		e.mu.Lock()
		e.items = nil
		e.mu.Unlock()
		stop = f.start(t, cfg)
		const again = 15 + 35 + 15 + 17
		kafkatest.Wait(t, 20*time.Second, "the rewound events", func() bool { return e.arrived() >= again })
		kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		stop()
		e.mu.Lock()
		count := make(map[string]int)
		for _, item := range e.items {
			count[item]++
		}
		for p, from := range map[int]int{0: 20, 1: 0, 2: 20, 3: 18} {
			for i := range 35 {
				if want, got := i >= from, count[fmt.Sprintf(`"uid%d-%d"`, p, i)]; (got == 1) != want || got > 1 {
					t.Errorf("partition %d: event %d came %d times again", p, i, got)
				}
			}
		}
		e.mu.Unlock()
		for id := range e.ids() {
			if first[id] {
				continue
			}
			partition := int32(0)
			if _, err := fmt.Sscanf(id[33:], "%d-", &partition); err != nil {
				t.Fatal(err)
			}
			if suffix := fmt.Sprintf("-r%d", rewinds[partition]); rewinds[partition] != 0 && !strings.HasSuffix(id, suffix) {
				t.Errorf("the id %s does not end in %s", id, suffix)
			}
		}
		if _, err := o.Rewind(t.Context(), middle, schemas.EventNotify, -1, true); err == nil || !strings.Contains(err.Error(), "OFFHOOK_WEBHOOK_EVENTS") {
			t.Errorf("a rewind of an event that the sink does not deliver: %v", err)
		}
		if _, err := o.Rewind(t.Context(), middle, "", 99, true); err == nil || !strings.Contains(err.Error(), "no partition 99") {
			t.Errorf("a rewind of a partition that is not there: %v", err)
		}
	})
}

// pause is a moment between records: those before have an earlier time, those after a later one.
func (f *fixture) pause(t *testing.T) time.Time {
	t.Helper()
	last := time.Now()
	kafkatest.Wait(t, time.Second, "two milliseconds to pass", func() bool { return time.Since(last) > 2*time.Millisecond })
	middle := time.Now()
	kafkatest.Wait(t, time.Second, "two milliseconds to pass", func() bool { return time.Since(middle) > 2*time.Millisecond })
	return middle
}

// ids are those that the endpoint took.
func (e *endpoint) ids() map[string]bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := make(map[string]bool)
	for id := range maps.Keys(e.bodies) {
		ids[id] = true
	}
	return ids
}

// TestOperatorRewindByKafkaTools: an offset that kafka-consumer-groups.sh sets is a rewind, and the status says so.
func TestOperatorRewindByKafkaTools(t *testing.T) {
	c := kafkatest.Real(t)
	const script = "../scripts/kafka.sh" // gives the tools the brokers that it has started itself
	brokers, err := exec.CommandContext(t.Context(), script, "brokers").Output()
	if err != nil || strings.TrimSpace(string(brokers)) != strings.Join(c.Brokers, ",") {
		t.Skipf("the brokers of %s are not those that scripts/kafka.sh has started (`make kafka-up` does), whose tools this runs", kafkatest.BrokersVariable)
	}
	f := newFixture(t, c)
	e := newEndpoint(t, nil)
	cfg := f.config(e)
	o := f.operator(t, cfg)
	f.produce(t, 20)
	stop := f.start(t, cfg)
	kafkatest.Wait(t, 20*time.Second, "all events", func() bool { return e.arrived() == 20*testPartitions })
	kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
	stop()
	out, err := exec.CommandContext(t.Context(), script, "tool", "consumer.group.ConsumerGroupCommand", "--reset-offsets", "--execute", "--group", cfg.Group(),
		"--topic", f.topics.OnlineStatus+":1", "--to-offset", "15").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if lane := f.status(t, o).lane(t, 1); *lane.Backlog != 5 || !slices.Contains(lane.Notes, resumeSentences[resumeRewind]) {
		t.Errorf("the status of the lane: %+v", lane)
	}
	first := e.ids()
	stop = f.start(t, cfg)
	kafkatest.Wait(t, 20*time.Second, "the rewound events", func() bool { return e.arrived() == 20*testPartitions+5 })
	kafkatest.Wait(t, 10*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
	stop()
	for id := range e.ids() {
		if !first[id] && !strings.Contains(id, "-r") {
			t.Errorf("the id %s names no rewind", id)
		}
	}
}

// TestOperatorCommitRefused: what comes into the group between the look and the commit is the coordinator's to see; and a
// commit of which nobody knows whether it was applied is looked for.
func TestOperatorCommitRefused(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.produce(t, 20)
	cfg := f.config(newEndpoint(t, nil))
	f.planCommitted(t, cfg.Group(), 1, Plan{Offset: 0, Batches: []Planned{{Last: 9}}})
	o := f.operator(t, cfg)
	answer := func(control func(*kmsg.OffsetCommitRequest) (kmsg.Response, error, bool)) {
		c.Fake.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
			return control(request.(*kmsg.OffsetCommitRequest))
		})
	}
	code := func(r *kmsg.OffsetCommitRequest, code int16) *kmsg.OffsetCommitResponse {
		if r.MemberID != "" || r.Generation != -1 {
			t.Errorf("a commit as member %q, generation %d", r.MemberID, r.Generation)
		}
		response := r.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, topic := range r.Topics {
			partition := kmsg.NewOffsetCommitResponseTopicPartition()
			partition.Partition, partition.ErrorCode = topic.Partitions[0].Partition, code
			response.Topics = append(response.Topics, kmsg.OffsetCommitResponseTopic{
				Topic: topic.Topic, TopicID: topic.TopicID, Partitions: []kmsg.OffsetCommitResponseTopicPartition{partition},
			})
		}
		return response
	}
	answer(func(r *kmsg.OffsetCommitRequest) (kmsg.Response, error, bool) {
		return code(r, kerr.UnknownMemberID.Code), nil, true
	})
	if _, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 1, true); !isBusy(err, 0) {
		t.Errorf("a member came: %v", err)
	}
	answer(func(*kmsg.OffsetCommitRequest) (kmsg.Response, error, bool) {
		return nil, errors.New("the connection breaks"), true
	})
	if _, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 1, true); err == nil || !strings.Contains(err.Error(), "nobody knows") {
		t.Errorf("a connection that breaks: %v", err)
	}
	answer(func(r *kmsg.OffsetCommitRequest) (kmsg.Response, error, bool) { // it answers, and holds another plan
		return code(r, 0), nil, true
	})
	if _, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 1, true); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("another operator at work: %v", err)
	}
	if lane := f.status(t, o).lane(t, 1); lane.Dead != 0 {
		t.Errorf("the plan was changed: %+v", lane)
	}
	if s, err := o.Skip(t.Context(), schemas.EventOnlineStatus, 1, true); err != nil || !s.Committed {
		t.Errorf("skip: %+v, %v", s, err)
	}
}

// TestOperatorWithoutBrokers: brokers that do not answer, and topics that are not there, are named when the time is over.
func TestOperatorWithoutBrokers(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close() // nobody listens there now
	cfg := Config{Name: "x", Prefix: "p", Events: schemas.Events()}
	deps := Deps{Kafka: kafka.Config{Brokers: []string{listener.Addr().String()}}, Topics: kafka.NewTopics("p"), Log: slog.New(slog.DiscardHandler)}
	o, err := NewOperator(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	over := errors.New("the time is over")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, over)
	defer cancel()
	if _, err := o.Status(ctx); !errors.Is(err, over) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("Status without brokers: %v", err)
	}

	c := kafkatest.New(t)
	f := newFixture(t, c)
	if _, err := kadm.NewClient(c.Client(t)).DeleteTopics(t.Context(), f.topics.OnlineStatus); err != nil {
		t.Fatal(err)
	}
	cfg = Config{Name: "x", Prefix: c.Prefix, Events: []schemas.Event{schemas.EventOnlineStatus}}
	offsets := make(kadm.Offsets)
	offsets.AddOffset(f.topics.Notify, 0, 0, -1)
	if err := kadm.NewClient(c.Client(t)).CommitAllOffsets(t.Context(), cfg.Group(), offsets); err != nil {
		t.Fatal(err)
	}
	if _, err := f.operator(t, cfg).Status(t.Context()); err == nil || !strings.Contains(err.Error(), f.topics.OnlineStatus+" does not exist") {
		t.Errorf("Status without the topic: %v", err)
	}
}
