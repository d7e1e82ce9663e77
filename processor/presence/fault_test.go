package presence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// What is tested: a failure at the nth request of a kind, while presence works through a random inbox. In the end the topics that it
// writes and its tables are what the model makes of the inbox, record by record: nothing twice, nothing missing, nothing in another order.

// how a request fails, or what happens while it is under way.
type how int

const (
	refused     how = iota // it is answered with an error, and was not applied
	refusedLong            // so are the two that follow
	taken                  // it is answered with an error, and was applied
	cut                    // its connection breaks before it is applied
	takenCut               // its connection breaks after it was applied

	joins     // a second member joins
	leaves    // the second member leaves
	forgotten // the coordinator forgets the member that has asked last for its heartbeat, and a second one takes over
	outlived  // likewise, and the request arrives when the second one works
	dies      // the second member is gone without a word, with a transaction that may be open
)

func (h how) String() string {
	return [...]string{"refused", "refused thrice", "applied and refused", "cut", "applied and cut", "another joins", "another leaves", "forgotten", "outlived", "another dies"}[h]
}

// fault is one failure at one point.
type fault struct {
	kind kmsg.Key
	how  how
	code *kerr.Error // of an answer
	nth  int         // of the requests of the kind, from 1
	old  bool        // brokers where partitions and offsets are added to a transaction by requests of their own
}

func (f fault) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %s", f.kind.Name(), f.nth, f.how)
	if f.code != nil {
		b.WriteString(" " + f.code.Message)
	}
	if f.old {
		b.WriteString(", old brokers")
	}
	return b.String()
}

// seed is the fault's own.
func (f fault) seed() uint32 {
	hash := fnv.New32a()
	fmt.Fprint(hash, f)
	return hash.Sum32()
}

// faults are all that are injected, at nth 0.
func faults() (all []fault) {
	answers := func(old bool, kind kmsg.Key, hows []how, codes ...*kerr.Error) {
		for _, h := range hows {
			for _, code := range codes {
				all = append(all, fault{kind: kind, how: h, code: code, old: old})
			}
		}
	}
	cuts := func(old bool, kinds ...kmsg.Key) {
		for _, kind := range kinds {
			all = append(all, fault{kind: kind, how: cut, old: old}, fault{kind: kind, how: takenCut, old: old})
		}
	}
	both := []how{refused, taken}
	for _, old := range []bool{false, true} {
		answers(old, kmsg.Produce, both, kerr.NotLeaderForPartition, kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut, kerr.UnknownServerError,
			kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.UnknownProducerID, kerr.OutOfOrderSequenceNumber, kerr.InvalidTxnState,
			kerr.ConcurrentTransactions, kerr.CoordinatorNotAvailable, kerr.InvalidRecord, kerr.KafkaStorageError)
		answers(old, kmsg.TxnOffsetCommit, both, kerr.CoordinatorLoadInProgress, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.RequestTimedOut,
			kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.RebalanceInProgress, kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidTxnState,
			kerr.ConcurrentTransactions, kerr.UnknownServerError, kerr.InvalidCommitOffsetSize)
		answers(old, kmsg.EndTxn, both, kerr.ConcurrentTransactions, kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.NotCoordinator,
			kerr.InvalidProducerEpoch, kerr.ProducerFenced, kerr.InvalidTxnState, kerr.UnknownProducerID, kerr.InvalidProducerIDMapping,
			kerr.OutOfOrderSequenceNumber, kerr.UnknownServerError, kerr.RequestTimedOut)
		cuts(old, kmsg.Produce, kmsg.TxnOffsetCommit, kmsg.EndTxn)
	}
	answers(false, kmsg.EndTxn, both, kerr.TransactionAbortable)
	answers(false, kmsg.TxnOffsetCommit, both, kerr.TransactionAbortable)
	answers(false, kmsg.Produce, both, kerr.TransactionAbortable)
	for _, kind := range []kmsg.Key{kmsg.AddPartitionsToTxn, kmsg.AddOffsetsToTxn} {
		answers(true, kind, both, kerr.ConcurrentTransactions, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.InvalidProducerEpoch, kerr.ProducerFenced,
			kerr.InvalidTxnState, kerr.InvalidProducerIDMapping, kerr.UnknownServerError)
		cuts(true, kind)
	}
	answers(false, kmsg.InitProducerID, both, kerr.ConcurrentTransactions, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.InvalidProducerEpoch,
		kerr.ProducerFenced, kerr.UnknownServerError)
	cuts(false, kmsg.InitProducerID)
	thrice := []how{refusedLong}
	answers(false, kmsg.Produce, thrice, kerr.InvalidTxnState, kerr.RequestTimedOut)
	answers(false, kmsg.TxnOffsetCommit, thrice, kerr.IllegalGeneration, kerr.CoordinatorNotAvailable, kerr.UnknownServerError)
	answers(false, kmsg.EndTxn, thrice, kerr.ConcurrentTransactions, kerr.UnknownServerError, kerr.ProducerFenced)

	once := []how{refused}
	answers(false, kmsg.OffsetFetch, once, kerr.UnstableOffsetCommit, kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.UnknownServerError)
	answers(false, kmsg.FindCoordinator, once, kerr.CoordinatorNotAvailable, kerr.UnknownServerError)
	answers(false, kmsg.ListOffsets, once, kerr.NotLeaderForPartition, kerr.UnknownServerError)
	answers(false, kmsg.Fetch, once, kerr.NotLeaderForPartition, kerr.UnknownServerError)
	answers(false, kmsg.JoinGroup, once, kerr.CoordinatorNotAvailable, kerr.UnknownMemberID)
	answers(false, kmsg.SyncGroup, once, kerr.RebalanceInProgress, kerr.UnknownMemberID)
	answers(false, kmsg.Heartbeat, once, kerr.RebalanceInProgress, kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.NotCoordinator)
	for _, kind := range []kmsg.Key{kmsg.OffsetFetch, kmsg.ListOffsets, kmsg.Fetch, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Heartbeat} {
		all = append(all, fault{kind: kind, how: cut})
	}
	for _, h := range []how{joins, leaves, forgotten, outlived, dies} {
		for _, kind := range []kmsg.Key{kmsg.Produce, kmsg.TxnOffsetCommit, kmsg.EndTxn, kmsg.Fetch} {
			all = append(all, fault{kind: kind, how: h})
		}
	}
	for _, h := range []how{joins, forgotten, outlived} { // before anything is read
		all = append(all, fault{kind: kmsg.OffsetFetch, how: h}, fault{kind: kmsg.ListOffsets, how: h})
	}
	return all
}

// points is how many requests of a kind faults are injected at: as many as there surely are without traffic that goes on for long.
func (f fault) points() int {
	switch f.kind {
	case kmsg.JoinGroup, kmsg.ListOffsets:
		return 2
	case kmsg.Heartbeat:
		return 4
	case kmsg.InitProducerID, kmsg.FindCoordinator, kmsg.SyncGroup, kmsg.OffsetFetch:
		return 1
	}
	switch f.how {
	case dies:
		return 2
	case joins, leaves, forgotten, outlived:
		return 6
	}
	return 8
}

// TestFaultMatrix injects each fault at one point, which differs from fault to fault, and at all of them with OFFHOOK_E2E_LONG=1.
func TestFaultMatrix(t *testing.T) {
	long := os.Getenv("OFFHOOK_E2E_LONG") == "1"
	var cases []fault
	for _, f := range faults() {
		if !long && f.how == dies {
			continue // it takes a transaction's timeout
		}
		one := 1 + int(f.seed())%f.points()
		for f.nth = 1; f.nth <= f.points(); f.nth++ {
			if long || f.nth == one {
				cases = append(cases, f)
			}
		}
	}
	var total sum
	places := make(chan struct{}, 12) // they wait far more than they compute
	var running sync.WaitGroup
	for _, f := range cases {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			t.Run(f.String(), func(t *testing.T) { runFault(t, f, &total) })
		})
	}
	running.Wait()
	t.Logf("%d faults; %s", total.faults, &total)
	if t.Failed() || total.faults < len(cases) { // -run has chosen some
		return
	}
	// Else the test has lost what it is for.
	for _, o := range Outcomes() {
		if total.outcomes[o] == 0 {
			t.Errorf("never seen: %s", o)
		}
	}
	for _, outcome := range []string{"committed", "aborted", "failed"} {
		if total.transactions[outcome] == 0 {
			t.Errorf("no transaction %s", outcome)
		}
	}
}

// sum is what all cases have seen.
type sum struct {
	mu                                            sync.Mutex
	faults                                        int
	records, statuses, pushes, changes, forgotten int
	outcomes                                      map[Outcome]int
	transactions                                  map[string]int
	sessions                                      int
}

func (s *sum) String() string {
	return fmt.Sprintf("%d inbox records, %d online statuses, %d pushes, %d changes and %d tombstones; %v; transactions %v in %d sessions",
		s.records, s.statuses, s.pushes, s.changes, s.forgotten, s.outcomes, s.transactions, s.sessions)
}

// watched is a stage whose tables a test may look at beside its loop.
type watched struct {
	*stage
	mu      sync.Mutex
	begins  func(partition int32, offset int64)
	commits *atomic.Int64

	reg  *prometheus.Registry
	net  *network
	done chan struct{}
	err  error
	stop context.CancelFunc

	once         sync.Once
	transactions map[string]int // when it ended
	sessions     int
	closings     int // of node starts, after the first in each
}

func (w *watched) Restore(ctx context.Context, p txn.Partition) (func(), error) {
	install, err := w.stage.Restore(ctx, p)
	if err != nil {
		return nil, err
	}
	return func() { w.mu.Lock(); defer w.mu.Unlock(); install() }, nil
}

func (w *watched) Process(in txn.Input, emit func(*kgo.Record)) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.parts[in.Partition]; p != nil && !p.begun {
		w.begins(in.Partition, in.Offset)
	}
	return w.stage.Process(in, emit)
}

func (w *watched) Revoked(p txn.Partition) { w.mu.Lock(); defer w.mu.Unlock(); w.stage.Revoked(p) }
func (w *watched) Rollback()               { w.mu.Lock(); defer w.mu.Unlock(); w.stage.Rollback() }
func (w *watched) Reset()                  { w.mu.Lock(); defer w.mu.Unlock(); w.stage.Reset() }
func (w *watched) Commit() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stage.Commit()
	w.commits.Add(1)
}

// live are the contents of the tables; false: a transaction is open.
func (w *watched) live() (tables map[int32]contents, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.touched) > 0 {
		return nil, false
	}
	tables = make(map[int32]contents)
	for p, part := range w.parts {
		tables[p] = contentsOf(part.table)
	}
	return tables, true
}

// network is one process's, which can be cut off.
type network struct {
	mu    sync.Mutex
	off   bool
	conns []net.Conn
}

func (n *network) dial(ctx context.Context, network, host string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, host)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.off {
		conn.Close()
		return nil, errors.New("cut off")
	}
	n.conns = append(n.conns, conn)
	return conn, nil
}

func (n *network) cutOff() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.off = true
	for _, c := range n.conns {
		c.Close()
	}
}

// inboxPartitions is how many partitions the faults' inboxes have.
const inboxPartitions = 2

// faultRules and faultTTL are in inbox time, which the records carry.
var faultRules = Rules{CloseMemory: 20_000, ClosesAtOnce: 2}

const faultTTL = 4 * time.Second

// cast is a cluster on which members of presence work through an inbox.
type cast struct {
	*testing.T
	*kafkatest.Cluster
	topics  kafka.Topics
	cl      *kgo.Client
	adm     *kadm.Client
	log     *slog.Logger
	group   string
	commits atomic.Int64
	fed     feeder

	mu      sync.Mutex
	members []*watched
	begins  map[int32]map[int64]bool // the first inbox offsets of restored tables
	asked   []string                 // member ids, as they sent heartbeats or commits, the last one last

	joined, left atomic.Int32 // requests seen

	// What the topics hold, read committed, as far as it was read.
	reader *kgo.Client
	read   map[string]map[int32][]*kgo.Record
	at     map[string]map[int32]int64
}

func newCast(t *testing.T, f fault) *cast {
	var opts []kfake.Opt
	if f.old {
		opts = append(opts, kfake.MaxVersions(kversion.V3_3_0()))
	}
	cluster := kafkatest.New(t, opts...)
	var out slog.Handler = slog.DiscardHandler
	if os.Getenv("OFFHOOK_TEST_LOG") != "" {
		out = slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})
	}
	c := &cast{
		T: t, Cluster: cluster, topics: kafka.NewTopics(cluster.Prefix), log: slog.New(out), group: cluster.Prefix + ".presence",
		cl: cluster.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0)), begins: make(map[int32]map[int64]bool),
	}
	c.adm = kadm.NewClient(c.cl)
	if _, err := kafka.Ensure(t.Context(), c.cl, kafka.Spec{
		Topics: c.topics, Create: true, Partitions: inboxPartitions, ReplicationFactor: -1, EventRetention: time.Hour, MaxRecordBytes: 1 << 20,
	}, c.log); err != nil {
		t.Fatal(err)
	}
	c.fed = newFeeder(uint64(f.seed()), c.topics.Inbox)
	return c
}

// stage is one that is not run.
func (c *cast) stage(reg prometheus.Registerer, network *network) *stage {
	m, err := newMetrics(reg)
	if err != nil {
		panic(err)
	}
	config := c.Config()
	if network != nil {
		config.Dialer = network.dial
	}
	s := newStage(Config{Prefix: c.Prefix, ConnectionTTL: faultTTL}, Deps{Kafka: config, Topics: c.topics, Log: c.log}, m)
	s.rules = faultRules
	return s
}

// start starts a member.
func (c *cast) start() *watched {
	w := &watched{reg: prometheus.NewRegistry(), net: new(network), done: make(chan struct{}), commits: &c.commits}
	w.stage = c.stage(w.reg, w.net)
	w.begins = func(partition int32, offset int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.begins[partition] == nil {
			c.begins[partition] = make(map[int64]bool)
		}
		c.begins[partition][offset] = true
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() {
		defer close(w.done)
		w.err = txn.Run(ctx, txn.Config{
			Stage: Stage, Prefix: c.Prefix, Topics: []string{c.topics.Inbox}, CommitInterval: 20 * time.Millisecond, ShutdownTimeout: 3 * time.Second,
		}, txn.Deps{Kafka: w.deps.Kafka, Log: c.log, Registerer: w.reg, Handler: w})
	}()
	c.mu.Lock()
	c.members = append(c.members, w)
	c.mu.Unlock()
	c.Cleanup(func() { cancel(); <-w.done })
	return w
}

func (w *watched) metric(name string) float64 { return (&process{reg: w.reg}).metric(name) }

// runFault is one case.
func runFault(t *testing.T, f fault, total *sum) {
	c := newCast(t, f)
	c.observe()
	var hit *atomic.Bool
	if f.how == leaves || f.how == dies {
		c.start()
		second := c.start()
		c.wait("two members to share", func() bool { return second.metric("offhook_partitions_assigned") == 1 })
		hit = c.inject(f)
	} else {
		hit = c.inject(f)
		c.start()
	}
	// What comes next comes whether the last has been committed or not.
	piece := func() {
		before := c.commits.Load()
		c.feed(1 + c.fed.rng.IntN(16))
		for deadline := time.Now().Add(20 * time.Millisecond); c.commits.Load() == before && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	deadline := time.Now().Add(30 * time.Second)
	for i := 0; i < 8 || !hit.Load(); i++ {
		piece()
		if i > 60 { // but not without end
			kafkatest.Wait(t, time.Until(deadline), "the fault", hit.Load)
		}
	}
	for range 4 {
		piece()
	}
	c.settle(total)
	c.mu.Lock()
	members := c.members
	c.mu.Unlock()
	for _, m := range members {
		m.end()
		if m.err != nil {
			t.Errorf("a member ended with %v", m.err)
		}
	}
	total.add(members)
}

// end stops a member, once.
func (w *watched) end() {
	w.once.Do(func() {
		w.transactions = make(map[string]int)
		for _, outcome := range []string{"committed", "aborted", "failed"} {
			w.transactions[outcome] = int(w.metric("offhook_transactions_total/" + outcome))
		}
		w.sessions = int(w.metric("offhook_sessions_total"))
		w.closings = int(w.metric("offhook_presence_events_total/" + string(OutcomeNodeClosing)))
		w.stop()
		<-w.done
	})
}

func (s *sum) add(members []*watched) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults++
	if s.transactions == nil {
		s.transactions = make(map[string]int)
	}
	for _, m := range members {
		for outcome, n := range m.transactions {
			s.transactions[outcome] += n
		}
		s.sessions += m.sessions
		s.outcomes[OutcomeNodeClosing] += m.closings
	}
}

// observe notes what the members ask the coordinator.
func (c *cast) observe() {
	watch := func(key kmsg.Key, f func(kmsg.Request)) {
		c.Fake.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.Fake.KeepControl()
			f(req)
			return nil, nil, false
		})
	}
	asks := func(member string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.asked = append(slices.DeleteFunc(c.asked, func(m string) bool { return m == member }), member)
	}
	watch(kmsg.JoinGroup, func(kmsg.Request) { c.joined.Add(1) })
	watch(kmsg.LeaveGroup, func(kmsg.Request) { c.left.Add(1) })
	watch(kmsg.SyncGroup, func(req kmsg.Request) { asks(req.(*kmsg.SyncGroupRequest).MemberID) })
	watch(kmsg.Heartbeat, func(req kmsg.Request) { asks(req.(*kmsg.HeartbeatRequest).MemberID) })
	watch(kmsg.TxnOffsetCommit, func(req kmsg.Request) { asks(req.(*kmsg.TxnOffsetCommitRequest).MemberID) })
}

// inject has f happen, and tells when it has.
func (c *cast) inject(f fault) *atomic.Bool {
	var hit atomic.Bool
	seen := 0 // control functions run one at a time
	c.Fake.ControlKey(int16(f.kind), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		switch r := req.(type) { // the test's own pass
		case *kmsg.ProduceRequest:
			if r.TransactionID == nil {
				return nil, nil, false
			}
		case *kmsg.InitProducerIDRequest:
			if r.TransactionalID == nil {
				return nil, nil, false
			}
		}
		seen++
		if seen < f.nth || seen > f.nth && (f.how != refusedLong || seen > f.nth+2) {
			return nil, nil, false
		}
		defer hit.Store(true)
		switch f.how {
		case refused, refusedLong:
			return kafkatest.Refuse(req, f.code.Code), nil, true
		case cut:
			return nil, errors.New("cut"), true
		case taken, takenCut:
			node, again := c.Fake.CurrentNode(), clone(req)
			c.Fake.SleepControl(func() { // it comes by here again, and passes
				if _, err := c.cl.Broker(int(node)).Request(context.Background(), again); err != nil {
					c.Errorf("pass a request on: %v", err)
				}
			})
			if f.how == takenCut {
				return nil, errors.New("cut"), true
			}
			return kafkatest.Refuse(req, f.code.Code), nil, true
		}
		c.Fake.SleepControl(func() { c.rebalance(f) })
		return nil, nil, false
	})
	return &hit
}

// rebalance changes the members while a request waits. What is to be seen of it may wait behind that request, on the same connection.
func (c *cast) rebalance(f fault) {
	await := func(limit time.Duration, cond func() bool) {
		for deadline := time.Now().Add(limit); !cond() && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
	}
	joined, left := c.joined.Load(), c.left.Load()
	c.mu.Lock()
	first, member := c.members[0], ""
	second := c.members[len(c.members)-1]
	if len(c.asked) > 0 {
		member = c.asked[len(c.asked)-1]
	}
	c.mu.Unlock()
	ownWay := f.kind == kmsg.Produce || f.kind == kmsg.Fetch // these have connections of their own
	switch f.how {
	case joins:
		c.start()
		await(time.Second, func() bool { return c.joined.Load() > joined })
		if ownWay {
			await(1500*time.Millisecond, func() bool { return c.joined.Load() > joined+1 })
		}
	case leaves:
		go second.end()
		await(500*time.Millisecond, func() bool { return c.left.Load() > left })
		if ownWay {
			await(1500*time.Millisecond, func() bool { return first.metric("offhook_partitions_assigned") == inboxPartitions })
		}
	case forgotten, outlived:
		next := c.start()
		await(time.Second, func() bool { return c.joined.Load() > joined })
		c.forget(member)
		if f.how == outlived {
			await(3*time.Second, func() bool { return next.metric("offhook_partitions_assigned") == inboxPartitions })
			before := c.commits.Load()
			await(500*time.Millisecond, func() bool { return c.commits.Load() > before })
		}
	case dies:
		second.net.cutOff()
		c.forget(member)
	}
}

// forget has the coordinator forget a member, as when it has missed its heartbeats for a session.
func (c *cast) forget(member string) {
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group, leave.MemberID = c.group, member
	gone := kmsg.NewLeaveGroupRequestMember()
	gone.MemberID = member
	leave.Members = append(leave.Members, gone)
	if _, err := leave.RequestWith(context.Background(), c.cl); err != nil {
		c.Errorf("have the coordinator forget a member: %v", err)
	}
}

// clone copies a request, as far as sending it again changes it.
func clone(req kmsg.Request) kmsg.Request {
	switch r := req.(type) {
	case *kmsg.ProduceRequest:
		again := *r
		return &again
	case *kmsg.TxnOffsetCommitRequest:
		again := *r
		return &again
	case *kmsg.EndTxnRequest:
		again := *r
		return &again
	case *kmsg.InitProducerIDRequest:
		again := *r
		return &again
	case *kmsg.AddPartitionsToTxnRequest:
		again := *r
		return &again
	case *kmsg.AddOffsetsToTxnRequest:
		again := *r
		return &again
	}
	panic(fmt.Sprintf("clone %T", req))
}

// feeder makes inbox records, with events late and doubled.
type feeder struct {
	topic  string
	rng    *rand.Rand
	now    int64 // inbox time, which rises
	uids   [inboxPartitions][]string
	recent [inboxPartitions][][]byte
	opened [inboxPartitions][]schemas.Connection
}

func newFeeder(seed uint64, topic string) feeder {
	// What presence writes to the inbox has the real time, and clocks of its producers may differ by ExpireSlack.
	f := feeder{topic: topic, rng: rand.New(rand.NewPCG(seed, 5)), now: time.Now().UnixMilli() - 30_000}
	for i := range 8 {
		uid := fmt.Sprint("u", i)
		p := kafka.Partition(uid, inboxPartitions)
		f.uids[p] = append(f.uids[p], uid)
	}
	return f
}

// traceparent is one that is passed on.
const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// next makes the records of one step: one, or one in each partition.
func (f *feeder) next() (rs []*kgo.Record) {
	f.now += f.rng.Int64N(300)
	if f.rng.IntN(150) == 0 {
		f.now += faultRules.CloseMemory + ExpireSlack
	}
	write := func(p int, value []byte) {
		r := &kgo.Record{
			Topic: f.topic, Partition: int32(p), Value: value, Timestamp: time.UnixMilli(f.now),
			Headers: []kgo.RecordHeader{{Key: "v", Value: []byte("1")}},
		}
		if f.rng.IntN(8) == 0 {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: schemas.HeaderTraceparent, Value: []byte(traceparent)})
		}
		rs = append(rs, r)
	}
	one := f.rng.IntN(inboxPartitions)
	c := schemas.Connection{NodeID: schemas.ID([]string{"g", "7"}[f.rng.IntN(2)]), Time: f.now - f.rng.Int64N(50), OpenedAt: -1}
	if f.rng.IntN(5) == 0 {
		c.Time -= f.rng.Int64N(4000) // late
	}
	about := func() {
		c.UID = f.uids[one][f.rng.IntN(len(f.uids[one]))]
		c.ConnID = schemas.ID(fmt.Sprint(f.rng.IntN(3)))
		if f.rng.IntN(4) == 0 {
			c.OpenedAt = c.Time / 4000 * 4000
		}
	}
	again := func() { // mostly about one that was opened of late
		if opened := f.opened[one]; len(opened) > 0 && f.rng.IntN(3) > 0 {
			o := opened[f.rng.IntN(len(opened))]
			c.UID, c.ConnID, c.NodeID, c.OpenedAt = o.UID, o.ConnID, o.NodeID, o.OpenedAt
			if f.rng.IntN(4) == 0 {
				c.Time = o.Time
			}
		}
	}
	background := func() {
		if f.rng.IntN(3) == 0 {
			c.HasBackground, c.Background = true, f.rng.IntN(2) == 0
		}
	}
	everywhere := false
	switch n := f.rng.IntN(100); {
	case n < 34:
		about()
		background()
		c.Type, c.HasDeviceFlag, c.DeviceFlag = schemas.Online, true, uint8(f.rng.IntN(2))
		if f.opened[one] = append(f.opened[one], c); len(f.opened[one]) > 6 {
			f.opened[one] = f.opened[one][1:]
		}
	case n < 52:
		about()
		again()
		c.Type, c.HasDeviceFlag = schemas.Offline, true
	case n < 64:
		about()
		again()
		background()
		c.Type = schemas.Heartbeat
		if c.HasDeviceFlag = f.rng.IntN(3) == 0; c.HasDeviceFlag {
			c.DeviceFlag = uint8(f.rng.IntN(2))
		}
	case n < 67:
		c.Type, everywhere = schemas.Heartbeat, true
	case n < 70:
		c.Type, everywhere = schemas.NodeStarted, true
	case n < 80:
		uids := slices.Clone(f.uids[one])
		f.rng.Shuffle(len(uids), func(i, j int) { uids[i], uids[j] = uids[j], uids[i] })
		item := fmt.Sprintf(`{"n":%d}`, f.now)
		write(one, schemas.AppendInboxRecipients(nil, []byte(item), len(item)-1, uids[:1+f.rng.IntN(len(uids))]))
		return rs
	case n < 88 && len(f.recent[one]) > 0: // doubled
		write(one, f.recent[one][f.rng.IntN(len(f.recent[one]))])
		return rs
	default:
		for p := range inboxPartitions {
			write(p, schemas.AppendInboxCaughtUp(nil, &schemas.CaughtUp{AsOf: f.now, Topics: []schemas.CaughtUpTopic{{Name: "in", Partitions: 1, Read: []int32{0}}}}))
		}
		return rs
	}
	value := schemas.AppendInboxConnection(nil, &c)
	for p := range inboxPartitions {
		if !everywhere && p != one {
			continue
		}
		write(p, value)
		if f.recent[p] = append(f.recent[p], value); len(f.recent[p]) > 8 {
			f.recent[p] = f.recent[p][1:]
		}
	}
	return rs
}

// feed writes the records of n steps.
func (c *cast) feed(n int) {
	c.Helper()
	var rs []*kgo.Record
	for range n {
		rs = append(rs, c.fed.next()...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
		c.Fatalf("feed: %v", err)
	}
}

func (c *cast) wait(what string, cond func() bool) {
	c.Helper()
	kafkatest.Wait(c.T, 30*time.Second, what, cond)
}

func (c *cast) all() []string {
	return []string{c.topics.Inbox, c.topics.Presence, c.topics.OnlineStatus, c.topics.Offline}
}

// readOn reads what the topics hold up to their ends, read committed; false: a transaction is open below one of them.
func (c *cast) readOn() bool {
	c.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ends, err := c.adm.ListEndOffsets(ctx, c.all()...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		c.Fatalf("list end offsets: %v", err)
	}
	if c.reader == nil {
		from := make(map[string]map[int32]kgo.Offset)
		c.read, c.at = make(map[string]map[int32][]*kgo.Record), make(map[string]map[int32]int64)
		for _, topic := range c.all() {
			from[topic], c.read[topic], c.at[topic] = make(map[int32]kgo.Offset), make(map[int32][]*kgo.Record), make(map[int32]int64)
			for p := range int32(inboxPartitions) {
				from[topic][p] = kgo.NewOffset().At(0)
			}
		}
		c.reader = c.Client(c.T, kgo.ConsumePartitions(from), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
			kgo.FetchMaxWait(20*time.Millisecond))
	}
	deadline, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for {
		behind := false
		ends.Each(func(o kadm.ListedOffset) { behind = behind || c.at[o.Topic][o.Partition] < o.Offset })
		if !behind {
			return true
		}
		if deadline.Err() != nil {
			return false
		}
		c.reader.PollFetches(deadline).EachRecord(func(r *kgo.Record) {
			c.at[r.Topic][r.Partition] = r.Offset + 1
			if !r.Attrs.IsControl() {
				c.read[r.Topic][r.Partition] = append(c.read[r.Topic][r.Partition], r)
			}
		})
	}
}

// settle waits until all of the inbox is consumed, and compares what has become of it with the model.
func (c *cast) settle(total *sum) {
	c.Helper()
	ask := map[string][]int32{c.topics.Inbox: nil}
	for p := range int32(inboxPartitions) {
		ask[c.topics.Inbox] = append(ask[c.topics.Inbox], p)
	}
	kafkatest.Wait(c.T, 60*time.Second, "all of the inbox to be consumed", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		committed, err := txn.StableOffsets(ctx, c.cl, c.group, ask)
		if err != nil || !c.readOn() {
			return false
		}
		for p, offset := range committed {
			if rs := c.read[p.Topic][p.Partition]; len(rs) > 0 && offset <= rs[len(rs)-1].Offset {
				return false
			}
		}
		return true
	})
	for p := range int32(inboxPartitions) {
		c.compare(p, total)
	}
	if c.Failed() {
		return
	}

	// The tables of the members, and those that are restored from the presence topic.
	fresh := c.stage(nil, nil)
	for p := range int32(inboxPartitions) {
		install, err := fresh.Restore(c.Context(), txn.Partition{Topic: c.topics.Inbox, Partition: p})
		if err != nil {
			c.Fatal(err)
		}
		install()
	}
	var diff string
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if diff = c.compareLive(fresh); diff == "" {
			break
		}
		if time.Now().After(deadline) {
			c.Fatalf("tables (-restored +live): %s", diff)
		}
	}
}

// compareLive compares the tables that the members have with fresh ones.
func (c *cast) compareLive(fresh *stage) string {
	live := make(map[int32]contents)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		m.net.mu.Lock()
		off := m.net.off
		m.net.mu.Unlock()
		if off {
			continue // it may not know yet that it owns nothing
		}
		tables, ok := m.live()
		if !ok {
			return "a transaction is open"
		}
		for p, contents := range tables {
			if _, twice := live[p]; twice {
				return fmt.Sprintf("two members have partition %d", p)
			}
			live[p] = contents
		}
	}
	want := make(map[int32]contents)
	for p, part := range fresh.parts {
		want[p] = contentsOf(part.table)
	}
	return cmp.Diff(want, live)
}

// compare compares what has become of an inbox partition with what the model makes of it.
func (c *cast) compare(partition int32, total *sum) {
	c.Helper()
	m := &model{memory: faultRules.CloseMemory, background: faultRules.BackgroundIsOnline}
	type line struct{ Key, Value, Headers string }
	var statuses, pushes []line
	var changes []string
	now := int64(0)
	outcomes := make(map[Outcome]int)
	c.mu.Lock()
	begins := c.begins[partition]
	c.mu.Unlock()
	for _, r := range c.read[c.topics.Inbox][partition] {
		at := r.Timestamp.UnixMilli()
		now = max(now, at)
		in, err := schemas.DecodeInbox(r.Headers, r.Value)
		if err != nil {
			c.Fatal(err)
		}
		if begins[r.Offset] { // what gave signs of life before is not known to a table that was restored
			m.begin(r.Offset)
		}
		headers := "v=1"
		if i := slices.IndexFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == schemas.HeaderTraceparent }); i >= 0 {
			headers += " " + schemas.HeaderTraceparent + "=" + string(r.Headers[i].Value)
		}
		var did modelResult
		switch in.Kind {
		case schemas.InboxConnection:
			did = m.apply(&in.Connection, at, r.Offset)
			outcomes[did.outcome]++
		case schemas.InboxExpire:
			did = m.silent(&in.Expire, at)
			outcomes[did.outcome]++
		case schemas.InboxRecipients:
			if off := m.offline(in.UIDs); len(off) > 0 {
				uids, err := json.Marshal(off)
				if err != nil {
					c.Fatal(err)
				}
				pushes = append(pushes, line{"", strings.TrimSuffix(string(in.Item), "}") + `,"to_uids":` + string(uids) + "}", headers})
			}
		}
		for _, item := range did.items {
			uid, _, _ := strings.Cut(item, "-")
			statuses = append(statuses, line{uid, `"` + item + `"`, headers})
		}
		changes = append(changes, did.writes...)
	}

	lines := func(topic string) (got []line) {
		for _, r := range c.read[topic][partition] {
			got = append(got, line{string(r.Key), string(r.Value), headersText(r)})
		}
		return got
	}
	if diff := cmp.Diff(statuses, lines(c.topics.OnlineStatus)); diff != "" {
		c.Errorf("user.onlinestatus of partition %d (-model +topic):\n%s", partition, diff)
	}
	if diff := cmp.Diff(pushes, lines(c.topics.Offline)); diff != "" {
		c.Errorf("msg.offline of partition %d (-model +topic):\n%s", partition, diff)
	}

	// When what is due is forgotten depends on where transactions end. All else is written as it happens.
	var written []string
	tombstones := 0
	table := make(map[string]string)
	for _, r := range c.read[c.topics.Presence][partition] {
		change := describe(c.T, Change{Key: r.Key, Value: r.Value})
		if r.Value == nil {
			tombstones++
			delete(table, string(r.Key))
			continue
		}
		written = append(written, change)
		table[string(r.Key)] = change
	}
	if diff := cmp.Diff(changes, written); diff != "" {
		c.Errorf("changes of partition %d (-model +topic):\n%s", partition, diff)
	}
	due := make(map[string]bool)
	forgetful := m.clone()
	forgetful.expire(now)
	for _, s := range m.all() {
		due[s] = true
	}
	for _, s := range forgetful.all() {
		due[s] = false
	}
	for _, change := range table {
		if _, known := due[change]; !known {
			c.Errorf("partition %d has %q, and the model does not", partition, change)
		}
		delete(due, change)
	}
	for change, late := range due {
		if !late {
			c.Errorf("partition %d does not have %q", partition, change)
		}
	}

	total.mu.Lock()
	defer total.mu.Unlock()
	if total.outcomes == nil {
		total.outcomes = make(map[Outcome]int)
	}
	for o, n := range outcomes {
		total.outcomes[o] += n
	}
	total.records += len(c.read[c.topics.Inbox][partition])
	total.statuses += len(statuses)
	total.pushes += len(pushes)
	total.changes += len(changes)
	total.forgotten += tombstones
}
