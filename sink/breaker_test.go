package sink

import (
	"fmt"
	"testing"
	"time"
)

func TestBreaker(t *testing.T) {
	lane := func(p int32, first int64) attemptKey { return attemptKey{laneKey{"t", p}, first} }
	t.Run("one stuck batch does not open it", func(t *testing.T) {
		var b Breaker
		for range 100 {
			if b.Failure(lane(1, 10), 0, 0, 0.5, epoch) {
				t.Fatal("it opened")
			}
		}
	})
	t.Run("successes between keep it closed", func(t *testing.T) {
		var b Breaker
		for i := range 100 {
			if b.Failure(lane(int32(i%3), 10), 0, 0, 0.5, epoch) {
				t.Fatal("it opened")
			}
			if i%4 == 3 {
				b.Success()
			}
		}
	})
	t.Run("opens when all that were under way have failed", func(t *testing.T) {
		var b Breaker
		for i := range 64 {
			if opened := b.Failure(lane(int32(i), 10), 63-i, 0, 0.5, epoch); opened != (i == 63) {
				t.Fatalf("after %d failures of 64: opened %v", i+1, opened)
			}
		}
		if ok, _ := b.Ask(lane(0, 0).laneKey, 0, epoch); !ok || !b.Open() {
			t.Error("a lane that has not failed since it opened may not probe")
		}
		if ok, again := b.Ask(lane(63, 0).laneKey, 0, epoch); ok || !again.Equal(epoch.Add(backoffBase/2)) {
			t.Errorf("the lane that has failed may probe: %v, again at %v", ok, again)
		}
		if ok, _ := b.Ask(lane(63, 0).laneKey, 0, epoch.Add(backoffBase/2)); !ok {
			t.Error("no probe after the delay")
		}
		for range 100 {
			b.Failure(lane(63, 10), 0, 0, 0.999, epoch)
		}
		if _, again := b.Ask(lane(63, 0).laneKey, 0, epoch); !again.Equal(epoch.Add(breakerCap)) {
			t.Errorf("after many probes the next is at %v, want after %v", again, breakerCap)
		}
		if ok, again := b.Ask(lane(0, 0).laneKey, 1, epoch); ok || !again.IsZero() {
			t.Error("a second request is let through beside the probe")
		}
		if !b.Success() || b.Open() {
			t.Error("a success does not close it")
		}
		if ok, _ := b.Ask(lane(0, 0).laneKey, 63, epoch); !ok {
			t.Error("closed, it holds up a request")
		}
		if b.Success() {
			t.Error("it closes twice")
		}
	})
	t.Run("few in flight", func(t *testing.T) {
		var b Breaker
		for i := range breakerMin {
			if opened := b.Failure(lane(int32(i%2), 10), 1, 0, 0.5, epoch); opened != (i == breakerMin-1) {
				t.Fatalf("after %d failures: opened %v", i+1, opened)
			}
		}
	})
	t.Run("untried lanes and Retry-After", func(t *testing.T) {
		var b Breaker
		for i := range breakerMin {
			b.Failure(lane(int32(i), 10), 0, 0, 0.5, epoch)
		}
		if b.Untried(lane(breakerMin-1, 0).laneKey) || !b.Untried(lane(0, 0).laneKey) {
			t.Error("the lane whose failure opened it has failed since, others have not")
		}
		b.Failure(lane(0, 10), 0, time.Minute, 0.5, epoch)
		if b.Untried(lane(0, 0).laneKey) {
			t.Error("a lane that has failed is untried")
		}
		if ok, again := b.Ask(lane(0, 0).laneKey, 0, epoch.Add(59*time.Second)); ok || !again.Equal(epoch.Add(time.Minute)) {
			t.Errorf("asked before the time that the endpoint named: %v, again at %v", ok, again)
		}
		if ok, _ := b.Ask(lane(1, 0).laneKey, 0, epoch); !ok {
			t.Error("what the endpoint asked of one lane silences another, which it may take")
		}
		if ok, _ := b.Ask(lane(0, 0).laneKey, 0, epoch.Add(time.Minute)); !ok {
			t.Error("no probe at the time that the endpoint named")
		}
	})
}

// TestPacer: over any time no more requests begin than the rate has, but for those that make up for a late turn.
func TestPacer(t *testing.T) {
	for _, rate := range []int{1, 7, 100, 5000} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			p := newPacer(rate)
			now, begun := epoch, 0
			for now.Before(epoch.Add(10 * time.Second)) {
				ok, again := p.ask(now)
				if !ok {
					if !again.After(now) {
						t.Fatal("it asks to come again in the past")
					}
					now = again.Add(time.Duration(begun%3) * time.Millisecond) // timers are late
					continue
				}
				p.take(now)
				begun++
			}
			want := 10 * rate
			if slack := max(1, int(paceSlack*time.Duration(rate)/time.Second)); begun > want+slack || begun < want*9/10 {
				t.Errorf("%d requests began in 10 s, want %d", begun, want)
			}
		})
	}
	p := newPacer(0)
	for range 1000 {
		if ok, _ := p.ask(epoch); !ok {
			t.Fatal("without a rate a request waits")
		}
		p.take(epoch)
	}
	p = newPacer(10)
	p.take(epoch)
	for i, want := range []bool{true, false} { // a long rest gives no burst
		if ok, _ := p.ask(epoch.Add(time.Hour)); ok != want {
			t.Errorf("request %d after an hour: %v", i, ok)
		}
		p.take(epoch.Add(time.Hour))
	}
}

func TestBodyLimit(t *testing.T) {
	l := bodyLimit{configured: 1000}
	now := epoch
	check := func(want int) {
		t.Helper()
		if got := l.at(now); got != want {
			t.Fatalf("the limit is %d, want %d", got, want)
		}
	}
	check(1000)
	l.refused(900, now)
	check(450)
	l.refused(800, now) // planned before the limit was known
	check(400)
	l.refused(3, now)
	check(1)
	l.refused(1, now)
	check(1)
	l = bodyLimit{configured: 1000}
	l.refused(900, now)
	now = now.Add(bodyLimitRest)
	check(900)
	now = now.Add(bodyLimitRest)
	check(1000)
	l.refused(400, now)
	now = now.Add(10 * bodyLimitRest)
	check(1000)
	l = bodyLimit{configured: 1 << 20}
	l.refused(900, now)
	now = now.Add(1000 * bodyLimitRest) // an idle night
	check(1 << 20)
}
