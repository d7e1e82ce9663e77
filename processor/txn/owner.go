package txn

import (
	"context"
	"maps"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// ownership is one partition in one stretch of being assigned to this member. A partition that goes and comes back
// gets a new one: pointers are compared, never names.
type ownership struct {
	Partition

	// member is the member id that it was assigned to. Nothing of it is committed under another.
	member string

	// ctx ends with the ownership, and with it the restore.
	ctx    context.Context
	cancel context.CancelFunc

	// committed is what the group had committed when the position was set or last committed by us: the next offset;
	// -1: nothing; unknown: not told yet. Written by the offset adjustment under session.mu before the first fetch,
	// by the loop after it.
	committed int64

	// serving says that the handler has the partition's state. Under session.view.mu.
	serving bool

	// Of the loop alone:
	restored bool
	next     int64 // the offset after the last one processed, in the open transaction too; unknown before the first
	start    int64 // where reading began, for next; unknown: not told
	inTxn    bool  // the open transaction has consumed from it
	halfway  bool  // the record at next, which the open transaction has consumed, has more to do
}

// unknown is an offset that nobody has told.
const unknown = -2

// view is what this member owns by the newest assignment.
type view struct {
	mu     sync.Mutex
	owned  map[Partition]*ownership
	member string // the member id of that assignment
	joined bool   // there was an assignment
	doubt  bool   // a partition seemed kept under a new member id
	wake   func() // ends the loop's idle poll
	seq    uint64 // counts the changes
}

// assign takes a generation's assignment: full is all of it, added what kgo begins to consume anew. It returns the
// partitions that begin, which must be paused before it unlocks: pause is called under the lock.
func (v *view) assign(ctx context.Context, member string, full, added map[string][]int32, pause func(map[string][]int32)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fresh := make(map[Partition]bool)
	for topic, partitions := range added {
		for _, p := range partitions {
			fresh[Partition{topic, p}] = true
		}
	}
	next := make(map[Partition]*ownership)
	begin := make(map[string][]int32)
	for topic, partitions := range full {
		for _, p := range partitions {
			name := Partition{topic, p}
			if o := v.owned[name]; o != nil && !fresh[name] {
				if v.member != member {
					// kgo rejoins by itself under a new id where the coordinator forgot the old one while a join was
					// under way, and goes on with what it had. Meanwhile another member may have owned it.
					v.doubt = true
				}
				next[name] = o
				continue
			}
			o := &ownership{Partition: name, member: member, committed: unknown, next: unknown, start: unknown}
			o.ctx, o.cancel = context.WithCancel(ctx)
			next[name] = o
			begin[topic] = append(begin[topic], p)
		}
	}
	for name, o := range v.owned {
		if next[name] != o {
			o.cancel()
		}
	}
	v.owned, v.member, v.joined = next, member, true
	if len(begin) > 0 {
		pause(begin)
	}
	v.changed()
}

// drop takes partitions away, all of them where parts is nil.
func (v *view) drop(parts map[string][]int32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	next := maps.Clone(v.owned)
	for topic, partitions := range parts {
		for _, p := range partitions {
			name := Partition{topic, p}
			if o := next[name]; o != nil {
				o.cancel()
				delete(next, name)
			}
		}
	}
	v.owned = next
	v.changed()
}

// left says that the group has lost this member: it owns nothing until it has joined again.
func (v *view) left() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, o := range v.owned {
		o.cancel()
	}
	v.owned, v.joined = make(map[Partition]*ownership), false
	v.changed()
}

// inDoubt reports whether a partition seemed kept under a new member id.
func (v *view) inDoubt() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.doubt
}

// changed wakes the loop; mu is held.
func (v *view) changed() {
	v.seq++
	if v.wake != nil {
		v.wake()
	}
}

// owns reports whether o is still owned.
func (v *view) owns(o *ownership) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.owned[o.Partition] == o
}

// assignments is the cooperative-sticky balancer, and keeps the assignment of the newest generation, whole: kgo's
// callbacks tell differences alone, and not always all of them.
type assignments struct {
	kgo.GroupBalancer
	url string // told to others, where it is not empty

	mu   sync.Mutex
	full map[string][]int32
}

// JoinGroupMetadata adds the member's URL to what kgo says of it.
func (a *assignments) JoinGroupMetadata(topics []string, owned map[string][]int32, generation int32) []byte {
	return advertise(a.GroupBalancer.JoinGroupMetadata(topics, owned, generation), a.url)
}

func (a *assignments) ParseSyncAssignment(assignment []byte) (map[string][]int32, error) {
	full, err := a.GroupBalancer.ParseSyncAssignment(assignment)
	if err == nil {
		a.mu.Lock()
		a.full = make(map[string][]int32, len(full))
		for topic, partitions := range full {
			a.full[topic] = append([]int32(nil), partitions...)
		}
		a.mu.Unlock()
	}
	return full, err
}

func (a *assignments) newest() map[string][]int32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.full
}
