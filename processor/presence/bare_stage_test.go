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

// bench is a stage with one live partition, without Kafka.
type bench struct {
	*testing.T
	stage  *stage
	part   *part
	offset int64 // of the last record read
	clock  int64
	behind int64
	out    []*kgo.Record
}

const benchPartition = 3

func newBench(t *testing.T, cfg Config, table *Table) *bench {
	t.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{T: t, clock: 1_000_000_000, offset: 99, stage: newStage(cfg, Deps{Topics: kafka.NewTopics("x"), Log: slog.New(slog.DiscardHandler)}, m)}
	if table == nil {
		table = NewTable(b.stage.rules)
	}
	b.part = &part{table: table, liveness: Liveness{TTL: cfg.ConnectionTTL.Milliseconds()}}
	b.stage.parts[benchPartition] = b.part
	return b
}

// read has the stage read one inbox record, and commit.
func (b *bench) read(value []byte) {
	b.Helper()
	b.offset++
	in := txn.Input{Behind: b.behind, Record: &kgo.Record{
		Partition: benchPartition, Timestamp: time.UnixMilli(b.clock), Offset: b.offset, Value: value, Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
	}}
	for more := true; more; {
		var err error
		if more, err = b.stage.Process(in, func(r *kgo.Record) { b.out = append(b.out, r) }); err != nil {
			b.Fatal(err)
		}
		b.stage.Commit()
	}
}

// listen lets seconds pass, each with a caught_up record.
func (b *bench) listen(seconds int, each ...[]byte) {
	b.Helper()
	for range seconds {
		b.clock += 1000
		b.read(schemas.AppendInboxCaughtUp(nil, &schemas.CaughtUp{AsOf: b.clock - 1000, Topics: []schemas.CaughtUpTopic{{Name: "c", Partitions: 1, Read: []int32{0}}}}))
		for _, value := range each {
			b.read(value)
		}
	}
}

// expires takes what was written to the inbox.
func (b *bench) expires() (names []string) {
	b.Helper()
	for _, r := range b.out {
		if r.Topic != b.stage.deps.Topics.Inbox {
			continue
		}
		if r.Partition != benchPartition {
			b.Errorf("an expire goes to partition %d", r.Partition)
		}
		in, err := schemas.DecodeInbox(r.Headers, r.Value)
		if err != nil {
			b.Fatal(err)
		}
		names = append(names, in.Expire.UID)
	}
	b.out = nil
	return names
}

func opens(uid, node string) []byte {
	return schemas.AppendInboxConnection(nil, &schemas.Connection{
		Type: schemas.Online, UID: uid, ConnID: "1", NodeID: schemas.ID(node), HasDeviceFlag: true, Time: 5, OpenedAt: -1,
	})
}

func beats(uid, node string) []byte {
	c := schemas.Connection{Type: schemas.Heartbeat, UID: uid, NodeID: schemas.ID(node), Time: 6, OpenedAt: -1}
	if uid != "" {
		c.ConnID = "1"
	}
	return schemas.AppendInboxConnection(nil, &c)
}

// The stage asks for the close of who is silent, of nobody else, in the partition that it read, and closes on reading it.
func TestStageExpiresWhoIsSilent(t *testing.T) {
	b := newBench(t, Config{CloseMemory: time.Minute, ConnectionTTL: 10 * time.Second}, nil)
	for _, uid := range []string{"gone", "alone"} {
		b.read(opens(uid, "a"))
	}
	b.read(opens("together", "b"))
	b.listen(8, beats("alone", "a"), beats("", "b"))
	if got := b.expires(); got != nil {
		t.Fatalf("after 8 s %v are to be closed", got)
	}
	b.listen(6, beats("alone", "a"), beats("", "b"))
	got := b.expires()
	if len(got) == 0 || got[0] != "gone" || got[len(got)-1] != "gone" {
		t.Fatalf("after 14 s %v are to be closed", got)
	}
	b.read(schemas.AppendInboxExpire(nil, &schemas.Expire{UID: "gone", NodeID: "a", ConnID: "1", Offset: 100}))
	if n := b.part.table.Connections(); n != 2 {
		t.Errorf("%d connections are left, want 2", n)
	}

	// Behind the inbox nobody's silence counts.
	b = newBench(t, Config{CloseMemory: time.Minute, ConnectionTTL: 10 * time.Second}, nil)
	b.read(opens("gone", "a"))
	b.behind = behindMax + 1
	b.listen(30)
	if got := b.expires(); got != nil {
		t.Errorf("far behind, %v are to be closed", got)
	}
	// Without a time to live neither.
	b = newBench(t, Config{CloseMemory: time.Minute}, nil)
	b.read(opens("gone", "a"))
	b.listen(30)
	if got := b.expires(); got != nil {
		t.Errorf("without a time to live %v are to be closed", got)
	}
}

// An expire that an earlier owner wrote says nothing of what was heard before the table was restored.
func TestStageHearsBeforeItBegan(t *testing.T) {
	b := newBench(t, Config{CloseMemory: time.Minute, ConnectionTTL: 10 * time.Second}, nil)
	var e Effects
	table := NewTable(b.stage.rules)
	c := schemas.Connection{Type: schemas.Online, UID: "u", ConnID: "1", NodeID: "a", HasDeviceFlag: true, Time: 5, OpenedAt: -1}
	table.Apply(&c, Mark{Time: 1, Offset: 10}, &e)
	b = newBench(t, b.stage.cfg, restored(t, b.stage.rules, e.Changes))
	b.read(schemas.AppendInboxExpire(nil, &schemas.Expire{UID: "u", NodeID: "a", ConnID: "1", Offset: 10}))
	if b.part.table.Connections() != 1 {
		t.Error("it has closed a connection that may have been heard")
	}
}

// A close that is undone leaves the connection's sign of life, or a sweep would close who lives.
func TestRollbackKeepsTheSign(t *testing.T) {
	table := NewTable(Rules{CloseMemory: 600_000})
	var e Effects
	c := schemas.Connection{Type: schemas.Online, UID: "u", ConnID: "1", NodeID: "a", HasDeviceFlag: true, Time: 5, OpenedAt: -1}
	table.Apply(&c, Mark{Time: 1, Offset: 10}, &e)
	table.Commit()
	c.Type, c.Time = schemas.Offline, 6
	table.Apply(&c, Mark{Time: 2, Offset: 11}, &e)
	table.Rollback()
	table.Sweep(10, 10, func(x schemas.Expire) { t.Errorf("a sweep finds %+v silent since 10", x) })
	if o := table.ExpireConnection(&schemas.Expire{UID: "u", NodeID: "a", ConnID: "1", Offset: 9}, 3, &e); o != OutcomeHeard {
		t.Errorf("an expire of before the last sign: %s", o)
	}
}

// A part of a start that is aborted is done again, whole; one whose record never comes again is nothing to the next start.
func TestStartInPartsIsAborted(t *testing.T) {
	fill := func() *Table {
		table := NewTable(Rules{CloseMemory: 600_000, ClosesAtOnce: 1})
		var e Effects
		for i, node := range []schemas.ID{"a", "a", "a", "b", "b"} {
			c := schemas.Connection{Type: schemas.Online, UID: fmt.Sprint("u", i), ConnID: "1", NodeID: node, HasDeviceFlag: true, Time: 5, OpenedAt: -1}
			table.Apply(&c, Mark{Time: 1, Offset: int64(i)}, &e)
		}
		table.Commit()
		return table
	}
	start := func(table *Table, node schemas.ID, offset int64, e *Effects) bool {
		_, more := table.Apply(&schemas.Connection{Type: schemas.NodeStarted, NodeID: node, Time: 9, OpenedAt: -1}, Mark{Time: 2, Offset: offset}, e)
		return more
	}
	for aborted := range 3 { // which part
		table, e := fill(), Effects{}
		for range aborted {
			start(table, "a", 10, &e)
			table.Commit()
		}
		start(table, "a", 10, &Effects{})
		table.Rollback()
		for start(table, "a", 10, &e) {
			table.Commit()
		}
		table.Commit()
		if len(e.Events) != 3 || table.Connections() != 2 {
			t.Errorf("part %d is aborted: %d closes, and %d connections are left", aborted+1, len(e.Events), table.Connections())
		}
	}
	table, e := fill(), Effects{}
	start(table, "a", 10, &e)
	table.Commit()
	e = Effects{}
	for start(table, "b", 11, &e) {
		table.Commit()
	}
	if len(e.Events) != 2 || e.Events[0].UID != "u3" || e.Events[1].UID != "u4" {
		t.Errorf("another node's start closes %+v", e.Events)
	}
}

// A start holds against a heartbeat that would make an open connection a later generation's.
func TestStartHoldsAgainstALaterGenerationsHeartbeat(t *testing.T) {
	s := newScript(t, Rules{CloseMemory: 600_000})
	s.step("online u 1 node=g t=100 opened=1")
	s.step("node_started g t=50 at=100")
	if r := s.step("heartbeat u 1 node=g flag=0 t=40 opened=2 at=100"); r.outcome != OutcomeStale || len(r.changes) != 0 {
		t.Errorf("%s, %d changes", r.outcome, len(r.changes))
	}
	if r := s.step("heartbeat u 1 node=g flag=0 t=60 opened=2 at=100"); r.outcome != OutcomeRefreshed || len(r.changes) != 1 {
		t.Errorf("after the start: %s, %d changes", r.outcome, len(r.changes))
	}
}
