package sink

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// probeTimeout bounds the search for the oldest events. An aborted transaction at the end of what can be read shows
	// no record at all, and would be waited for.
	probeTimeout = 5 * time.Second

	// What a fetch of it may bring. Partitions that have answered are paused, or their backlogs would be read while others
	// are waited for.
	probePartitionBytes = 64 << 10
	probeBytes          = 4 << 20

	// pingEvery is how often brokers that do not answer are asked again.
	pingEvery = 500 * time.Millisecond
)

// The states of a group without members, as Kafka names them.
const (
	groupEmpty = "Empty"
	groupDead  = "Dead" // there is none
)

// ErrNoGroup says that the sink's group does not exist.
var ErrNoGroup = errors.New("the group does not exist: no sink of this name has run with this prefix (OFFHOOK_SINK_NAME and OFFHOOK_TOPIC_PREFIX name it), or Kafka has forgotten it")

// A BusyError says that a group has members, so that nobody else may commit for it.
type BusyError struct {
	Group   string
	Members int // 0: not known
}

func (e *BusyError) Error() string {
	const rest = "stop all processes of this sink first (one that was killed is a member until its session times out)"
	switch e.Members {
	case 0:
		return fmt.Sprintf("the group %s has members: %s", e.Group, rest)
	case 1:
		return fmt.Sprintf("the group %s has 1 member: %s", e.Group, rest)
	}
	return fmt.Sprintf("the group %s has %d members: %s", e.Group, e.Members, rest)
}

// An Operator looks at what the group of one sink has committed, and changes it while the group has no members. It
// joins no group. It is not safe for concurrent use.
type Operator struct {
	sink   string
	group  string
	topics map[string]schemas.Event
	client *kgo.Client
	admin  *kadm.Client
}

// NewOperator is an operator on the sink that cfg names. Of cfg it uses Name, Prefix and Events, of deps Kafka, Topics and
// Log; the rest may be zero. Close it.
func NewOperator(cfg Config, deps Deps) (*Operator, error) {
	client, err := deps.Kafka.NewClient(deps.Log,
		kgo.KeepControlRecords(), // the probe comes to its end at them
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.FetchMaxPartitionBytes(probePartitionBytes),
		kgo.FetchMaxBytes(probeBytes),
	)
	if err != nil {
		return nil, err
	}
	return &Operator{sink: cfg.Name, group: cfg.Group(), topics: eventTopics(cfg.Events, deps.Topics), client: client, admin: kadm.NewClient(client)}, nil
}

// Close ends the operator's connections.
func (o *Operator) Close() { o.client.Close() }

// Status looks at the group and all its lanes. Partitions that cannot be looked at carry a note. The error is ErrNoGroup
// where there is no such group; ctx bounds the waiting for brokers.
func (o *Operator) Status(ctx context.Context) (Status, error) {
	group, views, err := o.look(ctx)
	if err != nil {
		return Status{}, err
	}
	now := time.Now()
	s := Status{At: now.UTC().Truncate(time.Millisecond), Sink: o.sink, Group: o.group, State: group.State, Members: []Member{}, Lanes: make([]LaneStatus, 0, len(views))}
	owners := make(map[laneKey]*Member)
	for _, m := range group.Members {
		member := Member{MemberID: m.MemberID, ClientID: m.ClientID, Host: strings.TrimPrefix(m.ClientHost, "/")}
		s.Members = append(s.Members, member)
		if assigned, ok := m.Assigned.AsConsumer(); ok {
			for _, t := range assigned.Topics {
				for _, p := range t.Partitions {
					owners[laneKey{t.Topic, p}] = &member
				}
			}
		}
	}
	ends := make(map[laneKey]int64)
	starts := make(map[laneKey]int64)
	for _, v := range views {
		lane := laneStatus(v, now)
		lane.Owner = owners[v.laneKey]
		if lane.Backlog != nil && v.logEnd-*lane.Backlog < v.stable {
			starts[v.laneKey], ends[v.laneKey] = v.logEnd-*lane.Backlog, v.stable
		}
		s.Lanes = append(s.Lanes, lane)
	}
	oldest := o.oldest(ctx, starts, ends)
	for i := range s.Lanes {
		lane := &s.Lanes[i]
		if at, ok := oldest[laneKey{lane.Topic, lane.Partition}]; ok {
			lane.Oldest = new(at.UTC())
			lane.OldestAge = new(max(now.Sub(at), 0).Round(time.Millisecond).Seconds())
		}
	}
	explain(s.Lanes)
	return s, nil
}

// Skip marks the first batch of a lane dead, whole, so that the lane's next owner writes it to the dead letters and goes on.
// Without commit it only says what it would do. The error is a *BusyError where the group has members.
func (o *Operator) Skip(ctx context.Context, event schemas.Event, partition int32, commit bool) (Skipped, error) {
	group, views, err := o.look(ctx)
	if err != nil {
		return Skipped{}, err
	}
	if views, err = choose(views, event, partition); err != nil {
		return Skipped{}, err
	}
	v := views[0]
	busy := o.busy(group)
	if busy != nil && commit {
		return Skipped{}, busy
	}
	plan, s, err := skipFirst(v, time.Now())
	if err != nil {
		return Skipped{}, fmt.Errorf("skip in topic %s, partition %d: %w", v.topic, v.partition, err)
	}
	if busy != nil {
		s.Obstacle = busy.Error()
	}
	if s.Nothing != "" || !commit {
		return s, nil
	}
	if err := o.commit(ctx, map[laneKey]Plan{v.laneKey: plan}); err != nil {
		return Skipped{}, err
	}
	s.Committed = true
	return s, nil
}

// Rewind takes lanes back to their first record at or after to, never forward, so that everything from there is sent
// again under new ids. event and partition choose among the lanes; empty and -1: all. All are committed in one request.
// Without commit it only says what it would do. The error is a *BusyError where the group has members.
func (o *Operator) Rewind(ctx context.Context, to time.Time, event schemas.Event, partition int32, commit bool) ([]Rewound, error) {
	group, views, err := o.look(ctx)
	if err != nil {
		return nil, err
	}
	if views, err = choose(views, event, partition); err != nil {
		return nil, err
	}
	busy := o.busy(group)
	if busy != nil && commit {
		return nil, busy
	}
	targets, err := o.admin.ListOffsetsAfterMilli(ctx, to.UnixMilli(), topicsOf(views)...)
	if err != nil {
		return nil, o.failed(ctx, "find the offsets of that time", err)
	}
	now := time.Now()
	plans := make(map[laneKey]Plan)
	lanes := make([]Rewound, 0, len(views))
	for _, v := range views {
		target, ok := targets.Lookup(v.topic, v.partition)
		if !ok {
			target.Err = errUnsaid
		}
		plan, w, err := rewindTo(v, target.Offset, now)
		if err = firstError(err, target.Err); err != nil { // half a rewind helps nobody
			return nil, fmt.Errorf("rewind topic %s, partition %d: %w", v.topic, v.partition, err)
		}
		if w.Stays == "" {
			plans[v.laneKey] = plan
			if busy != nil {
				w.Obstacle = busy.Error()
			}
		}
		lanes = append(lanes, w)
	}
	if !commit || len(plans) == 0 {
		return lanes, nil
	}
	if err := o.commit(ctx, plans); err != nil {
		return nil, err
	}
	for i := range lanes {
		lanes[i].Committed = lanes[i].Stays == ""
	}
	return lanes, nil
}

// errUnsaid is of a partition that the brokers' answers leave out.
var errUnsaid = errors.New("the brokers do not say")

// choose are the views of an event and a partition; empty and -1: of all. None is an error.
func choose(views []view, event schemas.Event, partition int32) ([]view, error) {
	var chosen []view
	for _, v := range views {
		if (event == "" || v.event == event) && (partition < 0 || v.partition == partition) {
			chosen = append(chosen, v)
		}
	}
	if len(chosen) > 0 {
		return chosen, nil
	}
	if event != "" && !slices.ContainsFunc(views, func(v view) bool { return v.event == event }) {
		return nil, fmt.Errorf("this sink does not deliver %s (OFFHOOK_WEBHOOK_EVENTS says which)", event)
	}
	return nil, fmt.Errorf("there is no partition %d", partition)
}

func topicsOf(views []view) []string {
	topics := make(map[string]bool)
	for _, v := range views {
		topics[v.topic] = true
	}
	return slices.Sorted(maps.Keys(topics))
}

// busy says that the group has members; nil: it has none.
func (o *Operator) busy(group kadm.DescribedGroup) error {
	if len(group.Members) == 0 && (group.State == groupEmpty || group.State == groupDead) {
		return nil
	}
	return &BusyError{Group: o.group, Members: len(group.Members)}
}

// look reads the group and its lanes, in the order of the topics' names.
func (o *Operator) look(ctx context.Context) (kadm.DescribedGroup, []view, error) {
	none := kadm.DescribedGroup{}
	if err := o.reach(ctx); err != nil {
		return none, nil, err
	}
	described, err := o.admin.DescribeGroups(ctx, o.group)
	if err != nil {
		return none, nil, o.failed(ctx, "describe the group "+o.group, err)
	}
	group := described[o.group]
	if errors.Is(group.Err, kerr.GroupIDNotFound) {
		group = kadm.DescribedGroup{Group: o.group, State: groupDead}
	}
	if group.Err != nil {
		return none, nil, o.failed(ctx, "describe the group "+o.group, group.Err)
	}
	offsets, err := o.admin.FetchOffsets(ctx, o.group)
	if errors.Is(err, kerr.GroupIDNotFound) {
		offsets, err = nil, nil
	}
	if err != nil {
		return none, nil, o.failed(ctx, "fetch the offsets of the group "+o.group, err)
	}
	if group.State == groupDead && len(offsets) == 0 {
		return none, nil, fmt.Errorf("group %s: %w", o.group, ErrNoGroup)
	}
	names := slices.Sorted(maps.Keys(o.topics))
	details, err := o.admin.ListTopics(ctx, names...)
	if err != nil {
		return none, nil, o.failed(ctx, "look up the event topics", err)
	}
	// The errors of single brokers come with what the others say, and are found again as partitions that are not listed.
	starts, startErr := o.admin.ListStartOffsets(ctx, names...)
	ends, endErr := o.admin.ListEndOffsets(ctx, names...)
	stables, stableErr := o.admin.ListCommittedOffsets(ctx, names...)
	if ctx.Err() != nil {
		return none, nil, o.failed(ctx, "list the offsets of the event topics", firstError(startErr, endErr, stableErr))
	}
	listErr := firstError(startErr, endErr, stableErr, errUnsaid)
	var views []view
	for _, topic := range names {
		detail := details[topic]
		if errors.Is(detail.Err, kerr.UnknownTopicOrPartition) {
			return none, nil, fmt.Errorf("topic %s does not exist: a processor makes it, or `offhook topics create`", topic)
		}
		if detail.Err != nil {
			return none, nil, o.failed(ctx, "look up topic "+topic, detail.Err)
		}
		for _, p := range detail.Partitions.Numbers() {
			v := view{laneKey: laneKey{topic, p}, event: o.topics[topic], topicID: detail.ID}
			listed := func(from kadm.ListedOffsets) int64 {
				offset, ok := from.Lookup(topic, p)
				switch {
				case !ok:
					v.err = firstError(v.err, fmt.Errorf("its offsets are not known: %w", listErr))
				case offset.Err != nil:
					v.err = firstError(v.err, fmt.Errorf("its offsets are not known: %w", offset.Err))
				}
				return offset.Offset
			}
			v.logStart, v.logEnd, v.stable = listed(starts), listed(ends), listed(stables)
			if committed, ok := offsets.Lookup(topic, p); ok && committed.Err != nil {
				v.err = firstError(v.err, fmt.Errorf("what is committed is not known: %w", committed.Err))
			} else if ok && committed.At >= 0 {
				v.committed = &committedOffset{Offset: committed.At, Metadata: committed.Metadata}
			}
			views = append(views, v)
		}
	}
	return group, views, nil
}

// reach waits until a broker answers. Later requests would retry for long and then say that the time is over; this one
// knows why.
func (o *Operator) reach(ctx context.Context) error {
	for {
		err := kafka.Ping(ctx, o.client)
		if err == nil {
			return nil
		}
		if refused := kafka.Refused(err); refused != nil {
			return refused
		}
		select {
		case <-time.After(pingEvery):
		case <-ctx.Done():
			return fmt.Errorf("reach the brokers: %w: %w", context.Cause(ctx), err)
		}
	}
}

// failed says that what did not succeed, and names the time that is over or the permission that is missing.
func (o *Operator) failed(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	if refused := kafka.Refused(err); refused != nil {
		err = refused
	}
	return fmt.Errorf("%s: %w", what, err)
}

// commit commits plans in one request as nobody's member, which the coordinator refuses while the group has members, and
// reads them back. There is no compare-and-set: what was read before still holds, because only members or another operator
// could have changed it.
func (o *Operator) commit(ctx context.Context, plans map[laneKey]Plan) error {
	c := &committer{client: o.client, group: o.group, coordinator: -1}
	result := c.commit(ctx, "", -1, plans)
	if result.notSent != nil {
		return o.failed(ctx, "commit", result.notSent)
	}
	for key, err := range result.refused {
		if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.IllegalGeneration) || errors.Is(err, kerr.RebalanceInProgress) {
			return &BusyError{Group: o.group}
		}
		return o.failed(ctx, fmt.Sprintf("commit for topic %s, partition %d", key.topic, key.partition), err)
	}
	offsets, err := o.admin.FetchOffsets(ctx, o.group)
	if err = firstError(err, result.unknown); err != nil && !holds(offsets, plans) {
		return o.failed(ctx, "commit: nobody knows whether it was applied, look at the status and try again", err)
	}
	if !holds(offsets, plans) {
		return fmt.Errorf("commit: it was taken, and the group %s holds something else already: somebody works on it at the same time; look at the status", o.group)
	}
	return nil
}

// holds reports whether all plans are what is committed.
func holds(offsets kadm.OffsetResponses, plans map[laneKey]Plan) bool {
	for key, plan := range plans {
		o, ok := offsets.Lookup(key.topic, key.partition)
		if !ok || o.Err != nil || o.At != plan.Offset || o.Metadata != plan.Metadata() {
			return false
		}
	}
	return true
}

// oldest is the time of the first event from each lane's start to its end; lanes where none is found are left out.
func (o *Operator) oldest(ctx context.Context, starts, ends map[laneKey]int64) map[laneKey]time.Time {
	found := make(map[laneKey]time.Time)
	if len(starts) == 0 {
		return found
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	add := make(map[string]map[int32]kgo.Offset)
	all := make(map[string][]int32)
	for key, start := range starts {
		if add[key.topic] == nil {
			add[key.topic] = make(map[int32]kgo.Offset)
		}
		add[key.topic][key.partition] = kgo.NewOffset().At(start)
		all[key.topic] = append(all[key.topic], key.partition)
	}
	o.client.AddConsumePartitions(add)
	defer func() {
		o.client.RemoveConsumePartitions(all)
		o.client.ResumeFetchPartitions(all) // a pause outlives the removal
	}()
	waiting := maps.Clone(ends)
	for len(waiting) > 0 {
		fetches := o.client.PollFetches(ctx)
		if ctx.Err() != nil {
			break
		}
		over := make(map[string][]int32)
		fetches.EachPartition(func(batch kgo.FetchTopicPartition) {
			key := laneKey{batch.Topic, batch.Partition}
			end, ok := waiting[key]
			if !ok {
				return
			}
			at, done := firstEvent(batch.Records, starts[key], end)
			if !at.IsZero() {
				found[key] = at
			}
			if done || batch.Err != nil {
				delete(waiting, key)
				over[key.topic] = append(over[key.topic], key.partition)
			}
		})
		o.client.PauseFetchPartitions(over)
	}
	return found
}

// firstEvent is the time of the first event among records, which come in the order of their offsets; done: there is one,
// or none before end.
func firstEvent(records []*kgo.Record, start, end int64) (at time.Time, done bool) {
	for _, r := range records {
		switch {
		case r.Offset < start:
		case r.Offset >= end:
			return time.Time{}, true
		case !r.Attrs.IsControl() && r.Value != nil:
			return r.Timestamp, true
		case r.Offset == end-1:
			return time.Time{}, true
		}
	}
	return time.Time{}, false
}
