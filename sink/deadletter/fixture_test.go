package deadletter

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
	"github.com/offhook/offhook/sink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testPartitions = 4
	testTrace      = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
)

var testSecret = []byte("a secret of at least 24 bytes")

// A fixture is a cluster with a dead-letter topic.
type fixture struct {
	*kafkatest.Cluster
	topics kafka.Topics
}

func newFixture(t *testing.T, c *kafkatest.Cluster) *fixture {
	t.Helper()
	f := &fixture{Cluster: c, topics: kafka.NewTopics(c.Prefix)}
	c.CreateTopic(t, f.topics.DeadLetters, testPartitions)
	return f
}

func (f *fixture) open(t *testing.T) *Topic {
	t.Helper()
	topic, err := Open(t.Context(), f.Config(), f.topics.DeadLetters, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(topic.Close)
	return topic
}

// letter is the dead letter of sink default for the event of offset in a partition of msg.notify, changed by change.
func (f *fixture) letter(partition int32, offset int64, change ...func(*schemas.DeadLetter)) *kgo.Record {
	d := schemas.DeadLetter{
		Source:  schemas.Source{Topic: f.topics.Notify, Partition: partition, Offset: offset, Time: 1_700_000_000_000 + offset},
		TopicID: [16]byte{1}, SourceKey: []byte("u1"), Value: fmt.Appendf(nil, `{"n":"%d/%d"}`, partition, offset),
		Reason: schemas.ReasonRefused, Detail: "the endpoint refuses this event", Sink: "default", Status: 400, Attempts: 3,
	}
	for _, c := range change {
		c(&d)
	}
	r := &kgo.Record{Topic: f.topics.DeadLetters, Partition: partition % testPartitions, Key: d.Key(), Value: d.Value}
	for _, h := range d.Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader(h))
	}
	return r
}

func of(sink string) func(*schemas.DeadLetter) { return func(d *schemas.DeadLetter) { d.Sink = sink } }

func from(topic string) func(*schemas.DeadLetter) {
	return func(d *schemas.DeadLetter) { d.Source.Topic = topic }
}

// newer is r as a release after this one would have written it.
func newer(r *kgo.Record) *kgo.Record {
	for i := range r.Headers {
		if r.Headers[i].Key == schemas.HeaderVersion {
			r.Headers[i].Value = []byte("99")
		}
	}
	return r
}

// transact writes records in a transaction, and commits or aborts it. It returns when the markers are written, which brokers do
// after they have answered, so that offsets are known.
func (f *fixture) transact(t *testing.T, commit kgo.TransactionEndTry, records ...*kgo.Record) {
	t.Helper()
	client := f.Client(t, kgo.TransactionalID(f.Prefix+"-writer"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := client.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := client.EndTransaction(ctx, commit); err != nil {
		t.Fatal(err)
	}
	admin := kadm.NewClient(client)
	kafkatest.Wait(t, 30*time.Second, "the transaction's markers", func() bool {
		stable, err1 := admin.ListCommittedOffsets(ctx, f.topics.DeadLetters)
		ends, err2 := admin.ListEndOffsets(ctx, f.topics.DeadLetters)
		ended := err1 == nil && err2 == nil
		ends.Each(func(end kadm.ListedOffset) {
			at, _ := stable.Lookup(end.Topic, end.Partition)
			ended = ended && at.Offset == end.Offset
		})
		return ended
	})
}

// produceMixed writes what a topic may hold, and returns the positions of the letters that count:
//
//	partition 0: letter, copy, letter, (aborted), marker, broken, newer, letter of route in a transaction, marker
//	partition 1: letter of backup, letter, (aborted), marker
//	partition 2: nothing
//	partition 3: letter, copy of it with another reason
func (f *fixture) produceMixed(t *testing.T) []string {
	t.Helper()
	gaveUp := func(d *schemas.DeadLetter) { d.Reason, d.Status = schemas.ReasonGaveUp, 503 }
	f.Produce(t, f.letter(0, 10), f.letter(0, 10), f.letter(0, 11, from(f.topics.Offline), func(d *schemas.DeadLetter) { d.SourceKey = nil }))
	f.transact(t, kgo.TryAbort, f.letter(0, 90))
	f.Produce(t,
		&kgo.Record{Topic: f.topics.DeadLetters, Partition: 0, Key: []byte("no letter"), Value: []byte("{")},
		newer(f.letter(0, 12)),
	)
	f.transact(t, kgo.TryCommit, f.letter(0, 13, of(Route), from("im.messages"), func(d *schemas.DeadLetter) { d.Reason = schemas.ReasonInvalid }))
	f.Produce(t, f.letter(1, 20, of("backup")), f.letter(1, 20, from(f.topics.OnlineStatus), gaveUp))
	f.transact(t, kgo.TryAbort, f.letter(1, 91))
	f.Produce(t, f.letter(3, 30), f.letter(3, 30, gaveUp))
	return []string{"0-0", "0-2", "0-7", "1-0", "1-1", "3-0"}
}

// webhook is one request that an endpoint has taken.
type webhook struct{ ID, Event, Body, Traceparent string }

// An endpoint keeps what it takes, in order, and checks each signature.
type testEndpoint struct {
	*httptest.Server
	mu     sync.Mutex
	taken  []webhook
	asked  int
	answer func(n int, w webhook) int // the status; nil, or 0: 200
	bad    []error
	most   int
	now    int
}

func newTestEndpoint(t *testing.T, answer func(n int, w webhook) int) *testEndpoint {
	t.Helper()
	e := &testEndpoint{answer: answer}
	verifier, err := standardwebhooks.NewWebhook("whsec_" + base64.StdEncoding.EncodeToString(testSecret))
	if err != nil {
		t.Fatal(err)
	}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = verifier.Verify(body, r.Header)
		}
		hook := webhook{r.Header.Get("webhook-id"), r.URL.Query().Get("event"), string(body), r.Header.Get("traceparent")}
		e.mu.Lock()
		if err != nil {
			e.bad = append(e.bad, err)
		}
		e.asked++
		e.now++
		e.most = max(e.most, e.now)
		n := e.asked
		e.mu.Unlock()
		status := 0
		if e.answer != nil {
			status = e.answer(n, hook)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.now--
		if status == 0 || status/100 == 2 {
			e.taken = append(e.taken, hook)
			return
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(func() {
		e.Close()
		for _, err := range e.bad {
			t.Errorf("a request is not signed as it should be: %v", err)
		}
	})
	return e
}

func (e *testEndpoint) hooks() []webhook {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]webhook(nil), e.taken...)
}

// config replays the letters of default to e.
func (f *fixture) config(t *testing.T, e *testEndpoint) Config {
	t.Helper()
	u, err := url.Parse(e.URL + "/hook?token=hush")
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("someone", "hush")
	return Config{
		Filter: Filter{Sink: "default"}, Topics: f.topics, Run: 1_800_000_000, Patience: 0,
		Sink: sink.Config{
			Name: "default", URL: u, Events: schemas.Events(), Credentials: sink.Credentials{Secrets: [][]byte{testSecret}},
			Timeout: 5 * time.Second, MaxInFlight: 8, MaxRecordBytes: 1 << 20,
		},
	}
}

// outcomes collects what is reported, by position.
func outcomes(cfg *Config) map[string]Outcome {
	all := make(map[string]Outcome)
	cfg.Report = func(o Outcome) { all[o.Position.String()] = o }
	return all
}
