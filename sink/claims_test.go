package sink

import (
	"errors"
	"testing"
)

// TestOneCommitInFlight: while a commit request is in flight nothing is proposed, also not of other lanes.
func TestOneCommitInFlight(t *testing.T) {
	s, l := bareSession(t)
	other := &lane{laneKey: laneKey{"t", 2}, core: testLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 100, PlanAhead: 8})}
	c := &s.claims
	c.lanes[other.laneKey] = other
	c.want[l] = struct{}{}
	if plans, err := c.propose("", epoch); err != nil || len(plans) != 1 {
		t.Fatalf("proposed %v, %v, want one plan", plans, err)
	}
	c.want[other] = struct{}{}
	if plans, err := c.propose("", epoch); err != nil || len(plans) != 0 || len(c.want) != 1 {
		t.Fatalf("beside a commit in flight it proposes %v, %v", plans, err)
	}
	c.answered(commitResult{}, epoch)
	if plans, err := c.propose("", epoch); err != nil || len(plans) != 1 {
		t.Errorf("after it, it proposes %v, %v, want one plan", plans, err)
	}
}

// TestClaimsOfAnotherMember: what was assigned to one member id is not proposed under another.
func TestClaimsOfAnotherMember(t *testing.T) {
	s, l := bareSession(t)
	l.member = "old"
	c := &s.claims
	c.want[l] = struct{}{}
	if plans, err := c.propose("new", epoch); !errors.Is(err, errMemberChanged) || plans != nil || c.committing != nil {
		t.Errorf("as another member it proposes %v, %v", plans, err)
	}
	if plans, err := c.propose("old", epoch); err != nil || len(plans) != 1 {
		t.Errorf("as the member it proposes %v, %v", plans, err)
	}
}
