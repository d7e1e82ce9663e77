package schemas

import "encoding/binary"

// PresenceKind says what a key of the presence topic names.
type PresenceKind uint8

// The kinds, which are also the key's first byte.
const (
	PresenceConnection PresenceKind = iota + 1
	PresenceNodeStart
	PresenceStartMarker
)

// PresenceKey is the key of a record of the presence topic.
type PresenceKey struct {
	Kind   PresenceKind
	UID    string // PresenceConnection
	NodeID ID     // PresenceConnection, PresenceNodeStart
	ConnID ID     // PresenceConnection
}

// AppendPresenceKey appends the key's bytes: a kind byte, then the names, each with its length:
//
//	kind 1 | uid | node_id | conn_id
//	kind 2 | node_id
//	kind 3
//
// Compaction compares keys bytewise, so the encoding of a key is unique.
func AppendPresenceKey(dst []byte, k PresenceKey) []byte {
	dst = append(dst, byte(k.Kind))
	switch k.Kind {
	case PresenceConnection:
		dst = appendString(dst, k.UID)
		dst = appendString(dst, k.NodeID)
		dst = appendString(dst, k.ConnID)
	case PresenceNodeStart:
		dst = appendString(dst, k.NodeID)
	}
	return dst
}

// DecodePresenceKey is its inverse. The names share one copy of the key: clone one that is kept by itself. An unknown kind is
// a *VersionError, any other error an *InvalidError.
func DecodePresenceKey(key []byte) (PresenceKey, error) {
	p := parser{what: "presence key", rest: key}
	text := string(key)
	name := func() string {
		n := len(p.bytes())
		end := len(text) - len(p.rest)
		return text[end-n : end]
	}
	k := PresenceKey{Kind: PresenceKind(p.byte())}
	switch k.Kind {
	case PresenceConnection:
		k.UID = name()
		k.NodeID = ID(name())
		k.ConnID = ID(name())
	case PresenceNodeStart:
		k.NodeID = ID(name())
	case PresenceStartMarker:
	default:
		p.unknown("kind %d", k.Kind)
	}
	if err := p.end(); err != nil {
		return PresenceKey{}, err
	}
	return k, nil
}

// ConnectionState is what the presence topic holds of one connection: live, or a close that is remembered.
type ConnectionState struct {
	Open       bool
	DeviceFlag uint8
	Version    int64 // time of the latest online (or heartbeat that opened), or of the close; Unix ms
	// Opened is, of a remembered close, the version that the connection had when it was closed; equal to
	// Version for the close of a connection that was never seen. An online at or before it is a copy.
	Opened int64
	// InboxTime is, of a remembered close, the time of the inbox record that made it, Unix ms.
	InboxTime  int64
	OpenedAt   int64 // the generation, Unix ms; -1: unknown
	Background bool
}

// Flags of a connection state.
const (
	stateOpen = 1 << iota
	stateBackground
	stateHasOpenedAt
	stateFlags = 1<<iota - 1
)

// AppendConnectionState appends the value's bytes:
//
//	flags: 1 open, 2 background, 4 opened_at | device_flag byte | version varint |
//	if not open: version − opened varint, inbox time − version varint |
//	opened_at varint, if flagged
//
// Opened and InboxTime of an open connection are not written and come back 0.
func AppendConnectionState(dst []byte, s ConnectionState) []byte {
	var flags byte
	if s.Open {
		flags |= stateOpen
	}
	if s.Background {
		flags |= stateBackground
	}
	if s.OpenedAt >= 0 {
		flags |= stateHasOpenedAt
	}
	dst = append(dst, flags, s.DeviceFlag)
	dst = binary.AppendVarint(dst, s.Version)
	if !s.Open {
		dst = binary.AppendVarint(dst, s.Version-s.Opened)
		dst = binary.AppendVarint(dst, s.InboxTime-s.Version)
	}
	if s.OpenedAt >= 0 {
		dst = binary.AppendVarint(dst, s.OpenedAt)
	}
	return dst
}

// DecodeConnectionState is its inverse. An unknown flag is a *VersionError, any other error an *InvalidError.
func DecodeConnectionState(value []byte) (ConnectionState, error) {
	p := parser{what: "connection state", rest: value}
	flags := p.flags(stateFlags)
	s := ConnectionState{
		Open: flags&stateOpen != 0, Background: flags&stateBackground != 0,
		DeviceFlag: p.byte(), Version: p.varint(), OpenedAt: -1,
	}
	if !s.Open {
		s.Opened = s.Version - p.varint()
		s.InboxTime = s.Version + p.varint()
	}
	if flags&stateHasOpenedAt != 0 {
		if s.OpenedAt = p.varint(); s.OpenedAt < 0 {
			p.fail("has a negative opened_at")
		}
	}
	if err := p.end(); err != nil {
		return ConnectionState{}, err
	}
	return s, nil
}

// NodeStart is what the presence topic holds of a gateway node: its last start.
type NodeStart struct {
	Time      int64 // Unix ms, the event's
	InboxTime int64 // Unix ms, the inbox record's
	Offset    int64 // the inbox record's; -1: unknown
}

// startHasOffset flags a node start.
const startHasOffset = 1

// AppendNodeStart appends the value's bytes:
//
//	flags: 1 offset | time varint | inbox time − time varint | offset uvarint, if flagged
func AppendNodeStart(dst []byte, s NodeStart) []byte {
	flags := byte(0)
	if s.Offset >= 0 {
		flags = startHasOffset
	}
	dst = append(dst, flags)
	dst = binary.AppendVarint(dst, s.Time)
	dst = binary.AppendVarint(dst, s.InboxTime-s.Time)
	if s.Offset >= 0 {
		dst = binary.AppendUvarint(dst, uint64(s.Offset))
	}
	return dst
}

// DecodeNodeStart is its inverse. An unknown flag is a *VersionError, any other error an *InvalidError.
func DecodeNodeStart(value []byte) (NodeStart, error) {
	p := parser{what: "node start", rest: value}
	flags := p.flags(startHasOffset)
	s := NodeStart{Time: p.varint(), Offset: -1}
	s.InboxTime = s.Time + p.varint()
	if flags&startHasOffset != 0 {
		s.Offset = p.offset()
	}
	if err := p.end(); err != nil {
		return NodeStart{}, err
	}
	return s, nil
}

// StartMarker says which input topics route has begun to read.
type StartMarker struct{ Topics []MarkedTopic }

// MarkedTopic is one topic of a StartMarker.
type MarkedTopic struct {
	Name string
	ID   [16]byte // zero: it did not exist when route began
}

// AppendStartMarker appends the value's bytes:
//
//	flags: none yet | number of topics uvarint | for each its name, and 16 bytes of its id
func AppendStartMarker(dst []byte, m StartMarker) []byte {
	dst = append(dst, 0)
	dst = binary.AppendUvarint(dst, uint64(len(m.Topics)))
	for _, t := range m.Topics {
		dst = appendString(dst, t.Name)
		dst = append(dst, t.ID[:]...)
	}
	return dst
}

// DecodeStartMarker is its inverse. An unknown flag is a *VersionError, any other error an *InvalidError.
func DecodeStartMarker(value []byte) (StartMarker, error) {
	p := parser{what: "start marker", rest: value}
	p.flags(0)
	var m StartMarker
	count := p.uvarint()
	if count > uint64(len(p.rest))/17 { // each takes 17 bytes at least, so that a wrong count cannot ask for memory
		p.fail(cutShort)
		count = 0
	}
	if count > 0 {
		m.Topics = make([]MarkedTopic, count)
	}
	for i := range m.Topics {
		m.Topics[i].Name = string(p.bytes())
		copy(m.Topics[i].ID[:], p.take(16))
	}
	if err := p.end(); err != nil {
		return StartMarker{}, err
	}
	return m, nil
}
