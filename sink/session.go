package sink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/schemas"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// planAhead is how many batches of a lane are planned at most, so that one commit serves several requests.
	planAhead = 8
	// The group's times. A commit in flight (commitTimeout) must fit into the rebalance timeout.
	sessionTimeout    = 10 * time.Second
	heartbeatInterval = 2 * time.Second
	rebalanceTimeout  = 30 * time.Second
	// pollRecords bounds the records that one turn of the loop takes.
	pollRecords = 4096
	// What fetches hold at most, in bytes: two of fetchMaxBytes, beside what lanes hold.
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
	transport *transport
	topics    map[string]schemas.Event
	member    *kgo.Client // joins the group and commits; fetches nothing
	producer  *kgo.Client // of dead letters
	reader    *reader
	committer *committer
	slots     chan struct{} // one a request in flight
	tasks     chan func()   // run by the loop
	ended     chan struct{} // closed when the loop takes no tasks any more
	draining  chan struct{} // closed when the stop has begun: no batch is begun, no attempt made again
	ctx       context.Context
	work      sync.WaitGroup

	// All below belongs to the loop.

	lanes map[laneKey]*lane
	want  map[*lane]struct{} // lanes with something to commit
	// committing are the lanes of the commit request in flight; nil: none is. There is never a second.
	committing []*lane
	// revoking are the callbacks that wait for the commit in flight: the right to commit ends when they return.
	revoking     []chan struct{}
	commitNotice time.Time // after a refusal: when to commit again; zero: at once
	active       int       // batches that a goroutine works on
	joined       bool
	stopping     bool
	err          error // why the loop ends; nil while it runs
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
	held    int // bytes, as told to the metrics
	dead    bool
}

func runSession(ctx context.Context, cfg Config, deps Deps, log *slog.Logger, m *metrics, t *transport) error {
	sessionCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errStopped)
	s := &session{
		cfg: cfg, deps: deps, log: log, metrics: m, transport: t,
		slots: make(chan struct{}, cfg.MaxInFlight),
		tasks: make(chan func()), ended: make(chan struct{}), draining: make(chan struct{}),
		ctx: sessionCtx, lanes: make(map[laneKey]*lane), want: make(map[*lane]struct{}),
	}
	s.topics = eventTopics(cfg.Events, deps.Topics)
	topics := slices.Sorted(maps.Keys(s.topics))
	var err error
	s.member, err = deps.Kafka.NewClient(log,
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
	s.reader.client.Close()
	s.producer.Close()
	leave, cancelLeave := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancelLeave()
	_ = s.member.LeaveGroupContext(leave) // where it fails the session timeout ends the membership
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
	if s.committing == nil {
		close(settled)
	} else {
		s.revoking = append(s.revoking, settled)
	}
	s.report()
}

// drop lets go of a lane, with all that it waits for.
func (s *session) drop(key laneKey) {
	l, ok := s.lanes[key]
	if !ok {
		return
	}
	delete(s.lanes, key)
	delete(s.want, l)
	l.dead = true
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
	if len(loading) > 0 {
		s.work.Go(func() { s.load(loading) })
	}
	s.report()
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
		log.Warn("the topic was made anew: the sink begins at its start")
	case resumeCut:
		s.metrics.dropped.Inc()
		log.Error("retention has deleted events that were not delivered: the sink goes on at the log's start", "batches_dropped", r.dropped)
	case resumeTruncated:
		s.metrics.dropped.Inc()
		log.Error("the log ends before what was planned: the brokers have lost events")
	}
	l.core = NewLane(LaneConfig{
		BatchMax: s.cfg.BatchMax, BatchBytes: s.cfg.BatchBytes, FlushInterval: s.cfg.FlushInterval, PlanAhead: planAhead,
	}, r.plan, r.fresh, r.changed, time.Now())
	s.advance(l)
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
		again = l.core.Cut(now)
	}
	if due := l.core.CommitDue(now); !due.IsZero() {
		switch {
		case s.stopping || !due.After(now):
			s.want[l] = struct{}{}
		case again.IsZero() || due.Before(again):
			again = due
		}
	}
	if !s.stopping {
		for b := l.core.Next(); b != nil; b = l.core.Next() {
			s.active++
			id := l.core.ID(l.partition, b)
			s.work.Go(func() { s.deliver(l, b, id) })
		}
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

// commit sends what all waiting lanes have to say in one request, unless one is in flight.
func (s *session) commit() {
	if s.committing != nil || len(s.want) == 0 || s.err != nil || time.Now().Before(s.commitNotice) {
		return
	}
	// The member id and generation are read by the loop, which drops lanes in the revoked and lost callbacks: what is
	// read here belongs to the assignment of all lanes that are left, unless the group has forgotten the member and
	// the client has joined anew without a word. Then others may own the partitions.
	member, generation := s.member.GroupMetadata()
	plans := make(map[laneKey]Plan, len(s.want))
	for l := range s.want {
		if l.member != member {
			s.fail(&errRestart{errMemberChanged})
			return
		}
		plans[l.laneKey] = l.core.Propose()
		s.committing = append(s.committing, l)
	}
	clear(s.want)
	s.work.Go(func() {
		result := s.committer.commit(s.ctx, member, generation, plans)
		s.post(func() { s.committed(result) })
	})
}

func (s *session) committed(result commitResult) {
	lanes := s.committing
	s.committing = nil
	for _, settled := range s.revoking {
		close(settled)
	}
	s.revoking = nil
	if result.unknown != nil {
		s.metrics.commits.WithLabelValues("unknown").Inc()
		s.fail(&errRestart{fmt.Errorf("commit plans: nobody knows the outcome: %w", result.unknown)})
		return
	}
	now := time.Now()
	s.commitNotice = time.Time{}
	var refusal error
	var readable []*lane
	for _, l := range lanes {
		if l.dead {
			continue
		}
		err := result.refused[l.laneKey]
		if result.notSent != nil {
			err = result.notSent
		}
		if err == nil {
			if !l.core.Readable() {
				readable = append(readable, l)
			}
			l.core.Committed()
			s.advance(l)
			continue
		}
		refusal = err
		l.core.Refused(now)
		if errors.Is(err, kerr.OffsetMetadataTooLarge) && !l.core.Shorten() {
			s.fail(fmt.Errorf("commit the plan of a single batch: %w; raise the brokers' offset.metadata.max.bytes to %d", err, metadataMax))
			return
		}
		s.want[l] = struct{}{}
	}
	s.read(readable)
	if refusal == nil {
		s.metrics.commits.WithLabelValues("committed").Inc()
		return
	}
	s.metrics.commits.WithLabelValues("refused").Inc()
	wait := 100 * time.Millisecond
	if result.notSent != nil || errors.Is(refusal, kerr.GroupAuthorizationFailed) || errors.Is(refusal, kerr.TopicAuthorizationFailed) {
		wait = 2 * time.Second
		s.log.Warn("plans cannot be committed; trying again", "error", refusal, "delay", wait)
	}
	s.commitNotice = now.Add(wait)
	time.AfterFunc(wait, func() { s.post(func() {}) }) // a turn of the loop commits
}

// fetched takes what the reader has read.
func (s *session) fetched(fetches kgo.Fetches) {
	if s.stopping {
		return
	}
	now := time.Now()
	fetches.EachError(func(topic string, p int32, err error) {
		l, ok := s.lanes[laneKey{topic, p}]
		switch {
		case errors.Is(err, context.Canceled), !ok, !l.reading:
		case errors.Is(err, kerr.OffsetOutOfRange):
			s.reload(l)
		default:
			s.log.Warn("read events", "topic", topic, "partition", p, "error", err)
		}
	})
	fetches.EachPartition(func(batch kgo.FetchTopicPartition) {
		l, ok := s.lanes[laneKey{batch.Topic, batch.Partition}]
		if !ok || !l.reading {
			return
		}
		for _, r := range batch.Records {
			if r.Offset < l.core.Position() {
				continue
			}
			if r.Attrs.IsControl() || r.Value == nil {
				s.metrics.missing.Add(float64(l.core.Skip(r.Offset, now)))
				continue
			}
			if err := checkVersion(r); err != nil {
				s.fail(fmt.Errorf("read topic %s: %w", r.Topic, err))
				return
			}
			s.metrics.missing.Add(float64(l.core.Read(Record{
				Offset: r.Offset, Key: r.Key, Value: r.Value, Time: r.Timestamp.UnixMilli(), Traceparent: header(r, schemas.HeaderTraceparent), Read: now,
			})))
		}
		s.advance(l)
	})
}

func header(r *kgo.Record, key string) []byte {
	for i := range r.Headers {
		if r.Headers[i].Key == key {
			return r.Headers[i].Value
		}
	}
	return nil
}

func checkVersion(r *kgo.Record) error {
	if v := header(r, schemas.HeaderVersion); len(v) == 1 && v[0] == '0'+schemas.Version {
		return nil
	}
	headers := make([]schemas.Header, len(r.Headers))
	for i, h := range r.Headers {
		headers[i] = schemas.Header(h)
	}
	return schemas.CheckVersion("event", headers)
}

// deliver works on one batch until it is done, or the lane is dropped, or the sink stops.
func (s *session) deliver(l *lane, b *Batch, id string) {
	done := false
	if b.Dead {
		done = s.bury(l, b)
	} else {
		done = s.send(l, b, id)
	}
	s.post(func() {
		s.active--
		if done && !l.dead {
			l.core.Done(b, time.Now())
			s.metrics.done(l.event, b.Dead, len(b.Records))
		}
		s.advance(l)
	})
}

// send sends a batch again and again until the endpoint takes it.
func (s *session) send(l *lane, b *Batch, id string) bool {
	items := make([][]byte, len(b.Records))
	size := 2
	r := &request{event: l.event, id: id}
	for i := range b.Records {
		items[i] = b.Records[i].Value
		size += len(items[i]) + 1
		if r.traceparent == nil {
			r.traceparent = b.Records[i].Traceparent
		}
	}
	r.body = schemas.AppendBody(make([]byte, 0, size), items)
	s.metrics.batches.WithLabelValues(string(l.event), string(b.Ended)).Inc()
	s.metrics.batchEvents.Observe(float64(len(items)))
	for attempts := 1; ; attempts++ {
		select {
		case s.slots <- struct{}{}:
		case <-l.ctx.Done():
			return false
		case <-s.draining:
			return false
		}
		s.metrics.inFlight.Inc()
		began := time.Now()
		err := s.transport.send(l.ctx, r)
		s.metrics.inFlight.Dec()
		<-s.slots
		if err == nil {
			s.metrics.duration.Observe(time.Since(began).Seconds())
			s.metrics.attempts.WithLabelValues(string(l.event), "2xx").Inc()
			return true
		}
		failure, ok := errors.AsType[*attemptError](err)
		if !ok {
			return false
		}
		s.metrics.duration.Observe(time.Since(began).Seconds())
		s.metrics.attempts.WithLabelValues(string(l.event), outcomeOf(failure)).Inc()
		delay := RetryDelay(attempts, rand.Float64())
		if attempts&(attempts-1) == 0 { // at 1, 2, 4, …
			s.log.Warn("a batch was not delivered; trying again", "topic", l.topic, "partition", l.partition, "id", r.id,
				"events", len(items), "attempts", attempts, "delay", delay, "error", failure)
		}
		select {
		case <-time.After(delay):
		case <-l.ctx.Done():
			return false
		case <-s.draining:
			return false
		}
	}
}

// bury writes a dead batch to the dead letters. Its plan says that it is dead, so nobody sends it any more.
func (s *session) bury(l *lane, b *Batch) bool {
	letters := make([]*kgo.Record, 0, len(b.Records))
	for _, r := range b.Records {
		letter := schemas.DeadLetter{
			Source:  schemas.Source{Topic: l.topic, Partition: l.partition, Offset: r.Offset, Time: r.Time},
			TopicID: s.deps.Owned.IDs[l.topic], SourceKey: r.Key, Value: r.Value, Reason: schemas.ReasonCut,
			Detail: "retention deleted the first part of the batch that this event was planned in",
			Sink:   s.cfg.Name, Traceparent: r.Traceparent,
		}
		record := &kgo.Record{Topic: s.deps.Topics.DeadLetters, Partition: l.partition % s.deps.Owned.Partitions, Key: letter.Key(), Value: letter.Value}
		for _, h := range letter.Headers() {
			record.Headers = append(record.Headers, kgo.RecordHeader(h))
		}
		letters = append(letters, record)
	}
	for attempts := 1; ; attempts++ {
		err := s.producer.ProduceSync(l.ctx, letters...).FirstErr()
		if err == nil {
			return true
		}
		s.log.Warn("write dead letters; trying again", "topic", l.topic, "partition", l.partition, "events", len(letters), "error", err)
		select {
		case <-time.After(RetryDelay(attempts, 1)):
		case <-l.ctx.Done():
			return false
		case <-s.draining:
			return false
		}
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

// load fetches the plans of lanes that were just assigned. It begins after their assignment, so that it sees every
// commit that the coordinator accepted before.
func (s *session) load(lanes []*lane) {
	for attempts := 1; ; attempts++ {
		err := s.loadOnce(lanes)
		if err == nil {
			return
		}
		if broken, ok := errors.AsType[*brokenPlanError](err); ok {
			s.post(func() { s.fail(broken) })
			return
		}
		s.log.Warn("load plans; trying again", "error", err)
		lanes = slices.DeleteFunc(lanes, func(l *lane) bool { return l.ctx.Err() != nil })
		if len(lanes) == 0 {
			return
		}
		select {
		case <-time.After(RetryDelay(attempts, 1)):
		case <-s.ctx.Done():
			return
		}
	}
}

// A brokenPlanError says that a committed plan cannot be read: only an operator can go on from there.
type brokenPlanError struct {
	key laneKey
	err error
}

func (e *brokenPlanError) Error() string {
	return fmt.Sprintf("load the plan of %s, partition %d: %v", e.key.topic, e.key.partition, e.err)
}

func (s *session) loadOnce(lanes []*lane) error {
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	admin := kadm.NewClient(s.member)
	offsets, err := admin.FetchOffsets(ctx, s.cfg.Group())
	if err != nil {
		return fmt.Errorf("fetch the group's offsets: %w", err)
	}
	topics := slices.Sorted(maps.Keys(s.topics))
	details, err := admin.ListTopics(ctx, topics...)
	if err == nil {
		err = details.Error()
	}
	if err != nil {
		return fmt.Errorf("read topic ids: %w", err)
	}
	starts, err := admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return fmt.Errorf("list the logs' starts: %w", err)
	}
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return fmt.Errorf("list the logs' ends: %w", err)
	}
	var at kadm.ListedOffsets
	start := s.cfg.Start
	if !start.IsSet() && s.cfg.Name == DefaultName {
		start.kind = startEarliest
	}
	if start.kind == startTime {
		if at, err = admin.ListOffsetsAfterMilli(ctx, start.time.UnixMilli(), topics...); err != nil {
			return fmt.Errorf("list offsets by time: %w", err)
		}
	}
	now := time.Now().Unix()
	found := make([]resumption, len(lanes))
	for i, l := range lanes {
		logStart, ok := starts.Lookup(l.topic, l.partition)
		logEnd, ok2 := ends.Lookup(l.topic, l.partition)
		if !ok || !ok2 {
			return fmt.Errorf("topic %s has no partition %d", l.topic, l.partition)
		}
		if err := firstError(logStart.Err, logEnd.Err); err != nil {
			return fmt.Errorf("list offsets of %s, partition %d: %w", l.topic, l.partition, err)
		}
		startAt := logStart.Offset
		switch start.kind {
		case startLatest:
			startAt = logEnd.Offset
		case startTime:
			after, _ := at.Lookup(l.topic, l.partition)
			if after.Err != nil {
				return fmt.Errorf("list offsets by time of %s, partition %d: %w", l.topic, l.partition, after.Err)
			}
			startAt = after.Offset
		case startUnset, startEarliest:
		}
		var committed *committedOffset
		if o, ok := offsets.Lookup(l.topic, l.partition); ok {
			if o.Err != nil {
				return fmt.Errorf("fetch the offset of %s, partition %d: %w", l.topic, l.partition, o.Err)
			}
			if o.At >= 0 {
				committed = &committedOffset{Offset: o.At, Metadata: o.Metadata}
			}
		}
		r, err := resume(committed, details[l.topic].ID, logStart.Offset, logEnd.Offset, startAt, now)
		if err != nil {
			return &brokenPlanError{l.laneKey, err}
		}
		found[i] = r
	}
	s.post(func() {
		var readable []*lane
		for i, l := range lanes {
			s.loaded(l, found[i])
			if !l.dead && l.core.Readable() {
				readable = append(readable, l)
			}
		}
		s.read(readable)
	})
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
