package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/truth"
	"github.com/offhook/offhook/schemas"
)

// summary is the object that receive and demo end with.
type summary struct {
	Requests int64            `json:"requests"`
	Events   map[string]int64 `json:"events"`
	Lost     *int64           `json:"lost"`

	DuplicatesAfterDedupe *int64 `json:"duplicates_after_dedupe"`
	RepeatedIDs           *int64 `json:"repeated_ids"`
	ChangedBodies         *int64 `json:"changed_bodies"`
	OutOfOrder            *int64 `json:"out_of_order"`
	BadSignatures         *int64 `json:"bad_signatures"`
}

// readSummary reads the last line of a command's stdout.
func readSummary(t *testing.T, stdout string) summary {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	var s summary
	decoder := json.NewDecoder(strings.NewReader(lines[len(lines)-1]))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil {
		t.Fatalf("decode the last line of stdout: %v: %q", err, lines[len(lines)-1])
	}
	for name, n := range map[string]*int64{
		"duplicates_after_dedupe": s.DuplicatesAfterDedupe, "repeated_ids": s.RepeatedIDs, "changed_bodies": s.ChangedBodies,
		"out_of_order": s.OutOfOrder, "bad_signatures": s.BadSignatures,
	} {
		if n == nil {
			t.Fatalf("the summary has no %s: %s", name, lines[len(lines)-1])
		}
	}
	return s
}

// clean fails the test where a summary shows anything but what must be. A request may come again, with its id.
func (s summary) clean(t *testing.T) {
	t.Helper()
	if s.Lost == nil || *s.Lost != 0 || *s.DuplicatesAfterDedupe != 0 || *s.ChangedBodies != 0 || *s.OutOfOrder != 0 || *s.BadSignatures != 0 {
		t.Error("the summary shows something wrong")
	}
	for _, event := range schemas.Events() {
		if s.Events[string(event)] == 0 {
			t.Errorf("no %s arrived", event)
		}
	}
	if s.Requests == 0 {
		t.Error("no request arrived")
	}
}

// TestDemo is the first command of the README.
func TestDemo(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := command(t, nil, "demo", "--duration", "8s")
	if code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	readSummary(t, stdout).clean(t)
	for _, event := range schemas.Events() {
		if !strings.Contains(stderr, "?event="+string(event)) {
			t.Errorf("the demo shows no %s", event)
		}
	}
}

// TestDemoInterrupted ends a demo without a duration as Ctrl-C does.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"OFFHOOK_WEBHOOK_URL=ftp://ignored"}, "demo")
	kafkatest.Wait(t, startTimeout, "the demo to show a request of each event", func() bool {
		shown := true
		for _, event := range schemas.Events() {
			shown = shown && strings.Contains(p.stderr.String(), "?event="+string(event))
		}
		return shown || p.ended()
	})
	if p.ended() {
		t.Fatal("the demo ended by itself")
	}
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatalf("send SIGINT: %v", err)
	}
	if code := p.wait(stopTimeout); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	readSummary(t, p.stdout.String()).clean(t)
}

// TestTopics creates the owned topics, checks them, and finds what does not go together.
func TestTopics(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		s := &system{t: t, cluster: c}
		env := s.kafkaEnv()
		suffixes := []string{".inbox", ".presence", ".user.onlinestatus", ".msg.offline", ".msg.notify", ".dead-letters"}
		if code, _, stderr := command(t, env, "topics", "check"); code != 1 || !strings.Contains(stderr, c.Prefix) {
			t.Errorf("topics check without topics: exit code %d, want 1 and the topics' names: %s", code, stderr)
		}
		for _, args := range [][]string{{"topics", "create"}, {"topics", "create"}, {"topics", "check"}} {
			code, stdout, stderr := command(t, env, args...)
			if code != 0 {
				t.Errorf("%v: exit code %d, want 0: %s", args, code, stderr)
			}
			for _, suffix := range suffixes {
				if !regexp.MustCompile(regexp.QuoteMeta(c.Prefix+suffix) + `\s+` + partitions + `\s`).MatchString(stdout) {
					t.Errorf("%v does not list %s with %s partitions:\n%s", args, c.Prefix+suffix, partitions, stdout)
				}
			}
		}
		odd := c.Prefix + "-odd"
		c.CreateTopic(t, odd+".inbox", 3)
		code, _, stderr := command(t, s.kafkaEnv("OFFHOOK_TOPIC_PREFIX="+odd), "topics", "create")
		if code == 0 {
			if code, _, stderr = command(t, s.kafkaEnv("OFFHOOK_TOPIC_PREFIX="+odd), "topics", "check"); code != 0 {
				t.Errorf("topics create made topics that topics check refuses: %s", stderr)
			}
		} else if !strings.Contains(stderr, odd+".inbox") {
			t.Errorf("topics create with an inbox of another count does not name it: %s", stderr)
		}
	})
}

// TestPrinting runs the commands that print something.
func TestPrinting(t *testing.T) {
	t.Parallel()
	print := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := command(t, nil, args...)
		if code != 0 || stderr != "" || stdout == "" {
			t.Errorf("offhook %v: exit code %d, stdout %d bytes, stderr %q", args, code, len(stdout), stderr)
		}
		return stdout
	}
	if out := print("version"); !strings.HasPrefix(out, "offhook ") {
		t.Errorf("offhook version prints %q", out)
	}
	if out := print("help", "settings"); !strings.Contains(out, "OFFHOOK_WEBHOOK_URL") || !strings.Contains(out, "OFFHOOK_COMMIT_INTERVAL (100ms)") {
		t.Errorf("offhook help settings prints %q", out)
	}
	names := strings.Fields(print("schemas"))
	if len(names) != 7 || names[6] != "query" {
		t.Errorf("offhook schemas lists %v, want six schemas and the OpenAPI document", names)
	}
	for _, name := range names {
		document, err := jsonschema.UnmarshalJSON(strings.NewReader(print("schemas", name)))
		if err != nil {
			t.Errorf("schema %s is no JSON: %v", name, err)
			continue
		}
		compiler := jsonschema.NewCompiler()
		if err := compiler.AddResource(name, document); err != nil {
			t.Errorf("schema %s: %v", name, err)
		} else if _, err := compiler.Compile(name); err != nil {
			t.Errorf("schema %s does not compile: %v", name, err)
		}
	}
	for _, args := range [][]string{{"schemas", "nothing"}, {"dance"}, {"run", "--nonsense"}} {
		if code, stdout, stderr := command(t, nil, args...); code != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("offhook %v: exit code %d, stdout %q, stderr %q; want 2 and one line on stderr", args, code, stdout, stderr)
		}
	}
}

// TestThreeProcesses has simulate, run and receive as processes of their own, with a truth between them; then a truth
// that holds a message that was never sent.
func TestThreeProcesses(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		s := newSystem(t, c, newEndpoint(t), 3)
		file := filepath.Join(t.TempDir(), "truth.jsonl")
		const secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"

		receive := func(truthFile string) (*process, string) {
			p := start(t, nil, "receive", "--addr", "127.0.0.1:0", "--secret", secret, "--truth", truthFile)
			address := regexp.MustCompile(`127\.0\.0\.1:[1-9]\d*`)
			kafkatest.Wait(t, startTimeout, "offhook receive to say where it listens", func() bool {
				return address.MatchString(p.stderr.String()) || p.ended()
			})
			return p, "http://" + address.FindString(p.stderr.String())
		}
		receiver, url := receive(file)
		run := s.run("OFFHOOK_WEBHOOK_URL="+url, "OFFHOOK_WEBHOOK_SECRETS="+secret).ready()
		simulate := start(t, nil, "simulate", "--brokers", strings.Join(c.Brokers, ","), "--connections-topic", s.connections,
			"--messages-topic", s.messages, "--users", "60", "--seed", "7", "--duration", "3s", "--truth", file)
		if code := simulate.wait(startTimeout); code != 0 {
			t.Fatalf("simulate: exit code %d, want 0", code)
		}
		var connections, messages int64
		if _, err := fmt.Sscanf(regexp.MustCompile(`\d+ connection records and \d+ messages`).FindString(simulate.stdout.String()),
			"%d connection records and %d messages", &connections, &messages); err != nil {
			t.Fatalf("simulate prints no summary: %v: %s", err, simulate.stdout.String())
		}
		events := drained(t, run, connections+messages)
		interrupt(t, receiver, 0)
		got := readSummary(t, receiver.stdout.String())
		got.clean(t)

		// The same requests, kept in the topics, to a receiver whose truth has one message more.
		more := filepath.Join(t.TempDir(), "more.jsonl")
		addMessage(t, file, more)
		second, url := receive(more)
		again := start(t, s.env("OFFHOOK_WEBHOOK_URL="+url, "OFFHOOK_WEBHOOK_SECRETS="+secret, "OFFHOOK_SINK_NAME=second", "OFFHOOK_SINK_START=earliest"), "sink").ready()
		kafkatest.Wait(t, drainTimeout, "the second sink to deliver as much as the first", func() bool {
			n, _ := scrape(t, again).sum("offhook_sink_events_total", "outcome=delivered", "sink=second")
			return n == events
		})
		interrupt(t, second, 1)
		lost := readSummary(t, second.stdout.String())
		if lost.Lost == nil || *lost.Lost < 1 {
			t.Errorf("the summary shows nothing lost, though a message was never sent: %s", second.stdout.String())
		}
		for event, n := range got.Events {
			if lost.Events[event] != n {
				t.Errorf("the second sink delivered %d events of %s, the first %d", lost.Events[event], event, n)
			}
		}
		again.terminate()
		run.terminate()
	})
}

// drained waits until `offhook run` has taken in so many records, all of its own life, and delivered all that was made
// of them. It returns how many events that is.
func drained(t *testing.T, p *process, records int64) float64 {
	t.Helper()
	var delivered float64
	kafkatest.Wait(t, drainTimeout, "all events to be delivered", func() bool {
		f := scrape(t, p)
		sum := func(name string, labels ...string) float64 {
			n, _ := f.sum(name, labels...)
			return n
		}
		messages := sum("offhook_route_records_total", "input=messages")
		inbox := sum("offhook_records_produced_total", "stage=route") - messages
		events := messages + sum("offhook_presence_online_status_total") + sum("offhook_presence_offline_messages_total")
		delivered = sum("offhook_sink_events_total", "outcome=delivered")
		return sum("offhook_records_consumed_total", "stage=route") == float64(records) &&
			sum("offhook_records_consumed_total", "stage=presence") == inbox && delivered == events
	})
	return delivered
}

// interrupt is Ctrl-C, with the exit code that it is to end in.
func interrupt(t *testing.T, p *process, want int) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatalf("send SIGINT to offhook %s: %v", p.name, err)
	}
	if code := p.wait(stopTimeout); code != want {
		t.Errorf("offhook %s ended with exit code %d, want %d; stdout:\n%s", p.name, code, want, p.stdout.String())
	}
}

// addMessage copies a truth file and adds a message that was never sent: the next one of the first sender that has one.
func addMessage(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	writer := truth.NewWriter(&out)
	var run string
	var extra truth.Line
	for line := range bytes.Lines(raw) {
		var l truth.Line
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("decode a line of the truth: %v: %s", err, line)
		}
		switch l.Kind {
		case truth.KindRun:
			run = l.Run
		case truth.KindMessage:
			if extra.Kind == "" || extra.FromUID == l.FromUID {
				extra = l
			}
		case truth.KindEnd:
			extra.N++
			extra.ClientMsgNo = truth.ClientMsgNo(run, extra.FromUID, extra.N)
			if err := writer.Record(extra); err != nil {
				t.Fatal(err)
			}
			l.Messages++
		}
		if err := writer.Record(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}
