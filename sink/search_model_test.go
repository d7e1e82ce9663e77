package sink

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// The world that the search drives the sink's pure core through: two processes, each with the real claims and the real lanes, the group's
// coordinator, the network and the endpoint. What the model leaves out, and what it takes for the same, is told in docs/search.md.

const (
	modelProcs      = 2
	modelPartitions = 2
	modelTopic      = "t"
)

// A modelEvent is one offset of a partition.
type modelEvent struct {
	uids   string // one letter each; empty: the offset holds a transaction's marker
	poison bool   // the endpoint refuses each batch that has it
}

// An exceptionMode says how far the endpoint and the network may go into one of the two exceptions of guarantee 4. The zero mode: what one
// copy of a request is refused for, all are, and nothing is given up.
type exceptionMode uint8

const (
	_ exceptionMode = iota
	// exceptionFenced: contents are refused that could be taken, or batches given up, but none that has been taken; and then no copy is taken
	// that is under way, or that a process sends which has lost the partition. What the owner sends afterwards may be taken.
	exceptionFenced
	// exceptionFull: no such bounds.
	exceptionFull
)

// modelConfig is one case of the search.
type modelConfig struct {
	name     string
	logs     [][]modelEvent // of each partition
	batchMax int
	inFlight int
	fickle   exceptionMode // an endpoint that refuses one copy of a request and takes another
	giveUp   exceptionMode // batches that are given up
	reload   bool          // lanes begin anew after errors of their fetches
	deny     bool          // the coordinator refuses some commits for certain though it could take them
	tooLarge bool          // it refuses plans of several batches as too large
	fails    bool          // attempts fail and are made again
	lazyRead bool          // what is planned is read step by step
	slowLoad bool          // a plan is loaded in two steps
	scratch  bool          // the world begins with processes that have to join
	faults   int           // crashes, moves, expiries and other faults in all; -1: any number
	only     []stepKind    // the faults that there are; none: all
	without  rule          // the rule that is taken out; empty: none
}

// A span is a batch's offsets.
type span struct{ first, last int8 }

func (s span) has(offset int) bool { return int(s.first) <= offset && offset <= int(s.last) }

func (s span) String() string {
	if s.first == s.last {
		return fmt.Sprintf("[%d]", s.first)
	}
	return fmt.Sprintf("[%d-%d]", s.first, s.last)
}

// spans is a sorted set. It is never changed in place, so that states share it.
type spans []span

func (s spans) has(x span) bool { return slices.Contains(s, x) }

func (s spans) with(x span) spans {
	i, found := slices.BinarySearchFunc(s, x, func(a, b span) int {
		return (int(a.first)-int(b.first))*256 + int(a.last) - int(b.last)
	})
	if found {
		return s
	}
	return slices.Insert(slices.Clone(s), i, x)
}

func (s spans) without(x span) spans {
	if i := slices.Index(s, x); i >= 0 {
		return slices.Delete(slices.Clone(s), i, i+1)
	}
	return s
}

// endpointLog is what became of the events of one partition outside of the processes.
type endpointLog struct {
	taken    spans // ids that the endpoint has taken
	underway spans // ids of which a copy is in the network and that are not taken: each may be taken at any time, or never
	writing  spans // dead batches of which a copy is on its way to the dead letters
	letters  uint16
	gaveUp   spans // ids that somebody gave up
	refused  spans // ids of which the endpoint refused a copy that it could take
}

// events are the offsets that the endpoint has taken.
func (e *endpointLog) events() (mask uint16) {
	for _, s := range e.taken {
		for o := s.first; o <= s.last; o++ {
			mask |= 1 << o
		}
	}
	return mask
}

// A shape is how a guarantee is broken, as far as an exception may excuse it.
type shape uint8

const (
	shapeTwice shape = iota // taken under two ids
	shapeBoth               // taken, and in the dead letters
	shapeOrder              // taken after a later event of the same uid
)

// excuses reports whether one of the two exceptions excuses that a guarantee is broken for an event: an id with it was given up, or was
// refused once and taken once.
func (m *model) excuses(e *endpointLog, offset int, how shape) bool {
	in := func(s span) bool { return s.has(offset) }
	if m.cfg.giveUp == exceptionFull && how != shapeTwice && slices.ContainsFunc(e.gaveUp, in) {
		return true
	}
	return m.cfg.fickle == exceptionFull && slices.ContainsFunc(e.refused, func(s span) bool { return in(s) && e.taken.has(s) })
}

// A modelCommit is a commit request. It is never changed, so that states share it.
type modelCommit struct {
	proc   int
	member string
	gen    int32
	plans  [modelPartitions]*committedOffset
}

// commitStatus is how far a request in flight has come.
type commitStatus uint8

const (
	commitPending commitStatus = iota
	commitApplied
	commitRefused // for certain
	commitTooLarge
	commitDenied // the plan of one partition, given beside, is refused for certain, the others' are applied
)

// modelProc is one process: at most one session of it.
type modelProc struct {
	member string // what its client is known as; empty: it has to join
	gen    int32
	claims
	has     [modelPartitions]bool // the assignment as its client knows it
	lose    [modelPartitions]bool // to be told to the session by onRevoked
	gain    [modelPartitions]bool // and then by onAssigned
	forget  bool                  // the callback is of partitions that are lost with the membership
	calling bool                  // onRevoked waits for the commit in flight
	loads   [modelPartitions]modelLoad
	request *modelCommit // in flight; nil: none
	status  commitStatus
	denied  int8
	early   [modelPartitions]modelLoad        // rules fetchAfterAssignment and everyLane taken out: what was fetched too early
	stale   [modelPartitions]*committedOffset // rule laneOfAssignment taken out: what a lane that was revoked had waiting
}

// modelLoad is a plan on its way to a lane.
type modelLoad struct {
	wanted    bool
	read      bool
	committed *committedOffset
}

// A model is one state of the world.
type model struct {
	cfg *modelConfig

	gen       int32
	joined    int
	members   [modelProcs]string // empty: the process is no member
	owner     [modelPartitions]int8
	moving    [modelPartitions]bool // the owner has to let go of it
	committed [modelPartitions]*committedOffset
	orphans   []*modelCommit // that nobody waits for any more, and that may be applied at any time

	logs  [modelPartitions]endpointLog
	procs [modelProcs]*modelProc
	spent int // faults

	excused string // the violation that an exception excuses, if there was one at the last step
	say     func(format string, args ...any)
}

// newModel is where a search begins: two processes that have to join, or, unless cfg begins from scratch, both members, with all partitions
// owned by the first, which has committed where it begins.
func newModel(cfg *modelConfig) *model {
	m := &model{cfg: cfg, owner: [modelPartitions]int8{-1, -1}, say: func(string, ...any) {}}
	for i := range m.procs {
		m.procs[i] = &modelProc{claims: newClaims()}
	}
	if cfg.scratch {
		return m
	}
	// Without faults, but for the events: nothing is read.
	var steps []step
	for settled := false; !settled; {
		settled = true
		steps = m.steps(steps[:0])
		slices.SortStableFunc(steps, func(a, b step) int { return int(a.kind) - int(b.kind) })
		for _, a := range steps {
			if a.kind < stepRead && a.kind != stepExpire || a.kind == stepCompose {
				if err := m.apply(a); err != nil {
					panic(err)
				}
				settled = false
				break
			}
		}
	}
	return m
}

func (m *model) partitions() int { return len(m.cfg.logs) }

func (m *model) off(r rule) bool { return m.cfg.without == r }

func modelKey(p int) laneKey { return laneKey{modelTopic, int32(p)} }

// laneConfig are the real settings of a lane; no interval is left to pass.
func (m *model) laneConfig() LaneConfig {
	c := LaneConfig{BatchMax: m.cfg.batchMax, BatchBytes: 1 << 20, InFlight: m.cfg.inFlight, PlanAhead: max(planAheadMin, 2*m.cfg.inFlight), UIDs: byKey}
	if m.off(ruleSharedUIDs) {
		c.UIDs = func(hashes []uint64, _ *Record) []uint64 { return hashes }
	}
	return c
}

// clone copies all that changes in place.
func (m *model) clone() *model {
	n := m.share()
	for i, p := range m.procs {
		n.procs[i] = p.clone()
	}
	return n
}

// after copies what a step changes, and takes it.
func (m *model) after(a step) (*model, error) {
	n := m.share()
	switch a.kind {
	case stepOrphan, stepTake, stepWrite, stepExpire, stepAssign, stepMove: // they change no process
	default:
		n.procs[a.proc] = m.procs[a.proc].clone()
	}
	return n, n.apply(a)
}

// share copies all but the processes.
func (m *model) share() *model {
	n := *m
	n.excused = ""
	n.orphans = slices.Clone(m.orphans)
	return &n
}

func (p *modelProc) clone() *modelProc {
	q := *p
	copies := make(map[*lane]*lane, 2)
	of := func(l *lane) *lane {
		c, ok := copies[l]
		if !ok {
			c = &lane{laneKey: l.laneKey, member: l.member, dead: l.dead}
			if l.core != nil && !l.dead {
				c.core = cloneLane(l.core)
			}
			copies[l] = c
		}
		return c
	}
	q.claims = claims{lanes: make(map[laneKey]*lane, len(p.lanes)), want: make(map[*lane]struct{}, len(p.want))}
	for key, l := range p.lanes {
		q.lanes[key] = of(l)
	}
	for l := range p.want {
		q.want[of(l)] = struct{}{}
	}
	if p.committing != nil {
		q.committing = make([]*lane, len(p.committing))
		for i, l := range p.committing {
			q.committing[i] = of(l)
		}
	}
	for _, l := range p.unloaded {
		q.unloaded = append(q.unloaded, of(l))
	}
	q.revoking = make([]chan struct{}, len(p.revoking))
	for i := range q.revoking {
		q.revoking[i] = make(chan struct{})
	}
	return &q
}

// cloneLane copies a lane, with all that its methods change.
func cloneLane(l *Lane) *Lane {
	c := *l
	units := make(map[*unit]*unit, len(l.batches))
	of := func(u *unit) *unit {
		if n, ok := units[u]; ok {
			return n
		}
		n := *u
		units[u] = &n
		return &n
	}
	c.batches = make([]*Batch, len(l.batches))
	for i, b := range l.batches {
		n := *b
		n.Records = slices.Clone(b.Records)
		n.unit = of(b.unit)
		c.batches[i] = &n
	}
	for _, b := range c.batches {
		waiters := make([]*unit, len(b.unit.waiters))
		for i, w := range b.unit.waiters {
			if n, ok := units[w]; ok {
				waiters[i] = n
			} else {
				waiters[i] = w // it was copied already, with a batch before: the pieces of a unit share it
			}
		}
		b.unit.waiters = waiters
	}
	c.latest = make(map[uint64]*unit, len(l.latest))
	for uid, u := range l.latest {
		c.latest[uid] = of(u)
	}
	c.queue = slices.Clone(l.queue)
	if l.proposed != nil {
		p := *l.proposed
		c.proposed = &p
	}
	return &c
}

// calm takes out of a lane what only tells operators about attempts that failed: it decides nothing, and would make states differ.
func calm(l *Lane) {
	for _, b := range l.batches {
		b.Attempts, b.tries, b.answer = 0, 0, ""
		b.Failing, b.lastFailed, b.trying, b.notBefore, b.askedFor = time.Time{}, time.Time{}, time.Time{}, time.Time{}, time.Time{}
	}
	l.told, l.tell = Trouble{}, time.Time{}
}

// encode appends what tells states apart; order says which process comes first, so that two states that differ in the processes' names alone
// are one.
func (m *model) encode(out []byte, order [modelProcs]int) []byte {
	place := func(i int8) byte {
		if i < 0 {
			return 9
		}
		return byte(order[i]) // two processes: the order is its own inverse
	}
	var flags byte
	for p := range m.partitions() {
		out = append(out, place(m.owner[p]), bit(m.moving[p], 0))
		out = appendOffset(out, m.committed[p])
		e := &m.logs[p]
		for _, set := range []spans{e.taken, e.underway, e.writing, e.gaveUp, e.refused} {
			out = append(out, byte(len(set)))
			for _, s := range set {
				out = append(out, byte(s.first), byte(s.last))
			}
		}
		out = append(out, byte(e.letters), byte(e.letters>>8))
	}
	out = append(out, byte(m.spent))
	for _, i := range order {
		p := m.procs[i]
		flags = bit(m.members[i] != "", 0) | bit(p.member != "", 1) | bit(p.member == m.members[i], 2) | bit(p.gen == m.gen && p.member == m.members[i], 3) |
			bit(p.calling, 4) | bit(p.forget, 5)
		out = append(out, flags, byte(len(p.revoking)))
		var orphans [][]byte
		for _, o := range m.orphans {
			if o.proc == i {
				orphans = append(orphans, appendPlans(nil, o))
			}
		}
		slices.SortFunc(orphans, bytes.Compare)
		out = append(out, byte(len(orphans)))
		for _, o := range orphans {
			out = append(out, o...)
		}
		if p.request == nil {
			out = append(out, 0)
		} else {
			out = append(out, 1, byte(p.status), byte(p.denied), bit(p.request.member == m.members[i], 0)|bit(p.request.gen == m.gen, 1))
			out = appendPlans(out, p.request)
		}
		out = append(out, bit(p.committing != nil, 0))
		for part := range m.partitions() {
			key := modelKey(part)
			l := p.lanes[key]
			flags = bit(p.has[part], 0) | bit(p.lose[part], 1) | bit(p.gain[part], 2) | bit(l != nil, 3)
			for _, c := range p.committing {
				if c.laneKey == key {
					flags |= bit(true, 4) | bit(c.dead, 5)
				}
			}
			for _, u := range p.unloaded {
				if u.laneKey == key && !u.dead {
					flags |= bit(true, 6)
				}
			}
			out = append(out, flags)
			for _, load := range []modelLoad{p.loads[part], p.early[part]} {
				out = append(out, bit(load.wanted, 0)|bit(load.read, 1))
				if load.read {
					out = appendOffset(out, load.committed)
				}
			}
			if m.off(ruleLaneOfAssignment) {
				out = appendOffset(out, p.stale[part])
			}
			if l == nil {
				continue
			}
			_, want := p.want[l]
			out = append(out, bit(l.member == p.member, 0)|bit(want, 1)|bit(l.core != nil, 2))
			if l.core != nil {
				out = appendLane(out, l.core)
			}
		}
	}
	return out
}

func bit(set bool, n uint) byte {
	if set {
		return 1 << n
	}
	return 0
}

func appendOffset(out []byte, c *committedOffset) []byte {
	if c == nil {
		return append(out, 0xff)
	}
	text := c.Metadata[modelPlanPrefix:]
	return append(append(out, byte(c.Offset), byte(len(text))), text...)
}

// modelPlanPrefix is how much of a plan's text is the same in all: what stands before the version is, and so is topic id and rewind but for
// the version's digit, which the rest implies.
var modelPlanPrefix = len(Plan{TopicID: testTopic}.Metadata())

func appendPlans(out []byte, c *modelCommit) []byte {
	for _, plan := range c.plans {
		out = appendOffset(out, plan)
	}
	return out
}

func appendLane(out []byte, l *Lane) []byte {
	out = append(out, byte(l.offset), byte(l.position), byte(l.planAhead), byte(len(l.queue)), byte(len(l.batches)),
		bit(l.fresh, 0)|bit(!l.owing.IsZero(), 1)|bit(l.proposed != nil, 2))
	var last *unit
	for _, b := range l.batches {
		u := b.unit
		out = append(out, byte(b.First), byte(b.Last), byte(b.state)|bit(b.planned, 4)|bit(b.complete, 5)|bit(b.Ended == EndPlan, 6)|bit(u == last, 7),
			byte(len(b.Dead.Reason)), byte(b.Dead.Status), byte(len(b.Records)), bit(u.started, 0)|bit(u.registered, 1), byte(u.blockers), byte(u.pieces))
		last = u
	}
	if p := l.proposed; p != nil {
		out = append(out, byte(p.Offset), byte(len(p.Batches)))
		for _, b := range p.Batches {
			out = append(out, byte(b.Last), byte(len(b.Dead.Reason)), byte(b.Dead.Status))
		}
	}
	return out
}

// A stateHash is a state's, or of two that differ in the processes' names alone the lesser one.
type stateHash [2]uint64

var stateSeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

func (m *model) hash(buf *[]byte) stateHash {
	var least stateHash
	for i, order := range [][modelProcs]int{{0, 1}, {1, 0}} {
		*buf = m.encode((*buf)[:0], order)
		h := stateHash{maphash.Bytes(stateSeeds[0], *buf), maphash.Bytes(stateSeeds[1], *buf)}
		if i == 0 || h[0] < least[0] || h[0] == least[0] && h[1] < least[1] {
			least = h
		}
	}
	return least
}

// A kind of step.
type stepKind uint8

// The steps, in the order in which a world without faults takes them.
const (
	stepOrphan   stepKind = iota // a commit that nobody waits for is applied
	stepArrive                   // the coordinator takes or refuses the commit in flight
	stepAnswer                   // its answer comes
	stepCallback                 // the client calls onRevoked and onAssigned
	stepLearn                    // the client learns the generation and its assignment
	stepDiscover                 // the client learns that the group has forgotten it: onRevoked for all
	stepExpire                   // the group forgets a member: it left, or is silent for the session timeout
	stepJoin                     // a process joins
	stepAssign                   // a partition that nobody has is given to a member
	stepFetch                    // the plan of a lane is fetched
	stepLoad                     // and given to the lane
	stepTake                     // the endpoint takes a copy that is under way
	stepOK                       // an attempt's answer is 2xx
	stepRefuse                   // an attempt's answer refuses the content
	stepWrite                    // a dead letter is written
	stepBuried                   // and acknowledged
	stepBegin                    // a batch is sent, or begun to be written to the dead letters
	stepRead                     // events are read
	stepCompose                  // a commit is sent
	stepGiveUp                   // an attempt fails, and the batch is given up
	stepGood                     // below this come faults
	stepFail                     // an attempt fails
	stepUnknown                  // nobody knows what became of a commit
	stepCrash                    // a process dies
	stepMove                     // the group takes a partition away from its owner
	stepSilent                   // a client that was forgotten joins anew by itself and keeps its partitions
	stepDeny                     // the coordinator refuses a commit for certain
	stepReload                   // a lane begins anew
	stepEarly                    // rule fetchAfterAssignment taken out: plans are fetched before the join
	stepResend                   // rule noRetry taken out: the client sends a commit again
	stepStale                    // rule laneOfAssignment taken out: what a lane of an earlier assignment had waiting is sent
)

// A step is one thing that happens.
type step struct {
	kind stepKind
	proc uint8
	part uint8
	arg  uint8
}

// steps are all things that may happen next.
func (m *model) steps(out []step) []step {
	add := func(kind stepKind, proc, part, arg int) {
		if len(m.cfg.only) > 0 && m.isFault(kind, proc) && !slices.Contains(m.cfg.only, kind) {
			return
		}
		out = append(out, step{kind, uint8(proc), uint8(part), uint8(arg)})
	}
	fault := m.cfg.faults < 0 || m.spent < m.cfg.faults
	for i := range m.orphans {
		add(stepOrphan, 0, 0, i)
	}
	for part := range m.partitions() {
		e := &m.logs[part]
		for i := range e.underway {
			add(stepTake, 0, part, i)
		}
		for i := range e.writing {
			add(stepWrite, 0, part, i)
		}
		if m.owner[part] < 0 && m.settled(-1) {
			for i := range m.procs {
				if m.members[i] != "" {
					add(stepAssign, i, part, 0)
				}
			}
		}
		if o := int(m.owner[part]); o >= 0 && !m.moving[part] && m.members[1-o] != "" && fault && m.settled(-1) {
			add(stepMove, o, part, 0)
		}
	}
	for i, p := range m.procs {
		known := p.member != "" && p.member == m.members[i]
		if m.members[i] != "" && (fault || !known) {
			add(stepExpire, i, 0, 0)
		}
		if p.member == "" {
			if m.settled(i) {
				add(stepJoin, i, 0, 0)
			}
		} else if fault {
			add(stepCrash, i, 0, 0)
		}
		pending := p.lose != [modelPartitions]bool{} || p.gain != [modelPartitions]bool{} || p.forget
		switch {
		case p.calling || p.member == "":
		case pending:
			add(stepCallback, i, 0, 0)
		case !known:
			add(stepDiscover, i, 0, 0)
			if fault && m.settled(i) {
				for mask := range 1 << m.partitions() {
					if m.free(i, mask) {
						add(stepSilent, i, 0, mask)
					}
				}
			}
		case p.gen != m.gen:
			add(stepLearn, i, 0, 0)
		}
		if p.request != nil {
			if p.status == commitPending {
				add(stepArrive, i, 0, 0)
				if m.cfg.tooLarge && fault && m.accepts(p.request) {
					add(stepDeny, i, 0, modelPartitions+1)
				}
				if m.cfg.deny && fault {
					add(stepDeny, i, 0, modelPartitions)
					if m.partitions() > 1 && m.accepts(p.request) && p.request.plans[0] != nil && p.request.plans[1] != nil {
						add(stepDeny, i, 0, 0)
						add(stepDeny, i, 0, 1)
					}
				}
				if m.off(ruleNoRetry) {
					add(stepResend, i, 0, 0)
				}
			} else {
				add(stepAnswer, i, 0, 0)
			}
			if fault {
				add(stepUnknown, i, 0, 0)
			}
		}
		due := 0
		for part := range m.partitions() {
			l := p.lanes[modelKey(part)]
			if p.loads[part].wanted {
				switch {
				case !p.loads[part].read:
					add(stepFetch, i, part, 0)
				default:
					add(stepLoad, i, part, 0)
				}
			}
			if m.off(ruleLaneOfAssignment) && p.stale[part] != nil && l != nil && p.request == nil {
				add(stepStale, i, part, 0)
			}
			if l == nil || l.core == nil {
				continue
			}
			if m.cfg.reload && fault {
				add(stepReload, i, part, 0)
			}
			if _, want := p.want[l]; want || !l.core.CommitDue(epoch).IsZero() || m.off(ruleOneCommit) && p.request != nil && m.news(l.core) {
				due |= 1 << part
			}
			for j, b := range l.core.batches {
				if b.state != batchUnderway {
					continue
				}
				s := m.id(b)
				e := &m.logs[part]
				if b.Dead.Is() {
					if e.letters&m.mask(part, s) == m.mask(part, s) {
						add(stepBuried, i, part, j)
					}
					continue
				}
				if e.taken.has(s) {
					add(stepOK, i, part, j)
				}
				if m.poisoned(part, s) || m.cfg.fickle == exceptionFull || m.cfg.fickle == exceptionFenced && !e.taken.has(s) {
					add(stepRefuse, i, part, j)
				}
				if m.cfg.fails || m.lost(part, s) {
					add(stepFail, i, part, j)
				}
				if m.cfg.giveUp == exceptionFull || m.cfg.giveUp == exceptionFenced && !e.taken.has(s) {
					add(stepGiveUp, i, part, j)
				}
			}
			if b, _ := l.core.Next(epoch); b != nil {
				add(stepBegin, i, part, 0)
			}
			if l.core.Readable() && int(l.core.position) < len(m.cfg.logs[part]) {
				left := len(m.cfg.logs[part]) - int(l.core.position)
				for n := min(m.cfg.batchMax, left); n > 0; n-- {
					if n > 1 && l.core.filling() != nil {
						continue
					}
					add(stepRead, i, part, n)
				}
			}
		}
		if due != 0 && p.member != "" && (p.request == nil || m.off(ruleOneCommit) && !p.calling) {
			for mask := due; mask > 0; mask = (mask - 1) & due {
				add(stepCompose, i, 0, mask)
			}
		}
	}
	return out
}

// isFault reports whether a step counts among the faults.
func (m *model) isFault(kind stepKind, proc int) bool {
	return kind > stepFail && kind <= stepReload || kind == stepExpire && m.procs[proc].member == m.members[proc]
}

// news reports whether a lane has other things to say than what is on its way.
func (m *model) news(l *Lane) bool { return l.proposed != nil && !l.plan().Equal(*l.proposed) }

// settled reports whether the group may begin a new generation: all members but for one that joins have joined the last one, and have told
// their sessions of it.
func (m *model) settled(joins int) bool {
	for i, p := range m.procs {
		if i == joins || m.members[i] == "" {
			continue
		}
		if p.member != m.members[i] || p.gen != m.gen || p.calling || p.forget || p.lose != [modelPartitions]bool{} || p.gain != [modelPartitions]bool{} {
			return false
		}
	}
	return true
}

// free reports whether a process that joins could be given the partitions of the mask, all of which it believes to own.
func (m *model) free(proc, mask int) bool {
	for part := range m.partitions() {
		if mask&(1<<part) != 0 && (!m.procs[proc].has[part] || m.owner[part] >= 0 && int(m.owner[part]) != proc) {
			return false
		}
	}
	return true
}

func (m *model) accepts(c *modelCommit) bool {
	return m.members[c.proc] == c.member && (c.gen == m.gen || m.off(ruleGeneration) || m.off(ruleWaitsOrGeneration))
}

// id names a batch, as what the endpoint remembers it by.
func (m *model) id(b *Batch) span {
	first := b.First
	if m.off(ruleFirst) && b.Ended != EndPlan && len(b.Records) > 0 {
		first = b.Records[0].Offset
	}
	return span{int8(first), int8(b.Last)}
}

// mask are the events of a span.
func (m *model) mask(part int, s span) (mask uint16) {
	for o := int(s.first); o <= int(s.last); o++ {
		if m.cfg.logs[part][o].uids != "" {
			mask |= 1 << o
		}
	}
	return mask
}

// lost reports whether no copy of a batch is under way, and none was taken: an exception that is fenced has seen to that.
func (m *model) lost(part int, s span) bool {
	e := &m.logs[part]
	return !e.taken.has(s) && !e.underway.has(s) && !m.poisoned(part, s)
}

func (m *model) poisoned(part int, s span) bool {
	for o := s.first; o <= s.last; o++ {
		if m.cfg.logs[part][o].poison {
			return true
		}
	}
	return false
}

// A violation is a guarantee that does not hold.
type violation struct{ what string }

func (v *violation) Error() string { return v.what }

func broken(format string, args ...any) error { return &violation{fmt.Sprintf(format, args...)} }

// apply takes one step of m itself; an error is a violation.
func (m *model) apply(a step) error {
	err := m.take(a)
	m.orphans = slices.DeleteFunc(m.orphans, func(c *modelCommit) bool { return !m.accepts(c) })
	return err
}

func (m *model) take(a step) error {
	i, part := int(a.proc), int(a.part)
	p := m.procs[i]
	key := modelKey(part)
	e := &m.logs[part]
	l := p.lanes[key]
	name := string(rune('A' + i))
	if m.isFault(a.kind, i) {
		m.spent++
		if m.cfg.faults < 0 {
			m.spent = 0
		}
	}
	switch a.kind {
	case stepOrphan:
		c := m.orphans[a.arg]
		m.orphans = slices.Delete(m.orphans, int(a.arg), int(a.arg)+1)
		m.say("coordinator: a late commit of %c is applied: %s", 'A'+rune(c.proc), c)
		return m.commitPlans(c, -1)

	case stepArrive:
		if m.off(ruleComposedID) {
			c := *p.request
			c.member, c.gen = p.member, p.gen
			p.request = &c
		}
		if !m.accepts(p.request) {
			p.status = commitRefused
			m.say("coordinator: refuses %s's commit: it is no member of this generation", name)
			return nil
		}
		p.status = commitApplied
		m.say("coordinator: takes %s's commit: %s", name, p.request)
		return m.commitPlans(p.request, -1)

	case stepDeny:
		if int(a.arg) >= modelPartitions {
			p.status = commitRefused
			if int(a.arg) > modelPartitions {
				p.status = commitTooLarge
			}
			m.say("coordinator: refuses %s's commit for certain", name)
			return nil
		}
		p.status, p.denied = commitDenied, int8(a.arg)
		m.say("coordinator: refuses %s's plan for partition %d for certain", name, a.arg)
		return m.commitPlans(p.request, int(a.arg))

	case stepResend:
		m.orphan(p)
		m.say("%s's client sends the commit again", name)

	case stepAnswer:
		result := commitResult{refused: make(map[laneKey]error)}
		switch p.status {
		case commitRefused:
			result.notSent = errors.New("refused")
		case commitTooLarge:
			result.notSent = kerr.OffsetMetadataTooLarge
		case commitDenied:
			result.refused[modelKey(int(p.denied))] = errors.New("denied")
		case commitPending, commitApplied:
		}
		m.say("%s: its commit is answered", name)
		m.answer(i, result)

	case stepUnknown:
		if p.status == commitPending {
			m.orphan(p)
		}
		switch m.cfg.without {
		case ruleUnknown:
			m.say("%s: its commit times out, and it goes on as if that was refused", name)
			m.answer(i, commitResult{notSent: errors.New("unknown")})
		case ruleNewMember:
			m.say("%s: its commit times out, and it fetches the offsets again as the same member", name)
			m.answer(i, commitResult{unknown: errors.New("unknown")})
			for part := range m.partitions() {
				if l := p.lanes[modelKey(part)]; l != nil {
					m.assign(p, part, l.member)
				}
			}
		default:
			m.say("%s: its commit times out; its session ends", name)
			plans := p.request.plans
			m.answer(i, commitResult{unknown: errors.New("unknown")})
			m.endSession(i)
			for part, plan := range plans {
				if plan != nil && m.off(ruleFetchAfterAssignment) || m.off(ruleEveryLane) && part == 1 && plans[0] != nil && plan != nil {
					m.procs[i].early[part] = modelLoad{true, true, m.committed[part]}
					m.say("%s: fetches the offset of partition %d at once", name, part)
				}
			}
		}

	case stepCrash:
		m.say("%s: crashes", name)
		m.endSession(i)

	case stepCallback:
		m.callback(i, name)

	case stepLearn:
		m.learn(i)
		m.say("%s: learns of generation %d", name, m.gen)

	case stepDiscover:
		p.forget = true
		m.say("%s: learns that the group has forgotten it", name)
		m.callback(i, name)

	case stepExpire:
		m.forgetMember(i)
		m.say("coordinator: %s is no member any more", name)

	case stepJoin:
		m.join(i)
		m.learn(i)
		m.say("%s: joins as %s, generation %d", name, p.member, m.gen)

	case stepSilent:
		m.join(i)
		for part := range m.partitions() {
			if a.arg&(1<<part) != 0 {
				m.owner[part] = int8(i)
			}
		}
		m.learn(i)
		m.say("%s: its client was forgotten and joins as %s by itself, generation %d; %s", name, p.member, m.gen,
			map[bool]string{true: "it keeps a partition without a word", false: "it is given nothing"}[a.arg != 0])

	case stepAssign:
		m.gen++
		m.owner[part] = int8(i)
		m.say("coordinator: generation %d, partition %d is %s's", m.gen, part, name)

	case stepMove:
		m.gen++
		m.moving[part] = true
		m.say("coordinator: generation %d, %s has to let go of partition %d", m.gen, name, part)

	case stepFetch:
		p.loads[part].read, p.loads[part].committed = true, m.committed[part]
		if m.cfg.slowLoad {
			m.say("%s: the plan of partition %d is fetched: %s", name, part, planText(m.committed[part]))
			return nil
		}
		return m.load(p, part, name)

	case stepLoad:
		return m.load(p, part, name)

	case stepReload:
		m.say("%s: partition %d cannot be read; its lane begins anew", name, part)
		m.assign(p, part, l.member)

	case stepRead:
		if err := m.read(l.core, part, int(a.arg)); err != nil {
			return err
		}
		m.say("%s: reads partition %d up to %d; batches %s", name, part, l.core.position-1, lanePlan(l.core))

	case stepCompose:
		return m.compose(i, int(a.arg), name)

	case stepStale:
		p.request = &modelCommit{proc: i, member: p.member, gen: p.gen}
		p.request.plans[part] = p.stale[part]
		p.stale[part], p.status = nil, commitPending
		p.committing = []*lane{{laneKey: key, dead: true}}
		m.say("%s: commits what its lane of an earlier assignment had waiting: %s", name, p.request)

	case stepBegin:
		return m.begin(i, l, part, name)

	case stepTake:
		s := e.underway[a.arg]
		m.say("endpoint: takes %s of partition %d", s, part)
		return m.taken(part, s)

	case stepWrite:
		s := e.writing[a.arg]
		m.say("dead letters: %s of partition %d is written", s, part)
		return m.written(part, s)

	case stepOK:
		b := l.core.batches[a.arg]
		m.say("%s: %s of partition %d is answered 2xx", name, m.id(b), part)
		l.core.Done(b, epoch)
		m.advance(l)

	case stepBuried:
		b := l.core.batches[a.arg]
		m.say("%s: the dead letters of %s of partition %d are acknowledged", name, m.id(b), part)
		l.core.Done(b, epoch)
		m.advance(l)

	case stepFail:
		b := l.core.batches[a.arg]
		m.say("%s: %s of partition %d has no answer", name, m.id(b), part)
		l.core.Retry(b, Answer{Verdict: VerdictRetry, Failure: FailureTimeout}, 0, epoch)
		m.advance(l)

	case stepRefuse:
		b := l.core.batches[a.arg]
		s := m.id(b)
		m.say("%s: %s of partition %d is answered 400", name, s, part)
		if !m.poisoned(part, s) {
			e.refused = e.refused.with(s)
			if m.cfg.fickle == exceptionFenced {
				e.underway = e.underway.without(s)
			}
		}
		l.core.Refuse(b, 400, epoch)
		m.changed(l.core, s)
		m.advance(l)

	case stepGiveUp:
		b := l.core.batches[a.arg]
		s := m.id(b)
		m.say("%s: %s of partition %d has no answer and is given up", name, s, part)
		e.gaveUp = e.gaveUp.with(s)
		if m.cfg.giveUp == exceptionFenced {
			e.underway = e.underway.without(s)
		}
		if m.off(ruleGivenUpWhole) && len(b.Records) > 1 {
			b.state = batchRefused
			l.core.halve()
		} else {
			l.core.GiveUp(b, 0, epoch)
		}
		m.changed(l.core, s)
		m.advance(l)

	case stepGood:
	}
	return nil
}

// changed takes out the rules on what must be committed first, after the batch with the offsets of s was halved or marked dead.
func (m *model) changed(l *Lane, s span) {
	for _, b := range l.batches {
		if b.state != batchWaiting || !s.has(int(b.First)) || !s.has(int(b.Last)) {
			continue
		}
		switch m.cfg.without {
		case ruleHalvesFirst, ruleHalvesInPlan:
			b.planned = b.planned || !b.Dead.Is()
		case ruleDeadFirst:
			b.planned = b.planned || b.Dead.Is()
		}
	}
}

// advance is what the session's advance does to a lane, but for what other steps do.
func (m *model) advance(l *lane) {
	l.core.Cut(epoch)
	calm(l.core)
}

// read reads events of the log into a lane, past the markers before each.
func (m *model) read(l *Lane, part, n int) error {
	log := m.cfg.logs[part]
	for n > 0 && int(l.position) < len(log) {
		o := l.position
		missing := 0
		if log[o].uids == "" {
			missing = l.Skip(o, epoch)
		} else {
			missing = l.Read(Record{Offset: o, Key: []byte(log[o].uids), Read: epoch})
			n--
		}
		if missing > 0 {
			return broken("a planned batch has lost its last record at %d", o)
		}
	}
	l.Cut(epoch)
	calm(l)
	return nil
}

// endSession ends a session without a word to anybody: what it had under way stays under way.
func (m *model) endSession(i int) {
	p := m.procs[i]
	if p.request != nil && p.status == commitPending {
		m.orphan(p)
	}
	m.procs[i] = &modelProc{claims: newClaims()}
}

// orphan leaves the commit in flight to the network.
func (m *model) orphan(p *modelProc) {
	for _, c := range m.orphans {
		if c.proc == p.request.proc && c.member == p.request.member && c.gen == p.request.gen && bytes.Equal(appendPlans(nil, c), appendPlans(nil, p.request)) {
			return
		}
	}
	m.orphans = append(m.orphans, p.request)
}

// answer is what the session's committed does.
func (m *model) answer(i int, result commitResult) {
	p := m.procs[i]
	p.request, p.status, p.denied = nil, 0, 0
	a := p.answered(result, epoch)
	for _, l := range a.load {
		p.loads[l.partition] = modelLoad{wanted: true}
	}
	for _, r := range a.refused {
		if errors.Is(r.err, kerr.OffsetMetadataTooLarge) && r.core.Shorten() {
			m.say("   its lane plans less ahead")
		}
		m.advance(r.lane)
	}
	for _, l := range a.accepted {
		m.advance(l)
	}
	if len(a.settled) > 0 {
		m.returned(i)
	}
}

// callback is what the client does at the begin of a generation: onRevoked, and when that has returned onAssigned.
func (m *model) callback(i int, name string) {
	p := m.procs[i]
	revoked := false
	for part := range m.partitions() {
		if !p.lose[part] && !(p.forget && p.has[part]) {
			continue
		}
		revoked = true
		p.lose[part], p.has[part] = true, false
		if m.off(ruleRevokeDrops) {
			continue
		}
		l := p.lanes[modelKey(part)]
		if m.off(ruleLaneOfAssignment) && l != nil && l.core != nil && !l.core.CommitDue(epoch).IsZero() {
			plan := l.core.plan()
			p.stale[part] = &committedOffset{plan.Offset, plan.Metadata()}
		}
		p.drop(modelKey(part))
		p.loads[part] = modelLoad{}
	}
	if revoked {
		settled := make(chan struct{})
		p.release(settled)
		select {
		case <-settled:
			m.say("%s: onRevoked returns", name)
		default:
			if m.off(ruleRevokeWaits) || m.off(ruleComposedID) || m.off(ruleWaitsOrGeneration) {
				p.revoking = nil
				m.say("%s: onRevoked returns, though a commit is in flight", name)
				break
			}
			p.calling = true
			m.say("%s: onRevoked waits for the commit in flight", name)
			return
		}
	}
	m.returned(i)
}

// returned is what follows when onRevoked has returned: the partitions are free, and new ones are told.
func (m *model) returned(i int) {
	p := m.procs[i]
	p.calling = false
	for part := range m.partitions() {
		if p.lose[part] && int(m.owner[part]) == i && m.moving[part] {
			m.owner[part], m.moving[part] = -1, false
		}
	}
	p.lose = [modelPartitions]bool{}
	if p.forget {
		p.forget, p.member, p.gain = false, "", [modelPartitions]bool{}
		return
	}
	for part := range m.partitions() {
		if p.gain[part] {
			p.has[part] = true
			m.assign(p, part, p.member)
		}
	}
	p.gain = [modelPartitions]bool{}
}

// assign is what the session's assigned does.
func (m *model) assign(p *modelProc, part int, member string) {
	key := modelKey(part)
	p.drop(key)
	p.loads[part] = modelLoad{}
	l := &lane{laneKey: key, member: member}
	p.lanes[key] = l
	now := []*lane{l}
	if !m.off(ruleReloadWaits) {
		now = p.loadable(now)
	}
	for _, l := range now {
		p.loads[l.partition] = modelLoad{wanted: true}
		if p.early[l.partition].read {
			p.loads[l.partition], p.early[l.partition] = p.early[l.partition], modelLoad{}
		}
	}
}

// learn is what a member's client learns from a generation.
func (m *model) learn(i int) {
	p := m.procs[i]
	p.gen = m.gen
	for part := range m.partitions() {
		mine := int(m.owner[part]) == i && !m.moving[part]
		p.lose[part], p.gain[part] = p.has[part] && !mine, mine && !p.has[part]
	}
}

// forgetMember has the group forget a process's membership.
func (m *model) forgetMember(i int) {
	m.members[i] = ""
	for part := range m.partitions() {
		if int(m.owner[part]) == i {
			m.owner[part], m.moving[part] = -1, false
		}
	}
}

// join makes a process a new member, and begins a generation. A member id that it had is expelled, since nobody joins with it.
func (m *model) join(i int) {
	m.forgetMember(i)
	m.joined++
	m.gen++
	m.members[i] = fmt.Sprintf("%c%d", 'A'+i, m.joined)
	m.procs[i].member = m.members[i]
}

// load is what the session's loaded does.
func (m *model) load(p *modelProc, part int, name string) error {
	l := p.lanes[modelKey(part)]
	load := p.loads[part]
	p.loads[part] = modelLoad{}
	end := int64(len(m.cfg.logs[part]))
	r, err := resume(load.committed, testTopic, 0, end, 0, epoch.Unix())
	if err != nil {
		return broken("a plan cannot be read: %v", err)
	}
	if r.note != resumePlan && r.note != resumeStart {
		return broken("a lane begins with the note %s", r.note)
	}
	if m.off(ruleDeadNotSent) {
		for i := range r.plan.Batches {
			r.plan.Batches[i].Dead = Dead{}
		}
	}
	l.core = NewLane(m.laneConfig(), r.plan, r.fresh, r.changed, epoch)
	if m.off(ruleDeadFirst) {
		m.changed(l.core, span{0, int8(end)})
	}
	if !m.cfg.lazyRead {
		for l.core.filling() != nil {
			if err := m.read(l.core, part, 1); err != nil {
				return err
			}
		}
	}
	m.advance(l)
	m.say("%s: partition %d begins with %s", name, part, planText(load.committed))
	return nil
}

// compose is what the session's commit does.
func (m *model) compose(i, mask int, name string) error {
	p := m.procs[i]
	if m.off(ruleOneCommit) && p.request != nil {
		if p.status == commitPending {
			m.orphan(p)
		}
		for _, l := range p.committing {
			if l.core != nil {
				l.core.proposed = nil
			}
		}
		p.committing, p.request = nil, nil
	}
	for part := range m.partitions() {
		l := p.lanes[modelKey(part)]
		if mask&(1<<part) == 0 || l == nil {
			continue
		}
		p.want[l] = struct{}{}
		if m.off(ruleMember) {
			l.member = p.member
		}
	}
	plans, err := p.propose(p.member, epoch)
	if err != nil {
		m.say("%s: its member id has changed; its session ends", name)
		m.endSession(i)
		return nil
	}
	c := &modelCommit{proc: i, member: p.member, gen: p.gen}
	for key, plan := range plans {
		core := p.lanes[key].core
		plan = m.mangle(core, plan)
		c.plans[key.partition] = &committedOffset{plan.Offset, plan.Metadata()}
		if m.off(rulePlanFirst) {
			proposed := core.proposed
			core.Committed()
			core.proposed = proposed
		}
		calm(core)
	}
	p.request, p.status = c, commitPending
	m.say("%s: commits %s", name, c)
	return nil
}

// mangle takes out the rules on what a plan says.
func (m *model) mangle(l *Lane, plan Plan) Plan {
	switch m.cfg.without {
	case ruleOffsetInOrder:
		for i := len(l.batches) - 1; i >= 0; i-- {
			if l.batches[i].state == batchDone {
				plan.Offset, plan.Batches = l.batches[i].Last+1, slices.Clone(plan.Batches[i+1:])
				return plan
			}
		}
	case ruleDoneStays:
		var left []Planned
		for i, b := range l.batches {
			if b.state != batchDone {
				left = append(left, plan.Batches[i])
			}
		}
		plan.Batches = left
	case ruleHalvesInPlan:
		var left []Planned
		for i, b := range l.batches {
			if i+1 == len(l.batches) || l.batches[i+1].unit != b.unit {
				left = append(left, plan.Batches[i])
			}
		}
		plan.Batches = left
	case ruleDeadInPlan:
		plan.Batches = slices.Clone(plan.Batches)
		for i := range plan.Batches {
			plan.Batches[i].Dead = Dead{}
		}
	}
	return plan
}

// commitPlans has the coordinator hold the plans of c, but for that of one partition.
func (m *model) commitPlans(c *modelCommit, but int) error {
	for part, plan := range c.plans {
		if plan == nil || part == but {
			continue
		}
		m.committed[part] = plan
		e := &m.logs[part]
		done := e.events() | e.letters
		for o := range int(plan.Offset) {
			if done&(1<<o) == 0 && m.cfg.logs[part][o].uids != "" {
				return broken("event %d of partition %d is lost: the committed offset is %d, and it was neither taken nor written to the dead letters", o, part, plan.Offset)
			}
		}
	}
	return nil
}

// begin sends the batch that is next, or begins to write it to the dead letters.
func (m *model) begin(i int, l *lane, part int, name string) error {
	b, _ := l.core.Next(epoch)
	s := m.id(b)
	e := &m.logs[part]
	content := uint16(0)
	for _, r := range b.Records {
		content |= 1 << r.Offset
	}
	if content != m.mask(part, s) {
		return broken("%s of partition %d has the wrong content", s, part)
	}
	owner := m.members[i] == l.member && int(m.owner[part]) == i
	if owner && m.cfg.without == "" && !m.planned(part, b) {
		return broken("%s begins %s of partition %d, and the plan that is committed does not say so: %s", name, s, part, planText(m.committed[part]))
	}
	l.core.Begin(b)
	done := e.events() | e.letters
	for o := range int(s.first) {
		if done&(1<<o) == 0 && m.shares(part, o, s) {
			return broken("%s sends %s of partition %d before event %d of the same uid is done", name, s, part, o)
		}
	}
	if b.Dead.Is() {
		if e.letters&content != content {
			e.writing = e.writing.with(s)
		}
		m.say("%s: writes %s of partition %d to the dead letters (%s)", name, s, part, b.Dead.Reason)
		return nil
	}
	m.say("%s: sends %s of partition %d", name, s, part)
	fenced := m.cfg.fickle == exceptionFenced && e.refused.has(s) || m.cfg.giveUp == exceptionFenced && e.gaveUp.has(s)
	if !e.taken.has(s) && !m.poisoned(part, s) && (owner || !fenced) {
		e.underway = e.underway.with(s)
	}
	return nil
}

// planned reports whether the plan that is committed has b, with its mark.
func (m *model) planned(part int, b *Batch) bool {
	c := m.committed[part]
	if c == nil {
		return false
	}
	p, _, err := ParsePlan(c.Offset, c.Metadata)
	if err != nil {
		return false
	}
	first := p.Offset
	for _, planned := range p.Batches {
		if first == b.First && planned.Last == b.Last && planned.Dead.Is() == b.Dead.Is() {
			return true
		}
		first = planned.Last + 1
	}
	return false
}

// shares reports whether the event at o has a uid with one of s.
func (m *model) shares(part, o int, s span) bool {
	for x := s.first; x <= s.last; x++ {
		if strings.ContainsAny(m.cfg.logs[part][x].uids, m.cfg.logs[part][o].uids) {
			return true
		}
	}
	return false
}

// taken has the endpoint take a request that it has not taken before under the same id.
func (m *model) taken(part int, s span) error {
	e := &m.logs[part]
	before := e.events()
	e.underway, e.taken = e.underway.without(s), e.taken.with(s)
	for o := int(s.first); o <= int(s.last); o++ {
		uids := m.cfg.logs[part][o].uids
		if uids == "" {
			continue
		}
		if before&(1<<o) != 0 {
			if err := m.unless(e, o, shapeTwice, "the endpoint takes event %d of partition %d twice, under two ids", o, part); err != nil {
				return err
			}
			continue
		}
		if e.letters&(1<<o) != 0 {
			if err := m.unless(e, o, shapeBoth, "the endpoint takes event %d of partition %d, which stands in the dead letters", o, part); err != nil {
				return err
			}
		}
		for later := o + 1; later < len(m.cfg.logs[part]); later++ {
			if before&(1<<later) != 0 && strings.ContainsAny(m.cfg.logs[part][later].uids, uids) {
				if err := m.unless(e, o, shapeOrder, "the endpoint takes event %d of partition %d after event %d of the same uid", o, part, later); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// written has a dead letter be written.
func (m *model) written(part int, s span) error {
	e := &m.logs[part]
	e.writing = e.writing.without(s)
	e.letters |= m.mask(part, s)
	for o := int(s.first); o <= int(s.last); o++ {
		if e.events()&m.mask(part, s)&(1<<o) != 0 {
			if err := m.unless(e, o, shapeBoth, "event %d of partition %d is written to the dead letters, and the endpoint has taken it", o, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// unless is a violation, unless one of the two exceptions excuses it.
func (m *model) unless(e *endpointLog, offset int, how shape, format string, args ...any) error {
	if m.excuses(e, offset, how) {
		m.excused = fmt.Sprintf(format, args...)
		return nil
	}
	return broken(format, args...)
}

// finish takes steps without faults until none is left; an error says what is not done then.
func (m *model) finish() error {
	var buf []step
	for range 500 {
		buf = m.steps(buf[:0])
		best := -1
		for i, a := range buf {
			if !m.faultless(a) {
				continue
			}
			if best < 0 || a.kind < buf[best].kind {
				best = i
			}
		}
		if best < 0 {
			return m.finished()
		}
		if err := m.apply(buf[best]); err != nil {
			return err
		}
	}
	return broken("without faults the work does not end")
}

// faultless reports whether a step is one of a world in which no fault happens any more.
func (m *model) faultless(a step) bool {
	p := m.procs[a.proc]
	switch a.kind {
	case stepExpire:
		return p.member != m.members[a.proc]
	case stepRefuse:
		return m.poisoned(int(a.part), m.id(p.lanes[modelKey(int(a.part))].core.batches[a.arg]))
	case stepGiveUp:
		return false
	case stepFail:
		return m.lost(int(a.part), m.id(p.lanes[modelKey(int(a.part))].core.batches[a.arg]))
	}
	return a.kind < stepGood
}

func (m *model) finished() error {
	for part, log := range m.cfg.logs {
		e := &m.logs[part]
		done := e.events() | e.letters
		for o := range log {
			if log[o].uids != "" && done&(1<<o) == 0 {
				return broken("without faults event %d of partition %d is never done", o, part)
			}
		}
		c := m.committed[part]
		if c == nil || int(c.Offset) != len(log) || len(c.Metadata) != modelPlanPrefix {
			return broken("without faults partition %d ends with the plan %s", part, planText(c))
		}
	}
	return nil
}

func (c *modelCommit) String() string {
	var parts []string
	for part, plan := range c.plans {
		if plan != nil {
			parts = append(parts, fmt.Sprintf("partition %d: %s", part, planText(plan)))
		}
	}
	return fmt.Sprintf("%s (as %s, generation %d)", strings.Join(parts, "; "), c.member, c.gen)
}

func planText(c *committedOffset) string {
	if c == nil {
		return "nothing"
	}
	p, _, err := ParsePlan(c.Offset, c.Metadata)
	if err != nil {
		return err.Error()
	}
	words := []string{fmt.Sprintf("offset %d", p.Offset)}
	first := p.Offset
	for _, b := range p.Batches {
		words = append(words, span{int8(first), int8(b.Last)}.String())
		if b.Dead.Is() {
			words = append(words, "dead")
		}
		first = b.Last + 1
	}
	return strings.Join(words, " ")
}

func lanePlan(l *Lane) string {
	p := l.plan()
	return planText(&committedOffset{p.Offset, p.Metadata()})
}
