package presence

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

// What the group has committed is purged, and nothing behind it.
func TestPurgeEndsAtTheCommit(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		adm := kadm.NewClient(c.Client(t))
		topic, group := c.Prefix+".inbox", c.Prefix+".presence"
		c.CreateTopic(t, topic, 3)
		for p := range int32(3) {
			for range 10 {
				c.Produce(t, &kgo.Record{Topic: topic, Partition: p, Value: []byte("x")})
			}
		}
		var committed kadm.Offsets
		committed.AddOffset(topic, 0, 4, -1)
		committed.AddOffset(topic, 1, 0, -1) // and nothing of 2
		if err := adm.CommitAllOffsets(t.Context(), group, committed); err != nil {
			t.Fatal(err)
		}
		p := purger{adm: adm, topic: topic, group: group, done: make(map[int32]int64)}
		for _, want := range []int64{4, 0} { // the second time there is nothing left to do
			if n, err := p.purge(t.Context(), []int32{0, 1, 2}); err != nil || n != want {
				t.Fatalf("purged %d, %v, want %d", n, err, want)
			}
			starts, err := adm.ListStartOffsets(t.Context(), topic)
			if err != nil {
				t.Fatal(err)
			}
			for p, want := range []int64{4, 0, 0} {
				if o, _ := starts.Lookup(topic, int32(p)); o.Err != nil || o.Offset != want {
					t.Errorf("partition %d begins at %d, %v, want %d", p, o.Offset, o.Err, want)
				}
			}
		}
	})
}
