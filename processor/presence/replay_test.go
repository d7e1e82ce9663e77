package presence

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/offhook/offhook/schemas"
)

// scenario is an inbox partition, and what happens to the table that reads it. Unlike those of TestModel its events tell of gateways: what
// happened, in two input partitions of which each may lag, with copies in either; and what is taken back is read again.
type scenario struct {
	rules Rules
	steps []step
}

// step is one thing that happens.
type step struct {
	do     action
	c      schemas.Connection // of a record
	passes int64              // ms of inbox time
	silent int64              // of a sweep: since how many offsets silence counts
}

type action int

const (
	record   action = iota // a connection event is read
	sweep                  // closes are asked for
	silence                // the closes that were asked for are read
	forget                 // what is due is forgotten
	commit                 //
	rollback               // and what was taken back is read again
	restore                // another process goes on, from the last commit
)

func (a action) String() string {
	return [...]string{"record", "sweep", "silence", "forget", "commit", "rollback", "restore"}[a]
}

// inputs draws what two input partitions hold, each in the order of time but for the copies.
func inputs(t *rapid.T, distinct bool) (both [2][]schemas.Connection) {
	clock := int64(100)
	for range rapid.IntRange(1, 40).Draw(t, "events") {
		clock += rapid.SampledFrom([]int64{0, 1, 1, 10}).Draw(t, "later")
		if distinct {
			clock++
		}
		c := schemas.Connection{NodeID: schemas.ID(rapid.SampledFrom([]string{"1", "g"}).Draw(t, "node")), Time: clock, OpenedAt: -1}
		kinds := []schemas.ConnectionType{1, 1, 1, 2, 2, 3, 3, 4}
		if distinct {
			kinds = []schemas.ConnectionType{1, 1, 1, 2, 2, 4} // a heartbeat does not count as a time from which on a connection is open
		}
		c.Type = rapid.SampledFrom(kinds).Draw(t, "type")
		switch {
		case c.Type == schemas.NodeStarted, c.Type == schemas.Heartbeat && rapid.IntRange(0, 2).Draw(t, "node's") == 0:
		default:
			c.UID = rapid.SampledFrom([]string{"u", "v"}).Draw(t, "uid")
			c.ConnID = schemas.ID(rapid.SampledFrom([]string{"1", "2", "x"}).Draw(t, "conn"))
			if c.HasDeviceFlag = c.Type == schemas.Online || rapid.Bool().Draw(t, "has flag"); c.HasDeviceFlag {
				c.DeviceFlag = rapid.Uint8Range(0, 1).Draw(t, "flag")
			}
			if !distinct && rapid.IntRange(0, 3).Draw(t, "has opened_at") == 0 {
				c.OpenedAt = clock / 20 * 20
			}
			if c.Type != schemas.Offline && rapid.IntRange(0, 3).Draw(t, "has background") == 0 {
				c.HasBackground, c.Background = true, rapid.Bool().Draw(t, "background")
			}
		}
		home := rapid.IntRange(0, 1).Draw(t, "partition")
		both[home] = append(both[home], c)
		for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "copies") {
			p := rapid.IntRange(0, 1).Draw(t, "copy's partition")
			both[p] = append(both[p], c)
			if i := len(both[p]) - 1; i > 0 && rapid.Bool().Draw(t, "copy comes early") {
				both[p][i], both[p][i-1] = both[p][i-1], both[p][i]
			}
		}
	}
	return both
}

// merged draws the order in which route writes them to the inbox.
func merged(t *rapid.T, both [2][]schemas.Connection) (inbox []schemas.Connection) {
	for len(both[0])+len(both[1]) > 0 {
		p := rapid.IntRange(0, 1).Draw(t, "from")
		if len(both[p]) == 0 {
			p = 1 - p
		}
		n := min(len(both[p]), rapid.SampledFrom([]int{1, 1, 2, 5, 20}).Draw(t, "how many"))
		inbox = append(inbox, both[p][:n]...)
		both[p] = both[p][n:]
	}
	return inbox
}

var scenarios = rapid.Custom(func(t *rapid.T) scenario {
	s := scenario{rules: Rules{
		CloseMemory:        rapid.SampledFrom([]int64{20, 100, 1e9}).Draw(t, "memory"),
		BackgroundIsOnline: rapid.Bool().Draw(t, "background is online"), ClosesAtOnce: rapid.IntRange(0, 2).Draw(t, "closes at once"),
	}}
	for _, c := range merged(t, inputs(t, false)) {
		s.steps = append(s.steps, step{do: record, c: c, passes: rapid.SampledFrom([]int64{0, 1, 5}).Draw(t, "passes")})
		for range rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "between") {
			between := step{do: action(rapid.IntRange(int(sweep), int(restore)).Draw(t, "do"))}
			switch between.do {
			case sweep:
				between.silent = rapid.Int64Range(0, 10).Draw(t, "silent for")
			case forget:
				between.passes = rapid.SampledFrom([]int64{0, ExpireSlack, ExpireSlack + 50}).Draw(t, "passes")
			}
			s.steps = append(s.steps, between)
		}
	}
	return s
})

// subject is what is compared with the model: a table, or one with a planted bug.
type subject interface {
	Apply(*schemas.Connection, Mark, *Effects) (Outcome, bool)
	ExpireConnection(*schemas.Expire, int64, *Effects) Outcome
	Sweep(int, int64, func(schemas.Expire))
	Expire(int64, int, *Effects)
	AppendOffline(dst, uids []string) []string
	Begin(int64)
	Commit()
	Rollback()
	table() *Table
}

type sound struct{ *Table }

func (s sound) table() *Table { return s.Table }

// read is a record of the inbox.
type read struct {
	c      *schemas.Connection
	expire *schemas.Expire // where c is nil
	at     Mark
}

// replay is a scenario under way.
type replay struct {
	t                fataler
	rules            Rules
	wrap             func(*Table) subject
	table            subject
	model, committed *model
	offset, clock    int64
	open             []read // since the last commit
	changes          []Change
	log              []Change // committed
	asked            []schemas.Expire
	saw              map[Outcome]int
}

// compare returns the first difference between the model and a table made with rules and wrap; "": there is none.
func (s *scenario) compare(t fataler, rules Rules, wrap func(*Table) subject, saw map[Outcome]int) string {
	r := &replay{
		t: t, rules: rules, wrap: wrap, table: wrap(NewTable(rules)), model: &model{memory: s.rules.CloseMemory, background: s.rules.BackgroundIsOnline},
		clock: 1_000_000, saw: saw,
	}
	r.committed = r.model.clone()
	for i := range s.steps {
		if diff := r.step(&s.steps[i]); diff != "" {
			return fmt.Sprintf("step %d, %s: %s", i, s.steps[i].do, diff)
		}
	}
	return r.step(&step{do: restore})
}

func (r *replay) step(s *step) string {
	r.clock += s.passes
	switch s.do {
	case record:
		r.offset++
		return r.read(read{c: &s.c, at: Mark{Time: r.clock, Offset: r.offset}})
	case sweep:
		var asked []schemas.Expire
		since := r.offset - s.silent
		r.table.Sweep(math.MaxInt, since, func(x schemas.Expire) { asked = append(asked, x) })
		for _, x := range asked {
			if o, known := r.model.clone().take(x.UID, string(x.NodeID), string(x.ConnID)); !known || !o.open || o.sign >= since {
				return fmt.Sprintf("%+v is asked to be closed, and the model says: known %v, %v, last sign %d, since %d", x, known, o, o.sign, since)
			}
		}
		r.asked = append(r.asked, asked...)
	case silence:
		asked := r.asked
		r.asked = nil
		for i := range asked {
			r.offset++
			if diff := r.read(read{expire: &asked[i], at: Mark{Time: r.clock, Offset: r.offset}}); diff != "" {
				return diff
			}
		}
	case forget:
		var e Effects
		r.table.Expire(r.clock, math.MaxInt, &e)
		got := r.describe(&e)
		want := r.model.expire(r.clock)
		slices.Sort(want)
		slices.Sort(got)
		r.changes = append(r.changes, e.Changes...)
		return cmp.Diff(want, got)
	case commit:
		r.table.Commit()
		r.committed, r.open = r.model.clone(), nil
		r.log, r.changes = append(r.log, r.changes...), nil
	case rollback, restore:
		r.table.Rollback()
		r.model, r.changes = r.committed.clone(), nil
		if s.do == restore {
			before := contentsOf(r.table.table())
			r.table = r.wrap(restored(r.t, r.rules, compacted(r.log)))
			if diff := cmp.Diff(before, contentsOf(r.table.table())); diff != "" {
				return "restored: " + diff
			}
			begin := r.offset + 1
			if len(r.open) > 0 {
				begin = r.open[0].at.Offset
			}
			r.table.Begin(begin)
			r.model.begin(begin)
			r.committed = r.model.clone()
		}
		again := r.open
		r.open = nil
		for _, e := range again {
			if diff := r.read(e); diff != "" {
				return "again: " + diff
			}
		}
	}
	return r.state()
}

// read has both read a record.
func (r *replay) read(in read) string {
	r.open = append(r.open, in)
	var e Effects
	var got, want modelResult
	if in.c != nil {
		var more bool
		got.outcome, more = r.table.Apply(in.c, in.at, &e)
		for more {
			_, more = r.table.Apply(in.c, in.at, &e)
		}
		want = r.model.apply(in.c, in.at.Time, in.at.Offset)
	} else {
		got.outcome = r.table.ExpireConnection(in.expire, in.at.Time, &e)
		want = r.model.silent(in.expire, in.at.Time)
	}
	r.saw[want.outcome]++
	for _, ev := range e.Events {
		got.items = append(got.items, item(ev))
	}
	got.writes = r.describe(&e)
	r.changes = append(r.changes, e.Changes...)
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(modelResult{})); diff != "" {
		return fmt.Sprintf("%+v (-model +table):\n%s", in, diff)
	}
	return r.state()
}

func (r *replay) describe(e *Effects) (writes []string) {
	for _, ch := range e.Changes {
		writes = append(writes, describe(r.t, ch))
	}
	return writes
}

// state compares what both have.
func (r *replay) state() string {
	if diff := cmp.Diff(r.model.all(), tableAll(r.table.table())); diff != "" {
		return "state (-model +table):\n" + diff
	}
	uids := []string{"u", "v", "w"}
	return cmp.Diff(r.model.offline(uids), r.table.AppendOffline(nil, uids))
}

// The table does what the model does with events that come late, doubled and from two partitions, and again after an abort.
func TestReplay(t *testing.T) {
	saw := make(map[Outcome]int)
	rapid.Check(t, func(t *rapid.T) {
		s := scenarios.Draw(t, "scenario")
		if diff := s.compare(t, s.rules, func(t *Table) subject { return sound{t} }, saw); diff != "" {
			t.Fatal(diff)
		}
	})
	// Else the test has lost what it is for. What is rare may be left out by chance, and stands in more scenarios that are the same in
	// every run.
	unseen := func() (all []Outcome) {
		for _, o := range Outcomes() {
			if saw[o] == 0 && o != OutcomeNodeClosing {
				all = append(all, o)
			}
		}
		return all
	}
	for seed := 0; len(unseen()) > 0 && seed < 1000; seed++ {
		s := scenarios.Example(seed)
		if diff := s.compare(t, s.rules, func(t *Table) subject { return sound{t} }, saw); diff != "" {
			t.Fatal(diff)
		}
	}
	if all := unseen(); len(all) > 0 {
		t.Errorf("never seen: %v", all)
	}
}

// Tables with a planted bug each.
type (
	strictTimes     struct{ sound } // an event at the version's time counts as older
	copiesOpen      struct{ sound } // an online as old as the one that a remembered close closed opens
	forgetsStarts   struct{ sound } // a node's start is written, and not kept
	countsOneMore   struct{ sound }
	disorderlyNode  struct{ sound } // a node's closes are not in the order of (uid, conn_id)
	deafToBeats     struct{ sound } // a heartbeat is no sign of life
	closesTheHeard  struct{ sound } // an expire closes whoever gave a sign since
	deafToTheFloor  struct{ sound } // after a restore, who gave no sign since counts as silent
	oneGeneration   struct{ sound } // opened_at decides nothing
	keepsSigns      struct{ sound } // a rollback leaves the sign of a node as a whole
	keepsStarts     struct{ sound } // a rollback leaves a node's start
	keepsBackground struct{ sound } // a heartbeat does not change what is in the background
)

func (p strictTimes) Apply(c *schemas.Connection, at Mark, e *Effects) (Outcome, bool) {
	if s := p.find(c.UID, c.NodeID, c.ConnID); s.live() && c.Time == s.state.Version {
		return OutcomeStale, false
	}
	return p.Table.Apply(c, at, e)
}

func (p copiesOpen) Apply(c *schemas.Connection, at Mark, e *Effects) (Outcome, bool) {
	if s := p.find(c.UID, c.NodeID, c.ConnID); s.known && !s.live() && c.Type == schemas.Online && c.Time == s.state.Opened && !older(c, &s.state) {
		return p.open(&s, &schemas.Connection{
			Type: c.Type, UID: c.UID, ConnID: c.ConnID, NodeID: c.NodeID, DeviceFlag: c.DeviceFlag, Time: c.Time + 1, OpenedAt: c.OpenedAt, Background: c.Background,
		}, at.Time, e), false
	}
	return p.Table.Apply(c, at, e)
}

func (p forgetsStarts) Apply(c *schemas.Connection, at Mark, e *Effects) (o Outcome, more bool) {
	o, more = p.Table.Apply(c, at, e)
	if n := p.byID[c.NodeID]; o == OutcomeNodeStarted && !more {
		p.setStart(n, false, schemas.NodeStart{})
	}
	return o, more
}

func (p countsOneMore) Apply(c *schemas.Connection, at Mark, e *Effects) (o Outcome, more bool) {
	o, more = p.Table.Apply(c, at, e)
	for i := range e.Events {
		if e.Events[i].TotalCount > 2 {
			e.Events[i].TotalCount++
		}
	}
	return o, more
}

func (p disorderlyNode) Apply(c *schemas.Connection, at Mark, e *Effects) (o Outcome, more bool) {
	o, more = p.Table.Apply(c, at, e)
	if n := len(e.Events); n > 1 && c.Type == schemas.NodeStarted {
		e.Events[n-1], e.Events[n-2] = e.Events[n-2], e.Events[n-1]
	}
	return o, more
}

func (p deafToBeats) Apply(c *schemas.Connection, at Mark, e *Effects) (Outcome, bool) {
	s := p.find(c.UID, c.NodeID, c.ConnID)
	o, more := p.Table.Apply(c, at, e)
	if c.Type == schemas.Heartbeat && s.live() {
		p.users.conns.at(p.find(c.UID, c.NodeID, c.ConnID).conn).sign = s.sign
	}
	return o, more
}

func (p closesTheHeard) ExpireConnection(x *schemas.Expire, now int64, e *Effects) Outcome {
	return p.Table.ExpireConnection(&schemas.Expire{UID: x.UID, NodeID: x.NodeID, ConnID: x.ConnID, Offset: math.MaxInt64}, now, e)
}

func (p deafToTheFloor) Begin(int64) {}

func (p oneGeneration) Apply(c *schemas.Connection, at Mark, e *Effects) (Outcome, bool) {
	if s := p.find(c.UID, c.NodeID, c.ConnID); s.known && c.OpenedAt >= 0 && s.state.OpenedAt >= 0 {
		same := *c
		same.OpenedAt = s.state.OpenedAt
		return p.Table.Apply(&same, at, e)
	}
	return p.Table.Apply(c, at, e)
}

func (p keepsSigns) Rollback() {
	signs := make(map[*node]int64)
	for _, n := range p.byID {
		signs[n] = n.sign
	}
	p.Table.Rollback()
	for _, n := range p.byID {
		n.sign = max(n.sign, signs[n])
	}
}

func (p keepsStarts) Rollback() {
	p.undoStarts = nil
	p.Table.Rollback()
}

func (p keepsBackground) Apply(c *schemas.Connection, at Mark, e *Effects) (Outcome, bool) {
	same := *c
	same.HasBackground = same.HasBackground && c.Type != schemas.Heartbeat
	return p.Table.Apply(&same, at, e)
}

// The comparison finds bugs.
func TestReplayFindsPlantedBugs(t *testing.T) {
	for _, bug := range []struct {
		name  string
		rules func(*Rules)
		wrap  func(sound) subject
	}{
		{name: "closes are not remembered", rules: func(r *Rules) { r.CloseMemory = 0 }},
		{name: "closes are remembered for too long", rules: func(r *Rules) { r.CloseMemory++ }},
		{name: "background counts otherwise", rules: func(r *Rules) { r.BackgroundIsOnline = !r.BackgroundIsOnline }},
		{name: "an event of the same time is older", wrap: func(s sound) subject { return strictTimes{s} }},
		{name: "a copy opens", wrap: func(s sound) subject { return copiesOpen{s} }},
		{name: "a start is not recorded", wrap: func(s sound) subject { return forgetsStarts{s} }},
		{name: "counts are off by one", wrap: func(s sound) subject { return countsOneMore{s} }},
		{name: "a node's closes out of order", wrap: func(s sound) subject { return disorderlyNode{s} }},
		{name: "a heartbeat is no sign", wrap: func(s sound) subject { return deafToBeats{s} }},
		{name: "an expire closes the living", wrap: func(s sound) subject { return closesTheHeard{s} }},
		{name: "a restored table takes silence for death", wrap: func(s sound) subject { return deafToTheFloor{s} }},
		{name: "generations are not told apart", wrap: func(s sound) subject { return oneGeneration{s} }},
		{name: "a rollback forgets the sign of a node", wrap: func(s sound) subject { return keepsSigns{s} }},
		{name: "a rollback forgets a start", wrap: func(s sound) subject { return keepsStarts{s} }},
		{name: "a heartbeat leaves the background", wrap: func(s sound) subject { return keepsBackground{s} }},
	} {
		t.Run(bug.name, func(t *testing.T) {
			const checks = 1000
			for seed := range checks {
				s := scenarios.Example(seed)
				rules := s.rules
				if bug.rules != nil {
					bug.rules(&rules)
				}
				wrap := func(t *Table) subject { return sound{t} }
				if bug.wrap != nil {
					wrap = func(t *Table) subject { return bug.wrap(sound{t}) }
				}
				if diff := s.compare(t, rules, wrap, make(map[Outcome]int)); diff != "" {
					first, _, _ := strings.Cut(diff, "\n")
					t.Logf("found by scenario %d: %s", seed, first)
					return
				}
			}
			t.Errorf("not found by %d scenarios", checks)
		})
	}
}

// Whatever comes late or twice, who is online in the end is who was connected: as long as closes are remembered, and no two events have one
// time.
func TestLateAndDoubledEndAsInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		both := inputs(t, true)
		happened := slices.Concat(both[0], both[1])
		slices.SortFunc(happened, func(a, b schemas.Connection) int { return int(a.Time - b.Time) })
		open := make(map[string]uint8)
		for _, c := range happened {
			name := fmt.Sprintf("%s/%s/%s", c.UID, c.NodeID, c.ConnID)
			switch c.Type {
			case schemas.Online:
				open[name] = c.DeviceFlag
			case schemas.Offline:
				delete(open, name)
			case schemas.NodeStarted:
				for name := range open {
					if strings.Split(name, "/")[1] == string(c.NodeID) {
						delete(open, name)
					}
				}
			}
		}
		table := NewTable(Rules{CloseMemory: math.MaxInt32})
		var e Effects
		for i, c := range merged(t, both) {
			table.Apply(&c, Mark{Time: int64(i), Offset: int64(i)}, &e)
		}
		got := make(map[string]uint8)
		for u := range table.users.all() {
			for _, c := range table.users.connections(u) {
				num, text := table.users.id(c)
				got[fmt.Sprintf("%s/%s/%s", u.uid, table.nodes[c.node].id, joinID(num, text))] = c.flag
			}
		}
		if diff := cmp.Diff(open, got); diff != "" {
			t.Fatalf("who is online (-happened +table):\n%s", diff)
		}
	})
}
