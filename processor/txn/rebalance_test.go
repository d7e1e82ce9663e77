package txn

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// leaveOpen begins a transaction that writes to partition 1 of a topic, and returns its client.
func (w *world) leaveOpen(id, topic string) *kgo.Client {
	w.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.fake.ListenAddrs()...), kgo.TransactionalID(id), kgo.TransactionTimeout(time.Minute),
		kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(cl.Close)
	if err := cl.BeginTransaction(); err != nil {
		w.Fatal(err)
	}
	if err := cl.ProduceSync(w.Context(), &kgo.Record{Topic: topic, Partition: 1, Value: []byte("1 left")}).FirstErr(); err != nil {
		w.Fatal(err)
	}
	return cl
}

// TestHangingTransactionIsEnded: what a process that is gone has left open holds up nobody until its timeout.
func TestHangingTransactionIsEnded(t *testing.T) {
	w := newWorld(t)
	w.leaveOpen("p-test-gone", "out")
	w.send(8)
	cfg := w.config()
	cfg.hangingAfter = time.Millisecond
	w.run(cfg)
	w.all()
}

// TestOpenTransactionsAreLeft: what is not too old, or another stage's, is ended by nobody else.
func TestOpenTransactionsAreLeft(t *testing.T) {
	for _, tt := range []struct {
		id  string
		age time.Duration
	}{
		{"p-test-young", 0},
		{"p-other-old", time.Millisecond},
	} {
		t.Run(tt.id, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if _, err := w.adm.CreateTopic(t.Context(), parts, 1, nil, "aside"); err != nil {
				t.Fatal(err)
			}
			cl := w.leaveOpen(tt.id, "aside")
			cfg := w.config()
			cfg.hangingAfter = tt.age
			w.run(cfg)
			w.send(8)
			w.all()
			time.Sleep(hangingStill + 3*hangingLook) // to see that nothing comes
			if err := cl.EndTransaction(context.Background(), kgo.TryCommit); err != nil {
				t.Errorf("the transaction was taken away: %v", err)
			}
		})
	}
}

// TestIdleMembersHoldUpNobody: a member that has nothing to do, as one that has just come, hears of a rebalance by its heartbeats alone, and
// in the group's second join all others wait for it.
func TestIdleMembersHoldUpNobody(t *testing.T) {
	w := newWorld(t)
	w.run(w.config())
	w.send(8)
	w.all()
	var beats, joins atomic.Int32
	var longest atomic.Int64
	w.fake.ControlKey(int16(kmsg.JoinGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		joins.Add(1)
		longest.Store(int64(req.(*kmsg.JoinGroupRequest).RebalanceTimeoutMillis))
		return nil, nil, false
	})
	second := w.run(w.config())
	w.wait("partitions of the second", func() bool { return second.partitions() == parts/2 })
	if longest.Load() != groupTimeout.Milliseconds() {
		t.Errorf("a join waits for %d ms for a member that does not rejoin, want the session's %v", longest.Load(), groupTimeout)
	}
	w.fake.ControlKey(int16(kmsg.Heartbeat), func(kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		beats.Add(1)
		return nil, nil, false
	})
	began := time.Now()
	w.wait("heartbeats of two idle members", func() bool { return beats.Load() >= 20 })
	if d := time.Since(began); d > 10*time.Second { // 30 s at the client's default of 3 s
		t.Errorf("20 heartbeats of two members took %v: one hears of a rebalance late", d)
	}
}

// TestTransactionOutlastsAJoin: a member that waits in a join for one that died holds its transaction open, and must not lose it.
func TestTransactionOutlastsAJoin(t *testing.T) {
	w := newWorld(t)
	var timeout atomic.Int32
	w.fake.ControlKey(int16(kmsg.InitProducerID), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		if r := req.(*kmsg.InitProducerIDRequest); r.TransactionalID != nil {
			timeout.Store(r.TransactionTimeoutMillis)
		}
		return nil, nil, false
	})
	w.run(w.config())
	w.send(4)
	w.all()
	if got := time.Duration(timeout.Load()) * time.Millisecond; got < groupTimeout+time.Second {
		t.Errorf("a transaction may last %v, and a join %v", got, groupTimeout)
	}
}
