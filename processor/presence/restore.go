package presence

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// Restore builds the table of a partition that was assigned from its part of the presence topic.
func (s *stage) Restore(ctx context.Context, p txn.Partition) (func(), error) {
	began := time.Now()
	table := NewTable(s.rules)
	changelog := txn.Partition{Topic: s.deps.Topics.Presence, Partition: p.Partition}
	n, err := txn.ReadChangelog(ctx, s.deps.Kafka, s.log, changelog, func(r *kgo.Record) error {
		err := schemas.CheckVersion("presence record", r.Headers)
		if err == nil {
			err = table.Restore(r.Key, r.Value)
		}
		if err != nil {
			return txn.Fatal(fmt.Errorf("read %s offset %d: %w", changelog, r.Offset, err))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.metrics.restored.Add(float64(n))
	s.log.Info("partition restored", "partition", p.Partition, "records", n, "connections", table.Connections(), "took", time.Since(began).Round(time.Millisecond))
	return func() {
		s.hold()
		defer s.release()
		s.parts[p.Partition] = &part{table: table, liveness: Liveness{TTL: s.cfg.ConnectionTTL.Milliseconds()}}
		s.ownedMu.Lock()
		s.owned[p.Partition] = true
		s.ownedMu.Unlock()
		s.gauge()
	}, nil
}
