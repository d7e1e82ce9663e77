package sink

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/offhook/offhook/schemas"
)

// What an operator sees of a sink's group, and does to it while nobody runs: the pure part. The plans in the committed
// offsets say it all, so that it needs Kafka alone. Operator does what it says.

// Status is a sink's group and its lanes at one moment.
type Status struct {
	At      time.Time    `json:"at"`
	Sink    string       `json:"sink"`
	Group   string       `json:"group"`
	State   string       `json:"state"`   // as Kafka names it: Empty, Stable, PreparingRebalance, CompletingRebalance, Dead
	Members []Member     `json:"members"` // never nil
	Lanes   []LaneStatus `json:"lanes"`   // those in trouble first; never nil
}

// Member is one member of a group: a process that runs the sink.
type Member struct {
	MemberID string `json:"member_id"`
	ClientID string `json:"client_id"`
	Host     string `json:"host"`
}

// LaneStatus is what is committed for a partition of an event topic, and what waits there.
type LaneStatus struct {
	Event      schemas.Event `json:"event"`
	Topic      string        `json:"topic"`
	Partition  int32         `json:"partition"`
	Owner      *Member       `json:"owner"`              // nil: nobody
	Committed  *int64        `json:"committed"`          // the committed offset; nil: none
	LogEnd     int64         `json:"log_end"`            // the offset that the next record gets
	Backlog    *int64        `json:"backlog_at_most"`    // offsets that are not done; transactions' markers count. nil: not known
	Oldest     *time.Time    `json:"oldest_event"`       // when the oldest event of the backlog was written; nil: none, or not known
	OldestAge  *float64      `json:"oldest_age_seconds"` // nil where Oldest is
	Planned    int           `json:"planned_batches"`    // dead ones too
	Dead       int           `json:"dead_batches"`       // that wait to be written to the dead letters
	FirstBatch *BatchStatus  `json:"first_batch"`        // nil: nothing is planned
	Notes      []string      `json:"notes"`              // sentences on what is special; never nil
}

// BatchStatus is a planned batch.
type BatchStatus struct {
	ID      string         `json:"id"` // webhook-id
	First   int64          `json:"first_offset"`
	Last    int64          `json:"last_offset"`
	Events  int64          `json:"events_at_most"` // transactions' markers count
	Dead    schemas.Reason `json:"dead,omitempty"` // why it is never sent again; empty: it is to be sent
	Trouble *TroubleStatus `json:"trouble"`        // nil: no attempt is known to have failed
}

// TroubleStatus is what became of the attempts to send a batch.
type TroubleStatus struct {
	Answer   string    `json:"last_answer"` // an HTTP status, timeout or connection
	Attempts int       `json:"attempts"`    // that failed, over all owners
	Since    time.Time `json:"since"`
	Last     time.Time `json:"last_attempt"`
}

// Skipped is what a skip did to a lane, or would do.
type Skipped struct {
	Event     schemas.Event `json:"event"`
	Topic     string        `json:"topic"`
	Partition int32         `json:"partition"`
	Batch     *BatchStatus  `json:"batch"`              // the first, as it was before; nil: nothing is planned
	Nothing   string        `json:"nothing,omitempty"`  // why there is nothing to skip; empty: there is
	Committed bool          `json:"committed"`          // false: nothing was changed
	Obstacle  string        `json:"obstacle,omitempty"` // what would keep it from being committed now
}

// Rewound is what a rewind did to a lane, or would do.
type Rewound struct {
	Event       schemas.Event `json:"event"`
	Topic       string        `json:"topic"`
	Partition   int32         `json:"partition"`
	From        *int64        `json:"from"`                   // where it would have gone on; nil: nothing is committed
	To          *int64        `json:"to"`                     // where it goes on; nil where it stays
	Events      int64         `json:"events_at_most"`         // that are sent again; transactions' markers count
	Rewind      int64         `json:"rewind,omitempty"`       // n of -r<n> in the new ids; 0 where it stays
	DeadDropped int           `json:"dead_dropped,omitempty"` // batches that were marked dead and are sent again
	Stays       string        `json:"stays,omitempty"`        // why it stays; empty: it does not
	Committed   bool          `json:"committed"`              // false: nothing was changed
	Obstacle    string        `json:"obstacle,omitempty"`     // what would keep it from being committed now
}

// A view is what Kafka holds of a lane at one moment. The log's offsets are listed after the committed one was read, or
// a running sink would seem to have planned past the log's end.
type view struct {
	laneKey
	event     schemas.Event
	topicID   [16]byte
	committed *committedOffset // nil: none
	logStart  int64
	logEnd    int64
	stable    int64 // where read committed ends
	err       error // why the brokers do not say all of it; nil: they do
}

func (v view) resume(now time.Time) (resumption, error) {
	return resume(v.committed, v.topicID, v.logStart, v.logEnd, v.logStart, now.Unix())
}

// Sentences on what a sink finds where a lane begins; a plan as it stands has none.
var resumeSentences = map[resumeNote]string{
	resumeStart:     "nothing is committed: OFFHOOK_SINK_START says where it begins",
	resumeRewind:    "no sink wrote this offset: a rewind, under new ids, at the next start",
	resumeRecreated: "the topic was made anew: it begins at the topic's beginning",
	resumeCut:       "retention has deleted events before they were delivered",
	resumeTruncated: "the log ends before what was planned: it goes on under new ids",
}

// laneStatus says what v says, but for the owner and the oldest event.
func laneStatus(v view, now time.Time) LaneStatus {
	s := LaneStatus{Event: v.event, Topic: v.topic, Partition: v.partition, LogEnd: v.logEnd, Notes: []string{}}
	if v.committed != nil {
		s.Committed = new(v.committed.Offset)
	}
	if v.err != nil {
		s.Notes = append(s.Notes, v.err.Error())
		return s
	}
	r, err := v.resume(now)
	if err != nil {
		s.Notes = append(s.Notes, err.Error())
		return s
	}
	if text, ok := resumeSentences[r.note]; ok {
		s.Notes = append(s.Notes, text)
	}
	if r.note == resumeStart {
		return s
	}
	s.Backlog = new(v.logEnd - r.plan.Offset)
	s.Planned = len(r.plan.Batches)
	for _, b := range r.plan.Batches {
		if b.Dead.Is() {
			s.Dead++
		}
	}
	s.FirstBatch = firstBatch(v.partition, r.plan)
	return s
}

// firstBatch is p's first batch; nil: there is none.
func firstBatch(partition int32, p Plan) *BatchStatus {
	if len(p.Batches) == 0 {
		return nil
	}
	first := p.Batches[0]
	b := &BatchStatus{
		ID: BatchID(p.TopicID, partition, p.Offset, first.Last, p.Rewind), First: p.Offset, Last: first.Last,
		Events: first.Last - p.Offset + 1, Dead: first.Dead.Reason,
	}
	if t := p.Trouble; t != (Trouble{}) {
		b.Trouble = &TroubleStatus{Answer: t.Answer, Attempts: t.Attempts, Since: time.Unix(t.Since, 0).UTC(), Last: time.Unix(t.Last, 0).UTC()}
	}
	return b
}

// trouble is what keeps the lane from going on; nil: nothing. A dead batch waits for the dead letters, not for the endpoint.
func (s *LaneStatus) trouble() *TroubleStatus {
	if s.FirstBatch == nil || s.FirstBatch.Dead != "" {
		return nil
	}
	return s.FirstBatch.Trouble
}

// explain notes what the troubles of the lanes mean, and sorts those in trouble to the front, the longest first.
func explain(lanes []LaneStatus) {
	troubled, well := 0, 0 // of the lanes that have something to send
	for i := range lanes {
		switch s := &lanes[i]; {
		case s.trouble() != nil:
			troubled++
		case s.Backlog != nil && *s.Backlog > 0:
			well++
		}
	}
	for i := range lanes {
		t := lanes[i].trouble()
		if t == nil {
			continue
		}
		note := ""
		verdict := judgeCode(t.Answer)
		switch {
		case verdict == VerdictEndpoint:
			note = "the endpoint or its settings are wrong"
		case verdict == VerdictRefused:
			note = "the endpoint refuses the content"
		case well > 0:
			note = "stuck on one batch, while other lanes are not in trouble"
		case troubled == 1:
			note = "stuck on one batch"
		default:
			note = "the endpoint fails for every lane that has something to send"
		}
		lanes[i].Notes = append([]string{note}, lanes[i].Notes...)
	}
	slices.SortStableFunc(lanes, func(a, b LaneStatus) int {
		s, t := a.trouble(), b.trouble()
		switch {
		case s != nil && t != nil:
			return cmp.Or(s.Since.Compare(t.Since), order(a, b))
		case s != nil:
			return -1
		case t != nil:
			return 1
		}
		return order(a, b)
	})
}

// order is that of the contract's events, then of the partitions.
func order(a, b LaneStatus) int {
	events := schemas.Events()
	return cmp.Or(cmp.Compare(slices.Index(events, a.Event), slices.Index(events, b.Event)), cmp.Compare(a.Partition, b.Partition))
}

// skipFirst marks the lane's first batch dead. plan is to be committed unless the result says that there is nothing to
// skip. An error says that the plan cannot be read.
func skipFirst(v view, now time.Time) (plan Plan, s Skipped, err error) {
	s = Skipped{Event: v.event, Topic: v.topic, Partition: v.partition}
	if v.err != nil {
		return Plan{}, s, v.err
	}
	r, err := v.resume(now)
	if err != nil {
		return Plan{}, s, err
	}
	s.Batch = firstBatch(v.partition, r.plan)
	switch {
	case s.Batch == nil:
		s.Nothing = "nothing is planned here: nothing to skip"
		if text, ok := resumeSentences[r.note]; ok {
			s.Nothing += " (" + text + ")"
		}
		return Plan{}, s, nil
	case s.Batch.Dead != "":
		s.Nothing = fmt.Sprintf("the batch is dead already (%s): the next owner writes it to the dead letters", s.Batch.Dead)
		return Plan{}, s, nil
	}
	// The plan is marked as it stands: what the log's start has passed is for the next owner to count.
	if plan, _, err = ParsePlan(v.committed.Offset, v.committed.Metadata); err != nil {
		return Plan{}, s, err
	}
	dead := Dead{Reason: schemas.ReasonSkipped}
	if t := s.Batch.Trouble; t != nil {
		dead.Status = statusOf(t.Answer)
	}
	plan.Batches[len(plan.Batches)-len(r.plan.Batches)].Dead = dead
	return plan, s, nil
}

// rewindTo takes the lane back to the offset target. plan is to be committed unless the result says that the lane stays,
// as one does that is there already, or before it. An error says that the plan cannot be read.
func rewindTo(v view, target int64, now time.Time) (plan Plan, w Rewound, err error) {
	w = Rewound{Event: v.event, Topic: v.topic, Partition: v.partition}
	if v.err != nil {
		return Plan{}, w, v.err
	}
	r, err := v.resume(now)
	if err != nil {
		return Plan{}, w, err
	}
	if r.note == resumeStart || r.note == resumeRecreated {
		w.Stays = resumeSentences[r.note]
		return Plan{}, w, nil
	}
	w.From = new(r.plan.Offset)
	if target = max(target, v.logStart); target >= r.plan.Offset {
		w.Stays = "it is not past that time"
		return Plan{}, w, nil
	}
	before, _, err := ParsePlan(v.committed.Offset, v.committed.Metadata) // of an offset that no sink wrote: the zero Plan
	if err != nil {
		return Plan{}, w, err
	}
	for _, b := range r.plan.Batches {
		if b.Dead.Is() {
			w.DeadDropped++
		}
	}
	plan = Plan{TopicID: v.topicID, Offset: target, Rewind: max(now.Unix(), before.Rewind+1)}
	w.To, w.Events, w.Rewind = new(target), r.plan.Offset-target, plan.Rewind
	return plan, w, nil
}
