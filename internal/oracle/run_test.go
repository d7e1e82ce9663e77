package oracle

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/offhook/offhook/schemas"
)

// run is everything that is known of a run; a test plants a fault in it.
type run struct {
	cfg      Config
	acks     []Ack
	inputs   []Record
	inbox    []Record
	dead     []Record
	requests []Request
}

func (r *run) oracle() (*Oracle, error) {
	o := New(r.cfg)
	for _, a := range r.acks {
		o.Ack(a)
	}
	for _, rec := range r.inputs {
		if err := o.Input(rec); err != nil {
			return nil, err
		}
	}
	for _, rec := range r.inbox {
		if err := o.Inbox(rec); err != nil {
			return nil, err
		}
	}
	for _, rec := range r.dead {
		if err := o.DeadLetter(rec); err != nil {
			return nil, err
		}
	}
	for _, req := range r.requests {
		if err := o.Request(req); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// out is an event of an event topic.
type out struct {
	event  string
	offset int64
	item   []byte
}

// place of a connection in the pipeline's table.
type tableKey struct {
	uid        string
	node, conn schemas.ID
}

type tableRow struct {
	flag       uint8
	version    int64
	background bool
	offset     int64 // of its last sign of life
	time       int64
}

// pipeline makes a run: traffic, and what a trivial offhook makes of it. Its presence knows no generations.
type pipeline struct {
	*rand.Rand
	run
	now     int64
	offsets map[string]int64 // the next of each partition
	queues  map[topicPartition][]Record
	order   []topicPartition

	ignoreOpen int // the number of the opening of which presence says nothing; 0: none
	spareOne   int // the number of the start of a node, of those that close two or more, that says nothing of one; 0: none
	faultAt    string

	open    map[tableKey]*tableRow
	closes  map[tableKey][3]int64
	starts  map[string]int64
	outs    map[topicPartition][]out
	inboxOf [][]Record
}

const (
	testTTL   = 15_000
	testStart = 1_700_000_000_000
)

func newPipeline(seed uint64) *pipeline {
	p := &pipeline{
		Rand: rand.New(rand.NewPCG(seed, 7)), now: testStart, offsets: make(map[string]int64), queues: make(map[topicPartition][]Record),
		open: make(map[tableKey]*tableRow), closes: make(map[tableKey][3]int64), starts: make(map[string]int64), outs: make(map[topicPartition][]out),
	}
	p.cfg = Config{
		Partitions: 4, Connections: []string{"im.connections", "more.connections"}, Messages: []string{"im.messages"}, Inbox: "offhook.inbox",
		OnlineFlags: []uint8{0, 1}, SystemUIDs: []string{"system"}, CloseMemory: 100 * time.Hour, TTL: testTTL * time.Millisecond,
		MaxRecordBytes: 2000, Findings: 1000,
	}
	p.inboxOf = make([][]Record, p.cfg.Partitions)
	return p
}

// offset is the next of a partition, which are not contiguous in a log of transactions.
func (p *pipeline) offset(topic string, partition int32) int64 {
	key := fmt.Sprintf("%s-%d", topic, partition)
	if p.IntN(5) == 0 {
		p.offsets[key]++
	}
	at := p.offsets[key]
	p.offsets[key]++
	return at
}

func (p *pipeline) input(topic string, partition int32, value []byte) {
	p.now += int64(1 + p.IntN(400))
	r := Record{Topic: topic, Partition: partition, Offset: p.offset(topic, partition), Time: p.now, Value: value}
	if p.IntN(3) == 0 {
		r.Key = []byte("k")
	}
	p.inputs = append(p.inputs, r)
	p.acks = append(p.acks, Ack{topic, partition, r.Offset, sum(value)})
	tp := topicPartition{topic, partition}
	if p.queues[tp] == nil {
		p.order = append(p.order, tp)
	}
	p.queues[tp] = append(p.queues[tp], r)
}

func (p *pipeline) uid() string { return fmt.Sprintf("u-%d", p.IntN(25)) }

// traffic makes n input records, with route close behind.
func (p *pipeline) traffic(n int) {
	for range n {
		switch p.IntN(10) {
		case 0, 1, 2, 3, 4:
			p.connectionEvent()
		case 5:
			p.nodeEvent()
		case 6, 7, 8:
			p.message()
		default:
			bad := [][]byte{[]byte(`{`), nil, {}, []byte(`{"type":"online"}`), []byte(`{"channel_id":1}`), make([]byte, 3000), []byte(`"x"`)}
			topic := "im.messages"
			if p.IntN(2) == 0 {
				topic = "im.connections"
			}
			p.input(topic, int32(p.IntN(3)), bad[p.IntN(len(bad))])
		}
		for range p.IntN(3) {
			p.route()
		}
	}
	for len(p.order) > 0 {
		p.route()
	}
	p.sink()
	slices.SortStableFunc(p.inbox, func(a, b Record) int { return cmp.Compare(a.Time, b.Time) })
}

func (p *pipeline) connectionEvent() {
	uid := p.uid()
	conn := fmt.Sprint(p.IntN(3))
	if conn == "2" {
		conn = `"c-2"`
	}
	typ := []string{"online", "online", "offline", "heartbeat"}[p.IntN(4)]
	e := fmt.Sprintf(`{"type":%q,"uid":%q,"conn_id":%s,"node_id":%d`, typ, uid, conn, p.IntN(3))
	if typ == "online" || p.IntN(2) == 0 {
		e += fmt.Sprintf(`,"device_flag":%d`, p.IntN(3))
	}
	if p.IntN(4) == 0 {
		e += fmt.Sprintf(`,"background":%t`, p.IntN(2) == 0)
	}
	if p.IntN(4) == 0 {
		e += fmt.Sprintf(`,"timestamp":%d`, p.now-int64(p.IntN(20_000)))
	}
	topic := p.cfg.Connections[len(uid)%2]
	p.input(topic, int32(sum([]byte(uid))%3), []byte(e+`}`))
	if p.IntN(10) == 0 { // doubled, it may be in another partition
		p.input(topic, int32(p.IntN(3)), []byte(e+`}`))
	}
}

func (p *pipeline) nodeEvent() {
	e := `{"type":"heartbeat","node_id":%d}`
	if p.IntN(2) == 0 {
		e = `{"type":"node_started","node_id":%d}`
	}
	p.input("im.connections", int32(p.IntN(3)), fmt.Appendf(nil, e, p.IntN(3)))
}

func (p *pipeline) message() {
	from := p.uid()
	n := len(p.inputs)
	m := fmt.Appendf(nil, `{"message_id":%d,"from_uid":%q,"payload":"QQ==","more":[%d]`, n, from, n)
	switch p.IntN(4) {
	case 0:
		m = fmt.Appendf(m, `,"channel_id":%q}`, p.uid())
	case 1:
		m = fmt.Appendf(m, `,"channel_id":"g","channel_type":2,"offline_push":false,"to_uids":[%q]}`, p.uid())
	default:
		m = fmt.Appendf(m, `,"channel_id":"g","channel_type":2,"to_uids":["system",%q,%q,""`, from, p.uid())
		for range p.IntN(20) {
			m = fmt.Appendf(m, `,%q`, p.uid())
		}
		m = append(m, "]}"...)
	}
	p.input("im.messages", int32(sum([]byte(from))%3), m)
	if p.IntN(15) == 0 {
		p.input("im.messages", int32(p.IntN(3)), m)
	}
}

// route takes one record of any input partition.
func (p *pipeline) route() {
	if len(p.order) == 0 {
		return
	}
	i := p.IntN(len(p.order))
	tp := p.order[i]
	r := p.queues[tp][0]
	if p.queues[tp] = p.queues[tp][1:]; len(p.queues[tp]) == 0 {
		delete(p.queues, tp)
		p.order = slices.Delete(p.order, i, i+1)
	}
	p.now++
	dead := func(reason schemas.Reason) {
		p.deadLetter(schemas.DeadLetter{
			Source: schemas.Source{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset}, TopicID: [16]byte{9}, SourceKey: r.Key,
			Value: r.Value, Reason: reason, Sink: "route",
		})
	}
	if len(r.Key)+len(r.Value) > p.cfg.MaxRecordBytes {
		dead(schemas.ReasonTooLarge)
		return
	}
	if r.Value == nil {
		return
	}
	if tp.topic == "im.messages" {
		m, err := schemas.DecodeMessage(r.Value, schemas.Source{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Time: r.Time})
		if err != nil {
			dead(schemas.ReasonInvalid)
			return
		}
		p.routeMessage(&m)
		return
	}
	c, err := schemas.DecodeConnection(r.Value, r.Time)
	if err != nil {
		dead(schemas.ReasonInvalid)
		return
	}
	for q := range p.cfg.Partitions {
		if c.UID == "" || q == partition(c.UID, p.cfg.Partitions) {
			offset := p.toInbox(q, schemas.AppendInboxConnection(nil, &c))
			p.present(q, &c, offset)
		}
	}
}

func (p *pipeline) routeMessage(m *schemas.Message) {
	key := cmp.Or(m.FromUID, m.ChannelID)
	if p.cfg.OrderByChannel {
		key = m.ChannelID
	}
	p.emit(msgNotify, partition(key, p.cfg.Partitions), m.Item)
	if !m.OfflinePush {
		return
	}
	to := make([][]string, p.cfg.Partitions)
	seen := map[string]bool{m.FromUID: true, "system": true}
	for _, uid := range m.Recipients {
		if !seen[uid] {
			seen[uid] = true
			q := partition(uid, p.cfg.Partitions)
			to[q] = append(to[q], uid)
		}
	}
	for q, uids := range to {
		for len(uids) > 0 { // cut anywhere
			n := 1 + p.IntN(len(uids))
			p.toInbox(int32(q), schemas.AppendInboxRecipients(nil, m.Item, m.Splice, uids[:n]))
			var offline []string
			for _, uid := range uids[:n] {
				reachable := false
				for key, row := range p.open {
					reachable = reachable || key.uid == uid && row.flag < 2 && (!row.background || p.cfg.BackgroundIsOnline)
				}
				if !reachable {
					offline = append(offline, uid)
				}
			}
			if len(offline) > 0 {
				p.emit(msgOffline, int32(q), schemas.AppendOfflineItem(nil, m.Item, m.Splice, offline))
			}
			uids = uids[n:]
		}
	}
}

func (p *pipeline) toInbox(q int32, value []byte) int64 {
	offset := p.offset("offhook.inbox", q)
	p.inbox = append(p.inbox, Record{
		Topic: "offhook.inbox", Partition: q, Offset: offset, Time: p.now, Value: value, Headers: []Header{{"v", []byte("1")}},
	})
	return offset
}

func (p *pipeline) emit(event string, q int32, item []byte) {
	tp := topicPartition{event, q}
	p.outs[tp] = append(p.outs[tp], out{event, p.offset(event, q), item})
}

func (p *pipeline) status(key tableKey, flag uint8, online bool) {
	s := schemas.OnlineStatus{UID: key.uid, DeviceFlag: flag, Online: online, ConnID: key.conn.Number()}
	for k, row := range p.open {
		if k.uid == key.uid {
			s.TotalCount++
			if row.flag == flag {
				s.DeviceCount++
			}
		}
	}
	p.emit(onlineStatus, partition(key.uid, p.cfg.Partitions), schemas.AppendOnlineStatus(nil, s))
}

func (p *pipeline) close(key tableKey, at int64) {
	row := p.open[key]
	delete(p.open, key)
	p.closes[key] = [3]int64{at, row.version, 1}
	p.status(key, row.flag, false)
}

func (p *pipeline) present(q int32, c *schemas.Connection, offset int64) {
	key := tableKey{c.UID, c.NodeID, c.ConnID}
	row := p.open[key]
	node := fmt.Sprint(q, c.NodeID)
	start, started := p.starts[node]
	mayOpen := !started || c.Time >= start
	if was, is := p.closes[key]; is {
		mayOpen = mayOpen && c.Time >= was[0] && (was[2] == 1 && c.Time > was[1] || was[2] == 0 && c.Time > was[0])
	}
	open := func() {
		p.open[key] = &tableRow{c.DeviceFlag, c.Time, c.Background, offset, p.now}
		delete(p.closes, key)
		if p.ignoreOpen--; p.ignoreOpen == 0 {
			p.faultAt = fmt.Sprintf("offhook.inbox-%d offset %d ", q, offset)
			return
		}
		p.status(key, c.DeviceFlag, true)
	}
	switch {
	case c.Type == schemas.NodeStarted:
		if started && c.Time <= start {
			return
		}
		p.starts[node] = c.Time
		var keys []tableKey
		for k, row := range p.open {
			if k.node == c.NodeID && row.version <= c.Time && partition(k.uid, p.cfg.Partitions) == q {
				keys = append(keys, k)
			}
		}
		slices.SortFunc(keys, func(a, b tableKey) int { return cmp.Or(cmp.Compare(a.uid, b.uid), a.conn.Compare(b.conn)) })
		if len(keys) >= 2 {
			if p.spareOne--; p.spareOne == 0 {
				p.faultAt = fmt.Sprintf("offhook.inbox-%d offset %d ", q, offset)
				last := len(keys) - 1
				p.closes[keys[last]] = [3]int64{c.Time, p.open[keys[last]].version, 1}
				delete(p.open, keys[last])
				keys = keys[:last]
			}
		}
		for _, k := range keys {
			p.close(k, c.Time)
		}
	case c.UID == "":
		for k, row := range p.open {
			if k.node == c.NodeID && partition(k.uid, p.cfg.Partitions) == q {
				row.offset, row.time = offset, p.now
			}
		}
	case row == nil && c.Type == schemas.Offline:
		if was, is := p.closes[key]; !is || c.Time > was[0] {
			p.closes[key] = [3]int64{c.Time, 0, 0}
		}
	case row == nil:
		if c.HasDeviceFlag && mayOpen {
			open()
		}
	case c.Time < row.version:
	case c.Type == schemas.Offline:
		p.close(key, c.Time)
	case c.Type == schemas.Online && row.flag != c.DeviceFlag:
		flag := row.flag
		delete(p.open, key)
		p.status(key, flag, false)
		open()
	default:
		row.offset, row.time = offset, p.now
		if c.Type == schemas.Online {
			row.version = c.Time
		}
		if c.HasBackground {
			row.background = c.Background
		}
	}
	p.sweep(q)
}

// sweep closes one connection of a partition that has been silent for long.
func (p *pipeline) sweep(q int32) {
	if p.IntN(3) > 0 {
		return
	}
	var silent []tableKey
	for k, row := range p.open {
		if p.now-row.time >= testTTL && partition(k.uid, p.cfg.Partitions) == q {
			silent = append(silent, k)
		}
	}
	if len(silent) == 0 {
		return
	}
	slices.SortFunc(silent, func(a, b tableKey) int {
		return cmp.Or(cmp.Compare(a.uid, b.uid), a.node.Compare(b.node), a.conn.Compare(b.conn))
	})
	key := silent[0]
	row := p.open[key]
	p.toInbox(q, schemas.AppendInboxExpire(nil, &schemas.Expire{UID: key.uid, NodeID: key.node, ConnID: key.conn, Offset: row.offset}))
	p.toInbox(q, schemas.AppendInboxCaughtUp(nil, &schemas.CaughtUp{AsOf: p.now, Topics: []schemas.CaughtUpTopic{{Name: "im.connections", Partitions: 3, Read: []int32{0, 2}}}}))
	p.close(key, row.version)
}

func (p *pipeline) deadLetter(d schemas.DeadLetter) {
	r := Record{Topic: "offhook.dead-letters", Partition: d.Source.Partition % p.cfg.Partitions, Offset: p.offset("dead", 0), Time: p.now, Key: d.Key(), Value: d.Value}
	for _, h := range d.Headers() {
		r.Headers = append(r.Headers, Header{h.Key, h.Value})
	}
	p.dead = append(p.dead, r)
}

var topicIDs = map[string][16]byte{onlineStatus: {0xab, 1}, msgOffline: {0xab, 2}, msgNotify: {0xab, 3}}

// sink sends what was emitted: lanes side by side, some requests refused first and some repeated.
func (p *pipeline) sink() {
	var lanes []topicPartition
	for tp := range p.outs {
		lanes = append(lanes, tp)
	}
	slices.SortFunc(lanes, func(a, b topicPartition) int {
		return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.partition, b.partition))
	})
	next := make(map[topicPartition]int64) // where the next batch begins
	for len(lanes) > 0 {
		i := p.IntN(len(lanes))
		tp := lanes[i]
		events := p.outs[tp]
		n := min(len(events), 1+p.IntN(4))
		batch := events[:n]
		if p.outs[tp] = events[n:]; n == len(events) {
			lanes = slices.Delete(lanes, i, i+1)
		}
		if p.IntN(20) == 0 {
			for _, e := range batch {
				p.deadLetter(schemas.DeadLetter{
					Source: schemas.Source{Topic: "offhook." + tp.topic, Partition: tp.partition, Offset: e.offset}, TopicID: topicIDs[tp.topic],
					Value: e.item, Reason: schemas.ReasonGaveUp, Sink: "default",
				})
			}
			if p.IntN(2) == 0 {
				p.dead = append(p.dead, p.dead[len(p.dead)-1]) // a copy
			}
			next[tp] = batch[n-1].offset + 1
			continue
		}
		var items [][]byte
		for _, e := range batch {
			items = append(items, e.item)
		}
		p.now += 3
		r := Request{
			Time: p.now, Event: tp.topic, Taken: true, Body: schemas.AppendBody(nil, items),
			ID: fmt.Sprintf("%x-%d-%d-%d", topicIDs[tp.topic], tp.partition, next[tp], batch[n-1].offset),
		}
		next[tp] = batch[n-1].offset + 1
		refused := r
		refused.Taken = false
		for range max(0, p.IntN(5)-3) {
			p.requests = append(p.requests, refused)
		}
		p.requests = append(p.requests, r)
		for range max(0, p.IntN(5)-3) {
			p.requests = append(p.requests, r)
		}
	}
}
