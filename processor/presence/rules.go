package presence

import (
	"cmp"
	"slices"
	"strings"

	"github.com/offhook/offhook/schemas"
)

// Outcome says what an event did, for counters: a closed list, see [Outcomes].
type Outcome string

// The outcomes of Apply.
const (
	OutcomeOpened           Outcome = "opened"            // opened a connection
	OutcomeRefreshed        Outcome = "refreshed"         // online of a connection that is open with that flag
	OutcomeFlagChanged      Outcome = "flag_changed"      // closed a connection and opened it with another flag
	OutcomeAlive            Outcome = "alive"             // heartbeat of an open connection
	OutcomeClosed           Outcome = "closed"            // closed a connection
	OutcomeNodeStarted      Outcome = "node_started"      // closed what a node had, if anything, or began to
	OutcomeNodeClosing      Outcome = "node_closing"      // went on closing what a node had
	OutcomeNodeHeartbeat    Outcome = "node_heartbeat"    // heartbeat of a whole node
	OutcomeStale            Outcome = "stale"             // ignored: older than the connection's version or the node's last start
	OutcomeCopy             Outcome = "copy"              // ignored: an online not after the one that a remembered close closed
	OutcomeNotOpen          Outcome = "not_open"          // ignored, at most remembered: offline of a connection that is not open
	OutcomeHeartbeatUnknown Outcome = "heartbeat_unknown" // ignored: heartbeat without device_flag of a connection that is not open
	OutcomeStartRepeated    Outcome = "start_repeated"    // ignored: node_started not after the node's last start
	OutcomeBackground       Outcome = "background"        // heartbeat that changed whether a connection is in the background
	OutcomeExpired          Outcome = "expired"           // closed a connection of which nothing was heard
	OutcomeHeard            Outcome = "heard"             // ignored: an expire of a connection that has given a sign since
)

// Outcomes lists all outcomes.
func Outcomes() []Outcome {
	return []Outcome{
		OutcomeOpened, OutcomeRefreshed, OutcomeFlagChanged, OutcomeAlive, OutcomeClosed, OutcomeNodeStarted,
		OutcomeNodeClosing, OutcomeNodeHeartbeat, OutcomeStale, OutcomeCopy, OutcomeNotOpen, OutcomeHeartbeatUnknown,
		OutcomeStartRepeated, OutcomeBackground, OutcomeExpired, OutcomeHeard,
	}
}

// Mark is where in the inbox an event stands.
type Mark struct {
	Time   int64 // the inbox record's timestamp, Unix ms
	Offset int64
}

// Apply applies a connection event that was read from the inbox at a mark and appends what it causes to e. The event is as
// schemas decodes it. more says that it is to be applied again, at the same mark and before any other: a node's start
// closes [Rules.ClosesAtOnce] connections at a time.
func (t *Table) Apply(c *schemas.Connection, at Mark, e *Effects) (o Outcome, more bool) {
	switch {
	case c.Type == schemas.NodeStarted:
		return t.nodeStarted(c, at, e)
	case c.UID == "":
		return t.nodeHeartbeat(c, at), false
	}
	return t.connection(c, at, e), false
}

func (t *Table) connection(c *schemas.Connection, at Mark, e *Effects) Outcome {
	s := t.find(c.UID, c.NodeID, c.ConnID)
	switch {
	case c.Type == schemas.Offline && s.live():
		return t.offline(&s, c, at.Time, e)
	case c.Type == schemas.Offline:
		return t.offlineNotOpen(&s, c, at.Time, e)
	case s.live() && older(c, &s.state):
		return OutcomeStale
	case c.Type == schemas.Heartbeat && s.live():
		t.heard(&s, at.Offset)
		return t.alive(&s, c, at.Time, e)
	case c.Type == schemas.Heartbeat && !c.HasDeviceFlag:
		return OutcomeHeartbeatUnknown
	case s.live():
		t.heard(&s, at.Offset)
		return t.onlineOpen(&s, c, e)
	}
	s.sign = at.Offset
	return t.open(&s, c, at.Time, e)
}

// generation compares an event's opened_at with that of what is known of its connection: -1, 0 or 1, and 0 where one of
// them has none.
func generation(c *schemas.Connection, s *schemas.ConnectionState) int {
	if c.OpenedAt < 0 || s.OpenedAt < 0 {
		return 0
	}
	return cmp.Compare(c.OpenedAt, s.OpenedAt)
}

// older reports whether an event is older than the connection's version.
func older(c *schemas.Connection, s *schemas.ConnectionState) bool {
	g := generation(c, s)
	return g < 0 || g == 0 && c.Time < s.Version
}

// heard notes a sign of life of a connection that is open.
func (t *Table) heard(s *slot, offset int64) {
	s.sign = offset
	t.users.conns.at(s.conn).sign = offset
}

// nodeHeartbeat notes a sign of life of all connections of a node.
func (t *Table) nodeHeartbeat(c *schemas.Connection, at Mark) Outcome {
	n := t.byID[c.NodeID]
	if n == nil {
		return OutcomeNodeHeartbeat
	}
	if n.hasStart && t.rules.inForce(n.start.InboxTime, at.Time) && c.Time < n.start.Time {
		return OutcomeStale
	}
	t.undoSigns = append(t.undoSigns, undoSign{n, n.sign})
	n.sign = at.Offset
	return OutcomeNodeHeartbeat
}

// inForce says whether a close or node start that was made at inbox time made has an effect on a record of inboxTime.
// Whether Expire has forgotten it yet makes no difference.
func (r *Rules) inForce(made, inboxTime int64) bool { return inboxTime < made+r.CloseMemory }

// openState is the state of a connection that c opens or refreshes.
func openState(c *schemas.Connection) schemas.ConnectionState {
	return schemas.ConnectionState{
		Open: true, DeviceFlag: c.DeviceFlag, Version: c.Time, OpenedAt: c.OpenedAt, Background: c.Background,
	}
}

// open applies an online, or a heartbeat that may open, of a connection that is not open.
func (t *Table) open(s *slot, c *schemas.Connection, inboxTime int64, e *Effects) Outcome {
	if s.known && t.rules.inForce(s.state.InboxTime, inboxTime) {
		if older(c, &s.state) {
			return OutcomeStale
		}
		if generation(c, &s.state) == 0 && c.Time <= s.state.Opened {
			return OutcomeCopy
		}
	}
	// At equal times the log's order decides, and the start came first.
	if n := s.key.node; n != nil && n.hasStart && t.rules.inForce(n.start.InboxTime, inboxTime) && c.Time < n.start.Time {
		return OutcomeStale
	}
	t.intern(s, c.NodeID)
	t.put(s, true, openState(c))
	e.write(s)
	e.event(s, c.DeviceFlag, true, t.users.devices(s.user, c.DeviceFlag), int(s.user.n))
	return OutcomeOpened
}

// onlineOpen applies an online of a connection that is open.
func (t *Table) onlineOpen(s *slot, c *schemas.Connection, e *Effects) Outcome {
	old, state := s.state, openState(c)
	if generation(c, &old) == 0 && state.DeviceFlag == old.DeviceFlag { // what it does not say of the same connection stays
		if state.OpenedAt < 0 {
			state.OpenedAt = old.OpenedAt
		}
		if !c.HasBackground {
			state.Background = old.Background
		}
	}
	if state == old {
		return OutcomeRefreshed
	}
	t.put(s, true, state)
	e.write(s)
	if state.DeviceFlag == old.DeviceFlag {
		return OutcomeRefreshed
	}
	// Between the two events the connection counts for neither flag.
	e.event(s, old.DeviceFlag, false, t.users.devices(s.user, old.DeviceFlag), int(s.user.n)-1)
	e.event(s, state.DeviceFlag, true, t.users.devices(s.user, state.DeviceFlag), int(s.user.n))
	return OutcomeFlagChanged
}

// alive applies a heartbeat of a connection that is open. It never changes the flag; one of a later generation that could open
// it has it be that one.
func (t *Table) alive(s *slot, c *schemas.Connection, inboxTime int64, e *Effects) Outcome {
	state := s.state
	if c.HasBackground {
		state.Background = c.Background
	}
	if c.HasDeviceFlag && generation(c, &s.state) > 0 {
		// A start that came before it holds against it as against any that opens.
		if n := s.key.node; n.hasStart && t.rules.inForce(n.start.InboxTime, inboxTime) && c.Time < n.start.Time {
			return OutcomeStale
		}
		state.OpenedAt, state.Version = c.OpenedAt, c.Time
	}
	if state == s.state {
		return OutcomeAlive
	}
	outcome := OutcomeBackground
	if state.Version != s.state.Version || state.OpenedAt != s.state.OpenedAt {
		outcome = OutcomeRefreshed
	}
	t.put(s, true, state)
	e.write(s)
	return outcome
}

// offline applies an offline of a connection that is open.
func (t *Table) offline(s *slot, c *schemas.Connection, inboxTime int64, e *Effects) Outcome {
	if older(c, &s.state) {
		return OutcomeStale
	}
	opened := s.state.Version
	if generation(c, &s.state) > 0 {
		opened = c.Time // of a generation that was never seen open
	}
	t.close(s, c.Time, opened, max(c.OpenedAt, s.state.OpenedAt), inboxTime, e)
	return OutcomeClosed
}

// close closes a connection that is open; version is the time of what closes it, opened that of the online that it closes.
func (t *Table) close(s *slot, version, opened, openedAt, inboxTime int64, e *Effects) {
	state := s.state
	state.Open, state.Version, state.Opened, state.OpenedAt, state.InboxTime = false, version, opened, openedAt, inboxTime
	u := s.user
	t.put(s, true, state)
	e.write(s)
	e.event(s, state.DeviceFlag, false, t.users.devices(u, state.DeviceFlag), int(u.n))
}

// offlineNotOpen remembers a close of a connection that is not open, so that an online that is late opens no ghost.
func (t *Table) offlineNotOpen(s *slot, c *schemas.Connection, inboxTime int64, e *Effects) Outcome {
	if s.known && t.rules.inForce(s.state.InboxTime, inboxTime) {
		if g := generation(c, &s.state); g < 0 || g == 0 && c.Time <= s.state.Version {
			return OutcomeNotOpen
		}
	}
	t.intern(s, c.NodeID)
	t.put(s, true, schemas.ConnectionState{
		DeviceFlag: c.DeviceFlag, Version: c.Time, Opened: c.Time, InboxTime: inboxTime, OpenedAt: c.OpenedAt,
	})
	e.write(s)
	return OutcomeNotOpen
}

// nodeStarted closes the connections of a node that are no newer than its start, some at a time. The start is recorded with the
// first of them: applied again at the same mark it goes on. Nothing else is applied before it is done, so that all
// connections of the node that are no newer were open before it.
func (t *Table) nodeStarted(c *schemas.Connection, at Mark, e *Effects) (o Outcome, more bool) {
	inboxTime := at.Time
	n := t.node(c.NodeID)
	start := schemas.NodeStart{Time: c.Time, InboxTime: inboxTime, Offset: at.Offset}
	switch {
	case n.hasStart && n.start == start:
		o = OutcomeNodeClosing
	case n.hasStart && t.rules.inForce(n.start.InboxTime, inboxTime) && c.Time <= n.start.Time:
		t.noteUnused(n)
		return OutcomeStartRepeated, false
	default:
		o = OutcomeNodeStarted
		t.setStart(n, true, start)
		e.writeStart(n)
	}
	if t.closing == nil || t.closing.node != n || t.closing.time != c.Time {
		t.closing = &closing{node: n, time: c.Time, keys: t.openedUntil(n, c.Time)}
	}
	keys := t.closing.keys
	if o == OutcomeNodeClosing && len(keys) == 0 {
		o = OutcomeStartRepeated
	}
	if limit := t.rules.ClosesAtOnce; limit > 0 && len(keys) > limit {
		keys = keys[:limit]
	}
	for _, k := range keys {
		s := t.locate(k)
		t.close(&s, c.Time, s.state.Version, s.state.OpenedAt, inboxTime, e)
	}
	if t.closing.keys = t.closing.keys[len(keys):]; len(t.closing.keys) > 0 {
		return o, true
	}
	t.closing = nil
	return o, false
}

// openedUntil returns the live connections of a node whose version is at or before time, in the order of (uid,
// conn_id). It looks at the whole table: a node starts rarely, and an index by node would cost memory for each
// connection.
func (t *Table) openedUntil(n *node, time int64) []key {
	if n.live == 0 {
		return nil
	}
	var keys []key
	left := n.live
	for u := range t.users.all() {
		for _, c := range t.users.connections(u) {
			if c.node != n.index {
				continue
			}
			left--
			if c.version <= time {
				num, text := t.users.id(c)
				keys = append(keys, key{uid: u.uid, text: text, num: num, node: n})
			}
		}
		if left == 0 {
			break
		}
	}
	slices.SortFunc(keys, func(a, b key) int {
		if c := strings.Compare(a.uid, b.uid); c != 0 {
			return c
		}
		return compareIDs(a.num, a.text, b.num, b.text)
	})
	return keys
}

// event appends the user.onlinestatus event of a connection that was opened or closed.
func (e *Effects) event(s *slot, flag uint8, online bool, devices, total int) {
	number := s.key.num
	if s.key.text != "" {
		number = schemas.ID(s.key.text).Number()
	}
	e.Events = append(e.Events, schemas.OnlineStatus{
		UID: s.key.uid, DeviceFlag: flag, Online: online, ConnID: number, DeviceCount: devices, TotalCount: total,
	})
}
