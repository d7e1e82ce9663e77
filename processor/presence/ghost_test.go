package presence

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

// TestGhostEnds: a connection that falls silent is closed though its partition ends with the marker of a producer's transaction;
// one that gives signs, or whose gateway does, is not; nor after a restart.
func TestGhostEnds(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPipeline(t, c)
		p.route.ConnectionTTL, p.presence.ConnectionTTL = 4*time.Second, 4*time.Second
		p.startRoute()
		ps := p.startPresence()
		gateway := c.Client(t, kgo.TransactionalID(c.Prefix+"-gateway"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err := gateway.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for _, uid := range []string{"ghost1", "ghost2", "ghost3", "ghost4", "ghost5"} { // in several partitions of the inbox
			r := p.event("online", uid, dev(1, "gone"))
			r.Partition = 0
			if err := gateway.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := gateway.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		signs := func() {
			for _, r := range []*kgo.Record{p.event("heartbeat", "living", dev(2, "gw")), p.event("heartbeat", "", map[string]any{"node_id": "gw2"})} {
				r.Partition = 1
				p.Produce(t, r)
			}
		}
		online := []*kgo.Record{p.event("online", "living", dev(2, "gw")), p.event("online", "together", dev(3, "gw2"))}
		for _, r := range online {
			r.Partition = 1
		}
		p.Produce(t, online...)
		kafkatest.Wait(t, 30*time.Second, "the ghosts are closed", func() bool {
			signs()
			time.Sleep(200 * time.Millisecond)
			return ps.metric("offhook_presence_events_total/expired") == 5
		})
		ps.stop()
		ps = p.startPresence()
		for until := time.Now().Add(7 * time.Second); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
			signs()
		}
		if n := ps.metric("offhook_presence_connections"); n != 2 {
			t.Errorf("%v connections are left, want the two of which something was heard", n)
		}
	})
}
