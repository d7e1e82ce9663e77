package sink

import "time"

const (
	// breakerMin is how many attempts in a row must fail, at least, before the breaker opens.
	breakerMin = 5
	// breakerCap is the longest time between two probes of lanes that have failed: what an endpoint that is back may wait.
	breakerCap = 5 * time.Second
)

// A Breaker spares an endpoint that takes nothing: while it is open one request is in flight at a time, whichever lane's, and
// the time between them grows. It is pure: told of each attempt's end, and asked before each attempt. The zero Breaker is
// closed.
//
// It opens when no lane succeeds any more: all requests that were under way when the first of a row of failures came have
// failed too, or as many, and at least breakerMin. Failures of one batch alone never open it: that lane is stuck, and the
// endpoint may well take the others. A success, or an answer that refuses the content, closes it.
//
// The idea of one probe while open: M. Nygard, "Release It!", circuit breaker.
type Breaker struct {
	open      bool
	failures  int        // in a row
	enough    int        // failures that open it, if they are not one batch's
	first     attemptKey // of the row
	several   bool       // the row has failures of several batches
	probes    int        // that failed since it opened
	next      time.Time  // while open: when a lane that has failed may probe
	holdUntil time.Time  // the latest that the endpoint asked for by Retry-After in the row; it holds while open
	failed    map[laneKey]struct{}
}

// attemptKey names a batch, or one that it was halved from.
type attemptKey struct {
	laneKey
	first int64
}

// Open reports whether the breaker is open.
func (b *Breaker) Open() bool { return b.open }

// Success says that the endpoint answered a request for what it was. It returns true where that closes the breaker: then all
// lanes' backoffs end.
func (b *Breaker) Success() (closed bool) {
	closed = b.open
	*b = Breaker{}
	return closed
}

// Failure says that an attempt failed, with underway others in flight. It returns true where that opens the breaker. random is
// uniform in [0,1).
func (b *Breaker) Failure(key attemptKey, underway int, retryAfter time.Duration, random float64, now time.Time) (opened bool) {
	if b.failures == 0 {
		b.first, b.enough = key, max(breakerMin, underway+1)
	}
	b.failures++
	b.several = b.several || key != b.first
	if !b.open && b.several && b.failures >= b.enough {
		b.open, opened = true, true
		b.failed = make(map[laneKey]struct{})
	}
	if b.open {
		b.failed[key.laneKey] = struct{}{}
		if underway == 0 { // and not one of those that were under way when it opened
			b.probes++
			b.next = now.Add(min(RetryDelay(b.probes, random), breakerCap))
		}
	}
	if at := now.Add(retryAfter); retryAfter > 0 && at.After(b.holdUntil) {
		b.holdUntil = at
	}
	return opened
}

// Ask reports whether an attempt of a lane may begin, with underway in flight; if not, again is when to ask again if nothing
// else happens (zero: never). While the breaker is open a lane that has not failed since may probe at once: it may be another
// that is stuck.
func (b *Breaker) Ask(lane laneKey, underway int, now time.Time) (ok bool, again time.Time) {
	switch {
	case !b.open:
		return true, time.Time{}
	case underway > 0:
		return false, time.Time{}
	case b.Untried(lane):
		return true, time.Time{}
	}
	if at := later(b.next, b.holdUntil); at.After(now) {
		return false, at
	}
	return true, time.Time{}
}

// Untried reports whether a lane has not failed since the breaker opened.
func (b *Breaker) Untried(lane laneKey) bool {
	_, failed := b.failed[lane]
	return !failed
}
