package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// place is a cluster with the owned topics and the names of two input topics.
type place struct {
	*testing.T
	*kafkatest.Cluster
	cfg  Config
	deps Deps
	adm  *kadm.Client
}

func newPlace(t *testing.T, c *kafkatest.Cluster) *place {
	t.Helper()
	cl := c.Client(t)
	var out slog.Handler = slog.DiscardHandler
	if os.Getenv("OFFHOOK_TEST_LOG") != "" {
		out = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
	}
	log := slog.New(out)
	topics := kafka.NewTopics(c.Prefix)
	owned, err := kafka.Ensure(t.Context(), cl, kafka.Spec{
		Topics: topics, Create: true, Partitions: 2, ReplicationFactor: -1, EventRetention: time.Hour, MaxRecordBytes: 1 << 20,
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	return &place{
		T: t, Cluster: c, adm: kadm.NewClient(cl),
		cfg: Config{
			ConnectionsTopics: []string{c.Prefix + ".in.connections"}, MessagesTopics: []string{c.Prefix + ".in.messages"},
			ConnectionsStart: Earliest, MessagesStart: Latest, Prefix: c.Prefix, MaxRecordBytes: 1 << 20, CommitInterval: 50 * time.Millisecond,
		},
		deps: Deps{Kafka: c.Config(), Topics: topics, Owned: owned, Log: log},
	}
}

func (p *place) connections() string { return p.cfg.ConnectionsTopics[0] }
func (p *place) messages() string    { return p.cfg.MessagesTopics[0] }

func (p *place) message(n int) *kgo.Record {
	return &kgo.Record{Topic: p.messages(), Value: fmt.Appendf(nil, `{"channel_id":"uid9","from_uid":"a","client_msg_no":"%d"}`, n)}
}

// offsets are the group's committed offsets, of partitions that have one.
func (p *place) offsets() map[string]int64 {
	p.Helper()
	var fetched kadm.OffsetResponses
	kafkatest.Wait(p.T, 30*time.Second, "no transaction is pending on the offsets", func() bool {
		var err error
		fetched, err = p.adm.FetchOffsets(kadm.RequireStable(p.Context()), p.cfg.Prefix+".route")
		if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			p.Fatal(err)
		}
		return fetched.Error() == nil
	})
	got := make(map[string]int64)
	fetched.Each(func(o kadm.OffsetResponse) {
		if o.At >= 0 {
			got[fmt.Sprintf("%s-%d", strings.TrimPrefix(o.Topic, p.Prefix+".in."), o.Partition)] = o.At
		}
	})
	return got
}

// decideStart runs what comes before the join.
func (p *place) decideStart() error {
	ctx, cancel := context.WithTimeout(p.Context(), time.Minute)
	defer cancel()
	return begin(ctx, &p.cfg, &p.deps, p.deps.Log)
}

// run runs the stage until the returned function is called.
func (p *place) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, p.cfg, p.deps) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			p.Error(err)
		}
	})
	p.Cleanup(stop)
	return stop
}

// notified waits until msg.notify has the client_msg_nos, and nothing else.
func (p *place) notified(want ...string) {
	p.Helper()
	var got []string
	kafkatest.Wait(p.T, 30*time.Second, fmt.Sprint("msg.notify has ", want), func() bool {
		got = nil
		for _, r := range p.ReadAll(p.T, p.deps.Topics.Notify) {
			_, rest, _ := strings.Cut(string(r.Value), `"client_msg_no":"`)
			no, _, _ := strings.Cut(rest, `"`)
			got = append(got, no)
		}
		return len(got) >= len(want)
	})
	if diff := cmp.Diff(want, got); diff != "" {
		p.Fatalf("msg.notify (-want +got):\n%s", diff)
	}
}

func TestStartPositions(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPlace(t, c)
		p.CreateTopic(t, p.connections(), 2)
		p.CreateTopic(t, p.messages(), 2)
		for n := range 3 {
			p.Produce(t, p.message(n), &kgo.Record{Topic: p.connections(), Value: []byte("x")})
		}
		if err := p.decideStart(); err != nil {
			t.Fatal(err)
		}
		got := p.offsets()
		var connections, messages int64
		for name, at := range got {
			if strings.HasPrefix(name, "connections") {
				connections += at
			} else {
				messages += at
			}
		}
		if len(got) != 4 || connections != 0 || messages != 3 {
			t.Fatalf("committed %v, want earliest of connections and latest of messages", got)
		}

		// Once: what comes later is read, whatever the setting says then.
		p.Produce(t, p.message(3))
		p.cfg.MessagesStart = Latest
		if err := p.decideStart(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, p.offsets()); diff != "" {
			t.Errorf("a second start changed the offsets:\n%s", diff)
		}
		stop := p.run()
		p.notified("3")
		p.Produce(t, p.message(4))
		p.notified("3", "4")
		stop()

		// The offsets are lost.
		kafkatest.Wait(t, 30*time.Second, "the group is deleted", func() bool {
			_, err := p.adm.DeleteGroup(t.Context(), p.cfg.Prefix+".route")
			return err == nil
		})
		err := p.decideStart()
		if err == nil || !strings.Contains(err.Error(), p.connections()) || !strings.Contains(err.Error(), "--reset-offsets") {
			t.Fatalf("got %v, want a refusal that says what to do", err)
		}
		// The operator says where to begin.
		var set kadm.Offsets
		for part := range int32(2) {
			set.Add(kadm.Offset{Topic: p.connections(), Partition: part, At: 3, LeaderEpoch: -1})
			set.Add(kadm.Offset{Topic: p.messages(), Partition: part, At: 0, LeaderEpoch: -1})
		}
		if err := p.adm.CommitAllOffsets(t.Context(), p.cfg.Prefix+".route", set); err != nil {
			t.Fatal(err)
		}
		if err := p.decideStart(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestTopicThatAppearsLaterBeginsAtItsBeginning(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPlace(t, c)
		p.CreateTopic(t, p.connections(), 1)
		stop := p.run()
		kafkatest.Wait(t, 30*time.Second, "connections are begun", func() bool { return len(p.offsets()) == 1 })
		stop()
		// Between two runs, with latest as the setting.
		p.CreateTopic(t, p.messages(), 1)
		p.Produce(t, p.message(1))
		p.run()
		p.notified("1")
	})
}

func TestTopicThatAppearsWhileRunning(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPlace(t, c)
		p.run() // neither exists
		kafkatest.Wait(t, 30*time.Second, "the marker", func() bool { return len(p.ReadAll(t, p.deps.Topics.Presence)) > 0 })
		p.CreateTopic(t, p.messages(), 1)
		p.Produce(t, p.message(1))
		p.notified("1")
	})
}

// Many processes start at once; whoever wins, all join and each message from then on is notified once.
func TestStartsAtOnce(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		p := newPlace(t, c)
		p.CreateTopic(t, p.connections(), 2)
		p.CreateTopic(t, p.messages(), 2)
		p.Produce(t, p.message(0))
		var all sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			all.Go(func() { errs[i] = p.decideStart() })
		}
		all.Wait()
		for i, err := range errs {
			if err != nil {
				t.Fatalf("process %d: %v", i, err)
			}
		}
		if got := p.offsets(); len(got) != 4 {
			t.Fatalf("committed %v", got)
		}
		for range 3 {
			p.run()
		}
		p.Produce(t, p.message(1))
		p.notified("1")
	})
}

// A process that decides while another has begun to read must not take the group back: here it has looked, and is
// overtaken before it fences others, and before it commits.
func TestLateDecisionDoesNotTakeTheGroupBack(t *testing.T) {
	for _, at := range []string{"fence", "commit"} {
		t.Run("overtaken before "+at, func(t *testing.T) {
			p := newPlace(t, kafkatest.New(t))
			p.CreateTopic(t, p.connections(), 1)
			p.CreateTopic(t, p.messages(), 1)
			p.Produce(t, p.message(0))
			p.cfg.MessagesStart = Earliest
			s := &starter{cfg: &p.cfg, deps: &p.deps, log: p.deps.Log}
			overtaken := false
			s.hold = func(before string) {
				if before != at || overtaken {
					return
				}
				overtaken = true
				if err := p.decideStart(); err != nil {
					t.Error(err)
				}
				stop := p.run()
				p.notified("0")
				stop()
			}
			_, err := s.try(t.Context(), p.Client(t))
			if !overtaken || (err == nil) != (at == "fence") {
				t.Fatalf("got %v; one that is overtaken in its transaction is to be fenced, else to find that all is done", err)
			}
			if got := p.offsets()["messages-0"]; got < 1 {
				t.Errorf("the group was taken back to %d", got)
			}
			p.Produce(t, p.message(1))
			p.run()
			p.notified("0", "1")
		})
	}
}

func TestNewTopicBesideARunningGroupIsRefused(t *testing.T) {
	p := newPlace(t, kafkatest.New(t))
	p.CreateTopic(t, p.connections(), 1)
	p.CreateTopic(t, p.messages(), 1)
	old := *p
	old.cfg.MessagesTopics = nil
	old.run()
	kafkatest.Wait(t, 30*time.Second, "the group has a member", func() bool {
		d, err := p.adm.DescribeGroups(t.Context(), p.cfg.Prefix+".route")
		return err == nil && len(d[p.cfg.Prefix+".route"].Members) > 0
	})
	busy := busyPatience
	busyPatience = 500 * time.Millisecond
	defer func() { busyPatience = busy }()
	err := p.decideStart()
	if err == nil || !strings.Contains(err.Error(), "stop all processes that run route") {
		t.Errorf("got %v, want a refusal", err)
	}
}

// TestStartAfterACrash: what a process with the same instance id has left open is ended before anything waits for it.
func TestStartAfterACrash(t *testing.T) {
	p := newPlace(t, kafkatest.New(t))
	p.cfg.InstanceID = "one"
	crashed := p.Client(t, kgo.TransactionalID(p.Prefix+"-route-one"), kgo.TransactionTimeout(time.Minute), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := crashed.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := crashed.ProduceSync(t.Context(), &kgo.Record{Topic: p.deps.Topics.Presence, Key: []byte("k"), Value: []byte("v")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := p.decideStart(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d >= markerPatience {
		t.Errorf("it took %v", d)
	}
}
