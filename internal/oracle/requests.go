package oracle

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"strings"
)

// lane is a partition of an event topic, as ids name it.
type lane struct {
	topic     [16]byte
	partition int32
}

// webhookID is a webhook-id taken apart.
type webhookID struct {
	lane
	first, last int64
	rewind      int64 // 0: none
}

func (id webhookID) String() string {
	s := fmt.Sprintf("%x-%d-%d-%d", id.topic, id.partition, id.first, id.last)
	if id.rewind > 0 {
		s += fmt.Sprintf("-r%d", id.rewind)
	}
	return s
}

// parseWebhookID reads <topic id>-<partition>-<first>-<last>, with -r<n> behind it after a rewind.
func parseWebhookID(s string) (id webhookID, ok bool) {
	const topicDigits = 32
	if len(s) < topicDigits || strings.ToLower(s[:topicDigits]) != s[:topicDigits] {
		return id, false
	}
	if _, err := hex.Decode(id.topic[:], []byte(s[:topicDigits])); err != nil {
		return id, false
	}
	parts := strings.Split(s[topicDigits:], "-")
	if len(parts) < 4 || len(parts) > 5 || parts[0] != "" {
		return id, false
	}
	partition, ok1 := digits(parts[1], math.MaxInt32)
	first, ok2 := digits(parts[2], math.MaxInt64)
	last, ok3 := digits(parts[3], math.MaxInt64)
	if !ok1 || !ok2 || !ok3 || first > last {
		return id, false
	}
	id.partition, id.first, id.last = int32(partition), int64(first), int64(last)
	if len(parts) == 5 {
		n, is := strings.CutPrefix(parts[4], "r")
		rewind, ok := digits(n, math.MaxInt64)
		if !is || !ok || rewind == 0 {
			return id, false
		}
		id.rewind = int64(rewind)
	}
	return id, true
}

// sent is what is known of an id.
type sent struct {
	body  uint64 // hash of event and body
	taken bool
	said  bool // that its body changed
}

// delivered is what the receiver read.
type delivered struct {
	events
	ids    map[webhookID]sent
	odd    map[string]sent // ids that are none of ours
	taken  list[webhookID] // in the order of their first taking; the zero one stands for an odd id
	oddIDs map[int64]string
	topics map[string][16]byte // the topic id of each event
}

func newDelivered() delivered {
	return delivered{
		ids: make(map[webhookID]sent), odd: make(map[string]sent), oddIDs: make(map[int64]string), topics: make(map[string][16]byte),
	}
}

// id is the id of taken request n.
func (d *delivered) id(n int64) string {
	if s, is := d.oddIDs[n]; is {
		return s
	}
	return d.taken.at(uint32(n)).String()
}

// Request takes the next request that the receiver read, in the order in which it took them, after all dead letters.
// An error says that it comes too early or late; what is wrong with the request is a finding.
func (o *Oracle) Request(r Request) error {
	if err := o.enter(readingRequests); err != nil {
		return err
	}
	o.report.Requests++
	o.buf = append(append(append(o.buf[:0], r.Event...), 0), r.Body...)
	body := maphash.Bytes(o.seed, o.buf)
	id, ok := parseWebhookID(r.ID)
	var was sent
	var is bool
	if ok {
		was, is = o.delivered.ids[id]
	} else {
		was, is = o.delivered.odd[r.ID]
	}
	now := sent{body: body, taken: was.taken || r.Taken, said: was.said}
	if is {
		now.body = was.body
		if body != was.body && !was.said {
			now.said = true
			o.find(ChangedBody, "%s %s at %d ms has another body than the request that came first under this id", r.Event, r.ID, r.Time)
		}
	}
	if ok {
		o.delivered.ids[id] = now
	} else {
		o.delivered.odd[r.ID] = now
	}
	switch {
	case !r.Taken:
		return nil
	case was.taken:
		o.report.Repeated++
		return nil
	}
	n := int64(o.delivered.taken.n)
	if !ok {
		o.find(BadID, "%s %q at %d ms is no id of offhook's", r.Event, r.ID, r.Time)
		id = webhookID{}
		o.delivered.oddIDs[n] = r.ID
	}
	o.delivered.taken.add(id)
	o.report.TakenIDs++
	items, err := o.readBody(r, n, id, ok)
	if err != nil {
		o.find(BadRequest, "%s %s at %d ms: %v", r.Event, r.ID, r.Time, err)
		return nil
	}
	if ok {
		o.checkID(r, id, items)
	}
	return nil
}

func (o *Oracle) checkID(r Request, id webhookID, items int64) {
	if items > id.last-id.first+1 {
		o.find(BadID, "%s %s has %d items, more than offsets", r.Event, r.ID, items)
	}
	if id.partition >= o.cfg.Partitions {
		o.find(BadID, "%s %s names a partition that no topic has", r.Event, r.ID)
	}
	topic, is := o.delivered.topics[r.Event]
	switch {
	case is && topic != id.topic:
		o.find(BadID, "%s %s names another topic than the first id of this event", r.Event, r.ID)
	case !is:
		for event, other := range o.delivered.topics {
			if other == id.topic {
				o.find(BadID, "%s %s names the topic of %s", r.Event, r.ID, event)
			}
		}
		o.delivered.topics[r.Event] = id.topic
	}
}

// readBody reads the items of taken request n.
func (o *Oracle) readBody(r Request, n int64, id webhookID, known bool) (items int64, err error) {
	switch r.Event {
	case onlineStatus, msgOffline, msgNotify:
	default:
		return 0, errors.New("is no event of offhook's")
	}
	s := scanner{b: r.Body, depth: -1} // the array stands around what was a record of its own
	if s.peek() != '[' {
		return 0, errors.New("the body is no JSON array")
	}
	if err := s.array(); err != nil {
		return 0, err
	}
	elsewhere := false
	owner := func(key string) {
		elsewhere = elsewhere || known && partition(key, o.cfg.Partitions) != id.partition
	}
	for {
		more, err := s.element(items == 0)
		if err != nil {
			return items, err
		}
		if !more {
			break
		}
		if err := o.read(&s, r.Event, n, &o.delivered.events, owner); err != nil {
			return items, err
		}
		items++
	}
	if elsewhere {
		o.find(BadID, "%s %s has an item of another partition", r.Event, r.ID)
	}
	if items == 0 {
		return 0, errors.New("the body has no items")
	}
	return items, s.end()
}

// judgeIDs looks for offsets that two taken ids name, or an id and a dead letter. Ids of different rewinds repeat
// each other on purpose.
func (o *Oracle) judgeIDs() {
	o.report.Delivered = map[string]int64{
		onlineStatus: int64(o.delivered.status.n), msgOffline: int64(o.delivered.offline.n), msgNotify: int64(o.delivered.notify.n),
	}
	ids := make([]webhookID, 0, o.delivered.taken.n)
	for _, c := range o.delivered.taken.chunks {
		for _, id := range c {
			if id.last > 0 || id.topic != [16]byte{} {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, func(a, b webhookID) int {
		return cmp.Or(compareLanes(a.lane, b.lane), cmp.Compare(a.rewind, b.rewind), cmp.Compare(a.first, b.first), cmp.Compare(a.last, b.last))
	})
	furthest := 0 // of the ids so far, the one that reaches furthest in its lane
	for i, b := range ids {
		a := ids[furthest]
		if i > 0 && a.lane == b.lane && a.rewind == b.rewind && b.first <= a.last {
			o.find(Overlap, "%s and %s were both taken, and share offset %d", a, b, b.first)
			if b.last <= a.last {
				continue
			}
		}
		furthest = i
	}
	for i := range o.dead.records {
		d := &o.dead.records[i]
		at, _ := slices.BinarySearchFunc(ids, d, func(id webhookID, d *deadRecord) int {
			return cmp.Or(compareLanes(id.lane, d.lane), cmp.Compare(id.rewind, 0), cmp.Compare(id.first, d.offset+1))
		})
		if at == 0 {
			continue
		}
		if id := ids[at-1]; id.lane == d.lane && id.rewind == 0 && d.offset >= id.first && d.offset <= id.last {
			d.taken = true
			o.find(TakenAndDead, "%s was taken, and offset %d is in the dead letters (%s)", id, d.offset, d.reason)
		}
	}
}

func compareLanes(a, b lane) int {
	return cmp.Or(slices.Compare(a.topic[:], b.topic[:]), cmp.Compare(a.partition, b.partition))
}
