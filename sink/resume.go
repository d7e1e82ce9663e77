package sink

// committedOffset is what the coordinator holds of one partition.
type committedOffset struct {
	Offset   int64
	Metadata string
}

// resumeNote says what was found where a lane begins: a closed list, for log and metrics.
type resumeNote string

const (
	resumePlan      resumeNote = "plan"      // a plan, as it stands
	resumeStart     resumeNote = "start"     // the group had no offset: OFFHOOK_SINK_START
	resumeRewind    resumeNote = "rewind"    // an offset that no sink wrote
	resumeRecreated resumeNote = "recreated" // the topic was made anew
	resumeCut       resumeNote = "cut"       // the log's start has passed the offset
	resumeTruncated resumeNote = "truncated" // the log ends before what was planned
)

// A resumption is where a lane goes on.
type resumption struct {
	plan    Plan
	fresh   bool // the plan must be committed before anything is read
	changed bool // the plan differs from the one that is committed
	note    resumeNote
	dropped int // resumeCut: planned batches that are gone
}

// resume decides where a lane goes on. committed is nil where the group has no offset for the partition; logStart and
// logEnd are the log's offsets, startAt where OFFHOOK_SINK_START points; now is a Unix second.
func resume(committed *committedOffset, topicID [16]byte, logStart, logEnd, startAt, now int64) (resumption, error) {
	if committed == nil {
		return resumption{plan: Plan{TopicID: topicID, Offset: min(max(startAt, logStart), logEnd)}, fresh: true, note: resumeStart}, nil
	}
	plan, ours, err := ParsePlan(committed.Offset, committed.Metadata)
	switch {
	case err != nil:
		return resumption{}, err
	case !ours:
		plan = Plan{TopicID: topicID, Offset: min(max(committed.Offset, logStart), logEnd), Rewind: now}
		return resumption{plan: plan, changed: true, note: resumeRewind}, nil
	case plan.TopicID != topicID:
		return resumption{plan: Plan{TopicID: topicID, Offset: logStart}, changed: true, note: resumeRecreated}, nil
	case plan.End() > logEnd:
		// The offsets at the log's end are given out again, to other events: under the ids of the plan they would be
		// other bodies.
		plan = Plan{TopicID: topicID, Offset: max(min(plan.Offset, logEnd), logStart), Rewind: max(now, plan.Rewind+1)}
		return resumption{plan: plan, changed: true, note: resumeTruncated}, nil
	case plan.Offset < logStart:
		cut, dropped := plan.CutTo(logStart)
		return resumption{plan: cut, changed: true, note: resumeCut, dropped: dropped}, nil
	}
	return resumption{plan: plan, note: resumePlan}, nil
}
