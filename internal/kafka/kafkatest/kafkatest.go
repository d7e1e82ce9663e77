// Package kafkatest gives tests a Kafka: kfake in process, or the brokers that OFFHOOK_TEST_BROKERS names.
package kafkatest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
)

// BrokersVariable names the variable with the addresses of real brokers, comma-separated.
const BrokersVariable = "OFFHOOK_TEST_BROKERS"

// patience bounds what a test does with the brokers beside its own subject.
const patience = 30 * time.Second

// Cluster is a Kafka for one test.
type Cluster struct {
	Brokers []string
	Prefix  string         // unique: for OFFHOOK_TOPIC_PREFIX and for input topics' names
	Fake    *kfake.Cluster // nil where the brokers are real
}

// New starts a kfake cluster that the test's end stops: three brokers, unless opts say otherwise.
func New(t testing.TB, opts ...kfake.Opt) *Cluster {
	t.Helper()
	opts = append([]kfake.Opt{
		kfake.NumBrokers(3),
		// Members that are killed and not closed are to be missed soon.
		kfake.GroupMinSessionTimeout(100 * time.Millisecond),
	}, opts...)
	fake, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatalf("start kfake: %v", err)
	}
	t.Cleanup(fake.Close)
	return &Cluster{Brokers: fake.ListenAddrs(), Prefix: prefix(t), Fake: fake}
}

// Real returns the brokers that OFFHOOK_TEST_BROKERS (comma-separated) names, or skips the test and says so. Brokers
// that are named and do not answer fail the test. The test's end deletes topics and groups with the cluster's prefix.
func Real(t testing.TB) *Cluster {
	t.Helper()
	value := os.Getenv(BrokersVariable)
	if value == "" {
		t.Skipf("set %s to the addresses of Kafka brokers (`make kafka-up` starts some) to run this against them", BrokersVariable)
	}
	c := &Cluster{Prefix: prefix(t)}
	for broker := range strings.SplitSeq(value, ",") {
		if broker = strings.TrimSpace(broker); broker != "" {
			c.Brokers = append(c.Brokers, broker)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := kafka.Ping(ctx, c.Client(t)); err != nil {
		t.Fatalf("the brokers of %s=%s do not answer: %v", BrokersVariable, value, err)
	}
	t.Cleanup(func() { c.clean(t) })
	return c
}

// Each runs f as a subtest on kfake ("kfake") and on the real brokers ("kafka", skipped where there are none).
func Each(t *testing.T, f func(t *testing.T, c *Cluster)) {
	t.Run("kfake", func(t *testing.T) { f(t, New(t)) })
	t.Run("kafka", func(t *testing.T) { f(t, Real(t)) })
}

// Bench is a cluster for a benchmark: the real brokers where OFFHOOK_TEST_BROKERS names some, else kfake.
func Bench(b *testing.B) *Cluster {
	b.Helper()
	if os.Getenv(BrokersVariable) != "" {
		return Real(b)
	}
	return New(b)
}

// Config is the way to reach the cluster.
func (c *Cluster) Config() kafka.Config { return kafka.Config{Brokers: c.Brokers} }

// Client is a client that the test's end closes.
func (c *Cluster) Client(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		kgo.MetadataMinAge(100 * time.Millisecond), // else a topic made a moment ago is unknown for seconds
	}, opts...)...)
	if err != nil {
		t.Fatalf("new Kafka client: %v", err)
	}
	t.Cleanup(client.Close)
	return client
}

// CreateTopic creates a topic, with the brokers' default of replicas; configs as "key=value". It returns when the
// topic can be written to.
func (c *Cluster) CreateTopic(t testing.TB, topic string, partitions int32, configs ...string) {
	t.Helper()
	set := make(map[string]*string, len(configs))
	for _, config := range configs {
		key, value, ok := strings.Cut(config, "=")
		if !ok {
			t.Fatalf("config %q of topic %s is not key=value", config, topic)
		}
		set[key] = &value
	}
	admin := kadm.NewClient(c.Client(t))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := admin.CreateTopic(ctx, partitions, -1, set, topic); err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
	Wait(t, patience, "topic "+topic+" to have leaders", func() bool {
		offsets, err := admin.ListEndOffsets(ctx, topic)
		return err == nil && offsets.Error() == nil && len(offsets[topic]) == int(partitions)
	})
}

// Produce writes records, each to the partition that it names, and waits for their acknowledgement.
func (c *Cluster) Produce(t testing.TB, records ...*kgo.Record) {
	t.Helper()
	client := c.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(64<<20), kgo.ProducerLinger(0))
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatalf("produce %d records: %v", len(records), err)
	}
}

// ReadAll reads a topic, read committed, up to the high watermarks of the moment of the call, in the order of
// partition and offset.
func (c *Cluster) ReadAll(t testing.TB, topic string) []*kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	admin := kadm.NewClient(c.Client(t))
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		t.Fatalf("list start offsets of %s: %v", topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		t.Fatalf("list end offsets of %s: %v", topic, err)
	}
	consume := make(map[int32]kgo.Offset)
	byPartition := make([][]*kgo.Record, len(ends[topic]))
	ends.Each(func(end kadm.ListedOffset) {
		if start, _ := starts.Lookup(topic, end.Partition); start.Offset < end.Offset {
			consume[end.Partition] = kgo.NewOffset().At(start.Offset)
		}
	})
	if len(consume) == 0 {
		return nil
	}
	client := c.Client(t,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: consume}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// A partition that ends in a commit marker shows its end in no record but that marker.
		kgo.KeepControlRecords(),
	)
	defer client.Close()
	for len(consume) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("read topic %s: %v; still without an end: %d partitions", topic, err, len(consume))
		}
		fetches.EachError(func(_ string, partition int32, err error) {
			t.Fatalf("read topic %s partition %d: %v", topic, partition, err)
		})
		fetches.EachRecord(func(record *kgo.Record) {
			end, _ := ends.Lookup(topic, record.Partition)
			if record.Offset < end.Offset && !record.Attrs.IsControl() {
				byPartition[record.Partition] = append(byPartition[record.Partition], record)
			}
			if record.Offset >= end.Offset-1 {
				delete(consume, record.Partition)
			}
		})
	}
	var all []*kgo.Record
	for _, records := range byPartition {
		all = append(all, records...)
	}
	return all
}

// Wait polls cond until it holds, and fails the test where it does not within timeout; what completes "waited for".
func Wait(t testing.TB, timeout time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; !cond(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", timeout, what)
		}
		time.Sleep(pause)
	}
}

// clean deletes what the test has left on real brokers.
func (c *Cluster) clean(t testing.TB) {
	client, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers...))
	if err != nil {
		t.Errorf("new Kafka client: %v", err)
		return
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		t.Logf("list topics to delete: %v", err)
		return
	}
	var mine []string
	for _, topic := range topics.Names() {
		if strings.HasPrefix(topic, c.Prefix) {
			mine = append(mine, topic)
		}
	}
	if _, err := admin.DeleteTopics(ctx, mine...); err != nil {
		t.Logf("delete topics: %v", err)
	}
	groups, err := admin.ListGroups(ctx)
	if err != nil {
		t.Logf("list groups to delete: %v", err)
		return
	}
	mine = nil
	for _, group := range groups.Groups() {
		if strings.HasPrefix(group, c.Prefix) {
			mine = append(mine, group)
		}
	}
	if _, err := admin.DeleteGroups(ctx, mine...); err != nil {
		t.Logf("delete groups: %v", err)
	}
}

// prefix is unique to the test, over processes too; it begins with the test's name, for a reader of the topics.
func prefix(t testing.TB) string {
	var name strings.Builder
	for _, r := range strings.ToLower(t.Name()) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			name.WriteRune(r)
		}
		if name.Len() == 40 {
			break
		}
	}
	var unique [4]byte
	rand.Read(unique[:])
	return name.String() + "-" + hex.EncodeToString(unique[:])
}
