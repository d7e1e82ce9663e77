package presence

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// newBareStage is a stage of topics with the prefix p, without Kafka.
func newBareStage(t testing.TB, cfg Config) *stage {
	t.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	return newStage(cfg, Deps{Topics: kafka.NewTopics("p"), Log: slog.New(slog.DiscardHandler)}, m)
}

// TestCloseMemoryBounds: gateways whose names never come back, each with a start, a connection, and a close of one that was never
// seen, leave nothing behind after OFFHOOK_CLOSE_MEMORY: not in memory, and not in the changelog. Transactions make more closes
// than a partition forgets by itself.
func TestCloseMemoryBounds(t *testing.T) {
	const (
		perTransaction = 2 * expirePerTransaction
		transactions   = 60
		step           = ExpireSlack / 6
		memory         = ExpireSlack / 2
		remembered     = (memory+ExpireSlack)/step + 1 // transactions of which something may be left
	)
	s := newBareStage(t, Config{CloseMemory: memory * time.Millisecond})
	table := NewTable(s.rules)
	s.parts[0] = &part{table: table}
	log := make(map[string]bool) // the compacted changelog's keys
	offset, now := int64(0), int64(1_700_000_000_000)
	feed := func(c schemas.Connection) {
		c.Time, c.OpenedAt, c.HasDeviceFlag = now, -1, true
		r := &kgo.Record{
			Offset: offset, Timestamp: time.UnixMilli(now), Value: schemas.AppendInboxConnection(nil, &c),
			Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
		}
		offset++
		if _, err := s.Process(txn.Input{Record: r}, func(r *kgo.Record) {
			switch {
			case r.Topic != s.deps.Topics.Presence:
			case r.Value == nil:
				delete(log, string(r.Key))
			default:
				log[string(r.Key)] = true
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	for txn := range transactions {
		for i := range perTransaction {
			gateway := schemas.ID(fmt.Sprintf("gateway-%d-%d", txn, i))
			feed(schemas.Connection{Type: schemas.NodeStarted, NodeID: gateway})
			feed(schemas.Connection{Type: schemas.Online, UID: "user", ConnID: "1", NodeID: gateway})
			feed(schemas.Connection{Type: schemas.Offline, UID: "user", ConnID: "1", NodeID: gateway})
			feed(schemas.Connection{Type: schemas.Offline, UID: "user", ConnID: "2", NodeID: gateway})
		}
		s.Commit()
		now += step
		// A transaction may fall short of what has just become due; it never falls behind.
		const gateways = (remembered + 1) * perTransaction
		if n := table.Remembered(); n > 2*gateways {
			t.Fatalf("%d closes are remembered after %d transactions, and at most %d may count", n, txn+1, 2*gateways)
		}
		if n := len(table.byID); n > gateways {
			t.Fatalf("%d gateways are known after %d transactions, and at most %d may count", n, txn+1, gateways)
		}
		if len(log) != table.Remembered()+len(table.startQueue.items) {
			t.Fatalf("the changelog has %d keys, and the table %d closes and %d starts", len(log), table.Remembered(), len(table.startQueue.items))
		}
	}
	if table.Connections() != 0 || table.Users() != 0 {
		t.Errorf("%d connections of %d users are open", table.Connections(), table.Users())
	}
}
