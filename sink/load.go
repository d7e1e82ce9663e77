package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// load fetches the plans of lanes that were just assigned, again and again until it has all. It begins after their
// assignment, so that it sees every commit that the coordinator accepted before.
func (s *session) load(lanes []*lane) {
	for attempts := 1; ; attempts++ {
		rest, err := s.loadOnce(lanes)
		if broken, ok := errors.AsType[*brokenPlanError](err); ok {
			s.post(func() { s.fail(broken) })
			return
		}
		lanes = slices.DeleteFunc(rest, func(l *lane) bool { return l.ctx.Err() != nil })
		if len(lanes) == 0 {
			return
		}
		if attempts&(attempts-1) == 0 { // at 1, 2, 4, …
			s.log.Warn("plans cannot be loaded; trying again", "lanes", len(lanes), "attempts", attempts, "error", err)
		}
		select {
		case <-time.After(RetryDelay(min(attempts, 5), 1)):
		case <-s.ctx.Done():
			return
		}
	}
}

// A brokenPlanError says that a committed plan cannot be read: only an operator can go on from there.
type brokenPlanError struct {
	key laneKey
	err error
}

func (e *brokenPlanError) Error() string {
	return fmt.Sprintf("load the plan of %s, partition %d: %v", e.key.topic, e.key.partition, e.err)
}

// loadOnce loads the lanes that it can, and returns the rest, with the reason of one. Lanes whose partitions have no
// leader hold up no others.
func (s *session) loadOnce(lanes []*lane) (rest []*lane, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, loadTimeout)
	defer cancel()
	admin := kadm.NewClient(s.member)
	offsets, err := admin.FetchOffsets(ctx, s.cfg.Group())
	if errors.Is(err, kerr.GroupIDNotFound) { // it has members, but nothing was committed yet
		offsets, err = nil, nil
	}
	if err != nil {
		return lanes, fmt.Errorf("fetch the group's offsets: %w", err)
	}
	topics := make([]string, 0, len(s.topics))
	for _, l := range lanes {
		if !slices.Contains(topics, l.topic) {
			topics = append(topics, l.topic)
		}
	}
	details, err := admin.ListTopics(ctx, topics...)
	if err != nil {
		return lanes, fmt.Errorf("read topic ids: %w", err)
	}
	start := s.cfg.Start
	if !start.IsSet() && s.cfg.Name == DefaultName {
		start.kind = startEarliest
	}
	// The errors of single brokers come with what the others say, and are found again as partitions that are not listed. A
	// broker that is silent costs its partitions alone: it is asked for all at once, and not for long.
	listing, cancelListing := context.WithTimeout(ctx, listTimeout)
	defer cancelListing()
	var starts, ends, at kadm.ListedOffsets
	var startErr, endErr, atErr error
	var asked sync.WaitGroup
	asked.Go(func() { starts, startErr = admin.ListStartOffsets(listing, topics...) })
	asked.Go(func() { ends, endErr = admin.ListEndOffsets(listing, topics...) })
	if start.kind == startTime {
		asked.Go(func() { at, atErr = admin.ListOffsetsAfterMilli(listing, start.time.UnixMilli(), topics...) })
	}
	asked.Wait()
	listErr := firstError(startErr, endErr, atErr)
	now := time.Now().Unix()
	var found []resumption
	var loaded []*lane
	for _, l := range lanes {
		listed := func(offsets kadm.ListedOffsets) (int64, error) {
			o, ok := offsets.Lookup(l.topic, l.partition)
			if !ok {
				return 0, firstError(listErr, errors.New("the brokers do not say"))
			}
			return o.Offset, o.Err
		}
		logStart, err1 := listed(starts)
		logEnd, err2 := listed(ends)
		startAt := logStart
		var err3 error
		switch start.kind {
		case startLatest:
			startAt = logEnd
		case startTime:
			startAt, err3 = listed(at)
		case startUnset, startEarliest:
		}
		var committed *committedOffset
		o, ok := offsets.Lookup(l.topic, l.partition)
		if ok && o.At >= 0 {
			committed = &committedOffset{Offset: o.At, Metadata: o.Metadata}
		}
		if laneErr := firstError(details[l.topic].Err, o.Err, err1, err2, err3); laneErr != nil {
			rest = append(rest, l)
			err = fmt.Errorf("load topic %s, partition %d: %w", l.topic, l.partition, laneErr)
			continue
		}
		r, resumeErr := resume(committed, details[l.topic].ID, logStart, logEnd, startAt, now)
		if resumeErr != nil {
			return nil, &brokenPlanError{l.laneKey, resumeErr}
		}
		found = append(found, r)
		loaded = append(loaded, l)
	}
	s.post(func() {
		var readable []*lane
		for i, l := range loaded {
			s.loaded(l, found[i])
			if !l.dead && l.core.Readable() {
				readable = append(readable, l)
			}
		}
		s.read(readable)
	})
	return rest, err
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
