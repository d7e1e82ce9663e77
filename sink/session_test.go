package sink

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// bareSession is a session whose loop's functions the test calls itself; its member is in no group.
func bareSession(t *testing.T) (*session, *lane) {
	member, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"), kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"))
	if err != nil {
		t.Fatal(err)
	}
	s := &session{
		ctx: t.Context(), endpoint: &endpointState{body: bodyLimit{configured: 1 << 20}},
		log: slog.New(slog.DiscardHandler), metrics: newMetrics(prometheus.NewRegistry(), "x"), member: member,
		claims: newClaims(), failures: make(map[laneKey]int), ended: make(chan struct{}), draining: make(chan struct{}), tasks: make(chan func()),
	}
	s.reader = &reader{s: s, cancel: func() {}}
	l := &lane{laneKey: laneKey{"t", 1}, timer: time.NewTimer(time.Hour)}
	l.ctx, l.cancel = context.WithCancelCause(t.Context())
	l.core = NewLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 100, PlanAhead: 8}, Plan{TopicID: testTopic}, true, false, epoch)
	s.lanes[l.laneKey] = l
	t.Cleanup(func() { close(s.ended); member.Close(); l.timer.Stop() })
	return s, l
}

// TestRevokeWaitsForCommit: the right to commit a partition ends inside the revoked callback, so that returns only when no
// commit of the partition is in flight, and what the lane had waiting is dropped.
func TestRevokeWaitsForCommit(t *testing.T) {
	s, l := bareSession(t)
	l.core.Propose()
	s.committing = []*lane{l}
	s.want[l] = struct{}{}
	settled := make(chan struct{})
	s.revoked(map[string][]int32{"t": {1}}, settled)
	select {
	case <-settled:
		t.Fatal("the callback returns while a commit is in flight")
	default:
	}
	if len(s.want) != 0 || len(s.lanes) != 0 || !l.dead || l.ctx.Err() == nil {
		t.Error("the lane outlives its revocation")
	}
	s.committed(commitResult{})
	select {
	case <-settled:
	default:
		t.Fatal("the callback still waits when the commit is answered")
	}
	if l.core.Readable() {
		t.Error("the answer reached a lane that was revoked")
	}
	if s.err != nil {
		t.Error(s.err)
	}
}

// TestCommitAsAnotherMember: where the group has forgotten the member and the client has joined anew, the lanes of the old
// member are never committed under the new id.
func TestCommitAsAnotherMember(t *testing.T) {
	s, l := bareSession(t)
	l.member = "the member that the lane was assigned to"
	s.want[l] = struct{}{}
	s.commit()
	if s.committing != nil || !errors.Is(s.err, errMemberChanged) {
		t.Errorf("committing %v, error %v; want the session's end", s.committing, s.err)
	}
}

// TestRetentionPassesReader: the log's start passes a lane that waits for its endpoint. It goes on at the log's start.
func TestRetentionPassesReader(t *testing.T) {
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
		cfg.BatchMax, cfg.BatchBytes = 1, 1 // a lane holds two events, and pauses
		f.start(t, cfg)
		kafkatest.Wait(t, 20*time.Second, "requests", func() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.requests > testPartitions })
		offsets := make(kadm.Offsets)
		for p := range int32(testPartitions) {
			offsets.AddOffset(f.topics.OnlineStatus, p, 15, -1)
		}
		if _, err := kadm.NewClient(f.Client(t)).DeleteRecords(t.Context(), offsets); err != nil {
			t.Fatal(err)
		}
		open.Store(true)
		kafkatest.Wait(t, 60*time.Second, "lag zero", func() bool { return f.lag(t, cfg.Group()) == 0 })
		e.mu.Lock()
		defer e.mu.Unlock()
		last := make(map[string]bool)
		for _, item := range e.items {
			last[item] = true
		}
		for _, item := range []string{`"uid0-15"`, `"uid1-15"`, `"uid2-22"`, `"uid3-29"`} {
			if !last[item] {
				t.Errorf("%s, which the log still had, did not arrive", item)
			}
		}
		if len(e.changed) > 0 {
			t.Errorf("ids with another body: %v", e.changed)
		}
	})
}

// TestReloadWaitsForCommit: the plan of a lane that begins anew, after an error of its fetches or because it is assigned again without a
// word, is loaded when the commit in flight that has its partition is answered: loaded before, it may be another than the one that is
// committed then.
func TestReloadWaitsForCommit(t *testing.T) {
	for name, begin := range map[string]func(*session, *lane){
		"reloaded":       func(s *session, l *lane) { s.reload(l) },
		"assigned again": func(s *session, _ *lane) { s.assigned("", map[string][]int32{"t": {1}}) },
	} {
		s, l := bareSession(t)
		l.core.Propose()
		s.committing = []*lane{l}
		begin(s, l)
		again := s.lanes[l.laneKey]
		if !l.dead || again == l || again == nil {
			t.Fatalf("%s: the lane does not begin anew", name)
		}
		if len(s.unloaded) != 1 || s.unloaded[0] != again {
			t.Fatalf("%s: its plan is loaded while the commit is in flight", name)
		}
		s.committed(commitResult{})
		if len(s.unloaded) != 0 || s.lanes[l.laneKey] != again {
			t.Errorf("%s: its plan is not loaded when the commit is answered", name)
		}
		if l.core.Readable() {
			t.Errorf("%s: the answer reached the lane that is gone", name)
		}
	}
}

// TestNoSecondCommit: there is never a second commit in flight.
func TestNoSecondCommit(t *testing.T) {
	s, l := bareSession(t)
	s.committing = []*lane{}
	s.want[l] = struct{}{}
	s.commit()
	if len(s.want) != 1 || l.core.proposed != nil {
		t.Error("a second commit is begun")
	}
}

// TestUnwrittenLettersAreNotDone: a batch whose dead letters could not be written is not done.
func TestUnwrittenLettersAreNotDone(t *testing.T) {
	s, l := bareSession(t)
	s.stopping = true
	l.core = NewLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8}, Plan{
		TopicID: testTopic, Offset: 10, Batches: []Planned{{Last: 10, Dead: Dead{Reason: schemas.ReasonSkipped}}},
	}, false, false, epoch)
	l.core.Read(testRecord(10, 5, epoch))
	b := next(l.core)
	s.active = 1
	s.buried(l, b, false)
	if p := l.core.Propose(); p.Offset != 10 {
		t.Errorf("the committed offset passes letters that were not written: %+v", p)
	}
}

// TestBreakerClosesForAll: a success, or an answer that refuses the content, closes the breaker and ends all lanes' backoffs.
func TestBreakerClosesForAll(t *testing.T) {
	for _, status := range []int{200, 400} {
		s, l := bareSession(t)
		s.stopping = true // nothing is sent
		l.core = testLane(LaneConfig{InFlight: 2, UIDs: byKey, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: time.Hour})
		fill(l.core, 2, nil)
		waits, probe := next(l.core), next(l.core)
		l.core.Retry(waits, answered(503), 24*365*100*time.Hour, epoch)
		s.endpoint.breaker = Breaker{open: true, failed: make(map[laneKey]struct{})}
		s.active, s.underway = 1, 1
		s.answered(l, probe, "id", answered(status), nil, time.Second)
		if s.endpoint.breaker.Open() || !waits.notBefore.IsZero() {
			t.Errorf("after %d the breaker is open: %v, another batch waits until %v", status, s.endpoint.breaker.Open(), waits.notBefore)
		}
	}
}
