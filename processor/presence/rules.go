package presence

import (
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
	OutcomeNodeStarted      Outcome = "node_started"      // closed what a node had, if anything
	OutcomeNodeHeartbeat    Outcome = "node_heartbeat"    // heartbeat of a whole node
	OutcomeStale            Outcome = "stale"             // ignored: older than the connection's version or the node's last start
	OutcomeCopy             Outcome = "copy"              // ignored: an online not after the one that a remembered close closed
	OutcomeNotOpen          Outcome = "not_open"          // ignored, at most remembered: offline of a connection that is not open
	OutcomeHeartbeatUnknown Outcome = "heartbeat_unknown" // ignored: heartbeat without device_flag of a connection that is not open
	OutcomeStartRepeated    Outcome = "start_repeated"    // ignored: node_started not after the node's last start
)

// Outcomes lists all outcomes.
func Outcomes() []Outcome {
	return []Outcome{
		OutcomeOpened, OutcomeRefreshed, OutcomeFlagChanged, OutcomeAlive, OutcomeClosed, OutcomeNodeStarted,
		OutcomeNodeHeartbeat, OutcomeStale, OutcomeCopy, OutcomeNotOpen, OutcomeHeartbeatUnknown, OutcomeStartRepeated,
	}
}

// Apply applies a connection event that was read from the inbox at inboxTime (the inbox record's timestamp, Unix ms)
// and appends what it causes to e. The event is as schemas decodes it.
func (t *Table) Apply(c *schemas.Connection, inboxTime int64, e *Effects) Outcome {
	if c.Type == schemas.NodeStarted {
		return t.nodeStarted(c, inboxTime, e)
	}
	if c.UID == "" {
		return OutcomeNodeHeartbeat
	}
	s := t.find(c.UID, c.NodeID, c.ConnID)
	switch {
	case c.Type == schemas.Offline && s.live():
		return t.offline(&s, c, inboxTime, e)
	case c.Type == schemas.Offline:
		return t.offlineNotOpen(&s, c, inboxTime, e)
	case c.Type == schemas.Heartbeat && s.live() && c.Time < s.state.Version:
		return OutcomeStale
	case c.Type == schemas.Heartbeat && s.live():
		return OutcomeAlive
	case c.Type == schemas.Heartbeat && !c.HasDeviceFlag:
		return OutcomeHeartbeatUnknown
	case s.live():
		return t.onlineOpen(&s, c, e)
	}
	return t.open(&s, c, inboxTime, e)
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
		if c.Time < s.state.Version {
			return OutcomeStale
		}
		if c.Time <= s.state.Opened {
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
	e.event(s, c.DeviceFlag, true, s.user.devices(c.DeviceFlag), len(s.user.conns))
	return OutcomeOpened
}

// onlineOpen applies an online of a connection that is open.
func (t *Table) onlineOpen(s *slot, c *schemas.Connection, e *Effects) Outcome {
	if c.Time < s.state.Version {
		return OutcomeStale
	}
	old, state := s.state, openState(c)
	if state == old {
		return OutcomeRefreshed
	}
	t.put(s, true, state)
	e.write(s)
	if state.DeviceFlag == old.DeviceFlag {
		return OutcomeRefreshed
	}
	// Between the two events the connection counts for neither flag.
	e.event(s, old.DeviceFlag, false, s.user.devices(old.DeviceFlag), len(s.user.conns)-1)
	e.event(s, state.DeviceFlag, true, s.user.devices(state.DeviceFlag), len(s.user.conns))
	return OutcomeFlagChanged
}

// offline applies an offline of a connection that is open.
func (t *Table) offline(s *slot, c *schemas.Connection, inboxTime int64, e *Effects) Outcome {
	if c.Time < s.state.Version {
		return OutcomeStale
	}
	t.close(s, c.Time, inboxTime, e)
	return OutcomeClosed
}

// close closes a connection that is open; version is the time of what closes it.
func (t *Table) close(s *slot, version, inboxTime int64, e *Effects) {
	state := s.state
	state.Open, state.Version, state.Opened, state.InboxTime = false, version, s.state.Version, inboxTime
	u := s.user
	t.put(s, true, state)
	e.write(s)
	e.event(s, state.DeviceFlag, false, u.devices(state.DeviceFlag), len(u.conns))
}

// offlineNotOpen remembers a close of a connection that is not open, so that an online that is late opens no ghost.
func (t *Table) offlineNotOpen(s *slot, c *schemas.Connection, inboxTime int64, e *Effects) Outcome {
	if s.known && t.rules.inForce(s.state.InboxTime, inboxTime) && c.Time <= s.state.Version {
		return OutcomeNotOpen
	}
	t.intern(s, c.NodeID)
	t.put(s, true, schemas.ConnectionState{
		DeviceFlag: c.DeviceFlag, Version: c.Time, Opened: c.Time, InboxTime: inboxTime, OpenedAt: c.OpenedAt,
	})
	e.write(s)
	return OutcomeNotOpen
}

// nodeStarted closes the connections of a node that are no newer than its start.
func (t *Table) nodeStarted(c *schemas.Connection, inboxTime int64, e *Effects) Outcome {
	n := t.node(c.NodeID)
	if n.hasStart && t.rules.inForce(n.start.InboxTime, inboxTime) && c.Time <= n.start.Time {
		return OutcomeStartRepeated
	}
	t.setStart(n, true, schemas.NodeStart{Time: c.Time, InboxTime: inboxTime})
	e.writeStart(n)
	for _, k := range t.openedUntil(n, c.Time) {
		s := t.locate(k)
		t.close(&s, c.Time, inboxTime, e)
	}
	return OutcomeNodeStarted
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
	for uid, u := range t.users {
		for i := range u.conns {
			c := &u.conns[i]
			if c.node != n.index {
				continue
			}
			left--
			if c.version <= time {
				name := c.name()
				keys = append(keys, key{uid: uid, text: name.text, num: name.num, node: n})
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
