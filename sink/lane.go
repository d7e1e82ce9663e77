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
	EndBytes EndReason = "bytes" // OFFHOOK_WEBHOOK_BATCH_BYTES, or the endpoint's limit as a 413 has told it
	EndAge   EndReason = "age"   // OFFHOOK_WEBHOOK_FLUSH_INTERVAL
	EndPlan  EndReason = "plan"  // it was planned by an owner before this one
	EndHalf  EndReason = "half"  // it is half of one that the endpoint refused
)

// batchState is where a batch stands.
type batchState uint8

const (
	batchWaiting  batchState = iota // being filled, not planned, or planned and not under way
	batchUnderway                   // a request is in flight, or it is being written to the dead letters
	batchRefused                    // to be halved, when the plan has room
	batchDone                       // 2xx, or in the dead-letter topic
)

// A Batch is [First, Last] of the lane's partition: one request, done or not.
type Batch struct {
	First, Last int64
	Dead        Dead
	Ended       EndReason
	Records     []Record
	// Attempts that failed, of this owner and, for the batch that it found first in the plan, of those before it.
	Attempts int
	// Failing is when the first of Attempts failed; zero: none did.
	Failing time.Time

	lastFailed time.Time
	answer     string // to the last attempt that failed
	// trying is when the first of the attempts failed that the endpoint could not take, since one that says that it is wrong
	// itself: what the time to give up counts from. zero: none did.
	trying    time.Time
	tries     int       // attempts of this owner that failed: what the backoff counts
	notBefore time.Time // the backoff's end; zero: none
	askedFor  time.Time // not sent before, as the endpoint asked by Retry-After; zero: it did not

	unit     *unit
	complete bool // all records of [First, Last] that exist are in Records
	// planned: the plan that the coordinator holds has this batch, with this mark. It becomes true when the
	// coordinator has accepted such a plan, and nothing that is not planned is ever sent.
	planned bool
	state   batchState
}

// A unit is a batch as it was cut or found in the plan, whatever it is halved into. Units are what is ordered: of two that
// share a uid the later begins when the earlier is done. The pieces of one go one after another.
type unit struct {
	pieces     int // batches of it that are not done
	left       int // batches of it that are in the lane still
	started    bool
	registered bool
	uids       []uint64 // hashes, with repeats
	blockers   int      // units before it that are not done and share a uid
	waiters    []*unit  // whose blockers count this one
}

// LaneConfig are the settings of a lane.
type LaneConfig struct {
	BatchMax      int           // events a batch at most; at least 1
	BatchBytes    int           // bytes of the items of a batch at most, but for a single larger one
	FlushInterval time.Duration // a batch ends this long after its first event was read
	InFlight      int           // units begun and not acknowledged at most; at least 1
	PlanAhead     int           // units planned and not acknowledged at most; at least 1
	// UIDs appends hashes of the uids whose order a record is part of. Records that share a hash keep their order.
	UIDs func(hashes []uint64, r *Record) []uint64
}

// troubleInterval is how long a plan goes without being told that the same trouble lasts.
const troubleInterval = 5 * time.Second

// A Lane is the state of one partition of one event topic: what is read of it, batched, planned and done. It is pure:
// the shell tells it what happened, with the time where that matters, and asks it what to do next. It is not safe
// for concurrent use.
//
// A batch goes through these states, each of the arrows one method:
//
//	                                        ┌──────Retry──────┐
//	queue ──Cut──▶ waiting ──Propose, Committed──▶ planned ──Begin──▶ under way ──Done──▶ done
//	                  ▲                                                │
//	                  └──── two halves, or dead ◀──Refuse, GiveUp──────┘
//
// Several may be under way at once, if they share no uid. What is committed passes a batch only when it and all before it
// are done.
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
	// latest is the last unit that is not done of each uid that has one. Those before it with the same uid are among its
	// blockers, or theirs, so that a new unit looks at nothing else, however many there are.
	latest map[uint64]*unit
	// units and started count those of batches: all, and those of which a batch has been begun.
	units, started int
	// planAhead is cfg.PlanAhead, or less where the broker's bound on metadata is lower than Kafka's default.
	planAhead int
	// batchBytes is cfg.BatchBytes, or less where the endpoint takes less.
	batchBytes int
	// proposed is what Propose returned last and neither Committed nor Refused has answered.
	proposed *Plan
	// owing is when something that only a commit of an acknowledgement tells came up; zero: nothing.
	owing time.Time
	// told is the trouble of the last proposal, tell when a proposal is to tell another; zero: never.
	told Trouble
	tell time.Time
}

// NewLane returns a lane that goes on where plan says. fresh says that the plan is not committed yet, so that it must
// be before anything is read; changed, that the committed one differs from it.
func NewLane(cfg LaneConfig, plan Plan, fresh, changed bool, now time.Time) *Lane {
	l := &Lane{
		cfg: cfg, topicID: plan.TopicID, rewind: plan.Rewind, planAhead: cfg.PlanAhead, batchBytes: cfg.BatchBytes,
		fresh: fresh, offset: plan.Offset, position: plan.Offset, latest: make(map[uint64]*unit), told: plan.Trouble,
	}
	first := plan.Offset
	for _, b := range plan.Batches {
		l.append(&Batch{First: first, Last: b.Last, Dead: b.Dead, Ended: EndPlan, planned: !changed})
		first = b.Last + 1
	}
	if t := plan.Trouble; len(l.batches) > 0 && t != (Trouble{}) {
		b := l.batches[0]
		b.Attempts, b.Failing, b.lastFailed, b.answer = t.Attempts, time.Unix(t.Since, 0), time.Unix(t.Last, 0), t.Answer
		if t.verdict() == VerdictRetry {
			b.trying = b.Failing
		}
	}
	if changed {
		l.owing = now
	}
	return l
}

// append puts b at the end, as a unit of its own.
func (l *Lane) append(b *Batch) {
	b.unit = &unit{pieces: 1, left: 1}
	l.batches = append(l.batches, b)
	l.units++
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
		if r.Offset == b.Last {
			l.completed(b)
		}
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
		l.completed(b)
		missing++
		if len(b.Records) == 0 {
			l.finish(b)
			l.pop()
		} else if !b.Dead.Is() {
			b.Dead, b.planned = Dead{Reason: schemas.ReasonCut}, false
		}
	}
	return missing
}

// completed says that the last record of a batch that an earlier owner planned was read.
func (l *Lane) completed(b *Batch) {
	b.complete = true
	l.register(b)
}

// register puts b's unit behind those that are not done and share a uid with it. Units are registered in the order of the
// log: those of earlier owners when they are read, the others when they are planned.
func (l *Lane) register(b *Batch) {
	u := b.unit
	u.registered = true
	if u.uids == nil {
		for i := range b.Records {
			u.uids = l.cfg.UIDs(u.uids, &b.Records[i])
		}
	}
	for _, uid := range u.uids {
		before := l.latest[uid]
		if before == u {
			continue
		}
		// u is registered in one go, so that it is the last waiter where it is one already.
		if before != nil && (len(before.waiters) == 0 || before.waiters[len(before.waiters)-1] != u) {
			before.waiters = append(before.waiters, u)
			u.blockers++
		}
		l.latest[uid] = u
	}
}

// LimitBytes lowers the bytes that new batches may have; what is configured is never passed.
func (l *Lane) LimitBytes(bytes int) { l.batchBytes = min(bytes, l.cfg.BatchBytes) }

// Cut ends as many batches as are due. again is when to ask again if nothing else happens; zero: never.
func (l *Lane) Cut(now time.Time) (again time.Time) {
	for len(l.queue) > 0 && l.filling() == nil && l.units < l.planAhead && l.roomForOne() {
		n, bytes, reason := 0, 0, EndReason("")
		for ; n < len(l.queue) && reason == ""; n++ {
			size := len(l.queue[n].Value) + 1
			if n > 0 && bytes+size > l.batchBytes {
				reason = EndBytes
				break
			}
			bytes += size
			if n+1 == l.cfg.BatchMax {
				reason = EndCount
			} else if bytes >= l.batchBytes {
				reason = EndBytes
			}
		}
		if reason == "" {
			if l.units > l.started && l.units >= l.cfg.InFlight {
				return time.Time{} // it could not be sent before those that wait: it may as well grow
			}
			if due := l.queue[0].Read.Add(l.cfg.FlushInterval); now.Before(due) {
				return due
			}
			reason = EndAge
		}
		l.append(&Batch{
			First: l.end(), Last: l.queue[n-1].Offset, Ended: reason,
			Records: l.queue[:n:n], complete: true,
		})
		l.queue = l.queue[n:]
	}
	return time.Time{}
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
	marks := markMax // each batch may be dead one day
	for _, b := range l.batches {
		if !b.Dead.Is() {
			marks += markMax
		}
	}
	return len(l.plan().Metadata())+entry+marks <= metadataMax-metadataRoom
}

// plan is what the lane would have committed now.
func (l *Lane) plan() Plan {
	p := Plan{TopicID: l.topicID, Rewind: l.rewind, Offset: l.offset}
	for _, b := range l.batches {
		p.Batches = append(p.Batches, Planned{Last: b.Last, Dead: b.Dead})
	}
	if len(l.batches) > 0 {
		if b := l.batches[0]; b.Attempts > 0 && !b.Dead.Is() {
			since := b.Failing
			if !b.trying.IsZero() {
				since = b.trying // what the time to give up counts from, also for the next owner
			}
			p.Trouble = Trouble{Since: since.Unix(), Last: b.lastFailed.Unix(), Attempts: b.Attempts, Answer: b.answer}
		}
	}
	return p
}

// CommitDue is when Propose should be called; zero: there is nothing to commit. A batch that waits for its plan is
// due at once, an acknowledgement alone within the flush interval, and so is a trouble that was not told before.
func (l *Lane) CommitDue(now time.Time) time.Time {
	var due time.Time
	switch {
	case l.proposed != nil:
		return time.Time{}
	case l.fresh, slices.ContainsFunc(l.batches, func(b *Batch) bool { return !b.planned && b.complete }):
		return now
	case !l.owing.IsZero():
		due = l.owing.Add(l.cfg.FlushInterval)
	}
	return earlier(due, l.tell)
}

// earlier is the earlier of two times of which the zero one stands for never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
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
	l.told, l.tell = p.Trouble, time.Time{}
	return p
}

// Committed says that the coordinator accepted what was proposed.
func (l *Lane) Committed() {
	first, i := l.proposed.Offset, 0
	for _, planned := range l.proposed.Batches {
		for i < len(l.batches) && l.batches[i].First < first {
			i++
		}
		// One that was halved meanwhile is another batch, though its second half has the same end.
		if i < len(l.batches) {
			if b := l.batches[i]; b.First == first && b.Last == planned.Last && b.Dead == planned.Dead {
				b.planned = true
				if b.complete && !b.unit.registered {
					l.register(b)
				}
			}
		}
		first = planned.Last + 1
	}
	l.proposed, l.fresh = nil, false
}

// Refused says that what was proposed was refused for certain: the coordinator holds what it held before.
func (l *Lane) Refused(now time.Time) {
	l.proposed = nil
	l.owing = now
}

// Shorten lowers the number of batches that are planned ahead: the broker refuses metadata of this length. It returns
// false where nothing can be left out.
func (l *Lane) Shorten() bool {
	before := l.units
	for l.units > max(1, before/2) { // back into the queue, if it cannot have been sent
		last := l.batches[len(l.batches)-1]
		if last.unit.started || last.Ended == EndPlan {
			break
		}
		l.batches = l.batches[:len(l.batches)-1]
		l.units--
		l.queue = append(last.Records, l.queue...)
	}
	if l.units == before {
		return false
	}
	l.planAhead = max(1, l.units)
	l.latest = make(map[uint64]*unit)
	for _, b := range l.batches {
		b.unit.blockers, b.unit.waiters = 0, nil
	}
	for i, b := range l.batches { // units that are registered, each once and in their order
		if b.unit.registered && b.unit.pieces > 0 && (i == 0 || l.batches[i-1].unit != b.unit) {
			l.register(b)
		}
	}
	return true
}

// Next is the batch to begin, or to write to the dead letters where it is Dead; nil: none may be begun now, and again is
// when that changes if nothing else happens (zero: never). It is planned, the first of its unit that is not done, and
// no unit before it that is not done shares a uid with it.
func (l *Lane) Next(now time.Time) (b *Batch, again time.Time) {
	var unit *unit
	for _, b := range l.batches {
		if b.state == batchDone || b.unit == unit {
			continue
		}
		unit = b.unit
		if b.state != batchWaiting || !b.complete || !b.planned || unit.blockers > 0 || !unit.started && l.started >= l.cfg.InFlight {
			continue
		}
		if due := later(b.notBefore, b.askedFor); due.After(now) {
			again = earlier(again, due)
			continue
		}
		return b, time.Time{}
	}
	return nil, again
}

// Begin says that b, which Next returned, is under way.
func (l *Lane) Begin(b *Batch) {
	b.state = batchUnderway
	if !b.unit.started {
		b.unit.started = true
		l.started++
	}
}

// Retry says that an attempt to send b failed with answer, whose verdict is VerdictRetry or VerdictEndpoint, and is to be
// made again after delay, and not before the time that the endpoint asks for.
func (l *Lane) Retry(b *Batch, answer Answer, delay time.Duration, now time.Time) {
	b.state = batchWaiting
	b.tries++
	b.notBefore, b.askedFor = now.Add(delay), time.Time{}
	if answer.RetryAfter > 0 {
		b.askedFor = now.Add(answer.RetryAfter)
	}
	b.Attempts++
	b.answer, b.lastFailed = answer.Code(), now
	if b.Failing.IsZero() {
		b.Failing = now
	}
	if answer.Verdict == VerdictEndpoint {
		b.trying = time.Time{}
	} else if b.trying.IsZero() {
		b.trying = now
	}
	l.troubled(now)
}

// Trying is since when the endpoint could not take b, though it was not wrong itself; zero: it was not asked, or is wrong.
func (b *Batch) Trying() time.Time { return b.trying }

// Tries is how many attempts of this owner have failed.
func (b *Batch) Tries() int { return b.tries }

// troubled has a proposal tell what troubles the first batch, if that is another thing than was told last.
func (l *Lane) troubled(now time.Time) {
	if len(l.batches) == 0 {
		return
	}
	switch b := l.batches[0]; {
	case b.Attempts == 0 || b.Dead.Is():
	case l.told.Answer != b.answer || l.told.Attempts > b.Attempts: // it is new
		l.tell = earlier(l.tell, now.Add(l.cfg.FlushInterval))
	case l.tell.IsZero():
		l.tell = now.Add(max(troubleInterval, l.cfg.FlushInterval))
	}
}

// EndBackoff has all batches that wait after a failure be sent again at once, but for those of which the endpoint said when.
func (l *Lane) EndBackoff() {
	for _, b := range l.batches {
		b.notBefore = time.Time{}
	}
}

// Refuse says that the endpoint refused the content of b with an HTTP status. Two halves take b's place, or it is dead if
// it is a single event; both take effect when they are committed.
func (l *Lane) Refuse(b *Batch, status int, now time.Time) {
	b.Attempts++
	if len(b.Records) <= 1 {
		l.kill(b, Dead{schemas.ReasonRefused, status}, now)
		return
	}
	b.state = batchRefused
	l.halve()
}

// GiveUp says that b, of which attempts have failed, goes to the dead letters: all of it, since a copy may have been taken.
func (l *Lane) GiveUp(b *Batch, status int, now time.Time) {
	b.Attempts++
	l.kill(b, Dead{schemas.ReasonGaveUp, status}, now)
}

func (l *Lane) kill(b *Batch, dead Dead, now time.Time) {
	b.state, b.Dead, b.planned, b.notBefore, b.askedFor = batchWaiting, dead, false, time.Time{}, time.Time{}
	if b == l.batches[0] {
		l.tell = time.Time{}
	}
	l.troubled(now)
}

// halve puts halves in the place of batches that were refused: of the first one always, for which the plan keeps room, of
// others while there is room.
func (l *Lane) halve() {
	for i := 0; i < len(l.batches); i++ {
		b := l.batches[i]
		if b.state != batchRefused || i > 0 && !l.roomForOne() {
			continue
		}
		n := len(b.Records) / 2
		half := &Batch{First: b.First, Last: b.Records[n-1].Offset, Ended: EndHalf, Records: b.Records[:n:n], complete: true, unit: b.unit}
		rest := &Batch{First: half.Last + 1, Last: b.Last, Ended: EndHalf, Records: b.Records[n:], complete: true, unit: b.unit}
		b.unit.pieces++
		b.unit.left++
		l.batches = slices.Replace(l.batches, i, i+1, half, rest)
	}
}

// Done says that b, which was begun, is done.
func (l *Lane) Done(b *Batch, now time.Time) {
	l.finish(b)
	l.pop()
	l.troubled(now)
	if l.owing.IsZero() {
		l.owing = now
	}
}

// finish lets go of what b holds, and of what waits for its unit if that is done.
func (l *Lane) finish(b *Batch) {
	b.state = batchDone
	for i := range b.Records {
		l.bytes -= b.Records[i].size()
	}
	clear(b.Records) // the queue that they were cut from may live on
	b.Records = nil
	u := b.unit
	if u.pieces--; u.pieces > 0 {
		return
	}
	for _, w := range u.waiters {
		w.blockers--
	}
	for _, uid := range u.uids {
		if l.latest[uid] == u {
			delete(l.latest, uid)
		}
	}
	u.waiters, u.uids = nil, nil
}

// pop lets go of the batches that are done with all before them.
func (l *Lane) pop() {
	popped := false
	for len(l.batches) > 0 && l.batches[0].state == batchDone {
		b := l.batches[0]
		l.offset = b.Last + 1
		l.batches = l.batches[1:]
		if b.unit.left--; b.unit.left == 0 {
			l.units--
			if b.unit.started {
				l.started--
			}
		}
		popped = true
	}
	if popped {
		l.tell = time.Time{}
		l.halve()
	}
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
