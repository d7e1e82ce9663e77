package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// laneHold holds up one lane: its first request, and when some behind that have their answer all others too.
type laneHold struct {
	released chan struct{}

	mu     sync.Mutex
	lane   string  // of the first request; "": none has come
	behind []taken // have their answer
	held   []taken // wait for released
}

// heldBehind is how many requests have their answer behind the one that is held.
const heldBehind = 3

// screen is for endpoint.screen. What it holds is taken when it is released, though its sender may be gone by then.
func (h *laneHold) screen(r taken) int {
	s, ok := parseSpan(r.id)
	if r.event != schemas.EventNotify || !ok {
		return 0
	}
	h.mu.Lock()
	switch {
	case h.lane == "":
		h.lane = s.lane
	case h.lane != s.lane:
		h.mu.Unlock()
		return 0
	case len(h.behind) < heldBehind:
		h.behind = append(h.behind, r)
		h.mu.Unlock()
		return 0
	}
	h.held = append(h.held, r)
	h.mu.Unlock()
	<-h.released
	return 0
}

// requests are those of the lane.
func (h *laneHold) requests() (behind, held []taken) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]taken(nil), h.behind...), append([]taken(nil), h.held...)
}

// TestKillInFlight kills the sink with kill -9 while a lane has several requests under way and some done behind one that is not. All
// of them come again, under their ids and with their bodies; copies that are taken only when their sender is dead do no harm.
func TestKillInFlight(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3)
		processor := start(t, s.env(), "processor").ready()
		// Each message is a batch, and no two share a sender: what is under way together is up to the limit alone.
		settings := s.env("OFFHOOK_WEBHOOK_LANE_IN_FLIGHT=8", "OFFHOOK_WEBHOOK_TIMEOUT=1m", "OFFHOOK_WEBHOOK_BATCH_MAX=1")
		p := start(t, settings, "sink").ready()
		h := &laneHold{released: make(chan struct{})}
		release := sync.OnceFunc(func() { close(h.released) })
		t.Cleanup(release)
		e.screen(h.screen)
		const messages, underWay = 100, 3
		records := make([]*kgo.Record, messages)
		for i := range records {
			records[i] = &kgo.Record{Topic: s.messages, Value: fmt.Appendf(nil, `{"channel_id":"c","channel_type":2,"from_uid":"u%d","client_msg_no":"m%[1]d","payload":""}`, i)}
		}
		c.Produce(t, records...)
		kafkatest.Wait(t, effectTimeout, "a lane with requests under way, and some done behind the first", func() bool {
			behind, held := h.requests()
			return len(behind) == heldBehind && len(held) >= underWay
		})
		p.kill()
		behind, held := h.requests()
		release()
		e.screen(nil)
		kafkatest.Wait(t, effectTimeout, "what is held to be taken", func() bool {
			return len(missing(held, e.all())) == 0
		})
		n := len(e.all())
		p = start(t, settings, "sink").ready()
		e.waitItems(schemas.EventNotify, messages, drainTimeout)
		time.Sleep(s.quiet())
		if summary := e.receiver.Summary(nil); summary.Events.Notify != messages || summary.Wrong() {
			t.Errorf("summary: %+v", summary)
		}
		again := e.all()[n:]
		// What came before the first that is held was done with all before it, and is committed perhaps.
		first := spanOf(t, held[0].id).first
		for _, r := range held {
			first = min(first, spanOf(t, r.id).first)
		}
		behind = slices.DeleteFunc(behind, func(r taken) bool { return spanOf(t, r.id).first < first })
		for _, r := range missing(append(behind, held...), again) {
			t.Errorf("%s did not come again, or with another body, though the first of its lane had no answer", r.id)
		}
		p.terminate()
		processor.terminate()
	})
}

// missing are the requests that are not among others, with the same id and body.
func missing(requests, others []taken) []taken {
	bodies := make(map[string][]byte)
	for _, r := range others {
		bodies[r.id] = r.body
	}
	var left []taken
	for _, r := range requests {
		if body, ok := bodies[r.id]; !ok || !bytes.Equal(body, r.body) {
			left = append(left, r)
		}
	}
	return left
}

// TestZombie stops a sink with SIGSTOP for longer than its session, with requests under way, one of which the endpoint refuses.
// Another takes over and finishes the work; then the first wakes up, finds its answers and goes on with what it had planned: with
// requests that are known, and with no say in what was planned since.
func TestZombie(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3)
		processor := start(t, s.env(), "processor").ready()
		sink := func(name string) *process {
			return start(t, s.env("OFFHOOK_WEBHOOK_URL="+e.url()+"?process="+name, "OFFHOOK_WEBHOOK_TIMEOUT=5m",
				"OFFHOOK_WEBHOOK_FLUSH_INTERVAL=100ms", "OFFHOOK_WEBHOOK_LANE_IN_FLIGHT=2"), "sink")
		}
		from := func(r taken, name string) bool { return strings.HasPrefix(r.query, "process="+name+"&") }
		zombie := sink("zombie").ready()
		traffic := s.simulate(150, 50)
		e.waitItems(schemas.EventNotify, 20, effectTimeout)

		released := make(chan struct{})
		release := sync.OnceFunc(func() { close(released) })
		t.Cleanup(release)
		bad := &refuser{status: 400}
		var mu sync.Mutex
		waiting := 0
		e.screen(func(r taken) int {
			mu.Lock()
			if bad.clientMsgNo == "" {
				if r.event == schemas.EventNotify && events(r) > 1 {
					bad.clientMsgNo = firstMessage(r)
				}
			}
			chosen := bad.clientMsgNo != ""
			waiting++
			mu.Unlock()
			if from(r, "zombie") {
				<-released
			}
			if !chosen {
				return 0
			}
			return bad.screen(r)
		})
		kafkatest.Wait(t, effectTimeout, "requests under way", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return bad.clientMsgNo != "" && waiting > 10
		})
		time.Sleep(time.Second) // more is planned meanwhile than may be under way
		if err := zombie.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatalf("send SIGSTOP: %v", err)
		}
		release() // into the buffers of its connections
		other := sink("other").ready()
		kafkatest.Wait(t, drainTimeout, "the dead letter", func() bool { return len(s.letters()) > 0 })
		must := traffic.stop()
		if !must.Doubt(bad.clientMsgNo) {
			t.Fatalf("%s, which is refused, was never sent", bad.clientMsgNo)
		}
		e.settle(must, drainTimeout, s.quiet())

		// All there is has been planned by now, so that whatever the zombie still sends must be known.
		n, refused := len(e.all()), len(bad.refusals())
		known := make(map[string]bool)
		for _, r := range append(e.all(), bad.refusals()...) {
			known[r.id] = true
		}
		if err := zombie.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatalf("send SIGCONT: %v", err)
		}
		kafkatest.Wait(t, startTimeout, "both to share the lanes", func() bool {
			_, a := holdings(t, zombie)
			_, b := holdings(t, other)
			return a > 0 && b > 0 && a+b == allLanes
		})
		e.settle(must, drainTimeout, s.quiet())
		late := append(e.all()[n:], bad.refusals()[refused:]...)
		for _, r := range late {
			if !known[r.id] {
				t.Errorf("a late request has the id %s, which nobody has seen before", r.id)
			}
		}
		// None, where it hears from its group before it reads the answers.
		t.Logf("%d requests came when the zombie was awake", len(late))
		letters := s.letters()
		if len(letters) != 1 || !bad.in(letters[0].Value) {
			t.Errorf("%d dead letters, want the message that is refused", len(letters))
		}

		// Both go on.
		e.screen(nil)
		notified := len(e.items(schemas.EventNotify))
		const more = 20
		for i := range more {
			s.message(`{"from_uid":"after-%d","channel_id":"g","channel_type":2}`, i)
		}
		e.waitItems(schemas.EventNotify, notified+more, effectTimeout)
		for _, p := range []*process{zombie, other, processor} {
			p.terminate()
		}
	})
}

// firstMessage is the client_msg_no of a request's first message; empty where it has none.
func firstMessage(r taken) string {
	var items []struct {
		ClientMsgNo string `json:"client_msg_no"`
	}
	if json.Unmarshal(r.body, &items) != nil || len(items) == 0 {
		return ""
	}
	return items[0].ClientMsgNo
}
