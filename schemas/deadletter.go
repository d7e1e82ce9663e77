package schemas

import (
	"encoding/hex"
	"math"
	"strconv"
	"strings"
)

// Reason is why a record is in the dead letters: a closed list.
type Reason string

// The reasons.
const (
	ReasonInvalid  Reason = "invalid"   // route: not JSON, or a missing or wrong field
	ReasonTooLarge Reason = "too_large" // route: larger than OFFHOOK_MAX_RECORD_BYTES
	ReasonRefused  Reason = "refused"   // sink: the endpoint refuses this event
	ReasonGaveUp   Reason = "gave_up"   // sink: OFFHOOK_WEBHOOK_GIVE_UP_AFTER has passed
	ReasonSkipped  Reason = "skipped"   // sink: an operator skipped it
	ReasonCut      Reason = "cut"       // sink: the rest of a batch of which the log's retention took the first part
)

// Reasons lists all reasons.
func Reasons() []Reason {
	return []Reason{ReasonInvalid, ReasonTooLarge, ReasonRefused, ReasonGaveUp, ReasonSkipped, ReasonCut}
}

// The headers of a dead letter, beside HeaderVersion and HeaderTraceparent. Numbers are decimal.
const (
	HeaderSourceTopic     = "source-topic"
	HeaderSourcePartition = "source-partition"
	HeaderSourceOffset    = "source-offset"
	HeaderSourceKey       = "source-key"       // the key's bytes; left out where the source had none
	HeaderSourceTimestamp = "source-timestamp" // Unix milliseconds
	HeaderReason          = "reason"
	HeaderDetail          = "detail"
	HeaderSink            = "sink"
	HeaderStatus          = "status"    // left out where there was no answer
	HeaderAttempts        = "attempts"  // left out where nothing was sent
	HeaderTruncated       = "truncated" // "true", or left out
	HeaderSize            = "size"      // bytes; only beside truncated
)

// DeadLetter is one record of the dead-letter topic.
type DeadLetter struct {
	Source      Source
	TopicID     [16]byte
	SourceKey   []byte // nil: the source had none
	Value       []byte // the source's value; of one that is too large the first 64 KiB
	Reason      Reason
	Detail      string // a sentence; never holds a value of the record
	Sink        string // the sink's name, or "route"
	Status      int    // the last HTTP status; 0: none
	Attempts    int    // 0: none
	Truncated   bool
	Size        int    // the source's size in bytes where Truncated
	Traceparent []byte // empty: the source had none
}

// Key is the record's key, equal for copies of one dead letter: "<sink>/<topic id as 32 hex digits>/<partition>/<offset>".
func (d *DeadLetter) Key() []byte {
	key := make([]byte, 0, len(d.Sink)+2*len(d.TopicID)+32)
	key = append(key, d.Sink...)
	key = append(key, '/')
	key = hex.AppendEncode(key, d.TopicID[:])
	key = append(key, '/')
	key = strconv.AppendInt(key, int64(d.Source.Partition), 10)
	key = append(key, '/')
	return strconv.AppendInt(key, d.Source.Offset, 10)
}

// Headers are the record's headers, the version among them.
func (d *DeadLetter) Headers() []Header {
	decimal := func(n int64) []byte { return strconv.AppendInt(nil, n, 10) }
	h := make([]Header, 0, 14)
	h = append(h,
		VersionHeader(),
		Header{HeaderSourceTopic, []byte(d.Source.Topic)},
		Header{HeaderSourcePartition, decimal(int64(d.Source.Partition))},
		Header{HeaderSourceOffset, decimal(d.Source.Offset)},
	)
	if d.SourceKey != nil {
		h = append(h, Header{HeaderSourceKey, d.SourceKey})
	}
	h = append(h,
		Header{HeaderSourceTimestamp, decimal(d.Source.Time)},
		Header{HeaderReason, []byte(d.Reason)},
		Header{HeaderDetail, []byte(d.Detail)},
		Header{HeaderSink, []byte(d.Sink)},
	)
	if d.Status != 0 {
		h = append(h, Header{HeaderStatus, decimal(int64(d.Status))})
	}
	if d.Attempts != 0 {
		h = append(h, Header{HeaderAttempts, decimal(int64(d.Attempts))})
	}
	if d.Truncated {
		h = append(h, Header{HeaderTruncated, []byte("true")}, Header{HeaderSize, decimal(int64(d.Size))})
	}
	if len(d.Traceparent) > 0 {
		h = append(h, Header{HeaderTraceparent, d.Traceparent})
	}
	return h
}

// DecodeDeadLetter reads one back from key, headers and value. The slices of the result alias the arguments. The error
// is a *VersionError for a newer release's, else an *InvalidError. Headers beyond the known ones are ignored; where one
// stands twice, the last counts.
func DecodeDeadLetter(key []byte, headers []Header, value []byte) (DeadLetter, error) {
	if err := CheckVersion("dead letter", headers); err != nil {
		return DeadLetter{}, err
	}
	d := DeadLetter{Value: value}
	if err := d.decodeKey(string(key)); err != nil {
		return DeadLetter{}, err
	}
	partition, offset, sink := d.Source.Partition, d.Source.Offset, d.Sink
	required := map[string]bool{
		HeaderSourceTopic: true, HeaderSourcePartition: true, HeaderSourceOffset: true, HeaderSourceTimestamp: true,
		HeaderReason: true, HeaderDetail: true, HeaderSink: true,
	}
	for _, h := range headers {
		if err := d.decodeHeader(h); err != nil {
			return DeadLetter{}, err
		}
		delete(required, h.Key)
	}
	for _, name := range []string{
		HeaderSourceTopic, HeaderSourcePartition, HeaderSourceOffset, HeaderSourceTimestamp, HeaderReason, HeaderDetail, HeaderSink,
	} {
		if required[name] {
			return DeadLetter{}, invalid(name, "is missing among the headers of the dead letter")
		}
	}
	if d.Source.Partition != partition || d.Source.Offset != offset || d.Sink != sink {
		return DeadLetter{}, invalid("", "the dead letter's key does not name what its headers do")
	}
	return d, nil
}

func (d *DeadLetter) decodeKey(key string) error {
	const form = "the dead letter's key must be <sink>/<topic id as 32 hexadecimal digits>/<partition>/<offset>"
	var parts [3]string // from the end, because a sink's name may hold a slash
	for i := range parts {
		slash := strings.LastIndexByte(key, '/')
		if slash < 0 {
			return invalid("", form)
		}
		key, parts[i] = key[:slash], key[slash+1:]
	}
	offset, ok := canonicalDigits(parts[0], math.MaxInt64)
	if !ok {
		return invalid("", form)
	}
	partition, ok := canonicalDigits(parts[1], math.MaxInt32)
	if !ok || len(parts[2]) != 2*len(d.TopicID) {
		return invalid("", form)
	}
	if _, err := hex.Decode(d.TopicID[:], []byte(parts[2])); err != nil {
		return invalid("", form)
	}
	d.Sink, d.Source.Partition, d.Source.Offset = key, int32(partition), int64(offset)
	return nil
}

func (d *DeadLetter) decodeHeader(h Header) error {
	number := func(limit uint64) (int64, error) {
		n, err := integer(h.Key, h.Value, limit)
		return int64(n), err
	}
	var n int64
	var err error
	switch h.Key {
	case HeaderSourceTopic:
		d.Source.Topic = string(h.Value)
	case HeaderSourcePartition:
		n, err = number(math.MaxInt32)
		d.Source.Partition = int32(n)
	case HeaderSourceOffset:
		d.Source.Offset, err = number(math.MaxInt64)
	case HeaderSourceKey:
		if d.SourceKey = h.Value; d.SourceKey == nil {
			d.SourceKey = []byte{} // an empty key, which some clients hand over as nil
		}
	case HeaderSourceTimestamp:
		if d.Source.Time, err = strconv.ParseInt(string(h.Value), 10, 64); err != nil {
			err = invalid(h.Key, "must be Unix milliseconds")
		}
	case HeaderReason:
		if d.Reason, err = parseReason(string(h.Value)); err != nil {
			return err
		}
	case HeaderDetail:
		d.Detail = string(h.Value)
	case HeaderSink:
		d.Sink = string(h.Value)
	case HeaderStatus:
		n, err = number(999)
		d.Status = int(n)
	case HeaderAttempts:
		n, err = number(math.MaxInt32)
		d.Attempts = int(n)
	case HeaderTruncated:
		if d.Truncated = string(h.Value) == "true"; !d.Truncated {
			err = invalid(h.Key, "must be true, or left out")
		}
	case HeaderSize:
		n, err = number(math.MaxInt32)
		d.Size = int(n)
	case HeaderTraceparent:
		d.Traceparent = h.Value
	}
	return err
}

func parseReason(s string) (Reason, error) {
	for _, r := range Reasons() {
		if string(r) == s {
			return r, nil
		}
	}
	return "", invalid(HeaderReason, "is none that this release knows")
}
