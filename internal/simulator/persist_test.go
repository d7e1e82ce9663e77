package simulator

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/truth"
)

// logged is what a topic's partitions hold, as lines of acknowledgements.
func logged(byTopic map[string][][]*kgo.Record) map[string]bool {
	lines := make(map[string]bool)
	for _, partitions := range byTopic {
		for _, records := range partitions {
			for _, r := range records {
				h := fnv.New64a()
				h.Write(r.Value)
				lines[fmt.Sprintf("%s %d %d %016x", r.Topic, r.Partition, r.Offset, h.Sum64())] = true
			}
		}
	}
	return lines
}

// ends is how many records the input topics have.
func ends(t *testing.T, brokers []string) (n int64) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	offsets, err := kadm.NewClient(client).ListEndOffsets(t.Context(), "im.connections", "im.messages")
	if err := errors.Join(err, offsets.Error()); err != nil {
		t.Fatal(err)
	}
	offsets.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n
}

func linesOf(t *testing.T, acks *bytes.Buffer) map[string]bool {
	t.Helper()
	lines := make(map[string]bool)
	scanner := bufio.NewScanner(acks)
	for scanner.Scan() {
		if lines[scanner.Text()] {
			t.Errorf("%s is acknowledged twice", scanner.Text())
		}
		lines[scanner.Text()] = true
	}
	return lines
}

func TestAcksAreWhatKafkaHas(t *testing.T) {
	for _, persist := range []bool{false, true} {
		_, cfg := start(t)
		cfg.Persist = persist
		var acks bytes.Buffer
		summary, err := Run(t.Context(), cfg, Deps{Acks: &acks})
		if err != nil {
			t.Fatal(err)
		}
		records := stored(t, cfg.Brokers, summary.Connections+summary.Messages)
		if diff := gocmp.Diff(logged(records), linesOf(t, &acks)); diff != "" {
			t.Errorf("persist %t: lines (-Kafka +acknowledged):\n%s", persist, diff)
		}
	}
}

// refusing has produce requests fail with an error while refuse says so.
func refusing(cluster *kfake.Cluster, refusal *kerr.Error, refuse func() bool) {
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if !refuse() {
			return nil, nil, false
		}
		return kafkatest.Refuse(req, refusal.Code), nil, true
	})
}

func TestPersistCountsRefusedRecordsAndGoesOn(t *testing.T) {
	cluster, cfg := start(t)
	cfg.Persist = true
	var produced atomic.Int32
	refusing(cluster, kerr.TopicAuthorizationFailed, func() bool { return produced.Add(1)%5 == 0 })
	var acks bytes.Buffer
	summary, err := Run(t.Context(), cfg, Deps{Acks: &acks})
	if err != nil {
		t.Fatal(err)
	}
	written := summary.Connections + summary.Messages
	if summary.Doubtful == 0 || written == 0 || written+summary.Doubtful < 3_040 {
		t.Errorf("summary = %+v, want 3040 and more records, some of them doubtful", summary)
	}
	if diff := gocmp.Diff(logged(stored(t, cfg.Brokers, written)), linesOf(t, &acks)); diff != "" {
		t.Errorf("lines (-Kafka +acknowledged):\n%s", diff)
	}
}

// TestPersistWaitsForLeaders has all partitions lose their leaders, for longer than sarama looks for one in other runs.
func TestPersistWaitsForLeaders(t *testing.T) {
	t.Parallel()
	cluster, cfg := start(t)
	cfg.Persist = true
	cfg.Churn, cfg.Rate = 1_000, 2_000
	var since atomic.Int64 // when they were lost, Unix ns
	leaderless := func() bool {
		since.CompareAndSwap(0, time.Now().UnixNano())
		return time.Since(time.Unix(0, since.Load())) < 7*time.Second
	}
	var produced atomic.Int32
	refusing(cluster, kerr.NotLeaderForPartition, func() bool { return produced.Add(1) > 20 && leaderless() })
	cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if since.Load() == 0 || !leaderless() {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.MetadataResponse)
		host, port, err := net.SplitHostPort(cfg.Brokers[0])
		if err != nil {
			t.Error(err)
		}
		broker := kmsg.NewMetadataResponseBroker()
		broker.Host = host
		if _, err := fmt.Sscan(port, &broker.Port); err != nil {
			t.Error(err)
		}
		resp.Brokers = append(resp.Brokers, broker)
		for _, topic := range req.(*kmsg.MetadataRequest).Topics {
			rt := kmsg.NewMetadataResponseTopic()
			rt.Topic, rt.TopicID = topic.Topic, topic.TopicID
			for p := range int32(partitions) {
				rp := kmsg.NewMetadataResponseTopicPartition()
				rp.Partition, rp.Leader, rp.ErrorCode = p, -1, kerr.LeaderNotAvailable.Code
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	var acks bytes.Buffer
	summary, err := Run(t.Context(), cfg, Deps{Acks: &acks})
	if err != nil {
		t.Fatal(err)
	}
	if summary.Messages != 2_000 || summary.Doubtful != 0 || summary.Seconds < 6 {
		t.Errorf("summary = %+v, want all acknowledged, after 7 s", summary)
	}
	if n := int64(len(linesOf(t, &acks))); n != summary.Connections+summary.Messages {
		t.Errorf("%d records are acknowledged, the summary is %+v", n, summary)
	}
}

// TestEndWaitsForWhatIsTriedAgain has all that was sent still be refused, with an error that retries mend, when the run ends.
func TestEndWaitsForWhatIsTriedAgain(t *testing.T) {
	for _, persist := range []bool{false, true} {
		cluster, cfg := start(t)
		cfg.Persist, cfg.Connections, cfg.Messages = persist, 100, 100
		var since atomic.Int64 // Unix ns
		var begun atomic.Bool  // the residents' onlines are not refused
		refusing(cluster, kerr.NotLeaderForPartition, func() bool {
			if !begun.Load() {
				return false
			}
			since.CompareAndSwap(0, time.Now().UnixNano())
			return time.Since(time.Unix(0, since.Load())) < time.Second
		})
		summary, err := Run(t.Context(), cfg, Deps{Settled: func(context.Context, int64) bool { begun.Store(true); return true }})
		if err != nil || summary.Messages != 100 || summary.Doubtful != 0 || since.Load() == 0 {
			t.Errorf("persist %t: Run = %+v, %v, want all acknowledged", persist, summary, err)
		}
	}
}

// outage is a network that breaks all its connections now and then, and lets none be made for a while.
type outage struct {
	mu    sync.Mutex
	until time.Time
	conns []net.Conn
}

func (o *outage) dial(ctx context.Context, network, host string) (net.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Now().Before(o.until) {
		return nil, errors.New("no route")
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, host)
	if err == nil {
		o.conns = append(o.conns, conn)
	}
	return conn, err
}

func (o *outage) begin(length time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.until = time.Now().Add(length)
	for _, conn := range o.conns {
		conn.Close()
	}
	o.conns = nil
}

// TestPersistOutlivesOutages cuts the run off from its brokers.
func TestPersistOutlivesOutages(t *testing.T) {
	t.Parallel()
	_, cfg := start(t, kfake.NumBrokers(3))
	cfg.Persist = true
	cfg.Churn, cfg.Rate, cfg.Connections, cfg.Messages = 300, 600, 2_000, 4_000
	var network outage
	cfg.Dialer = network.dial
	ctx, cancel := context.WithCancel(t.Context())
	var outages sync.WaitGroup
	outages.Go(func() {
		for _, length := range []time.Duration{0, 300 * time.Millisecond, 4 * time.Second, 0, 0} {
			if !sleep(ctx, 700*time.Millisecond) {
				return
			}
			network.begin(length)
			if !sleep(ctx, length) {
				return
			}
		}
	})
	var acks bytes.Buffer
	summary, err := Run(t.Context(), cfg, Deps{Acks: &acks})
	cancel()
	outages.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if summary.Messages != 4_000 || summary.Doubtful != 0 {
		t.Errorf("summary = %+v, want all acknowledged", summary)
	}
	acknowledged := linesOf(t, &acks)
	if n := int64(len(acknowledged)); n != summary.Connections+summary.Messages {
		t.Errorf("%d records are acknowledged, the summary is %+v", n, summary)
	}
	// What was written and its answer cut off is written again: Kafka may have more, and must not have less.
	inKafka := logged(stored(t, cfg.Brokers, ends(t, cfg.Brokers)))
	for line := range acknowledged {
		if !inKafka[line] {
			t.Errorf("%s is acknowledged and not in Kafka", line)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func TestPersistUsesNewPartitions(t *testing.T) {
	t.Parallel()
	_, cfg := start(t)
	cfg.Persist = true
	cfg.Connections, cfg.Messages, cfg.Churn, cfg.Rate = 0, 0, 500, 500
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	found := &finds{text: fmt.Sprintf("im.messages %d ", partitions), found: cancel}
	grow := func(ctx context.Context, _ int64) bool {
		req := kmsg.NewCreatePartitionsRequest()
		topic := kmsg.NewCreatePartitionsRequestTopic()
		topic.Topic, topic.Count = "im.messages", partitions+1
		req.Topics = append(req.Topics, topic)
		resp, err := req.RequestWith(ctx, client)
		if err != nil || resp.Topics[0].ErrorCode != 0 {
			t.Errorf("add a partition: %+v, %v", resp, err)
		}
		return true
	}
	if _, err := Run(ctx, cfg, Deps{Acks: found, Settled: grow}); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(context.Cause(ctx), context.Canceled) {
		t.Error("nothing is written to the new partition")
	}
}

// finds calls found once the text was written.
type finds struct {
	text  string
	found func()
}

func (f *finds) Write(p []byte) (int, error) {
	if strings.Contains(string(p), f.text) {
		f.found()
	}
	return len(p), nil
}

func TestPersistRefusesATruth(t *testing.T) {
	_, cfg := start(t)
	cfg.Persist = true
	if _, err := Run(t.Context(), cfg, Deps{Truth: new(truth.Truth)}); err == nil || !strings.HasPrefix(err.Error(), "truth") {
		t.Errorf("Run = %v, want an error about the truth", err)
	}
}

// TestPersistEndsWhileBrokersHang stops a run when all that sarama does waits for brokers that do not answer, its look for new
// partitions too.
func TestPersistEndsWhileBrokersHang(t *testing.T) {
	t.Parallel()
	_, cfg := start(t)
	cfg.Persist = true
	cfg.Connections, cfg.Messages, cfg.Churn, cfg.Rate = 0, 0, 1_000, 1_000
	cfg.FlushTimeout = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var hung atomic.Bool
	cfg.Dialer = func(ctx context.Context, network, host string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, host)
		return hangingConn{conn, &hung, func() {}}, err
	}
	var stopped time.Time
	var stopping sync.WaitGroup
	stopping.Go(func() {
		sleep(ctx, time.Second)
		hung.Store(true)
		sleep(ctx, persistRefresh+time.Second)
		stopped = time.Now()
		cancel()
	})
	var acks bytes.Buffer
	summary, err := Run(ctx, cfg, Deps{Acks: &acks})
	stopping.Wait()
	if took := time.Since(stopped); err != nil || took > 10*time.Second || summary.Doubtful == 0 {
		t.Errorf("Run = %+v, %v, %s after it was stopped; want some doubtful records, soon", summary, err, took)
	}
	if n := int64(len(linesOf(t, &acks))); n == 0 || n != summary.Connections+summary.Messages {
		t.Errorf("%d records are acknowledged, the summary is %+v", n, summary)
	}
}
