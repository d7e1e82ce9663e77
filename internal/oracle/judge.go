package oracle

import (
	"fmt"
	"hash/maphash"
	"slices"
)

// cause is where in Kafka an expected event comes from.
func (o *Oracle) cause(event string, e *event) string {
	if event == msgNotify {
		return fmt.Sprintf("%s offset %d", o.order[e.source].topicPartition, e.offset)
	}
	return fmt.Sprintf("%s-%d offset %d", o.cfg.Inbox, e.source, e.offset)
}

func (o *Oracle) statusText(s *status) string {
	online := 0
	if s.online {
		online = 1
	}
	return fmt.Sprintf("%s-%d-%d-%d-%d-%d", o.names.texts[s.uid], s.flag, online, s.conn, s.device, s.total)
}

func (o *Oracle) statusCause(s *status) string {
	return fmt.Sprintf("%s-%d offset %d", o.cfg.Inbox, partition(o.names.texts[s.uid], o.cfg.Partitions), s.offset)
}

// judgement is of the events of one key.
type judgement struct {
	event string
	// Texts of an expected event: what it is, and where it comes from.
	item, cause func(i int) string
	// Texts of a delivered one: what it is, and under which id it came.
	gotItem, id func(i int) string
	// dead are the hashes of what stands in the dead letters, with the numbers of their records.
	dead map[uint64][]int64
}

// excused reports whether an expected event stands in the dead letters. Each there excuses one.
func (j *judgement) excused(hash uint64) bool {
	list := j.dead[hash]
	if len(list) == 0 {
		return false
	}
	j.dead[hash] = list[1:]
	return true
}

func (o *Oracle) judge(j judgement, want, got []token) {
	a := align(want, got)
	for _, p := range a.moved {
		o.find(OutOfOrder, "%s %s of %s came under %s out of its order", j.event, j.item(p.want), j.cause(p.want), j.id(p.got))
	}
	for _, p := range a.changed {
		o.find(WrongCount, "%s %s of %s came under %s as %s", j.event, j.item(p.want), j.cause(p.want), j.id(p.got), j.gotItem(p.got))
	}
	for _, i := range a.extra {
		same := func(t token) bool { return t.full == got[i].full }
		if at := slices.IndexFunc(want, same); at >= 0 {
			o.find(Duplicate, "%s %s of %s came under %s, and under %s", j.event, j.item(at), j.cause(at),
				j.id(slices.IndexFunc(got, same)), j.id(i))
			continue
		}
		o.find(Unexpected, "%s %s came under %s, and nothing caused it", j.event, j.gotItem(i), j.id(i))
	}
	for _, i := range a.missing {
		if !j.excused(want[i].full) {
			o.find(Lost, "%s %s of %s was not taken", j.event, j.item(i), j.cause(i))
		}
	}
	o.judgeDead(j)
}

// judgeDead looks for what stands in the dead letters in place of nothing.
func (o *Oracle) judgeDead(j judgement) {
	for _, list := range j.dead {
		for _, n := range list {
			if d := &o.dead.records[n]; !d.taken {
				o.find(Unexpected, "%s of %s stands in the dead letters, and was taken or nothing caused it", j.event, d)
			}
		}
	}
}

func (o *Oracle) hashStatus(s *status) token {
	var b [32]byte
	put := func(at int, v uint64) {
		for i := range 8 {
			b[at+i] = byte(v >> (8 * i))
		}
	}
	put(0, s.conn)
	b[8], b[9] = s.flag, 0
	if s.online {
		b[9] = 1
	}
	loose := maphash.Bytes(o.seed, b[:16])
	put(16, uint64(uint32(s.device))|uint64(uint32(s.total))<<32)
	return token{full: maphash.Bytes(o.seed, b[:]), loose: loose}
}

func (o *Oracle) judgeStatuses() {
	keys := len(o.names.texts)
	byUID := func(s *status) uint32 { return s.uid }
	wants := group(&o.expectedStatus, keys, byUID)
	gots := group(&o.delivered.status, keys, byUID)
	deads := group(&o.dead.status, keys, byUID)
	o.report.DeadLettered += int64(o.dead.status.n)
	for uid := range uint32(keys) {
		want, got, dead := wants.of(uid), gots.of(uid), deads.of(uid)
		if len(dead) == 0 && slices.EqualFunc(want, got, func(w, g uint32) bool {
			a, b := *o.expectedStatus.at(w), *o.delivered.status.at(g)
			a.offset, b.offset = 0, 0
			return a == b
		}) {
			continue
		}
		tokens := func(l *list[status], at []uint32) []token {
			tokens := make([]token, len(at))
			for i, n := range at {
				tokens[i] = o.hashStatus(l.at(n))
			}
			return tokens
		}
		j := judgement{
			event:   onlineStatus,
			item:    func(i int) string { return o.statusText(o.expectedStatus.at(want[i])) },
			cause:   func(i int) string { return o.statusCause(o.expectedStatus.at(want[i])) },
			gotItem: func(i int) string { return o.statusText(o.delivered.status.at(got[i])) },
			id:      func(i int) string { return o.delivered.id(o.delivered.status.at(got[i]).offset) },
			dead:    make(map[uint64][]int64),
		}
		for i, t := range tokens(&o.dead.status, dead) {
			j.dead[t.full] = append(j.dead[t.full], o.dead.status.at(dead[i]).offset)
		}
		o.judge(j, tokens(&o.expectedStatus, want), tokens(&o.delivered.status, got))
	}
}

func (o *Oracle) judgeOffline() {
	o.judgeEvents(msgOffline, &o.expectedOffline, &o.delivered.offline, &o.dead.offline)
}

func (o *Oracle) judgeNotify() {
	o.judgeEvents(msgNotify, &o.expectedNotify, &o.delivered.notify, &o.dead.notify)
}

func (o *Oracle) judgeEvents(name string, expected, delivered, deadOnes *list[event]) {
	keys := len(o.names.texts)
	byKey := func(e *event) uint32 { return e.key }
	wants, gots, deads := group(expected, keys, byKey), group(delivered, keys, byKey), group(deadOnes, keys, byKey)
	o.report.DeadLettered += int64(deadOnes.n)
	for key := range uint32(keys) {
		want, got, dead := wants.of(key), gots.of(key), deads.of(key)
		if len(dead) == 0 && slices.EqualFunc(want, got, func(w, g uint32) bool {
			return expected.at(w).hash == delivered.at(g).hash
		}) {
			continue
		}
		what := "of a message for %q"
		if name == msgNotify {
			what = "with the order key %q"
		}
		text := fmt.Sprintf(what, o.names.texts[key])
		j := judgement{
			event:   name,
			item:    func(int) string { return text },
			cause:   func(i int) string { return o.cause(name, expected.at(want[i])) },
			gotItem: func(int) string { return text },
			id:      func(i int) string { return o.delivered.id(delivered.at(got[i]).offset) },
			dead:    make(map[uint64][]int64),
		}
		for _, n := range dead {
			d := deadOnes.at(n)
			j.dead[d.hash] = append(j.dead[d.hash], d.offset)
		}
		first := func(i uint32) int32 { return expected.at(i).source }
		if slices.ContainsFunc(want, func(i uint32) bool { return first(i) != first(want[0]) }) {
			o.judgeMerge(j, expected, delivered, want, got)
			continue
		}
		tokens := func(l *list[event], at []uint32) []token {
			tokens := make([]token, len(at))
			for i, n := range at {
				tokens[i] = token{l.at(n).hash, l.at(n).hash}
			}
			return tokens
		}
		o.judge(j, tokens(expected, want), tokens(delivered, got))
	}
}

// maxChoices bounds how many choices of what has not come are tried.
const maxChoices = 256

// judgeMerge is judge for events whose causes stand in several input partitions, which nothing orders against each
// other. What came less often than it must is left out of the merge; where it must have come several times, that choice
// counts of which did not that explains best what came.
func (o *Oracle) judgeMerge(j judgement, expected, delivered *list[event], want, got []uint32) {
	came := make(map[uint64]int)
	for _, n := range got {
		came[delivered.at(n).hash]++
	}
	places := make(map[uint64][]int) // in want
	var hashes []uint64
	for i, n := range want {
		h := expected.at(n).hash
		if places[h] == nil {
			hashes = append(hashes, h)
		}
		places[h] = append(places[h], i)
	}
	choices := [][]int{nil}
	for _, h := range hashes {
		n := len(places[h]) - came[h]
		if n <= 0 {
			continue
		}
		var next [][]int
		for _, some := range combinations(places[h], n) {
			for _, c := range choices {
				next = append(next, slices.Concat(c, some))
			}
		}
		choices = next[:min(len(next), maxChoices)]
	}
	var best []int
	least := -1
	for _, c := range choices {
		if wrong := o.mergeWithout(j, expected, delivered, want, got, c, false); least < 0 || wrong < least {
			best, least = c, wrong
		}
		if least == 0 {
			break
		}
	}
	if least > 0 {
		o.mergeWithout(j, expected, delivered, want, got, best, true)
	}
	slices.Sort(best)
	for _, i := range best {
		if !j.excused(expected.at(want[i]).hash) {
			o.find(Lost, "%s %s of %s was not taken", j.event, j.item(i), j.cause(i))
		}
	}
	o.judgeDead(j)
}

// combinations are the ways to take n of list, of which maxChoices are enough.
func combinations(list []int, n int) [][]int {
	if n == 0 {
		return [][]int{nil}
	}
	var all [][]int
	for i := 0; i+n <= len(list) && len(all) < maxChoices; i++ {
		for _, rest := range combinations(list[i+1:], n-1) {
			all = append(all, append([]int{list[i]}, rest...))
		}
	}
	return all
}

// mergeWithout counts what is wrong with what came if some of the expected events are left out, and says it.
func (o *Oracle) mergeWithout(j judgement, expected, delivered *list[event], want, got []uint32, without []int, say bool) (wrong int) {
	var sources []source
	var places [][]int // in want, by source and piece
	bySource := make(map[int32]int)
	left := make(map[int]bool, len(without))
	for _, i := range without {
		left[i] = true
	}
	for i, n := range want {
		if left[i] {
			continue
		}
		e := expected.at(n)
		s, is := bySource[e.source]
		if !is {
			s = len(sources)
			bySource[e.source] = s
			sources, places = append(sources, source{}), append(places, nil)
		}
		sources[s].pieces = append(sources[s].pieces, piece{hash: e.hash, offset: e.offset})
		places[s] = append(places[s], i)
	}
	find := func(kind Kind, format string, args ...any) {
		if wrong++; say {
			o.find(kind, format, args...)
		}
	}
	m := newMerge(sources)
	for i, n := range got {
		f, ref := m.step(delivered.at(n).hash, nil)
		switch f {
		case fits:
		case late:
			at := places[ref.source][ref.piece]
			find(OutOfOrder, "%s %s of %s came under %s out of its order", j.event, j.item(at), j.cause(at), j.id(i))
		case again:
			at := places[ref.source][ref.piece]
			find(Duplicate, "%s %s of %s came again under %s", j.event, j.item(at), j.cause(at), j.id(i))
		case unexplained:
			find(Unexpected, "%s %s came under %s, and nothing caused it", j.event, j.gotItem(i), j.id(i))
		case tooManyWays, differs:
			find(OutOfOrder, "%s %s: what came before %s can be explained in more than %d ways", j.event, j.gotItem(i), j.id(i), maxWays)
		}
	}
	m.missing(func(ref pieceRef, _, _ uint32) {
		at := places[ref.source][ref.piece]
		find(Lost, "%s %s of %s was not taken", j.event, j.item(at), j.cause(at))
	})
	return wrong
}
