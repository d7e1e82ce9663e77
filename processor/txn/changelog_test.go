package txn

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/offhook/offhook/internal/kafka"
)

// What is committed behind a transaction that is still open is read too: the owner before may just have committed it.
func TestChangelogBehindAnOpenTransaction(t *testing.T) {
	w := newWorld(t)
	produce := func(cl *kgo.Client, value string) {
		t.Helper()
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "out", Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	open, err := kgo.NewClient(kgo.SeedBrokers(w.fake.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID("open"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	produce(w.cl, "before")
	if err := open.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(open, "aborted")
	produce(w.cl, "behind")

	asked := make(chan struct{}) // where the partition ends
	answered := sync.OnceFunc(func() { close(asked) })
	w.fake.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		for _, topic := range req.(*kmsg.ListOffsetsRequest).Topics {
			for _, p := range topic.Partitions {
				if p.Partition == 0 && p.Timestamp == -1 {
					answered() // before any later request is
				}
			}
		}
		return nil, nil, false
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []string
	done := make(chan error, 1)
	go func() {
		defer answered()
		_, err := ReadChangelog(ctx, kafka.Config{Brokers: w.fake.ListenAddrs()}, slog.New(slog.DiscardHandler), Partition{"out", 0}, func(r *kgo.Record) error {
			got = append(got, string(r.Value))
			return nil
		})
		done <- err
	}()
	<-asked
	if err := open.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if want := []string{"before", "behind"}; !slices.Equal(got, want) {
		t.Errorf("it reads %q, want %q", got, want)
	}
}
