package txn

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
)

// ReadChangelog calls each with every record of a partition that is committed, in order, up to the high watermark
// of the moment of the call, and returns when it has; how many there were comes back. A record is valid during its
// call alone. An error of each ends it and comes back as it is.
//
// The target is the high watermark and not the last stable offset: what was just committed may lie past that. Where a
// transaction is open below it, this waits until it has ended, for its coordinator ends it after at most its timeout.
func ReadChangelog(ctx context.Context, cfg kafka.Config, log *slog.Logger, p Partition, each func(*kgo.Record) error) (int, error) {
	cl, err := cfg.NewClient(log,
		kgo.WithContext(ctx),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{p.Topic: {p.Partition: kgo.NewOffset().AtStart()}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// The record at the watermark's end is mostly a commit marker: without control records it would never be
		// seen, and the read would wait for ever.
		kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxBytes(16<<20),
		kgo.FetchMaxPartitionBytes(1<<20),
		kgo.FetchMaxWait(100*time.Millisecond),
		kgo.MetadataMinAge(100*time.Millisecond),
	)
	if err != nil {
		return 0, err
	}
	defer cl.Close()

	adm := kadm.NewClient(cl)
	starts, err := adm.ListStartOffsets(ctx, p.Topic)
	if err != nil {
		return 0, fmt.Errorf("list start offsets: %w", err)
	}
	// From ListOffsets, with the default isolation of kadm's end offsets: the high watermark.
	ends, err := adm.ListEndOffsets(ctx, p.Topic)
	if err != nil {
		return 0, fmt.Errorf("list end offsets: %w", err)
	}
	start, ok1 := starts.Lookup(p.Topic, p.Partition)
	end, ok2 := ends.Lookup(p.Topic, p.Partition)
	switch {
	case !ok1 || !ok2:
		return 0, fmt.Errorf("list offsets of %s: no such partition", p)
	case start.Err != nil:
		return 0, fmt.Errorf("list the start offset of %s: %w", p, start.Err)
	case end.Err != nil:
		return 0, fmt.Errorf("list the end offset of %s: %w", p, end.Err)
	case end.Offset <= start.Offset:
		return 0, nil
	}
	n := 0
	for {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		for _, e := range fetches.Errors() {
			return n, fmt.Errorf("read %s: %w", p, e.Err)
		}
		for it := fetches.RecordIter(); !it.Done(); {
			r := it.Next()
			// Past the watermark is as good: the record at its end may belong to a transaction that was aborted,
			// and is never seen.
			if r.Attrs.IsControl() {
				if r.Offset >= end.Offset-1 {
					return n, nil
				}
				continue
			}
			if r.Offset >= end.Offset {
				return n, nil
			}
			n++
			if err := each(r); err != nil {
				return n, err
			}
			if r.Offset == end.Offset-1 {
				return n, nil
			}
		}
	}
}
