package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
	"github.com/offhook/offhook/sink/deadletter"
)

const testSecret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"

// letters are dead letters to write, and the environment to work on them.
type letters struct {
	*kafkatest.Cluster
	topics  kafka.Topics
	environ environment
}

func newLetters(t *testing.T, c *kafkatest.Cluster) *letters {
	t.Helper()
	l := &letters{c, kafka.NewTopics(c.Prefix), environment{
		"OFFHOOK_KAFKA_BROKERS": strings.Join(c.Brokers, ","), "OFFHOOK_TOPIC_PREFIX": c.Prefix, "OFFHOOK_WEBHOOK_SECRETS": testSecret,
	}}
	c.CreateTopic(t, l.topics.DeadLetters, 2)
	return l
}

// letter is a dead letter of msg.notify in the sink default, unless change says otherwise.
func (l *letters) letter(partition int32, offset int64, change func(*schemas.DeadLetter)) *kgo.Record {
	d := schemas.DeadLetter{
		Source:  schemas.Source{Topic: l.topics.Notify, Partition: partition, Offset: offset, Time: 1_700_000_000_000},
		TopicID: [16]byte{0xab}, SourceKey: []byte("u1"), Value: fmt.Appendf(nil, `{"payload":"aGk=","n":%d}`, offset),
		Reason: schemas.ReasonRefused, Detail: "the endpoint refuses this event", Sink: "default", Status: 400, Attempts: 3,
	}
	if change != nil {
		change(&d)
	}
	r := &kgo.Record{
		Topic: l.topics.DeadLetters, Partition: partition, Key: d.Key(), Value: d.Value, Timestamp: time.Unix(1_790_000_000+offset, 0),
	}
	for _, h := range d.Headers() {
		r.Headers = append(r.Headers, kgo.RecordHeader(h))
	}
	return r
}

// produce writes:
//
//	0-0 default msg.notify; 0-1 its copy; 0-2 backup msg.offline gave_up; 0-3 no letter
//	1-0 route invalid; 1-1 default user.onlinestatus skipped, whose detail would clear a terminal
func (l *letters) produce(t *testing.T) {
	t.Helper()
	l.Produce(t,
		l.letter(0, 10, nil), l.letter(0, 10, nil),
		l.letter(0, 11, func(d *schemas.DeadLetter) {
			d.Sink, d.Source.Topic, d.Reason, d.Status, d.Attempts = "backup", l.topics.Offline, schemas.ReasonGaveUp, 0, 12
			d.Traceparent, d.SourceKey = []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), nil
		}),
		&kgo.Record{Topic: l.topics.DeadLetters, Partition: 0, Value: []byte("no letter"), Timestamp: time.Unix(1_790_000_012, 0)},
		l.letter(1, 20, func(d *schemas.DeadLetter) {
			d.Sink, d.Source.Topic, d.Reason, d.Status, d.Attempts, d.Detail = "route", "im.messages", schemas.ReasonInvalid, 0, 0, "not JSON"
			d.Value, d.SourceKey = []byte("{\"a\": \x1b[2J"), []byte{0xff}
		}),
		l.letter(1, 21, func(d *schemas.DeadLetter) {
			d.Source.Topic, d.Reason, d.Detail, d.Value = l.topics.OnlineStatus, schemas.ReasonSkipped, "\x1b[2J", []byte(`"u1-0-1-7-1-1"`)
		}),
	)
}

var positionAtStart = regexp.MustCompile(`(?m)^\d+-\d+`)

func TestDeadLettersList(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		l := newLetters(t, c)
		l.produce(t)
		code, stdout, stderr := command(t, l.environ, "dead-letters", "list")
		prefix := strings.Repeat(" ", len(l.topics.OnlineStatus)-len(l.topics.Notify))
		offline := strings.Repeat(" ", len(l.topics.OnlineStatus)-len(l.topics.Offline))
		want := "" +
			"POSITION  TIME                  SINK     SOURCE" + strings.Repeat(" ", len(l.topics.OnlineStatus)-4) + "REASON   STATUS  ATTEMPTS  DETAIL\n" +
			"0-0       2026-09-21T14:13:30Z  default  " + l.topics.Notify + prefix + "  refused  400     3         the endpoint refuses this event\n" +
			"0-2       2026-09-21T14:13:31Z  backup   " + l.topics.Offline + offline + "  gave_up  -       12        the endpoint refuses this event\n" +
			"1-0       2026-09-21T14:13:40Z  route    im.messages" + strings.Repeat(" ", len(l.topics.OnlineStatus)-len("im.messages")) + "  invalid  -       -         not JSON\n" +
			"1-1       2026-09-21T14:13:41Z  default  " + l.topics.OnlineStatus + `  skipped  400     3         "\x1b[2J"` + "\n"
		if diff := cmp.Diff(want, stdout); code != exitOK || diff != "" {
			t.Errorf("exit code %d, stdout (-want +got):\n%s", code, diff)
		}
		if !strings.Contains(stderr, "0-3 cannot be read: ") || !strings.HasSuffix(stderr, "\nletters: 4; copies left out: 1; records that cannot be read: 1\n") {
			t.Errorf("stderr: %s", stderr)
		}
		for _, test := range []struct {
			flags string
			want  []string
		}{
			{"--sink default", []string{"0-0", "1-1"}},
			{"--sink route", []string{"1-0"}},
			{"--event msg.offline", []string{"0-2"}},
			{"--event user.onlinestatus --sink backup", nil},
			{"--topic im.messages", []string{"1-0"}},
			{"--reason skipped", []string{"1-1"}},
			{"--partition 1", []string{"1-0", "1-1"}},
			{"--since 2026-09-21T14:13:31Z --until 1790000021", []string{"0-2", "1-0"}},
			{"--until 87600h", nil},
			{"--since 87600h", []string{"0-0", "0-2", "1-0", "1-1"}},
			{"--limit 2", []string{"0-0", "0-2"}},
		} {
			code, stdout, stderr := command(t, l.environ, append([]string{"dead-letters", "list"}, strings.Fields(test.flags)...)...)
			if got := positionAtStart.FindAllString(stdout, -1); code != exitOK || !slices.Equal(got, test.want) {
				t.Errorf("%s: exit code %d, got %v, want %v; stderr %s", test.flags, code, got, test.want, stderr)
			}
			if more := strings.Contains(stderr, "(there are more)"); more != strings.Contains(test.flags, "limit") {
				t.Errorf("%s: stderr %s", test.flags, stderr)
			}
		}
		code, stdout, _ = command(t, l.environ, "dead-letters", "list", "--json", "--partition", "0,1")
		var got []map[string]any
		for text := range strings.Lines(stdout) {
			var object map[string]any
			if err := json.Unmarshal([]byte(text), &object); err != nil {
				t.Fatalf("line %s: %v", text, err)
			}
			got = append(got, object)
		}
		if code != exitOK || len(got) != 4 {
			t.Fatalf("exit code %d, %d lines", code, len(got))
		}
		wantJSON := map[string]any{
			"position": "0-2", "timestamp": "2026-09-21T14:13:31Z", "sink": "backup", "reason": "gave_up", "attempts": 12.0,
			"detail": "the endpoint refuses this event", "source_topic": l.topics.Offline, "source_topic_id": "ab" + strings.Repeat("0", 30),
			"source_partition": 0.0, "source_offset": 11.0, "source_timestamp": 1_700_000_000_000.0,
			"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "bytes": 25.0,
		}
		if diff := cmp.Diff(wantJSON, got[1]); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if got[0]["source_key"] != "u1" || got[0]["status"] != 400.0 || got[2]["source_key_base64"] != "/w==" {
			t.Errorf("got %v and %v", got[0], got[2])
		}
		if strings.Contains(stdout, "payload") {
			t.Error("a payload is listed")
		}
	})
}

func TestDeadLettersShow(t *testing.T) {
	c := kafkatest.New(t)
	l := newLetters(t, c)
	l.produce(t)
	for _, test := range []struct {
		args string
		want []string // in this order
	}{
		{"0-0", []string{"position:          0-0\n", "key:               default/ab", "source-key:        u1\n", "reason:            refused\n", "status:            400\n", "\n\n{\n  \"payload\": \"aGk=\",\n  \"n\": 10\n}\n"}},
		{"0-3 1-1", []string{"position:          0-3\n", "\n\nno letter\n", "\nposition:          1-1\n", `detail:            "\x1b[2J"`, "\n\n\"u1-0-1-7-1-1\"\n"}},
		{"1-0", []string{"\n\n" + `"{\"a\": \x1b[2J"` + "\n"}},
		{"--sink default", []string{"position:          0-0\n", "position:          1-1\n"}},
	} {
		code, stdout, stderr := command(t, l.environ, append([]string{"dead-letters", "show"}, strings.Fields(test.args)...)...)
		if code != exitOK {
			t.Errorf("%s: exit code %d, stderr %s", test.args, code, stderr)
		}
		rest := stdout
		for _, want := range test.want {
			_, after, ok := strings.Cut(rest, want)
			if !ok {
				t.Errorf("%s: %q is not in its place in:\n%s", test.args, want, stdout)
				break
			}
			rest = after
		}
		if strings.Contains(stdout, "\x1b") {
			t.Errorf("%s: an escape reaches the terminal", test.args)
		}
	}
	if code, stdout, _ := command(t, l.environ, "dead-letters", "show", "--raw", "1-0"); code != exitOK || stdout != "{\"a\": \x1b[2J" {
		t.Errorf("--raw: exit code %d, stdout %q", code, stdout)
	}
	if code, _, stderr := command(t, l.environ, "dead-letters", "show", "0-77"); code != exitFatal || !strings.Contains(stderr, "there is no letter 0-77") {
		t.Errorf("exit code %d, stderr %s", code, stderr)
	}
}

// inbox takes what is signed, and counts ids that came again.
type inbox struct {
	verifier *standardwebhooks.Webhook
	mu       sync.Mutex
	asked    int
	bodies   map[string]string // by id
	order    []string          // new ids
	repeats  int
	bad      []error
	status   func(n int, body string) int
}

func newInbox(t *testing.T, environ environment) *inbox {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	in := &inbox{verifier: verifier, bodies: make(map[string]string)}
	server := httptest.NewServer(in)
	t.Cleanup(server.Close)
	environ["OFFHOOK_WEBHOOK_URL"] = strings.Replace(server.URL, "//", "//someone:hush@", 1) + "/hush?hush=hush"
	return in
}

func (in *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	read, err := io.ReadAll(r.Body)
	body := string(read)
	in.mu.Lock()
	defer in.mu.Unlock()
	if err == nil {
		err = in.verifier.Verify(read, r.Header)
	}
	if err != nil {
		in.bad = append(in.bad, err)
	}
	in.asked++
	if in.status != nil {
		if status := in.status(in.asked, body); status != 0 {
			w.WriteHeader(status)
			return
		}
	}
	id := r.Header.Get("webhook-id")
	before, again := in.bodies[id]
	switch {
	case !again:
		in.bodies[id] = r.URL.Query().Get("event") + " " + body
		in.order = append(in.order, id)
	case before != r.URL.Query().Get("event")+" "+body:
		in.bad = append(in.bad, fmt.Errorf("%s came with another body", id))
	default:
		in.repeats++
	}
}

func TestDeadLettersReplay(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		l := newLetters(t, c)
		l.produce(t)
		in := newInbox(t, l.environ)
		topic, err := deadletter.Open(t.Context(), c.Config(), l.topics.DeadLetters, newLog(new(buffer), "text", 0))
		if err != nil {
			t.Fatal(err)
		}
		defer topic.Close()
		id := func(position string, run int64) string { return fmt.Sprintf("%x-%s-r%d", topic.ID(), position, run) }

		code, stdout, stderr := command(t, l.environ, "dead-letters", "replay", "--dry-run", "--run", "1800000000")
		if code != exitOK || !strings.Contains(stdout, "0-0 would be sent: msg.notify http://127.0.0.1") || !strings.Contains(stdout, id("1-1", 1_800_000_000)) {
			t.Errorf("exit code %d, stdout %s", code, stdout)
		}
		if in.asked != 0 || strings.Contains(stdout+stderr, "hush") {
			t.Errorf("%d requests; stdout %s; stderr %s", in.asked, stdout, stderr)
		}

		before := time.Now().Unix()
		code, stdout, stderr = command(t, l.environ, "dead-letters", "replay")
		summary := lastSummary(t, stdout)
		if summary.Run < before || summary.Run > time.Now().Unix() {
			t.Errorf("the run is %d", summary.Run)
		}
		want := deadletter.Summary{Replayed: 2, Copies: 1, Unreadable: 1, Run: summary.Run}
		if code != exitOK || summary != want || !strings.Contains(stderr, "0-3 cannot be read: ") {
			t.Errorf("exit code %d, summary %+v, stderr %s", code, summary, stderr)
		}
		wantBodies := map[string]string{
			id("0-0", summary.Run): `msg.notify [{"payload":"aGk=","n":10}]`, id("1-1", summary.Run): `user.onlinestatus ["u1-0-1-7-1-1"]`,
		}
		if diff := cmp.Diff(wantBodies, in.bodies); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}

		// Again under its ids, one of them; and under others.
		code, stdout, _ = command(t, l.environ, "dead-letters", "replay", "0-0", "--run", fmt.Sprint(summary.Run))
		if got := lastSummary(t, stdout); code != exitOK || got.Replayed != 1 || in.repeats != 1 || len(in.bodies) != 2 {
			t.Errorf("exit code %d, summary %+v, %d repeats of %d", code, got, in.repeats, len(in.bodies))
		}
		code, stdout, stderr = command(t, l.environ, "dead-letters", "replay", "0-2")
		if code != exitFatal || stdout != "" || !strings.Contains(stderr, `letter 0-2 is of the sink "backup", not of "default"`) {
			t.Errorf("exit code %d, stdout %s, stderr %s", code, stdout, stderr)
		}
		l.environ["OFFHOOK_WEBHOOK_OFFLINE_BODY"] = "object"
		code, stdout, _ = command(t, l.environ, "dead-letters", "replay", "0-2", "--sink", "backup", "--run", "5")
		if got := lastSummary(t, stdout); code != exitOK || got.Replayed != 1 || in.bodies[id("0-2", 5)] != `msg.offline {"payload":"aGk=","n":11}` {
			t.Errorf("exit code %d, summary %+v, body %s", code, got, in.bodies[id("0-2", 5)])
		}

		// A refusal is passed, and said.
		in.status = func(_ int, body string) int {
			if strings.Contains(body, "payload") {
				return http.StatusUnprocessableEntity
			}
			return 0
		}
		code, stdout, stderr = command(t, l.environ, "dead-letters", "replay", "--run", "6")
		if got := lastSummary(t, stdout); code != exitFatal || got.Replayed != 1 || got.Refused != 1 || !strings.Contains(stderr, "0-0 is refused: the endpoint answered 422\n") {
			t.Errorf("exit code %d, summary %+v, stderr %s", code, got, stderr)
		}
		for _, err := range in.bad {
			t.Error(err)
		}
	})
}

var goOnFlags = regexp.MustCompile(`To go on, add to the same command:(.*)\n`)

// TestDeadLettersReplayGoesOn has the endpoint fail in the middle of a replay, and goes on as the replay says.
func TestDeadLettersReplayGoesOn(t *testing.T) {
	c := kafkatest.New(t)
	l := newLetters(t, c)
	for p := range int32(2) {
		for i := range int64(10) {
			l.Produce(t, l.letter(p, i, nil))
		}
	}
	in := newInbox(t, l.environ)
	in.status = func(n int, _ string) int {
		if n > 10 {
			return http.StatusServiceUnavailable
		}
		return 0
	}
	code, stdout, stderr := command(t, l.environ, "dead-letters", "replay", "--patience", "200ms", "--since", "87600h")
	first := lastSummary(t, stdout)
	if code != exitFatal || first.Replayed != 10 || !strings.Contains(stderr, "503") {
		t.Fatalf("exit code %d, summary %+v, stderr %s", code, first, stderr)
	}
	found := goOnFlags.FindStringSubmatch(stderr)
	if found == nil || !strings.Contains(found[1], fmt.Sprintf("--run %d", first.Run)) || !strings.Contains(found[1], "--since 20") {
		t.Fatalf("stderr does not say how to go on: %s", stderr)
	}
	in.status = nil
	code, stdout, stderr = command(t, l.environ, append([]string{"dead-letters", "replay", "--patience", "200ms", "--since", "87600h"}, strings.Fields(found[1])...)...)
	if second := lastSummary(t, stdout); code != exitOK || second.Replayed != 10 || second.Run != first.Run {
		t.Errorf("exit code %d, summary %+v, stderr %s", code, second, stderr)
	}
	if len(in.bodies) != 20 || in.repeats != 0 {
		t.Errorf("%d events arrived, %d again", len(in.bodies), in.repeats)
	}
	// With the run alone, what was delivered comes again under its id.
	code, stdout, _ = command(t, l.environ, "dead-letters", "replay", "--run", fmt.Sprint(first.Run))
	if third := lastSummary(t, stdout); code != exitOK || third.Replayed != 20 || len(in.bodies) != 20 || in.repeats != 20 {
		t.Errorf("exit code %d, summary %+v, %d events, %d again", code, third, len(in.bodies), in.repeats)
	}
	for _, err := range in.bad {
		t.Error(err)
	}
}

func lastSummary(t *testing.T, stdout string) deadletter.Summary {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	var summary deadletter.Summary
	decoder := json.NewDecoder(strings.NewReader(lines[len(lines)-1]))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&summary); err != nil {
		t.Fatalf("the last line of %q: %v", stdout, err)
	}
	return summary
}

// TestDeadLettersOfTheProcessor has the processor refuse a record, and puts it back.
func TestDeadLettersOfTheProcessor(t *testing.T) {
	c, environ := cluster(t)
	delete(environ, "OFFHOOK_WEBHOOK_URL") // no sink's settings are needed
	p := start(t, environ, "processor")
	listed := func() []string {
		code, stdout, _ := command(t, environ, "dead-letters", "list", "--sink", "route", "--reason", "invalid")
		if code != exitOK {
			return nil // the topic is about to be made
		}
		return positionAtStart.FindAllString(stdout, -1)
	}
	kafkatest.Wait(t, 20*time.Second, "the topic", func() bool {
		code, _, _ := command(t, environ, "dead-letters", "list")
		return code == exitOK
	})
	record := kgo.Record{Topic: environ["OFFHOOK_CONNECTIONS_TOPIC"], Partition: 1, Key: []byte("k"), Value: []byte("no JSON"), Timestamp: time.UnixMilli(1_700_000_000_000)}
	c.Produce(t, &record)
	kafkatest.Wait(t, 20*time.Second, "the dead letter", func() bool { return len(listed()) == 1 })

	for _, args := range [][]string{{"--dry-run"}, nil} {
		code, stdout, stderr := command(t, environ, append([]string{"dead-letters", "replay", "--sink", "route"}, args...)...)
		if got := lastSummary(t, stdout); code != exitOK || got.PutBack != 1 || got.Run != 0 || got.DryRun != (args != nil) {
			t.Fatalf("%v: exit code %d, summary %+v, stderr %s", args, code, got, stderr)
		}
	}
	kafkatest.Wait(t, 20*time.Second, "the dead letter of the one that was put back", func() bool { return len(listed()) == 2 })
	p.stop()
	p.exit(t, exitOK)
	all := c.ReadAll(t, record.Topic)
	if len(all) != 2 {
		t.Fatalf("%d records, want 2", len(all))
	}
	for _, r := range all {
		if r.Partition != 1 || string(r.Key) != "k" || string(r.Value) != "no JSON" || r.Timestamp.UnixMilli() != 1_700_000_000_000 {
			t.Errorf("got %+v", r)
		}
	}
}

func TestDeadLettersUsage(t *testing.T) {
	for _, args := range []string{
		"list --reason odd", "list --event msg.odd", "list --since yesterday", "list --since -1h", "list --event msg.notify --topic x", "list --partition x",
		"list 0-0", "show", "show 0", "show 0-0 --sink x", "replay 5", "replay --patience=-1s", "replay --run=-1", "replay --sink route --run 5", "replay --after 5",
	} {
		code, _, stderr := command(t, good(), append([]string{"dead-letters"}, strings.Fields(args)...)...)
		if code != exitSettings || !strings.HasPrefix(stderr, "offhook: ") {
			t.Errorf("%s: exit code %d, stderr %s", args, code, stderr)
		}
	}
	// A sink's settings are needed to replay, and for nothing else.
	for args, want := range map[string]string{"list": "OFFHOOK_KAFKA_BROKERS", "show 0-0": "OFFHOOK_KAFKA_BROKERS", "replay --sink route": "OFFHOOK_KAFKA_BROKERS", "replay": "OFFHOOK_WEBHOOK_URL"} {
		environ := environment{}
		if want != "OFFHOOK_KAFKA_BROKERS" {
			environ["OFFHOOK_KAFKA_BROKERS"] = "localhost:9092"
		}
		code, _, stderr := command(t, environ, append([]string{"dead-letters"}, strings.Fields(args)...)...)
		if code != exitSettings || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, stderr %s", args, code, stderr)
		}
	}
}
