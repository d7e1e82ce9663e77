package schemas

import "math"

// ConnectionType is the type of a connection event.
type ConnectionType uint8

// The types of the field `type`.
const (
	Online ConnectionType = iota + 1
	Offline
	Heartbeat
	NodeStarted
)

// String is the type as it stands in the record.
func (t ConnectionType) String() string {
	switch t {
	case Online:
		return "online"
	case Offline:
		return "offline"
	case Heartbeat:
		return "heartbeat"
	case NodeStarted:
		return "node_started"
	}
	return "unknown"
}

// Connection is one input record of a connections topic.
type Connection struct {
	Type          ConnectionType
	UID           string // empty for a whole node's event: NodeStarted, and a Heartbeat without uid and conn_id
	ConnID        ID     // empty likewise
	NodeID        ID     // "0" where the record names none
	DeviceFlag    uint8
	HasDeviceFlag bool  // for Online always true (the default is 0); false for a node's event
	Time          int64 // Unix milliseconds
	OpenedAt      int64 // Unix milliseconds; -1: absent
	Background    bool
	HasBackground bool // false where the event says nothing of it, which only online and heartbeat of a connection can
}

const (
	uidForm = "a string of 1 to 256 bytes of UTF-8 without control characters"
	idForm  = "an integer from 0 to 9223372036854775807 or a string of 1 to 256 bytes"
	types   = "online, offline, heartbeat or node_started"
)

// DecodeConnection decodes a JSON connection event; recordTime is the Kafka record's timestamp in Unix ms,
// the default of the field timestamp. A returned error is an *InvalidError. Strings are copies of value.
//
// A node_started event is its node's alone: a uid or conn_id in it is not looked at. Fields beyond the known ones
// are ignored.
func DecodeConnection(value []byte, recordTime int64) (Connection, error) {
	r := newReader(value)
	defer r.release()
	c := Connection{Time: defaultTime(recordTime), OpenedAt: -1}
	if err := c.decode(r); err != nil {
		return Connection{}, err
	}
	return c, nil
}

func (c *Connection) decode(r *reader) error {
	if err := r.shallow(); err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	var uid, connID []byte // raw; the type, which may come after them, says whether they matter
	for {
		name, _, ok, err := r.member()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		raw, err := r.raw()
		if err != nil {
			return err
		}
		if isNull(raw) {
			continue
		}
		switch string(name) {
		case "type":
			c.Type, err = r.connectionType(raw)
		case "uid":
			uid = raw
		case "conn_id":
			connID = raw
		case "node_id":
			c.NodeID, err = r.id("node_id", raw)
		case "device_flag":
			var n uint64
			n, err = integer("device_flag", raw, math.MaxUint8)
			c.DeviceFlag, c.HasDeviceFlag = uint8(n), true
		case "opened_at":
			c.OpenedAt, err = r.time("opened_at", raw)
		case "background":
			c.Background, err = boolean("background", raw)
			c.HasBackground = true
		case "timestamp":
			c.Time, err = r.time("timestamp", raw)
		}
		if err != nil {
			return err
		}
	}
	if err := r.leave(); err != nil {
		return err
	}
	if err := r.finish(); err != nil {
		return err
	}
	return c.identify(r, uid, connID)
}

// identify settles what the event is about, a connection or a node.
func (c *Connection) identify(r *reader, uid, connID []byte) error {
	switch {
	case c.Type == 0:
		return invalid("type", "is required: "+types)
	case c.Type == NodeStarted && c.NodeID == "":
		return invalid("node_id", "is required for node_started: "+idForm)
	case c.Type == Heartbeat && uid == nil && connID == nil && c.NodeID == "":
		return invalid("node_id", "is required for a heartbeat without uid and conn_id, which is a node's: "+idForm)
	case c.Type == NodeStarted, c.Type == Heartbeat && uid == nil && connID == nil:
		c.DeviceFlag, c.HasDeviceFlag = 0, false
		c.Background, c.HasBackground = false, false
		return nil
	case uid == nil:
		return invalid("uid", "is required: "+uidForm)
	case connID == nil:
		return invalid("conn_id", "is required: "+idForm)
	}
	text, err := r.text("uid", uid)
	if err != nil || !validUID(text) {
		return invalid("uid", "must be "+uidForm)
	}
	c.UID = string(text)
	if c.ConnID, err = r.id("conn_id", connID); err != nil {
		return err
	}
	if c.NodeID == "" {
		c.NodeID = "0"
	}
	switch c.Type {
	case Online:
		c.HasDeviceFlag = true
	case Offline:
		c.Background, c.HasBackground = false, false
	}
	return nil
}

func (r *reader) connectionType(raw []byte) (ConnectionType, error) {
	text, err := r.text("type", raw)
	if err != nil {
		return 0, invalid("type", "must be "+types)
	}
	switch string(text) {
	case "online":
		return Online, nil
	case "offline":
		return Offline, nil
	case "heartbeat":
		return Heartbeat, nil
	case "node_started":
		return NodeStarted, nil
	}
	return 0, invalid("type", "must be "+types)
}

func (r *reader) id(field string, raw []byte) (ID, error) {
	if raw[0] == '"' {
		text, err := r.text(field, raw)
		if err != nil {
			return "", err
		}
		if len(text) >= 1 && len(text) <= MaxUIDBytes {
			return ID(text), nil
		}
	} else if _, ok := canonicalDigits(raw, math.MaxInt64); ok {
		return ID(raw), nil
	}
	return "", invalid(field, "must be "+idForm)
}
