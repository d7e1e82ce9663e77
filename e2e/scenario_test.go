package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/truth"
	"github.com/offhook/offhook/schemas"
)

// letters are the dead letters that a sink has written, each key once.
func (s *system) letters() []schemas.DeadLetter {
	s.t.Helper()
	var letters []schemas.DeadLetter
	known := make(map[string]bool)
	for _, r := range s.cluster.ReadAll(s.t, s.topics.DeadLetters) {
		headers := make([]schemas.Header, len(r.Headers))
		for i, h := range r.Headers {
			headers[i] = schemas.Header(h)
		}
		letter, err := schemas.DecodeDeadLetter(r.Key, headers, r.Value)
		if err != nil {
			s.t.Fatal(err)
		}
		if !known[string(r.Key)] {
			known[string(r.Key)] = true
			letters = append(letters, letter)
		}
	}
	return letters
}

// message writes a message.
func (s *system) message(format string, args ...any) {
	s.t.Helper()
	s.cluster.Produce(s.t, &kgo.Record{Topic: s.messages, Value: fmt.Appendf(nil, format, args...)})
}

// A burst is what a test writes beside the traffic: messages of one sender, at once, to a recipient who never connects.
const (
	burstSender    = "sender-of-a-burst"
	burstRecipient = "never-online"
	burstMessages  = 9
)

// target is the client_msg_no of the burst's message in the middle, which scenarios name.
var target = burstNo(burstMessages/2 + 1)

// burstNo is the client_msg_no of a burst's nth message, from 1.
func burstNo(n uint32) string { return truth.ClientMsgNo("burst", burstSender, n) }

// burstNos are those of all messages of a burst.
func burstNos() []string {
	nos := make([]string, burstMessages)
	for i := range nos {
		nos[i] = burstNo(uint32(i + 1))
	}
	return nos
}

// burst writes a burst. The target's payload has size bytes.
func (s *system) burst(size int) {
	s.t.Helper()
	records := make([]*kgo.Record, burstMessages)
	for i, no := range burstNos() {
		payload := ""
		if no == target {
			payload = base64.StdEncoding.EncodeToString(make([]byte, size))
		}
		records[i] = &kgo.Record{Topic: s.messages, Value: fmt.Appendf(nil, `{"from_uid":%q,"client_msg_no":%q,"channel_id":%q,"payload":%q}`,
			burstSender, no, burstRecipient, payload)}
	}
	s.cluster.Produce(s.t, records...)
}

// burst is the client_msg_no of each message of a burst that was taken, in order.
func (e *endpoint) burst(event schemas.Event) []string {
	e.t.Helper()
	var taken []string
	for _, item := range e.items(event) {
		if m := messageOf(e.t, []byte(item)); m.FromUID == burstSender {
			taken = append(taken, m.ClientMsgNo)
		}
	}
	return taken
}

// message is what tests look at of a message.
type message struct {
	FromUID     string `json:"from_uid"`
	ClientMsgNo string `json:"client_msg_no"`
}

func messageOf(t *testing.T, item []byte) (m message) {
	t.Helper()
	if err := json.Unmarshal(item, &m); err != nil {
		t.Fatalf("decode a message: %v: %s", err, item)
	}
	return m
}

// What the log says of an answer.
const (
	saysRetry    = "a batch was not delivered: it is tried again"
	saysEndpoint = "the endpoint or its settings are wrong, not the events: they are kept and tried again until that is mended"
	saysHalves   = "the endpoint refuses a batch: its halves are sent"
	saysDead     = "the endpoint refuses an event: it goes to the dead letters"
)

// TestScenarios is the design's table of answers, row by row, and the endpoints of `receive --scenario`, under traffic: nothing is
// lost, doubled, changed or out of order, and in the dead letters stands what is refused alone.
func TestScenarios(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		play     []string
		settings []string
		payload  int      // of the target, in bytes
		mended   bool     // the endpoint does no more of it when the log has said so
		takes    bool     // it refuses no request
		repeats  bool     // it takes requests and gives no answer to them, so that they come again
		cuts     bool     // it cuts what is under way when it begins, which may then come again
		dead     int      // the status with which the target goes to the dead letters; 0: nothing does
		log      []string // stand in the log
	}{
		{name: "2xx, slow", play: []string{"slow:20ms:100ms"}, takes: true},
		{name: "2xx, other than 200", play: []string{"status:202:1h"}, takes: true},
		{name: "2xx, endless", play: []string{"endless:10"}, settings: []string{"OFFHOOK_WEBHOOK_TIMEOUT=1s"}, takes: true},
		{name: "2xx, flood", play: []string{"flood:10"}, takes: true, repeats: true, log: []string{saysRetry, "headers are too large"}},
		{name: "timeout, though taken", play: []string{"late:5:2s"}, settings: []string{"OFFHOOK_WEBHOOK_TIMEOUT=300ms"}, takes: true, repeats: true, log: []string{saysRetry, "timeout: no answer"}},
		{name: "connection, down", play: []string{"down:0s:1h"}, mended: true, takes: true, cuts: true, log: []string{saysRetry, "connection: dial"}},
		{name: "connection, cut", play: []string{"cut:5"}, log: []string{saysRetry, "connection: "}},
		{name: "connection, cut in the answer", play: []string{"cut:5:answer"}, takes: true, repeats: true, log: []string{saysRetry, "connection: "}},
		{name: "408", play: []string{"status:408:1h"}, mended: true, log: []string{saysRetry, "answered 408"}},
		{name: "425", play: []string{"status:425:1h"}, mended: true, log: []string{saysRetry, "answered 425"}},
		{name: "429", play: []string{"busy:7:1"}, log: []string{saysRetry, "answered 429"}},
		{name: "500, at a rate", play: []string{"errors:20"}, log: []string{saysRetry, "answered 500"}},
		{name: "500, of one message", play: []string{"fail:" + target}, mended: true, log: []string{saysRetry, "answered 500"}},
		{name: "503", play: []string{"status:503:1h"}, mended: true, log: []string{saysRetry, "answered 503"}},
		{name: "400", play: []string{"refuse:" + target}, dead: 400, log: []string{saysHalves, saysDead}},
		{name: "413", play: []string{"too-large:3KiB"}, payload: 3 << 10, dead: 413, log: []string{saysHalves, saysDead}},
		{name: "415", play: []string{"refuse:" + target + ":415"}, dead: 415, log: []string{saysHalves, saysDead}},
		{name: "422", play: []string{"refuse:" + target + ":422"}, dead: 422, log: []string{saysHalves, saysDead}},
		{name: "302, not followed", play: []string{"status:302:1h"}, mended: true, log: []string{saysEndpoint, "answered 302"}},
		{name: "307, not followed", play: []string{"status:307:1h"}, mended: true, log: []string{saysEndpoint, "answered 307"}},
		{name: "401", play: []string{"status:401:1h"}, mended: true, log: []string{saysEndpoint, "answered 401"}},
		{name: "403", play: []string{"status:403:1h"}, mended: true, log: []string{saysEndpoint, "answered 403"}},
		{name: "404", play: []string{"status:404:1h"}, mended: true, log: []string{saysEndpoint, "answered 404"}},
		{name: "405", play: []string{"status:405:1h"}, mended: true, log: []string{saysEndpoint, "answered 405"}},
		{name: "410", play: []string{"status:410:1h"}, mended: true, log: []string{saysEndpoint, "answered 410"}},
		{name: "any other", play: []string{"status:418:1h"}, mended: true, log: []string{saysEndpoint, "answered 418"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
				parallel(t, c)
				e := newEndpoint(t)
				s := newSystem(t, c, e, 2)
				p := s.run(append([]string{"OFFHOOK_WEBHOOK_FLUSH_INTERVAL=200ms"}, tt.settings...)...).ready()
				traffic := s.simulate(100, 50)
				e.waitItems(schemas.EventNotify, 20, effectTimeout)

				e.play(tt.play...)
				s.burst(tt.payload)
				if tt.mended {
					kafkatest.Wait(t, effectTimeout, "the log to say what happens", func() bool {
						return !slices.ContainsFunc(tt.log, func(text string) bool { return !strings.Contains(p.stderr.String(), text) })
					})
					time.Sleep(500 * time.Millisecond) // it goes on
					for _, event := range []schemas.Event{schemas.EventNotify, schemas.EventOffline} {
						if taken := e.burst(event); slices.Contains(taken, target) {
							t.Errorf("%s of the target was taken, though the endpoint fails it", event)
						}
					}
					e.play()
				}
				// In the end the traffic goes on, so that what follows on a failure is seen too.
				n := len(e.items(schemas.EventNotify))
				e.waitItems(schemas.EventNotify, n+40, drainTimeout)
				want := burstNos()
				if tt.dead != 0 {
					want = slices.DeleteFunc(want, func(no string) bool { return no == target })
				}
				must := traffic.stop()
				for _, event := range []schemas.Event{schemas.EventNotify, schemas.EventOffline} {
					kafkatest.Wait(t, drainTimeout, "the burst's "+string(event), func() bool { return len(e.burst(event)) >= len(want) })
				}
				summary := e.settle(must, drainTimeout, s.quiet())

				for _, event := range []schemas.Event{schemas.EventNotify, schemas.EventOffline} {
					if diff := cmp.Diff(want, e.burst(event)); diff != "" {
						t.Errorf("%s of the burst (-want +got):\n%s", event, diff)
					}
				}
				if refuses := summary.RefusedByScenario > 0; refuses == tt.takes {
					t.Errorf("%d requests were refused", summary.RefusedByScenario)
				}
				if repeats := summary.RepeatedIDs > 0; repeats != tt.repeats && !tt.cuts {
					t.Errorf("%d requests came again after they were taken", summary.RepeatedIDs)
				}
				if summary.TooEarly > 0 {
					t.Errorf("%d requests came before the time of their Retry-After", summary.TooEarly)
				}
				s.checkLetters(tt.dead)
				p.terminate()
				for _, text := range tt.log {
					if !strings.Contains(p.stderr.String(), text) {
						t.Errorf("the log does not say %q", text)
					}
				}
			})
		})
	}
}

// checkLetters expects the target alone in the dead letters, once for msg.notify and once for msg.offline, refused with an HTTP
// status; 0: nothing.
func (s *system) checkLetters(status int) {
	s.t.Helper()
	var want, got []string
	if status != 0 {
		for _, topic := range []string{s.topics.Offline, s.topics.Notify} {
			want = append(want, fmt.Sprint(topic, " ", target, " ", schemas.ReasonRefused, " ", status))
		}
	}
	for _, letter := range s.letters() {
		name := ""
		if letter.Source.Topic != s.topics.OnlineStatus {
			name = messageOf(s.t, letter.Value).ClientMsgNo
		}
		got = append(got, fmt.Sprint(letter.Source.Topic, " ", name, " ", letter.Reason, " ", letter.Status))
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		s.t.Errorf("dead letters (-want +got):\n%s", diff)
	}
}

// TestFickle has the endpoint refuse every fourth request once: what is a single event by then is in the dead letters, and all else,
// in halves or not, is delivered. No event is both, as long as each request is sent once.
func TestFickle(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 2)
		p := s.run("OFFHOOK_WEBHOOK_FLUSH_INTERVAL=100ms").ready()
		// Without churn: a user.onlinestatus that is missing makes all after it wrong.
		traffic := s.simulate(150, 0)
		e.waitItems(schemas.EventNotify, 20, effectTimeout)
		e.play("fickle:4")
		kafkatest.Wait(t, effectTimeout, "dead letters", func() bool { return len(s.letters()) > 2 })
		e.play()
		must := traffic.stop()
		var taken map[string]int
		kafkatest.Wait(t, drainTimeout, "each message to be delivered or in the dead letters", func() bool {
			taken = make(map[string]int)
			for _, item := range e.items(schemas.EventNotify) {
				taken[messageOf(t, []byte(item)).ClientMsgNo]++
			}
			for no := range s.deadMessages(s.topics.Notify) {
				taken[no]++
			}
			for m := range must.Messages() {
				if taken[m.ClientMsgNo] == 0 {
					return false
				}
			}
			return true
		})
		for no, n := range taken {
			if n > 1 {
				t.Errorf("%s was delivered or is in the dead letters %d times", no, n)
			}
		}
		for _, topic := range []string{s.topics.Notify, s.topics.Offline} {
			for no := range s.deadMessages(topic) {
				if !must.Doubt(no) {
					t.Errorf("%s, which is in the dead letters, was never sent", no)
				}
			}
		}
		e.settle(must, drainTimeout, s.quiet())
		for _, letter := range s.letters() {
			if letter.Reason != schemas.ReasonRefused || letter.Status != 400 || letter.Source.Topic == s.topics.OnlineStatus {
				t.Errorf("dead letter of %s offset %d, %s with status %d", letter.Source.Topic, letter.Source.Offset, letter.Reason, letter.Status)
			}
		}
		p.terminate()
		if !strings.Contains(p.stderr.String(), saysHalves) {
			t.Errorf("the log does not say %q", saysHalves)
		}
	})
}

// deadMessages are the client_msg_no of the messages that are in the dead letters, from a topic.
func (s *system) deadMessages(topic string) map[string]bool {
	s.t.Helper()
	dead := make(map[string]bool)
	for _, letter := range s.letters() {
		if letter.Source.Topic == topic {
			dead[messageOf(s.t, letter.Value).ClientMsgNo] = true
		}
	}
	return dead
}

// exceptionSettings have a request of one batch of a burst time out.
var exceptionSettings = []string{"OFFHOOK_WEBHOOK_EVENTS=msg.notify", "OFFHOOK_WEBHOOK_TIMEOUT=1s", "OFFHOOK_WEBHOOK_FLUSH_INTERVAL=500ms"}

// burstUnanswered writes a burst of which the endpoint takes the batch and does not answer. What comes next is answered with what next
// says; see answers.
func (s *system) burstUnanswered(next func(schemas.Event) int) {
	s.t.Helper()
	h := s.endpoint.hold(schemas.EventNotify)
	s.burst(0)
	select {
	case <-h.reached:
	case <-time.After(effectTimeout):
		s.t.Fatalf("no request of msg.notify within %v", effectTimeout)
	}
	if diff := cmp.Diff(burstNos(), s.endpoint.burst(schemas.EventNotify)); diff != "" {
		s.t.Fatalf("the batch that is held is not the burst (-want +got):\n%s", diff)
	}
	s.endpoint.answers(next)
	s.t.Cleanup(func() { close(h.release) })
}

// TestFickleEndpoint is the first exception of guarantee 4: an endpoint that takes one copy of a request and refuses another. The
// halves come under ids of their own, so that their events come twice; none is lost.
func TestFickleEndpoint(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 1)
		p := s.run(exceptionSettings...).ready()
		refused := 0 // the endpoint's lock guards it
		s.burstUnanswered(func(schemas.Event) int {
			if refused++; refused == 1 {
				return 400
			}
			return 0
		})
		kafkatest.Wait(t, drainTimeout, "the halves", func() bool { return len(e.burst(schemas.EventNotify)) >= 2*burstMessages })
		time.Sleep(s.quiet())
		if diff := cmp.Diff(append(burstNos(), burstNos()...), e.burst(schemas.EventNotify)); diff != "" {
			t.Errorf("messages taken (-want +got):\n%s", diff)
		}
		if summary := e.receiver.Summary(nil); summary.DuplicatesAfterDedupe != burstMessages || summary.ChangedBodies != 0 || summary.OutOfOrder != 0 {
			t.Errorf("summary %+v, want %d duplicates and nothing else wrong", summary, burstMessages)
		}
		if letters := s.letters(); len(letters) > 0 {
			t.Errorf("%d dead letters", len(letters))
		}
		p.terminate()
	})
}

// TestGivenUpThoughTaken is the second exception: a batch is given up of which a copy was taken. It is delivered, and stands in the
// dead letters too, whole.
func TestGivenUpThoughTaken(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 1)
		p := s.run(append([]string{"OFFHOOK_WEBHOOK_GIVE_UP_AFTER=1s"}, exceptionSettings...)...).ready()
		s.burstUnanswered(func(schemas.Event) int { return 503 })
		kafkatest.Wait(t, drainTimeout, "all messages in the dead letters", func() bool { return len(s.letters()) >= burstMessages })
		time.Sleep(s.quiet())
		var dead []string
		for _, letter := range s.letters() {
			if letter.Reason != schemas.ReasonGaveUp || letter.Status != 503 || letter.Attempts < 2 {
				t.Errorf("dead letter of offset %d: reason %s, status %d, %d attempts", letter.Source.Offset, letter.Reason, letter.Status, letter.Attempts)
			}
			dead = append(dead, messageOf(t, letter.Value).ClientMsgNo)
		}
		if diff := cmp.Diff(burstNos(), dead); diff != "" {
			t.Errorf("messages in the dead letters (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(burstNos(), e.burst(schemas.EventNotify)); diff != "" {
			t.Errorf("messages taken (-want +got):\n%s", diff)
		}
		if summary := e.receiver.Summary(nil); summary.Wrong() {
			t.Errorf("summary %+v, want nothing wrong", summary)
		}
		p.terminate()
	})
}
