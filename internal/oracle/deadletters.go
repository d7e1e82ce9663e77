package oracle

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"strings"
)

// routeName is the sink that the dead letters of route name.
const routeName = "route"

// deadRecord is an event in the dead letters.
type deadRecord struct {
	lane
	offset int64
	topic  string
	reason string
	taken  bool // an id that names its offset was taken too
}

func (d *deadRecord) String() string {
	return fmt.Sprintf("%s-%d offset %d (%s)", d.topic, d.partition, d.offset, d.reason)
}

// deadLetters is what the sink has dead-lettered.
type deadLetters struct {
	events
	records []deadRecord
	values  map[string]uint64 // by key, of which copies have the same
}

func newDeadLetters() deadLetters { return deadLetters{values: make(map[string]uint64)} }

// letter is a decoded dead letter.
type letter struct {
	sink, topic, reason string
	partition           int32
	offset              int64
	topicID             [16]byte
	key                 []byte
}

var errLetter = errors.New("is no dead letter of format 1")

func parseLetter(r Record) (l letter, err error) {
	var version, partition, offset string
	for _, h := range r.Headers {
		v := string(h.Value)
		switch h.Key {
		case "v":
			version = v
		case "source-topic":
			l.topic = v
		case "source-partition":
			partition = v
		case "source-offset":
			offset = v
		case "source-key":
			l.key = h.Value
		case "reason":
			l.reason = v
		case "sink":
			l.sink = v
		}
	}
	p, ok1 := digits(partition, math.MaxInt32)
	at, ok2 := digits(offset, math.MaxInt64)
	rest, ok3 := strings.CutSuffix(string(r.Key), "/"+partition+"/"+offset)
	sink, ok4 := strings.CutSuffix(rest, "/"+rest[max(0, len(rest)-32):])
	if version != "1" || !ok1 || !ok2 || !ok3 || !ok4 || sink != l.sink || l.sink == "" || l.topic == "" || l.reason == "" {
		return letter{}, errLetter
	}
	if _, err := hex.Decode(l.topicID[:], []byte(rest[len(rest)-32:])); err != nil {
		return letter{}, errLetter
	}
	l.partition, l.offset = int32(p), int64(at)
	return l, nil
}

// DeadLetter takes the next record of the dead letters, those of route and of the one sink whose requests are judged,
// in any order, after the inbox. An error says that it comes too early or late; what is wrong with it is a finding.
func (o *Oracle) DeadLetter(r Record) error {
	if err := o.enter(readingDeadLetters); err != nil {
		return err
	}
	l, err := parseLetter(r)
	if err != nil {
		o.find(Unexpected, "%s-%d offset %d %v", r.Topic, r.Partition, r.Offset, err)
		return nil
	}
	if l.sink == routeName {
		o.rejectedByRoute(r, l)
		return nil
	}
	where := fmt.Sprintf("dead letter %s-%d offset %d of %s-%d offset %d", r.Topic, r.Partition, r.Offset, l.topic, l.partition, l.offset)
	value := maphash.Bytes(o.seed, r.Value)
	if was, is := o.dead.values[string(r.Key)]; is {
		if was != value {
			o.find(ChangedBody, "%s has another value than the first under its key", where)
		}
		return nil
	}
	o.dead.values[string(r.Key)] = value
	var name string
	for _, event := range []string{onlineStatus, msgOffline, msgNotify} {
		if strings.HasSuffix(l.topic, "."+event) {
			name = event
		}
	}
	if name == "" {
		o.find(Unexpected, "%s: that is no event", where)
		return nil
	}
	s := scanner{b: r.Value}
	n := int64(len(o.dead.records))
	o.dead.records = append(o.dead.records, deadRecord{
		lane: lane{l.topicID, l.partition}, offset: l.offset, topic: l.topic, reason: l.reason,
	})
	err = o.read(&s, name, n, &o.dead.events, func(string) {})
	if err == nil {
		err = s.end()
	}
	if err != nil {
		o.find(Unexpected, "%s: %v", where, err)
	}
	return nil
}

func (o *Oracle) rejectedByRoute(r Record, l letter) {
	where := fmt.Sprintf("dead letter %s-%d offset %d of %s-%d offset %d (%s)", r.Topic, r.Partition, r.Offset, l.topic, l.partition, l.offset, l.reason)
	is := o.rejected[recordRef{topicPartition{l.topic, l.partition}, l.offset}]
	switch {
	case is == nil:
		o.find(Unexpected, "%s: that record is good, or is not there", where)
		return
	case is.count > 0:
		o.find(Duplicate, "%s stands there already", where)
	case is.value != maphash.Bytes(o.seed, r.Value) || is.key != maphash.Bytes(o.seed, l.key):
		o.find(ChangedBody, "%s has another key or value than that record", where)
	case is.reason != l.reason:
		o.find(Unexpected, "%s: the reason must be %s", where, is.reason)
	}
	is.count++
	o.report.Rejected++
}
