package presence

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/processor/route"
)

// BenchmarkGatewayDies is a gateway that starts anew while it had 200,000 connections, and what that delays others: 1,000
// events/s of users of another gateway, from the moment at which they are due to their user.onlinestatus event in Kafka, before it
// and until the last close. One process of route and of presence each, 12 partitions. It reports s, from the start's record until the
// last close can be read, and the other users' p50, p99 and longest delay in ms.
func BenchmarkGatewayDies(b *testing.B) {
	for b.Loop() {
		gatewayDies(b, kafkatest.Bench(b), 200_000)
	}
}

func gatewayDies(b *testing.B, c *kafkatest.Cluster, connections int) {
	const partitions = 12
	topics, log := kafka.NewTopics(c.Prefix), slog.New(slog.DiscardHandler)
	cl := c.Client(b, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	owned, err := kafka.Ensure(b.Context(), cl, kafka.Spec{
		Topics: topics, Create: true, Partitions: partitions, ReplicationFactor: -1, EventRetention: time.Hour, MaxRecordBytes: 1 << 20,
	}, log)
	if err != nil {
		b.Fatal(err)
	}
	input := []string{c.Prefix + ".in.connections"}
	messages := []string{c.Prefix + ".in.messages"}
	c.CreateTopic(b, input[0], partitions)
	c.CreateTopic(b, messages[0], partitions)
	fill(b, c, topics.Presence, partitions, connections, "gw")

	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() {
		if err := route.Run(ctx, route.Config{ConnectionsTopics: input, MessagesTopics: messages, MessagesStart: route.Earliest, Prefix: c.Prefix},
			route.Deps{Kafka: c.Config(), Topics: topics, Owned: owned, Log: log}); err != nil {
			b.Error(err)
		}
	})
	running.Go(func() {
		if err := Run(ctx, Config{Prefix: c.Prefix, CloseMemory: 10 * time.Minute},
			Deps{Kafka: c.Config(), Topics: topics, Owned: owned, Log: log}); err != nil {
			b.Error(err)
		}
	})

	var probes gatewayProbes
	running.Go(func() { probes.read(ctx, c, topics.OnlineStatus) })
	running.Go(func() { probes.send(ctx, cl, input[0], partitions) })
	kafkatest.Wait(b, time.Minute, "the first events of others", func() bool { return probes.seen.Load() > 1000 })
	time.Sleep(2 * time.Second)
	before := probes.take()
	began := time.Now()
	c.Produce(b, &kgo.Record{Topic: input[0], Value: fmt.Appendf(nil, `{"type":"node_started","node_id":"gw","timestamp":%d}`, began.UnixMilli())})
	kafkatest.Wait(b, 5*time.Minute, "the last close", func() bool { return int(probes.closes.Load()) == connections })
	took := time.Since(began)
	time.Sleep(500 * time.Millisecond)
	during := probes.take()
	b.ReportMetric(took.Seconds(), "s")
	for name, all := range map[string][]time.Duration{"before": before, "during": during} {
		slices.Sort(all)
		b.ReportMetric(ms(all[len(all)/2]), name+"-p50-ms")
		b.ReportMetric(ms(all[len(all)*99/100]), name+"-p99-ms")
		b.ReportMetric(ms(all[len(all)-1]), name+"-max-ms")
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// gatewayProbes are the other users' events.
type gatewayProbes struct {
	seen, closes atomic.Int64

	mu     sync.Mutex
	delays []time.Duration
}

func (p *gatewayProbes) take() []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.delays
	p.delays = nil
	return all
}

// send opens and closes connections, 1,000 events/s; a connection's id is the time at which it was due.
func (p *gatewayProbes) send(ctx context.Context, cl *kgo.Client, topic string, partitions int32) {
	began := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		due := began.Add(time.Duration(2*i) * time.Millisecond)
		time.Sleep(time.Until(due))
		uid := fmt.Sprintf("other%d", i%1000)
		for _, typ := range []string{"online", "offline"} {
			cl.Produce(ctx, &kgo.Record{
				Topic: topic, Partition: kafka.Partition(uid, partitions), Key: []byte(uid),
				Value: fmt.Appendf(nil, `{"type":%q,"uid":%q,"conn_id":%d,"node_id":"live","timestamp":%d}`, typ, uid, due.UnixMilli(), due.UnixMilli()),
			}, nil)
		}
	}
}

// read takes the delay of each connection that others opened, and counts the gateway's closes.
func (p *gatewayProbes) read(ctx context.Context, c *kafkatest.Cluster, topic string) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		panic(err)
	}
	defer cl.Close()
	for ctx.Err() == nil {
		fetches := cl.PollFetches(ctx)
		now := time.Now()
		p.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) {
			if !strings.HasPrefix(string(r.Key), "other") {
				p.closes.Add(1)
				return
			}
			p.seen.Add(1)
			fields := strings.Split(strings.Trim(string(r.Value), `"`), "-")
			var opened int64
			if _, err := fmt.Sscan(fields[len(fields)-3], &opened); err == nil && fields[len(fields)-4] == "1" {
				p.delays = append(p.delays, now.Sub(time.UnixMilli(opened)))
			}
		})
		p.mu.Unlock()
	}
}
