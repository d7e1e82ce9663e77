package sink

import (
	"math/rand/v2"
	"time"

	"github.com/offhook/offhook/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
)

// deliver works on one batch until it is done, or the lane is dropped, or the sink stops.
func (s *session) deliver(l *lane, b *Batch, id string, topicID [16]byte) {
	done := false
	if b.Dead.Is() {
		done = s.bury(l, b, topicID)
	} else {
		done = s.send(l, b, id)
	}
	s.post(func() {
		s.active--
		if done && !l.dead {
			l.core.Done(b, time.Now())
			s.metrics.done(l.event, b.Dead.Is(), len(b.Records))
		}
		s.advance(l)
	})
}

// send sends a batch again and again until the endpoint takes it.
func (s *session) send(l *lane, b *Batch, id string) bool {
	items := make([][]byte, len(b.Records))
	size := 2
	r := &Request{Event: l.event, ID: id}
	for i := range b.Records {
		items[i] = b.Records[i].Value
		size += len(items[i]) + 1
		if r.Traceparent == nil {
			r.Traceparent = b.Records[i].Traceparent
		}
	}
	r.Body = schemas.AppendBody(make([]byte, 0, size), items)
	s.metrics.batches.WithLabelValues(string(l.event), string(b.Ended)).Inc()
	s.metrics.batchEvents.Observe(float64(len(items)))
	for attempts := 1; ; attempts++ {
		select {
		case s.slots <- struct{}{}:
		case <-l.ctx.Done():
			return false
		case <-s.draining:
			return false
		}
		s.metrics.inFlight.Inc()
		began := time.Now()
		answer, err := s.transport.Send(l.ctx, r)
		s.metrics.inFlight.Dec()
		<-s.slots
		if err != nil {
			return false
		}
		s.metrics.duration.Observe(time.Since(began).Seconds())
		s.metrics.attempts.WithLabelValues(string(l.event), answer.Code()).Inc()
		if answer.Verdict == VerdictDelivered {
			return true
		}
		delay := RetryDelay(attempts, rand.Float64())
		if attempts&(attempts-1) == 0 { // at 1, 2, 4, …
			s.log.Warn("a batch was not delivered; trying again", "topic", l.topic, "partition", l.partition, "id", r.ID,
				"events", len(items), "attempts", attempts, "delay", delay, "answer", answer)
		}
		select {
		case <-time.After(delay):
		case <-l.ctx.Done():
			return false
		case <-s.draining:
			return false
		}
	}
}

// bury writes a dead batch to the dead letters. Its plan says that it is dead, so nobody sends it any more.
func (s *session) bury(l *lane, b *Batch, topicID [16]byte) bool {
	letters := make([]*kgo.Record, 0, len(b.Records))
	for _, r := range b.Records {
		letter := schemas.DeadLetter{
			Source:  schemas.Source{Topic: l.topic, Partition: l.partition, Offset: r.Offset, Time: r.Time},
			TopicID: topicID, SourceKey: r.Key, Value: r.Value, Reason: b.Dead.Reason,
			Detail: "the log has lost a part of the batch that this event was planned in",
			Sink:   s.cfg.Name, Traceparent: r.Traceparent,
		}
		record := &kgo.Record{Topic: s.deps.Topics.DeadLetters, Partition: l.partition % s.deps.Owned.Partitions, Key: letter.Key(), Value: letter.Value}
		for _, h := range letter.Headers() {
			record.Headers = append(record.Headers, kgo.RecordHeader(h))
		}
		letters = append(letters, record)
	}
	for attempts := 1; ; attempts++ {
		// Not ProduceSync: once a record is on its way its end can only be waited for, and a copy does no harm, since it
		// has the same key.
		answers := make(chan error, len(letters))
		for _, r := range letters {
			s.producer.Produce(l.ctx, r, func(_ *kgo.Record, err error) { answers <- err })
		}
		var err error
		for range letters {
			select {
			case answer := <-answers:
				err = firstError(err, answer)
			case <-l.ctx.Done():
				return false
			case <-s.draining:
				return false
			}
		}
		if err == nil {
			return true
		}
		if attempts&(attempts-1) == 0 { // at 1, 2, 4, …
			s.log.Warn("dead letters cannot be written; trying again", "topic", l.topic, "partition", l.partition, "events", len(letters), "attempts", attempts, "error", err)
		}
		select {
		case <-time.After(RetryDelay(attempts, 1)):
		case <-l.ctx.Done():
			return false
		case <-s.draining:
			return false
		}
	}
}
