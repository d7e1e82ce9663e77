package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
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

// burst writes messages of one sender that make one batch.
func (s *system) burst(n int) {
	s.t.Helper()
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{Topic: s.messages, Value: fmt.Appendf(nil, `{"channel_id":"c","channel_type":2,"from_uid":"u","client_msg_no":"m%d","payload":""}`, i)}
	}
	s.cluster.Produce(s.t, records...)
}

// target is the client_msg_no of a message beside the traffic, which scenarios name.
const target = "target"

// TestScenarios is the design's table of answers, row by row, and the endpoints of `receive --scenario`, under traffic: nothing is
// lost, doubled, changed or out of order, and in the dead letters stands what is refused alone.
func TestScenarios(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		play     []string
		settings []string
		refuse   bool   // the target is refused
		mended   bool   // the endpoint does no more of it in the end
		log      string // stands in the log

	}{
		{name: "2xx, slow", play: []string{"slow:20ms:100ms"}},
		{name: "2xx, other than 200", play: []string{"status:202:1h"}},
		{name: "408", play: []string{"status:408:1500ms"}, log: "408"},
		{name: "425", play: []string{"status:425:1500ms"}, log: "425"},
		{name: "429", play: []string{"busy:7:1"}, log: "429"},
		{name: "503", play: []string{"status:503:1500ms"}, log: "503"},
		{name: "500 at a rate", play: []string{"errors:20"}, log: "500"},
		{name: "500 for one message for a while", play: []string{"fail:" + target}, mended: true, log: "500"},
		{name: "timeout, though it took the batch", play: []string{"late:5:2s"}, settings: []string{"OFFHOOK_WEBHOOK_TIMEOUT=500ms"}, log: "timeout"},
		{name: "connection, not taken", play: []string{"cut:5"}, log: "connection"},
		{name: "connection, taken", play: []string{"cut:5:answer"}, log: "connection"},
		{name: "endless", play: []string{"endless:10"}, settings: []string{"OFFHOOK_WEBHOOK_TIMEOUT=300ms"}},
		{name: "flood", play: []string{"flood:20"}},
		{name: "400", play: []string{"refuse:" + target}, refuse: true, log: "it goes to the dead letters"},
		{name: "413", play: []string{"too-large:3KiB"}, settings: []string{"OFFHOOK_WEBHOOK_FLUSH_INTERVAL=500ms"}, log: "its halves are sent"},
		{name: "415", play: []string{"refuse:" + target + ":415"}, refuse: true, log: "it goes to the dead letters"},
		{name: "422", play: []string{"refuse:" + target + ":422"}, refuse: true, log: "it goes to the dead letters"},
		{name: "302, not followed", play: []string{"status:302:1500ms"}, log: "the endpoint or its settings are wrong"},
		{name: "307, not followed", play: []string{"status:307:1500ms"}, log: "the endpoint or its settings are wrong"},
		{name: "401", play: []string{"status:401:1500ms"}, log: "the endpoint or its settings are wrong"},
		{name: "403", play: []string{"status:403:1500ms"}, log: "the endpoint or its settings are wrong"},
		{name: "404", play: []string{"status:404:1500ms"}, log: "the endpoint or its settings are wrong"},
		{name: "405", play: []string{"status:405:1500ms"}, log: "the endpoint or its settings are wrong"},
		{name: "410", play: []string{"status:410:1500ms"}, log: "the endpoint or its settings are wrong"},
		{name: "any other", play: []string{"status:418:1500ms"}, log: "the endpoint or its settings are wrong"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
				parallel(t, c)
				e := newEndpoint(t)
				s := newSystem(t, c, e, 2)
				p := s.run(tt.settings...).ready()
				traffic := s.simulate(150, 50)
				e.waitItems(schemas.EventNotify, 30, effectTimeout)

				e.play(tt.play...)
				// To one who is offline: it makes a msg.offline too.
				s.message(`{"channel_id":"friend","from_uid":"outsider","client_msg_no":"%s","payload":""}`, target)
				time.Sleep(1600 * time.Millisecond) // longer than scenarios with a time
				if tt.mended {
					e.play()
				}
				// In the end the traffic goes on, so that what follows on a failure is seen too.
				n := len(e.items(schemas.EventNotify))
				e.waitItems(schemas.EventNotify, n+60, drainTimeout)
				if summary := e.settle(traffic.stop(), drainTimeout, s.quiet()); summary.TooEarly > 0 {
					t.Errorf("%d requests came again before the time that Retry-After named", summary.TooEarly)
				}

				var dead []string
				for _, letter := range s.letters() {
					if letter.Reason != schemas.ReasonRefused || !strings.Contains(string(letter.Value), `"`+target+`"`) {
						t.Errorf("dead letter of %s offset %d, reason %s", letter.Source.Topic, letter.Source.Offset, letter.Reason)
					}
					dead = append(dead, letter.Source.Topic)
				}
				var want []string
				if tt.refuse {
					want = []string{s.topics.Offline, s.topics.Notify}
				}
				if slices.Sort(dead); !slices.Equal(dead, slices.Sorted(slices.Values(want))) {
					t.Errorf("dead letters of %v, want one each of %v", dead, want)
				}
				arrived := 0
				for _, event := range []schemas.Event{schemas.EventNotify, schemas.EventOffline} {
					for _, item := range e.items(event) {
						arrived += strings.Count(item, `"`+target+`"`)
					}
				}
				if arrived != 2-len(want) {
					t.Errorf("%d events of the message arrived, want %d", arrived, 2-len(want))
				}
				p.terminate()
				if log := p.stderr.String(); !strings.Contains(log, tt.log) {
					t.Errorf("the log does not say %q", tt.log)
				}
			})
		})
	}
}

// TestFickleEndpoint is the first exception of guarantee 4: an endpoint that takes one copy of a request and refuses another. The
// halves come under ids of their own, so that their events come twice; none is lost.
func TestFickleEndpoint(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 1)
		p := s.run("OFFHOOK_WEBHOOK_TIMEOUT=1s", "OFFHOOK_WEBHOOK_FLUSH_INTERVAL=500ms").ready()
		h := e.hold(schemas.EventNotify) // the first copy is taken, and its answer comes too late
		const messages = 4
		s.burst(messages)
		<-h.reached
		refused := false
		e.answers(func(schemas.Event) int {
			if refused {
				return 0
			}
			refused = true
			return 400
		})
		kafkatest.Wait(t, drainTimeout, "the halves", func() bool { return len(e.items(schemas.EventNotify)) == 2*messages })
		close(h.release)
		if summary := e.receiver.Summary(nil); summary.DuplicatesAfterDedupe != messages || summary.ChangedBodies != 0 {
			t.Errorf("summary %+v, want %d duplicates", summary, messages)
		}
		if letters := s.letters(); len(letters) > 0 {
			t.Errorf("%d dead letters", len(letters))
		}
		p.terminate()
	})
}

// TestGivenUpThoughTaken is the second exception: a batch is given up of which a copy was taken. It is delivered, and stands in the
// dead letters too.
func TestGivenUpThoughTaken(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 1)
		p := s.run("OFFHOOK_WEBHOOK_GIVE_UP_AFTER=1s", "OFFHOOK_WEBHOOK_TIMEOUT=500ms", "OFFHOOK_WEBHOOK_FLUSH_INTERVAL=500ms").ready()
		h := e.hold(schemas.EventNotify) // the first copy is taken, and its answer comes too late
		const messages = 4
		s.burst(messages)
		<-h.reached
		e.answers(func(schemas.Event) int { return 503 })
		kafkatest.Wait(t, drainTimeout, "all messages in the dead letters", func() bool { return len(s.letters()) == messages })
		close(h.release)
		for _, letter := range s.letters() {
			if letter.Reason != schemas.ReasonGaveUp || letter.Status != 503 || letter.Attempts < 2 {
				t.Errorf("dead letter of offset %d: reason %s, status %d, %d attempts", letter.Source.Offset, letter.Reason, letter.Status, letter.Attempts)
			}
		}
		if n := len(e.items(schemas.EventNotify)); n != messages {
			t.Errorf("%d messages were taken, want %d", n, messages)
		}
		p.terminate()
	})
}
