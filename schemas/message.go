package schemas

import (
	"math"
	"strconv"
)

// Source is where a record stands in Kafka.
type Source struct {
	Topic     string
	Partition int32
	Offset    int64
	Time      int64 // the record's timestamp, Unix ms
}

// Message is one input record of a messages topic, with the webhook item that is made of it.
type Message struct {
	// Item is the msg.notify webhook item: a JSON object with all fields of the design in its order, then the
	// fields beyond them as the record had them.
	Item []byte
	// Splice is the offset in Item, just after the payload field, at which msg.offline has `,"to_uids":[…]`.
	Splice      int
	FromUID     string
	ChannelID   string
	ChannelType uint8
	// Recipients are the uids of to_uids as they stand there, what is no uid left out; or, without to_uids and for
	// channel_type 1, the channel_id (where it is a uid). Sender, duplicates and system uids are still in it.
	Recipients []string
	// HasRecipients is false where there is no to_uids and the channel is none of a person.
	HasRecipients bool
	Dropped       int  // how many elements of to_uids, or the channel_id that stands for them, were no uid
	OfflinePush   bool // false: no msg.offline for it
}

const (
	// channelPerson is the channel_type of a conversation between two; its channel_id is the other's uid.
	channelPerson = 1

	// itemOverhead is more than the names, the punctuation and the defaults of an item take.
	itemOverhead = 384

	messageIDForm = "must be an integer from 0 to 18446744073709551615, without fraction and exponent, or a string"
)

// draft is a message while it is read. Its slices are raw JSON values of the record; nil stands for an absent field.
type draft struct {
	noPersist, redDot, syncOnce                   []byte
	setting, messageID, messageIDStr, clientMsgNo []byte
	messageSeq, fromUID, channelID, payload       []byte
	channelType                                   uint8
	time                                          int64
	hasToUIDs                                     bool
	dropped                                       int
	offlinePush                                   bool
}

// DecodeMessage decodes a JSON message. A returned error is an *InvalidError. Nothing in the result aliases value.
func DecodeMessage(value []byte, src Source) (Message, error) {
	r := newReader(value)
	defer r.release()
	d := draft{channelType: channelPerson, time: defaultTime(src.Time), offlinePush: true}
	if err := d.decode(r); err != nil {
		return Message{}, err
	}
	return d.message(r, src)
}

func (d *draft) decode(r *reader) error {
	if err := r.shallow(); err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	for {
		name, rawName, ok, err := r.member()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		// The two that are not read as one value.
		switch kind := r.dec.PeekKind(); {
		case kind == '{' && string(name) == "header":
			if err := d.header(r); err != nil {
				return err
			}
			continue
		case kind == '[' && string(name) == "to_uids":
			if err := d.toUIDs(r); err != nil {
				return err
			}
			continue
		}
		raw, err := r.raw()
		if err != nil {
			return err
		}
		if isNull(raw) {
			continue
		}
		if err := d.field(r, name, rawName, raw); err != nil {
			return err
		}
	}
	if err := r.leave(); err != nil {
		return err
	}
	return r.finish()
}

// field takes one member that is not null.
func (d *draft) field(r *reader, name, rawName, raw []byte) error {
	var err error
	switch string(name) {
	case "header":
		return invalid("header", "must be an object of no_persist, red_dot and sync_once, each 0 or 1")
	case "to_uids":
		return invalid("to_uids", "must be an array of strings")
	case "setting":
		d.setting = raw
		_, err = integer("setting", raw, math.MaxUint8)
	case "message_id":
		d.messageID = raw
		if _, ok := canonicalDigits(raw, math.MaxUint64); !ok && raw[0] != '"' {
			err = invalid("message_id", messageIDForm)
		}
	case "message_idstr":
		d.messageIDStr = raw
		err = mustBeString("message_idstr", raw)
	case "client_msg_no":
		d.clientMsgNo = raw
		err = mustBeString("client_msg_no", raw)
	case "message_seq":
		d.messageSeq = raw
		_, err = integer("message_seq", raw, math.MaxUint64)
	case "from_uid":
		d.fromUID = raw
		var text []byte
		if text, err = r.text("from_uid", raw); err != nil || len(text) > 0 && !validUID(text) {
			err = invalid("from_uid", "must be empty or "+uidForm)
		}
	case "channel_id":
		d.channelID = raw
		err = mustBeString("channel_id", raw)
	case "channel_type":
		var n uint64
		n, err = integer("channel_type", raw, math.MaxUint8)
		d.channelType = uint8(n)
	case "timestamp":
		d.time, err = r.time("timestamp", raw)
	case "payload":
		d.payload = raw
		var text []byte
		if text, err = r.text("payload", raw); err != nil || !validBase64(text) {
			err = invalid("payload", "must be a string of standard base64 with padding")
		}
	case "offline_push":
		d.offlinePush, err = boolean("offline_push", raw)
	default:
		r.rest = appendMember(r.rest, rawName, raw)
	}
	return err
}

func (d *draft) header(r *reader) error {
	if err := r.enter(); err != nil {
		return err
	}
	for {
		name, rawName, ok, err := r.member()
		if err != nil {
			return err
		}
		if !ok {
			return r.leave()
		}
		raw, err := r.raw()
		if err != nil {
			return err
		}
		if isNull(raw) {
			continue
		}
		switch string(name) {
		case "no_persist":
			d.noPersist, err = raw, zeroOrOne("header.no_persist", raw)
		case "red_dot":
			d.redDot, err = raw, zeroOrOne("header.red_dot", raw)
		case "sync_once":
			d.syncOnce, err = raw, zeroOrOne("header.sync_once", raw)
		default:
			r.header = appendMember(r.header, rawName, raw)
		}
		if err != nil {
			return err
		}
	}
}

func (d *draft) toUIDs(r *reader) error {
	d.hasToUIDs = true
	if err := r.enter(); err != nil {
		return err
	}
	for r.dec.PeekKind() != ']' {
		raw, err := r.raw()
		if err != nil {
			return err
		}
		if raw[0] != '"' {
			d.dropped++
			continue
		}
		text, err := r.text("to_uids", raw)
		if err != nil {
			return err
		}
		if !validUID(text) {
			d.dropped++
			continue
		}
		r.recipients = append(r.recipients, text...)
		r.ends = append(r.ends, len(r.recipients))
	}
	return r.leave()
}

// message makes the result of a record that was read to its end.
func (d *draft) message(r *reader, src Source) (Message, error) {
	if d.channelID == nil || len(d.channelID) == len(`""`) {
		return Message{}, invalid("channel_id", "is required: a string that is not empty")
	}
	m := Message{ChannelType: d.channelType, OfflinePush: d.offlinePush, Dropped: d.dropped}
	if d.fromUID != nil {
		text, err := r.text("from_uid", d.fromUID)
		if err != nil {
			return Message{}, err
		}
		m.FromUID = string(text)
	}
	text, err := r.text("channel_id", d.channelID)
	if err != nil {
		return Message{}, err
	}
	m.ChannelID = string(text)
	switch {
	case d.hasToUIDs:
		m.Recipients, m.HasRecipients = r.takeStrings(), true
	case d.channelType == channelPerson:
		m.HasRecipients = true
		if ValidUID(m.ChannelID) {
			m.Recipients = []string{m.ChannelID}
		} else {
			m.Dropped = 1
		}
	}
	if err := d.item(r, src, &m); err != nil {
		return Message{}, err
	}
	return m, nil
}

// item builds the webhook item.
func (d *draft) item(r *reader, src Source, m *Message) error {
	b := make([]byte, 0, itemOverhead+len(d.messageID)+len(d.messageIDStr)+len(d.clientMsgNo)+len(d.fromUID)+
		len(d.channelID)+len(d.payload)+len(r.header)+len(r.rest)+len(src.Topic))
	b = append(b, `{"header":{"no_persist":`...)
	b = appendOr(b, d.noPersist, "0")
	b = append(b, `,"red_dot":`...)
	b = appendOr(b, d.redDot, "0")
	b = append(b, `,"sync_once":`...)
	b = appendOr(b, d.syncOnce, "0")
	b = append(b, r.header...)
	b = append(b, `},"setting":`...)
	b = appendOr(b, d.setting, "0")
	b = append(b, `,"message_id":`...)
	b, err := d.appendMessageID(b, r, src)
	if err != nil {
		return err
	}
	b = append(b, `,"client_msg_no":`...)
	b = r.appendTextOr(b, d.clientMsgNo)
	b = append(b, `,"message_seq":`...)
	b = appendOr(b, d.messageSeq, "0")
	b = append(b, `,"from_uid":`...)
	b = r.appendTextOr(b, d.fromUID)
	b = append(b, `,"channel_id":`...)
	b = r.appendText(b, d.channelID)
	b = append(b, `,"channel_type":`...)
	b = strconv.AppendUint(b, uint64(d.channelType), 10)
	b = append(b, `,"timestamp":`...)
	b = strconv.AppendInt(b, d.time/1000, 10)
	b = append(b, `,"payload":`...)
	b = appendOr(b, d.payload, `""`)
	m.Splice = len(b)
	b = append(b, r.rest...)
	m.Item = append(b, '}')
	return nil
}

// appendMessageID appends the number, and the field message_idstr. An empty string is an absent one: it would give
// all such messages one id.
func (d *draft) appendMessageID(b []byte, r *reader, src Source) ([]byte, error) {
	id, idStr := d.messageID, d.messageIDStr
	if len(idStr) == len(`""`) {
		idStr = nil
	}
	var text []byte // the id's text; unquoted, so valid until the next string is read
	switch {
	case id != nil && id[0] != '"':
		text = id
	case len(id) > len(`""`):
		var err error
		if text, err = r.text("message_id", id); err != nil {
			return nil, err
		}
		if _, ok := canonicalDigits(text, math.MaxUint64); !ok {
			idStr = id
		}
	case idStr != nil:
		var err error
		if text, err = r.text("message_idstr", idStr); err != nil {
			return nil, err
		}
	default:
		text = appendPosition(nil, src)
	}
	if _, ok := canonicalDigits(text, math.MaxUint64); ok {
		b = append(b, text...)
	} else {
		b = strconv.AppendUint(b, hash63(text), 10)
	}
	b = append(b, `,"message_idstr":`...)
	if idStr != nil {
		return r.appendText(b, idStr), nil
	}
	// Digits, or a position: topic names need no escapes.
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"'), nil
}

// appendPosition appends <topic>-<partition>-<offset>.
func appendPosition(dst []byte, src Source) []byte {
	dst = append(dst, src.Topic...)
	dst = append(dst, '-')
	dst = strconv.AppendInt(dst, int64(src.Partition), 10)
	dst = append(dst, '-')
	return strconv.AppendInt(dst, src.Offset, 10)
}

func appendOr(dst, raw []byte, absent string) []byte {
	if raw == nil {
		return append(dst, absent...)
	}
	return append(dst, raw...)
}

func (r *reader) appendTextOr(dst, raw []byte) []byte {
	if raw == nil {
		return append(dst, `""`...)
	}
	return r.appendText(dst, raw)
}

func mustBeString(field string, raw []byte) error {
	if raw[0] != '"' {
		return invalid(field, "must be a string")
	}
	return nil
}

func zeroOrOne(field string, raw []byte) error {
	if string(raw) != "0" && string(raw) != "1" {
		return invalid(field, "must be 0 or 1")
	}
	return nil
}

// base64Digits has true for the alphabet of standard base64.
var base64Digits = func() (t [256]bool) {
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		t[c] = true
	}
	return t
}()

// validBase64 reports whether s is standard base64 with padding. encoding/base64 would take line breaks too, and wants
// room for what it decodes.
func validBase64(s []byte) bool {
	if len(s)%4 != 0 {
		return false
	}
	for range 2 {
		if n := len(s); n > 0 && s[n-1] == '=' {
			s = s[:n-1]
		}
	}
	for _, c := range s {
		if !base64Digits[c] {
			return false
		}
	}
	return true
}
