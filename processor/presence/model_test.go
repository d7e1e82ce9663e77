package presence

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/offhook/offhook/schemas"
)

// model is the table as one would write it without a thought of cost: a list of all that was ever heard of, walked as
// a whole for every question. It is written from docs/design.md and shares nothing with the table.
type model struct {
	memory     int64
	background bool // OFFHOOK_BACKGROUND_IS_ONLINE
	conns      []modelConn
	starts     []modelStart
}

type modelConn struct {
	uid, node, id string
	open          bool
	flag          uint8
	version       int64
	closedOnline  int64 // of a close: the version that was closed
	made          int64 // of a close: inbox time
	openedAt      int64 // -1: unknown
	background    bool
	sign          int64 // inbox offset of the last sign of life
}

type modelStart struct {
	node    string
	t, made int64
}

// modelResult is what an event does. Writes are in the words of the model: the connection or node, and its state.
type modelResult struct {
	outcome Outcome
	items   []string
	writes  []string
}

func (m *model) clone() *model {
	return &model{m.memory, m.background, slices.Clone(m.conns), slices.Clone(m.starts)}
}

func (c modelConn) String() string {
	if c.open {
		return fmt.Sprintf("%s/%s/%s open flag=%d version=%d opened_at=%d background=%t", c.uid, c.node, c.id, c.flag, c.version, c.openedAt, c.background)
	}
	return fmt.Sprintf("%s/%s/%s closed flag=%d version=%d opened=%d at %d opened_at=%d background=%t", c.uid, c.node, c.id, c.flag, c.version, c.closedOnline, c.made, c.openedAt, c.background)
}

func (s modelStart) String() string {
	return fmt.Sprintf("node %s started %d at %d", s.node, s.t, s.made)
}

// modelItem makes the item of c's change from a walk over the whole list.
func (m *model) item(c modelConn, flag uint8, online int) string {
	device, total := 0, 0
	for _, o := range m.conns {
		if o.uid == c.uid && o.open {
			total++
			if o.flag == flag {
				device++
			}
		}
	}
	return fmt.Sprintf("%s-%d-%d-%d-%d-%d", c.uid, flag, online, schemas.ID(c.id).Number(), device, total)
}

func (m *model) take(uid, node, id string) (modelConn, bool) {
	for i, c := range m.conns {
		if c.uid == uid && c.node == node && c.id == id {
			m.conns = slices.Delete(slices.Clone(m.conns), i, i+1)
			return c, true
		}
	}
	return modelConn{uid: uid, node: node, id: id, openedAt: -1}, false
}

func (m *model) apply(c *schemas.Connection, now, offset int64) modelResult {
	node := string(c.NodeID)
	if c.Type == schemas.Heartbeat && c.UID == "" {
		for _, s := range m.starts {
			if s.node == node && now < s.made+m.memory && c.Time < s.t {
				return modelResult{outcome: "stale"}
			}
		}
		for i := range m.conns {
			if m.conns[i].open && m.conns[i].node == node {
				m.conns[i].sign = offset
			}
		}
		return modelResult{outcome: "node_heartbeat"}
	}
	if c.Type == schemas.NodeStarted {
		for i, s := range m.starts {
			if s.node == node {
				if now < s.made+m.memory && c.Time <= s.t {
					return modelResult{outcome: "start_repeated"}
				}
				m.starts = slices.Delete(slices.Clone(m.starts), i, i+1)
				break
			}
		}
		s := modelStart{node, c.Time, now}
		m.starts = append(m.starts, s)
		r := modelResult{outcome: "node_started", writes: []string{s.String()}}
		var hit []modelConn
		for _, o := range m.conns {
			if o.open && o.node == node && o.version <= c.Time {
				hit = append(hit, o)
			}
		}
		sort.SliceStable(hit, func(i, j int) bool {
			if hit[i].uid != hit[j].uid {
				return hit[i].uid < hit[j].uid
			}
			return schemas.ID(hit[i].id).Compare(schemas.ID(hit[j].id)) < 0
		})
		for _, h := range hit {
			o, _ := m.take(h.uid, h.node, h.id)
			o.open, o.closedOnline, o.version, o.made = false, o.version, c.Time, now
			m.conns = append(m.conns, o)
			r.items = append(r.items, m.item(o, o.flag, 0))
			r.writes = append(r.writes, o.String())
		}
		return r
	}

	before := m.clone()
	o, known := m.take(c.UID, node, string(c.ConnID))
	ignore := func(why Outcome) modelResult {
		*m = *before
		return modelResult{outcome: why}
	}
	closeInForce := known && !o.open && now < o.made+m.memory
	opens := c.Type == schemas.Online || c.Type == schemas.Heartbeat && c.HasDeviceFlag

	// What both know of the generation decides before the time does.
	generation := 0
	if known && c.OpenedAt >= 0 && o.openedAt >= 0 {
		switch {
		case c.OpenedAt < o.openedAt:
			generation = -1
		case c.OpenedAt > o.openedAt:
			generation = 1
		}
	}
	older := generation < 0 || generation == 0 && c.Time < o.version
	startHolds := false
	for _, s := range m.starts {
		startHolds = startHolds || s.node == node && now < s.made+m.memory && c.Time < s.t
	}

	switch {
	case c.Type == schemas.Heartbeat && o.open && older:
		return ignore("stale")
	case c.Type == schemas.Heartbeat && o.open:
		was := o
		o.sign = offset
		r := modelResult{outcome: "alive"}
		if opens && generation > 0 {
			if startHolds {
				m.conns = append(m.conns, o)
				return modelResult{outcome: "stale"}
			}
			o.openedAt, o.version = c.OpenedAt, c.Time
		}
		if c.HasBackground {
			o.background = c.Background
		}
		m.conns = append(m.conns, o)
		switch {
		case o.openedAt != was.openedAt || o.version != was.version:
			r = modelResult{outcome: "refreshed", writes: []string{o.String()}}
		case o.background != was.background:
			r = modelResult{outcome: "background", writes: []string{o.String()}}
		}
		return r
	case c.Type == schemas.Heartbeat && !opens:
		return ignore("heartbeat_unknown")

	case o.open && older:
		return ignore("stale")
	case c.Type == schemas.Offline && o.open:
		o.open, o.closedOnline, o.version, o.made = false, o.version, c.Time, now
		if generation > 0 {
			o.closedOnline = c.Time
		}
		if c.OpenedAt >= 0 {
			o.openedAt = c.OpenedAt
		}
		m.conns = append(m.conns, o)
		return modelResult{"closed", []string{m.item(o, o.flag, 0)}, []string{o.String()}}
	case c.Type == schemas.Offline:
		if closeInForce && (generation < 0 || generation == 0 && c.Time <= o.version) {
			return ignore("not_open")
		}
		o.version, o.closedOnline, o.made, o.flag, o.openedAt, o.background = c.Time, c.Time, now, c.DeviceFlag, c.OpenedAt, false
		m.conns = append(m.conns, o)
		return modelResult{outcome: "not_open", writes: []string{o.String()}}

	case o.open:
		was := o
		o.flag, o.version, o.sign = c.DeviceFlag, c.Time, offset
		if c.OpenedAt >= 0 || generation != 0 || was.flag != o.flag {
			o.openedAt = c.OpenedAt
		}
		if c.HasBackground || generation != 0 || was.flag != o.flag {
			o.background = c.Background
		}
		r := modelResult{outcome: "refreshed"}
		if was.flag != o.flag {
			r = modelResult{outcome: "flag_changed", items: []string{m.item(was, was.flag, 0)}}
		}
		m.conns = append(m.conns, o)
		if was.flag != o.flag {
			r.items = append(r.items, m.item(o, o.flag, 1))
		}
		if was.String() != o.String() {
			r.writes = []string{o.String()}
		}
		return r
	}

	if closeInForce && older {
		return ignore("stale")
	}
	if closeInForce && generation == 0 && c.Time <= o.closedOnline {
		return ignore("copy")
	}
	if startHolds {
		return ignore("stale")
	}
	o = modelConn{uid: o.uid, node: o.node, id: o.id, open: true, flag: c.DeviceFlag, version: c.Time, openedAt: c.OpenedAt, background: c.Background, sign: offset}
	m.conns = append(m.conns, o)
	return modelResult{"opened", []string{m.item(o, o.flag, 1)}, []string{o.String()}}
}

// silent closes a connection that was asked to be closed, where it has given no sign of life since.
func (m *model) silent(x *schemas.Expire, now int64) modelResult {
	before := m.clone()
	o, known := m.take(x.UID, string(x.NodeID), string(x.ConnID))
	switch {
	case !known || !o.open:
		*m = *before
		return modelResult{outcome: "not_open"}
	case o.sign > x.Offset:
		*m = *before
		return modelResult{outcome: "heard"}
	}
	o.open, o.closedOnline, o.made = false, o.version, now
	m.conns = append(m.conns, o)
	return modelResult{"expired", []string{m.item(o, o.flag, 0)}, []string{o.String()}}
}

// begin has all connections give a sign of life: which signs came before it the table that begins does not know.
func (m *model) begin(offset int64) {
	for i := range m.conns {
		m.conns[i].sign = max(m.conns[i].sign, offset)
	}
}

// expire forgets all that is due; in which order a limit takes it is left to the golden traces.
func (m *model) expire(now int64) (writes []string) {
	m.conns = slices.DeleteFunc(slices.Clone(m.conns), func(c modelConn) bool {
		gone := !c.open && c.made+m.memory+60_000 <= now
		if gone {
			writes = append(writes, fmt.Sprintf("%s/%s/%s forgotten", c.uid, c.node, c.id))
		}
		return gone
	})
	m.starts = slices.DeleteFunc(slices.Clone(m.starts), func(s modelStart) bool {
		gone := s.made+m.memory+60_000 <= now
		if gone {
			writes = append(writes, fmt.Sprintf("node %s forgotten", s.node))
		}
		return gone
	})
	return writes
}

func (m *model) offline(uids []string) (off []string) {
	for _, uid := range uids {
		if !slices.ContainsFunc(m.conns, func(c modelConn) bool { return c.uid == uid && c.open && (m.background || !c.background) }) {
			off = append(off, uid)
		}
	}
	return off
}

func (m *model) all() []string {
	var all []string
	for _, c := range m.conns {
		all = append(all, c.String())
	}
	for _, s := range m.starts {
		all = append(all, s.String())
	}
	slices.Sort(all)
	return all
}

// tableAll is the same of a table.
func tableAll(t *Table) []string {
	c := contentsOf(t)
	var all []string
	for name, s := range c.Connections {
		all = append(all, name+" "+s)
	}
	for id, s := range c.Starts {
		all = append(all, modelStart{id, s.Time, s.InboxTime}.String())
	}
	slices.Sort(all)
	return all
}

// world is one random run: the table, the model, and a second table that never forgets.
type world struct {
	partial          int   // changes of a start in parts that are committed
	offset           int64 // of the last event in the inbox
	rules            Rules
	table, unexpired *Table
	model, committed *model
	before           contents // at the last commit
	log, uncommitted []Change
	clock            int64
	uids, nodes, ids []string
	span             int64 // event times
	recent           []schemas.Connection
	offlineUIDs      []string

	saw map[Outcome]int // and "index", "forgotten"
}

func newWorld(t *rapid.T, saw map[Outcome]int) *world {
	memory := rapid.SampledFrom([]int64{0, 20, 100}).Draw(t, "memory")
	w := &world{rules: Rules{CloseMemory: memory, BackgroundIsOnline: rapid.Bool().Draw(t, "background is online"), ClosesAtOnce: rapid.IntRange(0, 3).Draw(t, "closes at once")}, clock: 1000, saw: saw}
	w.table, w.unexpired = NewTable(w.rules), NewTable(w.rules)
	w.model = &model{memory: memory, background: w.rules.BackgroundIsOnline}
	w.committed = w.model.clone()
	w.before = contentsOf(w.table)
	w.span = rapid.SampledFrom([]int64{3, 20, 200}).Draw(t, "span")
	if rapid.Bool().Draw(t, "one user with many connections") {
		w.uids, w.nodes = []string{"u"}, []string{"1", "g"}
		for i := range 20 {
			w.ids = append(w.ids, strconv.Itoa(i))
		}
	} else {
		w.uids, w.nodes, w.ids = []string{"u", "v-1", "U"}, []string{"1", "2", "g"}, []string{"9", "10", "x", "y"}
	}
	if len(w.uids) == 1 { // near enough to where a user gets an index
		for i := range rapid.IntRange(indexFrom-2, indexFrom+2).Draw(t, "connections") {
			w.applyEvent(t, schemas.Connection{
				Type: schemas.Online, UID: "u", ConnID: schemas.ID(w.ids[i]), NodeID: "1", HasDeviceFlag: true, OpenedAt: -1,
			})
		}
	}
	w.offlineUIDs = append([]string{"nobody"}, w.uids...)
	return w
}

func (w *world) event(t *rapid.T) schemas.Connection {
	if len(w.recent) > 0 {
		switch rapid.IntRange(0, 5).Draw(t, "again") {
		case 0: // a copy of an earlier event, as a producer's retry or a second topic would bring it
			return rapid.SampledFrom(w.recent).Draw(t, "event")
		case 1, 2: // what comes close to an earlier event of the same connection
			c := rapid.SampledFrom(w.recent).Draw(t, "event")
			if c.UID != "" {
				c.Type = rapid.SampledFrom([]schemas.ConnectionType{schemas.Online, schemas.Offline}).Draw(t, "type")
				c.HasDeviceFlag = true
				if c.Type == schemas.Offline {
					c.HasBackground, c.Background = false, false
				}
			}
			c.Time += rapid.Int64Range(-1, 2).Draw(t, "later")
			return c
		}
	}
	c := schemas.Connection{
		Type:     rapid.SampledFrom([]schemas.ConnectionType{1, 1, 1, 1, 2, 2, 3, 3}).Draw(t, "type"),
		NodeID:   schemas.ID(rapid.SampledFrom(w.nodes).Draw(t, "node")),
		Time:     rapid.Int64Range(0, w.span).Draw(t, "time"),
		OpenedAt: -1,
	}
	if rapid.IntRange(0, 30).Draw(t, "node_started") == 0 {
		c.Type = schemas.NodeStarted
	} else {
		c.UID = rapid.SampledFrom(w.uids).Draw(t, "uid")
		c.ConnID = schemas.ID(rapid.SampledFrom(w.ids).Draw(t, "conn"))
		c.HasDeviceFlag = c.Type == schemas.Online || rapid.Bool().Draw(t, "has flag")
		if c.HasDeviceFlag {
			c.DeviceFlag = rapid.Uint8Range(0, 2).Draw(t, "flag")
		}
		if rapid.IntRange(0, 2).Draw(t, "has opened_at") == 0 {
			c.OpenedAt = rapid.Int64Range(0, 3).Draw(t, "opened_at")
		}
		if c.Type != schemas.Offline && rapid.IntRange(0, 2).Draw(t, "has background") == 0 {
			c.HasBackground, c.Background = true, rapid.Bool().Draw(t, "background")
		}
	}
	if c.Type == schemas.Heartbeat && rapid.IntRange(0, 5).Draw(t, "node's") == 0 {
		c.UID, c.ConnID, c.DeviceFlag, c.HasDeviceFlag, c.HasBackground, c.Background, c.OpenedAt = "", "", 0, false, false, false, -1
	}
	w.recent = append(w.recent, c)
	return c
}

func (w *world) apply(t *rapid.T) {
	for range rapid.IntRange(1, 12).Draw(t, "events") {
		w.applyEvent(t, w.event(t))
	}
}

func (w *world) applyEvent(t *rapid.T, c schemas.Connection) {
	// The producers' clocks differ, by less than a minute; sometimes much time passes.
	w.clock += rapid.SampledFrom([]int64{0, 0, 1, 1, 5, 30}).Draw(t, "passes")
	now := w.clock - rapid.SampledFrom([]int64{0, 0, 0, 1, 25}).Draw(t, "skew")

	var e Effects
	w.offset++
	outcome, more := w.table.Apply(&c, Mark{Time: now, Offset: w.offset}, &e)
	for more { // a start in parts, with commits, aborts and restores between them
		w.between(t, &e)
		var o Outcome
		if o, more = w.table.Apply(&c, Mark{Time: now, Offset: w.offset}, &e); o != OutcomeNodeClosing {
			t.Fatalf("a start goes on as %q", o)
		}
	}
	w.saw[outcome]++
	if !slices.Contains(Outcomes(), outcome) {
		t.Fatalf("outcome %q is not listed", outcome)
	}
	want := w.model.apply(&c, now, w.offset)
	got := modelResult{outcome: outcome}
	for _, ev := range e.Events {
		got.items = append(got.items, item(ev))
	}
	for _, ch := range e.Changes {
		got.writes = append(got.writes, describe(t, ch))
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(modelResult{})); diff != "" {
		t.Fatalf("%+v at %d (-model +table):\n%s", c, now, diff)
	}
	w.uncommitted = append(w.uncommitted, e.Changes[w.partial:]...)

	// A table that forgets nothing decides the same.
	var lazy Effects
	o, more := w.unexpired.Apply(&c, Mark{Time: now, Offset: w.offset}, &lazy)
	for more {
		_, more = w.unexpired.Apply(&c, Mark{Time: now, Offset: w.offset}, &lazy)
	}
	if o != outcome {
		t.Fatalf("%+v at %d: %q, and without Expire %q", c, now, outcome, o)
	}
	if diff := cmp.Diff(e.Events, lazy.Events); diff != "" {
		t.Fatalf("%+v at %d (-expiring +not):\n%s", c, now, diff)
	}
	if w.partial > 0 {
		w.commit(t)
		w.partial = 0
	}
}

// between is what may happen between the parts of a start: a commit, and another process that goes on.
func (w *world) between(t *rapid.T, e *Effects) {
	choice := rapid.IntRange(0, 2).Draw(t, "between")
	if choice == 0 {
		return
	}
	w.table.Commit()
	w.log, w.uncommitted = append(append(w.log, w.uncommitted...), e.Changes[w.partial:]...), nil
	w.partial = len(e.Changes)
	w.saw["parts"]++
	if choice == 2 {
		w.table = restored(t, w.rules, w.log)
		w.begin()
	}
}

// begin has a table that was restored hear from here on.
func (w *world) begin() {
	w.table.Begin(w.offset)
	w.model.begin(w.offset)
}

// silence closes what has been silent for long.
func (w *world) silence(t *rapid.T) {
	since := w.offset - rapid.Int64Range(-1, 10).Draw(t, "silent for")
	var due []schemas.Expire
	w.table.Sweep(1000, since, func(x schemas.Expire) { due = append(due, x) })
	w.table.swept = 0
	for _, x := range due {
		if o, known := w.model.clone().take(x.UID, string(x.NodeID), string(x.ConnID)); !known || !o.open || o.sign >= since {
			t.Fatalf("%+v is asked to be closed, and the model says: known %v, %v, last sign %d, since %d", x, known, o, o.sign, since)
		}
		want := w.model.silent(&x, w.clock)
		var e, lazy Effects
		got := modelResult{outcome: w.table.ExpireConnection(&x, w.clock, &e)}
		for _, ev := range e.Events {
			got.items = append(got.items, item(ev))
		}
		for _, ch := range e.Changes {
			got.writes = append(got.writes, describe(t, ch))
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(modelResult{})); diff != "" {
			t.Fatalf("%+v (-model +table):\n%s", x, diff)
		}
		if o := w.unexpired.ExpireConnection(&x, w.clock, &lazy); o != OutcomeExpired {
			t.Fatalf("%+v: without Expire %q", x, o)
		}
		w.uncommitted = append(w.uncommitted, e.Changes...)
		w.saw[OutcomeExpired]++
	}
}

func (w *world) expire(t *rapid.T) {
	w.clock += rapid.SampledFrom([]int64{0, ExpireSlack, ExpireSlack, ExpireSlack + 50}).Draw(t, "passes")
	limit := rapid.SampledFrom([]int{0, 1, 100, 100}).Draw(t, "limit")
	if limit < 100 { // part of what is due; the rest follows
		due := len(w.model.clone().expire(w.clock))
		var e Effects
		w.table.Expire(w.clock, limit, &e)
		if got := len(e.Changes); got != min(limit, due) {
			t.Fatalf("limit %d of %d due: %d were forgotten", limit, due, got)
		}
		w.expireAll(t, e.Changes)
		return
	}
	w.expireAll(t, nil)
}

func (w *world) expireAll(t *rapid.T, sofar []Change) {
	e := Effects{Changes: sofar}
	w.table.Expire(w.clock, 1000, &e)
	var got []string
	for _, ch := range e.Changes {
		got = append(got, describe(t, ch))
	}
	want := w.model.expire(w.clock)
	w.saw["forgotten"] += len(want)
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("expire at %d (-model +table):\n%s", w.clock, diff)
	}
	w.uncommitted = append(w.uncommitted, e.Changes...)
}

func (w *world) commit(*rapid.T) {
	w.table.Commit()
	w.unexpired.Commit()
	w.committed = w.model.clone()
	w.log, w.uncommitted = append(w.log, w.uncommitted...), nil
	w.before = contentsOf(w.table)
}

func (w *world) rollback(t *rapid.T) {
	w.table.Rollback()
	w.unexpired.Rollback()
	w.model = w.committed.clone()
	w.uncommitted = nil
	if diff := cmp.Diff(w.before, contentsOf(w.table)); diff != "" {
		t.Fatalf("rollback (-before +after):\n%s", diff)
	}
	for id, n := range w.table.byID {
		if !n.inUse() {
			t.Fatalf("rollback leaves node %s behind", id)
		}
	}
}

// restore goes on with a table made of the log, as another process would.
func (w *world) restore(t *rapid.T) {
	w.rollback(t)
	log := w.log
	if n := rapid.IntRange(0, len(log)).Draw(t, "compacted"); n > 0 {
		log = append(compacted(log[:n]), log[n:]...)
	}
	w.table = restored(t, w.rules, log)
	w.begin()
	if diff := cmp.Diff(w.before, contentsOf(w.table)); diff != "" {
		t.Fatalf("restore (-before +after):\n%s", diff)
	}
}

func (w *world) check(t *rapid.T) {
	check(t, w.table)
	if diff := cmp.Diff(w.model.all(), tableAll(w.table)); diff != "" {
		t.Fatalf("state (-model +table):\n%s", diff)
	}
	if diff := cmp.Diff(w.model.offline(w.offlineUIDs), w.table.AppendOffline(nil, w.offlineUIDs)); diff != "" {
		t.Fatalf("offline (-model +table):\n%s", diff)
	}
	for u := range w.table.users.all() {
		if u.index != nil {
			w.saw["index"]++
		}
	}
}

// The table does what the model does, on any sequence of events, commits, rollbacks, expiries and restores.
func TestModel(t *testing.T) {
	saw := map[Outcome]int{}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, saw)
		t.Repeat(map[string]func(*rapid.T){
			"apply":    w.apply,
			"apply2":   w.apply, // named thrice: actions are equally likely
			"apply3":   w.apply,
			"expire":   w.expire,
			"commit":   w.commit,
			"rollback": w.rollback,
			"restore":  w.restore,
			"silence":  w.silence,
			"":         w.check,
		})
	})
	// Else the test has lost what it is for.
	for _, o := range append(Outcomes(), "index", "forgotten", "parts") {
		if saw[o] == 0 && o != OutcomeHeard && o != OutcomeNodeClosing { // which other tests show
			t.Errorf("never seen: %s", o)
		}
	}
	t.Log(saw)
}
