package txn

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// StableOffsets fetches what a group has committed of the partitions by topic: the next offset of each, -1 where there
// is none. Where a transaction is pending on one of them the error is kerr.UnstableOffsetCommit: its outcome is not
// known yet.
//
// The partitions are asked for by name: an answer for all that the group has committed, which is what kadm asks for,
// leaves out a partition of which the first commit ever is pending.
func StableOffsets(ctx context.Context, cl *kgo.Client, group string, partitions map[string][]int32) (map[Partition]int64, error) {
	commits, err := stableCommits(ctx, cl, group, partitions)
	if err != nil {
		return nil, err
	}
	got := make(map[Partition]int64, len(commits))
	for p, c := range commits {
		got[p] = c.offset
	}
	return got, nil
}

// commit is what a group has committed of a partition.
type commit struct {
	offset   int64 // the next one; -1: none
	metadata string
}

func stableCommits(ctx context.Context, cl *kgo.Client, group string, partitions map[string][]int32) (map[Partition]commit, error) {
	got := make(map[Partition]commit)
	if len(partitions) == 0 {
		return got, nil
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = true
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	for topic, ps := range partitions {
		t := kmsg.NewOffsetFetchRequestGroupTopic()
		t.Topic, t.Partitions = topic, ps
		g.Topics = append(g.Topics, t)
		for _, p := range ps {
			got[Partition{topic, p}] = commit{offset: -1}
		}
	}
	req.Groups = append(req.Groups, g)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, fmt.Errorf("fetch the offsets of %s: %w", group, err)
	}
	for _, rg := range resp.Groups {
		switch err := kerr.ErrorForCode(rg.ErrorCode); {
		case err == nil:
		case errors.Is(err, kerr.GroupIDNotFound):
			return got, nil
		default:
			return nil, fmt.Errorf("fetch the offsets of %s: %w", group, err)
		}
		for _, t := range rg.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					return nil, fmt.Errorf("fetch the offset of %s-%d for %s: %w", t.Topic, p.Partition, group, err)
				}
				if p.Offset >= 0 {
					c := commit{offset: p.Offset}
					if p.Metadata != nil {
						c.metadata = *p.Metadata
					}
					got[Partition{t.Topic, p.Partition}] = c
				}
			}
		}
	}
	return got, nil
}
