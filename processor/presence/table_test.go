package presence

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/offhook/offhook/schemas"
)

var update = flag.Bool("update", false, "write the golden traces anew")

// A script drives a table, one step a line:
//
//	online UID CONN [node=ID] [flag=N] [t=MS] [at=MS]    offline and heartbeat alike; flag=0 must be said for a heartbeat to have one
//	node_started ID [t=MS] [at=MS]                       node_heartbeat alike
//	expire at=MS [limit=N]
//	offline_of UID...                                    AppendOffline
//	commit, rollback
//	restore                                              go on with a table restored from the changes committed so far
//
// t is the event's time, at the inbox's (default t). What a step does follows it: in a rule's test after "=>" as the
// outcome and the items, in a golden trace in indented lines that have the changes too.
type script struct {
	t     testing.TB
	table *Table
	rules Rules
	log   []Change // committed
	open  []Change // not yet

	offset int64 // of the last event in the inbox
}

type result struct {
	outcome Outcome
	items   []string
	changes []Change
	offline []string
}

func newScript(t testing.TB, r Rules) *script { return &script{t: t, rules: r, table: NewTable(r)} }

func (s *script) step(line string) result {
	s.t.Helper()
	verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	var args []string
	c := schemas.Connection{NodeID: "0", OpenedAt: -1}
	at, limit := int64(-1), 1000
	number := func(v string) int64 {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			s.t.Fatalf("step %q: %v", line, err)
		}
		return n
	}
	for f := range strings.FieldsSeq(rest) {
		name, v, ok := strings.Cut(f, "=")
		if !ok {
			args = append(args, f)
			continue
		}
		switch name {
		case "node":
			c.NodeID = schemas.ID(v)
		case "flag":
			c.DeviceFlag, c.HasDeviceFlag = uint8(number(v)), true
		case "t":
			c.Time = number(v)
		case "opened":
			c.OpenedAt = number(v)
		case "bg":
			c.Background, c.HasBackground = v == "true", true
		case "at":
			at = number(v)
		case "limit":
			limit = int(number(v))
		default:
			s.t.Fatalf("step %q: no setting %q", line, name)
		}
	}
	if at < 0 {
		at = c.Time
	}
	var e Effects
	var r result
	s.offset++
	switch verb {
	case "online", "offline", "heartbeat":
		c.Type = map[string]schemas.ConnectionType{"online": schemas.Online, "offline": schemas.Offline, "heartbeat": schemas.Heartbeat}[verb]
		c.HasDeviceFlag = c.HasDeviceFlag || verb == "online"
		c.UID, c.ConnID = args[0], schemas.ID(args[1])
		r.outcome, _ = s.table.Apply(&c, Mark{Time: at, Offset: s.offset}, &e)
	case "node_started", "node_heartbeat":
		c.Type = map[string]schemas.ConnectionType{"node_started": schemas.NodeStarted, "node_heartbeat": schemas.Heartbeat}[verb]
		c.NodeID = schemas.ID(args[0])
		r.outcome, _ = s.table.Apply(&c, Mark{Time: at, Offset: s.offset}, &e)
	case "expire":
		s.table.Expire(at, limit, &e)
	case "offline_of":
		r.offline = s.table.AppendOffline(nil, args)
	case "commit":
		s.table.Commit()
		s.log, s.open = append(s.log, s.open...), nil
	case "rollback":
		s.table.Rollback()
		s.open = nil
	case "restore":
		s.table = restored(s.t, s.rules, s.log)
		s.open = nil
	default:
		s.t.Fatalf("step %q: no such verb", line)
	}
	check(s.t, s.table)
	s.open = append(s.open, e.Changes...)
	r.changes = e.Changes
	for _, ev := range e.Events {
		r.items = append(r.items, item(ev))
	}
	return r
}

func item(ev schemas.OnlineStatus) string {
	online := 0
	if ev.Online {
		online = 1
	}
	return fmt.Sprintf("%s-%d-%d-%d-%d-%d", ev.UID, ev.DeviceFlag, online, ev.ConnID, ev.DeviceCount, ev.TotalCount)
}

func (r result) short() string {
	words := r.items
	if r.outcome != "" {
		words = append([]string{string(r.outcome)}, words...)
	}
	words = append(words, r.offline...)
	for _, c := range r.changes {
		if c.Value == nil {
			words = append(words, "forgotten")
		}
	}
	return strings.Join(words, " ")
}

func (r result) long(t testing.TB) string {
	var b strings.Builder
	if r.outcome != "" {
		fmt.Fprintf(&b, "  %s\n", r.outcome)
	}
	for _, i := range r.items {
		fmt.Fprintf(&b, "  event %s\n", i)
	}
	for _, uid := range r.offline {
		fmt.Fprintf(&b, "  is offline %s\n", uid)
	}
	for _, c := range r.changes {
		fmt.Fprintf(&b, "  write %s\n", describe(t, c))
	}
	return b.String()
}

// describe tells a change in one line.
func describe(t fataler, c Change) string {
	k, err := schemas.DecodePresenceKey(c.Key)
	if err != nil {
		t.Fatalf("decode key: %v", err)
	}
	name := fmt.Sprintf("%s/%s/%s", k.UID, k.NodeID, k.ConnID)
	if k.Kind == schemas.PresenceNodeStart {
		name = fmt.Sprintf("node %s", k.NodeID)
	}
	if c.Value == nil {
		return name + " forgotten"
	}
	if k.Kind == schemas.PresenceNodeStart {
		s, err := schemas.DecodeNodeStart(c.Value)
		if err != nil {
			t.Fatalf("decode node start: %v", err)
		}
		return fmt.Sprintf("%s started %d at %d", name, s.Time, s.InboxTime)
	}
	s, err := schemas.DecodeConnectionState(c.Value)
	if err != nil {
		t.Fatalf("decode connection state: %v", err)
	}
	return name + " " + describeState(s)
}

func describeState(s schemas.ConnectionState) string {
	if s.Open {
		return fmt.Sprintf("open flag=%d version=%d opened_at=%d background=%t", s.DeviceFlag, s.Version, s.OpenedAt, s.Background)
	}
	return fmt.Sprintf("closed flag=%d version=%d opened=%d at %d opened_at=%d background=%t",
		s.DeviceFlag, s.Version, s.Opened, s.InboxTime, s.OpenedAt, s.Background)
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func restored(t fataler, r Rules, log []Change) *Table {
	t.Helper()
	table := NewTable(r)
	for _, c := range log {
		if err := table.Restore(c.Key, c.Value); err != nil {
			t.Fatalf("restore: %v", err)
		}
	}
	return table
}

func compacted(log []Change) []Change {
	last := make(map[string]int)
	for i, c := range log {
		last[string(c.Key)] = i
	}
	var out []Change
	for i, c := range log {
		if last[string(c.Key)] == i {
			out = append(out, c)
		}
	}
	return out
}

// contents is all that a table knows, in a form that does not depend on how it came to know it.
type contents struct {
	Connections map[string]string // of both kinds
	Devices     map[string]map[uint8]int
	Starts      map[string]schemas.NodeStart
	CloseQueue  []string // in the order in which they expire
	StartQueue  []string
	Live, Users int
}

func contentsOf(t *Table) contents {
	c := contents{
		Connections: map[string]string{}, Devices: map[string]map[uint8]int{}, Starts: map[string]schemas.NodeStart{},
		Live: t.Connections(), Users: t.Users(),
	}
	name := func(uid string, n *node, id schemas.ID) string { return fmt.Sprintf("%s/%s/%s", uid, n.id, id) }
	for u := range t.users.all() {
		c.Devices[u.uid] = map[uint8]int{}
		for _, v := range t.users.connections(u) {
			num, text := t.users.id(v)
			c.Connections[name(u.uid, t.nodes[v.node], joinID(num, text))] = describeState(v.state())
			c.Devices[u.uid][v.flag] = t.users.devices(u, v.flag)
		}
	}
	for k, r := range t.closes {
		c.Connections[name(k.uid, k.node, joinID(k.num, k.text))] = describeState(r.state())
	}
	for id, n := range t.byID {
		if n.hasStart {
			c.Starts[string(id)] = n.start
		}
	}
	for _, i := range inOrder(&t.closeQueue) {
		k := i.e.key
		c.CloseQueue = append(c.CloseQueue, fmt.Sprint(i.time, " ", name(k.uid, k.node, joinID(k.num, k.text))))
	}
	for _, i := range inOrder(&t.startQueue) {
		c.StartQueue = append(c.StartQueue, fmt.Sprint(i.time, " ", i.e.id))
	}
	return c
}

func inOrder[E queued[E]](q *queue[E]) []queueItem[E] {
	items := slices.Clone(q.items)
	slices.SortFunc(items, func(a, b queueItem[E]) int {
		switch {
		case a.time != b.time:
			return int(a.time - b.time)
		case a.e.before(b.e):
			return -1
		}
		return 1
	})
	return items
}

// check checks that what the table keeps twice agrees.
func check(f fataler, t *Table) {
	f.Helper()
	live, seen := 0, 0
	nodeLive, nodeCloses := map[*node]int{}, map[*node]int{}
	for u := range t.users.all() {
		uid := u.uid
		if t.users.get(uid) != u {
			f.Fatalf("%s is not found", uid)
		}
		flags := map[uint8]int{}
		n, prev := 0, ref(0)
		for r, c := range t.users.connections(u) {
			n++
			flags[c.flag]++
			nodeLive[t.nodes[c.node]]++
			num, text := t.users.id(c)
			if got := t.users.find(u, &key{text: text, num: num, node: t.nodes[c.node]}); got != r {
				f.Fatalf("%s: connection %d is found at %d", uid, r, got)
			}
			if c.prev != prev {
				f.Fatalf("%s: connection %d comes after %d and says after %d", uid, r, prev, c.prev)
			}
			prev = r
		}
		live += n
		seen++
		for fl := range 256 {
			if got := t.users.devices(u, uint8(fl)); got != flags[uint8(fl)] {
				f.Fatalf("%s: %d devices of flag %d, want %d", uid, got, fl, flags[uint8(fl)])
			}
		}
		switch {
		case int(u.n) != n:
			f.Fatalf("%s has %d connections, counted %d", uid, n, u.n)
		case u.index == nil && n > indexFrom, u.index != nil && n <= indexTo:
			f.Fatalf("%s: %d connections, index: %t", uid, n, u.index != nil)
		case u.index != nil && len(u.index.at) != n:
			f.Fatalf("%s: %d connections, %d in the index", uid, n, len(u.index.at))
		}
	}
	if seen != t.users.n || len(t.users.slab.free) != int(t.users.slab.used)-seen {
		f.Fatalf("%d users, counted %d, and %d of %d places are free", seen, t.users.n, len(t.users.slab.free), t.users.slab.used)
	}
	if taken := int(t.users.conns.used) - len(t.users.conns.free); taken != live {
		f.Fatalf("%d connections, and %d places are taken", live, taken)
	}
	if live != t.live {
		f.Fatalf("%d live connections, counted %d", live, t.live)
	}
	for k, r := range t.closes {
		nodeCloses[k.node]++
		if r.key != k {
			f.Fatalf("close %v is kept under %v", r.key, k)
		}
		if i := t.closeQueue.items[r.at]; i.e != r || i.time != r.inboxTime {
			f.Fatalf("close %v is not where it says in the queue", k)
		}
	}
	starts := 0
	for id, n := range t.byID {
		if n.id != id || t.nodes[n.index] != n {
			f.Fatalf("node %s is kept as %s or not at its index", n.id, id)
		}
		if n.live != nodeLive[n] || n.closes != nodeCloses[n] {
			f.Fatalf("node %s: %d live and %d closes, counted %d and %d", id, nodeLive[n], nodeCloses[n], n.live, n.closes)
		}
		if !n.inUse() && !slices.Contains(t.unused, n) {
			f.Fatalf("node %s is unused and never let go", id)
		}
		if n.hasStart {
			starts++
			if i := t.startQueue.items[n.at]; i.e != n || i.time != n.start.InboxTime {
				f.Fatalf("node %s is not where it says in the queue", id)
			}
		}
	}
	if len(t.nodes) != len(t.byID)+len(t.free) {
		f.Fatalf("%d indices, %d nodes and %d free", len(t.nodes), len(t.byID), len(t.free))
	}
	if len(t.closeQueue.items) != len(t.closes) || len(t.startQueue.items) != starts {
		f.Fatalf("queues hold %d and %d of %d and %d", len(t.closeQueue.items), len(t.startQueue.items), len(t.closes), starts)
	}
	checkQueue(f, &t.closeQueue)
	checkQueue(f, &t.startQueue)
}

func checkQueue[E queued[E]](f fataler, q *queue[E]) {
	f.Helper()
	for i := 1; i < len(q.items); i++ {
		if q.less(i, (i-1)/2) {
			f.Fatalf("queue: %d is before its parent", i)
		}
	}
}

func TestRules(t *testing.T) {
	const memory = 1000
	tests := []struct{ name, script string }{
		{"online opens, and counts devices of the flag and of the user", `
			online u 1 flag=1 t=10 => opened u-1-1-1-1-1
			online u 2 flag=1 t=10 => opened u-1-1-2-2-2
			online u 3 flag=0 t=10 => opened u-0-1-3-1-3
			online v 1 flag=0 t=10 => opened v-0-1-1-1-1`},
		{"uid, node and conn_id name a connection", `
			online u 1 node=1 t=10 => opened u-0-1-1-1-1
			online u 1 node=2 t=10 => opened u-0-1-1-2-2
			online u 1 node=a t=10 => opened u-0-1-1-3-3
			offline u 1 node=b t=20 => not_open
			offline u 1 node=2 t=20 => closed u-0-0-1-2-2`},
		{"a conn_id that is no integer is told by the number made of it", `
			online u a t=10 => opened u-0-1-` + fmt.Sprint(schemas.ID("a").Number()) + `-1-1
			online u 07 t=10 => opened u-0-1-` + fmt.Sprint(schemas.ID("07").Number()) + `-2-2
			online u 7 t=10 => opened u-0-1-7-3-3
			offline u 07 t=10 => closed u-0-0-` + fmt.Sprint(schemas.ID("07").Number()) + `-2-2`},
		{"online of an open connection refreshes it and emits nothing", `
			online u 1 flag=1 t=10 => opened u-1-1-1-1-1
			online u 1 flag=1 t=20 => refreshed
			offline u 1 t=15 => stale
			offline u 1 t=20 => closed u-1-0-1-0-0`},
		{"online with another flag closes the old and opens the new", `
			online u 1 flag=1 t=10 => opened u-1-1-1-1-1
			online u 2 flag=1 t=10 => opened u-1-1-2-2-2
			online u 1 flag=0 t=10 => flag_changed u-1-0-1-1-1 u-0-1-1-1-2
			offline u 1 t=10 => closed u-0-0-1-0-1`},
		{"an older online of an open connection is stale, also with another flag", `
			online u 1 flag=1 t=10 => opened u-1-1-1-1-1
			online u 1 flag=1 t=9 => stale
			online u 1 flag=0 t=9 => stale`},
		{"offline closes, with the connection's own flag", `
			online u 1 flag=1 t=10 => opened u-1-1-1-1-1
			offline u 1 flag=0 t=10 => closed u-1-0-1-0-0
			offline u 1 t=10 => not_open`},
		{"an offline older than the latest online is stale", `
			online u 1 t=10 => opened u-0-1-1-1-1
			offline u 1 t=9 => stale
			offline u 1 t=10 => closed u-0-0-1-0-0`},
		{"an online older than a remembered close is stale", `
			online u 1 t=10 => opened u-0-1-1-1-1
			offline u 1 t=20 => closed u-0-0-1-0-0
			online u 1 t=19 at=30 => stale
			heartbeat u 1 flag=0 t=19 at=30 => stale
			online u 1 t=20 at=30 => opened u-0-1-1-1-1`},
		{"an online at or before the one that a close at the same time closed is a copy", `
			online u 1 t=10 => opened u-0-1-1-1-1
			offline u 1 t=10 => closed u-0-0-1-0-0
			online u 1 t=10 => copy
			heartbeat u 1 flag=0 t=10 => copy
			online u 1 t=11 => opened u-0-1-1-1-1`},
		{"a close of a connection never seen is remembered and wins at equal times", `
			offline u 1 t=20 => not_open
			online u 1 t=19 => stale
			online u 1 t=20 => copy
			online u 1 t=21 => opened u-0-1-1-1-1`},
		{"a later close of a connection that is closed is remembered in its place", `
			online u 1 t=10 => opened u-0-1-1-1-1
			offline u 1 t=20 => closed u-0-0-1-0-0
			offline u 1 t=30 => not_open
			online u 1 t=25 => stale
			online u 1 t=30 => copy
			online u 1 t=31 => opened u-0-1-1-1-1`},
		{"a copy of a close, or an older one, changes nothing", `
			online u 1 t=10 => opened u-0-1-1-1-1
			offline u 1 t=20 => closed u-0-0-1-0-0
			offline u 1 t=20 at=900 => not_open
			offline u 1 t=15 at=900 => not_open
			online u 1 t=20 => opened u-0-1-1-1-1`},
		{"a copy of a close does not lengthen its memory", `
			online u 1 t=10 => opened u-0-1-1-1-1
			offline u 1 t=20 => closed u-0-0-1-0-0
			offline u 1 t=20 at=900 => not_open
			online u 1 t=10 at=1020 => opened u-0-1-1-1-1`},
		{"a close has no effect from its inbox time and the close memory on", `
			offline u 1 t=20 at=100 => not_open
			online u 1 t=10 at=1099 => stale
			online u 1 t=10 at=1100 => opened u-0-1-1-1-1`},
		{"a close out of force is replaced by an older one", `
			offline u 1 t=20 at=100 => not_open
			offline u 1 t=10 at=1100 => not_open
			online u 1 t=10 at=1101 => copy
			online u 1 t=11 at=1101 => opened u-0-1-1-1-1`},
		{"a heartbeat of an open connection changes nothing, whatever it says", `
			online u 1 flag=1 t=10 => opened u-1-1-1-1-1
			heartbeat u 1 t=20 => alive
			heartbeat u 1 flag=0 t=20 => alive
			offline u 1 t=11 => closed u-1-0-1-0-0`},
		{"a heartbeat without device_flag opens nothing", `
			heartbeat u 1 t=10 => heartbeat_unknown
			offline_of u => u`},
		{"a heartbeat with device_flag opens as online does", `
			heartbeat u 1 flag=1 t=10 => opened u-1-1-1-1-1
			offline u 1 t=9 => stale
			offline u 1 t=10 => closed u-1-0-1-0-0`},
		{"a heartbeat of a node changes nothing", `
			online u 1 node=1 t=10 => opened u-0-1-1-1-1
			node_heartbeat 1 t=20 => node_heartbeat`},
		{"node_started closes what the node had at or before it, and nothing else", `
			online u 1 node=1 t=10 => opened u-0-1-1-1-1
			online u 2 node=1 t=20 => opened u-0-1-2-2-2
			online u 3 node=1 t=21 => opened u-0-1-3-3-3
			online u 4 node=2 t=10 => opened u-0-1-4-4-4
			node_started 1 t=20 => node_started u-0-0-1-3-3 u-0-0-2-2-2`},
		{"node_started closes in the order of uid and conn_id, integers by value and first", `
			online b 1 t=1 => opened b-0-1-1-1-1
			online a b t=1 => opened a-0-1-` + fmt.Sprint(schemas.ID("b").Number()) + `-1-1
			online a a t=1 => opened a-0-1-` + fmt.Sprint(schemas.ID("a").Number()) + `-2-2
			online a 10 t=1 => opened a-0-1-10-3-3
			online a 9 t=1 => opened a-0-1-9-4-4
			online B 1 t=1 => opened B-0-1-1-1-1
			node_started 0 t=1 => node_started B-0-0-1-0-0 a-0-0-9-3-3 a-0-0-10-2-2 a-0-0-` +
			fmt.Sprint(schemas.ID("a").Number()) + `-1-1 a-0-0-` + fmt.Sprint(schemas.ID("b").Number()) + `-0-0 b-0-0-1-0-0`},
		{"a node_started at or before the node's last start is ignored", `
			node_started 1 t=20 => node_started
			online u 1 node=1 t=20 => opened u-0-1-1-1-1
			node_started 1 t=20 => start_repeated
			node_started 1 t=19 => start_repeated
			node_started 2 t=19 => node_started
			node_started 1 t=21 => node_started u-0-0-1-0-0`},
		{"a node's start holds against older onlines and heartbeats that open, not at equal times", `
			node_started 1 t=20 => node_started
			online u 1 node=1 t=19 => stale
			heartbeat u 1 flag=0 node=1 t=19 => stale
			online u 1 node=2 t=19 => opened u-0-1-1-1-1
			online u 1 node=1 t=20 => opened u-0-1-1-2-2`},
		{"a close that a node's start made holds as any other", `
			online u 1 node=1 t=10 => opened u-0-1-1-1-1
			node_started 1 t=20 => node_started u-0-0-1-0-0
			online u 1 node=1 t=10 => stale
			online u 1 node=1 t=20 => opened u-0-1-1-1-1
			node_started 1 t=20 => start_repeated`},
		{"an online at its node's start that the start closed is a copy", `
			online u 1 node=1 t=20 => opened u-0-1-1-1-1
			node_started 1 t=20 => node_started u-0-0-1-0-0
			online u 1 node=1 t=20 => copy`},
		{"a node's start has no effect from its inbox time and the close memory on", `
			node_started 1 t=20 at=100 => node_started
			online u 1 node=1 t=10 at=1099 => stale
			online u 1 node=1 t=10 at=1100 => opened u-0-1-1-1-1
			node_started 1 t=15 at=1099 => start_repeated
			node_started 1 t=15 at=1100 => node_started u-0-0-1-0-0
			online v 1 node=1 t=14 at=2099 => stale
			online v 1 node=1 t=14 at=2100 => opened v-0-1-1-1-1`},
		{"expire forgets a minute after the last effect, the oldest first, at most limit", `
			offline u 1 t=20 at=101 => not_open
			offline u 2 t=20 at=100 => not_open
			node_started 1 t=20 at=100 => node_started
			expire at=61099 =>
			expire at=61100 => forgotten forgotten
			online u 2 t=20 at=1099 => opened u-0-1-2-1-1
			online u 1 t=20 at=1099 => copy
			expire at=61101 limit=0 =>
			expire at=61101 limit=1 => forgotten
			expire at=61101 limit=1 =>`},
		{"a close that was superseded is not forgotten at the first one's time", `
			offline u 1 t=20 at=100 => not_open
			online u 1 t=30 at=100 => opened u-0-1-1-1-1
			offline u 1 t=40 at=500 => closed u-0-0-1-0-0
			expire at=61499 =>
			expire at=61500 => forgotten`},
		{"offline are those without a connection", `
			online u 1 flag=1 t=10 => opened u-1-1-1-1-1
			offline_of v u w => v w
			offline u 1 t=10 => closed u-1-0-1-0-0
			offline_of v u w => v u w`},
		{"rollback takes back all since the last commit", `
			online u 1 flag=1 node=1 t=10 => opened u-1-1-1-1-1
			commit =>
			online u 2 flag=1 node=1 t=10 => opened u-1-1-2-2-2
			offline u 1 node=1 t=30 => closed u-1-0-1-1-1
			node_started 1 t=40 => node_started u-1-0-2-0-0
			rollback =>
			node_started 1 t=40 => node_started u-1-0-1-0-0
			rollback =>
			offline u 1 node=1 t=10 => closed u-1-0-1-0-0`},
		{"a restored table goes on where the other was", `
			online u 1 flag=1 node=1 t=10 => opened u-1-1-1-1-1
			online u 2 flag=2 node=1 t=10 => opened u-2-1-2-1-2
			offline u 1 node=1 t=30 => closed u-1-0-1-0-1
			node_started 2 t=10 => node_started
			commit =>
			restore =>
			online u 1 node=1 t=20 at=30 => stale
			online u 1 node=2 t=9 => stale
			online u 2 flag=2 node=1 t=10 => refreshed
			offline u 2 node=1 t=10 => closed u-2-0-2-0-0`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t, Rules{CloseMemory: memory})
			for line := range strings.Lines(strings.TrimSpace(tt.script)) {
				step, want, ok := strings.Cut(line, "=>")
				if !ok {
					t.Fatalf("no => in %q", line)
				}
				if got := s.step(step).short(); got != strings.TrimSpace(want) {
					t.Fatalf("%s\n got %s\nwant %s", strings.TrimSpace(step), got, strings.TrimSpace(want))
				}
			}
		})
	}
}

// Without a close memory nothing holds against a late event, and no start against another.
func TestNoCloseMemory(t *testing.T) {
	s := newScript(t, Rules{})
	for _, tt := range [][2]string{
		{"offline u 1 t=20", "not_open"},
		{"online u 1 t=10 at=20", "opened u-0-1-1-1-1"},
		{"node_started 0 t=20", "node_started u-0-0-1-0-0"},
		{"node_started 0 t=20", "node_started"},
		{"online u 1 t=10 at=20", "opened u-0-1-1-1-1"},
	} {
		if got := s.step(tt[0]).short(); got != tt[1] {
			t.Errorf("%s: got %q, want %q", tt[0], got, tt[1])
		}
	}
}

func TestAppendOfflineCountsTheFlagsThatAreSet(t *testing.T) {
	var flags [256]bool
	flags[0] = true
	for _, n := range []int{1, indexFrom + 4} { // without and with an index
		s := newScript(t, Rules{OnlineFlags: &flags})
		for i := range n {
			s.step(fmt.Sprintf("online web %d flag=1 t=1", i))
			s.step(fmt.Sprintf("online both %d flag=1 t=1", i))
		}
		s.step("online both 1000 flag=0 t=1")
		dst := s.table.AppendOffline([]string{"kept"}, []string{"both", "nobody", "web"})
		if want := []string{"kept", "nobody", "web"}; !slices.Equal(dst, want) {
			t.Errorf("%d connections: got %v, want %v", n, dst, want)
		}
		s.step("offline both 1000 t=1")
		if got := s.table.AppendOffline(nil, []string{"both"}); len(got) != 1 {
			t.Errorf("%d connections: web alone counts as online", n)
		}
	}
}

// What a refresh or a heartbeat writes is what makes the changelog large, and what it leaves out is what a restore
// gets wrong.
func TestWritesOnlyWhatChanged(t *testing.T) {
	tests := []struct {
		step   string
		writes int
	}{
		{"online u 1 flag=1 t=10", 1},
		{"online u 1 flag=1 t=10", 0},
		{"online u 1 flag=1 t=11", 1},
		{"online u 1 flag=1 t=11 bg=true", 1},
		{"online u 1 flag=1 t=11 bg=true opened=5", 1},
		{"online u 1 flag=1 t=5", 0},
		{"heartbeat u 1 flag=1 t=50", 0},
		{"heartbeat u 1 t=50 bg=false", 1},
		{"heartbeat u 2 t=50", 0},
		{"online u 1 flag=2 t=50", 1},
		{"offline u 1 t=40", 0},
		{"offline u 1 t=60", 1},
		{"offline u 1 t=60", 0},
		{"offline u 1 t=61", 1},
		{"online u 1 t=61", 0},
		{"offline v 1 t=61", 1},
		{"node_started 0 t=62", 1},
		{"node_started 0 t=62", 0},
		{"offline_of u v", 0},
	}
	s := newScript(t, Rules{CloseMemory: 1000})
	for _, tt := range tests {
		if got := len(s.step(tt.step).changes); got != tt.writes {
			t.Errorf("%s: %d writes, want %d", tt.step, got, tt.writes)
		}
	}
}

// The bytes of changes stay as they are while the same Effects takes further ones.
func TestChangesStayValid(t *testing.T) {
	table := NewTable(Rules{CloseMemory: 1000})
	var e Effects
	var kept, copies []Change
	for i := range 2000 {
		c := schemas.Connection{Type: schemas.Online, UID: strings.Repeat("u", 1+i%256), ConnID: schemas.ID(fmt.Sprint(i)), NodeID: "0", Time: int64(i)}
		e.Events, e.Changes = e.Events[:0], e.Changes[:0]
		table.Apply(&c, Mark{Time: 0}, &e)
		if len(e.Changes) != 1 {
			t.Fatalf("event %d: %d changes", i, len(e.Changes))
		}
		kept = append(kept, e.Changes[0])
		copies = append(copies, Change{bytes.Clone(e.Changes[0].Key), bytes.Clone(e.Changes[0].Value)})
		_ = append(kept[i].Key, "scribble"...)
	}
	for i := range kept {
		if !bytes.Equal(kept[i].Key, copies[i].Key) || !bytes.Equal(kept[i].Value, copies[i].Value) {
			t.Fatalf("change %d was overwritten", i)
		}
	}
}

// Rollback leaves nothing behind, however many connections a user has meanwhile.
func TestRollbackOfAManyConnectionUser(t *testing.T) {
	s := newScript(t, Rules{CloseMemory: 1000})
	for i := range indexTo + 2 {
		s.step(fmt.Sprintf("online u %d t=1", i))
	}
	s.step("offline v 1 t=1")
	s.step("node_started 7 t=1")
	s.step("commit")
	before := contentsOf(s.table)
	for i := range 3 * indexFrom {
		s.step(fmt.Sprintf("online u %d flag=%d node=%d t=2", i, i%3, i%2))
	}
	s.step("node_started 0 t=3")
	s.step("node_started 7 t=3")
	s.step("offline v 1 t=3 at=5")
	s.step("expire at=999999")
	s.step("rollback")
	if diff := cmp.Diff(before, contentsOf(s.table)); diff != "" {
		t.Errorf("after rollback (-before +after):\n%s", diff)
	}
	if len(s.table.byID) != 2 {
		t.Errorf("%d nodes are kept, want 2", len(s.table.byID))
	}
}

// Nodes whose names never come back (a pod's, say) leave nothing behind.
func TestNodesAreLetGo(t *testing.T) {
	s := newScript(t, Rules{CloseMemory: 1000})
	for i := range int64(100) {
		at := i * 100_000
		s.step(fmt.Sprintf("node_started pod-%d t=%d", i, at))
		s.step(fmt.Sprintf("online u 1 node=pod-%d t=%d", i, at))
		s.step(fmt.Sprintf("offline u 1 node=pod-%d t=%d", i, at))
		s.step(fmt.Sprintf("expire at=%d", at))
		s.step("commit")
	}
	if n := len(s.table.byID); n > 2 || len(s.table.nodes) > 3 {
		t.Errorf("%d nodes at %d indices are kept", n, len(s.table.nodes))
	}
	table := restored(t, s.rules, s.log)
	if n := len(table.byID); n > 2 || len(table.nodes) > 3 {
		t.Errorf("%d nodes at %d indices are kept by a restored table", n, len(table.nodes))
	}
}

func TestRestoreRefusesWhatItCannotRead(t *testing.T) {
	s := newScript(t, Rules{CloseMemory: 1000})
	conn := s.step("online u 1 t=1").changes[0]
	start := s.step("node_started 1 t=1").changes[0]
	tests := []struct {
		name       string
		key, value []byte
	}{
		{"no key", nil, conn.Value},
		{"half a key", conn.Key[:len(conn.Key)/2], conn.Value},
		{"half a connection", conn.Key, conn.Value[:len(conn.Value)/2]},
		{"half a node start", start.Key, start.Value[:len(start.Value)/2]},
	}
	for _, tt := range tests {
		table := NewTable(Rules{})
		if err := table.Restore(tt.key, tt.value); err == nil {
			t.Errorf("%s: no error", tt.name)
		}
	}
	marker := schemas.AppendPresenceKey(nil, schemas.PresenceKey{Kind: schemas.PresenceStartMarker})
	table := NewTable(Rules{})
	if err := table.Restore(marker, schemas.AppendStartMarker(nil, schemas.StartMarker{})); err != nil {
		t.Errorf("start marker: %v", err)
	}
}

func TestIDs(t *testing.T) {
	ids := []schemas.ID{
		"0", "1", "9", "10", "9223372036854775807", // integers
		"00", "01", "9223372036854775808", "18446744073709551616", "99999999999999999999", "-1", "1x", "a", "b", " 1",
	}
	for i, a := range ids {
		num, text := splitID(a)
		if integer := i < 5; integer != (text == "") {
			t.Errorf("%q: taken as integer: %t", a, text == "")
		}
		if text == "" && num != a.Number() {
			t.Errorf("%q: got %d, want %d", a, num, a.Number())
		}
		if got := joinID(num, text); got != a {
			t.Errorf("%q comes back as %q", a, got)
		}
		for _, b := range ids {
			bNum, bText := splitID(b)
			if got, want := compareIDs(num, text, bNum, bText), a.Compare(b); got != want {
				t.Errorf("compare %q and %q: got %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestOutcomesListsEachOnce(t *testing.T) {
	seen := map[Outcome]bool{}
	for _, o := range Outcomes() {
		seen[o] = true
	}
	if len(seen) != len(Outcomes()) || seen[""] {
		t.Errorf("Outcomes lists one twice or an empty one: %v", Outcomes())
	}
}

// The golden traces are read as documentation of what the stage writes: each step, and what it does.
func TestGoldenTraces(t *testing.T) {
	files, err := filepath.Glob("testdata/*.trace")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden traces: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := newScript(t, Rules{CloseMemory: 600_000})
			var got strings.Builder
			for line := range strings.Lines(string(want)) {
				switch {
				case strings.HasPrefix(line, "  "): // what a step did
				case strings.HasPrefix(line, "#"), strings.TrimSpace(line) == "":
					got.WriteString(line)
				default:
					got.WriteString(line)
					got.WriteString(s.step(line).long(t))
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); diff != "" && !*update {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
