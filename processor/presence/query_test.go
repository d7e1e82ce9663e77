package presence

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

func TestUser(t *testing.T) {
	table := NewTable(Rules{OnlineFlags: &[256]bool{0: true}})
	var e Effects
	online := func(uid, conn, node string, flag uint8, openedAt int64, background bool) {
		table.Apply(&schemas.Connection{
			Type: schemas.Online, UID: uid, ConnID: schemas.ID(conn), NodeID: schemas.ID(node), DeviceFlag: flag, HasDeviceFlag: true,
			Time: 7, OpenedAt: openedAt, Background: background, HasBackground: background,
		}, Mark{Time: 9}, &e)
	}
	at := int64(5)
	online("u", "10", "2", 1, -1, false)
	online("u", "x", "2", 1, -1, false)
	online("u", "9", "2", 0, 5, true)
	online("u", "9", "1", 3, -1, false)
	want := schemas.User{
		UID: "u", Online: true, OfflinePush: true, Total: 4,
		Devices: []schemas.Device{{DeviceFlag: 0, Count: 1}, {DeviceFlag: 1, Count: 2}, {DeviceFlag: 3, Count: 1}},
	}
	if diff := cmp.Diff(want, table.User("u", false)); diff != "" {
		t.Errorf("without connections (-want +got):\n%s", diff)
	}
	want.Connections = []schemas.UserConnection{
		{NodeID: "1", ConnID: "9", DeviceFlag: 3, Since: 7},
		{NodeID: "2", ConnID: "9", DeviceFlag: 0, Since: 7, OpenedAt: &at, Background: true},
		{NodeID: "2", ConnID: "10", DeviceFlag: 1, Since: 7},
		{NodeID: "2", ConnID: "x", DeviceFlag: 1, Since: 7},
	}
	if diff := cmp.Diff(want, table.User("u", true)); diff != "" {
		t.Errorf("with connections (-want +got):\n%s", diff)
	}
	online("u", "11", "1", 0, -1, false)
	if table.User("u", false).OfflinePush {
		t.Error("a connection in the foreground spares no push")
	}
	want = schemas.User{UID: "nobody", OfflinePush: true, Devices: []schemas.Device{}, Connections: []schemas.UserConnection{}}
	if diff := cmp.Diff(want, table.User("nobody", true)); diff != "" {
		t.Errorf("nobody (-want +got):\n%s", diff)
	}
	for i := range schemas.MaxUserConnections + 1 {
		online("many", strconv.Itoa(i), "1", 0, -1, false)
	}
	many := table.User("many", true)
	if many.Total != schemas.MaxUserConnections+1 || len(many.Connections) != schemas.MaxUserConnections || !many.ConnectionsCut || many.Connections[999].ConnID != "999" {
		t.Errorf("many: %d of %d are named, cut: %t", len(many.Connections), many.Total, many.ConnectionsCut)
	}
}

// startQueried starts presence with a Query of its tables.
func (p *pipeline) startQueried() (*process, *Query) {
	q := new(Query)
	return p.start(func(ctx context.Context, reg *prometheus.Registry) error {
		return Run(ctx, p.presence, Deps{Kafka: p.Config(), Topics: p.topics, Owned: p.owned, Log: p.log, Registerer: reg, Query: q})
	}), q
}

func (p *pipeline) ask(q *Query, uid string) (schemas.User, error) {
	ctx, cancel := context.WithTimeout(p.Context(), 10*time.Second)
	defer cancel()
	users, err := q.Users(ctx, time.Now(), kafka.Partition(uid, 4), []string{uid}, true)
	if err != nil {
		return schemas.User{}, err
	}
	return users[0], nil
}

// always holds.
type always struct{}

func (always) Held(_ context.Context, _ txn.Partition, _ time.Time, read func()) error {
	read()
	return nil
}
func (always) Member() string { return "" }

// TestQuerySeesWhatIsCommitted: a query waits for the open transaction, however it ends, and is answered before the next one begins,
// though that is at once.
func TestQuerySeesWhatIsCommitted(t *testing.T) {
	s := newBareStage(t, Config{CloseMemory: time.Minute})
	s.membership = always{}
	s.parts[0] = &part{table: NewTable(s.rules)}
	var q Query
	q.attach(s)
	offset := int64(0)
	online := func() {
		offset++
		c := schemas.Connection{Type: schemas.Online, UID: "u", ConnID: schemas.ID(strconv.FormatInt(offset, 10)), NodeID: "1", HasDeviceFlag: true, Time: 1, OpenedAt: -1}
		r := &kgo.Record{
			Offset: offset, Timestamp: time.UnixMilli(1), Value: schemas.AppendInboxConnection(nil, &c),
			Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
		}
		if _, err := s.Process(txn.Input{Record: r}, func(*kgo.Record) {}); err != nil {
			t.Fatal(err)
		}
	}
	total := func(patience time.Duration) int {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		users, err := q.Users(ctx, time.Now(), 0, []string{"u"}, false)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return -1
		case err != nil:
			t.Error(err)
			return -2
		}
		return users[0].Total
	}
	for _, tt := range []struct {
		end  func()
		want int
	}{{s.Commit, 1}, {s.Rollback, 1}, {s.Commit, 2}} {
		online()
		if got := total(20 * time.Millisecond); got != -1 {
			t.Fatalf("%d connections are answered amid a transaction", got)
		}
		waiting := make(chan int)
		for range 10 {
			go func() { waiting <- total(10 * time.Second) }()
		}
		time.Sleep(20 * time.Millisecond)
		tt.end()
		online()
		for range 10 {
			if got := <-waiting; got != tt.want {
				t.Errorf("%d connections, want %d", got, tt.want)
			}
		}
		s.Rollback()
		if got := total(time.Second); got != tt.want {
			t.Errorf("%d connections between transactions, want %d", got, tt.want)
		}
	}
	online()
	s.Reset()
	if _, err := q.Users(t.Context(), time.Now(), 0, []string{"u"}, false); !errors.Is(err, ErrMoving) {
		t.Errorf("after a reset: %v", err)
	}
}

// TestQueriesWhileMoving: while partitions move between processes, and one is restarted, each answer is at least as new as what
// was delivered before it was asked for.
func TestQueriesWhileMoving(t *testing.T) {
	p := newPipeline(t, kafkatest.New(t))
	const users = 8
	uid := func(i int) string { return fmt.Sprintf("user%d", i) }
	first, q := p.startQueried()
	queries := [2]atomic.Pointer[Query]{}
	queries[0].Store(q)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()

	// The n-th connection of each user takes the place of the one before.
	cl := p.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	running.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			for u := range users {
				for _, c := range []schemas.Connection{{Type: schemas.Online, ConnID: schemas.ID(strconv.Itoa(n))}, {Type: schemas.Offline, ConnID: schemas.ID(strconv.Itoa(n - 1))}} {
					c.UID, c.NodeID, c.HasDeviceFlag, c.Time, c.OpenedAt = uid(u), "1", true, int64(n), -1
					cl.Produce(ctx, &kgo.Record{
						Topic: p.topics.Inbox, Partition: kafka.Partition(c.UID, 4), Value: schemas.AppendInboxConnection(nil, &c),
						Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
					}, nil)
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	var delivered [users]atomic.Int64
	reader := p.Client(t, kgo.ConsumeTopics(p.topics.OnlineStatus), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(20*time.Millisecond))
	running.Go(func() {
		for ctx.Err() == nil {
			reader.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				u, _ := strconv.Atoi(strings.TrimPrefix(string(r.Key), "user"))
				fields := strings.Split(strings.Trim(string(r.Value), `"`), "-")
				if n, _ := strconv.ParseInt(fields[4], 10, 64); fields[2] == "1" {
					delivered[u].Store(n)
				}
			})
		}
	})
	var answered, moving [2]atomic.Int64
	for i := range queries {
		running.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				q := queries[i].Load()
				if q == nil {
					time.Sleep(time.Millisecond)
					continue
				}
				u := n % users
				least := delivered[u].Load()
				got, err := p.ask(q, uid(u))
				switch {
				case errors.Is(err, ErrMoving):
					moving[i].Add(1)
				case err != nil:
					if ctx.Err() == nil {
						t.Errorf("ask: %v", err)
					}
				default:
					answered[i].Add(1)
					newest := int64(0)
					for _, c := range got.Connections {
						n, _ := strconv.ParseInt(string(c.ConnID), 10, 64)
						newest = max(newest, n)
					}
					if newest < least {
						t.Errorf("process %d answers with connection %d of %s, and %d was delivered before", i, newest, uid(u), least)
					}
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	both := func() {
		t.Helper()
		for i := range answered {
			answered[i].Store(0)
		}
		kafkatest.Wait(t, 30*time.Second, "answers of both", func() bool { return answered[0].Load() > 50 && answered[1].Load() > 50 })
	}
	for range 2 {
		second, q := p.startQueried()
		queries[1].Store(q)
		both()
		second.stop()
	}
	second, q := p.startQueried()
	queries[1].Store(q)
	both()
	first.stop()
	kafkatest.Wait(t, 30*time.Second, "all to be with the second", func() bool {
		for u := range users {
			if _, err := p.ask(q, uid(u)); err != nil {
				return false
			}
		}
		return true
	})
	_ = second
	if moving[0].Load() == 0 || moving[1].Load() == 0 {
		t.Error("no partition was seen to move")
	}
}
