package query

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/processor/txn"
)

// idle is a stage that does nothing.
type idle struct{}

func (idle) Restore(context.Context, txn.Partition) (func(), error)    { return nil, nil }
func (idle) Revoked(txn.Partition)                                     {}
func (idle) Process(txn.Input, func(*kgo.Record)) (more bool, _ error) { return false, nil }
func (idle) Commit()                                                   {}
func (idle) Rollback()                                                 {}
func (idle) Reset()                                                    {}

// join runs a member of the group of presence, and returns its membership; stop ends it.
func join(t *testing.T, c *kafkatest.Cluster, url string, topics ...string) (member *txn.Membership, stop func()) {
	t.Helper()
	member = new(txn.Membership)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- txn.Run(ctx, txn.Config{Stage: "presence", Prefix: c.Prefix, Topics: topics, AdvertisedURL: url}, txn.Deps{
			Kafka: c.Config(), Log: slog.New(slog.DiscardHandler), Handler: idle{}, Membership: member,
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the member ended: %v", err)
		}
	})
	t.Cleanup(stop)
	return member, stop
}

// ownersOf asks for all partitions of the inbox, as of a time at which nothing that is known counts any more.
func ownersOf(t *testing.T, g *Group) (owners []Owner, moving int) {
	t.Helper()
	asked := time.Now().Add(time.Hour)
	for p := range int32(testPartitions) {
		owner, err := g.Owner(t.Context(), p, asked)
		switch {
		case errors.Is(err, errMoving):
			moving++
		case err != nil:
			t.Fatal(err)
		}
		owners = append(owners, owner)
	}
	return owners, moving
}

// TestGroup: each partition of the inbox has the owner that the group's assignment names, at the URL that it told, and none where the
// group has no members. What members have of other topics is nothing to it.
func TestGroup(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		inbox, other := c.Prefix+".inbox", c.Prefix+".other"
		c.CreateTopic(t, inbox, testPartitions)
		c.CreateTopic(t, other, 2*testPartitions)
		g := NewGroup(c.Client(t), c.Prefix+".presence", inbox)
		if owners, moving := ownersOf(t, g); moving != testPartitions {
			t.Errorf("nobody has joined, and %v own it", owners)
		}
		join(t, c, "http://10.1.2.4", other)
		ofOther := NewGroup(c.Client(t), c.Prefix+".presence", other)
		kafkatest.Wait(t, 30*time.Second, "another topic to have an owner", func() bool {
			_, err := ofOther.Owner(t.Context(), 2*testPartitions-1, time.Now().Add(time.Hour))
			return err == nil
		})
		const url = "http://10.1.2.3:8080/base"
		first, stopFirst := join(t, c, url+"/", inbox)
		second, stopSecond := join(t, c, "", inbox)
		kafkatest.Wait(t, 30*time.Second, "both to own something", func() bool {
			owners, moving := ownersOf(t, g)
			count := make(map[Owner]int)
			for _, owner := range owners {
				count[owner]++
			}
			return moving == 0 && count[Owner{first.Member(), url}] == 2 && count[Owner{second.Member(), ""}] == 2
		})
		kafkatest.Wait(t, 30*time.Second, "the owners to hold what they own", func() bool {
			owners, _ := ownersOf(t, g)
			for p, owner := range owners {
				member := first
				if owner.URL == "" {
					member = second
				}
				if member.Held(t.Context(), txn.Partition{Topic: inbox, Partition: int32(p)}, time.Now(), func() {}) != nil {
					return false
				}
			}
			return true
		})
		if owner, err := g.Owner(t.Context(), testPartitions, time.Now()); !errors.Is(err, errMoving) {
			t.Errorf("%v owns a partition that the inbox does not have, %v", owner, err)
		}
		stopSecond()
		kafkatest.Wait(t, 30*time.Second, "one to own all", func() bool {
			owners, moving := ownersOf(t, g)
			for _, owner := range owners {
				if owner != (Owner{first.Member(), url}) {
					return false
				}
			}
			return moving == 0
		})
		stopFirst()
	})
}

// answers is what the group's coordinator says, in the place of the truth.
type answers struct {
	mu    sync.Mutex
	asked int
	err   int16
	state string // empty: the truth
	hold  chan struct{}
}

func (a *answers) set(f func(*answers)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f(a)
}

func (a *answers) put(c *kafkatest.Cluster) {
	c.Fake.ControlKey(int16(kmsg.DescribeGroups), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		a.mu.Lock()
		a.asked++
		code, state, hold := a.err, a.state, a.hold
		a.mu.Unlock()
		if hold != nil {
			c.Fake.SleepControl(func() { <-hold })
		}
		if code == 0 && state == "" {
			return nil, nil, false
		}
		resp := req.ResponseKind().(*kmsg.DescribeGroupsResponse)
		for _, name := range req.(*kmsg.DescribeGroupsRequest).Groups {
			group := kmsg.NewDescribeGroupsResponseGroup()
			group.Group, group.ErrorCode, group.State = name, code, state
			resp.Groups = append(resp.Groups, group)
		}
		return resp, nil, true
	})
}

// TestGroupIsAskedOnce: what the group has said counts for a second, from when it was asked; while it rebalances what it said before
// counts; a refusal names what to grant; and who gives up while it is asked leaves nothing behind.
func TestGroupIsAskedOnce(t *testing.T) {
	c := kafkatest.New(t)
	inbox := c.Prefix + ".inbox"
	c.CreateTopic(t, inbox, testPartitions)
	g := NewGroup(c.Client(t), c.Prefix+".presence", inbox)
	member, _ := join(t, c, "http://10.1.2.3:8080", inbox)
	want := func() Owner { return Owner{member.Member(), "http://10.1.2.3:8080"} }
	kafkatest.Wait(t, 30*time.Second, "an owner", func() bool {
		owners, moving := ownersOf(t, g)
		return moving == 0 && owners[0] == want()
	})
	var a answers
	a.put(c)
	asked := func() (n int) { a.set(func(a *answers) { n = a.asked }); return n }
	now := time.Now()
	for _, tt := range []struct {
		at   time.Time
		want int
	}{{now, 0}, {now.Add(knownFor / 2), 0}, {now.Add(3 * knownFor), 1}, {now.Add(knownFor / 2), 1}} {
		if owner, err := g.Owner(t.Context(), 1, tt.at); err != nil || owner != want() || asked() != tt.want {
			t.Errorf("%v later: %v, %v, and the group was asked %d times, want %d", tt.at.Sub(now), owner, err, asked(), tt.want)
		}
	}

	hour := now.Add(time.Hour) // nothing that is known counts then
	a.set(func(a *answers) { a.state = "PreparingRebalance" })
	if owner, err := g.Owner(t.Context(), 1, hour); err != nil || owner != want() {
		t.Errorf("while the group rebalances: %v, %v", owner, err)
	}
	a.set(func(a *answers) { a.err = kerr.GroupAuthorizationFailed.Code })
	if owner, err := g.Owner(t.Context(), 1, hour); errors.Is(err, errMoving) || err == nil || !strings.Contains(err.Error(), "allow Describe on the group "+c.Prefix+".presence") {
		t.Errorf("refused: %v, %v", owner, err)
	}
	a.set(func(a *answers) { a.err = kerr.InvalidRequest.Code })
	if owner, err := g.Owner(t.Context(), 1, hour); !errors.Is(err, errMoving) {
		t.Errorf("while the coordinator is ill: %v, %v", owner, err)
	}

	hold := make(chan struct{})
	a.set(func(a *answers) { a.err, a.state, a.hold = 0, "", hold })
	before := asked()
	g.asked = time.Time{} // what is known is old
	now = time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { _, err := g.Owner(ctx, 1, now); gone <- err }()
	kafkatest.Wait(t, 10*time.Second, "it is asked", func() bool { return asked() > before })
	waiting := make(chan error, 1)
	go func() {
		owner, err := g.Owner(t.Context(), 1, now)
		if err == nil && owner != want() {
			err = errors.New("another owner")
		}
		waiting <- err
	}()
	cancel()
	if err := <-gone; !errors.Is(err, errMoving) {
		t.Errorf("who gave up: %v", err)
	}
	a.set(func(a *answers) { a.hold = nil })
	close(hold)
	if err := <-waiting; err != nil {
		t.Errorf("who waited: %v", err)
	}
	if n := asked(); n != before+2 {
		t.Errorf("the group was asked %d times, want once more after who gave up", n-before)
	}
}
