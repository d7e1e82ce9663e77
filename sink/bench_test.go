package sink

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/ops"
	"github.com/offhook/offhook/schemas"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The benchmarks run on kfake, or on the brokers that OFFHOOK_TEST_BROKERS names. Each compares within one run, since what a
// machine does changes from one to the next:
//
//	go test ./sink -run '^$' -bench . -benchtime 1x

// benchFixture makes the owned topics with some partitions.
func benchFixture(b *testing.B, partitions int32) *fixture {
	c := kafkatest.Bench(b)
	f := &fixture{Cluster: c, topics: kafka.NewTopics(c.Prefix)}
	var err error
	f.owned, err = kafka.Ensure(b.Context(), c.Client(b), kafka.Spec{
		Topics: f.topics, Create: true, Partitions: partitions, ReplicationFactor: -1, EventRetention: time.Hour, MaxRecordBytes: 1 << 20,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	return f
}

// benchEndpoint counts the events that it takes, each after a delay, and keeps how long they took from their production on.
type benchEndpoint struct {
	*httptest.Server
	delay  time.Duration
	down   atomic.Bool
	taken  atomic.Int64
	mu     sync.Mutex
	delays []time.Duration
}

// benchItem is a msg.offline item that says when it was made.
func benchItem(i int) []byte {
	return fmt.Appendf(nil, `{"header":{"no_persist":0,"red_dot":1,"sync_once":0},"setting":0,"message_id":%d,"message_idstr":"%d","client_msg_no":"bench-%d",`+
		`"message_seq":%d,"from_uid":"user-%08d","channel_id":"user-%08d","channel_type":1,"timestamp":1767225600,"payload":"%s","to_uids":["user-%08d"],"made":%d}`,
		i, i, i, i, i, i, strings.Repeat("aGVs", 16), i, time.Now().UnixNano())
}

func newBenchEndpoint(b *testing.B, delay time.Duration) *benchEndpoint {
	e := &benchEndpoint{delay: delay}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if e.down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if e.delay > 0 {
			time.Sleep(e.delay)
		}
		now := time.Now().UnixNano()
		n := 0
		var delays []time.Duration
		for text := string(body); ; n++ {
			_, rest, ok := strings.Cut(text, `"made":`)
			if !ok {
				break
			}
			digits, after, _ := strings.Cut(rest, "}")
			made, err := strconv.ParseInt(digits, 10, 64)
			if err != nil {
				panic(err)
			}
			delays, text = append(delays, time.Duration(now-made)), after
		}
		e.mu.Lock()
		e.delays = append(e.delays, delays...)
		e.mu.Unlock()
		e.taken.Add(int64(n))
	}))
	b.Cleanup(e.Close)
	return e
}

// take are the delays since the last call.
func (e *benchEndpoint) take() []time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	delays := e.delays
	e.delays = nil
	return delays
}

func p99(delays []time.Duration) time.Duration {
	if len(delays) == 0 {
		return 0
	}
	slices.Sort(delays)
	return delays[len(delays)*99/100]
}

// rate is the events a second that the endpoint takes for some time.
func (e *benchEndpoint) rate(length time.Duration) float64 {
	before, began := e.taken.Load(), time.Now()
	time.Sleep(length)
	return float64(e.taken.Load()-before) / time.Since(began).Seconds()
}

// offline writes n msg.offline events, of distinct recipients, to the first partitions.
func (f *fixture) offline(b *testing.B, partitions int32, n int) {
	b.Helper()
	client := f.Client(b, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := range n {
		client.Produce(b.Context(), &kgo.Record{
			Topic: f.topics.Offline, Partition: int32(i) % partitions, Value: benchItem(i), Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
		}, func(_ *kgo.Record, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	if err := client.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// steady writes rate msg.offline events a second until stop is called.
func (f *fixture) steady(b *testing.B, partitions int32, rate int) (stop func()) {
	client := f.Client(b, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(time.Millisecond))
	ctx, cancel := context.WithCancel(b.Context())
	var done sync.WaitGroup
	done.Go(func() {
		began := time.Now()
		for i := 0; ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
			for ; i < int(time.Since(began).Seconds()*float64(rate)); i++ {
				client.Produce(ctx, &kgo.Record{
					Topic: f.topics.Offline, Partition: int32(i) % partitions, Value: benchItem(i), Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
				}, nil)
			}
		}
	})
	return func() { cancel(); done.Wait() }
}

func (f *fixture) benchConfig(e *benchEndpoint) Config {
	cfg := f.config(&endpoint{Server: e.Server})
	cfg.Events, cfg.BatchMax, cfg.FlushInterval = []schemas.Event{schemas.EventOffline}, 100, 100*time.Millisecond
	return cfg
}

func (f *fixture) run(b *testing.B, cfg Config) (stop func()) {
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, cfg, Deps{
			Kafka: f.Config(), Topics: f.topics, Owned: f.owned, Log: slog.New(slog.DiscardHandler),
			Registerer: prometheus.NewRegistry(), Stage: ops.NewHealth().Stage("sink"),
		})
	}()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}
}

// BenchmarkLane measures one partition with an endpoint of 50 ms and no shared uids: events a second with several batches in
// flight, and their ratio to one; in batches of 100, and one object a request.
func BenchmarkLane(b *testing.B) {
	for _, body := range []string{"array", "object"} {
		var one float64
		for _, inFlight := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("%s/inflight=%d", body, inFlight), func(b *testing.B) {
				for range b.N {
					f := benchFixture(b, 1)
					e := newBenchEndpoint(b, 50*time.Millisecond)
					cfg := f.benchConfig(e)
					cfg.LaneInFlight, cfg.OfflineObject = inFlight, body == "object"
					n := 200_000
					if cfg.OfflineObject {
						n = 5_000
					}
					f.offline(b, 1, n)
					stop := f.run(b, cfg)
					kafkatest.Wait(b, 20*time.Second, "the first events", func() bool { return e.taken.Load() > 0 })
					rate := e.rate(5 * time.Second)
					stop()
					if inFlight == 1 {
						one = rate
					}
					b.ReportMetric(rate, "events/s")
					b.ReportMetric(rate/one, "of-one")
					b.ReportMetric(0, "ns/op")
				}
			})
		}
	}
}

// BenchmarkRecovery measures 64 lanes with a backlog whose endpoint is down for a while: the rate from 0 to 2 s after its first
// success, and in the two seconds after those, each as a part of the rate before.
func BenchmarkRecovery(b *testing.B) {
	for range b.N {
		f := benchFixture(b, 64)
		e := newBenchEndpoint(b, 20*time.Millisecond)
		cfg := f.benchConfig(e)
		cfg.LaneInFlight, cfg.BatchMax = 8, 10
		f.offline(b, 64, 400_000)
		stop := f.run(b, cfg)
		kafkatest.Wait(b, 20*time.Second, "the first events", func() bool { return e.taken.Load() > 10_000 })
		before := e.rate(3 * time.Second)
		e.down.Store(true)
		time.Sleep(10 * time.Second)
		taken := e.taken.Load()
		e.down.Store(false)
		for e.taken.Load() == taken {
			time.Sleep(time.Millisecond)
		}
		first := e.rate(2 * time.Second)
		second := e.rate(2 * time.Second)
		stop()
		b.ReportMetric(before, "events/s")
		b.ReportMetric(first/before, "of-before-0-2s")
		b.ReportMetric(second/before, "of-before-2-4s")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkTwoSinks measures a sink beside another, at a steady rate: its events a second and p99 from production to the
// endpoint while the other's endpoint is down for a minute, each in relation to half a minute before and half a minute after.
func BenchmarkTwoSinks(b *testing.B) {
	for range b.N {
		f := benchFixture(b, 12)
		mine, other := newBenchEndpoint(b, 5*time.Millisecond), newBenchEndpoint(b, 5*time.Millisecond)
		cfg, otherCfg := f.benchConfig(mine), f.benchConfig(other)
		cfg.LaneInFlight, otherCfg.LaneInFlight = 8, 8
		otherCfg.Name, otherCfg.Start = "other", Start{kind: startEarliest}
		stops := []func(){f.run(b, cfg), f.run(b, otherCfg)}
		traffic := f.steady(b, 12, 2000)
		time.Sleep(10 * time.Second) // both have joined, and caught up
		mine.take()
		before := mine.rate(30 * time.Second)
		up := mine.take()
		other.down.Store(true)
		time.Sleep(time.Second)
		mine.take()
		during := mine.rate(time.Minute)
		down := mine.take()
		other.down.Store(false)
		kafkatest.Wait(b, time.Minute, "the other to catch up", func() bool { return other.taken.Load() >= mine.taken.Load()-2000 })
		mine.take()
		after := mine.rate(30 * time.Second)
		up = append(up, mine.take()...)
		traffic()
		for _, stop := range stops {
			stop()
		}
		b.ReportMetric((before+after)/2, "events/s")
		b.ReportMetric(p99(up).Seconds()*1000, "p99-ms")
		b.ReportMetric(during/((before+after)/2), "rate-other-down")
		b.ReportMetric(p99(down).Seconds()/p99(up).Seconds(), "p99-other-down")
		b.ReportMetric(0, "ns/op")
	}
}
