package main

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/truth"
	"github.com/offhook/offhook/schemas"
)

// The backlog that has one poisonous event in it.
const (
	backlogEvents  = 10_000
	backlogSenders = 50
	backlogBatch   = 100
	// backlogHalves is how many requests one refused event of a full batch costs: two halves each of 100, 50, 25, 13, 7, 4 and 2.
	backlogHalves = 14
)

// backlogSettings are of a sink that delivers a backlog.
var backlogSettings = []string{
	"OFFHOOK_WEBHOOK_EVENTS=msg.notify", "OFFHOOK_WEBHOOK_BATCH_MAX=" + strconv.Itoa(backlogBatch), "OFFHOOK_WEBHOOK_FLUSH_INTERVAL=500ms",
}

// backlog creates the owned topics and writes n messages of several senders into that of msg.notify, as route does.
func (s *system) backlog(run string, n int) {
	s.t.Helper()
	if code, _, stderr := command(s.t, s.kafkaEnv(), "topics", "create"); code != 0 {
		s.t.Fatalf("topics create: exit code %d: %s", code, stderr)
	}
	var records []*kgo.Record
	for i := range n {
		uid := fmt.Sprint("sender", i%backlogSenders)
		m, err := schemas.DecodeMessage(fmt.Appendf(nil, `{"from_uid":%q,"channel_id":"g","channel_type":2,"client_msg_no":%q}`,
			uid, truth.ClientMsgNo(run, uid, uint32(i/backlogSenders+1))), schemas.Source{Topic: s.messages, Offset: int64(i), Time: time.Now().UnixMilli()})
		if err != nil {
			s.t.Fatalf("make a message: %v", err)
		}
		records = append(records, &kgo.Record{
			Topic: s.topics.Notify, Key: []byte(uid), Value: m.Item, Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	if err := s.cluster.Client(s.t).ProduceSync(ctx, records...).FirstErr(); err != nil {
		s.t.Fatalf("write the backlog: %v", err)
	}
}

// refuser refuses one message of msg.notify, whatever batch it is in.
type refuser struct {
	clientMsgNo string
	status      int
	// refusing, where not nil, is called before the nth refusal (from 1) is answered, of a batch of so many events.
	refusing func(n, events int)

	mu      sync.Mutex
	refused []taken
}

// screen is for endpoint.screen.
func (f *refuser) screen(r taken) int {
	if r.event != schemas.EventNotify || !f.in(r.body) {
		return 0
	}
	f.mu.Lock()
	f.refused = append(f.refused, r)
	n := len(f.refused)
	f.mu.Unlock()
	if f.refusing != nil {
		f.refusing(n, events(r))
	}
	return f.status
}

// in reports whether the message is in a body, or is it.
func (f *refuser) in(body []byte) bool {
	return bytes.Contains(body, fmt.Appendf(nil, `"client_msg_no":%q`, f.clientMsgNo))
}

// refusals are the requests refused so far.
func (f *refuser) refusals() []taken {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.refused)
}

// events is the number of messages in a request's body.
func events(r taken) int { return bytes.Count(r.body, []byte(`"client_msg_no":`)) }

// span is what a webhook-id names: offsets of one partition of one topic.
type span struct {
	lane        string // topic id and partition
	first, last int64
}

var webhookID = regexp.MustCompile(`^([0-9a-f]{32}-\d+)-(\d+)-(\d+)$`)

// parseSpan reports false where id is no webhook-id.
func parseSpan(id string) (span, bool) {
	parts := webhookID.FindStringSubmatch(id)
	if parts == nil {
		return span{}, false
	}
	first, errFirst := strconv.ParseInt(parts[2], 10, 64)
	last, errLast := strconv.ParseInt(parts[3], 10, 64)
	return span{parts[1], first, last}, errFirst == nil && errLast == nil
}

func spanOf(t *testing.T, id string) span {
	t.Helper()
	s, ok := parseSpan(id)
	if !ok {
		t.Fatalf("the webhook-id is %q, want <topic id>-<partition>-<first>-<last>", id)
	}
	return s
}

// within reports whether s is a part of other, and not all of it.
func (s span) within(other span) bool {
	return s != other && s.lane == other.lane && s.first >= other.first && s.last <= other.last
}

// checkBacklog waits until the backlog has gone where it belongs, and checks that it has: the refused message into the dead letters,
// all else to the endpoint, in order.
func checkBacklog(t *testing.T, s *system, bad *refuser) {
	t.Helper()
	e := s.endpoint
	kafkatest.Wait(t, drainTimeout, "all messages but one, and the dead letter", func() bool {
		return e.receiver.Summary(nil).Events.Notify >= backlogEvents-1 && len(s.letters()) > 0
	})
	time.Sleep(s.quiet())
	if summary := e.receiver.Summary(nil); summary.Wrong() || summary.Events.Notify != backlogEvents-1 {
		t.Errorf("the summary is %+v, want %d events of msg.notify and nothing wrong", summary, backlogEvents-1)
	}
	for _, r := range e.all() {
		if bad.in(r.body) {
			t.Errorf("%s was taken, with the message that is refused", r.id)
		}
		if n := events(r); n > backlogBatch {
			t.Errorf("%s has %d events, more than OFFHOOK_WEBHOOK_BATCH_MAX", r.id, n)
		}
	}
	bodies := make(map[string][]byte) // of refused requests: the receiver knows those of the others
	for _, r := range bad.refusals() {
		if known, ok := bodies[r.id]; ok && !bytes.Equal(known, r.body) {
			t.Errorf("%s was refused twice, with two bodies", r.id)
		}
		bodies[r.id] = r.body
	}
	letters := s.letters()
	if len(letters) != 1 {
		t.Errorf("%d dead letters, want 1", len(letters))
	}
	for _, letter := range letters {
		if !bad.in(letter.Value) || letter.Reason != schemas.ReasonRefused || letter.Status != bad.status {
			t.Errorf("dead letter: %s, status %d, %s offset %d; want the message that is refused, and why",
				letter.Reason, letter.Status, letter.Source.Topic, letter.Source.Offset)
		}
	}
}

// TestHalving has the endpoint refuse one message of 10,000, in batches of 100: that one is in the dead letters, the others are
// delivered in order, and halving costs 14 requests at most.
func TestHalving(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 1)
		s.backlog("halving", backlogEvents)
		bad := &refuser{clientMsgNo: truth.ClientMsgNo("halving", "sender7", 100), status: 400}
		e.screen(bad.screen)
		p := start(t, s.env(backlogSettings...), "sink").ready()
		checkBacklog(t, s, bad)

		requests := append(e.all(), bad.refusals()...)
		var refused []span
		for _, r := range bad.refusals() {
			refused = append(refused, spanOf(t, r.id))
		}
		halves := 0
		known := make(map[string]bool)
		for _, r := range requests {
			if known[r.id] {
				t.Errorf("%s came twice", r.id)
			}
			known[r.id] = true
			if at := spanOf(t, r.id); slices.ContainsFunc(refused, at.within) {
				halves++
			}
		}
		t.Logf("%d requests, %d of them halves; %d refused", len(requests), halves, len(refused))
		if halves > backlogHalves {
			t.Errorf("%d requests more than there were batches, want at most %d", halves, backlogHalves)
		}
		if batches := len(requests) - halves; batches > backlogEvents/backlogBatch*5/4 {
			t.Errorf("%d batches: they were to be of %d events", batches, backlogBatch)
		}

		code, stdout, stderr := command(t, s.kafkaEnv(), "dead-letters", "list", "--json")
		if lines := strings.Count(stdout, "\n"); code != 0 || lines != 1 || !strings.Contains(stdout, s.topics.Notify) {
			t.Errorf("dead-letters list: exit code %d, %d lines: %s%s", code, lines, stdout, stderr)
		}
		p.terminate()
	})
}

// TestHalvingKill kills the sink with kill -9 in the middle of the halving, before or after the refusal's answer is out, at several
// depths. The next one goes on with the plan that it finds: the same message alone is dead, no id has two bodies.
func TestHalvingKill(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		refusals int           // the kill comes at this one; 0: at that of the single event
		answered time.Duration // how long after the answer; negative: before it
	}{
		{"the batch, unanswered", 1, -1},
		{"a half, just answered", 2, 0},
		{"a half of a half, unanswered", 3, -1},
		{"a deeper half, answered", 5, 2 * time.Millisecond},
		{"the event, unanswered", 0, -1},
		{"the event, answered", 0, time.Millisecond},
		{"the event, answered a while ago", 0, 10 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
				parallel(t, c)
				e := newEndpoint(t)
				s := newSystem(t, c, e, 1)
				s.backlog("halving", backlogEvents)
				reached, killed := make(chan struct{}), make(chan struct{})
				reach, release := sync.OnceFunc(func() { close(reached) }), sync.OnceFunc(func() { close(killed) })
				t.Cleanup(release)
				bad := &refuser{clientMsgNo: truth.ClientMsgNo("halving", "sender11", 77), status: 422}
				bad.refusing = func(n, events int) {
					if n != tt.refusals && (tt.refusals > 0 || events > 1) {
						return
					}
					reach()
					if tt.answered < 0 {
						<-killed
					}
				}
				e.screen(bad.screen)
				p := start(t, s.env(backlogSettings...), "sink")
				select {
				case <-reached:
				case <-time.After(startTimeout):
					t.Fatalf("%d refusals within %v", len(bad.refusals()), startTimeout)
				}
				time.Sleep(tt.answered)
				p.kill()
				release()
				before := len(bad.refusals())

				p = start(t, s.env(backlogSettings...), "sink").ready()
				checkBacklog(t, s, bad)
				t.Logf("killed at refusal %d, %d afterwards; %d ids came again", before, len(bad.refusals())-before, e.receiver.Summary(nil).RepeatedIDs)
				p.terminate()
			})
		})
	}
}

// TestHalvingKillMended kills the sink when the endpoint has taken one half of a batch and refused the other, and mends the endpoint
// before the next one starts. That the batch was halved is in the plan: whole it would be taken now, and its first half twice.
func TestHalvingKillMended(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 1)
		// About a batch a lane: nothing else is planned that would bring a plan to Kafka. The message is in the second half.
		const n = 8 * backlogSenders
		s.backlog("mended", n)
		reached, killed := make(chan struct{}), make(chan struct{})
		release := sync.OnceFunc(func() { close(killed) })
		t.Cleanup(release)
		bad := &refuser{clientMsgNo: truth.ClientMsgNo("mended", "sender11", 7), status: 400}
		bad.refusing = func(n, _ int) {
			if n == 2 {
				close(reached)
				<-killed
			}
		}
		e.screen(bad.screen)
		settings := s.env(append(backlogSettings, "OFFHOOK_WEBHOOK_FLUSH_INTERVAL=2s")...)
		p := start(t, settings, "sink")
		select {
		case <-reached:
		case <-time.After(startTimeout):
			t.Fatalf("%d refusals within %v", len(bad.refusals()), startTimeout)
		}
		p.kill()
		e.screen(nil)
		release()
		whole, half := spanOf(t, bad.refusals()[0].id), spanOf(t, bad.refusals()[1].id)
		if !half.within(whole) || half.first == whole.first {
			t.Fatalf("%v and then %v were refused, want the second half of the first", whole, half)
		}

		p = start(t, settings, "sink").ready()
		kafkatest.Wait(t, drainTimeout, "all messages", func() bool { return e.receiver.Summary(nil).Events.Notify >= n })
		time.Sleep(s.quiet())
		if summary := e.receiver.Summary(nil); summary.Wrong() || summary.Events.Notify != n {
			t.Errorf("the summary is %+v, want %d events of msg.notify and nothing wrong", summary, n)
		}
		if letters := s.letters(); len(letters) > 0 {
			t.Errorf("%d dead letters, want none: the message was taken", len(letters))
		}
		p.terminate()
	})
}
