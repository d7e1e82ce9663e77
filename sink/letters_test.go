package sink

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// TestLettersBehindOneThatWasWritten: a broker before 4.0 writes a letter and says that it did not, or does not answer, and its lane is
// dropped. The next letter of the partition must not get its sequence number under the same epoch, or the broker would drop that one
// as a copy and say that it is written.
func TestLettersBehindOneThatWasWritten(t *testing.T) {
	for _, tt := range []struct {
		name string
		code int16 // the broker's answer; 0: none
	}{{"said to have failed", kerr.UnknownServerError.Code}, {"no answer", 0}} {
		t.Run(tt.name, func(t *testing.T) {
			c := kafkatest.New(t, kfake.MaxVersions(kversion.V3_3_0()))
			f := newFixture(t, c)
			s, first := bareSession(t)
			log := newCountLog()
			s.log = slog.New(log)
			s.deps = Deps{Kafka: c.Config(), Topics: f.topics, Owned: f.owned}
			s.producer = c.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
			other := c.Client(t)

			var once atomic.Bool
			written := make(chan struct{})
			c.Fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
				c.Fake.KeepControl()
				if once.Swap(true) {
					return nil, nil, false
				}
				r := req.(*kmsg.ProduceRequest)
				node, again := c.Fake.CurrentNode(), *r
				c.Fake.SleepControl(func() { // it passes: once is true
					if _, err := other.Broker(int(node)).Request(context.Background(), &again); err != nil {
						t.Errorf("pass Produce on: %v", err)
					}
				})
				close(written)
				if tt.code == 0 {
					return nil, errors.New("the connection breaks"), true
				}
				return kafkatest.Refuse(r, tt.code), nil, true
			})
			bury := func(l *lane, value string) bool {
				return s.bury(l, letters{dead: Dead{Reason: schemas.ReasonSkipped}, records: []Record{{Value: []byte(value)}}, topicID: testTopic})
			}
			var burying sync.WaitGroup
			burying.Go(func() { bury(first, `"first"`) })
			<-written
			if tt.code != 0 {
				kafkatest.Wait(t, 10*time.Second, "the failure", func() bool { return log.count("dead letters cannot be written; trying again") > 0 })
			}
			first.cancel(errRevoked) // it does not write it again: the second letter is the next
			burying.Wait()
			second := &lane{laneKey: laneKey{"u", first.partition}}
			second.ctx, second.cancel = context.WithCancelCause(t.Context())
			if !bury(second, `"second"`) {
				t.Error("the second letter is not written")
			}
			kafkatest.Wait(t, 10*time.Second, "both letters", func() bool {
				found := make(map[string]bool)
				for _, letter := range f.deadLetters(t) {
					found[string(letter.Value)] = true
				}
				return found[`"first"`] && found[`"second"`]
			})
		})
	}
}
