package oracle

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// item is a message as it stands in a request or dead letter. It aliases that.
type item struct {
	before, after []byte // what stands before and after `,"to_uids":[…]`, or the place where msg.offline has it
	from, channel string
	uids          []string
}

// readItem reads a message item; offline says that it must have to_uids, which msg.notify must not have.
func readItem(s *scanner, offline bool) (item, error) {
	if s.peek() != '{' {
		return item{}, errors.New("an item is no object")
	}
	var it item
	start, splice, n := s.i, 0, 0
	o, err := s.object()
	if err != nil {
		return item{}, err
	}
	for {
		name, _, more, err := s.member(&o)
		if err != nil {
			return item{}, err
		}
		if !more {
			break
		}
		from := s.i
		raw, err := s.value()
		if err != nil {
			return item{}, err
		}
		switch {
		case n < len(messageFields):
			if string(name) != messageFields[n] {
				return item{}, fmt.Errorf("field %d of an item is not %s", n+1, messageFields[n])
			}
			if !it.field(n, raw) {
				return item{}, fmt.Errorf("%s of an item is wrong", messageFields[n])
			}
			if n == len(messageFields)-1 {
				it.before, splice = s.b[start:from+len(raw)], s.i
			}
		case string(name) == "to_uids":
			if !offline || n > len(messageFields) {
				return item{}, errors.New("to_uids of an item stands where it must not")
			}
			if !it.toUIDs(raw) {
				return item{}, errors.New("to_uids of an item is wrong")
			}
			splice = s.i
		}
		n++
	}
	switch {
	case n < len(messageFields):
		return item{}, fmt.Errorf("%s of an item is missing", messageFields[n])
	case offline && it.uids == nil:
		return item{}, errors.New("to_uids of an item is missing or empty")
	}
	it.after = s.b[splice:s.i]
	return it, nil
}

// field checks field n of a message item.
func (it *item) field(n int, raw []byte) (ok bool) {
	var t []byte
	switch messageFields[n] {
	case "header":
		return raw[0] == '{'
	case "setting", "channel_type":
		_, ok = digits(raw, math.MaxUint8)
	case "message_id", "message_seq":
		_, ok = digits(raw, math.MaxUint64)
	case "timestamp":
		_, ok = digits(raw, math.MaxInt64)
	case "payload":
		t, ok = text(raw)
		ok = ok && isBase64(t)
	case "from_uid":
		t, ok = text(raw)
		it.from = string(t)
	case "channel_id":
		t, ok = text(raw)
		it.channel = string(t)
	default:
		_, ok = text(raw)
	}
	return ok
}

// toUIDs takes the recipients.
func (it *item) toUIDs(raw []byte) bool {
	if raw[0] != '[' {
		return false
	}
	s := scanner{b: raw}
	err := s.array()
	for first := true; err == nil; first = false {
		more, failed := s.element(first)
		if failed != nil || !more {
			return failed == nil
		}
		var v []byte
		if v, err = s.value(); err == nil {
			t, ok := text(v)
			if !ok || !validUID(string(t)) {
				return false
			}
			it.uids = append(it.uids, string(t))
		}
	}
	return false
}

var errStatus = errors.New("an item is no uid-deviceFlag-online-connID-deviceOnlineCount-totalOnlineCount")

// readStatus reads an item of user.onlinestatus.
func readStatus(s *scanner) (uid string, st status, err error) {
	if s.peek() != '"' {
		return "", status{}, errStatus
	}
	raw, err := s.string()
	if err != nil {
		return "", status{}, err
	}
	uid = string(unquote(raw))
	var fields [5]uint64
	limits := [...]uint64{math.MaxUint8, 1, math.MaxInt64, math.MaxInt32, math.MaxInt32}
	for i := len(fields) - 1; i >= 0; i-- {
		dash := strings.LastIndexByte(uid, '-')
		if dash < 0 {
			return "", status{}, errStatus
		}
		var ok bool
		if fields[i], ok = digits(uid[dash+1:], limits[i]); !ok {
			return "", status{}, errStatus
		}
		uid = uid[:dash]
	}
	if !validUID(uid) {
		return "", status{}, errStatus
	}
	return uid, status{
		flag: uint8(fields[0]), online: fields[1] == 1, conn: fields[2], device: int32(fields[3]), total: int32(fields[4]),
	}, nil
}

// events are the events of requests or dead letters.
type events struct {
	status          list[status]
	offline, notify list[event]
}

// read reads one item of an event; owner is a uid or an order key, by which the item's partition is known, and it is
// called for each. source is kept with what is read.
func (o *Oracle) read(s *scanner, name string, source int64, to *events, owner func(key string)) error {
	if name == onlineStatus {
		uid, st, err := readStatus(s)
		if err != nil {
			return err
		}
		owner(uid)
		st.uid, st.offset = o.names.number(uid), source
		to.status.add(st)
		return nil
	}
	it, err := readItem(s, name == msgOffline)
	if err != nil {
		return err
	}
	hash := o.hashItem(it.before, it.after)
	if name == msgNotify {
		key := o.orderKey(it.from, it.channel)
		owner(key)
		to.notify.add(event{hash: hash, offset: source, key: o.names.number(key)})
		return nil
	}
	for _, uid := range it.uids {
		owner(uid)
		to.offline.add(event{hash: hash, offset: source, key: o.names.number(uid)})
	}
	return nil
}
