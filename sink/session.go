package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/schemas"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// planAheadMin is how many batches of a lane are planned ahead at least, so that one commit serves several requests.
	planAheadMin = 8
	// The group's times. A commit in flight (commitTimeout) must fit into the rebalance timeout.
	sessionTimeout    = 10 * time.Second
	heartbeatInterval = 2 * time.Second
	rebalanceTimeout  = 30 * time.Second
	// leaveTimeout bounds how long the end of a session tries to leave the group, beyond the shutdown timeout.
	leaveTimeout = 3 * time.Second
	// loadTimeout bounds one attempt to load plans, so that a broker that is away holds up no others' lanes for long.
	loadTimeout = 10 * time.Second
	// listTimeout bounds the part of it that every broker is asked.
	listTimeout = 4 * time.Second
	// pollRecords bounds the records that one turn of the loop takes.
	pollRecords = 4096
	// What fetches hold at most beside what lanes hold, in bytes as the brokers send them, compressed: two of
	// fetchMaxBytes.
	fetchMaxBytes          = 16 << 20
	fetchMaxPartitionBytes = 2 << 20
	fetchMaxWait           = 100 * time.Millisecond
	// batchOverhead is what a dead letter's headers and its batch add to the event, in bytes, at most.
	batchOverhead = 64 << 10
	// beatInterval is how often an idle loop says that it lives.
	beatInterval = 5 * time.Second
)

var (
	errStopped       = errors.New("the sink stops")
	errRevoked       = errors.New("the partition was revoked")
	errMemberChanged = errors.New("the group knows this process under another member id now")
)

// A session is one membership in the group: one member id. What runs where is told in doc.go.
type session struct {
	cfg       Config
	deps      Deps
	log       *slog.Logger
	metrics   *metrics
	transport *Transport
	topics    map[string]schemas.Event
	member    *kgo.Client // joins the group and commits; fetches nothing
	producer  *kgo.Client // of dead letters
	reader    *reader
	committer *committer
	tasks     chan func()   // run by the loop
	ended     chan struct{} // closed when the loop takes no tasks any more
	draining  chan struct{} // closed when the stop has begun: dead letters that cannot be written are not tried again
	ctx       context.Context
	work      sync.WaitGroup

	// All below belongs to the loop.

	claims
	commitNotice time.Time // after a refusal that concerns all lanes: when to commit again; zero: at once
	active       int       // batches that a goroutine works on
	underway     int       // requests in flight, which are some of them
	endpoint     *endpointState
	// ready are the lanes with a batch to send, each once; a request that ends lets the first send one, which then goes to
	// the end: so that a deep backlog starves nobody.
	ready    []*lane
	wake     *time.Timer // for ready lanes, when pace or breaker lets them send
	joined   bool
	stopping bool
	err      error // why the loop ends; nil while it runs
	// failures counts the errors of a partition's fetches since it was last read.
	failures map[laneKey]int
}

// endpointState is what the sink knows of its endpoint, in whatever session it learnt it. It belongs to the loop.
type endpointState struct {
	breaker Breaker
	pace    pacer
	body    bodyLimit
	refused int // single events in a row that were refused, with none delivered between
}

// A lane is one partition of one event topic while this member owns it: one assignment. A partition that is assigned
// again gets a new lane, and whatever the old one had under way finds it dead.
type lane struct {
	laneKey
	event  schemas.Event
	member string // the member id that it was assigned to
	core   *Lane  // nil until its plan is loaded
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	// reading: what the reader brings belongs to this lane, and not to one of the same partition before it.
	reading bool
	paused  bool
	ready   bool // it is among the session's ready lanes
	held    int  // bytes, as told to the metrics
	// failures are attempts in a row that failed, whichever batch's.
	failures int
	// commitAfter is when the lane may commit again, after a refusal that concerns it alone; zero: at once.
	commitAfter time.Time
	dead        bool
}

func runSession(ctx context.Context, cfg Config, deps Deps, log *slog.Logger, m *metrics, t *Transport, e *endpointState) error {
	sessionCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errStopped)
	s := &session{
		cfg: cfg, deps: deps, log: log, metrics: m, transport: t,
		endpoint: e, tasks: make(chan func()), ended: make(chan struct{}), draining: make(chan struct{}),
		ctx: sessionCtx, claims: newClaims(), failures: make(map[laneKey]int),
	}
	s.wake = time.AfterFunc(time.Hour, func() { s.post(func() {}) }) // a turn of the loop dispatches
	defer s.wake.Stop()
	s.topics = eventTopics(cfg.Events, deps.Topics)
	topics := slices.Sorted(maps.Keys(s.topics))
	// The member outlives the session's work: it leaves the group when nothing is sent any more.
	memberCtx, cancelMember := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelMember()
	var err error
	s.member, err = deps.Kafka.NewClient(log,
		kgo.WithContext(memberCtx),
		kgo.ConsumerGroup(cfg.Group()),
		kgo.ConsumeTopics(topics...),
		kgo.DisableAutoCommit(),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(sessionTimeout),
		kgo.HeartbeatInterval(heartbeatInterval),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.OnPartitionsAssigned(s.onAssigned),
		kgo.OnPartitionsRevoked(s.onRevoked),
		kgo.OnPartitionsLost(s.onRevoked),
	)
	if err != nil {
		return err
	}
	s.member.PauseFetchTopics(topics...)
	s.committer = &committer{client: s.member, group: cfg.Group(), coordinator: -1}
	s.producer, err = deps.Kafka.NewClient(log,
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(int32(kafka.MaxOwnedBytes(cfg.MaxRecordBytes))+batchOverhead),
	)
	if err != nil {
		s.member.Close()
		return err
	}
	s.reader, err = newReader(s)
	if err != nil {
		s.member.Close()
		s.producer.Close()
		return err
	}

	s.work.Go(s.watchMember)
	s.work.Go(s.reader.run)
	err = s.run(ctx)
	// From here on no task runs and no commit begins; callbacks of the group return at once. Nothing is sent any more
	// when the group is left, so that the next owner does not work beside this one.
	close(s.ended)
	cancel(errStopped)
	for _, l := range s.lanes {
		l.cancel(errStopped)
		l.timer.Stop()
	}
	s.work.Wait()
	m.lanes.Set(0)
	m.buffered.Set(0)
	m.inFlight.Set(0)
	s.reader.client.Close()
	s.producer.Close()
	leave, cancelLeave := context.WithTimeout(memberCtx, leaveTimeout)
	defer cancelLeave()
	_ = s.member.LeaveGroupContext(leave) // where it fails the session timeout ends the membership
	cancelMember()                        // a join that is not answered would hold up Close
	s.member.Close()
	return err
}

// post has the loop run task; false: it has ended.
func (s *session) post(task func()) bool {
	select {
	case s.tasks <- task:
		return true
	case <-s.ended:
		return false
	}
}

// call has the loop run task, and waits for its end; false: the loop has ended.
func (s *session) call(task func()) bool {
	done := make(chan struct{})
	if !s.post(func() { task(); close(done) }) {
		return false
	}
	<-done
	return true
}

// run is the loop: it owns lanes and commits, and does no I/O.
func (s *session) run(ctx context.Context) error {
	beat := time.NewTicker(beatInterval)
	defer beat.Stop()
	stop := ctx.Done()
	var deadline <-chan time.Time
	for s.err == nil {
		s.deps.Stage.Beat()
		select {
		case task := <-s.tasks:
			task()
		case <-beat.C:
		case <-stop:
			stop = nil
			s.stopping = true
			close(s.draining)
			deadline = time.After(s.cfg.ShutdownTimeout)
			for _, l := range s.lanes {
				s.advance(l)
			}
		case <-deadline:
			return nil
		}
		s.dispatch()
		s.commit()
		if s.stopping && s.active == 0 && s.committing == nil && len(s.want) == 0 {
			return nil
		}
	}
	return s.err
}

// fail ends the session; a cause that is not final is wrapped into errRestart by the caller.
func (s *session) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

func (s *session) onAssigned(_ context.Context, client *kgo.Client, assigned map[string][]int32) {
	member, _ := client.GroupMetadata()
	s.post(func() { s.assigned(member, assigned) })
}

// onRevoked ends the right to commit the partitions: it returns when the loop has let go of their lanes and no commit
// that has one of them is in flight.
func (s *session) onRevoked(_ context.Context, _ *kgo.Client, revoked map[string][]int32) {
	settled := make(chan struct{})
	if !s.post(func() { s.revoked(revoked, settled) }) {
		return
	}
	select {
	case <-settled:
	case <-s.ended:
	}
}

func (s *session) revoked(revoked map[string][]int32, settled chan struct{}) {
	for topic, partitions := range revoked {
		for _, p := range partitions {
			s.drop(laneKey{topic, p})
		}
	}
	s.release(settled)
	s.report()
}

// drop lets go of a lane, with all that it waits for.
func (s *session) drop(key laneKey) {
	l := s.claims.drop(key)
	if l == nil {
		return
	}
	s.ready = slices.DeleteFunc(s.ready, func(other *lane) bool { return other == l })
	l.timer.Stop()
	l.cancel(errRevoked)
	s.hold(l, 0)
	s.reader.remove(l)
}

// hold accounts for the bytes that a lane holds.
func (s *session) hold(l *lane, bytes int) {
	s.metrics.buffered.Add(float64(bytes - l.held))
	l.held = bytes
}

func (s *session) assigned(member string, assigned map[string][]int32) {
	s.joined = true
	var loading []*lane
	for topic, partitions := range assigned {
		for _, p := range partitions {
			key := laneKey{topic, p}
			s.drop(key) // lost and come back without a word
			l := &lane{laneKey: key, event: s.topics[topic], member: member}
			l.ctx, l.cancel = context.WithCancelCause(s.ctx)
			l.timer = time.AfterFunc(time.Hour, func() { s.post(func() { s.advance(l) }) })
			s.lanes[key] = l
			loading = append(loading, l)
		}
	}
	s.beginLoad(loading)
	s.report()
}

// beginLoad loads the plans of new lanes, as far as the commit in flight lets it.
func (s *session) beginLoad(lanes []*lane) {
	if now := s.loadable(lanes); len(now) > 0 {
		s.work.Go(func() { s.load(now) })
	}
}

// reload begins a lane anew from what is committed, as the same member.
func (s *session) reload(l *lane) {
	s.assigned(l.member, map[string][]int32{l.topic: {l.partition}})
}

// report tells operators what is owned.
func (s *session) report() {
	ready := s.joined
	for _, l := range s.lanes {
		ready = ready && l.core != nil && l.core.Readable()
	}
	s.metrics.lanes.Set(float64(len(s.lanes)))
	s.deps.Stage.SetReady(ready && !s.stopping)
}

// loaded gives a lane its plan.
func (s *session) loaded(l *lane, r resumption) {
	if l.dead {
		return
	}
	log := s.log.With("topic", l.topic, "partition", l.partition, "offset", r.plan.Offset)
	switch r.note {
	case resumePlan, resumeStart:
		log.Debug("a lane begins", "from", r.note, "planned", len(r.plan.Batches))
	case resumeRewind:
		s.metrics.rewinds.Inc()
		log.Warn("the committed offset was not set by a sink: it is taken as a rewind")
	case resumeRecreated:
		s.metrics.recreated.Inc()
		log.Warn("the topic was made anew: the sink begins at its start")
	case resumeCut:
		s.metrics.dropped.Inc()
		log.Error("retention has deleted events that were not delivered: the sink goes on at the log's start", "batches_dropped", r.dropped)
	case resumeTruncated:
		s.metrics.truncated.Inc()
		log.Error("the log ends before what was planned: the brokers have lost events")
	}
	l.core = NewLane(s.laneConfig(l.event), r.plan, r.fresh, r.changed, time.Now())
	s.advance(l)
}

// laneConfig are the settings of an event's lanes.
func (s *session) laneConfig(event schemas.Event) LaneConfig {
	c := LaneConfig{
		BatchMax: s.cfg.BatchMax, BatchBytes: s.cfg.BatchBytes, FlushInterval: s.cfg.FlushInterval, InFlight: max(1, s.cfg.LaneInFlight),
		UIDs: uidsOf(event),
	}
	// As many again as may be under way: their plans are committed while those are.
	c.PlanAhead = max(planAheadMin, 2*c.InFlight)
	if event == schemas.EventOffline && s.cfg.OfflineObject {
		c.BatchMax = 1
	}
	return c
}

// read begins to read lanes that have become readable.
func (s *session) read(lanes []*lane) {
	if len(lanes) > 0 {
		s.reader.add(lanes...)
		s.report()
	}
}

// advance does what is due in a lane.
func (s *session) advance(l *lane) {
	if l.dead || l.core == nil || s.err != nil {
		return
	}
	now := time.Now()
	var again time.Time
	if !s.stopping {
		l.core.LimitBytes(s.endpoint.body.at(now))
		again = l.core.Cut(now)
	}
	if due := l.core.CommitDue(now); !due.IsZero() {
		if s.stopping || !due.After(now) {
			s.want[l] = struct{}{}
		} else {
			again = earlier(again, due)
		}
	}
	if !s.stopping {
		again = earlier(again, s.begin(l, now))
	}
	s.hold(l, l.core.Bytes())
	if full := l.core.Full(); full != l.paused {
		l.paused = full
		s.reader.pause(l, full)
	}
	if again.IsZero() {
		l.timer.Stop()
	} else {
		l.timer.Reset(again.Sub(now))
	}
}

// watchMember takes the errors that the group's client has to tell; it fetches nothing.
func (s *session) watchMember() {
	var told string
	for {
		fetches := s.member.PollFetches(s.ctx)
		if s.ctx.Err() != nil || fetches.IsClientClosed() {
			return
		}
		for _, e := range fetches.Errors() {
			if fatal := kafka.Refused(e.Err); fatal != nil {
				s.post(func() {
					if !s.joined {
						s.fail(fmt.Errorf("join group %s: %w", s.cfg.Group(), fatal))
					}
				})
			}
			if text := e.Err.Error(); text != told {
				told = text
				s.log.Warn("the group's client waits", "error", e.Err)
			}
		}
	}
}
