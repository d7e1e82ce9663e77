package sink

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestReadCommit: what counts as refused for certain is a closed list; all else is unknown, and one partition's unknown
// makes the request unknown.
func TestReadCommit(t *testing.T) {
	plans := map[laneKey]Plan{{"t", 0}: {}, {"t", 1}: {}}
	answer := func(codes ...int16) *kmsg.OffsetCommitResponse {
		response := kmsg.NewPtrOffsetCommitResponse()
		topic := kmsg.NewOffsetCommitResponseTopic()
		topic.Topic = "t"
		for i, code := range codes {
			p := kmsg.NewOffsetCommitResponseTopicPartition()
			p.Partition, p.ErrorCode = int32(i), code
			topic.Partitions = append(topic.Partitions, p)
		}
		response.Topics = append(response.Topics, topic)
		return response
	}
	if r := readCommit(plans, answer(0, 0), nil); r.unknown != nil || len(r.refused) != 0 {
		t.Errorf("an accepted commit reads as %+v", r)
	}
	for _, err := range []*kerr.Error{
		kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.FencedInstanceID, kerr.RebalanceInProgress,
		kerr.OffsetMetadataTooLarge, kerr.GroupAuthorizationFailed, kerr.TopicAuthorizationFailed,
	} {
		r := readCommit(plans, answer(0, err.Code), nil)
		if r.unknown != nil || len(r.refused) != 1 || !errors.Is(r.refused[laneKey{"t", 1}], err) {
			t.Errorf("%v reads as %+v, want partition 1 refused", err, r)
		}
	}
	for _, err := range []*kerr.Error{
		kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress, kerr.RequestTimedOut,
		kerr.UnknownServerError, kerr.UnknownTopicOrPartition, kerr.InvalidCommitOffsetSize,
	} {
		if r := readCommit(plans, answer(0, err.Code), nil); r.unknown == nil {
			t.Errorf("%v reads as %+v, want unknown", err, r)
		}
		if r := readCommit(plans, answer(err.Code, kerr.IllegalGeneration.Code), nil); r.unknown == nil {
			t.Errorf("%v beside a refusal reads as %+v, want unknown", err, r)
		}
	}
	if r := readCommit(plans, answer(0), nil); r.unknown == nil {
		t.Errorf("a partition without an answer reads as %+v, want unknown", r)
	}
	if r := readCommit(plans, nil, errors.New("broken pipe")); r.unknown == nil {
		t.Errorf("a broken connection reads as %+v, want unknown", r)
	}
}
