package sink

import (
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// A found is a state that a search came to, by the shortest way.
type found struct {
	what  string
	trace []string
}

func (f *found) String() string {
	return f.what + "\n  " + strings.Join(f.trace, "\n  ")
}

// searched is what a search has to tell.
type searched struct {
	states, steps, finished, depth int
	whole                          bool // there is no state left that was not looked at
	broken                         *found
	excused                        *found // the first violation that an exception excuses
	excuses                        int
	took                           time.Duration
}

// searchNode is how a state was come to.
type searchNode struct {
	parent int32
	step   step
}

// search looks at every state that cfg's world can come to, nearest first, up to a number of states. Of one state in every it is
// shown that the work ends if no more faults happen.
func search(cfg *modelConfig, states int, every uint64) (r searched) {
	began := time.Now()
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	defer func() { r.took = time.Since(began) }()
	first := newModel(cfg)
	var buf []byte
	var steps []step
	seen := map[stateHash]struct{}{first.hash(&buf): {}}
	nodes := []searchNode{{parent: -1}}
	type place struct {
		m  *model
		at int32
	}
	level := []place{{first, 0}}
	r.states = 1
	trace := func(at int32, last ...step) []string {
		var path []step
		for ; at > 0; at = nodes[at].parent {
			path = append(path, nodes[at].step)
		}
		slices.Reverse(path)
		return replay(cfg, append(path, last...))
	}
	for len(level) > 0 {
		var next []place
		for _, from := range level {
			steps = from.m.steps(steps[:0])
			for _, a := range steps {
				r.steps++
				m, err := from.m.after(a)
				if err != nil {
					r.broken = &found{err.Error(), trace(from.at, a)}
					return r
				}
				if m.excused != "" {
					r.excuses++
					if r.excused == nil {
						r.excused = &found{m.excused, trace(from.at, a)}
					}
				}
				h := m.hash(&buf)
				if _, ok := seen[h]; ok {
					continue
				}
				if r.states == states {
					return r
				}
				seen[h] = struct{}{}
				r.states++
				at := int32(len(nodes))
				nodes = append(nodes, searchNode{from.at, a})
				if every > 0 && h[0]%every == 0 {
					r.finished++
					if err := m.clone().finish(); err != nil {
						r.broken = &found{err.Error(), trace(at)}
						return r
					}
				}
				next = append(next, place{m, at})
			}
		}
		clear(level)
		level = next
		r.depth++
	}
	r.whole = true
	return r
}

// replay tells a path, one step a line.
func replay(cfg *modelConfig, path []step) (lines []string) {
	m := newModel(cfg)
	m.say = func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, a := range path {
		m.excused = ""
		if err := m.apply(a); err != nil {
			lines = append(lines, "⇒ "+err.Error())
		} else if m.excused != "" {
			lines = append(lines, "⇒ "+m.excused)
		}
	}
	return lines
}

// long says that the search may take minutes.
var long = os.Getenv("OFFHOOK_E2E_LONG") == "1"

// modelLog is a partition's log: a word an event, of the letters of its uids; with ! the endpoint refuses it; - is a transaction's marker.
func modelLog(text string) (log []modelEvent) {
	for word := range strings.FieldsSeq(text) {
		log = append(log, modelEvent{uids: strings.Trim(word, "-!"), poison: strings.HasSuffix(word, "!")})
	}
	return log
}

// searchCase is a world that is searched whole.
type searchCase struct {
	modelConfig
	deep int // faults in the long search; 0: the case is as large there
	most int // states; 0: all
}

// searchCases have, together, everything that the design names. Each is searched whole up to its faults.
var searchCases = []searchCase{
	{modelConfig: modelConfig{name: "three events, two of a uid", logs: [][]modelEvent{modelLog("a b a")}, batchMax: 2, inFlight: 2, faults: 1}, deep: 2},
	{modelConfig: modelConfig{name: "refused", logs: [][]modelEvent{modelLog("a! b")}, batchMax: 2, inFlight: 2, faults: 1}, deep: 3},
	{modelConfig: modelConfig{name: "three events of a uid", logs: [][]modelEvent{modelLog("a a a")}, batchMax: 1, inFlight: 2, faults: 1}, deep: 3},
	{modelConfig: modelConfig{name: "a half and a later batch share a uid", logs: [][]modelEvent{modelLog("a! b b")}, batchMax: 2, inFlight: 2}, deep: 1},
	{modelConfig: modelConfig{name: "halved twice", logs: [][]modelEvent{modelLog("a b! c")}, batchMax: 3, inFlight: 2}, deep: 1},
	{modelConfig: modelConfig{name: "any number of faults", logs: [][]modelEvent{modelLog("a!")}, batchMax: 1, inFlight: 1, faults: -1, scratch: true}},
	{modelConfig: modelConfig{name: "any number of faults, two events", logs: [][]modelEvent{modelLog("a b")}, batchMax: 2, inFlight: 2, faults: -1, scratch: true}, most: 10_000, deep: -1},
	{modelConfig: modelConfig{name: "step by step", logs: [][]modelEvent{modelLog("a - a")}, batchMax: 2, inFlight: 2, faults: 1, scratch: true,
		fails: true, lazyRead: true, slowLoad: true, reload: true, deny: true, tooLarge: true}, deep: 2},
	{modelConfig: modelConfig{name: "a plan that is too large", logs: [][]modelEvent{modelLog("a! b c")}, batchMax: 2, inFlight: 2, faults: 1, only: []stepKind{stepDeny}, tooLarge: true}, deep: 2},
	{modelConfig: modelConfig{name: "two lanes", logs: [][]modelEvent{modelLog("a"), modelLog("b")}, batchMax: 2, inFlight: 2, faults: 1, deny: true}, deep: 2},
	{modelConfig: modelConfig{name: "given up, fenced", logs: [][]modelEvent{modelLog("a a")}, batchMax: 2, inFlight: 2, faults: 1, giveUp: exceptionFenced}, deep: 2},
	{modelConfig: modelConfig{name: "fickle, fenced", logs: [][]modelEvent{modelLog("a a")}, batchMax: 2, inFlight: 2, faults: 1, fickle: exceptionFenced}, deep: 2},
	{modelConfig: modelConfig{name: "given up", logs: [][]modelEvent{modelLog("a a")}, batchMax: 1, inFlight: 2, faults: 1, giveUp: exceptionFull}, deep: 2},
	{modelConfig: modelConfig{name: "fickle", logs: [][]modelEvent{modelLog("a a")}, batchMax: 2, inFlight: 2, faults: 1, fickle: exceptionFull}, deep: 2},
}

// TestSearch drives the sink's pure core through every order of what may happen, up to the bounds of each case: guarantees 2 and 4 hold, and
// where they do not, one of the two exceptions of guarantee 4 says so. See docs/search.md.
func TestSearch(t *testing.T) {
	if searchRaces {
		t.Skip("one goroutine has no races; go test without -race runs it")
	}
	for _, c := range searchCases {
		t.Run(c.name, func(t *testing.T) {
			cfg, most := c.modelConfig, c.most
			if long && c.deep != 0 {
				cfg.faults, most = c.deep, 0
			}
			if most == 0 {
				most = statesMax
			}
			r := search(&cfg, most, 16)
			t.Logf("faults %d: %d states, %d steps, up to %d deep, %v (all: %v); of %d the end without faults; %d excused", cfg.faults, r.states, r.steps, r.depth, r.took.Round(time.Millisecond), r.whole, r.finished, r.excuses)
			if r.broken != nil {
				t.Fatal(r.broken)
			}
			if !r.whole && c.most == 0 {
				t.Error("the search has met its bound before it has seen all")
			}
			if exception := cfg.fickle == exceptionFull || cfg.giveUp == exceptionFull; exception != (r.excused != nil) {
				t.Errorf("an exception is modelled: %v; a guarantee was broken under it: %v", exception, r.excused != nil)
			}
			if r.excused != nil {
				t.Logf("what the exception excuses: %s", r.excused)
			}
		})
	}
}

// statesMax bounds the memory of a search: about 100 bytes a state, and the states of two levels.
const statesMax = 30_000_000
