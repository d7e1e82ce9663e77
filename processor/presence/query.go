package presence

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// ErrMoving says that a partition's table is not here, or not for sure: it is being restored, or has moved to another process.
var ErrMoving = txn.ErrNotHeld

// Query answers who is online from the tables of a stage that runs. The zero value has none.
//
// What is answered is committed: the loop holds the tables from the first change of a transaction until it has ended, and a query
// waits. It is also the owner's answer: no other member can have been given the partition before it was read
// ([txn.Membership]).
type Query struct {
	mu    sync.Mutex
	stage *stage // nil: none runs
}

// readersAtOnce is how many queries read tables beside each other.
const readersAtOnce = 64

// holder is [txn.Membership].
type holder interface {
	Held(ctx context.Context, p txn.Partition, asked time.Time, read func()) error
	Member() string
}

func (q *Query) attach(s *stage) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stage = s
}

func (q *Query) current() *stage {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stage
}

// Member is the process's member id in presence's group; empty: it has none.
func (q *Query) Member() string {
	if s := q.current(); s != nil {
		return s.membership.Member()
	}
	return ""
}

// Users returns what is known of uids, all of one inbox partition, in their order, at some moment after asked; connections says
// whether each of them is to be named. It fails with ErrMoving, or with ctx's error where a transaction takes longer than that.
func (q *Query) Users(ctx context.Context, asked time.Time, partition int32, uids []string, connections bool) ([]schemas.User, error) {
	s := q.current()
	if s == nil {
		return nil, ErrMoving
	}
	var users []schemas.User
	var waiting error
	err := s.membership.Held(ctx, txn.Partition{Topic: s.deps.Topics.Inbox, Partition: partition}, asked, func() {
		if waiting = s.tables.Acquire(ctx, 1); waiting != nil {
			return
		}
		defer s.tables.Release(1)
		if p := s.parts[partition]; p != nil {
			users = make([]schemas.User, len(uids))
			seen := make(map[string]int, len(uids))
			for i, uid := range uids {
				if first, ok := seen[uid]; ok {
					users[i] = users[first]
					continue
				}
				seen[uid] = i
				users[i] = p.table.User(uid, connections)
			}
		}
	})
	switch {
	case waiting != nil:
		return nil, waiting
	case err != nil:
		return nil, err
	case users == nil:
		return nil, ErrMoving
	}
	return users, nil
}

// User is what the table knows of a uid. connections says whether its connections are to be named.
func (t *Table) User(uid string, connections bool) schemas.User {
	answer := schemas.User{UID: uid, OfflinePush: true, Devices: []schemas.Device{}}
	if connections {
		answer.Connections = []schemas.UserConnection{}
	}
	u := t.users.get(uid)
	if u == nil {
		return answer
	}
	answer.Online, answer.Total, answer.OfflinePush = true, int(u.n), !t.users.spares(u, &t.rules)
	var counts [256]int
	if u.index != nil {
		for _, c := range u.index.counts {
			counts[c.flag] = c.n
		}
	} else {
		for _, c := range t.users.connections(u) {
			counts[c.flag]++
		}
	}
	for flag, n := range counts {
		if n > 0 {
			answer.Devices = append(answer.Devices, schemas.Device{DeviceFlag: uint8(flag), Count: n})
		}
	}
	if !connections {
		return answer
	}
	for _, c := range t.first(u, schemas.MaxUserConnections) {
		num, text := t.users.id(c)
		named := schemas.UserConnection{
			NodeID: t.nodes[c.node].id, ConnID: joinID(num, text), DeviceFlag: c.flag, Background: c.background(), Since: c.version,
		}
		if c.openedAt >= 0 {
			at := c.openedAt
			named.OpenedAt = &at
		}
		answer.Connections = append(answer.Connections, named)
	}
	answer.ConnectionsCut = len(answer.Connections) < answer.Total
	return answer
}

// first returns the first limit connections of a user, in the order of (node_id, conn_id). However many there are, it holds at
// most twice the limit.
func (t *Table) first(u *user, limit int) []*conn {
	order := func(a, b *conn) int {
		aNum, aText := t.users.id(a)
		bNum, bText := t.users.id(b)
		return cmp.Or(t.nodes[a.node].id.Compare(t.nodes[b.node].id), compareIDs(aNum, aText, bNum, bText))
	}
	var kept []*conn
	var bound *conn // that many are before it
	cut := func() {
		slices.SortFunc(kept, order)
		if len(kept) >= limit {
			kept, bound = kept[:limit], kept[limit-1]
		}
	}
	for _, c := range t.users.connections(u) {
		if bound != nil && order(c, bound) > 0 {
			continue
		}
		if kept = append(kept, c); len(kept) == 2*limit {
			cut()
		}
	}
	cut()
	return kept
}
