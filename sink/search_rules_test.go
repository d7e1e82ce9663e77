package sink

import (
	"testing"
	"time"
)

// A rule is one of those marked † in guarantees 2 and 4 of docs/design.md. The search takes each out, in what the model does around
// the real code or in what it makes of the code's plans, and shows what follows.
type rule string

const (
	rulePlanFirst            rule = "a plan is committed before its batches are sent"
	ruleHalvesFirst          rule = "halves are committed before the first is sent"
	ruleHalvesInPlan         rule = "halves stand in the plan"
	ruleDeadFirst            rule = "a dead mark is committed before the dead letter is written"
	ruleDeadInPlan           rule = "a dead mark stands in the plan"
	ruleDeadNotSent          rule = "who finds a batch dead never sends it"
	ruleGivenUpWhole         rule = "a batch that is given up is never halved"
	ruleOffsetInOrder        rule = "the offset passes a batch when it and all before it are done"
	ruleDoneStays            rule = "a batch that is done behind an unfinished one stays in the plan"
	ruleFirst                rule = "a batch's first offset is the one after the end before"
	ruleSharedUIDs           rule = "of two batches that share a uid the later waits for the earlier"
	ruleRevokeDrops          rule = "onRevoked drops the lanes"
	ruleLaneOfAssignment     rule = "what a lane has waiting goes with its assignment"
	ruleRevokeWaits          rule = "onRevoked waits for the commit in flight"
	ruleComposedID           rule = "onRevoked waits, or a commit bears the generation of when it was made"
	ruleWaitsOrGeneration    rule = "onRevoked waits, or the coordinator checks the generation"
	ruleGeneration           rule = "the coordinator checks the generation (the classic protocol)"
	ruleMember               rule = "a lane is committed under the member id that it was assigned to alone"
	ruleOneCommit            rule = "one commit request at a time"
	ruleUnknown              rule = "an unknown commit is not one that was refused"
	ruleNewMember            rule = "after an unknown commit: a new member id or generation"
	ruleFetchAfterAssignment rule = "after an unknown commit: the offsets are fetched after the assignment"
	ruleEveryLane            rule = "after an unknown commit: of every lane in it"
	ruleNoRetry              rule = "nothing below sends a commit again"
	ruleReloadWaits          rule = "a lane that begins anew waits for the commit in flight"
)

// withoutCases take one rule out each, in the smallest world in which that shows; none where nothing follows in any that was tried: what
// docs/search.md says of it.
var withoutCases = []struct {
	rule rule
	cfg  modelConfig
	none bool
}{
	{rule: rulePlanFirst, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 1, only: []stepKind{stepCrash}}},
	{rule: ruleHalvesFirst, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 1, only: []stepKind{stepCrash}, fickle: exceptionFenced}},
	{rule: ruleHalvesInPlan, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 1, only: []stepKind{stepCrash}, fickle: exceptionFenced}},
	{rule: ruleDeadFirst, cfg: modelConfig{logs: [][]modelEvent{modelLog("a")}, faults: 1, only: []stepKind{stepCrash}, giveUp: exceptionFenced}},
	{rule: ruleDeadInPlan, cfg: modelConfig{logs: [][]modelEvent{modelLog("a")}, faults: 1, only: []stepKind{stepCrash}, giveUp: exceptionFenced}},
	{rule: ruleDeadNotSent, cfg: modelConfig{logs: [][]modelEvent{modelLog("a")}, faults: 1, only: []stepKind{stepCrash}, giveUp: exceptionFenced}},
	{rule: ruleGivenUpWhole, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 0, giveUp: exceptionFull}},
	{rule: ruleOffsetInOrder, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 0}},
	{rule: ruleDoneStays, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b c")}, faults: 1, only: []stepKind{stepCrash}, inFlight: 3}},
	{rule: ruleFirst, cfg: modelConfig{logs: [][]modelEvent{modelLog("a - b")}, faults: 1, only: []stepKind{stepCrash}}},
	{rule: ruleSharedUIDs, cfg: modelConfig{logs: [][]modelEvent{modelLog("a a")}, faults: 0}},
	{rule: ruleRevokeDrops, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 1, only: []stepKind{stepMove}}},
	{rule: ruleLaneOfAssignment, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 2, only: []stepKind{stepMove, stepCrash}}},
	{rule: ruleComposedID, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 2, only: []stepKind{stepMove, stepCrash}, inFlight: 1}},
	{rule: ruleWaitsOrGeneration, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 2, only: []stepKind{stepMove, stepCrash}, inFlight: 1}},
	{rule: ruleRevokeWaits, none: true, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 2, only: []stepKind{stepMove, stepCrash, stepUnknown}, inFlight: 1}},
	{rule: ruleGeneration, none: true, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 2, only: []stepKind{stepMove, stepCrash, stepUnknown}, inFlight: 1}},
	{rule: ruleMember, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 2, only: []stepKind{stepExpire, stepSilent}}},
	{rule: ruleOneCommit, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b c")}, faults: 1, only: []stepKind{stepCrash}, inFlight: 1}},
	{rule: ruleUnknown, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b c")}, faults: 2, only: []stepKind{stepUnknown, stepCrash}, inFlight: 1}},
	{rule: ruleNewMember, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 2, only: []stepKind{stepUnknown, stepCrash}}},
	{rule: ruleFetchAfterAssignment, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b")}, faults: 2, only: []stepKind{stepUnknown, stepMove}, inFlight: 1}},
	{rule: ruleEveryLane, cfg: modelConfig{logs: [][]modelEvent{modelLog("-"), modelLog("a b")}, faults: 2, only: []stepKind{stepUnknown, stepMove}, inFlight: 1}},
	{rule: ruleNoRetry, cfg: modelConfig{logs: [][]modelEvent{modelLog("a b c")}, faults: 1, only: []stepKind{stepCrash}, inFlight: 1}},
	{rule: ruleReloadWaits, cfg: modelConfig{logs: [][]modelEvent{modelLog("a")}, faults: 2, only: []stepKind{stepReload, stepCrash}, reload: true, giveUp: exceptionFenced}},
}

// TestSearchWithout takes out each rule that guarantees 2 and 4 rest on, and finds what breaks then.
func TestSearchWithout(t *testing.T) {
	if searchRaces {
		t.Skip("one goroutine has no races; go test without -race runs it")
	}
	for _, c := range withoutCases {
		t.Run(string(c.rule), func(t *testing.T) {
			cfg := c.cfg
			cfg.name, cfg.without, cfg.batchMax = string(c.rule), c.rule, 2
			if cfg.inFlight == 0 {
				cfg.inFlight = 2
			}
			if c.none && long {
				cfg.faults, cfg.only, cfg.fails = 3, nil, true
			}
			r := search(&cfg, statesMax, 0)
			t.Logf("%d states, %v", r.states, r.took.Round(time.Millisecond))
			switch {
			case c.none && r.broken != nil:
				t.Errorf("docs/search.md says that nothing breaks: %s", r.broken)
			case !c.none && r.broken == nil:
				t.Errorf("nothing breaks in %d states", r.states)
			case r.broken != nil:
				t.Log(r.broken)
			}
		})
	}
}
