package simulator

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/offhook/offhook/internal/truth"
)

// How far from the usual the upsets go.
const (
	mostLate    = 5 * time.Second // a late record, behind its time
	mostRepeat  = 3 * time.Second // a record's second copy, behind the first
	leastDown   = time.Second     // a node that crashed
	mostDown    = 10 * time.Second
	leastReturn = 300 * time.Millisecond // a user whose node crashed
	mostReturn  = 6 * time.Second

	returning    = 0.9  // of the users who lose a connection with its node; residents all do
	falling      = 0.02 // of the signs of life: the last for long
	nodeFalling  = 0.05 // the same of a node's
	silence      = 8    // intervals of signs of life that a silence lasts at most, if it ends
	leastSilence = 2
)

// upsets makes what goes wrong in an installation: what is said late, twice or by clocks that are apart, and nodes and
// connections that end without a word. Its dice are its own, so that traffic without upsets is what it would be without this.
//
// Time is that of the run's schedule, since its beginning, and not the clock's: what comes between two records does not
// depend on the machine's speed.
type upsets struct {
	dice    *rand.Rand
	at      time.Duration
	queue   queue
	pushed  uint64
	down    []bool  // by node id
	falls   []int   // by node id: how often it has crashed
	clocks  []int64 // by node id: the latest time it gave, Unix ms
	offsets []int64 // by node id: how far its clock is ahead, ms

	crashes, late, doubled int64 // made
}

// later is something that comes at its time.
type later struct {
	at    time.Duration
	order uint64 // among those of one time
	// make returns the record that is due, nil where there is none, and may push others.
	make func(now int64) *record
	// copied: the record was made before, and is due even if the run ends before its time.
	copied bool
}

// queue is a heap of what comes later.
type queue []later

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].order < q[j].order
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push is for container/heap.
func (q *queue) Push(x any) { *q = append(*q, x.(later)) }

// Pop is for container/heap.
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	(*q)[len(*q)-1] = later{} // the records it holds are not to be kept
	*q = (*q)[:len(*q)-1]
	return last
}

// upset reports whether anything goes wrong: then nobody knows what must arrive.
func (c Config) upset() bool {
	return c.Crashes > 0 || c.Late > 0 || c.Doubled > 0 || c.Skew > 0 || c.Heartbeat > 0
}

func newUpsets(cfg Config) upsets {
	u := upsets{
		dice: rand.New(rand.NewPCG(cfg.Seed, 4)),
		down: make([]bool, cfg.Nodes+2), falls: make([]int, cfg.Nodes+2), clocks: make([]int64, cfg.Nodes+2), offsets: make([]int64, cfg.Nodes+2),
	}
	if skew := cfg.Skew.Milliseconds(); skew > 0 {
		for node := range u.offsets {
			u.offsets[node] = u.dice.Int64N(skew+1) - skew/2
		}
	}
	return u
}

func (u *upsets) between(least, most time.Duration) time.Duration {
	return least + time.Duration(u.dice.Int64N(int64(most-least)+1))
}

// push has something come after a while.
func (u *upsets) push(after time.Duration, copied bool, f func(now int64) *record) {
	u.pushed++
	heap.Push(&u.queue, later{u.at + after, u.pushed, f, copied})
}

// tick reads a node's clock, which does not go back.
func (u *upsets) tick(node uint64, now int64) int64 {
	u.clocks[node] = max(u.clocks[node], now+u.offsets[node])
	return u.clocks[node]
}

// start begins what comes by itself: crashes and the nodes' signs of life.
func (t *traffic) start() {
	if t.cfg.Crashes > 0 {
		t.upsets.push(t.nextCrash(), false, t.crash)
	}
	if t.cfg.Heartbeat > 0 {
		for node := uint64(1); node <= t.crashNode(); node++ {
			if t.beats(node) {
				t.nodeBeat(node)
			}
		}
	}
}

// advance sets the schedule's time.
func (t *traffic) advance(at time.Duration) { t.upsets.at = at }

// due returns the next record of those that come by themselves and whose time has come; nil: there is none.
func (t *traffic) due(now int64) *record {
	u := &t.upsets
	for len(u.queue) > 0 && u.queue[0].at <= u.at {
		next := heap.Pop(&u.queue).(later)
		r := next.make(now)
		if r != nil && !next.copied {
			r = t.disturb(r)
		}
		if r != nil {
			return r
		}
	}
	return nil
}

// rest returns what was made and is still held back when the run ends, one after the other; nil: no more.
func (t *traffic) rest(now int64) *record {
	u := &t.upsets
	for len(u.queue) > 0 {
		if next := heap.Pop(&u.queue).(later); next.copied {
			return next.make(now)
		}
	}
	return nil
}

// disturb may hold a record back, which returns nil, or have it come twice.
func (t *traffic) disturb(r *record) *record {
	u := &t.upsets
	if t.cfg.Doubled > 0 && u.dice.Float64() < t.cfg.Doubled {
		again := &record{topic: r.topic, key: r.key, value: r.value, message: r.message}
		var after time.Duration
		if u.dice.IntN(2) == 0 {
			after = u.between(0, mostRepeat)
		}
		u.doubled++
		u.push(after, true, func(int64) *record { return again })
	}
	if t.cfg.Late > 0 && !r.message && u.dice.Float64() < t.cfg.Late {
		u.late++
		u.push(u.between(1, mostLate), true, func(int64) *record { return r })
		return nil
	}
	return r
}

func (t *traffic) nextCrash() time.Duration {
	mean := time.Duration(float64(time.Minute) / t.cfg.Crashes)
	return t.upsets.between(mean/2, mean+mean/2)
}

// crash has a node go without a word: its connections are gone, it comes back and says so, and its users connect elsewhere,
// before that or after. The node of the restarters is another, and has its own way of crashing.
func (t *traffic) crash(int64) *record {
	u := &t.upsets
	u.push(t.nextCrash(), false, t.crash)
	node := 1 + u.dice.Uint64N(uint64(t.cfg.Nodes))
	if u.down[node] {
		return nil
	}
	u.crashes++
	u.down[node] = true
	u.falls[node]++
	u.push(u.between(leastDown, mostDown), false, func(now int64) *record {
		u.down[node] = false
		if t.counts(node) {
			t.nextConn[node] = 0
		}
		return t.startOf(node, now)
	})
	for i := range t.people {
		p := &t.people[i]
		for _, gone := range p.opened {
			if gone.connection.Node != node {
				continue
			}
			p.closed = gone
			if p.presence != truth.Resident && u.dice.Float64() >= returning {
				continue
			}
			u.push(u.between(leastReturn, mostReturn), false, func(now int64) *record {
				if len(p.opened) >= t.cfg.Devices {
					return nil
				}
				return t.online(i, now, "online")
			})
		}
		p.opened = slices.DeleteFunc(p.opened, func(e connectionEvent) bool { return e.connection.Node == node })
	}
	return nil
}

// counts reports whether a node counts its connections from 1 on again when it starts, and says when each was opened. The
// others count on, and say nothing.
func (t *traffic) counts(node uint64) bool {
	return t.cfg.Crashes > 0 && node%2 == 0 && node != t.crashNode()
}

// beats reports whether a node gives signs of life for all of its connections, and not each for itself.
func (t *traffic) beats(node uint64) bool { return node%2 == 0 }

// startOf is a node's start; onlines that it says later are later than that.
func (t *traffic) startOf(node uint64, now int64) *record {
	at := t.upsets.tick(node, now)
	t.upsets.clocks[node]++
	return &record{
		topic: t.cfg.ConnectionsTopic, key: nodeKey(node),
		value: marshal(connectionEvent{Type: "node_started", NodeID: node, Timestamp: at}),
	}
}

// pause is the time between two signs of life.
func (t *traffic) pause() time.Duration {
	return t.upsets.between(t.cfg.Heartbeat/2, t.cfg.Heartbeat)
}

func (t *traffic) silence() time.Duration {
	return t.upsets.between(leastSilence*t.cfg.Heartbeat, silence*t.cfg.Heartbeat)
}

// nodeBeat has a node give signs of life from now on.
func (t *traffic) nodeBeat(node uint64) {
	u := &t.upsets
	var beat func(now int64) *record
	beat = func(now int64) *record {
		if u.dice.Float64() < nodeFalling {
			u.push(t.silence(), false, beat)
		} else {
			u.push(t.pause(), false, beat)
		}
		if u.down[node] {
			return nil
		}
		return &record{
			topic: t.cfg.ConnectionsTopic, key: nodeKey(node),
			value: marshal(connectionEvent{Type: "heartbeat", NodeID: node, Timestamp: u.tick(node, now)}),
		}
	}
	u.push(t.pause(), false, beat)
}

// beat has a connection give signs of life for as long as it is open, but that now and then one falls silent, for a while or
// for good: then nothing else is heard of it.
func (t *traffic) beat(i int, open connectionEvent) {
	u := &t.upsets
	p := &t.people[i]
	var sign func(now int64) *record
	sign = func(now int64) *record {
		at := slices.IndexFunc(p.opened, func(e connectionEvent) bool {
			return e.connection.Node == open.connection.Node && e.connection.Conn == open.connection.Conn && e.OpenedAt == open.OpenedAt
		})
		if at < 0 {
			return nil
		}
		if u.dice.Float64() >= falling {
			u.push(t.pause(), false, sign)
			return t.heartbeat(i, now, p.opened[at])
		}
		silent := p.opened[at]
		p.opened = slices.Delete(p.opened, at, at+1)
		if u.dice.IntN(2) == 0 {
			return nil // nobody says that it is closed
		}
		falls := u.falls[open.connection.Node]
		u.push(t.silence(), false, func(now int64) *record {
			if u.falls[open.connection.Node] > falls {
				return nil // its node did not outlive it
			}
			p.opened = append(p.opened, silent)
			u.push(t.pause(), false, sign)
			return t.heartbeat(i, now, silent)
		})
		return nil
	}
	u.push(t.pause(), false, sign)
}

// pick draws one of n: alike, or by Zipf's law where a source of that is given.
func pick(dice *rand.Rand, zipf *rand.Zipf, n int) int {
	if zipf == nil {
		return dice.IntN(n)
	}
	return int(zipf.Uint64())
}

// zipf draws numbers below n by Zipf's law; nil: all are alike.
func (t *traffic) zipf(dice *rand.Rand, n int) *rand.Zipf {
	if t.cfg.Zipf == 0 {
		return nil
	}
	return rand.NewZipf(dice, t.cfg.Zipf, 1, uint64(n)-1)
}
