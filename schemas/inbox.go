package schemas

import (
	"encoding/binary"
	"math"
	"slices"
)

// InboxKind says what an inbox record is.
type InboxKind uint8

// The kinds.
const (
	InboxConnection InboxKind = iota + 1 // a connection event of one uid or of one node
	InboxRecipients                      // a message and those of its recipients whose inbox partition this is
	InboxCaughtUp                        // route is at the end of some partitions with connection events
	InboxExpire                          // presence asks itself to close a connection of which it has long heard nothing
)

// Inbox is a decoded inbox record. Its byte slices alias the decoded value; strings are copies.
type Inbox struct {
	Kind       InboxKind
	Connection Connection // InboxConnection
	Item       []byte     // InboxRecipients: the webhook item, see Message
	Splice     int        // InboxRecipients
	UIDs       []string   // InboxRecipients: at least one, no duplicates
	CaughtUp   CaughtUp   // InboxCaughtUp
	Expire     Expire     // InboxExpire
}

// CaughtUp says that a process of route had read its partitions with connection events to their ends.
type CaughtUp struct {
	// AsOf is when the ends were asked for, Unix ms on the clock that also stamps the inbox record.
	AsOf   int64
	Topics []CaughtUpTopic
}

// CaughtUpTopic is one topic of a CaughtUp.
type CaughtUpTopic struct {
	Name       string
	Partitions int32   // that the topic has in all
	Read       []int32 // those that the process has read to the end
}

// Expire names a connection, and the inbox offset of the last sign of life that its owner knew.
type Expire struct {
	UID            string
	NodeID, ConnID ID
	Offset         int64
}

// Flags of an inbox connection.
const (
	inboxHasDeviceFlag = 1 << iota
	inboxHasBackground
	inboxBackground
	inboxHasOpenedAt
	inboxConnectionFlags = 1<<iota - 1
)

// AppendInboxConnection appends the value of the inbox record of a connection event:
//
//	kind 1 | type | flags: 1 device_flag, 2 background given, 4 background true, 8 opened_at |
//	time varint | uid | conn_id | node_id | device_flag byte, if flagged | opened_at varint, if flagged
//
// type is the [ConnectionType]; uid and conn_id are empty for a node's event.
func AppendInboxConnection(dst []byte, c *Connection) []byte {
	var flags byte
	if c.HasDeviceFlag {
		flags |= inboxHasDeviceFlag
	}
	if c.HasBackground {
		flags |= inboxHasBackground
		if c.Background {
			flags |= inboxBackground
		}
	}
	if c.OpenedAt >= 0 {
		flags |= inboxHasOpenedAt
	}
	dst = slices.Grow(dst, len(c.UID)+len(c.ConnID)+len(c.NodeID)+32)
	dst = append(dst, byte(InboxConnection), byte(c.Type), flags)
	dst = binary.AppendVarint(dst, c.Time)
	dst = appendString(dst, c.UID)
	dst = appendString(dst, c.ConnID)
	dst = appendString(dst, c.NodeID)
	if c.HasDeviceFlag {
		dst = append(dst, c.DeviceFlag)
	}
	if c.OpenedAt >= 0 {
		dst = binary.AppendVarint(dst, c.OpenedAt)
	}
	return dst
}

// AppendInboxRecipients appends the value of the inbox record of a message and its recipients:
//
//	kind 2 | item | splice uvarint | number of uids uvarint | uids
func AppendInboxRecipients(dst, item []byte, splice int, uids []string) []byte {
	size := len(item) + 32
	for _, uid := range uids {
		size += len(uid) + 2
	}
	dst = slices.Grow(dst, size)
	dst = append(dst, byte(InboxRecipients))
	dst = appendString(dst, item)
	dst = binary.AppendUvarint(dst, uint64(splice))
	dst = binary.AppendUvarint(dst, uint64(len(uids)))
	for _, uid := range uids {
		dst = appendString(dst, uid)
	}
	return dst
}

// AppendInboxCaughtUp appends the value of the inbox record that says where route is:
//
//	kind 3 | as of varint | number of topics uvarint | for each: name, partitions uvarint, number of those read
//	uvarint, and each of them uvarint
func AppendInboxCaughtUp(dst []byte, c *CaughtUp) []byte {
	dst = append(dst, byte(InboxCaughtUp))
	dst = binary.AppendVarint(dst, c.AsOf)
	dst = binary.AppendUvarint(dst, uint64(len(c.Topics)))
	for _, t := range c.Topics {
		dst = appendString(dst, t.Name)
		dst = binary.AppendUvarint(dst, uint64(t.Partitions))
		dst = binary.AppendUvarint(dst, uint64(len(t.Read)))
		for _, p := range t.Read {
			dst = binary.AppendUvarint(dst, uint64(p))
		}
	}
	return dst
}

// AppendInboxExpire appends the value of the inbox record that closes a connection of which nothing is heard:
//
//	kind 4 | offset uvarint | uid | conn_id | node_id
func AppendInboxExpire(dst []byte, e *Expire) []byte {
	dst = append(dst, byte(InboxExpire))
	dst = binary.AppendUvarint(dst, uint64(e.Offset))
	dst = appendString(dst, e.UID)
	dst = appendString(dst, e.ConnID)
	return appendString(dst, e.NodeID)
}

// DecodeInbox decodes an inbox record; headers give its version (*VersionError if newer, and for an unknown kind).
// Any other error is an *InvalidError.
func DecodeInbox[H AnyHeader](headers []H, value []byte) (Inbox, error) {
	const what = "inbox record"
	if err := CheckVersion(what, headers); err != nil {
		return Inbox{}, err
	}
	p := parser{what: what, rest: value}
	in := Inbox{Kind: InboxKind(p.byte())}
	switch in.Kind {
	case InboxConnection:
		p.inboxConnection(&in.Connection)
	case InboxRecipients:
		p.inboxRecipients(&in)
	case InboxCaughtUp:
		p.inboxCaughtUp(&in.CaughtUp)
	case InboxExpire:
		p.inboxExpire(&in.Expire)
	default:
		p.unknown("kind %d", in.Kind)
	}
	if err := p.end(); err != nil {
		return Inbox{}, err
	}
	return in, nil
}

func (p *parser) inboxConnection(c *Connection) {
	c.Type = ConnectionType(p.byte())
	if p.err == nil && (c.Type < Online || c.Type > NodeStarted) {
		p.unknown("connection type %d", c.Type)
	}
	flags := p.flags(inboxConnectionFlags)
	c.Time = p.varint()
	c.UID = string(p.bytes())
	c.ConnID = ID(p.bytes())
	c.NodeID = ID(p.bytes())
	if c.HasDeviceFlag = flags&inboxHasDeviceFlag != 0; c.HasDeviceFlag {
		c.DeviceFlag = p.byte()
	}
	c.HasBackground = flags&inboxHasBackground != 0
	c.Background = c.HasBackground && flags&inboxBackground != 0
	c.OpenedAt = -1
	if flags&inboxHasOpenedAt != 0 {
		if c.OpenedAt = p.varint(); c.OpenedAt < 0 {
			p.fail("has a negative opened_at")
		}
	}
}

func (p *parser) inboxCaughtUp(c *CaughtUp) {
	c.AsOf = p.varint()
	topics := p.uvarint()
	if topics > uint64(len(p.rest))/3 { // each takes three bytes at least, so that a wrong count cannot ask for memory
		p.fail(cutShort)
		return
	}
	c.Topics = make([]CaughtUpTopic, topics)
	for i := range c.Topics {
		t := &c.Topics[i]
		t.Name = string(p.bytes())
		t.Partitions = p.partition()
		read := p.uvarint()
		if read > uint64(len(p.rest)) {
			p.fail(cutShort)
			return
		}
		t.Read = make([]int32, read)
		for j := range t.Read {
			t.Read[j] = p.partition()
		}
	}
}

// partition reads a partition's number, or how many there are.
func (p *parser) partition() int32 {
	n := p.uvarint()
	if n > math.MaxInt32 {
		p.fail("has a partition past the last that Kafka can have")
		return 0
	}
	return int32(n)
}

// offset reads an offset of a log.
func (p *parser) offset() int64 {
	offset := p.uvarint()
	if offset > math.MaxInt64 {
		p.fail("has an offset past the last that Kafka can have")
		return 0
	}
	return int64(offset)
}

func (p *parser) inboxExpire(e *Expire) {
	e.Offset = p.offset()
	e.UID = string(p.bytes())
	e.ConnID = ID(p.bytes())
	e.NodeID = ID(p.bytes())
}

func (p *parser) inboxRecipients(in *Inbox) {
	in.Item = p.bytes()
	splice := p.uvarint()
	count := p.uvarint()
	switch {
	case p.err != nil:
		return
	case splice > uint64(len(in.Item)):
		p.fail("has a splice past its item")
		return
	case count == 0:
		p.fail("has no recipients")
		return
	case count > uint64(len(p.rest))/2: // each takes two bytes at least, so that a wrong count cannot ask for memory
		p.fail(cutShort)
		return
	}
	in.Splice = int(splice)
	in.UIDs = make([]string, count)
	// One copy holds all uids, their lengths between them.
	text := string(p.rest)
	for i := range in.UIDs {
		n := p.uvarint()
		at := len(text) - len(p.rest)
		if uid := p.take(n); p.err == nil && len(uid) == 0 {
			p.fail("has an empty uid")
		}
		if p.err != nil {
			return
		}
		in.UIDs[i] = text[at : at+int(n)]
	}
}
