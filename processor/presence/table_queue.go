package presence

// queued is what a queue holds: it keeps its place and orders equal times.
type queued[E any] interface {
	setAt(i int)
	before(E) bool
}

// queue orders elements by time and gives each its place, so that any can be moved or removed in O(log n) and none is
// left behind. It is a binary heap; the zero value is empty.
type queue[E queued[E]] struct {
	items []queueItem[E]
}

type queueItem[E any] struct {
	time int64
	e    E
}

// first returns the earliest element, and false if there is none.
func (q *queue[E]) first() (e E, ok bool) {
	if len(q.items) == 0 {
		return e, false
	}
	return q.items[0].e, true
}

func (q *queue[E]) push(e E, time int64) {
	q.items = append(q.items, queueItem[E]{time, e})
	e.setAt(len(q.items) - 1)
	q.up(len(q.items) - 1)
}

// fix gives the element at i another time.
func (q *queue[E]) fix(i int, time int64) {
	q.items[i].time = time
	if !q.down(i) {
		q.up(i)
	}
}

func (q *queue[E]) remove(i int) {
	last := len(q.items) - 1
	q.items[i] = q.items[last]
	q.items[last] = queueItem[E]{}
	q.items = q.items[:last]
	if i < last {
		q.items[i].e.setAt(i)
		if !q.down(i) {
			q.up(i)
		}
	}
	if c := cap(q.items); c > 1024 && len(q.items) < c/4 {
		q.items = append(make([]queueItem[E], 0, c/2), q.items...)
	}
}

func (q *queue[E]) less(i, j int) bool {
	a, b := &q.items[i], &q.items[j]
	if a.time != b.time {
		return a.time < b.time
	}
	return a.e.before(b.e)
}

func (q *queue[E]) swap(i, j int) {
	q.items[i], q.items[j] = q.items[j], q.items[i]
	q.items[i].e.setAt(i)
	q.items[j].e.setAt(j)
}

func (q *queue[E]) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !q.less(i, parent) {
			return
		}
		q.swap(i, parent)
		i = parent
	}
}

// down reports whether the element moved.
func (q *queue[E]) down(i int) bool {
	start := i
	for {
		child := 2*i + 1
		if child >= len(q.items) {
			return i != start
		}
		if right := child + 1; right < len(q.items) && q.less(right, child) {
			child = right
		}
		if !q.less(child, i) {
			return i != start
		}
		q.swap(i, child)
		i = child
	}
}
