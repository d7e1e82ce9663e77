package route

import (
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// watch makes a watcher of a place, with its client.
func (p *place) watch() *watcher {
	cl := p.Client(p.T, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(10*time.Millisecond))
	return &watcher{cfg: &p.cfg, deps: &p.deps, log: p.deps.Log, leads: func() bool { return true }, client: cl, adm: kadm.NewClient(cl)}
}

// looks is what the second of two looks finds.
func (p *place) looks(w *watcher) *schemas.CaughtUp {
	p.Helper()
	var c *schemas.CaughtUp
	for range 2 {
		var err error
		if c, err = w.look(p.Context()); err != nil {
			p.Fatal(err)
		}
	}
	return c
}

// commit has the group be at an offset of a connections partition.
func (p *place) commit(partition int32, at int64) {
	p.Helper()
	var o kadm.Offsets
	o.Add(kadm.Offset{Topic: p.connections(), Partition: partition, At: at, LeaderEpoch: -1})
	if err := p.adm.CommitAllOffsets(p.Context(), p.cfg.Prefix+"."+Stage, o); err != nil {
		p.Fatal(err)
	}
}

// heartbeat is a record of a connections partition.
func (p *place) heartbeat(partition int32) *kgo.Record {
	return &kgo.Record{Topic: p.connections(), Partition: partition, Value: []byte(`{"type":"heartbeat","node_id":"gw"}`)}
}

// What an open transaction of one producer holds back from readers, heartbeats of all others, is not read.
func TestCaughtUpCountsWhatAnOpenTransactionHoldsBack(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPlace(t, c)
		c.CreateTopic(t, p.connections(), 1)
		stuck := c.Client(t, kgo.TransactionalID(c.Prefix+"-stuck"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err := stuck.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := stuck.ProduceSync(t.Context(), p.heartbeat(0)).FirstErr(); err != nil {
			t.Fatal(err)
		}
		p.Produce(t, p.heartbeat(0), p.heartbeat(0))
		p.commit(0, 0) // route has read all that it may
		w := p.watch()
		if got := p.looks(w); len(got.Topics[0].Read) != 0 {
			t.Errorf("with two heartbeats behind an open transaction it says %+v", got)
		}
		if err := stuck.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		p.commit(0, 4)
		if got := p.looks(w); !slices.Equal(got.Topics[0].Read, []int32{0}) {
			t.Errorf("read past the transaction's marker, it says %+v", got)
		}
	})
}

// A partition whose records retention has taken has nothing left to be read, wherever the group is.
func TestCaughtUpWhereRetentionHasTakenWhatWasUnread(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPlace(t, c)
		c.CreateTopic(t, p.connections(), 1)
		p.Produce(t, p.heartbeat(0), p.heartbeat(0), p.heartbeat(0))
		p.commit(0, 1)
		w := p.watch()
		if got := p.looks(w); len(got.Topics[0].Read) != 0 {
			t.Errorf("two records behind it says %+v", got)
		}
		var before kadm.Offsets
		before.Add(kadm.Offset{Topic: p.connections(), Partition: 0, At: 3})
		if _, err := p.adm.DeleteRecords(t.Context(), before); err != nil {
			t.Fatal(err)
		}
		if got := p.looks(w); !slices.Equal(got.Topics[0].Read, []int32{0}) {
			t.Errorf("with nothing left to read it says %+v", got)
		}
	})
}

// A new leader says nothing before it knows anything: what it said would begin all silence anew at each rebalance.
func TestCaughtUpSaysNothingBeforeItKnows(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPlace(t, c)
		c.CreateTopic(t, p.connections(), 1)
		w := p.watch()
		for range 2 {
			if err := w.tell(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range c.ReadAll(t, p.deps.Topics.Inbox) {
			in := decodeInbox(t, r)
			if age := r.Timestamp.UnixMilli() - in.CaughtUp.AsOf; age > 5_000 {
				t.Errorf("it says what it knew %d ms ago", age)
			}
		}
	})
}

// The owner of what exists speaks, also while the first topic of the list does not exist.
func TestSomebodySpeaksWithoutTheFirstTopic(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPlace(t, c)
		p.cfg.ConnectionsTopics = []string{c.Prefix + ".in.later", p.connections()}
		p.cfg.ConnectionTTL = time.Second
		c.CreateTopic(t, p.cfg.ConnectionsTopics[1], 1)
		c.CreateTopic(t, p.messages(), 1)
		defer p.run()()
		kafkatest.Wait(t, 15*time.Second, "presence is told where route is", func() bool {
			return len(c.ReadAll(t, p.deps.Topics.Inbox)) > 0
		})
	})
}

// A topic that was there and is gone is not read: gateways cannot write what would be heard.
func TestCaughtUpOfATopicThatIsGone(t *testing.T) {
	p := newPlace(t, kafkatest.New(t))
	p.CreateTopic(t, p.connections(), 1)
	w := p.watch()
	if got := p.looks(w); len(got.Topics[0].Read) != 1 {
		t.Fatalf("an empty topic: %+v", got)
	}
	if _, err := p.adm.DeleteTopics(t.Context(), p.connections()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	got := p.looks(w)
	t.Logf("%+v", got)
	_ = txn.Partition{}
}
