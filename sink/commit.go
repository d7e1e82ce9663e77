package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// commitTimeout bounds one commit request; after it the commit is unknown. It is well below the rebalance timeout,
// since a revoked callback waits for the commit in flight.
const commitTimeout = 10 * time.Second

// laneKey names a partition of an event topic.
type laneKey struct {
	topic     string
	partition int32
}

// commitResult is what became of a commit request.
type commitResult struct {
	// unknown, where not nil, says why nobody knows which of the commits the coordinator has applied, or will apply
	// later. refused has nothing to say then.
	unknown error
	// notSent, where not nil, says why the request was not sent at all.
	notSent error
	// refused are the partitions whose commit was refused for certain, each with the coordinator's error; all others
	// are committed.
	refused map[laneKey]error
}

// certainlyRefused reports whether a coordinator that answers err has not applied the commit and never will.
func certainlyRefused(err error) bool {
	switch {
	case errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.FencedInstanceID),
		errors.Is(err, kerr.RebalanceInProgress), errors.Is(err, kerr.OffsetMetadataTooLarge),
		errors.Is(err, kerr.GroupAuthorizationFailed), errors.Is(err, kerr.TopicAuthorizationFailed):
		return true
	}
	return false
}

// readCommit reads the answer to a commit of plans. A partition without an answer, and any error but those that
// refuse for certain, make the whole request unknown.
func readCommit(plans map[laneKey]Plan, response *kmsg.OffsetCommitResponse, err error) commitResult {
	if err != nil {
		return commitResult{unknown: err}
	}
	result := commitResult{refused: make(map[laneKey]error)}
	answered := 0
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			key := laneKey{t.Topic, p.Partition}
			if _, ok := plans[key]; !ok {
				continue
			}
			answered++
			switch err := kerr.ErrorForCode(p.ErrorCode); {
			case err == nil:
			case certainlyRefused(err):
				result.refused[key] = err
			default:
				return commitResult{unknown: err}
			}
		}
	}
	if answered != len(plans) {
		return commitResult{unknown: fmt.Errorf("the coordinator answered for %d of %d partitions", answered, len(plans))}
	}
	return result
}

// A committer sends offset commits to a group's coordinator, each once: nothing in it or below it sends one again.
type committer struct {
	client      *kgo.Client
	group       string
	coordinator int32 // -1: not known
}

// commit sends plans in one request, as the member of the generation.
func (c *committer) commit(ctx context.Context, member string, generation int32, plans map[laneKey]Plan) commitResult {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	if c.coordinator < 0 {
		found := kadm.NewClient(c.client).FindGroupCoordinators(ctx, c.group)[c.group]
		if found.Err != nil {
			return commitResult{notSent: fmt.Errorf("find the group's coordinator: %w", found.Err)}
		}
		c.coordinator = found.NodeID
	}
	request := kmsg.NewPtrOffsetCommitRequest()
	request.Group, request.MemberID, request.Generation = c.group, member, generation
	topics := make(map[string]int)
	for key, plan := range plans {
		i, ok := topics[key.topic]
		if !ok {
			i = len(request.Topics)
			topics[key.topic] = i
			topic := kmsg.NewOffsetCommitRequestTopic()
			topic.Topic = key.topic
			topic.TopicID = plan.TopicID
			request.Topics = append(request.Topics, topic)
		}
		partition := kmsg.NewOffsetCommitRequestTopicPartition()
		partition.Partition, partition.Offset = key.partition, plan.Offset
		partition.Metadata = new(plan.Metadata())
		request.Topics[i].Partitions = append(request.Topics[i].Partitions, partition)
	}
	response, err := c.client.Broker(int(c.coordinator)).Request(ctx, request)
	if err != nil {
		return readCommit(plans, nil, err)
	}
	answer, ok := response.(*kmsg.OffsetCommitResponse)
	if !ok {
		return commitResult{unknown: fmt.Errorf("the coordinator answered with %T", response)}
	}
	names := make(map[[16]byte]string)
	for key, plan := range plans {
		names[plan.TopicID] = key.topic
	}
	for i := range answer.Topics { // from version 10 on topics are named by their ids
		if t := &answer.Topics[i]; t.Topic == "" {
			t.Topic = names[t.TopicID]
		}
	}
	return readCommit(plans, answer, nil)
}

// commit sends what all waiting lanes have to say in one request, unless one is in flight.
func (s *session) commit() {
	now := time.Now()
	if len(s.want) == 0 || s.err != nil || now.Before(s.commitNotice) {
		return
	}
	// The member id and generation are read by the loop, which drops lanes in the revoked and lost callbacks: what is
	// read here belongs to the assignment of all lanes that are left, unless the group has forgotten the member and
	// the client has joined anew without a word. Then others may own the partitions.
	member, generation := s.member.GroupMetadata()
	plans, err := s.propose(member, now)
	if err != nil {
		s.fail(&errRestart{err})
		return
	}
	if len(plans) == 0 {
		return
	}
	s.work.Go(func() {
		result := s.committer.commit(s.ctx, member, generation, plans)
		s.post(func() { s.committed(result) })
	})
}

func (s *session) committed(result commitResult) {
	a := s.claims.answered(result, time.Now())
	for _, settled := range a.settled {
		close(settled)
	}
	if result.unknown != nil {
		s.metrics.commits.WithLabelValues("unknown").Inc()
		s.fail(&errRestart{fmt.Errorf("commit plans: nobody knows the outcome: %w", result.unknown)})
		return
	}
	s.commitNotice = time.Time{}
	s.beginLoad(a.load)
	for _, r := range a.refused {
		s.refused(r.lane, r.err)
	}
	for _, l := range a.accepted {
		s.advance(l)
	}
	s.read(a.readable)
	if len(a.refused) > 0 {
		s.metrics.commits.WithLabelValues("refused").Inc()
	} else {
		s.metrics.commits.WithLabelValues("committed").Inc()
	}
}

// How long to wait after a refusal of a commit: until the group has settled, or an operator may have mended something.
const (
	settleDelay = 100 * time.Millisecond
	mendDelay   = 2 * time.Second
)

// refused has a lane wait before it proposes again, for a while that depends on what refused its plan.
func (s *session) refused(l *lane, err error) {
	now := time.Now()
	wait := mendDelay
	switch {
	case errors.Is(err, kerr.OffsetMetadataTooLarge):
		if !l.core.Shorten() {
			s.fail(fmt.Errorf("commit the plan of a single batch: %w; raise the brokers' offset.metadata.max.bytes to %d", err, metadataMax))
		}
		return // the plan is another now
	case errors.Is(err, kerr.TopicAuthorizationFailed): // concerns this lane alone
		l.commitAfter = now.Add(wait)
	case errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.FencedInstanceID), errors.Is(err, kerr.RebalanceInProgress):
		wait = settleDelay // the group rebalances: the client joins it again, and the callbacks say what is left
		s.commitNotice = now.Add(wait)
	default:
		s.commitNotice = now.Add(wait)
	}
	if wait == mendDelay {
		s.log.Warn("a plan cannot be committed; trying again", "topic", l.topic, "partition", l.partition, "error", err, "delay", wait)
	}
	time.AfterFunc(wait, func() { s.post(func() {}) }) // a turn of the loop commits
}
