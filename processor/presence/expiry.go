package presence

import "github.com/offhook/offhook/schemas"

// Begin says at which inbox offset the table begins to hear signs of life. Those of before, which a restored table does not
// know, count as if they had been there.
func (t *Table) Begin(offset int64) { t.floor = offset }

// lastSign is the inbox offset of the last sign of life of a connection: its own, its node's as a whole, or where the
// table began to listen.
func (t *Table) lastSign(c *conn) int64 {
	sign := max(c.sign, t.floor)
	if n := t.nodes[c.node]; n != nil {
		sign = max(sign, n.sign)
	}
	return sign
}

// Sweep looks at the next users, at most limit of them, and calls each with every connection that has given no sign of life at
// or after the inbox offset since. A sweep goes over all users in many calls, and then begins anew; connections that
// open meanwhile may be looked at or not. It changes nothing.
func (t *Table) Sweep(limit int, since int64, each func(schemas.Expire)) {
	if t.floor >= since {
		return // nobody can be that silent yet
	}
	for limit > 0 {
		if t.swept == t.users.slab.used {
			t.swept = 0
			return
		}
		t.swept++
		u := t.users.slab.at(t.swept)
		if u.n == 0 {
			continue // nobody's place
		}
		limit--
		for _, c := range t.users.connections(u) {
			sign := t.lastSign(c)
			if sign >= since {
				continue
			}
			num, text := t.users.id(c)
			each(schemas.Expire{UID: u.uid, NodeID: t.nodes[c.node].id, ConnID: joinID(num, text), Offset: sign})
		}
	}
}

// ExpireConnection closes a connection that has given no sign of life since x was written. The close carries the connection's
// version, so that whatever is heard of it later counts as newer.
func (t *Table) ExpireConnection(x *schemas.Expire, inboxTime int64, e *Effects) Outcome {
	s := t.find(x.UID, x.NodeID, x.ConnID)
	if !s.live() {
		return OutcomeNotOpen
	}
	if t.lastSign(t.users.conns.at(s.conn)) > x.Offset {
		return OutcomeHeard
	}
	t.close(&s, s.state.Version, s.state.Version, s.state.OpenedAt, inboxTime, e)
	return OutcomeExpired
}

// Liveness says since when silence counts: while presence is at the inbox's end and route at the ends of all partitions
// with connection events. It is pure; times are those of inbox records, Unix ms. The zero value counts no silence.
type Liveness struct {
	// TTL is OFFHOOK_CONNECTION_TTL in ms; 0: silence never counts.
	TTL int64

	read    map[string]map[int32]readAt // when each partition of a topic was last said to be read to its end
	known   int64                       // as of when all were: silence is known up to there, and no further
	current bool                        // all partitions are covered
	last    int64                       // the time of the last record that kept it so
	checks  []Mark                      // of the current stretch, about one a second, the first at its begin
}

// readAt is the time of a record that said that a partition was read to its end, and of when that end was.
type readAt struct{ at, asOf int64 }

const (
	// caughtUpGrace is how long a caught_up record counts: they come about once a second.
	caughtUpGrace = 5_000
	// caughtUpAge is how old the knowledge in one may be, by the clock that made both.
	caughtUpAge = 5_000
	// behindMax is how many records the inbox may have behind one that is read at its end.
	behindMax = 10_000
	// checkEvery is the distance of checks, in ms.
	checkEvery = 1_000
)

// CaughtUp takes a caught_up record, read at a mark with behind records behind it.
func (l *Liveness) CaughtUp(c *schemas.CaughtUp, at Mark, behind int64) {
	if l.TTL <= 0 {
		return
	}
	if at.Time-c.AsOf > caughtUpAge || behind > behindMax {
		l.Interrupt()
		return
	}
	if l.read == nil {
		l.read = make(map[string]map[int32]readAt)
	}
	known := at.Time
	some, covered := false, true
	for _, t := range c.Topics { // each record names all topics, whoever reads them
		last := l.read[t.Name]
		if last == nil {
			last = make(map[int32]readAt)
			l.read[t.Name] = last
		}
		for _, p := range t.Read {
			last[p] = readAt{at.Time, c.AsOf}
		}
		// One that was there and is gone is an outage of the gateways, not their silence.
		covered = covered && (t.Partitions > 0 || len(last) == 0)
		for p := range t.Partitions {
			r, ok := last[p]
			some, covered = true, covered && ok && at.Time-r.at <= caughtUpGrace
			known = min(known, r.asOf)
		}
	}
	covered = covered && some
	switch {
	case !covered:
		l.Interrupt()
		return
	case !l.current, at.Time-l.last > caughtUpGrace:
		l.checks = append(l.checks[:0], at)
	case at.Time-l.checks[len(l.checks)-1].Time >= checkEvery:
		l.checks = append(l.checks, at)
	}
	l.current, l.last, l.known = true, at.Time, known
	// One check at or before the time from which on silence counts is enough.
	for len(l.checks) > 1 && l.checks[1].Time <= known-l.TTL {
		l.checks = l.checks[1:]
	}
}

// Interrupt says that what is heard does not tell who is silent: silence counts from anew.
func (l *Liveness) Interrupt() { l.current, l.checks = false, l.checks[:0] }

// Since is the inbox offset before which a connection's last sign must be for it to be closed: all of a time to live was
// listened to since. false: nobody has been silent for that long.
func (l *Liveness) Since() (offset int64, ok bool) {
	if !l.current || len(l.checks) == 0 || l.checks[0].Time > l.known-l.TTL {
		return 0, false
	}
	return l.checks[0].Offset, true
}
