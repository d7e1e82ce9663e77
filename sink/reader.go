package sink

import (
	"context"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A reader reads the partitions of lanes, each from where its lane stands. Its client is in no group.
//
// One goroutine adds, polls and removes, in turn: so what a poll brought belongs to the lanes that were there when it
// began. Otherwise records that a poll took before a partition was removed and added again would reach the new lane,
// which would skip what lies between.
type reader struct {
	s      *session
	client *kgo.Client

	mu     sync.Mutex // guards what follows; held for no call
	todo   []func()
	cancel context.CancelFunc // interrupts the poll
}

func newReader(s *session) (*reader, error) {
	client, err := s.deps.Kafka.NewClient(s.log,
		kgo.KeepControlRecords(), // a lane goes past them, so that lag reaches zero
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		// A partition that is added or resumed waits until the fetch under way returns.
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.FetchMaxBytes(fetchMaxBytes),
		kgo.FetchMaxPartitionBytes(fetchMaxPartitionBytes),
		kgo.MaxConcurrentFetches(2),
	)
	if err != nil {
		return nil, err
	}
	return &reader{s: s, client: client, cancel: func() {}}, nil
}

// do has the reading goroutine run task before its next poll.
func (r *reader) do(task func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.todo = append(r.todo, task)
	r.cancel()
}

// add begins to read for lanes.
func (r *reader) add(lanes ...*lane) {
	from := make([]int64, len(lanes))
	for i, l := range lanes {
		from[i] = l.core.Position()
	}
	r.do(func() {
		partitions := make(map[string]map[int32]kgo.Offset)
		resumed := make(map[string][]int32)
		for i, l := range lanes {
			if l.ctx.Err() != nil {
				continue
			}
			if partitions[l.topic] == nil {
				partitions[l.topic] = make(map[int32]kgo.Offset)
			}
			partitions[l.topic][l.partition] = kgo.NewOffset().At(from[i])
			resumed[l.topic] = append(resumed[l.topic], l.partition)
		}
		r.client.ResumeFetchPartitions(resumed)
		r.client.AddConsumePartitions(partitions)
		r.s.call(func() {
			for _, l := range lanes {
				l.reading = true
			}
		})
	})
}

// remove ends reading for l.
func (r *reader) remove(l *lane) {
	l.reading = false
	r.do(func() { r.client.RemoveConsumePartitions(map[string][]int32{l.topic: {l.partition}}) })
}

// pause stops or resumes reading for l.
func (r *reader) pause(l *lane, pause bool) {
	partitions := map[string][]int32{l.topic: {l.partition}}
	if pause {
		r.client.PauseFetchPartitions(partitions)
	} else {
		r.client.ResumeFetchPartitions(partitions)
	}
}

// run polls until the session ends. The loop has taken one poll's records before the next begins.
func (r *reader) run() {
	for {
		r.mu.Lock()
		todo := r.todo
		r.todo = nil
		ctx, cancel := context.WithCancel(r.s.ctx)
		r.cancel = cancel
		r.mu.Unlock()
		for _, task := range todo {
			task()
		}
		fetches := r.client.PollRecords(ctx, pollRecords)
		cancel()
		if r.s.ctx.Err() != nil || fetches.IsClientClosed() {
			return
		}
		if !r.s.call(func() { r.s.fetched(fetches) }) {
			return
		}
	}
}
