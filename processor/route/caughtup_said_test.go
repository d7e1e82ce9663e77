package route

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

// What is said is as of the look before, holds what was read by then, and a topic that is empty is read.
func TestCaughtUpSaysWhatIsRead(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPlace(t, c)
		c.CreateTopic(t, p.connections(), 3)
		p.Produce(t, p.heartbeat(0), p.heartbeat(0), p.heartbeat(1))
		p.commit(0, 1)
		p.commit(1, 1)
		w := p.watch()
		before := time.Now().UnixMilli()
		if _, err := w.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		between := time.Now().UnixMilli()
		p.Produce(t, p.heartbeat(1)) // is not of what it asked for
		time.Sleep(20 * time.Millisecond)
		got, err := w.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		topic := got.Topics[0]
		slices.Sort(topic.Read)
		if topic.Name != p.connections() || topic.Partitions != 3 || !slices.Equal(topic.Read, []int32{1, 2}) {
			t.Errorf("it says %+v, want 1 and 2 of three", topic)
		}
		if got.AsOf < before || got.AsOf > between {
			t.Errorf("as of %d, want between %d and %d", got.AsOf, before, between)
		}
	})
}

// Who does not lead says nothing.
func TestOnlyTheLeaderSpeaks(t *testing.T) {
	p := newPlace(t, kafkatest.New(t))
	p.CreateTopic(t, p.connections(), 1)
	w := p.watch()
	w.leads = func() bool { return false }
	ctx, cancel := context.WithTimeout(t.Context(), 5*caughtUpEvery/2)
	defer cancel()
	if err := w.run(ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(p.ReadAll(t, p.deps.Topics.Inbox)); n != 0 {
		t.Errorf("%d records in the inbox", n)
	}
}
