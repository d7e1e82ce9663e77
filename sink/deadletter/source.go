package deadletter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/schemas"
)

const whyTruncated = "its value was too large to be kept whole"

// leastPatience is the least time that the brokers have for a record.
const leastPatience = 10 * time.Second

// sources replays letters of route: it puts them back into their source topics. The record has the source's timestamp,
// which times in messages without one of their own come from; brokers that remove records by time look at it too.
type sources struct {
	topic    *Topic
	client   *kgo.Client
	patience time.Duration

	mu         sync.Mutex
	partitions map[string]int32 // of the source topics, as they are now
}

func newSources(topic *Topic, cfg *Config) (*sources, error) {
	client, err := topic.kafka.NewClient(topic.log, // idempotent, acknowledged by all replicas in sync: kgo's defaults
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(int32(kafka.MaxOwnedBytes(cfg.Sink.MaxRecordBytes))),
		kgo.ProducerLinger(0),
		// No kgo.RecordDeliveryTimeout: it counts from the record's timestamp, which is the source's.
	)
	if err != nil {
		return nil, err
	}
	return &sources{topic: topic, client: client, patience: max(cfg.Patience, leastPatience), partitions: make(map[string]int32)}, nil
}

func (s *sources) close() { s.client.Close() }

func (s *sources) plan(ctx context.Context, l *Letter) (Outcome, error) {
	o := Outcome{Position: l.Position, What: NotReplayable, Why: whyTruncated}
	if l.Truncated {
		return o, nil
	}
	partition, err := s.partition(ctx, l)
	if err != nil {
		return o, err
	}
	o.What, o.Why = PutBack, ""
	o.To = fmt.Sprintf("%s partition %d", l.Source.Topic, partition)
	return o, nil
}

// partition is where the letter goes: where it came from, or, in a topic that was made anew with fewer partitions, where
// its key does.
func (s *sources) partition(ctx context.Context, l *Letter) (int32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.partitions[l.Source.Topic]
	if !ok {
		ctx, cancel := context.WithTimeoutCause(ctx, lookTimeout, fmt.Errorf("the brokers did not answer within %v", lookTimeout))
		defer cancel()
		found, err := s.topic.admin.ListTopics(ctx, l.Source.Topic)
		if err == nil {
			err = found[l.Source.Topic].Err
		}
		switch {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			return 0, fmt.Errorf("its source topic %q is gone: make it anew, or leave its letters out", l.Source.Topic)
		case err != nil:
			return 0, fmt.Errorf("look up its source topic %q: %w", l.Source.Topic, err)
		}
		n = int32(len(found[l.Source.Topic].Partitions))
		s.partitions[l.Source.Topic] = n
	}
	switch {
	case l.Source.Partition < n:
		return l.Source.Partition, nil
	case l.SourceKey != nil:
		return kafka.Partition(l.SourceKey, n), nil
	}
	return l.Source.Partition % n, nil
}

func (s *sources) carry(halt context.Context, l *Letter, o Outcome) (Outcome, error) {
	partition, err := s.partition(halt, l)
	if err != nil {
		return o, err
	}
	record := &kgo.Record{Topic: l.Source.Topic, Partition: partition, Key: l.SourceKey, Value: l.Value}
	if l.Source.Time >= 0 {
		record.Timestamp = time.UnixMilli(l.Source.Time)
	}
	if len(l.Traceparent) > 0 {
		record.Headers = []kgo.RecordHeader{{Key: schemas.HeaderTraceparent, Value: l.Traceparent}}
	}
	// Not ProduceSync: once a record is on its way the client waits for its end, however long that takes.
	answers := make(chan error, 1)
	s.client.Produce(context.WithoutCancel(halt), record, func(_ *kgo.Record, err error) { answers <- err })
	late := time.NewTimer(s.patience)
	defer late.Stop()
	halted := halt.Done()
	for {
		select {
		case err := <-answers:
			if err != nil {
				return o, fmt.Errorf("put it back into %s: %w", o.To, err)
			}
			return o, nil
		case <-halted:
			halted = nil
			late.Reset(leastPatience)
		case <-late.C:
			return o, fmt.Errorf("put it back into %s: the brokers do not answer, and nobody knows whether they have written it", o.To)
		}
	}
}
