package sink

import (
	"slices"
	"time"
)

// claims are the lanes of one member of the group, and what of them is on its way to the coordinator: who may commit what,
// and when. They are pure: the session tells them what the group and the coordinator say, and does what they answer.
type claims struct {
	lanes map[laneKey]*lane
	want  map[*lane]struct{} // lanes with something to commit
	// committing are the lanes of the commit request in flight; nil: none is. There is never a second.
	committing []*lane
	// revoking are the callbacks that wait for the commit in flight: the right to commit ends when they return.
	revoking []chan struct{}
	unloaded []*lane // new lanes of partitions that the commit in flight has: they are loaded when it is answered
}

func newClaims() claims {
	return claims{lanes: make(map[laneKey]*lane), want: make(map[*lane]struct{})}
}

// drop ends the claim to a partition, with all that its lane has waiting; nil: there was none.
func (c *claims) drop(key laneKey) *lane {
	l, ok := c.lanes[key]
	if !ok {
		return nil
	}
	delete(c.lanes, key)
	delete(c.want, l)
	l.dead = true
	return l
}

// release closes settled when no commit is in flight: at once, or when the one that is has been answered.
func (c *claims) release(settled chan struct{}) {
	if c.committing == nil {
		close(settled)
	} else {
		c.revoking = append(c.revoking, settled)
	}
}

// loadable are those of new lanes whose plans may be loaded now. What a commit in flight says of a partition is not
// committed yet, and may be when the plan is loaded, or not: the lanes of those partitions are loaded when it is answered.
func (c *claims) loadable(lanes []*lane) (now []*lane) {
	for _, l := range lanes {
		if slices.ContainsFunc(c.committing, func(other *lane) bool { return other.laneKey == l.laneKey }) {
			c.unloaded = append(c.unloaded, l)
		} else {
			now = append(now, l)
		}
	}
	return now
}

// propose are the plans of the next commit request, of the lanes that wait for one; none: there is nothing to commit, or a
// request is in flight. member is what the group knows this process as; a lane that was assigned to another member id is
// errMemberChanged.
func (c *claims) propose(member string, now time.Time) (map[laneKey]Plan, error) {
	if c.committing != nil || len(c.want) == 0 {
		return nil, nil
	}
	plans := make(map[laneKey]Plan, len(c.want))
	for l := range c.want {
		if now.Before(l.commitAfter) {
			continue
		}
		if l.member != member {
			return nil, errMemberChanged
		}
		delete(c.want, l)
		plans[l.laneKey] = l.core.Propose()
		c.committing = append(c.committing, l)
	}
	return plans, nil
}

// answeredCommit is what the end of a commit request asks for.
type answeredCommit struct {
	settled  []chan struct{} // to be closed
	load     []*lane         // to be loaded
	accepted []*lane         // whose plans the coordinator holds
	readable []*lane         // those of them that may be read from now on
	refused  []refusedPlan
}

// A refusedPlan is a lane whose plan was refused for certain. It proposes again.
type refusedPlan struct {
	*lane
	err error
}

// answered ends the commit request in flight. One whose outcome is unknown changes no lane: the session ends.
func (c *claims) answered(result commitResult, now time.Time) (a answeredCommit) {
	lanes := c.committing
	a.settled = c.revoking
	c.committing, c.revoking = nil, nil
	if result.unknown != nil {
		return a
	}
	a.load = slices.DeleteFunc(c.unloaded, func(l *lane) bool { return l.dead })
	c.unloaded = nil
	for _, l := range lanes {
		if l.dead {
			continue
		}
		err := result.refused[l.laneKey]
		if result.notSent != nil {
			err = result.notSent
		}
		if err != nil {
			l.core.Refused(now)
			c.want[l] = struct{}{}
			a.refused = append(a.refused, refusedPlan{l, err})
			continue
		}
		if !l.core.Readable() {
			a.readable = append(a.readable, l)
		}
		l.core.Committed()
		a.accepted = append(a.accepted, l)
	}
	return a
}
