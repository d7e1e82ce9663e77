package schemas

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// AppendOfflineItem appends the msg.offline item: item with `,"to_uids":[…]` at splice.
func AppendOfflineItem(dst, item []byte, splice int, uids []string) []byte {
	size := len(item) + len(`,"to_uids":[]`)
	for _, uid := range uids {
		size += len(uid) + len(`"",`)
	}
	dst = slices.Grow(dst, size)
	dst = append(dst, item[:splice]...)
	dst = append(dst, `,"to_uids":[`...)
	for i, uid := range uids {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendQuoted(dst, uid)
	}
	dst = append(dst, ']')
	return append(dst, item[splice:]...)
}

// AppendBody appends a request's body: a JSON array of the items.
func AppendBody(dst []byte, items [][]byte) []byte {
	dst = append(dst, '[')
	for i, item := range items {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, item...)
	}
	return append(dst, ']')
}

// MessageItem is what a receiver reads of a msg.notify or msg.offline item.
type MessageItem struct {
	MessageID    string // its digits
	MessageIDStr string
	ClientMsgNo  string
	FromUID      string
	ChannelID    string
	ChannelType  uint8
	Timestamp    int64    // Unix seconds
	ToUIDs       []string // nil where the item has no to_uids, as in msg.notify
}

// DecodeOnlineStatusBody decodes a user.onlinestatus body. The error is an *InvalidError.
func DecodeOnlineStatusBody(body []byte) ([]OnlineStatus, error) {
	r := newReader(body)
	defer r.release()
	if r.dec.PeekKind() == '{' {
		return nil, invalid("", "the body is no JSON array")
	}
	statuses := []OnlineStatus{}
	err := r.array(func() error {
		raw, err := r.raw()
		if err != nil {
			return err
		}
		text, err := r.text("", raw)
		if err != nil {
			return err
		}
		s, err := ParseOnlineStatus(string(text))
		if err != nil {
			return invalid(fmt.Sprintf("[%d]", len(statuses)), statusForm)
		}
		statuses = append(statuses, s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return statuses, nil
}

// DecodeMessagesBody decodes a msg.notify or msg.offline body: an array, or (later servers) one object. Every field of
// the design must be there, but to_uids. The error is an *InvalidError.
func DecodeMessagesBody(body []byte) ([]MessageItem, error) {
	r := newReader(body)
	defer r.release()
	items := []MessageItem{}
	item := func() error {
		items = append(items, MessageItem{})
		return items[len(items)-1].decode(r)
	}
	var err error
	if r.dec.PeekKind() == '{' {
		if err = item(); err == nil {
			err = r.finish()
		}
	} else {
		err = r.array(item)
	}
	if err != nil {
		return nil, err
	}
	return items, nil
}

// array reads a record that is one array; element reads one element.
func (r *reader) array(element func() error) error {
	switch r.dec.PeekKind() {
	case 'n', 't', 'f', '"', '0':
		return invalid("", "the body is no JSON array")
	}
	if err := r.enter(); err != nil {
		return err
	}
	for r.dec.PeekKind() != ']' {
		if err := element(); err != nil {
			return err
		}
	}
	if err := r.leave(); err != nil {
		return err
	}
	return r.finish()
}

// itemFields are the fields that every message item has, in the design's order.
var itemFields = [...]string{
	"header", "setting", "message_id", "message_idstr", "client_msg_no", "message_seq", "from_uid", "channel_id",
	"channel_type", "timestamp", "payload",
}

func (m *MessageItem) decode(r *reader) error {
	if r.dec.PeekKind() != '{' {
		if _, err := r.raw(); err != nil {
			return err
		}
		return invalid("", "an item of the body is no JSON object")
	}
	if err := r.enter(); err != nil {
		return err
	}
	missing := uint(1)<<len(itemFields) - 1
	for {
		name, _, ok, err := r.member()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		for i, f := range itemFields {
			if string(name) == f {
				missing &^= 1 << i
			}
		}
		if err := m.field(r, name); err != nil {
			return err
		}
	}
	if err := r.leave(); err != nil {
		return err
	}
	if missing != 0 {
		return invalid(itemFields[bits.TrailingZeros(missing)], "is missing")
	}
	return nil
}

// field reads one member's value.
func (m *MessageItem) field(r *reader, name []byte) error {
	if string(name) == "to_uids" && r.dec.PeekKind() == '[' {
		return m.toUIDs(r)
	}
	raw, err := r.raw()
	if err != nil {
		return err
	}
	var n uint64
	switch string(name) {
	case "to_uids":
		err = invalid("to_uids", "must be an array of strings")
	case "setting":
		_, err = integer("setting", raw, math.MaxUint8)
	case "message_seq":
		_, err = integer("message_seq", raw, math.MaxUint64)
	case "message_id":
		_, err = integer("message_id", raw, math.MaxUint64)
		m.MessageID = string(raw)
	case "message_idstr":
		m.MessageIDStr, err = r.string("message_idstr", raw)
	case "client_msg_no":
		m.ClientMsgNo, err = r.string("client_msg_no", raw)
	case "from_uid":
		m.FromUID, err = r.string("from_uid", raw)
	case "channel_id":
		m.ChannelID, err = r.string("channel_id", raw)
	case "channel_type":
		n, err = integer("channel_type", raw, math.MaxUint8)
		m.ChannelType = uint8(n)
	case "timestamp":
		n, err = integer("timestamp", raw, maxTime/1000)
		m.Timestamp = int64(n)
	case "header":
		if raw[0] != '{' {
			err = invalid("header", "must be an object")
		}
	case "payload":
		var text []byte
		if text, err = r.text("payload", raw); err == nil && !validBase64(text) {
			err = invalid("payload", "must be a string of standard base64 with padding")
		}
	}
	return err
}

// OfflineUIDs calls each with the recipients of a msg.offline item, unquoted and in order; the slice is valid until each
// returns. The error, an *InvalidError, may come after some of the calls.
func OfflineUIDs(item []byte, each func(uid []byte)) error {
	r := newReader(item)
	defer r.release()
	if err := r.begin(); err != nil {
		return err
	}
	for {
		name, _, ok, err := r.member()
		if err != nil || !ok {
			return err
		}
		if string(name) != "to_uids" || r.dec.PeekKind() != '[' {
			if _, err := r.raw(); err != nil {
				return err
			}
			continue
		}
		if err := r.enter(); err != nil {
			return err
		}
		for r.dec.PeekKind() != ']' {
			raw, err := r.raw()
			if err != nil {
				return err
			}
			uid, err := r.text("to_uids", raw)
			if err != nil {
				return err
			}
			each(uid)
		}
		return nil
	}
}

func (m *MessageItem) toUIDs(r *reader) error {
	if err := r.enter(); err != nil {
		return err
	}
	r.recipients, r.ends = r.recipients[:0], r.ends[:0]
	for r.dec.PeekKind() != ']' {
		raw, err := r.raw()
		if err != nil {
			return err
		}
		text, err := r.text("to_uids", raw)
		if err != nil {
			return err
		}
		r.recipients = append(r.recipients, text...)
		r.ends = append(r.ends, len(r.recipients))
	}
	if m.ToUIDs = r.takeStrings(); m.ToUIDs == nil {
		m.ToUIDs = []string{}
	}
	return r.leave()
}

func (r *reader) string(field string, raw []byte) (string, error) {
	text, err := r.text(field, raw)
	return string(text), err
}
