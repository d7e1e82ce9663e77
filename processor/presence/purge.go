package presence

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// purgeLoop deletes what was consumed from the inbox, which keeps records without a limit of its own: a limit would
// lose what is not consumed yet.
func (s *stage) purgeLoop(ctx context.Context) {
	cl, err := s.deps.Kafka.NewClient(s.log, kgo.WithContext(ctx))
	if err != nil {
		s.log.Error("the inbox is not purged", "error", err)
		s.metrics.purgeFailures.Inc()
		return
	}
	defer cl.Close()
	p := purger{adm: kadm.NewClient(cl), topic: s.deps.Topics.Inbox, group: s.cfg.Prefix + "." + Stage, keep: s.cfg.InboxKeep, done: make(map[int32]int64)}
	tick := time.NewTicker(s.cfg.purgeEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		attempt, cancel := context.WithTimeout(ctx, max(30*time.Second, s.cfg.purgeEvery))
		n, err := p.purge(attempt, s.ownedNow())
		cancel()
		s.metrics.purged.Add(float64(n))
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if failing {
				s.log.Info("the inbox is purged again")
			}
			failing = false
		default:
			s.metrics.purgeFailures.Inc()
			if !failing {
				s.log.Warn("the inbox could not be purged, and grows until it can", "error", err)
			}
			failing = true
		}
	}
}

// ownedNow lists the partitions that are owned.
func (s *stage) ownedNow() []int32 {
	s.ownedMu.Lock()
	defer s.ownedMu.Unlock()
	owned := make([]int32, 0, len(s.owned))
	for p := range s.owned {
		owned = append(owned, p)
	}
	return owned
}

// purger deletes the consumed records of a topic.
type purger struct {
	adm          *kadm.Client
	topic, group string
	keep         time.Duration
	done         map[int32]int64 // the offset up to which each partition was purged
}

// purge deletes the records of the partitions up to the offsets that the group has committed, but none that is
// younger than keep, and returns how many offsets it passed.
func (p *purger) purge(ctx context.Context, partitions []int32) (int64, error) {
	if len(partitions) == 0 {
		return 0, nil
	}
	committed, err := p.adm.FetchOffsets(ctx, p.group)
	if err != nil {
		return 0, fmt.Errorf("fetch the offsets of %s: %w", p.group, err)
	}
	var young kadm.ListedOffsets
	if p.keep > 0 {
		if young, err = p.adm.ListOffsetsAfterMilli(ctx, time.Now().Add(-p.keep).UnixMilli(), p.topic); err != nil {
			return 0, fmt.Errorf("list the offsets of %s: %w", p.topic, err)
		}
	}
	var before kadm.Offsets
	for _, partition := range partitions {
		o, ok := committed.Lookup(p.topic, partition)
		if !ok || o.Err != nil || o.At <= 0 {
			continue
		}
		at := o.At
		if p.keep > 0 {
			y, ok := young.Lookup(p.topic, partition)
			if !ok || y.Err != nil {
				continue
			}
			at = min(at, y.Offset)
		}
		if at > p.done[partition] {
			before.Add(kadm.Offset{Topic: p.topic, Partition: partition, At: at})
		}
	}
	if len(before) == 0 {
		return 0, nil
	}
	deleted, err := p.adm.DeleteRecords(ctx, before)
	if err != nil {
		return 0, fmt.Errorf("delete consumed records of %s: %w", p.topic, err)
	}
	var n int64
	var errs []error
	deleted.Each(func(d kadm.DeleteRecordsResponse) {
		if d.Err != nil {
			errs = append(errs, fmt.Errorf("delete consumed records of %s-%d: %w", d.Topic, d.Partition, d.Err))
			return
		}
		n += max(0, d.LowWatermark-p.done[d.Partition])
		p.done[d.Partition] = d.LowWatermark
	})
	return n, errors.Join(errs...)
}
