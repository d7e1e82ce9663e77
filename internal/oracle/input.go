package oracle

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
)

// input is what is known of one input partition.
type input struct {
	topicPartition
	number  int32    // in Oracle.order
	last    int64    // offset of the last record
	logged  []logged // its records
	acked   []logged
	toInbox []source // by inbox partition
}

// logged is one record of a log, or what its producer says of it.
type logged struct {
	offset int64
	sum    uint64
}

// rejection is a record that route must put into the dead letters.
type rejection struct {
	reason string
	why    string
	key    uint64 // hash of the key
	value  uint64 // hash of the value, as far as it is kept
	count  int
	null   bool // it is too large and has no value: it may be skipped instead
}

// keptOfTooLarge is how much of a record over the limit its dead letter keeps.
const keptOfTooLarge = 64 << 10

func (o *Oracle) input(topic string, partition int32) *input {
	tp := topicPartition{topic, partition}
	in := o.inputs[tp]
	if in == nil {
		in = &input{topicPartition: tp, number: int32(len(o.order)), last: -1, toInbox: make([]source, o.cfg.Partitions)}
		o.inputs[tp] = in
		o.order = append(o.order, in)
	}
	return in
}

// Ack says that a producer got the acknowledgement of an input record. It may come at any time before Judge.
func (o *Oracle) Ack(a Ack) {
	o.report.Acks++
	in := o.input(a.Topic, a.Partition)
	in.acked = append(in.acked, logged{a.Offset, a.Sum})
}

// Input takes the next record of an input partition; each partition's must come in the order of their offsets, and all
// of them before the first of the inbox. An error says that what is given is not in that order, or of no input topic.
func (o *Oracle) Input(r Record) error {
	if err := o.enter(readingInput); err != nil {
		return err
	}
	in := o.input(r.Topic, r.Partition)
	connection := o.connections[r.Topic]
	switch {
	case !connection && !o.messages[r.Topic]:
		return fmt.Errorf("read input: %s is no input topic", in)
	case r.Offset <= in.last:
		return fmt.Errorf("read %s at offset %d after %d: %w", in, r.Offset, in.last, errOffsets)
	}
	in.last = r.Offset
	o.report.Inputs++
	in.logged = append(in.logged, logged{r.Offset, sum(r.Value)})

	var err error
	switch {
	case o.cfg.MaxRecordBytes > 0 && size(r) > o.cfg.MaxRecordBytes:
		r.Key, r.Value = r.Key[:min(len(r.Key), keptOfTooLarge)], r.Value[:min(len(r.Value), keptOfTooLarge)]
		o.reject(r, "too_large", "the record is too large")
		return nil
	case r.Value == nil:
		return nil
	case connection:
		err = o.inputConnection(in, r)
	default:
		err = o.inputMessage(in, r)
	}
	if err != nil {
		o.reject(r, "invalid", err.Error())
	}
	return nil
}

func size(r Record) int {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

func (o *Oracle) reject(r Record, reason, why string) {
	o.rejected[recordRef{topicPartition{r.Topic, r.Partition}, r.Offset}] = &rejection{
		reason: reason, why: why, key: maphash.Bytes(o.seed, r.Key), value: maphash.Bytes(o.seed, r.Value), null: r.Value == nil,
	}
}

func (o *Oracle) inputConnection(in *input, r Record) error {
	c, err := ParseConnection(r.Value, r.Time)
	if err != nil {
		return err
	}
	p := piece{hash: o.hashConnection(&c), offset: r.Offset}
	if !c.node() {
		src := &in.toInbox[partition(c.UID, o.cfg.Partitions)]
		src.pieces = append(src.pieces, p)
		return nil
	}
	for q := range in.toInbox {
		in.toInbox[q].pieces = append(in.toInbox[q].pieces, p)
	}
	return nil
}

// hashConnection is the hash of what an event says. What an offline says of a flag says nothing, nor what a node's
// event says of a generation.
func (o *Oracle) hashConnection(c *Connection) uint64 {
	flag, background, opened := int16(-1), byte(2), c.OpenedAt
	if c.HasDeviceFlag && c.Type != Offline {
		flag = int16(c.DeviceFlag)
	}
	if c.HasBackground {
		background = 0
		if c.Background {
			background = 1
		}
	}
	if c.node() {
		flag, background, opened = -1, 2, -1
	}
	b := append(o.buf[:0], 1, byte(c.Type), background, byte(flag), byte(flag>>8))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.Time))
	b = binary.LittleEndian.AppendUint64(b, uint64(opened))
	for _, s := range []string{c.UID, c.ConnID, c.NodeID} {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	o.buf = b
	return maphash.Bytes(o.seed, b)
}

// hashItem is the hash of a message's item, given as what stands before and after the place of to_uids.
func (o *Oracle) hashItem(before, after []byte) uint64 {
	const odd = 0x9e3779b97f4a7c15
	return (maphash.Bytes(o.seed, before)*odd + maphash.Bytes(o.seed, after)) * odd
}

func (o *Oracle) inputMessage(in *input, r Record) error {
	m, err := ParseMessage(r.Topic, r.Partition, r.Offset, r.Value, r.Time)
	if err != nil {
		return err
	}
	hash := o.hashItem(m.Item[:m.Splice], m.Item[m.Splice:])
	o.expectedNotify.add(event{
		hash: hash, offset: r.Offset, key: o.names.number(o.orderKey(m.FromUID, m.ChannelID)), source: in.number,
	})
	o.report.Events[msgNotify]++
	if !m.OfflinePush {
		return nil
	}
	var seen map[string]bool
	if len(m.Recipients) > 8 {
		seen = make(map[string]bool, len(m.Recipients))
	}
	for i, uid := range m.Recipients {
		if uid == m.FromUID || o.system[uid] {
			continue
		}
		if seen != nil {
			if seen[uid] {
				continue
			}
			seen[uid] = true
		} else if slices.Contains(m.Recipients[:i], uid) {
			continue
		}
		src := &in.toInbox[partition(uid, o.cfg.Partitions)]
		if n := len(src.pieces); n == 0 || src.pieces[n-1].offset != r.Offset {
			src.pieces = append(src.pieces, piece{hash: hash, offset: r.Offset, first: uint32(len(src.uids))})
		}
		src.pieces[len(src.pieces)-1].n++
		src.uids = append(src.uids, o.names.number(uid))
	}
	return nil
}

func (o *Oracle) orderKey(from, channel string) string {
	if from == "" || o.cfg.OrderByChannel {
		return channel
	}
	return from
}

// judgeInput looks for the acknowledged records in the logs.
func (o *Oracle) judgeInput() {
	byOffset := func(a, b logged) int { return cmp.Compare(a.offset, b.offset) }
	for _, in := range o.order {
		slices.SortFunc(in.acked, byOffset)
		i := 0
		for _, a := range in.acked {
			for i < len(in.logged) && in.logged[i].offset < a.offset {
				i++
			}
			switch {
			case i == len(in.logged) || in.logged[i].offset != a.offset:
				o.find(LostInput, "%s offset %d was acknowledged and is not in the log", in, a.offset)
			case in.logged[i].sum != a.sum:
				o.find(LostInput, "%s offset %d was acknowledged and has another value in the log", in, a.offset)
			}
		}
	}
}

// judgeRejected looks for the records that belong into the dead letters.
func (o *Oracle) judgeRejected() {
	var missing []recordRef
	for ref, is := range o.rejected {
		if is.count == 0 && !is.null {
			missing = append(missing, ref)
		}
	}
	slices.SortFunc(missing, func(a, b recordRef) int {
		return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.partition, b.partition), cmp.Compare(a.offset, b.offset))
	})
	for _, ref := range missing {
		o.find(LostInput, "%s offset %d is not in the dead letters, where it belongs: %s", ref.topicPartition, ref.offset, o.rejected[ref].why)
	}
}
