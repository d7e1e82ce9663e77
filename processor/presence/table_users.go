package presence

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/offhook/offhook/schemas"
)

// user is the live connections of one uid.
type user struct {
	conns []conn     // in no order
	index *userIndex // where there are more than a few
}

// conn is a live connection. There are millions of them, so it is packed: 48 bytes.
type conn struct {
	text       *string // the conn_id where it is no integer, else nil
	num        uint64  // the conn_id where it is an integer
	version    int64
	openedAt   int64
	sign       int64  // the inbox offset of its last sign of life; in memory alone
	node       uint32 // node.index
	flag       uint8
	background bool
}

// userIndex keeps the cost of an event independent of how many connections a user has.
type userIndex struct {
	at     map[connName]int // index in user.conns
	counts []flagCount      // one for each flag that was seen, at most 256
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

func (c *conn) state() schemas.ConnectionState {
	return schemas.ConnectionState{
		Open: true, DeviceFlag: c.flag, Version: c.version, OpenedAt: c.openedAt, Background: c.background,
	}
}

func (c *conn) set(s schemas.ConnectionState) {
	c.flag, c.version, c.openedAt, c.background = s.DeviceFlag, s.Version, s.OpenedAt, s.Background
}

func (c *conn) name() connName {
	n := connName{num: c.num, node: c.node}
	if c.text != nil {
		n.text = *c.text
	}
	return n
}

// find returns the index of a connection in conns, or -1. The key's uid is not looked at.
func (u *user) find(k *key) int {
	if u.index != nil {
		if i, ok := u.index.at[connName{k.text, k.num, k.node.index}]; ok {
			return i
		}
		return -1
	}
	for i := range u.conns {
		c := &u.conns[i]
		if c.num == k.num && c.node == k.node.index && (c.text == nil) == (k.text == "") && (c.text == nil || *c.text == k.text) {
			return i
		}
	}
	return -1
}

// add adds a connection that is not there and returns its index.
func (u *user) add(k *key, s schemas.ConnectionState) int {
	c := conn{num: k.num, node: k.node.index}
	if k.text != "" {
		text := k.text // not &k.text: that would keep the whole key
		c.text = &text
	}
	c.set(s)
	i := len(u.conns)
	u.conns = append(u.conns, c)
	if u.index != nil {
		u.index.at[c.name()] = i
		u.index.count(c.flag, c.background, 1)
	} else if len(u.conns) > indexFrom {
		u.buildIndex()
	}
	return i
}

// replace changes the connection at i.
func (u *user) replace(i int, s schemas.ConnectionState) {
	c := &u.conns[i]
	if u.index != nil && (c.flag != s.DeviceFlag || c.background != s.Background) {
		u.index.count(c.flag, c.background, -1)
		u.index.count(s.DeviceFlag, s.Background, 1)
	}
	c.set(s)
}

// remove removes the connection at i; another takes its index.
func (u *user) remove(i int) {
	last := len(u.conns) - 1
	if u.index != nil {
		u.index.count(u.conns[i].flag, u.conns[i].background, -1)
		delete(u.index.at, u.conns[i].name())
		if i != last {
			u.index.at[u.conns[last].name()] = i
		}
	}
	u.conns[i] = u.conns[last]
	u.conns[last] = conn{}
	u.conns = u.conns[:last]
	if last <= indexTo {
		u.index = nil
	}
	if c := cap(u.conns); c > 4 && last <= c/4 {
		u.conns = append(make([]conn, 0, c/2), u.conns...)
	}
}

func (u *user) buildIndex() {
	u.index = &userIndex{at: make(map[connName]int, 2*len(u.conns))}
	for i := range u.conns {
		u.index.at[u.conns[i].name()] = i
		u.index.count(u.conns[i].flag, u.conns[i].background, 1)
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

// devices is the number of connections with that flag.
func (u *user) devices(flag uint8) int {
	n := 0
	if u.index != nil {
		for _, c := range u.index.counts {
			if c.flag == flag {
				n = c.n
			}
		}
		return n
	}
	for i := range u.conns {
		if u.conns[i].flag == flag {
			n++
		}
	}
	return n
}

// spares reports whether there is a connection that spares the user a msg.offline.
func (u *user) spares(r *Rules) bool {
	flag := func(flag uint8) bool { return r.OnlineFlags == nil || r.OnlineFlags[flag] }
	if u.index != nil {
		return slices.ContainsFunc(u.index.counts, func(c flagCount) bool {
			return flag(c.flag) && (c.foreground > 0 || r.BackgroundIsOnline && c.n > 0)
		})
	}
	return slices.ContainsFunc(u.conns, func(c conn) bool { return flag(c.flag) && (r.BackgroundIsOnline || !c.background) })
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
