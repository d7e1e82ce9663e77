package oracle

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"
)

// textID marks the number of an id that is no integer; the rest of the bits is its name's number.
const textID = 1 << 63

// id is a conn_id or node_id: an integer of 0 to 2⁶³−1, or textID and the number of its text.
type id uint64

// connectionKey names a connection.
type connectionKey struct {
	node, conn id
	uid        uint32
}

// connection is one that is open.
type connection struct {
	node, conn id
	version    int64 // time of the latest online, or of the heartbeat that opened it
	openedAt   int64 // -1: not said
	sign       sign
	flag       uint8
	background bool
}

// sign is a sign of life, an inbox record.
type sign struct {
	offset, time int64
}

// closed is a close that is remembered.
type closed struct {
	version   int64
	openedAt  int64 // -1: not said
	online    int64 // the version that it closed; meaningless where it closed none
	seen      bool  // false: it closed none, or one of an earlier generation
	inboxTime int64
}

// node is what is known of a gateway node.
type node struct {
	start      int64 // time of its last start
	inboxTime  int64 // of the start
	hasStarted bool
	sign       sign // its last heartbeat
}

// presence is who is online among the users of one inbox partition. Its rules are those of docs/design.md.
type presence struct {
	users  map[uint32][]connection // in the order of their opening; no empty slices
	closes map[connectionKey]closed
	made   []madeClose // the closes in the order of the inbox; those that have no effect any more are forgotten
	nodes  map[id]*node
}

type madeClose struct {
	key       connectionKey
	inboxTime int64
}

func newPresence() presence {
	return presence{users: make(map[uint32][]connection), closes: make(map[connectionKey]closed), nodes: make(map[id]*node)}
}

// status is a user.onlinestatus.
type status struct {
	conn          uint64 // as it stands in the item
	offset        int64  // expected: of its cause in the inbox; delivered: the request's number
	uid           uint32
	device, total int32
	flag          uint8
	online        bool
}

// event is a msg.offline for one recipient, or a msg.notify.
type event struct {
	hash   uint64
	offset int64  // expected: of its cause; delivered: the request's number
	key    uint32 // the recipient, or the order key
	source int32  // expected: the inbox partition, or the input partition's number; delivered: unused
}

func (o *Oracle) id(text string) id {
	if n, ok := digits(text, math.MaxInt64); ok {
		return id(n)
	}
	return textID | id(o.names.number(text))
}

func (o *Oracle) connectionKey(uid, nodeID, connID string) connectionKey {
	return connectionKey{o.id(nodeID), o.id(connID), o.names.number(uid)}
}

// compareIDs orders integers by value, and before other ids.
func (o *Oracle) compareIDs(a, b id) int {
	if a < textID || b < textID {
		return cmp.Compare(a, b)
	}
	return strings.Compare(o.names.texts[a&^textID], o.names.texts[b&^textID])
}

// against compares an event with what is known: negative where it is older. Generations decide where both sides say
// theirs, times within one.
func against(time, openedAt, knownTime, knownOpenedAt int64) int {
	if openedAt >= 0 && knownOpenedAt >= 0 && openedAt != knownOpenedAt {
		return cmp.Compare(openedAt, knownOpenedAt)
	}
	return cmp.Compare(time, knownTime)
}

// laterGeneration says that an event tells of a later generation than is known.
func laterGeneration(openedAt, known int64) bool { return known >= 0 && openedAt > known }

// forgotten reports whether what was made at one inbox time has no effect on a record of another.
func (o *Oracle) forgotten(made, now int64) bool { return now-made >= o.cfg.CloseMemory.Milliseconds() }

// pruneSlack is how much longer than they have effect closes are kept, since inbox times may go back a little.
const pruneSlack = 5 * 60_000

func (p *presence) remember(o *Oracle, key connectionKey, c closed) {
	p.closes[key] = c
	p.made = append(p.made, madeClose{key, c.inboxTime})
	done := 0
	for done < len(p.made) && o.forgotten(p.made[done].inboxTime, c.inboxTime-pruneSlack) {
		if m := p.made[done]; p.closes[m.key].inboxTime == m.inboxTime {
			delete(p.closes, m.key)
		}
		done++
	}
	p.made = p.made[done:]
}

// find is the index of a connection among its user's, -1 where it is not open.
func (p *presence) find(key connectionKey) int {
	return slices.IndexFunc(p.users[key.uid], func(c connection) bool { return c.node == key.node && c.conn == key.conn })
}

func (p *presence) node(n id) *node {
	s := p.nodes[n]
	if s == nil {
		s = &node{sign: sign{offset: -1}}
		p.nodes[n] = s
	}
	return s
}

// connectionEvent applies an event of inbox offset and inbox time.
func (o *Oracle) connectionEvent(p *inboxPartition, c *Connection, offset, now int64) {
	if c.node() {
		n := p.node(o.id(c.NodeID))
		if c.Type == NodeStarted {
			o.nodeStarted(p, n, c, offset, now)
		} else if !o.beforeStart(n, c.Time, now) {
			n.sign = sign{offset, now}
		}
		return
	}
	key := o.connectionKey(c.UID, c.NodeID, c.ConnID)
	i := p.find(key)
	switch {
	case c.Type == Offline && i >= 0:
		o.offline(p, key, i, c, offset, now)
	case c.Type == Offline:
		// Of a connection that is not open it is remembered, if it is later than what is.
		if known, is := p.closes[key]; !is || o.forgotten(known.inboxTime, now) || against(c.Time, c.OpenedAt, known.version, known.openedAt) > 0 {
			p.remember(o, key, closed{version: c.Time, openedAt: c.OpenedAt, inboxTime: now})
		}
	case i >= 0:
		o.refresh(p, key, i, c, offset, now)
	case c.HasDeviceFlag && o.opens(p, key, c, now):
		o.open(p, key, c, offset, now)
	}
}

// opens reports whether an online, or a heartbeat with a flag, opens a connection that is not open.
func (o *Oracle) opens(p *inboxPartition, key connectionKey, c *Connection, now int64) bool {
	if o.beforeStart(p.nodes[key.node], c.Time, now) {
		return false
	}
	known, is := p.closes[key]
	if !is || o.forgotten(known.inboxTime, now) || laterGeneration(c.OpenedAt, known.openedAt) {
		return true
	}
	switch order := against(c.Time, c.OpenedAt, known.version, known.openedAt); {
	case order < 0:
		return false
	case known.seen:
		return c.Time > known.online
	default:
		return order > 0
	}
}

// beforeStart reports whether a time lies before the last start of a node.
func (o *Oracle) beforeStart(s *node, time, now int64) bool {
	return s != nil && s.hasStarted && !o.forgotten(s.inboxTime, now) && time < s.start
}

func (o *Oracle) open(p *inboxPartition, key connectionKey, c *Connection, offset, now int64) {
	delete(p.closes, key)
	p.users[key.uid] = append(p.users[key.uid], connection{
		node: key.node, conn: key.conn, version: c.Time, openedAt: c.OpenedAt, sign: sign{offset, now}, flag: c.DeviceFlag, background: c.Background,
	})
	o.expectStatus(p, key, c.DeviceFlag, true, offset)
}

// refresh applies an online or a heartbeat to a connection that is open.
func (o *Oracle) refresh(p *inboxPartition, key connectionKey, i int, c *Connection, offset, now int64) {
	is := &p.users[key.uid][i]
	if against(c.Time, c.OpenedAt, is.version, is.openedAt) < 0 {
		return
	}
	if c.Type == Online && c.DeviceFlag != is.flag {
		flag := is.flag
		p.remove(key.uid, i)
		o.expectStatus(p, key, flag, false, offset)
		o.open(p, key, c, offset, now)
		return
	}
	is.sign = sign{offset, now}
	// One with a flag tells of the generation that it is of, and a heartbeat opens that one if the start allows it.
	again := c.HasDeviceFlag && laterGeneration(c.OpenedAt, is.openedAt)
	if again && c.Type == Heartbeat && o.beforeStart(p.nodes[key.node], c.Time, now) {
		return
	}
	if c.HasBackground || again && c.Type == Online {
		is.background = c.Background
	}
	if c.Type == Online || again {
		is.version = c.Time
		if c.OpenedAt >= 0 {
			is.openedAt = c.OpenedAt
		}
	}
}

func (o *Oracle) offline(p *inboxPartition, key connectionKey, i int, c *Connection, offset, now int64) {
	is := p.users[key.uid][i]
	if against(c.Time, c.OpenedAt, is.version, is.openedAt) < 0 {
		return
	}
	close := closed{version: c.Time, openedAt: c.OpenedAt, online: is.version, seen: true, inboxTime: now}
	if laterGeneration(c.OpenedAt, is.openedAt) {
		close.seen = false
	} else if c.OpenedAt < 0 {
		close.openedAt = is.openedAt
	}
	o.close(p, key, i, close, offset)
}

func (o *Oracle) close(p *inboxPartition, key connectionKey, i int, c closed, offset int64) {
	flag := p.users[key.uid][i].flag
	p.remove(key.uid, i)
	p.remember(o, key, c)
	o.expectStatus(p, key, flag, false, offset)
}

func (p *presence) remove(uid uint32, i int) {
	if left := slices.Delete(p.users[uid], i, i+1); len(left) > 0 {
		p.users[uid] = left
	} else {
		delete(p.users, uid)
	}
}

func (o *Oracle) nodeStarted(p *inboxPartition, n *node, c *Connection, offset, now int64) {
	if n.hasStarted && !o.forgotten(n.inboxTime, now) && c.Time <= n.start {
		return
	}
	n.start, n.inboxTime, n.hasStarted = c.Time, now, true
	nodeID := o.id(c.NodeID)
	var keys []connectionKey
	for uid, connections := range p.users {
		for i := range connections {
			if is := &connections[i]; is.node == nodeID && is.version <= c.Time {
				keys = append(keys, connectionKey{nodeID, is.conn, uid})
			}
		}
	}
	slices.SortFunc(keys, func(a, b connectionKey) int {
		return cmp.Or(cmp.Compare(a.uid, b.uid), o.compareIDs(a.conn, b.conn))
	})
	for _, key := range keys {
		i := p.find(key)
		is := p.users[key.uid][i]
		o.close(p, key, i, closed{version: c.Time, openedAt: is.openedAt, online: is.version, seen: true, inboxTime: now}, offset)
	}
}

// expire applies presence's own close of a connection of which nothing was heard since an inbox offset.
func (o *Oracle) expire(p *inboxPartition, key connectionKey, since, offset, now int64) {
	i := p.find(key)
	if i < 0 {
		return
	}
	is := p.users[key.uid][i]
	last := is.sign
	if s := p.nodes[key.node]; s != nil && s.sign.offset > last.offset {
		last = s.sign
	}
	if last.offset > since {
		return
	}
	o.report.Expired++
	if ttl := o.cfg.TTL.Milliseconds(); ttl == 0 || now-last.time < ttl {
		o.find(WrongClose, "%s-%d offset %d closes connection %s of node %s of %q, which gave a sign of life at offset %d, %d ms before",
			o.cfg.Inbox, p.number, offset, o.idText(key.conn), o.idText(key.node), o.names.texts[key.uid], last.offset, now-last.time)
	}
	o.close(p, key, i, closed{version: is.version, openedAt: is.openedAt, online: is.version, seen: true, inboxTime: now}, offset)
}

func (o *Oracle) expectStatus(p *inboxPartition, key connectionKey, flag uint8, online bool, offset int64) {
	s := status{conn: o.idNumber(key.conn), offset: offset, uid: key.uid, flag: flag, online: online}
	for i := range p.users[key.uid] {
		s.total++
		if p.users[key.uid][i].flag == flag {
			s.device++
		}
	}
	o.expectedStatus.add(s)
	o.report.Events[onlineStatus]++
}

// idNumber is an id as it stands in a webhook item.
func (o *Oracle) idNumber(n id) uint64 {
	if n < textID {
		return uint64(n)
	}
	return first63(o.names.texts[n&^textID])
}

// recipients takes the record of a message, given as the hash of its item, for the users p.numbers.
func (o *Oracle) recipients(p *inboxPartition, hash uint64, offset int64) {
	offline := false
	for _, uid := range p.numbers {
		if o.reachable(p.users[uid]) {
			continue
		}
		offline = true
		o.expectedOffline.add(event{hash: hash, offset: offset, key: uid, source: p.number})
		o.report.Events[msgOffline]++
	}
	if offline {
		o.report.OfflineItems++
	}
}

// reachable reports whether a user with these connections needs no offline push.
func (o *Oracle) reachable(connections []connection) bool {
	return slices.ContainsFunc(connections, func(c connection) bool {
		return (!c.background || o.cfg.BackgroundIsOnline) && (o.onlineFlags == nil || o.onlineFlags[c.flag])
	})
}

// idText is an id as the records have it.
func (o *Oracle) idText(n id) string {
	if n < textID {
		return strconv.FormatUint(uint64(n), 10)
	}
	return o.names.texts[n&^textID]
}
