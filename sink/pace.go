package sink

import "time"

// paceSlack is how far a pacer makes up for a turn that came late: timers are no more exact than that.
const paceSlack = 10 * time.Millisecond

// A pacer spreads requests evenly over time, by the generic cell rate algorithm (ITU-T I.371). The zero pacer lets all pass.
type pacer struct {
	interval time.Duration // between two requests; 0: none
	next     time.Time
}

func newPacer(perSecond int) pacer {
	if perSecond <= 0 {
		return pacer{}
	}
	return pacer{interval: time.Second / time.Duration(perSecond)}
}

// ask reports whether a request may begin; if not, again is when one may.
func (p *pacer) ask(now time.Time) (ok bool, again time.Time) {
	if p.next.After(now) {
		return false, p.next
	}
	return true, time.Time{}
}

// take says that one begins.
func (p *pacer) take(now time.Time) {
	if late := now.Add(-paceSlack); p.next.Before(late) {
		p.next = late
	}
	p.next = p.next.Add(p.interval)
}

// bodyLimitRest is how long a bodyLimit stays before it is doubled: an endpoint's limit may have been raised.
const bodyLimitRest = time.Minute

// A bodyLimit is what the endpoint takes in one request, as its 413 answers tell. It keeps later batches below that, and
// grows again, so that a limit that was raised, or an answer in error, does not leave the batches small for ever.
type bodyLimit struct {
	configured int // bytes
	bytes      int // 0: as configured
	grow       time.Time
}

// refused says that the endpoint answered 413 to a batch of several events with bytes of items.
func (l *bodyLimit) refused(bytes int, now time.Time) {
	if half := max(1, bytes/2); half < l.at(now) {
		l.bytes = half
	}
	l.grow = now.Add(bodyLimitRest)
}

// at is the limit, in bytes of a batch's items.
func (l *bodyLimit) at(now time.Time) int {
	for l.bytes > 0 && l.bytes < l.configured && !now.Before(l.grow) {
		l.bytes *= 2
		l.grow = l.grow.Add(bodyLimitRest)
	}
	if l.bytes == 0 || l.bytes >= l.configured {
		l.bytes = 0
		return l.configured
	}
	return l.bytes
}
