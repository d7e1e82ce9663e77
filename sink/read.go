package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/offhook/offhook/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
)

// fetched takes what the reader has read.
func (s *session) fetched(fetches kgo.Fetches) {
	if s.stopping {
		return
	}
	fetches.EachError(func(topic string, p int32, err error) {
		if l, ok := s.lanes[laneKey{topic, p}]; ok && l.reading && !errors.Is(err, context.Canceled) {
			s.unreadable(l, err)
		}
	})
	now := time.Now()
	fetches.EachPartition(func(batch kgo.FetchTopicPartition) {
		l, ok := s.lanes[laneKey{batch.Topic, batch.Partition}]
		if !ok || !l.reading || len(batch.Records) == 0 {
			return
		}
		delete(s.failures, l.laneKey)
		held := newArena(batch.Records)
		for _, r := range batch.Records {
			if r.Offset < l.core.Position() {
				continue
			}
			if r.Attrs.IsControl() || r.Value == nil {
				s.metrics.missing.Add(float64(l.core.Skip(r.Offset, now)))
				continue
			}
			if err := checkVersion(r); err != nil {
				s.fail(fmt.Errorf("read topic %s: %w", r.Topic, err))
				return
			}
			record := Record{Offset: r.Offset, Key: held.clone(r.Key), Value: held.clone(r.Value), Time: r.Timestamp.UnixMilli(), Read: now}
			if trace := header(r, schemas.HeaderTraceparent); schemas.ValidTraceparent(trace) {
				record.Traceparent = held.clone(trace)
			}
			s.metrics.missing.Add(float64(l.core.Read(record)))
		}
		s.advance(l)
	})
}

// An arena holds copies of what is kept of a partition's records: a record's slices pin the whole response of a fetch,
// with the records of all other partitions. It is cut into chunks, so that one record that is kept long pins little, and has
// no more room than the records need: where events come one by one each has an arena of its own.
type arena struct {
	chunk []byte
	left  int // bytes that are still to come
}

// arenaChunk is a chunk's size in bytes at most, but for a larger record.
const arenaChunk = 64 << 10

func newArena(records []*kgo.Record) *arena {
	var a arena
	for _, r := range records {
		a.left += len(r.Key) + len(r.Value) + len(header(r, schemas.HeaderTraceparent))
	}
	return &a
}

func (a *arena) clone(b []byte) []byte {
	if b == nil {
		return nil
	}
	if len(b) == 0 {
		return []byte{} // not a slice of b, which would pin it
	}
	if cap(a.chunk)-len(a.chunk) < len(b) {
		a.chunk = make([]byte, 0, max(min(arenaChunk, a.left), len(b)))
	}
	a.left -= len(b)
	start := len(a.chunk)
	a.chunk = append(a.chunk, b...)
	return a.chunk[start:len(a.chunk):len(a.chunk)]
}

// unreadable begins a lane anew after an error of its fetches: from what is committed, where that can be read. At the
// first error it does so at once, and then after a backoff.
func (s *session) unreadable(l *lane, err error) {
	s.failures[l.laneKey]++
	n := s.failures[l.laneKey]
	s.metrics.readErrors.Inc()
	if n&(n-1) == 0 { // at 1, 2, 4, …
		s.log.Warn("events cannot be read; beginning the lane anew", "topic", l.topic, "partition", l.partition, "errors", n, "error", err)
	}
	s.reader.remove(l)
	if n == 1 {
		s.reload(l)
		return
	}
	time.AfterFunc(RetryDelay(n-1, 1), func() {
		s.post(func() {
			if s.lanes[l.laneKey] == l {
				s.reload(l)
			}
		})
	})
}

func header(r *kgo.Record, key string) []byte {
	for i := range r.Headers {
		if r.Headers[i].Key == key {
			return r.Headers[i].Value
		}
	}
	return nil
}

func checkVersion(r *kgo.Record) error {
	if v := header(r, schemas.HeaderVersion); len(v) == 1 && v[0] == '0'+schemas.Version {
		return nil
	}
	return schemas.CheckVersion("event", r.Headers)
}
