package deadletter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/schemas"
)

const (
	// lookTimeout bounds one look at the brokers.
	lookTimeout = 10 * time.Second
	// idle is how long a read goes without a record before it looks whether there still is one to come.
	idle = 2 * time.Second
	// pollRecords is how many records a poll takes at most.
	pollRecords = 1000
	// fetchBytes is how much of a partition is fetched at once; a single record may be larger.
	fetchBytes = 1 << 20
)

// A Topic is the dead-letter topic, up to where each partition ended when it was opened. It may be read by several
// goroutines at once.
type Topic struct {
	kafka  kafka.Config
	log    *slog.Logger
	client *kgo.Client
	admin  *kadm.Client
	name   string
	id     [16]byte
	bounds map[int32]bounds
}

// bounds are a partition's start and its high watermark.
type bounds struct{ start, end int64 }

// Open looks at the topic once: brokers that do not answer are an error, as is a topic that does not exist.
func Open(ctx context.Context, cfg kafka.Config, name string, log *slog.Logger) (*Topic, error) {
	client, err := cfg.NewClient(log)
	if err != nil {
		return nil, err
	}
	t := &Topic{kafka: cfg, log: log, client: client, admin: kadm.NewClient(client), name: name, bounds: make(map[int32]bounds)}
	if err := t.look(ctx); err != nil {
		client.Close()
		if refused := kafka.Refused(err); refused != nil {
			err = refused
		}
		return nil, fmt.Errorf("open the dead letters: %w", err)
	}
	return t, nil
}

// Close lets go of the brokers. Nothing may read meanwhile.
func (t *Topic) Close() { t.client.Close() }

// ID is the topic's id; zero where the brokers are too old to have one.
func (t *Topic) ID() [16]byte { return t.id }

func (t *Topic) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, fmt.Errorf("the brokers did not answer within %v", lookTimeout))
	defer cancel()
	// Asked first, because it names the cause where other requests retry for long.
	if err := kafka.Ping(ctx, t.client); err != nil {
		return fmt.Errorf("reach the brokers of OFFHOOK_KAFKA_BROKERS: %w", err)
	}
	found, err := t.admin.ListTopics(ctx, t.name)
	if err != nil {
		return fmt.Errorf("look up topic %s: %w", t.name, err)
	}
	detail := found[t.name]
	if errors.Is(detail.Err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("there is no topic %s (check OFFHOOK_TOPIC_PREFIX; offhook makes its topics at its first start)", t.name)
	}
	if detail.Err != nil {
		return fmt.Errorf("look up topic %s: %w", t.name, detail.Err)
	}
	t.id = detail.ID
	starts, err := t.admin.ListStartOffsets(ctx, t.name)
	if err = errors.Join(err, starts.Error()); err != nil {
		return fmt.Errorf("list the starts of topic %s: %w", t.name, err)
	}
	// The high watermarks, not the last stable offsets: a letter that was just committed may lie past those.
	ends, err := t.admin.ListEndOffsets(ctx, t.name)
	if err = errors.Join(err, ends.Error()); err != nil {
		return fmt.Errorf("list the ends of topic %s: %w", t.name, err)
	}
	for partition := range detail.Partitions {
		start, ok1 := starts.Lookup(t.name, partition)
		end, ok2 := ends.Lookup(t.name, partition)
		if !ok1 || !ok2 {
			return fmt.Errorf("topic %s, partition %d: the brokers do not say where it ends", t.name, partition)
		}
		t.bounds[partition] = bounds{start.Offset, end.Offset}
	}
	return nil
}

// Partitions lists those that may hold letters that f allows, in order. One that f names and the topic does not have is an
// error.
func (t *Topic) Partitions(f *Filter) ([]int32, error) {
	wanted := make(map[int32]bool)
	for _, p := range f.Partitions {
		wanted[p] = true
	}
	for _, p := range f.Positions {
		wanted[p.Partition] = true
	}
	for p := range f.After {
		if _, ok := t.bounds[p]; !ok {
			wanted[p] = true
		}
	}
	for p := range wanted {
		if _, ok := t.bounds[p]; !ok {
			return nil, fmt.Errorf("topic %s has no partition %d; it has %d of them", t.name, p, len(t.bounds))
		}
	}
	var all []int32
	for _, p := range slices.Sorted(maps.Keys(t.bounds)) {
		if len(wanted) == 0 || wanted[p] {
			all = append(all, p)
		}
	}
	return all, nil
}

// Letters reads a partition from its start to its end. A letter is valid until the next. An error is the last of the
// sequence: ctx's cause, or what the brokers say. f says of which letters another can be a copy: an event that was sent again
// on purpose can die again, long after.
func (t *Topic) Letters(ctx context.Context, partition int32, f *Filter) iter.Seq2[*Letter, error] {
	return func(yield func(*Letter, error) bool) {
		meant := *f
		meant.After, meant.Positions = nil, nil // what is left out as done, or not named, counts
		seen := make(map[[16]byte]struct{})
		var headers []schemas.Header
		for r, err := range t.records(ctx, partition, t.bounds[partition].start) {
			if err != nil {
				yield(nil, err)
				return
			}
			headers = headers[:0]
			for _, h := range r.Headers {
				headers = append(headers, schemas.Header(h))
			}
			l := &Letter{Position: Position{partition, r.Offset}, Time: r.Timestamp, Record: r}
			if l.DeadLetter, l.Err = schemas.DecodeDeadLetter(r.Key, headers, r.Value); l.Err == nil && meant.excludes(l) == "" {
				sum := sha256.Sum256(r.Key)
				key := [16]byte(sum[:16])
				_, l.Copy = seen[key]
				seen[key] = struct{}{}
			}
			if !yield(l, nil) {
				return
			}
		}
	}
}

// Record is the record at a position, whatever it holds. It is an error that there is none.
func (t *Topic) Record(ctx context.Context, at Position) (*kgo.Record, error) {
	within, ok := t.bounds[at.Partition]
	switch {
	case !ok:
		return nil, fmt.Errorf("there is no letter %s: topic %s has partitions 0 to %d", at, t.name, len(t.bounds)-1)
	case at.Offset < within.start:
		return nil, fmt.Errorf("there is no letter %s any more: the topic's retention has removed it", at)
	}
	for r, err := range t.records(ctx, at.Partition, at.Offset) {
		if err != nil {
			return nil, err
		}
		if r.Offset == at.Offset {
			return r, nil
		}
		break
	}
	return nil, fmt.Errorf("there is no letter %s", at)
}

// records reads a partition from an offset to its end, what is committed of it.
func (t *Topic) records(ctx context.Context, partition int32, from int64) iter.Seq2[*kgo.Record, error] {
	return func(yield func(*kgo.Record, error) bool) {
		end := t.bounds[partition].end
		if from >= end {
			return
		}
		fail := func(err error) {
			if refused := kafka.Refused(err); refused != nil {
				err = refused
			}
			yield(nil, fmt.Errorf("read topic %s, partition %d: %w", t.name, partition, err))
		}
		client, err := t.kafka.NewClient(t.log,
			kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{t.name: {partition: kgo.NewOffset().At(from)}}),
			// What stands before the end is mostly the marker of route's transaction, and is seen in no other record.
			kgo.KeepControlRecords(),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), // retention has removed what stood at from
			kgo.FetchMaxBytes(fetchBytes),
			kgo.FetchMaxPartitionBytes(fetchBytes),
			kgo.FetchMaxWait(500*time.Millisecond),
		)
		if err != nil {
			fail(err)
			return
		}
		defer client.Close()
		waits := 0
		for {
			poll, cancel := context.WithTimeout(ctx, idle)
			fetches := client.PollRecords(poll, pollRecords)
			late := poll.Err() != nil
			cancel()
			if ctx.Err() != nil {
				yield(nil, context.Cause(ctx))
				return
			}
			if late && fetches.NumRecords() == 0 {
				over, err := t.removed(ctx, partition, end)
				if err != nil {
					fail(err)
					return
				}
				if over {
					return
				}
				if waits++; waits&(waits-1) == 0 { // at 1, 2, 4, …
					t.log.Warn("waiting for the end of a transaction in the dead letters", "topic", t.name, "partition", partition)
				}
				continue
			}
			if !late {
				for _, e := range fetches.Errors() {
					fail(e.Err)
					return
				}
			}
			for it := fetches.RecordIter(); !it.Done(); {
				r := it.Next()
				// The record before the end may belong to a transaction that was aborted, and is never seen: one past it
				// is as good.
				if r.Offset >= end {
					return
				}
				if !r.Attrs.IsControl() && r.Offset >= from && !yield(r, nil) {
					return
				}
				if r.Offset == end-1 {
					return
				}
			}
		}
	}
}

// removed reports whether retention has meanwhile removed all that stood before end.
func (t *Topic) removed(ctx context.Context, partition int32, end int64) (bool, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, fmt.Errorf("the brokers did not answer within %v", lookTimeout))
	defer cancel()
	if err := kafka.Ping(ctx, t.client); err != nil {
		return false, fmt.Errorf("reach the brokers: %w", err)
	}
	starts, err := t.admin.ListStartOffsets(ctx, t.name)
	start, ok := starts.Lookup(t.name, partition)
	if !ok || start.Err != nil {
		return false, errors.Join(err, start.Err)
	}
	return start.Offset >= end, nil
}
