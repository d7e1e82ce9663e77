package txn

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/offhook/offhook/internal/kafka"
)

// TestRecordInPartsIsTakenOver: who begins anew amid a record goes on with its next part: the group's offset has not passed it.
func TestRecordInPartsIsTakenOver(t *testing.T) {
	for nth := range int32(4) { // of the commits of the record's parts, which fails
		t.Run(fmt.Sprint("part ", nth+1), func(t *testing.T) {
			w := newWorld(t)
			w.send(8)
			w.run(w.config(), func(c *counter) {
				c.parts = func(value string) int {
					if value == "8" {
						return 5
					}
					return 1
				}
			})
			w.wait("the first records", func() bool { return len(w.numbered()) == 8 })
			var seen atomic.Int32
			w.fake.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
				w.fake.KeepControl()
				if seen.Add(1) != nth+1 {
					return nil, nil, false
				}
				return refuse(kerr.ProducerFenced.Code)(req), nil, true
			})
			w.send(8) // the record in parts, and what is polled with it
			var got []string
			w.wait("what lies behind the record", func() bool {
				got = nil
				_, err := ReadChangelog(t.Context(), kafka.Config{Brokers: w.fake.ListenAddrs()}, slog.New(slog.DiscardHandler), Partition{"out", 0}, func(r *kgo.Record) error {
					_, value, _ := strings.Cut(string(r.Value), " ")
					got = append(got, value)
					return nil
				})
				return err == nil && slices.Contains(got, "12/1")
			})
			if want := []string{"0/1", "4/1", "8/1", "8/2", "8/3", "8/4", "8/5", "12/1"}; !slices.Equal(got, want) {
				t.Errorf("out has %v, want %v", got, want)
			}
		})
	}
}

// TestWhatIsCommitted: nothing under a member id that the partitions were not assigned to, and no offset past a record that has
// more to do.
func TestWhatIsCommitted(t *testing.T) {
	ask := func(member string) *kmsg.TxnOffsetCommitRequest {
		req := kmsg.NewPtrTxnOffsetCommitRequest()
		req.MemberID = member
		topic := kmsg.NewTxnOffsetCommitRequestTopic()
		topic.Topic = "in"
		for p := range int32(2) {
			part := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			part.Partition, part.Offset, part.LeaderEpoch = p, 20, 7
			topic.Partitions = append(topic.Partitions, part)
		}
		req.Topics = append(req.Topics, topic)
		return req
	}
	tx := &transaction{touched: []*ownership{
		{Partition: Partition{"in", 0}, member: "a", next: 20},
		{Partition: Partition{"in", 1}, member: "a", next: 12, halfway: true},
	}}
	if err := tx.asMember(ask("b")); !errors.Is(err, errDoubt) {
		t.Errorf("under another member id: %v", err)
	}
	req := ask("a")
	if err := tx.asMember(req); err != nil {
		t.Fatal(err)
	}
	if ps := req.Topics[0].Partitions; ps[0].Offset != 20 || ps[0].LeaderEpoch != 7 || ps[1].Offset != 12 || ps[1].LeaderEpoch != -1 {
		t.Errorf("it commits %+v", ps)
	}
}

// TestAbortBehindMarkers: the markers of the producers' transactions are read and committed too, and an abort behind one is no doubt.
func TestAbortBehindMarkers(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.PastMarkers = true
	m := w.run(cfg)
	gateway, err := kgo.NewClient(kgo.SeedBrokers(w.fake.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID("gateway"))
	if err != nil {
		t.Fatal(err)
	}
	defer gateway.Close()
	send := func() {
		t.Helper()
		if err := gateway.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := gateway.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Value: fmt.Append(nil, w.sent)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		w.sent++
		if err := gateway.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
	}
	atEnd := func() bool {
		offsets, err := StableOffsets(t.Context(), w.cl, cfg.Group(), map[string][]int32{"in": {0}})
		return err == nil && offsets[Partition{"in", 0}] == int64(2*w.sent) // each with its marker
	}
	send()
	w.wait("past the marker", atEnd)
	w.answer(kmsg.EndTxn, 1, func(req kmsg.Request) kmsg.Response {
		if req.(*kmsg.EndTxnRequest).TransactionalID == "gateway" {
			return nil
		}
		return refuse(kerr.TransactionAbortable.Code)(req)
	})
	send()
	w.all()
	w.wait("past the second marker", atEnd)
	if sessions := m.metric("offhook_sessions_total"); sessions != 1 || m.metric("offhook_transactions_total/aborted") == 0 {
		t.Errorf("%v sessions, want one with an abort", sessions)
	}
}

// TestBehind: a record knows how many lay behind it.
func TestBehind(t *testing.T) {
	w := newWorld(t)
	w.send(4 * 10)
	var wrong atomic.Int32
	w.run(w.config(), func(c *counter) {
		c.onRecord = func(in Input) {
			if in.Behind != 9-in.Offset {
				wrong.Add(1)
			}
		}
	})
	w.all()
	if n := wrong.Load(); n > 0 {
		t.Errorf("%d records do not know", n)
	}
}
