package oracle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// The kinds of inbox records.
const (
	inboxConnection = 1
	inboxRecipients = 2
	inboxCaughtUp   = 3
	inboxExpire     = 4
)

// inboxRecord is a decoded one.
type inboxRecord struct {
	kind       byte
	connection Connection
	item       []byte // inboxRecipients
	splice     int
	uids       [][]byte
	expire     struct {
		offset              int64
		uid, connID, nodeID string
	}
}

var errInboxRecord = errors.New("is no inbox record of format 1")

// cursor reads the parts of a binary record; bad is set where one is not there.
type cursor struct {
	rest []byte
	bad  bool
}

func (c *cursor) byte() byte {
	if len(c.rest) == 0 {
		c.bad = true
		return 0
	}
	b := c.rest[0]
	c.rest = c.rest[1:]
	return b
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.rest)
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.rest)
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

func (c *cursor) bytes() []byte {
	n := c.uvarint()
	if n > uint64(len(c.rest)) {
		c.bad = true
		return nil
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

// decode reads an inbox record's value; what it holds aliases it, and is valid until the next.
func (r *inboxRecord) decode(headers []Header, value []byte) error {
	version := ""
	for _, h := range headers {
		if h.Key == "v" {
			version = string(h.Value)
		}
	}
	if version != "1" {
		return errInboxRecord
	}
	c := cursor{rest: value}
	r.kind = c.byte()
	switch r.kind {
	case inboxConnection:
		r.decodeConnection(&c)
	case inboxRecipients:
		r.item = c.bytes()
		splice := c.uvarint()
		n := c.uvarint()
		if splice > uint64(len(r.item)) || n == 0 || n > uint64(len(c.rest)) {
			return errInboxRecord
		}
		r.splice, r.uids = int(splice), r.uids[:0]
		for range n {
			r.uids = append(r.uids, c.bytes())
		}
	case inboxCaughtUp:
		c.varint()
		for n := c.uvarint(); n > 0 && !c.bad; n-- {
			c.bytes()
			c.uvarint()
			for read := c.uvarint(); read > 0 && !c.bad; read-- {
				c.uvarint()
			}
		}
	case inboxExpire:
		offset := c.uvarint()
		c.bad = c.bad || offset > math.MaxInt64
		r.expire.offset = int64(offset)
		r.expire.uid, r.expire.connID, r.expire.nodeID = string(c.bytes()), string(c.bytes()), string(c.bytes())
	default:
		return errInboxRecord
	}
	if c.bad || len(c.rest) > 0 {
		return errInboxRecord
	}
	return nil
}

func (r *inboxRecord) decodeConnection(c *cursor) {
	const hasFlag, hasBackground, background, hasOpenedAt = 1, 2, 4, 8
	e := Connection{Type: ConnectionType(c.byte()), OpenedAt: -1}
	flags := c.byte()
	c.bad = c.bad || e.Type < Online || e.Type > NodeStarted || flags > 15
	e.Time = c.varint()
	e.UID, e.ConnID, e.NodeID = string(c.bytes()), string(c.bytes()), string(c.bytes())
	if e.HasDeviceFlag = flags&hasFlag != 0; e.HasDeviceFlag {
		e.DeviceFlag = c.byte()
	}
	e.HasBackground = flags&hasBackground != 0
	e.Background = e.HasBackground && flags&background != 0
	if flags&hasOpenedAt != 0 {
		e.OpenedAt = c.varint()
	}
	r.connection = e
}

// inboxPartition is one partition of the inbox while it is read, with the presence of its users.
type inboxPartition struct {
	number  int32
	last    int64 // offset of the last record
	inputs  []*input
	merge   *merge
	record  inboxRecord
	numbers []uint32 // of a record's uids
	presence
}

func newInboxPartition(number int32) *inboxPartition {
	return &inboxPartition{number: number, last: -1, presence: newPresence()}
}

// beginInbox makes the merges, when all of the input is known.
func (o *Oracle) beginInbox() {
	for q, p := range o.inbox {
		var sources []source
		for _, in := range o.order {
			if len(in.toInbox[q].pieces) > 0 {
				sources = append(sources, in.toInbox[q])
				p.inputs = append(p.inputs, in)
			}
		}
		p.merge = newMerge(sources)
	}
}

// Inbox takes the next record of an inbox partition, from its very first; each partition's must come in the order of
// their offsets, and after all of the input. An error says that what is given is not in that order, or is no record of
// the inbox.
func (o *Oracle) Inbox(r Record) error {
	if err := o.enter(readingInbox); err != nil {
		return err
	}
	if r.Topic != o.cfg.Inbox || r.Partition < 0 || r.Partition >= o.cfg.Partitions {
		return fmt.Errorf("read inbox: %s-%d is no partition of it", r.Topic, r.Partition)
	}
	p := o.inbox[r.Partition]
	if r.Offset <= p.last {
		return fmt.Errorf("read %s-%d at offset %d after %d: %w", r.Topic, r.Partition, r.Offset, p.last, errOffsets)
	}
	p.last = r.Offset
	o.report.InboxRecords++
	if err := p.record.decode(r.Headers, r.Value); err != nil {
		o.find(InboxOrder, "%s-%d offset %d %v", r.Topic, r.Partition, r.Offset, err)
		return nil
	}
	switch p.record.kind {
	case inboxConnection:
		c := &p.record.connection
		o.explain(p, r.Offset, o.hashConnection(c), nil)
		o.connectionEvent(p, c, r.Offset, r.Time)
	case inboxRecipients:
		p.numbers = p.numbers[:0]
		for _, uid := range p.record.uids {
			p.numbers = append(p.numbers, o.names.numberOf(uid))
		}
		hash := o.hashItem(p.record.item[:p.record.splice], p.record.item[p.record.splice:])
		o.explain(p, r.Offset, hash, p.numbers)
		o.recipients(p, hash, r.Offset)
	case inboxExpire:
		e := &p.record.expire
		o.expire(p, o.connectionKey(e.uid, e.nodeID, e.connID), e.offset, r.Offset, r.Time)
	}
	return nil
}

// explain looks in the input for what an inbox record was made of.
func (o *Oracle) explain(p *inboxPartition, offset int64, hash uint64, uids []uint32) {
	f, ref := p.merge.step(hash, uids)
	if f == fits {
		return
	}
	where := fmt.Sprintf("%s-%d offset %d", o.cfg.Inbox, p.number, offset)
	var from string
	if f == late || f == again || f == differs {
		from = fmt.Sprintf("%s offset %d", p.inputs[ref.source], p.merge.sources[ref.source].pieces[ref.piece].offset)
	}
	switch f {
	case unexplained:
		o.find(InboxOrder, "%s: no input record explains it", where)
	case late:
		o.find(InboxOrder, "%s: made of %s, of whose partition a later record came before", where, from)
	case again:
		o.find(InboxOrder, "%s: made of %s, which came already", where, from)
	case differs:
		o.find(InboxOrder, "%s: made of %s, with other recipients than stand there", where, from)
	case tooManyWays:
		o.find(InboxOrder, "%s: what stands before it can be explained in more than %d ways", where, maxWays)
	}
}

// judgeInbox looks for input that did not reach the inbox.
func (o *Oracle) judgeInbox() {
	for _, p := range o.inbox {
		p.merge.missing(func(ref pieceRef, came, of uint32) {
			src := &p.merge.sources[ref.source]
			offset := src.pieces[ref.piece].offset
			if came > 0 {
				o.find(LostInput, "%s offset %d: only %d of %d recipients are in %s-%d", p.inputs[ref.source], offset, came, of, o.cfg.Inbox, p.number)
				return
			}
			o.find(LostInput, "%s offset %d has no record in %s-%d", p.inputs[ref.source], offset, o.cfg.Inbox, p.number)
		})
	}
}
