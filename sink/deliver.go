package sink

import (
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/offhook/offhook/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
)

var uidSeed = maphash.MakeSeed()

// uidsOf returns what [LaneConfig.UIDs] is for an event: the recipients of a msg.offline, the record's key of the others.
func uidsOf(event schemas.Event) func([]uint64, *Record) []uint64 {
	if event != schemas.EventOffline {
		return func(hashes []uint64, r *Record) []uint64 { return append(hashes, maphash.Bytes(uidSeed, r.Key)) }
	}
	return func(hashes []uint64, r *Record) []uint64 {
		// An item that is none of ours is sent as it is; what recipients it has, if any, nobody can say.
		_ = schemas.OfflineUIDs(r.Value, func(uid []byte) { hashes = append(hashes, maphash.Bytes(uidSeed, uid)) })
		return hashes
	}
}

// refusedMany is how many events in a row may be refused before the log asks whether the endpoint is wrong.
const refusedMany = 16

// begin begins to write a lane's dead batches to the dead letters, and has the lane wait for its turn where it has one to
// send. again is when to ask again if nothing else happens; zero: never.
func (s *session) begin(l *lane, now time.Time) (again time.Time) {
	for {
		b, again := l.core.Next(now)
		switch {
		case b == nil:
			return again
		case !b.Dead.Is():
			if !l.ready {
				l.ready = true
				s.ready = append(s.ready, l)
			}
			return time.Time{}
		}
		l.core.Begin(b)
		s.active++
		d := letters{dead: b.Dead, attempts: b.Attempts, records: b.Records, topicID: l.core.TopicID()}
		s.work.Go(func() {
			written := s.bury(l, d)
			s.post(func() { s.buried(l, b, written) })
		})
	}
}

// dispatch begins requests, one of each lane that is ready in turn, as far as limit, pace and breaker allow.
func (s *session) dispatch() {
	for len(s.ready) > 0 && s.underway < s.cfg.MaxInFlight && !s.stopping && s.err == nil {
		// Read each time: a lane that advance finds ready must be ready here too, or the two would go on for ever.
		now := time.Now()
		next := s.turn()
		ok, again := s.endpoint.breaker.Ask(s.ready[next].laneKey, s.underway, now)
		if ok {
			ok, again = s.endpoint.pace.ask(now)
		}
		if !ok {
			if !again.IsZero() {
				s.wake.Reset(again.Sub(now))
			}
			return
		}
		l := s.ready[next]
		s.ready = slices.Delete(s.ready, next, next+1)
		l.ready = false
		if b, _ := l.core.Next(now); b != nil && !b.Dead.Is() {
			s.endpoint.pace.take(now)
			l.core.Begin(b)
			s.active++
			s.underway++
			s.metrics.inFlight.Inc()
			if b.Attempts == 0 {
				s.metrics.batches.WithLabelValues(string(l.event), string(b.Ended)).Inc()
				s.metrics.batchEvents.Observe(float64(len(b.Records)))
			}
			id, records := l.core.ID(l.partition, b), b.Records
			s.work.Go(func() {
				began := time.Now()
				answer, err := s.transport.Send(l.ctx, s.request(l.event, id, records))
				s.post(func() { s.answered(l, b, id, answer, err, time.Since(began)) })
			})
		}
		s.advance(l) // which has it wait for its next turn, or for a later time
	}
}

// turn is the place of the lane in ready whose turn it is: the first, but while the breaker is open one that has not failed since.
func (s *session) turn() int {
	if s.endpoint.breaker.Open() {
		if i := slices.IndexFunc(s.ready, func(l *lane) bool { return s.endpoint.breaker.Untried(l.laneKey) }); i >= 0 {
			return i
		}
	}
	return 0
}

// request is what is sent for records: the same at each attempt.
func (s *session) request(event schemas.Event, id string, records []Record) *Request {
	r := &Request{Event: event, ID: id}
	items := make([][]byte, len(records))
	for i := range records {
		items[i] = records[i].Value
		if r.Traceparent == nil {
			r.Traceparent = records[i].Traceparent
		}
	}
	r.Body = s.cfg.Body(event, items)
	return r
}

// answered does what the end of an attempt asks for. err says that the attempt was called off, and so nothing of the
// endpoint.
func (s *session) answered(l *lane, b *Batch, id string, answer Answer, err error, took time.Duration) {
	s.active--
	s.underway--
	s.metrics.inFlight.Dec()
	if err != nil {
		return // the lane was dropped, or the session ends
	}
	s.metrics.duration.Observe(took.Seconds())
	s.metrics.attempts.WithLabelValues(string(l.event), answer.Code()).Inc()
	now := time.Now()
	switch answer.Verdict {
	case VerdictDelivered, VerdictRefused:
		l.failures = 0
		if s.endpoint.breaker.Success() {
			s.metrics.breakerOpen.Set(0)
			s.log.Info("the endpoint answers again: the breaker is closed")
			defer s.endBackoffs()
		}
		if l.dead {
			return
		}
		if answer.Verdict == VerdictDelivered {
			n := len(b.Records)
			l.core.Done(b, now)
			s.endpoint.refused = 0
			s.metrics.done(l.event, "delivered", n)
		} else {
			s.refuse(l, b, id, answer, now)
		}
	case VerdictRetry, VerdictEndpoint:
		if s.endpoint.breaker.Failure(attemptKey{l.laneKey, b.First}, s.underway, answer.RetryAfter, rand.Float64(), now) {
			s.metrics.breakerOpen.Set(1)
			s.log.Warn("no request succeeds any more: the breaker is open, one request at a time tries the endpoint", "answer", answer)
		}
		if l.dead {
			return
		}
		s.failed(l, b, id, answer, now)
	}
	s.advance(l)
}

// refuse halves a batch whose content the endpoint refuses, or gives it to the dead letters if it is a single event.
func (s *session) refuse(l *lane, b *Batch, id string, answer Answer, now time.Time) {
	n, bytes := len(b.Records), 0
	for i := range b.Records {
		bytes += len(b.Records[i].Value) + 1
	}
	log := s.log.With("topic", l.topic, "partition", l.partition, "id", id, "status", answer.Status)
	if n > 1 {
		s.metrics.halvings.Inc()
		log.Info("the endpoint refuses a batch: its halves are sent", "events", n, "bytes", bytes)
		if answer.Status == statusTooLarge {
			s.endpoint.body.refused(bytes, now)
		}
	} else {
		log.Warn("the endpoint refuses an event: it goes to the dead letters")
		s.endpoint.refused++
		if n := s.endpoint.refused; n >= refusedMany && n&(n-1) == 0 { // at 16, 32, 64, …
			s.log.Error("the endpoint refuses every event, and all go to the dead letters: if that is its settings' fault, stop this sink, mend them, and replay the dead letters", "events", n, "status", answer.Status)
		}
	}
	l.core.Refuse(b, answer.Status, now)
}

// failed has a batch wait for its next attempt, or gives it up.
func (s *session) failed(l *lane, b *Batch, id string, answer Answer, now time.Time) {
	l.failures++
	log := s.log.With("topic", l.topic, "partition", l.partition, "id", id, "events", len(b.Records), "attempts", b.Attempts+1, "answer", answer)
	delay := RetryDelay(b.Tries()+1, rand.Float64())
	if s.cfg.GiveUpAfter > 0 && answer.Verdict == VerdictRetry {
		left := s.cfg.GiveUpAfter
		if !b.Trying().IsZero() {
			left -= now.Sub(b.Trying())
		}
		if left <= 0 {
			log.Warn("a batch is given up: it goes to the dead letters", "after", now.Sub(b.Trying()).Round(time.Second))
			l.core.GiveUp(b, answer.Status, now)
			return
		}
		delay = min(delay, left) // the last attempt is made when the time is over, and not a backoff later
	}
	if s.endpoint.breaker.Open() {
		delay = min(delay, breakerCap) // the breaker spares the endpoint, and somebody must be there to probe
	}
	log = log.With("delay", max(delay, answer.RetryAfter))
	if n := l.failures; n&(n-1) == 0 { // at 1, 2, 4, …
		if answer.Verdict == VerdictEndpoint {
			log.Warn("the endpoint or its settings are wrong, not the events: they are kept and tried again until that is mended")
		} else {
			log.Warn("a batch was not delivered: it is tried again")
		}
	}
	l.core.Retry(b, answer, delay, now)
}

// endBackoffs has all lanes try again at once.
func (s *session) endBackoffs() {
	for _, l := range s.lanes {
		if l.core != nil {
			l.core.EndBackoff()
			s.advance(l)
		}
	}
}

// letters are the events of a dead batch on their way to the dead letters.
type letters struct {
	dead     Dead
	attempts int
	records  []Record
	topicID  [16]byte
}

// details say why a batch is dead, for people.
var details = map[schemas.Reason]string{
	schemas.ReasonCut:     "the log has lost a part of the batch that this event was planned in",
	schemas.ReasonRefused: "the endpoint refuses this event",
	schemas.ReasonGaveUp:  "the endpoint did not take the batch of this event within OFFHOOK_WEBHOOK_GIVE_UP_AFTER",
	schemas.ReasonSkipped: "an operator skipped the batch of this event",
}

// bury writes a dead batch to the dead letters. Its plan says that it is dead, so nobody sends it any more.
func (s *session) bury(l *lane, d letters) (written bool) {
	records := make([]*kgo.Record, 0, len(d.records))
	for _, r := range d.records {
		letter := schemas.DeadLetter{
			Source:  schemas.Source{Topic: l.topic, Partition: l.partition, Offset: r.Offset, Time: r.Time},
			TopicID: d.topicID, SourceKey: r.Key, Value: r.Value, Reason: d.dead.Reason, Detail: details[d.dead.Reason],
			Sink: s.cfg.Name, Status: d.dead.Status, Attempts: d.attempts, Traceparent: r.Traceparent,
		}
		record := &kgo.Record{Topic: s.deps.Topics.DeadLetters, Partition: l.partition % s.deps.Owned.Partitions, Key: letter.Key(), Value: letter.Value}
		for _, h := range letter.Headers() {
			record.Headers = append(record.Headers, kgo.RecordHeader(h))
		}
		records = append(records, record)
	}
	for attempts := 1; ; attempts++ {
		// Not ProduceSync: once a record is on its way its end can only be waited for, and a copy does no harm, since it
		// has the same key.
		answers := make(chan error, len(records))
		for _, r := range records {
			s.producer.Produce(l.ctx, r, func(_ *kgo.Record, err error) { answers <- err })
		}
		var err error
		for range records {
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
			s.log.Warn("dead letters cannot be written; trying again", "topic", l.topic, "partition", l.partition, "events", len(records), "attempts", attempts, "error", err)
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

// buried does what the end of bury asks for.
func (s *session) buried(l *lane, b *Batch, written bool) {
	s.active--
	if written && !l.dead {
		n, reason := len(b.Records), b.Dead.Reason
		l.core.Done(b, time.Now())
		s.metrics.done(l.event, "dead", n)
		s.metrics.deadLetters.WithLabelValues(string(reason)).Add(float64(n))
	}
	s.advance(l)
}
