package presence

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// restoreConnections is how many live connections BenchmarkRestore restores, 1.5 a user, if OFFHOOK_BENCH_CONNECTIONS does
// not say so.
const restoreConnections = 1_500_000

// BenchmarkRestore restores all partitions of a presence topic, four beside each other as a process does, and reads the same
// topic with one bare kgo client, in turns. It reports connections/s, and "of-bare", the restore's rate as a part of the bare
// read's. It is of use on a broker that is a process of its own (OFFHOOK_TEST_BROKERS); the fake one shares this process.
func BenchmarkRestore(b *testing.B) {
	connections := restoreConnections
	if text := os.Getenv("OFFHOOK_BENCH_CONNECTIONS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatalf("OFFHOOK_BENCH_CONNECTIONS: %v", err)
		}
		connections = n
	}
	c := kafkatest.Bench(b)
	for _, partitions := range []int32{1, 12} {
		b.Run(fmt.Sprintf("partitions=%d", partitions), func(b *testing.B) { benchRestore(b, c, partitions, connections) })
	}
}

func benchRestore(b *testing.B, c *kafkatest.Cluster, partitions int32, connections int) {
	topics := kafka.NewTopics(fmt.Sprintf("%s.%d", c.Prefix, partitions))
	c.CreateTopic(b, topics.Presence, partitions, "cleanup.policy=compact")
	fill(b, c, topics.Presence, partitions, connections, "")
	s := newBareStage(b, Config{CloseMemory: 10 * time.Minute})
	s.deps.Kafka, s.deps.Topics = c.Config(), topics
	var bare, restored time.Duration
	for b.Loop() {
		runtime.GC() // of what the loop left before
		began := time.Now()
		if err := bareRead(b.Context(), c, topics.Presence); err != nil {
			b.Fatal(err)
		}
		bare += time.Since(began)
		runtime.GC()
		began = time.Now()
		restoreAll(b, s, topics, partitions)
		restored += time.Since(began)
		n := 0
		for _, p := range s.parts {
			n += p.table.Connections()
		}
		if n != connections {
			b.Fatalf("%d connections were restored of %d", n, connections)
		}
		s.Reset()
	}
	b.ReportMetric(float64(connections)*float64(b.N)/restored.Seconds(), "connections/s")
	b.ReportMetric(bare.Seconds()/restored.Seconds(), "of-bare")
}

func restoreAll(b *testing.B, s *stage, topics kafka.Topics, partitions int32) {
	b.Helper()
	installs := make([]func(), partitions)
	next := make(chan int32)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for p := range next {
				install, err := s.Restore(b.Context(), txn.Partition{Topic: topics.Inbox, Partition: p})
				if err != nil {
					b.Error(err)
				}
				installs[p] = install
			}
		})
	}
	for p := range partitions {
		next <- p
	}
	close(next)
	all.Wait()
	if b.Failed() {
		b.FailNow()
	}
	for _, install := range installs {
		install()
	}
}

// bareRead reads a topic from its start to its end, looking at the length of each key and value.
func bareRead(ctx context.Context, c *kafkatest.Cluster, topic string) error {
	cl, err := kgo.NewClient(
		kgo.SeedBrokers(c.Brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	)
	if err != nil {
		return err
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	left := make(map[int32]int64)
	for p, end := range ends[topic] {
		if end.Offset > 0 {
			left[p] = end.Offset - 1
		}
	}
	size := 0
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			for _, r := range p.Records {
				size += len(r.Key) + len(r.Value)
				if r.Offset >= left[p.Partition] {
					delete(left, p.Partition)
				}
			}
		})
	}
	return nil
}

// fill writes live connections, 1.5 a user, as the stage would: of the node, or of several where that is empty.
func fill(b *testing.B, c *kafkatest.Cluster, topic string, partitions int32, connections int, node schemas.ID) {
	b.Helper()
	cl := c.Client(b, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(100_000))
	promise := kgo.AbortingFirstErrPromise(cl)
	headers := []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())}
	n := 0
	for u := 0; n < connections; u++ {
		uid := benchUID(u)
		for i := 0; i < 1+u%2 && n < connections; i++ {
			event := benchEvent(schemas.Online, u, 1_000_000+n, 1_700_000_000_000)
			cl.Produce(b.Context(), &kgo.Record{
				Topic: topic, Partition: kafka.Partition(uid, partitions), Headers: headers,
				Key: schemas.AppendPresenceKey(nil, schemas.PresenceKey{
					Kind: schemas.PresenceConnection, UID: uid, NodeID: cmp.Or(node, event.NodeID), ConnID: event.ConnID,
				}),
				Value: schemas.AppendConnectionState(nil, schemas.ConnectionState{
					Open: true, DeviceFlag: event.DeviceFlag, Version: event.Time, OpenedAt: -1,
				}),
			}, promise.Promise())
			n++
		}
	}
	if err := cl.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := promise.Err(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkTableRestore is the table's part of a restore: a million live connections, 1.5 a user, from records in memory.
func BenchmarkTableRestore(b *testing.B) {
	const connections = 1_000_000
	keys, values := make([][]byte, 0, connections), make([][]byte, 0, connections)
	var buf []byte
	for u := 0; len(keys) < connections; u++ {
		for i := 0; i < 1+u%2 && len(keys) < connections; i++ {
			event := benchEvent(schemas.Online, u, 1_000_000+len(keys), 1_700_000_000_000)
			at := len(buf)
			buf = schemas.AppendPresenceKey(buf, schemas.PresenceKey{Kind: schemas.PresenceConnection, UID: event.UID, NodeID: event.NodeID, ConnID: event.ConnID})
			keys = append(keys, buf[at:len(buf):len(buf)])
			at = len(buf)
			buf = schemas.AppendConnectionState(buf, schemas.ConnectionState{Open: true, DeviceFlag: event.DeviceFlag, Version: event.Time, OpenedAt: -1})
			values = append(values, buf[at:len(buf):len(buf)])
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		table := NewTable(Rules{CloseMemory: 600_000})
		for i := range keys {
			if err := table.Restore(keys[i], values[i]); err != nil {
				b.Fatal(err)
			}
		}
		if table.Connections() != connections {
			b.Fatal(table.Connections())
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*connections), "ns/connection")
}
