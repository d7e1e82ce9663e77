package deadletter

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// read is all letters that a filter selects, by position, and what it leaves out.
func read(t *testing.T, topic *Topic, filter Filter) ([]string, Tally) {
	t.Helper()
	partitions, err := topic.Partitions(&filter)
	if err != nil {
		t.Fatal(err)
	}
	var tally Tally
	var all []string
	for _, p := range partitions {
		for l, err := range topic.Letters(t.Context(), p, &filter) {
			if err != nil {
				t.Fatal(err)
			}
			if filter.Select(l, &tally) {
				all = append(all, l.Position.String())
			}
		}
	}
	return all, tally
}

func TestRead(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		want := f.produceMixed(t)
		topic := f.open(t)
		f.Produce(t, f.letter(2, 50)) // after the topic was opened

		got, tally := read(t, topic, Filter{})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("positions (-want +got):\n%s", diff)
		}
		if want := (Tally{Copies: 2, Unreadable: 2}); tally != want {
			t.Errorf("left out %+v, want %+v", tally, want)
		}

		t.Run("a letter", func(t *testing.T) {
			for l, err := range topic.Letters(t.Context(), 3, &Filter{}) {
				if err != nil {
					t.Fatal(err)
				}
				if l.Copy {
					continue
				}
				want := schemas.DeadLetter{
					Source:  schemas.Source{Topic: f.topics.Notify, Partition: 3, Offset: 30, Time: 1_700_000_000_030},
					TopicID: [16]byte{1}, SourceKey: []byte("u1"), Value: []byte(`{"n":"3/30"}`),
					Reason: schemas.ReasonRefused, Detail: "the endpoint refuses this event", Sink: "default", Status: 400, Attempts: 3,
				}
				if diff := cmp.Diff(want, l.DeadLetter); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if time.Since(l.Time).Abs() > time.Minute {
					t.Errorf("buried at %v", l.Time)
				}
			}
		})
		t.Run("unreadable", func(t *testing.T) {
			var version *schemas.VersionError
			var errs []error
			for l, err := range topic.Letters(t.Context(), 0, &Filter{}) {
				if err != nil {
					t.Fatal(err)
				}
				if l.Err != nil {
					errs = append(errs, l.Err)
				}
			}
			if len(errs) != 2 || errors.As(errs[0], &version) || !errors.As(errs[1], &version) {
				t.Errorf("got %v, want a broken record and then one of a newer version", errs)
			}
		})
		t.Run("stopped in the middle", func(t *testing.T) {
			for range topic.Letters(t.Context(), 0, &Filter{}) {
				break
			}
		})
		t.Run("cancelled", func(t *testing.T) {
			cause := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(cause)
			for _, err := range topic.Letters(ctx, 0, &Filter{}) {
				if !errors.Is(err, cause) {
					t.Errorf("got %v", err)
				}
			}
		})
		t.Run("partitions", func(t *testing.T) {
			got, err := topic.Partitions(&Filter{Partitions: []int32{3}, Positions: []Position{{1, 7}}})
			if err != nil || !slices.Equal(got, []int32{1, 3}) {
				t.Errorf("got %v, %v", got, err)
			}
			for _, filter := range []Filter{{Partitions: []int32{testPartitions}}, {Positions: []Position{{9, 0}}}, {After: map[int32]int64{9: 0}}} {
				if got, err := topic.Partitions(&filter); err == nil {
					t.Errorf("%+v: got %v", filter, got)
				}
			}
		})
		t.Run("one record", func(t *testing.T) {
			for at, want := range map[Position]string{{0, 2}: `{"n":"0/11"}`, {0, 5}: "{", {0, 6}: `{"n":"0/12"}`, {3, 1}: `{"n":"3/30"}`} {
				if r, err := topic.Record(t.Context(), at); err != nil || string(r.Value) != want {
					t.Errorf("%v: got %v, %v", at, r, err)
				}
			}
			// Aborted, a marker, past the end, no partition.
			for _, at := range []Position{{0, 3}, {0, 4}, {1, 2}, {3, 2}, {2, 0}, {9, 0}} {
				if r, err := topic.Record(t.Context(), at); err == nil || !strings.Contains(err.Error(), "there is no letter "+at.String()) {
					t.Errorf("%v: got %v, %v", at, r, err)
				}
			}
		})
	})
}

func TestReadWaitsForOpenTransactions(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		for name, test := range map[string]struct {
			commit kgo.TransactionEndTry
			want   []string
		}{
			"committed": {kgo.TryCommit, []string{"0-0", "0-1"}},
			"aborted":   {kgo.TryAbort, []string{"0-0"}}, // the record before the end is never seen
		} {
			t.Run(name, func(t *testing.T) {
				f := &fixture{Cluster: c, topics: kafka.NewTopics(c.Prefix + "-" + name)}
				c.CreateTopic(t, f.topics.DeadLetters, testPartitions)
				f.Produce(t, f.letter(0, 1))
				client := f.Client(t, kgo.TransactionalID(f.Prefix+"-open"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
				if err := client.BeginTransaction(); err != nil {
					t.Fatal(err)
				}
				if err := client.ProduceSync(t.Context(), f.letter(0, 2)).FirstErr(); err != nil {
					t.Fatal(err)
				}
				topic := f.open(t) // its end is past the open transaction's record
				var got []string
				for l, err := range topic.Letters(t.Context(), 0, &Filter{}) {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, l.Position.String())
					if len(got) == 1 {
						if err := client.EndTransaction(t.Context(), test.commit); err != nil {
							t.Fatal(err)
						}
						f.Produce(t, f.letter(0, 3))
					}
				}
				if !slices.Equal(got, test.want) {
					t.Errorf("got %v, want %v", got, test.want)
				}
			})
		}
	})
}

func TestReadAfterRetention(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		f.Produce(t, f.letter(0, 1), f.letter(0, 2), f.letter(0, 3), f.letter(1, 4))
		topic := f.open(t)
		remove := func(partition int32, before int64) {
			offsets := make(kadm.Offsets)
			offsets.AddOffset(f.topics.DeadLetters, partition, before, -1)
			deleted, err := kadm.NewClient(c.Client(t)).DeleteRecords(t.Context(), offsets)
			if err == nil {
				err = deleted.Error()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		remove(0, 2) // two of three
		remove(1, 1) // all
		got, _ := read(t, topic, Filter{})
		if want := []string{"0-2"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if _, err := f.open(t).Record(t.Context(), Position{0, 1}); err == nil || !strings.Contains(err.Error(), "retention") {
			t.Errorf("got error %v", err)
		}
	})
}

func TestOpenFails(t *testing.T) {
	c := kafkatest.New(t)
	log := slog.New(slog.DiscardHandler)
	if _, err := Open(t.Context(), c.Config(), c.Prefix+".dead-letters", log); err == nil || !strings.Contains(err.Error(), "OFFHOOK_TOPIC_PREFIX") {
		t.Errorf("without the topic: got error %v", err)
	}
	away := c.Config()
	away.Brokers = []string{"127.0.0.1:1"}
	if _, err := Open(t.Context(), away, "x", log); err == nil || !strings.Contains(err.Error(), "OFFHOOK_KAFKA_BROKERS") {
		t.Errorf("without brokers: got error %v", err)
	}
}

// TestDeadAgain: an event that was sent again on purpose and died again is no copy of what the filter leaves out.
func TestDeadAgain(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	first := f.letter(3, 30)
	first.Timestamp = time.Now().Add(-time.Hour)
	f.Produce(t, first, f.letter(3, 30, func(d *schemas.DeadLetter) { d.Reason = schemas.ReasonGaveUp }))
	topic := f.open(t)
	for name, tt := range map[string]struct {
		filter Filter
		want   []string
	}{
		"all":     {Filter{}, []string{"3-0"}},
		"since":   {Filter{Since: time.Now().Add(-time.Minute)}, []string{"3-1"}},
		"reason":  {Filter{Reason: schemas.ReasonGaveUp}, []string{"3-1"}},
		"go on":   {Filter{After: map[int32]int64{3: 0}}, nil},
		"go on 2": {Filter{After: map[int32]int64{3: 0}, Reason: schemas.ReasonGaveUp}, []string{"3-1"}},
	} {
		if got, _ := read(t, topic, tt.filter); !slices.Equal(got, tt.want) {
			t.Errorf("%s: letters %v, want %v", name, got, tt.want)
		}
	}
	filter := Filter{Positions: []Position{{3, 0}}, After: map[int32]int64{3: 0}}
	if err := topic.verify(t.Context(), &filter, []int32{3}); err != nil {
		t.Errorf("a replay of positions does not go on: %v", err)
	}
}
