package deadletter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// id is the webhook-id of a position, in the run that config has.
func id(topic *Topic, position string) string {
	return fmt.Sprintf("%x-%s-r1800000000", topic.ID(), position)
}

// byID orders requests, of which those of different partitions come in any order.
func byID(hooks []webhook) []webhook {
	return slices.SortedFunc(slices.Values(hooks), func(a, b webhook) int { return strings.Compare(a.ID, b.ID) })
}

func TestReplay(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		f.produceMixed(t)
		f.Produce(t,
			f.letter(1, 21, func(d *schemas.DeadLetter) { d.Traceparent = []byte(testTrace) }),             // 1-4
			f.letter(1, 22, func(d *schemas.DeadLetter) { d.Traceparent = []byte("not\na trace") }),        // 1-5
			f.letter(3, 31, from("someone.else")),                                                          // 3-2
			f.letter(3, 32, func(d *schemas.DeadLetter) { d.Truncated, d.Size = true, 9 }),                 // 3-3
			f.letter(3, 33, func(d *schemas.DeadLetter) { d.Value = []byte(`{"n":"poison"}`) }),            // 3-4
			f.letter(3, 34, from(f.topics.Offline), func(d *schemas.DeadLetter) { d.Value = []byte(`1`) }), // 3-5
		)
		topic := f.open(t)
		refuse := func(_ int, w webhook) int {
			if strings.Contains(w.Body, "poison") {
				return 422
			}
			return 0
		}
		wanted := func(object bool) []webhook {
			body := func(item string) string {
				if object {
					return item
				}
				return "[" + item + "]"
			}
			return byID([]webhook{
				{id(topic, "0-0"), "msg.notify", `[{"n":"0/10"}]`, ""},
				{id(topic, "0-2"), "msg.offline", body(`{"n":"0/11"}`), ""},
				{id(topic, "1-1"), "user.onlinestatus", `[{"n":"1/20"}]`, ""},
				{id(topic, "1-4"), "msg.notify", `[{"n":"1/21"}]`, testTrace},
				{id(topic, "1-5"), "msg.notify", `[{"n":"1/22"}]`, ""},
				{id(topic, "3-0"), "msg.notify", `[{"n":"3/30"}]`, ""},
				{id(topic, "3-5"), "msg.offline", body("1"), ""},
			})
		}
		wantSummary := Summary{Replayed: 7, Refused: 1, Copies: 2, Unreadable: 2, NotReplayable: 2, Run: 1_800_000_000}

		t.Run("all", func(t *testing.T) {
			e := newTestEndpoint(t, refuse)
			cfg := f.config(t, e)
			reported := outcomes(&cfg)
			summary, err := Replay(t.Context(), topic, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(wantSummary, summary); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(wanted(false), byID(e.hooks())); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
			var bad []string
			for position, o := range reported {
				if o.What != Replayed {
					bad = append(bad, fmt.Sprintf("%s %s %d", position, o.What, o.Status))
				}
			}
			slices.Sort(bad)
			if diff := cmp.Diff([]string{"0-5 unreadable 0", "0-6 unreadable 0", "3-2 not_replayable 0", "3-3 not_replayable 0", "3-4 refused 422"}, bad); diff != "" {
				t.Errorf("reports (-want +got):\n%s", diff)
			}
			if got, want := f.ReadAll(t, f.topics.DeadLetters), 16; len(got) != want {
				t.Errorf("%d records are in the topic, want the %d of before", len(got), want)
			}
		})
		t.Run("msg.offline as an object", func(t *testing.T) {
			e := newTestEndpoint(t, refuse)
			cfg := f.config(t, e)
			cfg.Sink.OfflineObject = true
			if _, err := Replay(t.Context(), topic, cfg); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(wanted(true), byID(e.hooks())); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
		t.Run("dry", func(t *testing.T) {
			e := newTestEndpoint(t, refuse)
			cfg := f.config(t, e)
			cfg.DryRun = true
			reported := outcomes(&cfg)
			summary, err := Replay(t.Context(), topic, cfg)
			if err != nil {
				t.Fatal(err)
			}
			want := wantSummary
			want.DryRun, want.Replayed, want.Refused = true, 8, 0
			if diff := cmp.Diff(want, summary); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
			if e.asked != 0 {
				t.Errorf("%d requests were sent", e.asked)
			}
			wantOne := Outcome{Position: Position{0, 2}, What: Replayed, To: "msg.offline " + e.URL, ID: id(topic, "0-2")}
			if diff := cmp.Diff(wantOne, reported["0-2"]); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
		})
		t.Run("filtered", func(t *testing.T) {
			e := newTestEndpoint(t, nil)
			cfg := f.config(t, e)
			cfg.Filter.Sink = "backup"
			summary, err := Replay(t.Context(), topic, cfg)
			if err != nil || summary.Replayed != 1 || summary.Copies != 0 {
				t.Errorf("got %+v, %v", summary, err)
			}
			if got := e.hooks(); len(got) != 1 || got[0].ID != id(topic, "1-0") {
				t.Errorf("got %+v", got)
			}
		})
		t.Run("an event that the sink does not want", func(t *testing.T) {
			e := newTestEndpoint(t, nil)
			cfg := f.config(t, e)
			cfg.Filter.Topic = f.topics.OnlineStatus
			cfg.Sink.Events = []schemas.Event{schemas.EventNotify}
			summary, err := Replay(t.Context(), topic, cfg)
			if err != nil || summary.Replayed != 0 || summary.NotReplayable != 1 {
				t.Errorf("got %+v, %v", summary, err)
			}
		})
		t.Run("by position", func(t *testing.T) {
			e := newTestEndpoint(t, nil)
			cfg := f.config(t, e)
			cfg.Filter.Positions = []Position{{3, 0}, {0, 2}}
			summary, err := Replay(t.Context(), topic, cfg)
			if err != nil || summary.Replayed != 2 || summary.Copies != 0 || summary.Unreadable != 0 {
				t.Errorf("got %+v, %v", summary, err)
			}
			for _, test := range []struct {
				position Position
				want     string
			}{
				{Position{1, 0}, `of the sink "backup"`},
				{Position{0, 1}, "is a copy"},
				{Position{0, 5}, "cannot be read"},
				{Position{0, 3}, "there is no letter 0-3"}, // aborted
				{Position{2, 0}, "there is no letter 2-0"},
				{Position{8, 0}, "no partition 8"},
			} {
				e := newTestEndpoint(t, nil)
				cfg := f.config(t, e)
				cfg.Filter.Positions = []Position{{0, 0}, test.position, {3, 0}}
				summary, err := Replay(t.Context(), topic, cfg)
				if err == nil || !strings.Contains(err.Error(), test.want) || e.asked != 0 || summary != (Summary{}) {
					t.Errorf("%v: got %+v, %v, after %d requests", test.position, summary, err, e.asked)
				}
			}
		})
	})
}

// TestReplayIsStoppedAndGoneOnWith stops a replay by an endpoint that fails in the middle, and goes on under the same run.
func TestReplayIsStoppedAndGoneOnWith(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		const each = 20
		f := newFixture(t, c)
		var records []*kgo.Record
		want := make(map[string]string)
		for p := range int32(testPartitions) {
			for i := range int64(each) {
				records = append(records, f.letter(p, i))
			}
		}
		f.Produce(t, records...)
		topic := f.open(t)
		for p := range int32(testPartitions) {
			for i := range int64(each) {
				want[id(topic, Position{p, i}.String())] = fmt.Sprintf(`[{"n":"%d/%d"}]`, p, i)
			}
		}
		var down sync.Map
		down.Store("after", each*testPartitions/2)
		e := newTestEndpoint(t, func(n int, _ webhook) int {
			if after, ok := down.Load("after"); ok && n > after.(int) {
				return 503
			}
			return 0
		})
		cfg := f.config(t, e)
		cfg.Patience = 300 * time.Millisecond
		summary, err := Replay(t.Context(), topic, cfg)
		stopped, ok := errors.AsType[*StoppedError](err)
		if !ok || !strings.Contains(err.Error(), "503") || strings.Contains(err.Error(), "hush") {
			t.Fatalf("got %+v, %v", summary, err)
		}
		if summary.Replayed != each*testPartitions/2 || len(e.hooks()) != summary.Replayed {
			t.Errorf("%d letters are said to be replayed, and %d were", summary.Replayed, len(e.hooks()))
		}
		last := make(map[int32]int64)
		for _, hook := range e.hooks() {
			p, offset := order(t, hook)
			if before, ok := last[p]; ok && before != offset-1 || !ok && offset != 0 {
				t.Errorf("partition %d: %d comes after %d", p, offset, before)
			}
			last[p] = offset
		}
		if diff := cmp.Diff(last, stopped.After); diff != "" {
			t.Errorf("the offsets that are done (-want +got):\n%s", diff)
		}
		if e.most > testPartitions {
			t.Errorf("%d requests were under way at once", e.most)
		}

		// Under the same run everything is sent again, and a receiver that remembers ids sees each event once.
		down.Delete("after")
		summary, err = Replay(t.Context(), topic, cfg)
		if err != nil || summary.Replayed != each*testPartitions {
			t.Fatalf("got %+v, %v", summary, err)
		}
		got := make(map[string]string)
		for _, hook := range e.hooks() {
			if before, ok := got[hook.ID]; ok && before != hook.Body {
				t.Errorf("%s has two bodies", hook.ID)
			}
			got[hook.ID] = hook.Body
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("events by id (-want +got):\n%s", diff)
		}

		// After what was done, only the rest is sent.
		rest := newTestEndpoint(t, nil)
		cfg = f.config(t, rest)
		cfg.Filter.After = stopped.After
		summary, err = Replay(t.Context(), topic, cfg)
		if err != nil || summary.Replayed != each*testPartitions/2 || len(rest.hooks()) != summary.Replayed {
			t.Errorf("got %+v, %v", summary, err)
		}
		for _, hook := range rest.hooks() {
			p, offset := order(t, hook)
			if done, ok := stopped.After[p]; ok && offset <= done {
				t.Errorf("%d-%d is sent though it was done", p, offset)
			}
		}
	})
}

// order is the partition and the offset in a request's item.
func order(t *testing.T, w webhook) (partition int32, offset int64) {
	t.Helper()
	if _, err := fmt.Sscanf(w.Body, `[{"n":"%d/%d"}]`, &partition, &offset); err != nil {
		t.Fatalf("body %s: %v", w.Body, err)
	}
	return partition, offset
}

func TestReplayTriesAgain(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.Produce(t, f.letter(0, 1), f.letter(0, 2))
	topic := f.open(t)
	for _, status := range []int{503, 404} {
		e := newTestEndpoint(t, func(n int, _ webhook) int {
			if n < 3 {
				return status
			}
			return 0
		})
		cfg := f.config(t, e)
		cfg.Patience = time.Minute
		if summary, err := Replay(t.Context(), topic, cfg); err != nil || summary.Replayed != 2 || e.asked != 4 {
			t.Errorf("%d: got %+v, %v after %d requests", status, summary, err, e.asked)
		}
		if got := e.hooks(); got[0].ID != id(topic, "0-0") || got[1].ID != id(topic, "0-1") {
			t.Errorf("got %+v", got)
		}
	}
}

// TestReplayEndsRequestsUnderWay interrupts a replay while the endpoint has a request.
func TestReplayEndsRequestsUnderWay(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	f.Produce(t, f.letter(0, 1), f.letter(0, 2))
	topic := f.open(t)
	cause := errors.New("signal")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	e := newTestEndpoint(t, func(int, webhook) int {
		cancel(cause)
		return 0
	})
	summary, err := Replay(ctx, topic, f.config(t, e))
	stopped, ok := errors.AsType[*StoppedError](err)
	if !ok || !errors.Is(err, cause) || summary.Replayed != 1 || e.asked != 1 {
		t.Fatalf("got %+v, %v after %d requests", summary, err, e.asked)
	}
	if diff := cmp.Diff(map[int32]int64{0: 0}, stopped.After); diff != "" {
		t.Errorf("the offsets that are done (-want +got):\n%s", diff)
	}
}

// TestReplayIsSideBySide has the endpoint hold back its answers until as many requests are under way as may be.
func TestReplayIsSideBySide(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	for p := range int32(testPartitions) {
		f.Produce(t, f.letter(p, 1), f.letter(p, 2))
	}
	topic := f.open(t)
	const most = testPartitions - 1
	together := make(chan struct{})
	e := newTestEndpoint(t, func(n int, _ webhook) int {
		if n == most {
			close(together)
		}
		<-together
		return 0
	})
	cfg := f.config(t, e)
	cfg.Sink.MaxInFlight = most
	if summary, err := Replay(t.Context(), topic, cfg); err != nil || summary.Replayed != 2*testPartitions || e.most != most {
		t.Errorf("got %+v, %v, with %d requests under way at once", summary, err, e.most)
	}
}

func TestReplayKeepsTheRate(t *testing.T) {
	c := kafkatest.New(t)
	f := newFixture(t, c)
	for p := range int32(testPartitions) {
		f.Produce(t, f.letter(p, 1), f.letter(p, 2))
	}
	topic := f.open(t)
	e := newTestEndpoint(t, nil)
	cfg := f.config(t, e)
	cfg.Sink.Rate = 20
	began := time.Now()
	if summary, err := Replay(t.Context(), topic, cfg); err != nil || summary.Replayed != 8 {
		t.Fatalf("got %+v, %v", summary, err)
	}
	if took := time.Since(began); took < 7*50*time.Millisecond {
		t.Errorf("8 requests at 20 a second took %v", took)
	}
}

func TestPutBack(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		f := newFixture(t, c)
		input := c.Prefix + "-input"
		c.CreateTopic(t, input, 3)
		letter := func(partition int32, offset int64, change ...func(*schemas.DeadLetter)) *kgo.Record {
			return f.letter(partition, offset, append([]func(*schemas.DeadLetter){of(Route), from(input), func(d *schemas.DeadLetter) {
				d.Reason, d.Status, d.Attempts = schemas.ReasonInvalid, 0, 0
			}}, change...)...)
		}
		f.Produce(t,
			letter(0, 1, func(d *schemas.DeadLetter) { d.Traceparent = []byte(testTrace) }), // 0-0
			letter(0, 1), // 0-1: a copy
			letter(0, 2, func(d *schemas.DeadLetter) { d.SourceKey = nil }),                                               // 0-2
			letter(0, 3, func(d *schemas.DeadLetter) { d.Reason, d.Truncated, d.Size = schemas.ReasonTooLarge, true, 9 }), // 0-3
			letter(0, 4, func(d *schemas.DeadLetter) { d.SourceKey, d.Value = []byte{}, []byte{} }),                       // 0-4
			letter(1, 5), // 1-0
			letter(3, 6, func(d *schemas.DeadLetter) { d.SourceKey = []byte("u5") }), // 3-0: a partition that the source topic does not have any more
			f.letter(2, 7),
		)
		topic := f.open(t)
		cfg := Config{Filter: Filter{Sink: Route}, Topics: f.topics, Run: 1, Patience: time.Minute}
		cfg.Sink.MaxInFlight, cfg.Sink.MaxRecordBytes = 8, 1<<20

		dry := cfg
		dry.DryRun = true
		want := Summary{PutBack: 5, Copies: 1, NotReplayable: 1, DryRun: true}
		if summary, err := Replay(t.Context(), topic, dry); err != nil || summary != want {
			t.Errorf("dry: got %+v, %v, want %+v", summary, err, want)
		}
		if got := c.ReadAll(t, input); len(got) != 0 {
			t.Errorf("a dry run wrote %d records", len(got))
		}

		reported := outcomes(&cfg)
		want.DryRun = false
		if summary, err := Replay(t.Context(), topic, cfg); err != nil || summary != want {
			t.Fatalf("got %+v, %v, want %+v", summary, err, want)
		}
		if o := reported["0-3"]; o.What != NotReplayable || o.Why == "" {
			t.Errorf("of the truncated one is reported %+v", o)
		}
		type record struct {
			Partition        int32
			Key, Value, Time string
			Headers          []kgo.RecordHeader
		}
		var got []record
		for _, r := range c.ReadAll(t, input) {
			key := "none"
			if r.Key != nil {
				key = fmt.Sprintf("%q", r.Key)
			}
			got = append(got, record{r.Partition, key, string(r.Value), fmt.Sprint(r.Timestamp.UnixMilli()), r.Headers})
		}
		trace := []kgo.RecordHeader{{Key: schemas.HeaderTraceparent, Value: []byte(testTrace)}}
		moved := record{2, `"u5"`, `{"n":"3/6"}`, "1700000000006", nil} // murmur2 of u5, mod 3
		wantRecords := []record{
			{0, `"u1"`, `{"n":"0/1"}`, "1700000000001", trace},
			{0, "none", `{"n":"0/2"}`, "1700000000002", nil},
			{0, `""`, "", "1700000000004", nil},
			{1, `"u1"`, `{"n":"1/5"}`, "1700000000005", nil},
			moved,
		}
		if diff := cmp.Diff(wantRecords, got); diff != "" {
			t.Errorf("records (-want +got):\n%s", diff)
		}

		t.Run("a source topic that is gone", func(t *testing.T) {
			f.Produce(t, letter(1, 8, from(c.Prefix+"-gone")), letter(1, 9))
			topic := f.open(t)
			cfg := cfg
			cfg.Filter.After = map[int32]int64{0: 4, 3: 0}
			summary, err := Replay(t.Context(), topic, cfg)
			stopped, ok := errors.AsType[*StoppedError](err)
			if !ok || !strings.Contains(err.Error(), "-gone\" is gone") || summary.PutBack != 1 {
				t.Fatalf("got %+v, %v", summary, err)
			}
			if got := stopped.After[1]; got != 0 {
				t.Errorf("partition 1 is done up to %d (%v)", got, maps.Collect(maps.All(stopped.After)))
			}
			if details, err := kadm.NewClient(c.Client(t)).ListTopics(t.Context(), c.Prefix+"-gone"); err == nil && details[c.Prefix+"-gone"].Err == nil {
				t.Error("the replay has made the topic")
			}
		})
	})
}
