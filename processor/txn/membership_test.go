package txn

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// holds reports whether a member holds a partition of in.
func (m *member) holds(w *world, p int32) bool {
	ctx, cancel := context.WithTimeout(w.Context(), 5*time.Second)
	defer cancel()
	called := false
	err := m.membership.Held(ctx, Partition{"in", p}, time.Now(), func() { called = true })
	switch {
	case err != nil && !errors.Is(err, ErrNotHeld):
		w.Errorf("held: %v", err)
	case err == nil && !called:
		w.Error("held, and nothing was read")
	}
	return err == nil
}

func (m *member) held(w *world) (n int) {
	for p := range int32(parts) {
		if m.holds(w, p) {
			n++
		}
	}
	return n
}

// TestHeldByOneAlone: each partition is held by the one that has its state, and by nobody else.
func TestHeldByOneAlone(t *testing.T) {
	w := newWorld(t)
	var nobody Membership
	if err := nobody.Held(t.Context(), Partition{"in", 0}, time.Now(), func() {}); !errors.Is(err, ErrNotHeld) {
		t.Errorf("held before a loop runs: %v", err)
	}
	a := w.run(w.config())
	w.wait("one holds all", func() bool { return a.held(w) == parts })
	b := w.run(w.config())
	w.wait("two hold two each", func() bool { return a.held(w) == 2 && b.held(w) == 2 })
	for p := range int32(parts) {
		if a.holds(w, p) == b.holds(w, p) {
			t.Errorf("partition %d is held by both or none", p)
		}
	}
	if err := b.stop(); err != nil {
		t.Fatal(err)
	}
	if n := b.held(w); n != 0 {
		t.Errorf("%d partitions are held after the end", n)
	}
	w.wait("one holds all again", func() bool { return a.held(w) == parts })
}

// TestZombieHoldsNothing: a member that its group has forgotten, and that does not know it yet, holds nothing.
func TestZombieHoldsNothing(t *testing.T) {
	w := newWorld(t)
	m := w.run(w.config())
	w.wait("one holds all", func() bool { return m.held(w) == parts })
	forgotten := w.answer(kmsg.Heartbeat, 1, func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp
	})
	if m.holds(w, 0) {
		t.Error("held by a member that its group has forgotten")
	}
	if forgotten.Load() != 1 {
		t.Error("the group was not asked")
	}
	w.wait("it holds all again", func() bool { return m.held(w) == parts })
}

// TestHeldInARebalance: the partitions that stay are held while the group rebalances.
func TestHeldInARebalance(t *testing.T) {
	w := newWorld(t)
	m := w.run(w.config())
	w.wait("one holds all", func() bool { return m.held(w) == parts })
	w.answer(kmsg.Heartbeat, 1, func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = kerr.RebalanceInProgress.Code
		return resp
	})
	if !m.holds(w, 0) {
		t.Error("not held while the group rebalances")
	}
}

// TestTakenOverHoldsNothing: a static member whose instance id another has taken holds nothing, though it was asked a moment ago.
func TestTakenOverHoldsNothing(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.InstanceID = "i"
	m := w.run(cfg)
	w.wait("one holds all", func() bool { return m.held(w) == parts })
	other, err := kgo.NewClient(kgo.SeedBrokers(w.fake.ListenAddrs()...), kgo.ConsumerGroup(cfg.Group()), kgo.InstanceID("i"),
		kgo.ConsumeTopics("in"), kgo.Balancers(kgo.CooperativeStickyBalancer()))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	w.wait("another to take the instance id", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		other.PollFetches(ctx)
		_, generation := other.GroupMetadata()
		return generation > 0
	})
	if m.holds(w, 0) {
		t.Error("held by a member whose instance id is another's")
	}
}

// TestNewMemberHoldsNothingOfTheOld: what was assigned to a member id that the group has forgotten is not held under the next one,
// which kgo takes before it says so.
func TestNewMemberHoldsNothingOfTheOld(t *testing.T) {
	w := newWorld(t)
	m := w.run(w.config())
	w.wait("one holds all", func() bool { return m.held(w) == parts })
	s := m.membership.current()
	first := m.membership.Member()
	release := make(chan struct{})
	w.fake.ControlKey(int16(kmsg.SyncGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		w.fake.SleepControl(func() { <-release })
		return nil, nil, false
	})
	var forgotten atomic.Bool
	w.fake.ControlKey(int16(kmsg.JoinGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		if forgotten.Swap(true) {
			return nil, nil, false
		}
		w.fake.SleepControl(func() {
			leave := kmsg.NewPtrLeaveGroupRequest()
			leave.Group, leave.MemberID = m.cfg.Group(), first
			member := kmsg.NewLeaveGroupRequestMember()
			member.MemberID = first
			leave.Members = append(leave.Members, member)
			if _, err := leave.RequestWith(t.Context(), w.cl); err != nil {
				t.Errorf("leave: %v", err)
			}
		})
		resp := req.ResponseKind().(*kmsg.JoinGroupResponse)
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp, nil, true
	})
	w.answer(kmsg.Heartbeat, 1, func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = kerr.RebalanceInProgress.Code
		return resp
	})
	w.wait("another member id", func() bool { id, _ := s.cl.GroupMetadata(); return id != "" && id != first })
	if m.holds(w, 0) {
		t.Error("the old member's partition is held under the new id")
	}
	close(release)
	w.wait("it holds all again", func() bool { return m.held(w) == parts })
}

// TestOldStateIsNotHeld: a partition that went and came back is not held before its state is built anew, and what was read meanwhile
// was of nobody.
func TestOldStateIsNotHeld(t *testing.T) {
	asked := time.Now()
	s := &session{verified: verified{asked, "m"}}
	var m Membership
	m.begin(s)
	p := Partition{"in", 0}
	assign := func() {
		s.view.assign(t.Context(), "m", map[string][]int32{"in": {0}}, map[string][]int32{"in": {0}}, func(map[string][]int32) {})
	}
	held := func(during func()) (called, held bool) {
		err := m.Held(t.Context(), p, asked, func() { called = true; during() })
		return called, err == nil
	}
	for _, tt := range []struct {
		name         string
		before       func()
		during       func()
		called, held bool
	}{
		{"never owned", func() {}, func() {}, false, false},
		{"not restored", assign, func() {}, false, false},
		{"restored", func() { s.view.owned[p].serving = true }, func() {}, true, true},
		{"gone meanwhile", func() {}, func() { s.view.drop(map[string][]int32{"in": {0}}) }, true, false},
		{"gone", func() {}, func() {}, false, false},
		{"gone and back, restored, meanwhile", func() { assign(); s.view.owned[p].serving = true }, func() { assign(); s.view.owned[p].serving = true }, true, false},
		{"the membership lost meanwhile", func() {}, s.view.left, true, false},
	} {
		tt.before()
		if called, held := held(tt.during); called != tt.called || held != tt.held {
			t.Errorf("%s: called %t, held %t", tt.name, called, held)
		}
	}
}

// TestAdvertisedURL: a member tells its URL to who describes the group, and to the balancer nothing new: who leads the group, with or
// without it, leaves the others' partitions where they are.
func TestAdvertisedURL(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.AdvertisedURL = "http://10.0.0.7:8080"
	a := w.run(cfg)
	w.wait("one owns all", func() bool { return a.partitions() == parts })
	b := w.run(w.config())
	w.wait("two own two each", func() bool { return a.partitions() == 2 && b.partitions() == 2 })
	var urls []string
	w.wait("the group to be stable", func() bool {
		groups, err := kadm.NewClient(w.cl).DescribeGroups(t.Context(), cfg.Group())
		if err != nil {
			t.Fatal(err)
		}
		urls = nil
		for _, m := range groups[cfg.Group()].Members {
			if joined, ok := m.Join.AsConsumer(); ok {
				urls = append(urls, AdvertisedURL(joined.UserData))
			}
		}
		return groups[cfg.Group()].State == "Stable"
	})
	slices.Sort(urls)
	if diff := cmp.Diff([]string{"", cfg.AdvertisedURL}, urls); diff != "" {
		t.Errorf("URLs (-want +got):\n%s", diff)
	}

	plain := kgo.CooperativeStickyBalancer()
	for name, leader := range map[string]kgo.GroupBalancer{"with": &assignments{GroupBalancer: plain, url: "http://leader"}, "without": plain} {
		var members []kmsg.JoinGroupResponseMember
		want := make(map[string][]int32)
		for i, id := range []string{"m0", "m1", "m2"} {
			owned := []int32{int32(i), int32(i + 3)}
			want[id] = owned
			balancer := &assignments{GroupBalancer: plain, url: strings.Repeat("http://member/", i)}
			m := kmsg.NewJoinGroupResponseMember()
			m.MemberID, m.ProtocolMetadata = id, balancer.JoinGroupMetadata([]string{"in"}, map[string][]int32{"in": owned}, 7)
			members = append(members, m)
		}
		balancer, _, err := leader.MemberBalancer(members)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := balancer.(kgo.GroupMemberBalancerOrError).BalanceOrError(map[string]int32{"in": 6})
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string][]int32)
		for _, a := range plan.IntoSyncAssignment() {
			parsed, err := plain.ParseSyncAssignment(a.MemberAssignment)
			if err != nil {
				t.Fatal(err)
			}
			got[a.MemberID] = slices.Sorted(slices.Values(parsed["in"]))
		}
		if !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("a leader %s a URL assigns %v, want %v", name, got, want)
		}
	}
	if got := AdvertisedURL([]byte("something else")); got != "" {
		t.Errorf("a URL %q of none", got)
	}
}
