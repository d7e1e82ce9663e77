package sink

import (
	"slices"
	"time"

	"github.com/offhook/offhook/schemas"
)

// A Record is one event of a lane's partition.
type Record struct {
	Offset      int64
	Key         []byte // nil: none
	Value       []byte // the webhook item
	Time        int64  // the record's timestamp, Unix ms
	Traceparent []byte // nil: none
	Read        time.Time
}

// recordOverhead is what a held record costs beside key and value, in bytes, by rough count.
const recordOverhead = 128

func (r *Record) size() int { return len(r.Key) + len(r.Value) + recordOverhead }

// EndReason says why a batch ended: a closed list.
type EndReason string

// Why a batch ended.
const (
	EndCount EndReason = "count" // OFFHOOK_WEBHOOK_BATCH_MAX
	EndBytes EndReason = "bytes" // OFFHOOK_WEBHOOK_BATCH_BYTES
	EndAge   EndReason = "age"   // OFFHOOK_WEBHOOK_FLUSH_INTERVAL
	EndPlan  EndReason = "plan"  // it was planned by an owner before this one
)

// batchState is where a batch stands. It moves forward only.
type batchState uint8

const (
	batchWaiting batchState = iota // being filled, not planned, or planned and not yet sent
	batchUnderway
	batchDone // 2xx, or in the dead-letter topic
)

// A Batch is [First, Last] of the lane's partition: one request, done or not.
type Batch struct {
	First, Last int64
	Dead        Dead
	Ended       EndReason
	Records     []Record

	complete bool // all records of [First, Last] that exist are in Records
	// planned: the plan that the coordinator holds has this batch, with this mark. It becomes true when the
	// coordinator has accepted such a plan, and nothing that is not planned is ever sent.
	planned bool
	state   batchState
}

// LaneConfig are the settings of a lane.
type LaneConfig struct {
	BatchMax      int           // events a batch at most; at least 1
	BatchBytes    int           // bytes of the items of a batch at most, but for a single larger one
	FlushInterval time.Duration // a batch ends this long after its first event was read
	PlanAhead     int           // batches planned and not done at most; at least 1
}

// A Lane is the state of one partition of one event topic: what is read of it, batched, planned and done. It is pure:
// the shell tells it what happened, with the time where that matters, and asks it what to do next. It is not safe
// for concurrent use.
//
// A batch goes through these states, each of the arrows one method:
//
//	queue ──Cut──▶ waiting ──Propose, Committed──▶ planned ──Next──▶ under way ──Done──▶ done
//
// Batches are done in the order of the log; what is committed passes a batch only when it and all before it are done.
type Lane struct {
	cfg LaneConfig

	topicID [16]byte
	rewind  int64 // Unix second of the last rewind; 0: none

	// fresh: the coordinator holds no plan of ours yet, and nothing may be read before it does.
	fresh bool
	// offset is the first offset that is not done: the first of batches[0], or where the next batch will begin.
	offset int64
	// position is the offset after the last one read. All records from offset to it are in batches or in queue.
	position int64
	batches  []*Batch
	queue    []Record
	bytes    int // of the records held
	// planAhead is cfg.PlanAhead, or less where the broker's bound on metadata is lower than Kafka's default.
	planAhead int
	// proposed is what Propose returned last and neither Committed nor Refused has answered.
	proposed *Plan
	// owing is when something that only a commit of an acknowledgement tells came up; zero: nothing.
	owing time.Time
}

// NewLane returns a lane that goes on where plan says. fresh says that the plan is not committed yet, so that it must
// be before anything is read; changed, that the committed one differs from it.
func NewLane(cfg LaneConfig, plan Plan, fresh, changed bool, now time.Time) *Lane {
	l := &Lane{
		cfg: cfg, topicID: plan.TopicID, rewind: plan.Rewind, planAhead: cfg.PlanAhead,
		fresh: fresh, offset: plan.Offset, position: plan.Offset,
	}
	first := plan.Offset
	for _, b := range plan.Batches {
		l.batches = append(l.batches, &Batch{First: first, Last: b.Last, Dead: b.Dead, Ended: EndPlan, planned: !changed})
		first = b.Last + 1
	}
	if changed {
		l.owing = now
	}
	return l
}

// Position is the offset to read from.
func (l *Lane) Position() int64 { return l.position }

// Readable reports whether the lane may be read: its start is committed.
func (l *Lane) Readable() bool { return !l.fresh }

// filling is the first planned batch whose records are not all read; nil: there is none.
func (l *Lane) filling() *Batch {
	for _, b := range l.batches {
		if !b.complete {
			return b
		}
	}
	return nil
}

// Read takes the record that was read next. missing counts planned batches that turn out to have no last record: the log
// has lost it. What is left of one is dead, since under its id the endpoint may have taken all of it.
func (l *Lane) Read(r Record) (missing int) {
	missing = l.passed(r.Offset - 1)
	l.position = r.Offset + 1
	l.bytes += r.size()
	if b := l.filling(); b != nil {
		b.Records = append(b.Records, r)
		b.complete = r.Offset == b.Last
		return missing
	}
	l.queue = append(l.queue, r)
	return missing
}

// Skip takes an offset that was read and holds no event: a transaction's marker.
func (l *Lane) Skip(offset int64, now time.Time) (missing int) {
	missing = l.passed(offset)
	l.position = offset + 1
	if len(l.batches) == 0 && len(l.queue) == 0 && l.owing.IsZero() {
		l.owing = now
	}
	return missing
}

// passed ends the planned batches that wait for records at or before offset: there are none any more.
func (l *Lane) passed(offset int64) (missing int) {
	for b := l.filling(); b != nil && b.Last <= offset; b = l.filling() {
		b.complete = true
		missing++
		if len(b.Records) == 0 {
			b.state = batchDone
			l.pop()
		} else if !b.Dead.Is() {
			b.Dead, b.planned = Dead{Reason: schemas.ReasonCut}, false
		}
	}
	return missing
}

// Cut ends as many batches as are due. again is when to ask again if nothing else happens; zero: never.
func (l *Lane) Cut(now time.Time) (again time.Time) {
	for len(l.queue) > 0 && l.filling() == nil && len(l.batches) < l.planAhead && l.roomForOne() {
		n, bytes, reason := 0, 0, EndReason("")
		for ; n < len(l.queue) && reason == ""; n++ {
			size := len(l.queue[n].Value) + 1
			if n > 0 && bytes+size > l.cfg.BatchBytes {
				reason = EndBytes
				break
			}
			bytes += size
			if n+1 == l.cfg.BatchMax {
				reason = EndCount
			} else if bytes >= l.cfg.BatchBytes {
				reason = EndBytes
			}
		}
		if reason == "" {
			if l.waiting() { // it could not be sent before that one: it may as well grow
				return time.Time{}
			}
			if due := l.queue[0].Read.Add(l.cfg.FlushInterval); now.Before(due) {
				return due
			}
			reason = EndAge
		}
		l.batches = append(l.batches, &Batch{
			First: l.end(), Last: l.queue[n-1].Offset, Ended: reason,
			Records: l.queue[:n:n], complete: true,
		})
		l.queue = l.queue[n:]
	}
	return time.Time{}
}

// waiting reports whether a batch waits to be sent.
func (l *Lane) waiting() bool {
	return slices.ContainsFunc(l.batches, func(b *Batch) bool { return b.state == batchWaiting })
}

// end is the offset after the last batch.
func (l *Lane) end() int64 {
	if n := len(l.batches); n > 0 {
		return l.batches[n-1].Last + 1
	}
	return l.offset
}

// roomForOne reports whether the plan's text has room for one batch's end more.
func (l *Lane) roomForOne() bool {
	const entry = 20 // an int64's digits and a comma
	return len(l.plan().Metadata())+entry <= metadataMax-metadataRoom
}

// plan is what the lane would have committed now.
func (l *Lane) plan() Plan {
	p := Plan{TopicID: l.topicID, Rewind: l.rewind, Offset: l.offset}
	for _, b := range l.batches {
		p.Batches = append(p.Batches, Planned{Last: b.Last, Dead: b.Dead})
	}
	return p
}

// CommitDue is when Propose should be called; zero: there is nothing to commit. A batch that waits for its plan is
// due at once, an acknowledgement alone within the flush interval.
func (l *Lane) CommitDue(now time.Time) time.Time {
	switch {
	case l.proposed != nil:
		return time.Time{}
	case l.fresh, slices.ContainsFunc(l.batches, func(b *Batch) bool { return !b.planned && b.complete }):
		return now
	case !l.owing.IsZero():
		return l.owing.Add(l.cfg.FlushInterval)
	}
	return time.Time{}
}

// Propose is the plan to commit. Until Committed or Refused answers it, nothing else is proposed.
func (l *Lane) Propose() Plan {
	if len(l.batches) == 0 && len(l.queue) == 0 && l.offset < l.position {
		// No event lies from offset to position: the next batch may begin there, and the group's lag reaches zero.
		l.offset = l.position
	}
	p := l.plan()
	l.proposed = &p
	l.owing = time.Time{}
	return p
}

// Committed says that the coordinator accepted what was proposed.
func (l *Lane) Committed() {
	for _, planned := range l.proposed.Batches {
		for _, b := range l.batches {
			if b.Last == planned.Last && b.Dead == planned.Dead {
				b.planned = true
			}
		}
	}
	l.proposed, l.fresh = nil, false
}

// Refused says that what was proposed was refused for certain: the coordinator holds what it held before.
func (l *Lane) Refused(now time.Time) {
	l.proposed = nil
	l.owing = now
}

// Shorten lowers the number of batches that are planned ahead: the broker refuses metadata of this length. It returns
// false where one batch alone is too long.
func (l *Lane) Shorten() bool {
	unplanned := slices.IndexFunc(l.batches, func(b *Batch) bool { return !b.planned })
	if unplanned < 0 || len(l.batches) <= 1 {
		return false
	}
	l.planAhead = max(1, len(l.batches)/2)
	for len(l.batches) > max(l.planAhead, unplanned) { // back into the queue
		last := l.batches[len(l.batches)-1]
		l.batches = l.batches[:len(l.batches)-1]
		l.queue = append(last.Records, l.queue...)
	}
	return true
}

// Next is the batch to send, or to write to the dead letters where it is Dead, and is under way from then on; nil:
// none may be sent now. It is the first that is not done, and its plan is committed.
func (l *Lane) Next() *Batch {
	if len(l.batches) == 0 {
		return nil
	}
	if b := l.batches[0]; b.state == batchWaiting && b.complete && b.planned {
		b.state = batchUnderway
		return b
	}
	return nil
}

// Done says that b, which Next returned, is done.
func (l *Lane) Done(b *Batch, now time.Time) {
	b.state = batchDone
	l.pop()
	if l.owing.IsZero() {
		l.owing = now
	}
}

// pop lets go of the batches that are done with all before them.
func (l *Lane) pop() {
	for len(l.batches) > 0 && l.batches[0].state == batchDone {
		for i := range l.batches[0].Records {
			l.bytes -= l.batches[0].Records[i].size()
		}
		l.offset = l.batches[0].Last + 1
		l.batches = l.batches[1:]
	}
}

// Underway reports whether a batch is under way.
func (l *Lane) Underway() bool {
	return slices.ContainsFunc(l.batches, func(b *Batch) bool { return b.state == batchUnderway })
}

// ID is the webhook-id of b.
func (l *Lane) ID(partition int32, b *Batch) string {
	return BatchID(l.topicID, partition, b.First, b.Last, l.rewind)
}

// TopicID is the id of the lane's topic.
func (l *Lane) TopicID() [16]byte { return l.topicID }

// Bytes is what the lane holds.
func (l *Lane) Bytes() int { return l.bytes }

// Full reports whether the lane should not be read for now: it holds two batches' bytes. A planned batch is always
// read to its end.
func (l *Lane) Full() bool {
	return l.filling() == nil && l.bytes >= 2*max(l.cfg.BatchBytes, recordOverhead)
}
