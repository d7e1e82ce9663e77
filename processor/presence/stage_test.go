package presence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/processor/route"
	"github.com/offhook/offhook/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipeline is a cluster with all topics, on which processes of route and presence are run.
type pipeline struct {
	*testing.T
	*kafkatest.Cluster
	route    route.Config
	presence Config
	topics   kafka.Topics
	owned    kafka.Owned
	log      *slog.Logger
	adm      *kadm.Client
	now      int64 // of the next event, Unix ms
}

func newPipeline(t *testing.T, c *kafkatest.Cluster) *pipeline {
	t.Helper()
	var out slog.Handler = slog.DiscardHandler
	if os.Getenv("OFFHOOK_TEST_LOG") != "" {
		out = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
	}
	cl := c.Client(t)
	p := &pipeline{
		T: t, Cluster: c, topics: kafka.NewTopics(c.Prefix), log: slog.New(out), adm: kadm.NewClient(cl), now: time.Now().UnixMilli(),
		route: route.Config{
			ConnectionsTopics: []string{c.Prefix + ".in.connections"}, MessagesTopics: []string{c.Prefix + ".in.messages"},
			MessagesStart: route.Earliest, Prefix: c.Prefix, CommitInterval: 50 * time.Millisecond,
		},
		presence: Config{
			Prefix: c.Prefix, CommitInterval: 50 * time.Millisecond, CloseMemory: 10 * time.Minute, purgeEvery: time.Hour,
		},
	}
	owned, err := kafka.Ensure(t.Context(), cl, kafka.Spec{
		Topics: p.topics, Create: true, Partitions: 4, ReplicationFactor: -1, EventRetention: time.Hour, MaxRecordBytes: 1 << 20,
	}, p.log)
	if err != nil {
		t.Fatal(err)
	}
	p.owned = owned
	c.CreateTopic(t, p.connections(), 4, "max.message.bytes=8000000")
	c.CreateTopic(t, p.messages(), 4, "max.message.bytes=8000000")
	return p
}

func (p *pipeline) connections() string { return p.route.ConnectionsTopics[0] }
func (p *pipeline) messages() string    { return p.route.MessagesTopics[0] }

// process is a stage that runs.
type process struct {
	reg  *prometheus.Registry
	done chan struct{}
	err  error
	stop func()
}

func (p *pipeline) start(run func(context.Context, *prometheus.Registry) error) *process {
	ps := &process{reg: prometheus.NewRegistry(), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(ps.done)
		ps.err = run(ctx, ps.reg)
	}()
	ps.stop = func() { cancel(); <-ps.done }
	p.Cleanup(ps.stop)
	return ps
}

func (p *pipeline) startRoute() *process {
	return p.start(func(ctx context.Context, reg *prometheus.Registry) error {
		return route.Run(ctx, p.route, route.Deps{Kafka: p.Config(), Topics: p.topics, Owned: p.owned, Log: p.log, Registerer: reg})
	})
}

func (p *pipeline) startPresence() *process {
	return p.start(func(ctx context.Context, reg *prometheus.Registry) error {
		return Run(ctx, p.presence, Deps{Kafka: p.Config(), Topics: p.topics, Owned: p.owned, Log: p.log, Registerer: reg})
	})
}

func (ps *process) metric(name string) float64 {
	families, err := ps.reg.Gather()
	if err != nil {
		panic(err)
	}
	sum := 0.0
	name, label, _ := strings.Cut(name, "/")
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, s := range f.GetMetric() {
			match := label == ""
			for _, l := range s.GetLabel() {
				match = match || l.GetValue() == label
			}
			if match {
				sum += s.GetCounter().GetValue() + s.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// event writes a connection event; fields that are not given are left out, and the time rises from one to the next.
func (p *pipeline) event(typ, uid string, fields map[string]any) *kgo.Record {
	p.Helper()
	p.now++
	m := map[string]any{"type": typ, "timestamp": p.now}
	if uid != "" {
		m["uid"] = uid
	}
	maps.Copy(m, fields)
	value, err := json.Marshal(m)
	if err != nil {
		p.Fatal(err)
	}
	return &kgo.Record{Topic: p.connections(), Key: []byte(uid), Partition: kafka.Partition(uid, 4), Value: value}
}

func dev(id, node any, more ...any) map[string]any {
	m := map[string]any{"conn_id": id, "node_id": node}
	for i := 0; i < len(more); i += 2 {
		m[more[i].(string)] = more[i+1]
	}
	return m
}

// items are the user.onlinestatus items by uid, in order.
func (p *pipeline) items() map[string][]string {
	p.Helper()
	got := make(map[string][]string)
	for _, r := range p.ReadAll(p.T, p.topics.OnlineStatus) {
		var item string
		if err := json.Unmarshal(r.Value, &item); err != nil {
			p.Fatal(err)
		}
		uid := string(r.Key)
		if r.Partition != kafka.Partition(uid, 4) || !strings.HasPrefix(item, uid+"-") || headersText(r) != "v=1" {
			p.Fatalf("%s in partition %d under key %q with headers %s", item, r.Partition, uid, headersText(r))
		}
		got[uid] = append(got[uid], item)
	}
	return got
}

func headersText(r *kgo.Record) string {
	var b strings.Builder
	for _, h := range r.Headers {
		fmt.Fprintf(&b, "%s=%s ", h.Key, h.Value)
	}
	return strings.TrimSpace(b.String())
}

func count(m map[string][]string) (n int) {
	for _, v := range m {
		n += len(v)
	}
	return n
}

// expect waits until the user.onlinestatus items are these.
func (p *pipeline) expect(want map[string][]string) {
	p.Helper()
	var got map[string][]string
	kafkatest.Wait(p.T, 60*time.Second, fmt.Sprintf("%d items of user.onlinestatus", count(want)), func() bool {
		got = p.items()
		return count(got) >= count(want)
	})
	if diff := cmp.Diff(want, got); diff != "" {
		p.Fatalf("user.onlinestatus (-want +got):\n%s", diff)
	}
}

// pushed are the offline recipients by client_msg_no, sorted.
func (p *pipeline) pushed() map[string][]string {
	p.Helper()
	got := make(map[string][]string)
	for _, r := range p.ReadAll(p.T, p.topics.Offline) {
		var item struct {
			No string   `json:"client_msg_no"`
			To []string `json:"to_uids"`
		}
		if err := json.Unmarshal(r.Value, &item); err != nil {
			p.Fatal(err)
		}
		for _, uid := range item.To {
			if kafka.Partition(uid, 4) != r.Partition {
				p.Fatalf("%s in partition %d", uid, r.Partition)
			}
		}
		if r.Key != nil {
			p.Fatalf("msg.offline under key %q", r.Key)
		}
		got[item.No] = append(got[item.No], item.To...)
	}
	for _, uids := range got {
		slices.Sort(uids)
	}
	return got
}

func (p *pipeline) message(no string, fields map[string]any) *kgo.Record {
	fields["client_msg_no"] = no
	value, err := json.Marshal(fields)
	if err != nil {
		p.Fatal(err)
	}
	return &kgo.Record{Topic: p.messages(), Key: []byte("k"), Value: value}
}

func TestAcceptanceTable(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPipeline(t, c)
		p.startRoute()
		ps := p.startPresence()
		var want []string
		step := func(item string, r *kgo.Record) {
			t.Helper()
			r.Key = []byte("one partition") // of the input, for the order
			r.Partition = 1
			p.Produce(t, r)
			if item != "" {
				want = append(want, item)
				p.expect(map[string][]string{"uid1": want})
			}
		}
		web, app := 1, 0
		step("uid1-1-1-1001-1-1", p.event("online", "uid1", dev(1001, 1, "device_flag", web)))
		step("uid1-1-1-1002-2-2", p.event("online", "uid1", dev(1002, 1, "device_flag", web)))
		step("uid1-0-1-1001-1-3", p.event("online", "uid1", dev(1001, 2, "device_flag", app)))
		step("", p.event("online", "uid1", dev(1001, 2, "device_flag", app)))
		step("uid1-1-0-1001-1-2", p.event("offline", "uid1", dev(1001, 1)))
		step("", p.event("offline", "uid1", dev(1001, 1)))
		step("", p.event("heartbeat", "uid1", dev(7, 1)))
		step("uid1-0-0-1001-0-1", p.event("node_started", "", map[string]any{"node_id": 2}))
		step("uid1-1-0-1002-0-0", p.event("offline", "uid1", dev(1002, 1)))
		step("", p.event("online", "uid1", dev(1002, 1, "device_flag", web, "timestamp", p.now-5*60_000)))
		step("uid1-1-1-1003-1-1", p.event("heartbeat", "uid1", dev(1003, 1, "device_flag", web)))
		if got := ps.metric("offhook_presence_connections"); got != 1 {
			t.Errorf("%v connections, want 1", got)
		}

		p.Produce(t, p.event("online", "uid3", dev(1, 1)))
		kafkatest.Wait(t, 30*time.Second, "uid3 is online", func() bool { return len(p.items()["uid3"]) == 1 })
		p.Produce(t, p.message("m1", map[string]any{"channel_id": "g", "channel_type": 2, "from_uid": "uid1", "to_uids": []string{"uid1", "uid2", "uid2", "uid3"}}))
		p.Produce(t, p.message("m2", map[string]any{"channel_id": "uid9", "channel_type": 1, "from_uid": "uid1"}))
		kafkatest.Wait(t, 30*time.Second, "two pushes", func() bool { return len(p.pushed()) == 2 })
		if diff := cmp.Diff(map[string][]string{"m1": {"uid2"}, "m2": {"uid9"}}, p.pushed()); diff != "" {
			t.Errorf("msg.offline (-want +got):\n%s", diff)
		}
		if n := len(p.ReadAll(t, p.topics.Notify)); n != 2 {
			t.Errorf("%d events of msg.notify, want 2", n)
		}
		if n := len(p.ReadAll(t, p.topics.DeadLetters)); n != 0 {
			t.Errorf("%d dead letters", n)
		}
	})
}

// traffic makes connection events of random users, and the items that must come of them by a model of its own.
type traffic struct {
	p     *pipeline
	rng   *rand.Rand
	users map[string]map[int]int // conn_id → flag
	want  map[string][]string
	next  int
}

func newTraffic(p *pipeline, seed uint64) *traffic {
	return &traffic{p: p, rng: rand.New(rand.NewPCG(seed, 1)), users: map[string]map[int]int{}, want: map[string][]string{}}
}

func (tr *traffic) send(n int) {
	var rs []*kgo.Record
	for range n {
		uid := fmt.Sprintf("user%d", tr.rng.IntN(40))
		conns := tr.users[uid]
		if conns == nil {
			conns = map[int]int{}
			tr.users[uid] = conns
		}
		var id, flag, online int
		if ids := sortedKeys(conns); len(ids) > 0 && tr.rng.IntN(2) == 0 {
			id = ids[tr.rng.IntN(len(ids))]
			flag = conns[id]
			delete(conns, id)
			rs = append(rs, tr.p.event("offline", uid, dev(id, 1)))
		} else {
			tr.next++
			id, flag, online = tr.next, tr.rng.IntN(3), 1
			conns[id] = flag
			rs = append(rs, tr.p.event("online", uid, dev(id, 1, "device_flag", flag)))
		}
		device := 0
		for _, f := range conns {
			if f == flag {
				device++
			}
		}
		tr.want[uid] = append(tr.want[uid], fmt.Sprintf("%s-%d-%d-%d-%d-%d", uid, flag, online, id, device, len(conns)))
	}
	tr.p.Produce(tr.p.T, rs...)
}

func sortedKeys(m map[int]int) (keys []int) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func TestRestartRestores(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPipeline(t, c)
		p.startRoute()
		tr := newTraffic(p, 1)
		for range 3 {
			ps := p.startPresence()
			tr.send(300)
			p.expect(tr.want)
			ps.stop()
			if ps.err != nil {
				t.Fatal(ps.err)
			}
		}
	})
}

func TestTwoProcessesShareAndMove(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPipeline(t, c)
		p.startRoute()
		a := p.startPresence()
		tr := newTraffic(p, 2)
		tr.send(100)
		p.expect(tr.want)
		for range 2 {
			b, second := p.startPresence(), p.startRoute()
			kafkatest.Wait(t, 60*time.Second, "the second process has restored partitions, under traffic", func() bool {
				tr.send(20)
				select {
				case <-b.done:
					t.Fatal(b.err)
				default:
				}
				return b.metric("offhook_presence_connections") > 0
			})
			tr.send(100)
			b.stop()
			second.stop()
			tr.send(100)
		}
		p.expect(tr.want)
		if got := a.metric("offhook_sessions_total"); got != 1 {
			t.Errorf("%v sessions, want 1", got)
		}
	})
}

// Whatever a transaction ends by, the same events come out once and the table is right afterwards.
func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name string
		key  kmsg.Key
		code *kerr.Error
	}{
		{"EndTxn", kmsg.EndTxn, kerr.TransactionAbortable},
		{"EndTxn", kmsg.EndTxn, kerr.UnknownServerError},
		{"EndTxn", kmsg.EndTxn, kerr.ProducerFenced},
		{"TxnOffsetCommit", kmsg.TxnOffsetCommit, kerr.IllegalGeneration},
		{"TxnOffsetCommit", kmsg.TxnOffsetCommit, kerr.InvalidCommitOffsetSize},
		{"Produce", kmsg.Produce, kerr.InvalidRecord},
		{"Produce", kmsg.Produce, kerr.OutOfOrderSequenceNumber},
	} {
		t.Run(tt.name+" "+tt.code.Message, func(t *testing.T) {
			p := newPipeline(t, kafkatest.New(t))
			p.startRoute()
			p.startPresence()
			tr := newTraffic(p, 3)
			tr.send(100)
			p.expect(tr.want)
			var n atomic.Int32
			p.Fake.ControlKey(int16(tt.key), func(req kmsg.Request) (kmsg.Response, error, bool) {
				p.Fake.KeepControl()
				i := n.Add(1)
				if i%3 != 0 || i > 20 {
					return nil, nil, false
				}
				if r, ok := req.(*kmsg.ProduceRequest); ok && r.TransactionID == nil {
					return nil, nil, false
				}
				return kafkatest.Refuse(req, tt.code.Code), nil, true
			})
			for range 6 {
				tr.send(50)
				p.expect(tr.want)
			}
			if n.Load() < 6 {
				t.Errorf("%d requests met the fault's place, want more", n.Load())
			}
			p.Fake.ControlKey(int16(tt.key), func(kmsg.Request) (kmsg.Response, error, bool) { return nil, nil, false })
		})
	}
}

func TestManyRecipients(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPipeline(t, c)
		p.startRoute()
		p.startPresence()
		var to, want []string
		for i := range 20_000 {
			uid := fmt.Sprintf("recipient-%05d", i)
			to = append(to, uid)
			if i != 7 {
				want = append(want, uid)
			}
		}
		p.Produce(t, p.event("online", to[7], dev(1, 1)))
		kafkatest.Wait(t, 30*time.Second, "one is online", func() bool { return len(p.items()) == 1 })
		r := p.message("big", map[string]any{"channel_id": "g", "channel_type": 2, "from_uid": "a", "to_uids": to, "payload": strings.Repeat("QUJD", 160_000)})
		if n := len(r.Value); n < 1_000_000 || n > 1<<20 {
			t.Fatalf("the message has %d bytes", n)
		}
		p.Produce(t, r)
		kafkatest.Wait(t, 60*time.Second, "all pushes", func() bool { return len(p.pushed()["big"]) >= len(want) })
		if diff := cmp.Diff(want, p.pushed()["big"]); diff != "" {
			t.Errorf("recipients differ")
		}
	})
}

func TestUnusableInput(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPipeline(t, c)
		rt := p.startRoute()
		p.startPresence()
		big := p.Client(t, kgo.ProducerBatchMaxBytes(6_000_000), kgo.ProducerBatchCompression(kgo.NoCompression()))
		for _, r := range []*kgo.Record{
			{Topic: p.connections(), Value: []byte("no JSON")},
			{Topic: p.connections(), Value: []byte(`{"type":"away","uid":"u","conn_id":1}`)},
			{Topic: p.messages(), Value: []byte(`{"channel_id":7}`)},
			{Topic: p.messages(), Value: []byte(strings.Repeat("x", 2_000_000))},
			{Topic: p.messages(), Value: nil},
		} {
			if err := big.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		p.Produce(t, p.event("online", "uid1", dev(1, 1)))
		p.expect(map[string][]string{"uid1": {"uid1-0-1-1-1-1"}})
		kafkatest.Wait(t, 30*time.Second, "all are counted", func() bool {
			return rt.metric("offhook_route_dead_letters_total/invalid") == 3 && rt.metric("offhook_route_dead_letters_total/too_large") == 1 &&
				rt.metric("offhook_route_null_records_total") == 1
		})
		for _, r := range p.ReadAll(t, p.topics.DeadLetters) {
			headers := make([]schemas.Header, len(r.Headers))
			for i, h := range r.Headers {
				headers[i] = schemas.Header(h)
			}
			d, err := schemas.DecodeDeadLetter(r.Key, headers, r.Value)
			if err != nil {
				t.Fatal(err)
			}
			if d.TopicID == [16]byte{} || d.Source.Time == 0 || d.Detail == "" {
				t.Errorf("got %+v", d)
			}
			if d.Truncated != (d.Reason == schemas.ReasonTooLarge) || d.Truncated && (len(d.Value) != 64<<10 || d.Size < 2_000_000) {
				t.Errorf("%s: truncated %v, %d bytes, size %d", d.Reason, d.Truncated, len(d.Value), d.Size)
			}
		}
	})
}

func (p *pipeline) inboxStarts() (start, end int64) {
	p.Helper()
	starts, err1 := p.adm.ListStartOffsets(p.Context(), p.topics.Inbox)
	ends, err2 := p.adm.ListEndOffsets(p.Context(), p.topics.Inbox)
	if err := errors.Join(err1, err2, starts.Error(), ends.Error()); err != nil {
		p.Fatal(err)
	}
	starts.Each(func(o kadm.ListedOffset) { start += o.Offset })
	ends.Each(func(o kadm.ListedOffset) { end += o.Offset })
	return start, end
}

func TestPurge(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPipeline(t, c)
		p.presence.purgeEvery = 100 * time.Millisecond
		p.startRoute()
		ps := p.startPresence()
		tr := newTraffic(p, 4)
		tr.send(200)
		p.expect(tr.want)
		kafkatest.Wait(t, 30*time.Second, "the inbox is purged", func() bool {
			start, end := p.inboxStarts()
			return end >= 200 && end-start <= 4 // the commit marker at each end
		})
		kafkatest.Wait(t, 30*time.Second, "it is counted", func() bool { return ps.metric("offhook_presence_purged_records_total") >= 196 })
		ps.stop()
		// What is not consumed stays.
		_, before := p.inboxStarts()
		tr.send(50)
		kafkatest.Wait(t, 30*time.Second, "route has written", func() bool { _, end := p.inboxStarts(); return end >= before+50 })
		ps = p.startPresence()
		p.expect(tr.want)
		ps.stop()

		// With INBOX_KEEP nothing that is younger goes.
		p.presence.InboxKeep = time.Hour
		start, _ := p.inboxStarts()
		ps = p.startPresence()
		tr.send(50)
		p.expect(tr.want)
		own := purger{adm: p.adm, topic: p.topics.Inbox, group: p.Prefix + ".presence", keep: time.Hour, done: map[int32]int64{}}
		if _, err := own.purge(t.Context(), []int32{0, 1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		if kept, _ := p.inboxStarts(); kept != start {
			t.Errorf("the log's starts moved from %d to %d in sum", start, kept)
		}
	})
}

func TestPurgeFailureIsNotFatal(t *testing.T) {
	p := newPipeline(t, kafkatest.New(t))
	p.presence.purgeEvery = 50 * time.Millisecond
	p.Fake.ControlKey(int16(kmsg.DeleteRecords), func(req kmsg.Request) (kmsg.Response, error, bool) {
		p.Fake.KeepControl()
		r := req.(*kmsg.DeleteRecordsRequest)
		resp := r.ResponseKind().(*kmsg.DeleteRecordsResponse)
		for _, t := range r.Topics {
			st := kmsg.NewDeleteRecordsResponseTopic()
			st.Topic = t.Topic
			for _, part := range t.Partitions {
				sp := kmsg.NewDeleteRecordsResponseTopicPartition()
				sp.Partition, sp.ErrorCode = part.Partition, kerr.TopicAuthorizationFailed.Code
				st.Partitions = append(st.Partitions, sp)
			}
			resp.Topics = append(resp.Topics, st)
		}
		return resp, nil, true
	})
	p.startRoute()
	ps := p.startPresence()
	tr := newTraffic(p, 5)
	tr.send(20)
	p.expect(tr.want)
	kafkatest.Wait(t, 30*time.Second, "failures are counted", func() bool { return ps.metric("offhook_presence_purge_failures_total") > 1 })
	tr.send(20)
	p.expect(tr.want)
}

// Offhook's own topics hold nothing that may be skipped.
func TestStrangeInboxRecordEndsTheStage(t *testing.T) {
	for _, tt := range []struct {
		name string
		rec  kgo.Record
		want string
	}{
		{"newer", kgo.Record{Value: []byte{9, 9, 9}, Headers: []kgo.RecordHeader{{Key: "v", Value: []byte("2")}}}, "run a release that knows it"},
		{"garbage", kgo.Record{Value: []byte{9, 9, 9}, Headers: []kgo.RecordHeader{{Key: "v", Value: []byte("1")}}}, "offset 0"},
		{"no version", kgo.Record{Value: []byte{1}}, "offset 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPipeline(t, kafkatest.New(t))
			tt.rec.Topic = p.topics.Inbox
			p.Produce(t, &tt.rec)
			ps := p.startPresence()
			select {
			case <-ps.done:
			case <-time.After(20 * time.Second):
				t.Fatal("the stage did not end")
			}
			if ps.err == nil || !strings.Contains(ps.err.Error(), tt.want) || !strings.Contains(ps.err.Error(), p.topics.Inbox) {
				t.Errorf("got %v, want an error that names the record and has %q", ps.err, tt.want)
			}
		})
	}
}

func TestStrangePresenceRecordEndsTheStage(t *testing.T) {
	known := schemas.AppendPresenceKey(nil, schemas.PresenceKey{Kind: schemas.PresenceConnection, UID: "u", NodeID: "1", ConnID: "1"})
	for name, r := range map[string]*kgo.Record{
		"an unknown kind": {Key: []byte{250}, Value: []byte{9}, Headers: []kgo.RecordHeader{{Key: "v", Value: []byte("1")}}},
		"a newer version": {Key: known, Headers: []kgo.RecordHeader{{Key: "v", Value: []byte("1000")}}},
		"no version":      {Key: known},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPipeline(t, kafkatest.New(t))
			r.Topic = p.topics.Presence
			p.Produce(t, r)
			ps := p.startPresence()
			select {
			case <-ps.done:
			case <-time.After(20 * time.Second):
				t.Fatal("the stage did not end")
			}
			if ps.err == nil || !strings.Contains(ps.err.Error(), p.topics.Presence) {
				t.Errorf("got %v, want an error that names the topic", ps.err)
			}
		})
	}
}

// A restore beside a transaction that is open and then aborted ends, without its records.
func TestRestoreBesideAnOpenTransaction(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPipeline(t, c)
		p.startRoute()
		ps := p.startPresence()
		tr := newTraffic(p, 6)
		tr.send(100)
		p.expect(tr.want)
		ps.stop()
		zombie := c.Client(t, kgo.TransactionalID(c.Prefix+"-zombie"), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionTimeout(30*time.Second))
		if err := zombie.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for part := range int32(4) {
			if err := zombie.ProduceSync(t.Context(), &kgo.Record{Topic: p.topics.Presence, Partition: part, Key: []byte{250}, Value: []byte{1}}).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		p.startPresence()
		tr.send(50)
		var aborting sync.WaitGroup
		aborting.Go(func() {
			time.Sleep(time.Second) // long enough for the restore to wait for it
			if err := zombie.EndTransaction(context.Background(), kgo.TryAbort); err != nil {
				t.Error(err)
			}
		})
		p.expect(tr.want)
		aborting.Wait()
	})
}

func TestMetricsAreClean(t *testing.T) {
	reg := prometheus.NewRegistry()
	if _, err := newMetrics(reg); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

// TestGatewayDies: a gateway with many connections is worked off over several transactions; each user's own closes come before its
// next event, and another user's events go on.
func TestGatewayDies(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPipeline(t, c)
		const users = 5 * closesAtOnce // in four partitions: more than one transaction each
		p.startRoute()
		ps := p.startPresence()
		records := make([]*kgo.Record, 0, users)
		want := make(map[string][]string)
		for i := range users {
			uid := fmt.Sprintf("user%d", i)
			records = append(records, p.event("online", uid, dev(i, "gw")))
			want[uid] = []string{fmt.Sprintf("%s-0-1-%d-1-1", uid, i), fmt.Sprintf("%s-0-0-%d-0-0", uid, i), fmt.Sprintf("%s-0-1-%d-1-1", uid, users+i)}
		}
		p.Produce(t, records...)
		kafkatest.Wait(t, time.Minute, "all online", func() bool { return ps.metric("offhook_presence_connections") == users })
		records = []*kgo.Record{p.event("node_started", "", map[string]any{"node_id": "gw"})}
		for i := range users {
			records = append(records, p.event("online", fmt.Sprintf("user%d", i), dev(users+i, "other")))
		}
		for _, r := range records {
			r.Partition = 0 // one input partition, and so one order
		}
		p.Produce(t, records...)
		p.expect(want)
		if n := ps.metric("offhook_presence_events_total/node_closing"); n < 1 {
			t.Error("all was closed in one transaction")
		}
	})
}
