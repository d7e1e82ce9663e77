package main

import (
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// TestStop ends `offhook run` by SIGTERM while an endpoint takes its time over requests: it ends when they have, and the next process
// delivers at once. None of the requests comes again, but where a batch before it in its lane waited for its turn and was not begun:
// the committed offset cannot pass that.
func TestStop(t *testing.T) {
	t.Parallel()
	for _, laneInFlight := range []string{"1", "8"} {
		t.Run(laneInFlight+" a lane", func(t *testing.T) {
			t.Parallel()
			kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
				parallel(t, c)
				stopSlow(t, c, laneInFlight)
			})
		})
	}
}

func stopSlow(t *testing.T, c *kafkatest.Cluster, laneInFlight string) {
	t.Helper()
	e := newEndpoint(t)
	s := newSystem(t, c, e, 3)
	settings := []string{"OFFHOOK_WEBHOOK_LANE_IN_FLIGHT=" + laneInFlight}
	p := s.run(settings...).ready()
	traffic := s.simulate(100, 50)
	e.waitItems(schemas.EventNotify, 20, effectTimeout)

	const slow = time.Second
	var under inFlight
	e.screen(under.slow(slow))
	kafkatest.Wait(t, effectTimeout, "several requests under way", func() bool { return under.count() > 3 })
	time.Sleep(slow / 2)
	stopped := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("send SIGTERM: %v", err)
	}
	if code := p.wait(stopTimeout); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if n := under.count(); n > 0 {
		t.Errorf("the process ended with %d requests under way", n)
	}
	// Far from OFFHOOK_SHUTDOWN_TIMEOUT: the requests are what was waited for.
	if took := time.Since(stopped); took > 10*slow {
		t.Errorf("the process ended %v after SIGTERM, though requests take %v", took, slow)
	}

	e.screen(nil)
	n := len(e.all())
	began := time.Now()
	p = s.run(settings...)
	kafkatest.Wait(t, startTimeout, "a request of the next process", func() bool { return len(e.all()) > n })
	took := time.Since(began)
	t.Logf("the first request came %v after the start", took)
	// No measure of speed, which would be tens of milliseconds: a member that did not leave its group holds up the next one for
	// the session timeout of 10 s, and a transaction that was left open for as long.
	if took > s.prompt() {
		t.Errorf("the first request came %v after the start of the next process, want less than %v: no session timeout is to be waited for", took, s.prompt())
	}
	e.settle(traffic.stop(), drainTimeout, s.quiet())
	all := e.all()
	before, begun := make(map[string]bool), make(map[span]bool)
	for _, r := range all[:n] {
		before[r.id], begun[spanOf(t, r.id)] = true, true
	}
	for _, r := range all[n:] {
		if !before[r.id] {
			continue
		}
		again := spanOf(t, r.id)
		if laneInFlight == "1" || !slices.ContainsFunc(all[n:], func(r taken) bool {
			other := spanOf(t, r.id)
			return other.lane == again.lane && other.first < again.first && !begun[other]
		}) {
			t.Errorf("%s came again, though it had its answer before the process ended, and so had all before it", r.id)
		}
	}
	p.ready().terminate()
}

// TestStopHangs stops a sink of which a request hangs for longer than OFFHOOK_SHUTDOWN_TIMEOUT: it ends by then, and the request comes
// again, under its id.
func TestStopHangs(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3)
		const timeout = 2 * time.Second
		settings := []string{"OFFHOOK_SHUTDOWN_TIMEOUT=" + timeout.String(), "OFFHOOK_WEBHOOK_TIMEOUT=1m"}
		p := s.run(settings...).ready()
		traffic := s.simulate(100, 50)
		e.waitItems(schemas.EventNotify, 20, effectTimeout)
		h := e.hold(schemas.EventNotify)
		select {
		case <-h.reached:
		case <-time.After(effectTimeout):
			t.Fatalf("no request of msg.notify within %v", effectTimeout)
		}

		stopped := time.Now()
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatalf("send SIGTERM: %v", err)
		}
		if code := p.wait(stopTimeout); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
		if took := time.Since(stopped); took < timeout || took > timeout+s.prompt() {
			t.Errorf("the process ended %v after SIGTERM, want OFFHOOK_SHUTDOWN_TIMEOUT, %v", took, timeout)
		}
		close(h.release)
		began := time.Now()
		n := len(e.all())
		p = s.run(settings...)
		kafkatest.Wait(t, startTimeout, "a request of the next process", func() bool { return len(e.all()) > n })
		if took := time.Since(began); took > s.prompt() {
			t.Errorf("the first request came %v after the start of the next process, want less than %v: no session timeout is to be waited for", took, s.prompt())
		}
		kafkatest.Wait(t, drainTimeout, "the request without an answer to come again", func() bool { return e.receiver.Summary(nil).RepeatedIDs > 0 })
		e.settle(traffic.stop(), drainTimeout, s.quiet())
		p.ready().terminate()
	})
}

// prompt is what must not be reached where nothing waits for a timeout of 10 s, of a group's session or a transaction.
func (s *system) prompt() time.Duration {
	if s.real() {
		return 8 * time.Second
	}
	return 5 * time.Second
}

// inFlight counts requests that an endpoint takes its time over.
type inFlight struct {
	mu sync.Mutex
	n  int
}

// slow is a screen that keeps each request for d.
func (f *inFlight) slow(d time.Duration) func(taken) int {
	return func(taken) int {
		f.add(1)
		defer f.add(-1)
		time.Sleep(d)
		return 0
	}
}

func (f *inFlight) add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n += n
}

func (f *inFlight) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}
