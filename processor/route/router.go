package route

import (
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

const (
	// sink is what stands in the dead letters of route.
	sink = "route"
	// keptBytes is how much of a record that is too large goes into its dead letter.
	keptBytes = 64 << 10
	// headersBytes is more than the headers of a dead letter take beside the source's key: the names of a topic and
	// of the reasons, numbers, a sentence.
	headersBytes = 4 << 10
)

// router says what becomes of an input record. It is pure but for the tally.
type router struct {
	topics      kafka.Topics
	partitions  int32
	connections map[string]bool // the topics that hold connection events; any other holds messages
	system      map[string]bool // uids that are never recipients
	byChannel   bool            // OFFHOOK_NOTIFY_ORDER_BY=channel_id
	maxBytes    int             // OFFHOOK_MAX_RECORD_BYTES

	tally tally

	// Kept between records for their room.
	seen    map[string]struct{}
	buckets [][]string // recipients by inbox partition
}

// tally counts what was done with records. All of it is of the open transaction.
type tally struct {
	connections, messages int
	nulls                 int // records without a value
	deadLetters           map[schemas.Reason]int
	dropped               int // elements of to_uids that are no uid
	withoutRecipients     int // messages to nobody in particular
	withoutPush           int // messages that forbid msg.offline
	nodeHeartbeats        int
}

func newRouter(cfg *Config, topics kafka.Topics, partitions int32) *router {
	r := &router{
		topics:      topics,
		partitions:  partitions,
		connections: make(map[string]bool),
		system:      make(map[string]bool),
		byChannel:   cfg.NotifyOrderBy == OrderByChannel,
		maxBytes:    cfg.MaxRecordBytes,

		tally:   tally{deadLetters: make(map[schemas.Reason]int)},
		seen:    make(map[string]struct{}),
		buckets: make([][]string, partitions),
	}
	for _, topic := range cfg.ConnectionsTopics {
		r.connections[topic] = true
	}
	for _, uid := range cfg.SystemUIDs {
		r.system[uid] = true
	}
	return r
}

// route emits what becomes of one input record.
func (r *router) route(in txn.Input, emit func(*kgo.Record)) {
	connection := r.connections[in.Topic]
	if connection {
		r.tally.connections++
	} else {
		r.tally.messages++
	}
	if in.Value == nil {
		r.tally.nulls++
		return
	}
	if size := recordBytes(in.Record); size > r.maxBytes {
		emit(r.deadLetter(in, schemas.ReasonTooLarge, "the record is larger than OFFHOOK_MAX_RECORD_BYTES", size))
		return
	}
	var err error
	if connection {
		err = r.connection(in, emit)
	} else {
		err = r.message(in, emit)
	}
	if err != nil {
		emit(r.deadLetter(in, schemas.ReasonInvalid, err.Error(), 0))
	}
}

func (r *router) connection(in txn.Input, emit func(*kgo.Record)) error {
	c, err := schemas.DecodeConnection(in.Value, in.Timestamp.UnixMilli())
	if err != nil {
		return err
	}
	headers := txn.HeadersOf(in.Record)
	if c.UID != "" {
		key := []byte(c.UID)
		emit(&kgo.Record{
			Topic: r.topics.Inbox, Partition: kafka.Partition(key, r.partitions), Key: key, Headers: headers,
			Value: schemas.AppendInboxConnection(nil, &c),
		})
		return nil
	}
	if c.Type == schemas.Heartbeat {
		r.tally.nodeHeartbeats++ // passed on without a time to live too: a process that has one may speak for this one
	}
	value := schemas.AppendInboxConnection(nil, &c)
	for p := range r.partitions {
		emit(&kgo.Record{Topic: r.topics.Inbox, Partition: p, Headers: headers, Value: value})
	}
	return nil
}

func (r *router) message(in txn.Input, emit func(*kgo.Record)) error {
	m, err := schemas.DecodeMessage(in.Value, schemas.Source{
		Topic: in.Topic, Partition: in.Partition, Offset: in.Offset, Time: in.Timestamp.UnixMilli(),
	})
	if err != nil {
		return err
	}
	headers := txn.HeadersOf(in.Record)
	order := m.FromUID
	if order == "" || r.byChannel {
		order = m.ChannelID
	}
	key := []byte(order)
	emit(&kgo.Record{
		Topic: r.topics.Notify, Partition: kafka.Partition(key, r.partitions), Key: key, Headers: headers, Value: m.Item,
	})
	r.tally.dropped += m.Dropped
	switch {
	case !m.HasRecipients:
		r.tally.withoutRecipients++
		return nil
	case !m.OfflinePush:
		r.tally.withoutPush++
		return nil
	}
	r.recipients(&m, headers, emit)
	return nil
}

// recipients emits for each inbox partition that owns some of the message's recipients one record with these, or
// several where one would be too large.
func (r *router) recipients(m *schemas.Message, headers []kgo.RecordHeader, emit func(*kgo.Record)) {
	clear(r.seen)
	for _, uid := range m.Recipients {
		if uid == m.FromUID || r.system[uid] {
			continue
		}
		if _, again := r.seen[uid]; again {
			continue
		}
		r.seen[uid] = struct{}{}
		p := kafka.Partition(uid, r.partitions)
		r.buckets[p] = append(r.buckets[p], uid)
	}
	// Owned topics take twice this, so that what presence makes of the record fits as well.
	room := r.maxBytes + 64<<10 - len(m.Item) - headersBytes
	for p, uids := range r.buckets {
		for len(uids) > 0 {
			n, size := 0, 0
			for n < len(uids) {
				size += jsonBytes(uids[n])
				if n > 0 && size > room {
					break
				}
				n++
			}
			emit(&kgo.Record{
				Topic: r.topics.Inbox, Partition: int32(p), Headers: headers,
				Value: schemas.AppendInboxRecipients(nil, m.Item, m.Splice, uids[:n]),
			})
			uids = uids[n:]
		}
		clear(r.buckets[p])
		r.buckets[p] = r.buckets[p][:0]
	}
}

// jsonBytes is what a uid takes in a JSON array, which is more than in an inbox record.
func jsonBytes(uid string) int {
	return len(uid) + strings.Count(uid, `"`) + strings.Count(uid, `\`) + 3
}

// deadLetter makes the record's dead letter; size is its size where it is too large, and 0 otherwise.
func (r *router) deadLetter(in txn.Input, reason schemas.Reason, detail string, size int) *kgo.Record {
	r.tally.deadLetters[reason]++
	d := schemas.DeadLetter{
		Source:    schemas.Source{Topic: in.Topic, Partition: in.Partition, Offset: in.Offset, Time: in.Timestamp.UnixMilli()},
		TopicID:   in.TopicID,
		SourceKey: in.Key,
		Value:     in.Value,
		Reason:    reason,
		Detail:    detail,
		Sink:      sink,
	}
	d.Traceparent = txn.Traceparent(in.Record)
	if size > 0 {
		// The letter itself must fit into the topic, whatever the limit is and wherever the bytes are.
		room := kafka.MaxOwnedBytes(r.maxBytes) - headersBytes
		d.Truncated, d.Size = true, size
		d.Value = d.Value[:min(len(d.Value), keptBytes, room/2)]
		d.SourceKey = d.SourceKey[:min(len(d.SourceKey), keptBytes, room/2)]
	}
	headers := d.Headers()
	out := &kgo.Record{
		Topic: r.topics.DeadLetters, Partition: in.Partition % r.partitions, Key: d.Key(), Value: d.Value,
		Headers: make([]kgo.RecordHeader, len(headers)),
	}
	for i, h := range headers {
		out.Headers[i] = kgo.RecordHeader(h)
	}
	return out
}

// recordBytes is a record's size: key, value and headers.
func recordBytes(r *kgo.Record) int {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}
