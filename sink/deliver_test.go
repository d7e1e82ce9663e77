package sink

import (
	"slices"
	"testing"
	"time"

	"github.com/offhook/offhook/schemas"
)

// TestNoRetryLimit: without a time to give up, a batch that the endpoint does not take is tried again however often it has failed.
func TestNoRetryLimit(t *testing.T) {
	for _, status := range []int{503, 404} {
		s, l := bareSession(t)
		l.core = testLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8})
		fill(l.core, 1, nil)
		b := next(l.core)
		for n := range 10_000 {
			s.failed(l, b, "id", answered(status), epoch.Add(time.Duration(n)*time.Minute))
			l.core.EndBackoff()
			settle(l.core, nil, epoch)
			if again := next(l.core); b.Dead.Is() || again != b {
				t.Fatalf("after %d answers of %d the batch is not sent again: it is %+v", n+1, status, b.Dead)
			}
		}
	}
}

// TestUIDsOfRecipients: two msg.offline that share a recipient share a uid, wherever it stands in them; the others' is their key.
func TestUIDsOfRecipients(t *testing.T) {
	shared := func(event schemas.Event, a, b Record) bool {
		uids := uidsOf(event)
		of := uids(nil, &a)
		return slices.ContainsFunc(uids(nil, &b), func(uid uint64) bool { return slices.Contains(of, uid) })
	}
	item := func(uids string) Record { return Record{Value: []byte(`{"message_id":1,"to_uids":[` + uids + `]}`)} }
	keyed := func(key string) Record { return Record{Key: []byte(key), Value: []byte(`"u-0-1-1-1-1"`)} }
	for _, tt := range []struct {
		event schemas.Event
		a, b  Record
		want  bool
	}{
		{schemas.EventOffline, item(`"a","b"`), item(`"c","b"`), true},
		{schemas.EventOffline, item(`"a","\u0062"`), item(`"b"`), true},
		{schemas.EventOffline, item(`"a","b"`), item(`"c","d"`), false},
		{schemas.EventOnlineStatus, keyed("a"), keyed("a"), true},
		{schemas.EventNotify, keyed("a"), keyed("b"), false},
	} {
		if got := shared(tt.event, tt.a, tt.b); got != tt.want {
			t.Errorf("%s of %s and %s share a uid: %v", tt.event, tt.a.Value, tt.b.Value, got)
		}
	}
}

// TestGivenUpWhole: a batch that is given up is never halved, since a copy of it may have been taken.
func TestGivenUpWhole(t *testing.T) {
	s, l := bareSession(t)
	s.cfg.GiveUpAfter = time.Minute
	l.core = testLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 4, BatchBytes: 1 << 20, PlanAhead: 8})
	fill(l.core, 4, nil)
	b := next(l.core)
	s.failed(l, b, "id", answered(503), epoch)
	l.core.EndBackoff()
	s.failed(l, next(l.core), "id", answered(503), epoch.Add(time.Minute))
	want := []Planned{{Last: 13, Dead: Dead{schemas.ReasonGaveUp, 503}}}
	if p := l.core.plan(); !slices.Equal(p.Batches, want) {
		t.Errorf("the plan has %+v, want %+v", p.Batches, want)
	}
}
