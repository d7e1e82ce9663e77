package receiver

import (
	"slices"

	"github.com/offhook/offhook/internal/truth"
)

// judge adds to s what only a truth can say.
func (b *books) judge(s *Summary, t *truth.Truth) {
	s.Lost = new(int64)
	for m := range t.Messages() {
		b.judgeMessage(s, t, m)
	}
	for u := range t.Users() {
		b.judgeUser(s, u)
	}
}

func (b *books) judgeMessage(s *Summary, t *truth.Truth, m truth.Message) {
	key := b.messageKey(m.FromUID, m.ClientMsgNo, "")
	if _, ok := b.notified[key]; !ok && m.Notify == truth.Must {
		*s.Lost++
	}
	others := int64(b.pushes[key]) // recipients that the truth does not name
	for uid, claim := range t.Recipients(m) {
		_, arrived := b.pushed[join(key, b.hash(uid))]
		if arrived {
			others--
		}
		switch {
		case arrived && claim == truth.MustNot:
			s.Unexpected++
		case !arrived && claim == truth.Must:
			*s.Lost++
		}
	}
	s.Unexpected += others
}

func (b *books) judgeUser(s *Summary, u truth.User) {
	var got []uint64
	var breaks int64
	if log := b.users[b.hash(u.UID)]; log != nil {
		got, breaks = log.statuses, log.breaks
	}
	want := make([]uint64, 0, u.Len())
	for status := range u.Statuses() {
		want = append(want, b.expected(&status))
	}
	if slices.Equal(got, want) {
		return
	}
	// Of each item that is expected: where it is expected next, and how many are left.
	left := make(map[uint64][]int, len(want))
	for i, item := range want {
		left[item] = append(left[item], i)
	}
	var falls int64
	last := -1
	for _, item := range got {
		places, named := left[item]
		switch {
		case len(places) > 0:
			left[item] = places[1:]
			if places[0] < last {
				falls++
			}
			last = places[0]
		case named:
			s.DuplicatesAfterDedupe++
		case !u.Doubt:
			s.Unexpected++
		}
	}
	for _, places := range left {
		*s.Lost += int64(len(places))
	}
	s.OutOfOrder += max(0, falls-breaks) // the others were counted when they came
}

// demands is what a truth demands and has not been seen yet.
type demands struct {
	notified, pushed []uint64
	users            []userDemand
}

type userDemand struct {
	user  uint64
	items int
}

func (b *books) demandsOf(t *truth.Truth) *demands {
	d := new(demands)
	for m := range t.Messages() {
		key := b.messageKey(m.FromUID, m.ClientMsgNo, "")
		if m.Notify == truth.Must {
			d.notified = append(d.notified, key)
		}
		for uid, claim := range t.Recipients(m) {
			if claim == truth.Must {
				d.pushed = append(d.pushed, join(key, b.hash(uid)))
			}
		}
	}
	for u := range t.Users() {
		if u.Len() > 0 {
			d.users = append(d.users, userDemand{b.hash(u.UID), u.Len()})
		}
	}
	return d
}

// settle drops what has arrived and returns how many demands are left.
func (d *demands) settle(b *books) int {
	d.notified = slices.DeleteFunc(d.notified, func(key uint64) bool { _, ok := b.notified[key]; return ok })
	d.pushed = slices.DeleteFunc(d.pushed, func(pair uint64) bool { _, ok := b.pushed[pair]; return ok })
	left := len(d.notified) + len(d.pushed)
	d.users = slices.DeleteFunc(d.users, func(u userDemand) bool {
		missing := u.items
		if log := b.users[u.user]; log != nil {
			missing -= len(log.statuses)
		}
		left += max(0, missing)
		return missing <= 0
	})
	return left
}
