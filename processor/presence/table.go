package presence

import (
	"fmt"
	"math"
	"strings"

	"github.com/offhook/offhook/schemas"
)

// Rules are the settings of the table's rules. The zero value remembers no close and counts every device flag.
type Rules struct {
	// CloseMemory is how long a close and a node's start hold against late events, in ms of inbox time
	// (OFFHOOK_CLOSE_MEMORY). 0: not at all.
	CloseMemory int64
	// OnlineFlags are the device flags that count as online for msg.offline; nil: all.
	OnlineFlags *[256]bool
	// BackgroundIsOnline says whether a connection in the background spares its user a msg.offline
	// (OFFHOOK_BACKGROUND_IS_ONLINE).
	BackgroundIsOnline bool
	// ClosesAtOnce is how many connections one call of Apply closes for a node's start at most; 0: all.
	ClosesAtOnce int
}

// ExpireSlack is how long after its last effect a close or node start is kept before Expire forgets it, in ms of
// inbox time. The inbox has several producers, whose clocks differ: a record that is stamped earlier than one before
// it must still find what is in force at its own time.
const ExpireSlack = 60_000

// Effects collects what the events of a transaction cause. The table only appends; to use one again, cut Events and
// Changes to length 0. The bytes of a Change are never written again, whatever becomes of the Effects.
type Effects struct {
	// Events are the user.onlinestatus events, in order.
	Events []schemas.OnlineStatus
	// Changes are the records for the presence topic, in order.
	Changes []Change

	chunk []byte // where the next change is encoded; changes share its memory and keep it alive
}

// Change is a record of the presence topic; a nil Value is a tombstone.
type Change struct{ Key, Value []byte }

const chunkSize = 8 << 10

// reserve makes room for size bytes, so that key and value of one change share a chunk; it returns where they begin.
func (e *Effects) reserve(size int) int {
	if cap(e.chunk)-len(e.chunk) < size {
		e.chunk = make([]byte, 0, max(chunkSize, size))
	}
	return len(e.chunk)
}

// change appends the change whose key was encoded at start and value at mid.
func (e *Effects) change(start, mid int) {
	end := len(e.chunk)
	e.Changes = append(e.Changes, Change{Key: e.chunk[start:mid:mid], Value: e.chunk[mid:end:end]})
}

// write appends the change that says what a connection is now, a tombstone where nothing is known of it.
func (e *Effects) write(s *slot) {
	id := s.id
	if id == "" {
		id = joinID(s.key.num, s.key.text)
	}
	// An estimate that is too small costs an allocation, no more.
	start := e.reserve(len(s.key.uid) + len(s.key.node.id) + len(id) + 96)
	e.chunk = schemas.AppendPresenceKey(e.chunk, schemas.PresenceKey{
		Kind: schemas.PresenceConnection, UID: s.key.uid, NodeID: s.key.node.id, ConnID: id,
	})
	mid := len(e.chunk)
	if !s.known {
		e.Changes = append(e.Changes, Change{Key: e.chunk[start:mid:mid]})
		return
	}
	e.chunk = schemas.AppendConnectionState(e.chunk, s.state)
	e.change(start, mid)
}

// writeStart appends the change that says what a node's last start is, a tombstone where there is none.
func (e *Effects) writeStart(n *node) {
	start := e.reserve(len(n.id) + 64)
	e.chunk = schemas.AppendPresenceKey(e.chunk, schemas.PresenceKey{Kind: schemas.PresenceNodeStart, NodeID: n.id})
	mid := len(e.chunk)
	if !n.hasStart {
		e.Changes = append(e.Changes, Change{Key: e.chunk[start:mid:mid]})
		return
	}
	e.chunk = schemas.AppendNodeStart(e.chunk, n.start)
	e.change(start, mid)
}

// Table is the presence table of one inbox partition: the live connections of its uids, the closes that are
// remembered, and the last start of each gateway node. It is pure and deterministic: no I/O, clock or goroutine, and
// not safe for concurrent use. A table that was restored from the changes of another behaves as that one does.
//
// Every change since the last Commit can be taken back by Rollback. An event costs the same however many connections
// its user has, but for node_started, which walks the table. Strings of the events are kept, and must not alias larger
// memory.
type Table struct {
	rules Rules

	users  users                // of each uid with a live connection
	closes map[key]*remembered  // of connections that are not live
	byID   map[schemas.ID]*node // each node that something here refers to
	nodes  []*node              // by node.index; nil where the index is free
	free   []uint32             // indices of nodes that are free
	live   int                  // live connections of all users

	closeQueue queue[*remembered] // all of closes, by inbox time
	startQueue queue[*node]       // nodes with a start, by inbox time

	// floor is the inbox offset where the table began to hear signs of life: those before it are not known one by one, and
	// count as if they had been there.
	floor int64
	// closing is what is left to close for a node's start; nil: none is under way. It is a memory of openedUntil alone, and
	// may be thrown away.
	closing *closing
	swept   ref // the last of the users that the sweep under way has looked at

	// undo, undoStarts and undoSigns hold what connections, node starts and the signs of nodes as a whole were before each
	// change since the last Commit, in order. They are independent of each other.
	undo       []undoConnection
	undoStarts []undoStart
	undoSigns  []undoSign
	// unused are nodes that may be free of references. They are let go only between transactions, so that
	// undo may point to them.
	unused []*node
}

// key names a connection.
type key struct {
	uid  string
	text string // the conn_id where it is no integer, else empty (no id is empty)
	num  uint64 // the conn_id where it is an integer
	node *node
}

// remembered is a close that is remembered.
type remembered struct {
	key        key
	version    int64
	opened     int64
	inboxTime  int64
	openedAt   int64
	at         int // its place in closeQueue
	flag       uint8
	background bool
}

// closing are the connections that a node's start closes, in order, those that are closed already left out.
type closing struct {
	node *node
	time int64
	keys []key
}

// node is a gateway node.
type node struct {
	id       schemas.ID
	index    uint32
	live     int // live connections of it
	closes   int // remembered closes of it
	hasStart bool
	listed   bool              // stands in Table.unused
	start    schemas.NodeStart // its last start, where hasStart
	at       int               // its place in startQueue, where hasStart
	sign     int64             // the inbox offset of its last heartbeat as a whole
}

type undoConnection struct {
	key   key
	known bool
	state schemas.ConnectionState
	sign  int64
}

type undoStart struct {
	node     *node
	hasStart bool
	start    schemas.NodeStart
}

// undoSign is what the sign of a node as a whole was. Where a connection of the node is closed for its silence before the sign, in
// one transaction, that close must come again. A connection's own sign needs no such care: a close that comes after it does
// so again, and one before it has left no connection to give it.
type undoSign struct {
	node *node
	sign int64
}

// NewTable returns an empty table.
func NewTable(r Rules) *Table {
	return &Table{
		rules:  r,
		closes: make(map[key]*remembered),
		byID:   make(map[schemas.ID]*node),
	}
}

// Connections is the number of live connections.
func (t *Table) Connections() int { return t.live }

// Users is the number of users that have a live connection.
func (t *Table) Users() int { return t.users.n }

// Remembered is the number of closes that are remembered.
func (t *Table) Remembered() int { return len(t.closes) }

// AppendOffline appends those of uids, in their order, that have no connection with a flag that counts as online.
func (t *Table) AppendOffline(dst, uids []string) []string {
	for _, uid := range uids {
		u := t.users.get(uid)
		if u == nil || !t.users.spares(u, &t.rules) {
			dst = append(dst, uid)
		}
	}
	return dst
}

// Expire forgets closes and node starts that have had no effect on records of inboxTime (Unix ms) for ExpireSlack or
// longer, the oldest first, at most limit of them, with a tombstone each. It changes nothing that Apply decides, but
// for a record stamped more than ExpireSlack before inboxTime. It takes O(log n) for each that it forgets.
func (t *Table) Expire(inboxTime int64, limit int, e *Effects) {
	due := func(at int64) bool { return inboxTime-ExpireSlack-t.rules.CloseMemory >= at }
	for ; limit > 0; limit-- {
		n, ok := t.startQueue.first()
		if !ok || !due(n.start.InboxTime) {
			break
		}
		t.setStart(n, false, schemas.NodeStart{})
		e.writeStart(n)
	}
	for ; limit > 0; limit-- {
		r, ok := t.closeQueue.first()
		if !ok || !due(r.inboxTime) {
			break
		}
		s := slot{key: r.key, closed: r, known: true, state: r.state()}
		t.put(&s, false, schemas.ConnectionState{})
		e.write(&s)
	}
}

// Commit makes the changes since the last Commit or Rollback lasting.
func (t *Table) Commit() {
	t.endTransaction()
}

// Rollback undoes the changes since the last Commit or Rollback.
func (t *Table) Rollback() {
	for i := len(t.undo) - 1; i >= 0; i-- {
		u := &t.undo[i]
		s := t.locate(u.key)
		s.sign = u.sign
		t.move(&s, u.known, u.state)
	}
	t.closing = nil
	for i := len(t.undoStarts) - 1; i >= 0; i-- {
		u := &t.undoStarts[i]
		t.moveStart(u.node, u.hasStart, u.start)
	}
	for i := len(t.undoSigns) - 1; i >= 0; i-- {
		u := &t.undoSigns[i]
		u.node.sign = u.sign
	}
	t.endTransaction()
}

// maxKeptUndo bounds what one large transaction leaves allocated.
const maxKeptUndo = 1 << 14

func (t *Table) endTransaction() {
	clear(t.undo)
	clear(t.undoStarts)
	clear(t.undoSigns)
	t.undo, t.undoStarts, t.undoSigns = t.undo[:0], t.undoStarts[:0], t.undoSigns[:0]
	if cap(t.undo) > maxKeptUndo {
		t.undo = nil
	}
	t.dropUnused()
}

// Restore applies one record of the presence topic; a nil value is a tombstone. The records of a key must come in
// their order and their format's version be checked, and it may be called only on a table that nothing else was applied to.
// Start markers are ignored. The error is a *schemas.VersionError for a record of a newer release, else says what cannot be
// decoded.
func (t *Table) Restore(key, value []byte) error {
	k, err := schemas.DecodePresenceKey(key)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	switch k.Kind {
	case schemas.PresenceConnection:
		var state schemas.ConnectionState
		if value != nil {
			if state, err = schemas.DecodeConnectionState(value); err != nil {
				return fmt.Errorf("restore: %w", err)
			}
		}
		s := t.find(k.UID, k.NodeID, k.ConnID)
		if value != nil || s.known {
			t.own(&s, k.NodeID)
			t.move(&s, value != nil, state)
		}
	case schemas.PresenceNodeStart:
		var start schemas.NodeStart
		if value != nil {
			if start, err = schemas.DecodeNodeStart(value); err != nil {
				return fmt.Errorf("restore: %w", err)
			}
		}
		if n := t.byID[k.NodeID]; n != nil || value != nil {
			t.moveStart(t.node(schemas.ID(strings.Clone(string(k.NodeID)))), value != nil, start)
		}
	}
	// Nothing can be rolled back here, and a long changelog may name nodes that are long gone.
	t.dropUnused()
	return nil
}

// slot is a connection's name and what the table knows of it.
type slot struct {
	key   key
	id    schemas.ID // the key's conn_id; empty where it has to be made of the key
	known bool
	state schemas.ConnectionState // where known
	sign  int64                   // of a live connection: the inbox offset of its last sign of life

	user   *user       // the uid's, nil where it has no live connection
	conn   ref         // the connection's, where it is live
	closed *remembered // where a close is remembered
}

func (s *slot) live() bool { return s.known && s.state.Open }

// find returns what is known of a connection. The node of its key is nil where the table has no such node.
func (t *Table) find(uid string, nodeID, connID schemas.ID) slot {
	k := key{uid: uid, node: t.byID[nodeID]}
	k.num, k.text = splitID(connID)
	s := t.locate(k)
	s.id = connID
	return s
}

func (t *Table) locate(k key) slot {
	s := slot{key: k, user: t.users.get(k.uid)}
	if k.node == nil {
		return s
	}
	if s.user != nil {
		if s.conn = t.users.find(s.user, &s.key); s.conn != 0 {
			c := t.users.conns.at(s.conn)
			s.known, s.state, s.sign = true, c.state(), c.sign
			return s
		}
	}
	if k.node.closes > 0 {
		if r := t.closes[k]; r != nil {
			s.closed, s.known, s.state = r, true, r.state()
		}
	}
	return s
}

// intern gives the slot's key its node, so that it can be put.
func (t *Table) intern(s *slot, nodeID schemas.ID) {
	if s.key.node == nil {
		s.key.node = t.node(nodeID)
	}
}

// own does so for a slot whose names share a copy of a record's key.
func (t *Table) own(s *slot, nodeID schemas.ID) {
	if s.user != nil {
		s.key.uid = s.user.uid
	} else {
		s.key.uid = strings.Clone(s.key.uid)
	}
	s.key.text = strings.Clone(s.key.text)
	if s.key.node == nil {
		s.key.node = t.node(schemas.ID(strings.Clone(string(nodeID))))
	}
}

// put changes what is known of a connection, and what Rollback has to do.
func (t *Table) put(s *slot, known bool, state schemas.ConnectionState) {
	t.undo = append(t.undo, undoConnection{key: s.key, known: s.known, state: s.state, sign: s.sign})
	t.move(s, known, state)
}

// move changes what is known of a connection. Its key must have a node.
func (t *Table) move(s *slot, known bool, state schemas.ConnectionState) {
	wasLive, isLive := s.live(), known && state.Open
	switch {
	case wasLive && isLive:
		t.users.replace(s.user, s.conn, state)
	case wasLive:
		t.users.disconnect(s.user, s.conn)
		if s.user.n == 0 {
			t.users.drop(s.user)
		}
		t.live--
		s.key.node.live--
	case isLive:
		// A slot changes at most once from being live, and is let go before another user could get this one's place.
		if s.user == nil || s.user.n == 0 {
			s.user = t.users.add(s.key.uid)
		}
		var c *conn
		s.conn, c = t.users.connect(s.user, &s.key, state)
		c.sign = s.sign
		t.live++
		s.key.node.live++
	}

	wasClose, isClose := s.closed != nil, known && !state.Open
	switch {
	case wasClose && isClose:
		s.closed.set(state)
		t.closeQueue.fix(s.closed.at, state.InboxTime)
	case wasClose:
		delete(t.closes, s.closed.key)
		t.closeQueue.remove(s.closed.at)
		s.closed = nil
		s.key.node.closes--
	case isClose:
		s.closed = &remembered{key: s.key}
		s.closed.set(state)
		t.closes[s.key] = s.closed
		t.closeQueue.push(s.closed, state.InboxTime)
		s.key.node.closes++
	}

	s.known, s.state = known, state
	t.noteUnused(s.key.node)
}

// setStart changes a node's last start, and what Rollback has to do.
func (t *Table) setStart(n *node, hasStart bool, start schemas.NodeStart) {
	t.undoStarts = append(t.undoStarts, undoStart{node: n, hasStart: n.hasStart, start: n.start})
	t.moveStart(n, hasStart, start)
}

func (t *Table) moveStart(n *node, hasStart bool, start schemas.NodeStart) {
	had := n.hasStart
	n.hasStart, n.start = hasStart, start
	switch {
	case had && hasStart:
		t.startQueue.fix(n.at, start.InboxTime)
	case had:
		t.startQueue.remove(n.at)
	case hasStart:
		t.startQueue.push(n, start.InboxTime)
	}
	t.noteUnused(n)
}

// node returns the node of that id, new where there is none.
func (t *Table) node(id schemas.ID) *node {
	n := t.byID[id]
	if n != nil {
		return n
	}
	n = &node{id: id}
	if last := len(t.free) - 1; last >= 0 {
		n.index, t.free = t.free[last], t.free[:last]
		t.nodes[n.index] = n
	} else {
		if len(t.nodes) == math.MaxUint32 {
			panic("presence: more nodes than there are indices")
		}
		n.index = uint32(len(t.nodes))
		t.nodes = append(t.nodes, n)
	}
	t.byID[id] = n
	return n
}

func (n *node) inUse() bool { return n.live > 0 || n.closes > 0 || n.hasStart }

func (t *Table) noteUnused(n *node) {
	if !n.inUse() && !n.listed {
		n.listed = true
		t.unused = append(t.unused, n)
	}
}

func (t *Table) dropUnused() {
	for _, n := range t.unused {
		n.listed = false
		if n.inUse() {
			continue
		}
		delete(t.byID, n.id)
		t.nodes[n.index] = nil
		t.free = append(t.free, n.index)
	}
	clear(t.unused)
	t.unused = t.unused[:0]
}

func (r *remembered) state() schemas.ConnectionState {
	return schemas.ConnectionState{
		DeviceFlag: r.flag, Version: r.version, Opened: r.opened, InboxTime: r.inboxTime,
		OpenedAt: r.openedAt, Background: r.background,
	}
}

func (r *remembered) set(s schemas.ConnectionState) {
	r.flag, r.version, r.opened, r.inboxTime = s.DeviceFlag, s.Version, s.Opened, s.InboxTime
	r.openedAt, r.background = s.OpenedAt, s.Background
}

func (r *remembered) setAt(i int) { r.at = i }

func (r *remembered) before(o *remembered) bool {
	a, b := &r.key, &o.key
	if a.uid != b.uid {
		return a.uid < b.uid
	}
	if a.node != b.node {
		return a.node.id.Compare(b.node.id) < 0
	}
	return compareIDs(a.num, a.text, b.num, b.text) < 0
}

func (n *node) setAt(i int) { n.at = i }

func (n *node) before(o *node) bool { return n.id.Compare(o.id) < 0 }
