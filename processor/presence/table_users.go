package presence

import (
	"cmp"
	"hash/maphash"
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/offhook/offhook/schemas"
)

// users are the uids that have a live connection, with their connections. There are millions of them, and a process that gets
// a partition has to build them anew, so they are kept for size and for the garbage collector: in slabs, connections without
// pointers, found by an index of numbers (open addressing with linear probing and deletion by moving back, as Knuth has it in
// The Art of Computer Programming, volume 3, section 6.4, algorithms L and R).
type users struct {
	index []entry // its length is a power of two
	n     int     // users
	slab  slab[user]
	conns slab[conn]
	texts slab[string] // conn_ids that are no integers
}

// entry is a place of the index; user 0: it is free.
type entry struct {
	hash uint32 // the uid's
	user ref
}

// user is one uid with its live connections.
type user struct {
	uid   string
	index *userIndex // where there are more than a few
	first ref        // its connections, in no order, linked
	n     uint32     // how many
}

// conn is a live connection: 48 bytes.
type conn struct {
	num        uint64 // the conn_id where it is an integer, else which of the texts it is
	version    int64
	openedAt   int64
	sign       int64  // the inbox offset of its last sign of life; in memory alone
	node       uint32 // node.index
	next, prev ref    // of the same user
	flag       uint8
	bits       uint8
}

// Bits of a connection.
const (
	connBackground uint8 = 1 << iota
	connText             // the conn_id is no integer
)

// userIndex keeps the cost of an event independent of how many connections a user has.
type userIndex struct {
	at     map[connName]ref
	counts []flagCount // one for each flag that was seen, at most 256
}

// connName names a connection of one user.
type connName struct {
	text string
	num  uint64
	node uint32
}

type flagCount struct {
	flag       uint8
	n          int
	foreground int // of n: not in the background
}

// Above indexFrom connections a user has an index; it is dropped at indexTo, so that a user between the two does not
// build it again and again.
const (
	indexFrom = 16
	indexTo   = 8
)

var uidSeed = maphash.MakeSeed()

func hashOf(uid string) uint32 { return uint32(maphash.String(uidSeed, uid)) }

// place is where in the index a uid is, or where it would be; the index must not be empty.
func (t *users) place(uid string, hash uint32) int {
	mask := len(t.index) - 1
	i := int(hash) & mask
	for ; t.index[i].user != 0; i = (i + 1) & mask {
		if t.index[i].hash == hash && t.slab.at(t.index[i].user).uid == uid {
			break
		}
	}
	return i
}

// get returns the user of a uid, nil where it has no live connection.
func (t *users) get(uid string) *user {
	if len(t.index) == 0 {
		return nil
	}
	if e := t.index[t.place(uid, hashOf(uid))]; e.user != 0 {
		return t.slab.at(e.user)
	}
	return nil
}

// add adds a uid that is not there.
func (t *users) add(uid string) *user {
	if 4*(t.n+1) > 3*len(t.index) {
		t.grow()
	}
	t.n++
	r, u := t.slab.take()
	u.uid = uid
	hash := hashOf(uid)
	t.index[t.place(uid, hash)] = entry{hash, r}
	return u
}

// grow doubles the index.
func (t *users) grow() {
	old := t.index
	t.index = make([]entry, max(16, 2*len(old)))
	mask := len(t.index) - 1
	for _, e := range old {
		if e.user == 0 {
			continue
		}
		i := int(e.hash) & mask
		for t.index[i].user != 0 {
			i = (i + 1) & mask
		}
		t.index[i] = e
	}
}

// drop drops a user that has no connection any more. What u points to is zero then, and may become another's.
func (t *users) drop(u *user) {
	mask := len(t.index) - 1
	i := t.place(u.uid, hashOf(u.uid))
	t.slab.give(t.index[i].user)
	t.n--
	// What lies behind and could lie here moves back, or it would not be found across the gap.
	for j := i; ; {
		t.index[i] = entry{}
		for {
			j = (j + 1) & mask
			e := t.index[j]
			if e.user == 0 {
				return
			}
			if home := int(e.hash) & mask; (j-home)&mask >= (j-i)&mask {
				t.index[i] = e
				i = j
				break
			}
		}
	}
}

// all goes over all users, in no order. None may be added or dropped meanwhile.
func (t *users) all() iter.Seq[*user] {
	return func(yield func(*user) bool) {
		for r := ref(1); r <= t.slab.used; r++ {
			if u := t.slab.at(r); u.n > 0 && !yield(u) {
				return
			}
		}
	}
}

// connections goes over the connections of a user.
func (t *users) connections(u *user) iter.Seq2[ref, *conn] {
	return func(yield func(ref, *conn) bool) {
		for r := u.first; r != 0; {
			c := t.conns.at(r)
			next := c.next
			if !yield(r, c) {
				return
			}
			r = next
		}
	}
}

func (c *conn) background() bool { return c.bits&connBackground != 0 }

func (c *conn) state() schemas.ConnectionState {
	return schemas.ConnectionState{
		Open: true, DeviceFlag: c.flag, Version: c.version, OpenedAt: c.openedAt, Background: c.background(),
	}
}

func (c *conn) set(s schemas.ConnectionState) {
	c.flag, c.version, c.openedAt = s.DeviceFlag, s.Version, s.OpenedAt
	c.bits &^= connBackground
	if s.Background {
		c.bits |= connBackground
	}
}

// id is the conn_id, as splitID has it.
func (t *users) id(c *conn) (num uint64, text string) {
	if c.bits&connText != 0 {
		return 0, *t.texts.at(ref(c.num))
	}
	return c.num, ""
}

func (t *users) name(c *conn) connName {
	num, text := t.id(c)
	return connName{text: text, num: num, node: c.node}
}

// find returns a connection of a user; 0: it has none of that name. The key's uid is not looked at.
func (t *users) find(u *user, k *key) ref {
	if u.index != nil {
		return u.index.at[connName{k.text, k.num, k.node.index}]
	}
	for r := u.first; r != 0; {
		c := t.conns.at(r)
		if c.node == k.node.index {
			if num, text := t.id(c); num == k.num && text == k.text {
				return r
			}
		}
		r = c.next
	}
	return 0
}

// connect adds a connection that is not there.
func (t *users) connect(u *user, k *key, s schemas.ConnectionState) (ref, *conn) {
	r, c := t.conns.take()
	c.num, c.node = k.num, k.node.index
	if k.text != "" {
		text, at := t.texts.take()
		*at = k.text
		c.num, c.bits = uint64(text), connText
	}
	c.set(s)
	if u.first != 0 {
		t.conns.at(u.first).prev = r
	}
	c.next, u.first = u.first, r
	u.n++
	if u.index != nil {
		u.index.at[t.name(c)] = r
		u.index.count(c.flag, c.background(), 1)
	} else if u.n > indexFrom {
		t.buildIndex(u)
	}
	return r, c
}

// replace changes a connection of a user.
func (t *users) replace(u *user, r ref, s schemas.ConnectionState) {
	c := t.conns.at(r)
	if u.index != nil && (c.flag != s.DeviceFlag || c.background() != s.Background) {
		u.index.count(c.flag, c.background(), -1)
		u.index.count(s.DeviceFlag, s.Background, 1)
	}
	c.set(s)
}

// disconnect removes a connection of a user.
func (t *users) disconnect(u *user, r ref) {
	c := t.conns.at(r)
	if u.index != nil {
		u.index.count(c.flag, c.background(), -1)
		delete(u.index.at, t.name(c))
	}
	if c.bits&connText != 0 {
		t.texts.give(ref(c.num))
	}
	if c.next != 0 {
		t.conns.at(c.next).prev = c.prev
	}
	if c.prev != 0 {
		t.conns.at(c.prev).next = c.next
	} else {
		u.first = c.next
	}
	t.conns.give(r)
	if u.n--; u.n <= indexTo {
		u.index = nil
	}
}

func (t *users) buildIndex(u *user) {
	u.index = &userIndex{at: make(map[connName]ref, 2*u.n)}
	for r, c := range t.connections(u) {
		u.index.at[t.name(c)] = r
		u.index.count(c.flag, c.background(), 1)
	}
}

func (x *userIndex) count(flag uint8, background bool, delta int) {
	i := slices.IndexFunc(x.counts, func(c flagCount) bool { return c.flag == flag })
	if i < 0 {
		i = len(x.counts)
		x.counts = append(x.counts, flagCount{flag: flag})
	}
	x.counts[i].n += delta
	if !background {
		x.counts[i].foreground += delta
	}
}

// devices is the number of a user's connections with that flag.
func (t *users) devices(u *user, flag uint8) int {
	n := 0
	if u.index != nil {
		for _, c := range u.index.counts {
			if c.flag == flag {
				n = c.n
			}
		}
		return n
	}
	for _, c := range t.connections(u) {
		if c.flag == flag {
			n++
		}
	}
	return n
}

// spares reports whether a user has a connection that spares it a msg.offline.
func (t *users) spares(u *user, rules *Rules) bool {
	flag := func(flag uint8) bool { return rules.OnlineFlags == nil || rules.OnlineFlags[flag] }
	if u.index != nil {
		return slices.ContainsFunc(u.index.counts, func(c flagCount) bool {
			return flag(c.flag) && (c.foreground > 0 || rules.BackgroundIsOnline && c.n > 0)
		})
	}
	for _, c := range t.connections(u) {
		if flag(c.flag) && (rules.BackgroundIsOnline || !c.background()) {
			return true
		}
	}
	return false
}

// splitID returns an id's integer and no text, or 0 and its text where it is none.
func splitID(id schemas.ID) (num uint64, text string) {
	if len(id) == 0 || len(id) > 19 || id[0] == '0' && len(id) > 1 {
		return 0, string(id)
	}
	for i := range len(id) {
		d := id[i] - '0'
		if d > 9 {
			return 0, string(id)
		}
		num = num*10 + uint64(d) // 19 digits fit
	}
	if num > 1<<63-1 {
		return 0, string(id)
	}
	return num, ""
}

func joinID(num uint64, text string) schemas.ID {
	if text != "" {
		return schemas.ID(text)
	}
	return schemas.ID(strconv.FormatUint(num, 10))
}

// compareIDs orders as schemas.ID.Compare does.
func compareIDs(aNum uint64, aText string, bNum uint64, bText string) int {
	switch {
	case aText == "" && bText == "":
		return cmp.Compare(aNum, bNum)
	case aText == "":
		return -1
	case bText == "":
		return 1
	}
	return strings.Compare(aText, bText)
}
