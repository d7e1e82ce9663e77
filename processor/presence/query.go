package presence

import (
	"cmp"
	"context"
	"slices"
	"sync"

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
	Held(ctx context.Context, p txn.Partition, read func()) error
}

func (q *Query) attach(s *stage) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stage = s
}

// Users returns what is known of uids, all of one inbox partition, in their order; connections says whether each of them is to be
// named. It fails with ErrMoving, or with ctx's error where a transaction takes longer than that.
func (q *Query) Users(ctx context.Context, partition int32, uids []string, connections bool) ([]schemas.User, error) {
	q.mu.Lock()
	s := q.stage
	q.mu.Unlock()
	if s == nil {
		return nil, ErrMoving
	}
	var users []schemas.User
	var waiting error
	err := s.membership.Held(ctx, txn.Partition{Topic: s.deps.Topics.Inbox, Partition: partition}, func() {
		if waiting = s.tables.Acquire(ctx, 1); waiting != nil {
			return
		}
		defer s.tables.Release(1)
		if p := s.parts[partition]; p != nil {
			users = make([]schemas.User, len(uids))
			for i, uid := range uids {
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
	for _, c := range t.users.connections(u) {
		counts[c.flag]++
		if !connections {
			continue
		}
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
	for flag, n := range counts {
		if n > 0 {
			answer.Devices = append(answer.Devices, schemas.Device{DeviceFlag: uint8(flag), Count: n})
		}
	}
	slices.SortFunc(answer.Connections, func(a, b schemas.UserConnection) int {
		return cmp.Or(a.NodeID.Compare(b.NodeID), a.ConnID.Compare(b.ConnID))
	})
	if len(answer.Connections) > schemas.MaxUserConnections {
		answer.Connections, answer.ConnectionsCut = answer.Connections[:schemas.MaxUserConnections], true
	}
	return answer
}
