package presence

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// inbox counts the inbox's heartbeats of whole nodes, and says whether the last caught_up record covers all partitions.
func (p *pipeline) inbox() (heartbeats int, covered bool) {
	p.Helper()
	for _, r := range p.ReadAll(p.T, p.topics.Inbox) {
		headers := make([]schemas.Header, len(r.Headers))
		for i, h := range r.Headers {
			headers[i] = schemas.Header(h)
		}
		in, err := schemas.DecodeInbox(headers, r.Value)
		if err != nil {
			p.Fatal(err)
		}
		switch {
		case in.Kind == schemas.InboxCaughtUp:
			covered = true
			for _, t := range in.CaughtUp.Topics {
				covered = covered && t.Partitions > 0 && len(t.Read) == int(t.Partitions)
			}
		case in.Kind == schemas.InboxConnection && in.Connection.Type == schemas.Heartbeat && in.Connection.UID == "":
			heartbeats++
		}
	}
	return heartbeats, covered
}

// While a time to live is being rolled out, processes without it read partitions too: what they read of nodes must be heard where
// another process says that all is read.
func TestNodeHeartbeatsThroughARollout(t *testing.T) {
	t.Parallel()
	c := kafkatest.New(t)
	p := newPipeline(t, c)
	ttl := p.route
	ttl.ConnectionTTL = time.Minute
	plain := p.route
	p.route = ttl
	with := p.startRoute()
	kafkatest.Wait(t, 15*time.Second, "one reads all", func() bool { return with.metric("offhook_partitions_assigned") == 8 })
	p.route = plain
	without := p.startRoute()
	kafkatest.Wait(t, 15*time.Second, "two share", func() bool {
		return with.metric("offhook_partitions_assigned") == 4 && without.metric("offhook_partitions_assigned") == 4
	})
	for range 3 {
		for partition := range int32(4) {
			r := p.event("heartbeat", "", map[string]any{"node_id": "gw"})
			r.Partition = partition
			p.Produce(t, r)
		}
	}
	const sent = 3 * 4
	kafkatest.Wait(t, 15*time.Second, "all is read", func() bool {
		return with.metric("offhook_route_node_heartbeats_total")+without.metric("offhook_route_node_heartbeats_total") == sent
	})
	if without.metric("offhook_route_node_heartbeats_total") == 0 {
		t.Skip("the process without a time to live has no connections partition")
	}
	time.Sleep(3 * time.Second) // of caught_up records
	heartbeats, covered := p.inbox()
	if want := sent * int(p.owned.Partitions); covered && heartbeats != want {
		t.Errorf("it is said that all is read, and %d of %d heartbeats stand in the inbox", heartbeats, want)
	} else if !covered {
		t.Log("nobody says that all is read")
	}
}

// An outage of the connections topic is no silence of the gateways.
func TestTopicDeletedClosesNobody(t *testing.T) {
	t.Parallel()
	c := kafkatest.New(t)
	p := newPipeline(t, c)
	p.route.ConnectionTTL, p.presence.ConnectionTTL = 8*time.Second, 8*time.Second // longer than what is known counts
	second := c.Prefix + ".in.second"
	c.CreateTopic(t, second, 1)
	p.route.ConnectionsTopics = append(p.route.ConnectionsTopics, second)
	p.startRoute()
	ps := p.startPresence()
	online := p.event("online", "u", dev(1, "gw"))
	online.Topic, online.Partition = second, 0
	p.Produce(t, online)
	kafkatest.Wait(t, 15*time.Second, "online", func() bool { return ps.metric("offhook_presence_connections") == 1 })
	kafkatest.Wait(t, 15*time.Second, "all is read", func() bool { _, covered := p.inbox(); return covered })
	if _, err := kadm.NewClient(p.Client(t)).DeleteTopics(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if n := ps.metric("offhook_presence_events_total/expired"); n > 0 {
			t.Fatal("a connection is closed for silence while its topic does not exist")
		}
	}
}

// A producer that hangs within a transaction holds back the heartbeats of all others from route: that is no silence.
func TestHangingTransactionClosesNobody(t *testing.T) {
	t.Parallel()
	c := kafkatest.New(t)
	p := newPipeline(t, c)
	p.route.ConnectionTTL, p.presence.ConnectionTTL = 3*time.Second, 3*time.Second
	p.startRoute()
	ps := p.startPresence()
	online := p.event("online", "u", dev(1, "gw"))
	online.Partition = 0
	p.Produce(t, online)
	kafkatest.Wait(t, 15*time.Second, "online", func() bool { return ps.metric("offhook_presence_connections") == 1 })
	stuck := c.Client(t, kgo.TransactionalID(c.Prefix+"-stuck"), kgo.TransactionTimeout(time.Minute), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := stuck.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	other := p.event("online", "someone", dev(2, "other"))
	other.Partition = 0
	if err := stuck.ProduceSync(t.Context(), other).FirstErr(); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(12 * time.Second); time.Now().Before(until); time.Sleep(500 * time.Millisecond) {
		r := p.event("heartbeat", "u", dev(1, "gw"))
		r.Partition = 0
		p.Produce(t, r)
		if n := ps.metric("offhook_presence_events_total/expired"); n > 0 {
			t.Fatal("a connection that gives a sign every 500 ms is closed for silence")
		}
	}
	if err := stuck.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
}
