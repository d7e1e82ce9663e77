package simulator

import (
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/offhook/offhook/internal/truth"
)

// record is one record to write, and what its acknowledgement makes true.
type record struct {
	topic   string
	key     string
	value   []byte
	message bool

	lines  []truth.Line // what must arrive
	uids   []string     // of a connection record with statuses: whose; of no other
	pushes int64        // of a message: recipients that must get a msg.offline
}

// person is one user.
type person struct {
	uid      string
	presence truth.Presence
	crashing bool   // lives on the node that crashes
	last     int64  // time of the latest event, Unix ms; those who are crashing share theirs
	sent     uint32 // messages sent
	opened   []connectionEvent
	closed   connectionEvent // the online of the connection closed last; none where Type is empty
}

// traffic makes the records. It does no I/O, has no clock (the caller says what time it is) and is not safe for use by
// several goroutines. Connections and messages draw from generators of their own, so that the rate of the one does not
// change the other.
type traffic struct {
	cfg         Config
	connections truth.Connections
	people      []person
	residents   []int // indexes of those who stay
	movers      []int // indexes of those who come and go
	crashing    []int // those of them on the node that crashes
	senders     []int // indexes of those who send
	groups      []channel
	nextConn    []uint64 // by node id
	crashTime   int64    // time of the latest event of the node that crashes, Unix ms
	late        *record  // a late copy that comes next
	seq         uint64
	churn, talk *rand.Rand
	upsets      upsets

	// Who speaks, and which group is spoken to; nil: all alike.
	busySenders, busyGroups *rand.Zipf
}

type channel struct {
	id      string
	members []int // indexes
	senders []int // those of them who send
	busy    *rand.Zipf
}

// crashNode is the id of the node that crashes.
func (t *traffic) crashNode() uint64 { return uint64(t.cfg.Nodes) + 1 }

func newTraffic(cfg Config) *traffic {
	t := &traffic{
		cfg:      cfg,
		nextConn: make([]uint64, cfg.Nodes+2),
		churn:    rand.New(rand.NewPCG(cfg.Seed, 1)),
		talk:     rand.New(rand.NewPCG(cfg.Seed, 2)),
		upsets:   newUpsets(cfg),
	}
	sleepers := max(1, cfg.Users/5)
	residents := sleepers
	crashing := cfg.Users / 20
	for i := range cfg.Users {
		p := person{uid: "u" + strconv.Itoa(i) + "-" + cfg.Run, presence: truth.Churner}
		switch {
		case i < sleepers:
			p.presence = truth.Sleeper
		case i < sleepers+residents:
			p.presence = truth.Resident
		case i < sleepers+residents+crashing:
			p.crashing = true
		}
		if p.presence != truth.Sleeper {
			t.senders = append(t.senders, i)
		}
		switch p.presence {
		case truth.Resident:
			t.residents = append(t.residents, i)
		case truth.Churner:
			t.movers = append(t.movers, i)
		}
		if p.crashing {
			t.crashing = append(t.crashing, i)
		}
		t.people = append(t.people, p)
	}
	shape := rand.New(rand.NewPCG(cfg.Seed, 3))
	t.busySenders = t.zipf(t.talk, len(t.senders))
	var sizes *rand.Zipf
	if cfg.Groups > 0 {
		t.busyGroups = t.zipf(t.talk, cfg.Groups)
		sizes = t.zipf(shape, cfg.GroupSize-1)
	}
	for i := range cfg.Groups {
		size := cfg.GroupSize
		if sizes != nil && i > 0 { // the first is the largest, and the busiest too
			size = 2 + int(sizes.Uint64())
		}
		g := channel{id: "g" + strconv.Itoa(i) + "-" + cfg.Run}
		g.members = append(g.members, t.senders[shape.IntN(len(t.senders))])
		in := map[int]bool{g.members[0]: true}
		for len(g.members) < min(size, cfg.Users) {
			if m := shape.IntN(cfg.Users); !in[m] {
				in[m] = true
				g.members = append(g.members, m)
			}
		}
		for _, m := range g.members {
			if t.people[m].presence != truth.Sleeper {
				g.senders = append(g.senders, m)
			}
		}
		g.busy = t.zipf(t.talk, len(g.senders))
		t.groups = append(t.groups, g)
	}
	t.start()
	return t
}

// lines are the truth's first lines: the run, its users and groups.
func (t *traffic) lines(yield func(truth.Line) bool) {
	if !yield(truth.Line{Kind: truth.KindRun, Run: t.cfg.Run, Seed: t.cfg.Seed, Settled: t.cfg.Settle > 0}) {
		return
	}
	for _, p := range t.people {
		if !yield(truth.Line{Kind: truth.KindUser, UID: p.uid, Presence: p.presence}) {
			return
		}
	}
	for _, g := range t.groups {
		line := truth.Line{Kind: truth.KindGroup, ChannelID: g.id}
		for _, m := range g.members {
			line.Members = append(line.Members, t.people[m].uid)
		}
		if !yield(line) {
			return
		}
	}
}

// connectionEvent is the JSON of an input record. Ids are integers, or the same digits as a string.
type connectionEvent struct {
	Type       string `json:"type"`
	UID        string `json:"uid,omitempty"`
	DeviceFlag *uint8 `json:"device_flag,omitempty"`
	ConnID     any    `json:"conn_id,omitempty"`
	NodeID     any    `json:"node_id,omitempty"`
	Timestamp  int64  `json:"timestamp"`
	OpenedAt   int64  `json:"opened_at,omitempty"`

	connection truth.Connection
}

// first yields the residents' first onlines.
func (t *traffic) first(now func() int64, yield func(*record) bool) {
	for _, i := range t.residents {
		for range 1 + t.churn.IntN(t.cfg.Devices) {
			if !yield(t.online(i, now(), "online")) {
				return
			}
		}
	}
}

// connection makes the next connection record.
func (t *traffic) connection(now int64) *record {
	if r := t.late; r != nil {
		t.late = nil
		return r
	}
	if t.churn.IntN(20) == 0 { // somebody who stays gives a sign of life
		i := t.residents[t.churn.IntN(len(t.residents))]
		opened := t.people[i].opened
		if len(opened) == 0 { // gone with its node
			return t.online(i, now, "online")
		}
		return t.heartbeat(i, now, opened[t.churn.IntN(len(opened))])
	}
	i := t.movers[t.churn.IntN(len(t.movers))]
	p := &t.people[i]
	if p.crashing && t.churn.IntN(25) == 0 {
		return t.nodeStarted(now)
	}
	dice := t.churn.IntN(100)
	if len(p.opened) == 0 {
		switch {
		case dice < 80 || p.closed.Type == "":
			return t.online(i, now, t.opening())
		case dice < 90: // a goodbye that is said twice
			return t.offline(i, now, p.closed, nil)
		default: // without a flag a heartbeat opens nothing
			beat := connectionEvent{Type: "heartbeat", OpenedAt: p.closed.OpenedAt, connection: p.closed.connection}
			return t.connectionRecord(i, t.stamp(i, now, beat), nil)
		}
	}
	at := t.churn.IntN(len(p.opened))
	open := p.opened[at]
	switch {
	case dice < 30 && len(p.opened) < t.cfg.Devices:
		return t.online(i, now, t.opening())
	case dice < 70:
		return t.close(i, now, at)
	case dice < 78: // an online of what is open already, with a new time
		return t.connectionRecord(i, t.stamp(i, now, open), nil)
	case dice < 84: // the same, as a producer's retry would repeat it
		return t.connectionRecord(i, open, nil)
	case dice < 88: // the device turns out to be another: closed and opened anew
		return t.reflag(i, now, at)
	default:
		return t.heartbeat(i, now, open)
	}
}

// opening is what a connection announces itself with.
func (t *traffic) opening() string {
	if t.churn.IntN(8) == 0 {
		return "heartbeat" // with a flag, as gateways say who is there already
	}
	return "online"
}

func (t *traffic) online(i int, now int64, kind string) *record {
	p := &t.people[i]
	node := t.crashNode()
	if !p.crashing {
		node = 1 + t.churn.Uint64N(uint64(t.cfg.Nodes))
		for n := 0; t.upsets.down[node] && n < t.cfg.Nodes; n++ { // where all are down, somebody is late to say so
			node = node%uint64(t.cfg.Nodes) + 1
		}
	}
	t.nextConn[node]++
	conn := truth.Connection{Node: node, Conn: t.nextConn[node], DeviceFlag: uint8(t.churn.IntN(3))}
	e := t.stamp(i, now, connectionEvent{Type: kind, connection: conn})
	if kind == "heartbeat" || conn.DeviceFlag != 0 || t.churn.IntN(2) == 0 { // 0 is what an online without it has
		e.DeviceFlag = &conn.DeviceFlag
	}
	if t.counts(node) {
		e.OpenedAt = e.Timestamp
	}
	p.opened = append(p.opened, e)
	if t.cfg.Heartbeat > 0 && !t.beats(node) {
		t.beat(i, e)
	}
	return t.connectionRecord(i, e, t.open(p.uid, conn))
}

func (t *traffic) close(i int, now int64, at int) *record {
	p := &t.people[i]
	gone := p.opened[at]
	p.opened = slices.Delete(p.opened, at, at+1)
	p.closed = gone
	if t.churn.IntN(10) == 0 {
		// A copy of its online comes late. It is older than the close, which must be remembered to tell: so it comes
		// next, and not after OFFHOOK_CLOSE_MEMORY.
		t.late = t.connectionRecord(i, gone, nil)
	}
	var statuses []truth.Status
	if !t.cfg.upset() {
		statuses = t.connections.Close(p.uid, gone.connection.Node, gone.connection.Conn)
	}
	return t.offline(i, now, gone, statuses)
}

// open opens a connection in the truth's model, which knows no upsets.
func (t *traffic) open(uid string, conn truth.Connection) []truth.Status {
	if t.cfg.upset() {
		return nil
	}
	return t.connections.Open(uid, conn)
}

func (t *traffic) offline(i int, now int64, gone connectionEvent, statuses []truth.Status) *record {
	bye := connectionEvent{Type: "offline", OpenedAt: gone.OpenedAt, connection: gone.connection}
	return t.connectionRecord(i, t.stamp(i, now, bye), statuses)
}

func (t *traffic) reflag(i int, now int64, at int) *record {
	p := &t.people[i]
	e := t.stamp(i, now, p.opened[at])
	e.Type = "online"
	e.connection.DeviceFlag = (e.connection.DeviceFlag + 1) % 3
	flag := e.connection.DeviceFlag
	e.DeviceFlag = &flag
	p.opened[at] = e
	return t.connectionRecord(i, e, t.open(p.uid, e.connection))
}

func (t *traffic) heartbeat(i int, now int64, open connectionEvent) *record {
	beat := connectionEvent{Type: "heartbeat", OpenedAt: open.OpenedAt, connection: open.connection}
	if t.churn.IntN(2) == 0 {
		beat.DeviceFlag = &beat.connection.DeviceFlag
	}
	return t.connectionRecord(i, t.stamp(i, now, beat), nil)
}

func (t *traffic) nodeStarted(now int64) *record {
	node := t.crashNode()
	var r *record
	if t.cfg.upset() {
		r = t.startOf(node, now)
		t.upsets.falls[node]++
	} else {
		t.crashTime = max(now, t.crashTime+1)
		r = &record{
			topic: t.cfg.ConnectionsTopic,
			key:   nodeKey(node),
			value: marshal(connectionEvent{Type: "node_started", NodeID: node, Timestamp: t.crashTime}),
		}
		r.expect(t.connections.RestartNode(node))
	}
	for _, i := range t.crashing {
		if p := &t.people[i]; len(p.opened) > 0 {
			p.closed = p.opened[len(p.opened)-1]
			p.opened = nil
		}
	}
	return r
}

// stamp gives an event the time now, or the next that rises. Amid upsets it is the time of its node's clock.
func (t *traffic) stamp(i int, now int64, e connectionEvent) connectionEvent {
	if t.cfg.upset() {
		e.Timestamp = t.upsets.tick(e.connection.Node, now)
		return e
	}
	last := &t.people[i].last
	if t.people[i].crashing {
		last = &t.crashTime
	}
	*last = max(now, *last+1)
	e.Timestamp = *last
	return e
}

func (t *traffic) connectionRecord(i int, e connectionEvent, statuses []truth.Status) *record {
	p := &t.people[i]
	e.UID, e.ConnID, e.NodeID = p.uid, e.connection.Conn, e.connection.Node
	if e.connection.Conn%4 == 0 {
		e.ConnID = strconv.FormatUint(e.connection.Conn, 10)
	}
	r := &record{topic: t.cfg.ConnectionsTopic, key: p.uid, value: marshal(e)}
	if p.crashing {
		r.key = nodeKey(t.crashNode())
	}
	r.expect(statuses)
	return r
}

func nodeKey(node uint64) string { return "node-" + strconv.FormatUint(node, 10) }

func (r *record) expect(statuses []truth.Status) {
	for _, s := range statuses {
		r.lines = append(r.lines, truth.Line{Kind: truth.KindStatus, UID: s.UID, Item: s.String()})
		if !slices.Contains(r.uids, s.UID) {
			r.uids = append(r.uids, s.UID)
		}
	}
}

// messageEvent is the JSON of an input record.
type messageEvent struct {
	Header      *messageHeader `json:"header,omitempty"`
	MessageID   any            `json:"message_id"`
	ClientMsgNo string         `json:"client_msg_no"`
	MessageSeq  uint64         `json:"message_seq"`
	FromUID     string         `json:"from_uid"`
	ChannelID   string         `json:"channel_id"`
	ChannelType uint8          `json:"channel_type"`
	Timestamp   int64          `json:"timestamp"`
	Payload     string         `json:"payload"`
	ToUIDs      []string       `json:"to_uids,omitempty"`
	OfflinePush *bool          `json:"offline_push,omitempty"`
	Topic       string         `json:"topic,omitempty"` // no field that offhook knows: it is passed on
}

type messageHeader struct {
	NoPersist uint8 `json:"no_persist"`
	RedDot    uint8 `json:"red_dot"`
	SyncOnce  uint8 `json:"sync_once"`
}

// firstMessageID is beyond what a float holds exactly.
const firstMessageID = 1<<53 + 1

// message makes the next message.
func (t *traffic) message(now int64) *record {
	t.seq++
	e := messageEvent{MessageSeq: t.seq, Timestamp: now}
	var from int
	var recipients []int
	push := true
	if len(t.groups) > 0 && t.talk.Float64() < t.cfg.GroupShare {
		g := &t.groups[pick(t.talk, t.busyGroups, len(t.groups))]
		from = g.senders[pick(t.talk, g.busy, len(g.senders))]
		e.ChannelID, e.ChannelType = g.id, 2
		if t.talk.IntN(50) == 0 {
			push = false // nobody is named: it is notified and that is all
		} else {
			recipients = g.members
			for _, m := range recipients {
				e.ToUIDs = append(e.ToUIDs, t.people[m].uid)
			}
			if t.talk.IntN(10) == 0 { // named twice, to be pushed to once
				e.ToUIDs = append(e.ToUIDs, e.ToUIDs[t.talk.IntN(len(e.ToUIDs))])
			}
		}
	} else {
		from = t.senders[pick(t.talk, t.busySenders, len(t.senders))]
		to := t.talk.IntN(len(t.people) - 1)
		if to >= from { // anybody but the sender
			to++
		}
		recipients = []int{to}
		e.ChannelID, e.ChannelType = t.people[to].uid, 1
		if t.talk.IntN(2) == 0 {
			e.ToUIDs = []string{e.ChannelID}
		}
	}
	if t.talk.IntN(20) == 0 {
		push = false
		e.OfflinePush = new(bool)
	}
	sender := &t.people[from]
	sender.sent++
	e.FromUID = sender.uid
	e.ClientMsgNo = truth.ClientMsgNo(t.cfg.Run, sender.uid, sender.sent)
	e.MessageID = firstMessageID + t.seq
	if t.seq%2 == 0 {
		e.MessageID = strconv.FormatUint(firstMessageID+t.seq, 10)
	}
	if t.seq%4 == 0 {
		e.Header = &messageHeader{RedDot: 1}
		e.Topic = "simulated"
	}
	e.Payload = base64.StdEncoding.EncodeToString(marshal(struct {
		Type    int    `json:"type"`
		Content string `json:"content"`
	}{1, "hello " + strconv.FormatUint(t.seq, 10)}))

	r := &record{topic: t.cfg.MessagesTopic, key: sender.uid, value: marshal(e), message: true}
	r.lines = []truth.Line{{
		Kind: truth.KindMessage, ClientMsgNo: e.ClientMsgNo, FromUID: sender.uid, N: sender.sent,
		ChannelID: e.ChannelID, ChannelType: e.ChannelType, Push: push,
	}}
	if push {
		for _, m := range recipients {
			if t.people[m].presence == truth.Sleeper { // who never sends
				r.pushes++
			}
		}
	}
	return r
}

// marshal encodes what cannot fail to be encoded.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
