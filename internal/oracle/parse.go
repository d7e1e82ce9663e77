package oracle

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"
)

// ConnectionType is what a connection event says.
type ConnectionType uint8

// The types.
const (
	Online ConnectionType = iota + 1
	Offline
	Heartbeat
	NodeStarted
)

// Connection is a connection event. UID and ConnID are empty in a node's event.
type Connection struct {
	Type                ConnectionType
	UID, ConnID, NodeID string // ids in canonical text: an integer is its digits
	DeviceFlag          uint8
	HasDeviceFlag       bool  // true for Online always
	Time                int64 // Unix ms
	OpenedAt            int64 // Unix ms, -1: not said
	Background          bool
	HasBackground       bool
}

// node says that the event is a whole node's.
func (c *Connection) node() bool { return c.UID == "" }

// Message is a message, with the webhook item that must come of it.
type Message struct {
	// Item is the msg.notify item. Before Item[Splice:], msg.offline has `,"to_uids":[…]`.
	Item        []byte
	Splice      int
	FromUID     string
	ChannelID   string
	ChannelType uint8
	Recipients  []string // what is a uid of to_uids, or of the channel_id that stands for them; nobody is left out yet
	OfflinePush bool
}

const (
	maxIDBytes = 256
	// maxTime is the last millisecond of the year 9999.
	maxTime = 253_402_300_799_999
	// maxSeconds is the first number that is milliseconds.
	maxSeconds = 100_000_000_000
)

var errObject = errors.New("is no JSON object")

// ParseConnection reads a record of a connections topic; recordTime is its timestamp in Unix ms, the default of the
// event's. An error says that the record belongs into the dead letters.
func ParseConnection(value []byte, recordTime int64) (Connection, error) {
	c := Connection{Time: min(max(recordTime, 0), maxTime), OpenedAt: -1}
	var uid, connID []byte
	s := scanner{b: value}
	if s.peek() != '{' {
		return Connection{}, errObject
	}
	o, err := s.object()
	if err != nil {
		return Connection{}, err
	}
	for {
		name, _, more, err := s.member(&o)
		if err != nil {
			return Connection{}, err
		}
		if !more {
			break
		}
		raw, err := s.value()
		if err != nil {
			return Connection{}, err
		}
		if raw[0] == 'n' {
			continue
		}
		ok := true
		switch string(name) {
		case "type":
			c.Type, ok = connectionType(raw)
		case "uid":
			uid = raw
		case "conn_id":
			connID = raw
		case "node_id":
			c.NodeID, ok = parseID(raw)
		case "device_flag":
			var n uint64
			n, ok = digits(raw, math.MaxUint8)
			c.DeviceFlag, c.HasDeviceFlag = uint8(n), true
		case "opened_at":
			c.OpenedAt, ok = parseTime(raw)
		case "timestamp":
			c.Time, ok = parseTime(raw)
		case "background":
			ok = raw[0] == 't' || raw[0] == 'f'
			c.Background, c.HasBackground = raw[0] == 't', true
		}
		if !ok {
			return Connection{}, fmt.Errorf("%s is wrong", name)
		}
	}
	if err := s.end(); err != nil {
		return Connection{}, err
	}
	return c.complete(uid, connID)
}

// complete adds what names the connection. A node_started has neither uid nor conn_id, whatever stands there.
func (c Connection) complete(uid, connID []byte) (Connection, error) {
	switch {
	case c.Type == 0:
		return Connection{}, errors.New("type is missing")
	case c.Type == NodeStarted, c.Type == Heartbeat && uid == nil && connID == nil:
		if c.NodeID == "" {
			return Connection{}, errors.New("node_id is missing")
		}
		c.DeviceFlag, c.HasDeviceFlag, c.Background, c.HasBackground = 0, false, false, false
		return c, nil
	case uid == nil:
		return Connection{}, errors.New("uid is missing")
	case connID == nil:
		return Connection{}, errors.New("conn_id is missing")
	}
	if uid[0] != '"' {
		return Connection{}, errors.New("uid is wrong")
	}
	if c.UID = string(unquote(uid)); !validUID(c.UID) {
		return Connection{}, errors.New("uid is wrong")
	}
	var ok bool
	if c.ConnID, ok = parseID(connID); !ok {
		return Connection{}, errors.New("conn_id is wrong")
	}
	if c.NodeID == "" {
		c.NodeID = "0"
	}
	if c.Type == Online {
		c.HasDeviceFlag = true
	}
	if c.Type == Offline {
		c.Background, c.HasBackground = false, false
	}
	return c, nil
}

func connectionType(raw []byte) (ConnectionType, bool) {
	if raw[0] != '"' {
		return 0, false
	}
	switch string(unquote(raw)) {
	case "online":
		return Online, true
	case "offline":
		return Offline, true
	case "heartbeat":
		return Heartbeat, true
	case "node_started":
		return NodeStarted, true
	}
	return 0, false
}

// validUID reports whether s, which is UTF-8, is 1 to 256 bytes without control characters.
func validUID(s string) bool {
	if len(s) < 1 || len(s) > maxIDBytes || !utf8.ValidString(s) {
		return false
	}
	for i := range len(s) {
		// U+0080 to U+009F are C2 80 to C2 9F.
		if c := s[i]; c < ' ' || c == 0x7f || c == 0xc2 && s[i+1] < 0xa0 {
			return false
		}
	}
	return true
}

func parseID(raw []byte) (string, bool) {
	if raw[0] == '"' {
		text := unquote(raw)
		return string(text), len(text) >= 1 && len(text) <= maxIDBytes
	}
	_, ok := digits(raw, math.MaxInt64)
	return string(raw), ok
}

// digits reads a decimal integer of 0 to limit without sign and leading zeros.
func digits[T ~string | ~[]byte](s T, limit uint64) (n uint64, ok bool) {
	if len(s) == 0 || len(s) > 20 || s[0] == '0' && len(s) > 1 {
		return 0, false
	}
	for i := range len(s) {
		d := uint64(s[i] - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, n <= limit
}

// number is the integer that stands for an id, a text of digits up to limit or any other.
func number[T ~string | ~[]byte](id T, limit uint64) uint64 {
	if n, ok := digits(id, limit); ok {
		return n
	}
	return first63(id)
}

// first63 is the first 63 bits of the SHA-256 of s.
func first63[T ~string | ~[]byte](s T) uint64 {
	sum := sha256.Sum256([]byte(s))
	return binary.BigEndian.Uint64(sum[:8]) >> 1
}

// parseTime reads a time into Unix ms.
func parseTime(raw []byte) (int64, bool) {
	if raw[0] == '"' {
		return parseRFC3339(string(unquote(raw)))
	}
	n, ok := digits(raw, maxTime)
	if !ok {
		return 0, false
	}
	if n < maxSeconds {
		n *= 1000
	}
	return int64(n), true
}

// parseRFC3339 reads a date-time of RFC 3339 literally, and cuts it to milliseconds. A time before 1970 or past the
// year 9999 is none, as it would not be as an integer.
func parseRFC3339(s string) (int64, bool) {
	field := func(from, to, low, high int) int {
		n := 0
		for _, c := range []byte(s[from:to]) {
			if c < '0' || c > '9' {
				return -1
			}
			n = n*10 + int(c-'0')
		}
		if n < low || n > high {
			return -1
		}
		return n
	}
	if len(s) < len("2006-01-02T15:04:05Z") || s[4] != '-' || s[7] != '-' || s[10] != 'T' || s[13] != ':' || s[16] != ':' {
		return 0, false
	}
	year, month, day := field(0, 4, 0, 9999), field(5, 7, 1, 12), field(8, 10, 1, 31)
	hour, minute, second := field(11, 13, 0, 23), field(14, 16, 0, 59), field(17, 19, 0, 59)
	if year < 0 || month < 0 || day < 0 || hour < 0 || minute < 0 || second < 0 {
		return 0, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	if t.Day() != day {
		return 0, false
	}
	ms := t.UnixMilli()
	i := 19
	if s[i] == '.' {
		first := i + 1
		for i = first; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
			switch i - first {
			case 0:
				ms += 100 * int64(s[i]-'0')
			case 1:
				ms += 10 * int64(s[i]-'0')
			case 2:
				ms += int64(s[i] - '0')
			}
		}
		if i == first || i == len(s) {
			return 0, false
		}
	}
	switch {
	case s[i] == 'Z' && i+1 == len(s):
	case (s[i] == '+' || s[i] == '-') && i+6 == len(s) && s[i+3] == ':':
		hours, minutes := field(i+1, i+3, 0, 23), field(i+4, i+6, 0, 59)
		if hours < 0 || minutes < 0 {
			return 0, false
		}
		offset := int64(hours*60+minutes) * 60_000
		if s[i] == '+' {
			offset = -offset
		}
		ms += offset
	default:
		return 0, false
	}
	return ms, ms >= 0 && ms <= maxTime
}

// messageFields are the names of a message item in their order.
var messageFields = [...]string{
	"header", "setting", "message_id", "message_idstr", "client_msg_no", "message_seq", "from_uid", "channel_id",
	"channel_type", "timestamp", "payload",
}

var headerFields = [...]string{"no_persist", "red_dot", "sync_once"}

// ParseMessage reads a record of a messages topic; topic, partition and offset are where it stands, and recordTime its
// timestamp in Unix ms, the default of the message's. An error says that the record belongs into the dead letters.
func ParseMessage(topic string, partition int32, offset int64, value []byte, recordTime int64) (Message, error) {
	s := scanner{b: value}
	if s.peek() != '{' {
		return Message{}, errObject
	}
	o, err := s.object()
	if err != nil {
		return Message{}, err
	}
	d := draft{channelType: 1, seconds: min(max(recordTime, 0), maxTime) / 1000, push: true}
	for {
		name, rawName, more, err := s.member(&o)
		if err != nil {
			return Message{}, err
		}
		if !more {
			break
		}
		raw, err := s.value()
		if err != nil {
			return Message{}, err
		}
		if raw[0] == 'n' {
			continue
		}
		if !d.field(name, rawName, raw) {
			return Message{}, fmt.Errorf("%s is wrong", name)
		}
	}
	if err := s.end(); err != nil {
		return Message{}, err
	}
	if len(d.channelID) == 0 {
		return Message{}, errors.New("channel_id is missing")
	}
	return d.message(topic, partition, offset, len(value)), nil
}

// draft is a message whose record is being read; slices of text are unquoted, nil where the field is absent.
type draft struct {
	flags                               [3]bool
	headerRest, rest                    []byte // unknown members, each with a comma before it
	id, idText                          []byte // message_id as a raw integer, or as a text
	idstr, clientMsgNo, from, channelID []byte
	setting, channelType                uint8
	seq                                 uint64
	seconds                             int64
	payload                             []byte // raw
	toUIDs                              []string
	hasToUIDs, push                     bool
}

// field takes one member that is not null.
func (d *draft) field(name, rawName, raw []byte) (ok bool) {
	var n uint64
	switch string(name) {
	case "header":
		return d.header(raw)
	case "setting":
		n, ok = digits(raw, math.MaxUint8)
		d.setting = uint8(n)
	case "message_id":
		if raw[0] == '"' {
			d.idText, ok = unquote(raw), true
		} else {
			_, ok = digits(raw, math.MaxUint64)
			d.id = raw
		}
	case "message_idstr":
		d.idstr, ok = text(raw)
	case "client_msg_no":
		d.clientMsgNo, ok = text(raw)
	case "message_seq":
		d.seq, ok = digits(raw, math.MaxUint64)
	case "from_uid":
		d.from, ok = text(raw)
		ok = ok && (len(d.from) == 0 || validUID(string(d.from)))
	case "channel_id":
		d.channelID, ok = text(raw)
		ok = ok && len(d.channelID) > 0
	case "channel_type":
		n, ok = digits(raw, math.MaxUint8)
		d.channelType = uint8(n)
	case "timestamp":
		d.seconds, ok = parseTime(raw)
		d.seconds /= 1000
	case "payload":
		var t []byte
		t, ok = text(raw)
		ok = ok && isBase64(t)
		d.payload = raw
	case "to_uids":
		return d.recipients(raw)
	case "offline_push":
		ok = raw[0] == 't' || raw[0] == 'f'
		d.push = raw[0] == 't'
	default:
		d.rest = appendMember(d.rest, rawName, raw)
		ok = true
	}
	return ok
}

func appendMember(dst, rawName, raw []byte) []byte {
	dst = append(append(dst, ','), rawName...)
	return append(append(dst, ':'), raw...)
}

func text(raw []byte) ([]byte, bool) {
	if raw[0] != '"' {
		return nil, false
	}
	return unquote(raw), true
}

// header reads the object, which is JSON as the scanner has seen already.
func (d *draft) header(raw []byte) bool {
	if raw[0] != '{' {
		return false
	}
	s := scanner{b: raw}
	o, err := s.object()
	for err == nil {
		var name, rawName, v []byte
		var more bool
		if name, rawName, more, err = s.member(&o); err != nil || !more {
			break
		}
		if v, err = s.value(); err != nil || v[0] == 'n' {
			continue
		}
		known := false
		for i, f := range headerFields {
			if string(name) == f {
				n, ok := digits(v, 1)
				if !ok {
					return false
				}
				d.flags[i], known = n == 1, true
			}
		}
		if !known {
			d.headerRest = appendMember(d.headerRest, rawName, v)
		}
	}
	return err == nil
}

func (d *draft) recipients(raw []byte) bool {
	if raw[0] != '[' {
		return false
	}
	d.hasToUIDs = true
	s := scanner{b: raw}
	err := s.array()
	for first := true; err == nil; first = false {
		var more bool
		if more, err = s.element(first); err != nil || !more {
			break
		}
		var v []byte
		if v, err = s.value(); err == nil && v[0] == '"' {
			if uid := string(unquote(v)); validUID(uid) {
				d.toUIDs = append(d.toUIDs, uid)
			}
		}
	}
	return err == nil
}

// isBase64 reports whether s is standard base64 with its padding. Bits that padding leaves over may be anything.
func isBase64(s []byte) bool {
	if len(s)%4 != 0 {
		return false
	}
	for i, c := range s {
		switch {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '+', c == '/':
		case c == '=' && (i == len(s)-1 || i == len(s)-2 && s[i+1] == '='):
		default:
			return false
		}
	}
	return true
}

func (d *draft) message(topic string, partition int32, offset int64, size int) Message {
	item := make([]byte, 0, size+320)
	for i, f := range headerFields {
		if i == 0 {
			item = append(item, `{"header":{"`...)
		} else {
			item = append(item, `,"`...)
		}
		item = append(append(item, f...), `":0`...)
		if d.flags[i] {
			item[len(item)-1] = '1'
		}
	}
	item = append(append(item, d.headerRest...), `},"setting":`...)
	item = strconv.AppendUint(item, uint64(d.setting), 10)

	id, idstr := d.identity(topic, partition, offset)
	item = strconv.AppendUint(append(item, `,"message_id":`...), id, 10)
	item = appendQuoted(append(item, `,"message_idstr":`...), idstr)
	item = appendQuoted(append(item, `,"client_msg_no":`...), d.clientMsgNo)
	item = strconv.AppendUint(append(item, `,"message_seq":`...), d.seq, 10)
	item = appendQuoted(append(item, `,"from_uid":`...), d.from)
	item = appendQuoted(append(item, `,"channel_id":`...), d.channelID)
	item = strconv.AppendUint(append(item, `,"channel_type":`...), uint64(d.channelType), 10)
	item = strconv.AppendInt(append(item, `,"timestamp":`...), d.seconds, 10)
	item = append(item, `,"payload":`...)
	if d.payload == nil {
		item = append(item, `""`...)
	}
	item = append(item, d.payload...)
	m := Message{
		Splice: len(item), Item: append(append(item, d.rest...), '}'),
		FromUID: string(d.from), ChannelID: string(d.channelID), ChannelType: d.channelType, Recipients: d.toUIDs, OfflinePush: d.push,
	}
	if !d.hasToUIDs && d.channelType == 1 && validUID(m.ChannelID) {
		m.Recipients = []string{m.ChannelID}
	}
	return m
}

// identity is message_id and message_idstr. An empty string is absent in both.
func (d *draft) identity(topic string, partition int32, offset int64) (uint64, []byte) {
	if d.id == nil && len(d.idText) > 0 {
		if _, ok := digits(d.idText, math.MaxUint64); !ok {
			return first63(d.idText), d.idText
		}
		d.id = d.idText
	}
	idstr := d.idstr
	if d.id != nil {
		n, _ := digits(d.id, math.MaxUint64)
		if len(idstr) == 0 {
			idstr = d.id
		}
		return n, idstr
	}
	if len(idstr) == 0 {
		idstr = fmt.Appendf(nil, "%s-%d-%d", topic, partition, offset)
	}
	return number(idstr, math.MaxUint64), idstr
}
