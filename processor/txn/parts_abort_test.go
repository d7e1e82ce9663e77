package txn

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/offhook/offhook/internal/kafka"
)

// TestPartThatLookedLikeAnAbort: a transaction with a part of a record leaves the offset where it was, so that the offset does
// not tell whether it was applied.
func TestPartThatLookedLikeAnAbort(t *testing.T) {
	for nth := range int32(4) { // of the commits of the record's parts
		t.Run(fmt.Sprint("part ", nth+1), func(t *testing.T) {
			w := newWorld(t)
			w.send(8)
			m := w.run(w.config(), func(c *counter) {
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
				again := *(req.(*kmsg.EndTxnRequest))
				w.fake.SleepControl(func() {
					// The same request by another way, which passes.
					if resp, err := again.RequestWith(context.Background(), w.cl); err != nil || resp.ErrorCode != 0 {
						t.Errorf("pass EndTxn on: %v %v", err, resp)
					}
				})
				return refuse(kerr.UnknownServerError.Code)(req), nil, true
			})
			w.send(1)
			var got []string
			w.wait("the last part", func() bool {
				got = nil
				_, err := ReadChangelog(t.Context(), kafka.Config{Brokers: w.fake.ListenAddrs()}, slog.New(slog.DiscardHandler), Partition{"out", 0}, func(r *kgo.Record) error {
					if _, value, _ := strings.Cut(string(r.Value), " "); strings.HasPrefix(value, "8/") {
						got = append(got, value)
					}
					return nil
				})
				return err == nil && slices.Contains(got, "8/5")
			})
			var want []string
			for n := range 5 {
				want = append(want, "8/"+strconv.Itoa(n+1))
			}
			if !slices.Equal(got, want) {
				t.Errorf("out has %v, want %v", got, want)
			}
			if sessions := m.metric("offhook_sessions_total"); sessions != 2 {
				t.Errorf("%v sessions, want 2: the state was in doubt", sessions)
			}
		})
	}
}
