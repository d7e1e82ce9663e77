package txn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/semaphore"

	"github.com/offhook/offhook/internal/kafka"
)

const (
	// groupTimeout is the session's: how long a process that died holds up others.
	groupTimeout = 10 * time.Second
	// transactionTimeout is longer. A member that waits for the join of a rebalance, and so for the session of one that died, holds its
	// transaction open; ended by its coordinator it would cost the member its session, and all its partitions a restore. What
	// the dead one left open is ended before: see endHanging.
	transactionTimeout = groupTimeout + 5*time.Second
	// heartbeats is how soon a member with nothing to do hears of a rebalance. All others wait for it, with what they would
	// commit, in each of the two joins of a cooperative rebalance.
	heartbeats = 100 * time.Millisecond
	// operationTimeout bounds one step of a transaction (begin, produce, flush, end). It is longer than the
	// transaction's timeout: past it the transaction is gone anyway, and a new session is due.
	operationTimeout = 30 * time.Second
	// idlePoll is how long an idle loop polls at a time.
	idlePoll = time.Second
	// silence is how long brokers may say nothing, in spite of heartbeats, before they count as unreachable.
	silence = 10 * time.Second
	// maxPoll, maxRecords and maxBytes bound a transaction: what is polled is processed and committed whole.
	maxPoll    = 200
	maxRecords = 50_000   // consumed and produced
	maxBytes   = 64 << 20 // consumed and produced
	// pauseAfterEnd keeps the next transaction's first produce clear of this one's commit markers: Apache Kafka
	// holds a produce that runs into them for 20 ms.
	pauseAfterEnd = time.Millisecond
	// restoresAtOnce bounds the restores that are under way in one process. Each keeps a processor busy: where other partitions
	// are read meanwhile, one processor is left to them.
	restoresAtOnce = 4
)

// errDoubt ends a session of which nobody knows whether its state is that of the log.
var errDoubt = errors.New("the committed state is in doubt")

// session is one client with one group membership.
type session struct {
	*loop
	sess *kgo.GroupTransactSession
	cl   *kgo.Client
	adm  *kadm.Client

	// base is the client's context: cancelled, every call into the client returns soon.
	base   context.Context
	cancel context.CancelCauseFunc

	view     view
	balancer *assignments
	built    chan struct{} // closed when cl and adm are set: kgo joins, and calls back, before its constructor returns
	heard    atomic.Int64  // when a broker last answered, Unix ns

	restores struct {
		sync.WaitGroup
		slots *semaphore.Weighted // restoresAtOnce
		mu    sync.Mutex
		done  []restored
	}
	looking atomic.Uint64 // the view's number for which endHanging looks
	topics  atomic.Int32  // how many of the consumed topics exist; -1: not known yet

	verified verified // of who has Membership.asking

	// Of the loop goroutine:
	held    map[Partition]*ownership
	seq     uint64 // of the view that held was made of
	txn     *transaction
	ended   time.Time // the last End
	aborts  backoff
	abortAt rising
	unheard rising
	waiting bool
}

// transaction is the open one.
type transaction struct {
	began    time.Time
	promises *kgo.FirstErrPromise
	touched  []*ownership
	// mark stands in the metadata of what it commits: a part of a record moves no offset that would tell whether it was applied.
	mark     string
	consumed int
	produced int
	bytes    int
	doomed   bool // must be aborted
	more     bool // a record goes on in the next transaction

	// What its records were written under.
	producerID int64
	epoch      int16
}

type restored struct {
	*ownership
	install func()
	err     error
}

// OnBrokerRead notes that a broker answered.
func (s *session) OnBrokerRead(_ kgo.BrokerMetadata, _ int16, _ int, _, _ time.Duration, err error) {
	if err == nil {
		s.heard.Store(time.Now().UnixNano())
	}
}

// OnBrokerConnect notes that a broker was reached.
func (s *session) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err == nil {
		s.heard.Store(time.Now().UnixNano())
	}
}

func (l *loop) session(ctx context.Context) (err error) {
	s := &session{loop: l, held: make(map[Partition]*ownership)}
	s.view.owned = make(map[Partition]*ownership)
	s.restores.slots = semaphore.NewWeighted(restoresAtOnce)
	s.topics.Store(-1)
	s.heard.Store(time.Now().UnixNano())
	s.built = make(chan struct{})
	s.balancer = &assignments{GroupBalancer: kgo.CooperativeStickyBalancer(), url: l.cfg.AdvertisedURL}
	s.base, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	defer s.cancel(nil)

	opts, err := l.deps.Kafka.Options(l.log)
	if err != nil {
		return Fatal(fmt.Errorf("set up the Kafka client of %s: %w", l.cfg.Stage, err))
	}
	opts = append(opts, s.options()...)
	s.sess, err = kgo.NewGroupTransactSession(opts...)
	if err != nil {
		return Fatal(fmt.Errorf("set up the Kafka client of %s: %w", l.cfg.Stage, err))
	}
	s.cl = s.sess.Client()
	s.adm = kadm.NewClient(s.cl)
	close(s.built)
	l.deps.Membership.begin(s)

	// The end is bounded from the moment that ctx ends, whatever the loop is waiting for then.
	stopping := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(l.cfg.ShutdownTimeout, func() { s.cancel(errors.New("the shutdown timeout has passed")) })
		context.AfterFunc(s.base, func() { t.Stop() })
	})
	var watching sync.WaitGroup
	watch, stopWatch := context.WithCancel(s.base)
	defer func() {
		l.deps.Membership.begin(nil)
		stopping()
		stopWatch()
		s.close(ctx)
		watching.Wait()
		s.restores.Wait()
		l.metrics.partitions.Set(0)
		if s.waiting {
			l.deps.Stage.SetWaiting(false)
		}
	}()

	if err := Await(ctx, s.cl, l.deps.Stage, l.log); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return l.classify(err, l.begun)
	}
	// What an earlier process or session left open under this transactional id ends here, not at its timeout.
	if err := s.bounded(func() error { _, _, err := s.cl.ProducerID(s.base); return err }); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return l.classify(fmt.Errorf("initialise the transactional producer: %w", err), l.begun)
	}
	l.deps.Stage.SetWaiting(false)
	watching.Go(func() { s.watchTopics(watch) })
	return s.loopUntil(ctx)
}

func (s *session) options() []kgo.Opt {
	size := kafka.MaxOwnedBytes(s.cfg.MaxRecordBytes)
	opts := []kgo.Opt{
		kgo.WithContext(s.base),
		kgo.WithHooks(s),
		kgo.ConsumerGroup(s.cfg.Group()),
		kgo.ConsumeTopics(s.cfg.Topics...),
		kgo.TransactionalID(s.txnID),
		kgo.TransactionTimeout(transactionTimeout),
		kgo.SessionTimeout(groupTimeout),
		// A join waits for the members that have not heard of it, and holds up what all others would commit; kgo's default is 60 s.
		kgo.RebalanceTimeout(groupTimeout),
		kgo.HeartbeatInterval(heartbeats),
		kgo.Balancers(s.balancer),
		kgo.DisableAutoCommit(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		// kgo's own way is to go back by a minute, which repeats records.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.AdjustFetchOffsetsFn(s.adjust),
		kgo.OnPartitionsAssigned(s.assigned),
		kgo.OnPartitionsRevoked(s.revoked),
		kgo.OnPartitionsLost(s.left),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(int32(size)),
		// The loop blocks in Produce above these and goes on as kgo's goroutines drain.
		kgo.MaxBufferedRecords(100_000),
		kgo.MaxBufferedBytes(max(64<<20, 2*size)),
		kgo.BrokerMaxWriteBytes(int32(max(100<<20, 2*size))),
		kgo.ConcurrentTransactionsBackoff(time.Millisecond),
		// One fetch a broker is held at a time; fewer would let one broker's long poll hold up another's records.
		// What one poll took is committed whole, and route may copy each record to every inbox partition.
		kgo.FetchMaxBytes(4 << 20),
		kgo.FetchMaxPartitionBytes(1 << 20),
		// A partition that is assigned or resumed waits for the fetch under way.
		kgo.FetchMaxWait(250 * time.Millisecond),
		kgo.MetadataMinAge(250 * time.Millisecond),
		// How soon new partitions of an input topic are seen.
		kgo.MetadataMaxAge(30 * time.Second),
	}
	if s.cfg.PastMarkers {
		opts = append(opts, kgo.KeepControlRecords())
	}
	if s.cfg.InstanceID != "" {
		opts = append(opts, kgo.InstanceID(s.cfg.InstanceID))
	}
	return opts
}

// close leaves the group (where the member is dynamic) and closes the client, in bounded time.
func (s *session) close(ctx context.Context) {
	s.view.mu.Lock()
	for _, o := range s.view.owned {
		o.cancel()
	}
	s.view.mu.Unlock()
	patience := 5 * time.Second
	if ctx.Err() != nil {
		patience = min(patience, s.cfg.ShutdownTimeout)
	}
	t := time.AfterFunc(patience, func() { s.cancel(errors.New("the client took too long to close")) })
	s.sess.Close()
	t.Stop()
	s.cancel(nil)
}

// bounded runs a step that only the client's end could interrupt, and makes an end of the client where it takes
// longer than operationTimeout.
func (s *session) bounded(step func() error) error {
	t := time.AfterFunc(operationTimeout, func() { s.cancel(fmt.Errorf("no answer within %v", operationTimeout)) })
	defer t.Stop()
	err := step()
	if err != nil && s.base.Err() != nil {
		return context.Cause(s.base)
	}
	return err
}

// assigned runs on kgo's group goroutine, once a generation.
func (s *session) assigned(_ context.Context, cl *kgo.Client, added map[string][]int32) {
	member, _ := cl.GroupMetadata()
	s.view.assign(s.base, member, s.balancer.newest(), added, func(begin map[string][]int32) { cl.PauseFetchPartitions(begin) })
}

// revoked runs on kgo's group goroutine. It makes the loop notice earlier; assigned alone decides.
func (s *session) revoked(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
	if len(gone) > 0 {
		s.view.drop(gone)
	}
}

// left runs on kgo's group goroutine when the membership is gone, with all partitions.
func (s *session) left(context.Context, *kgo.Client, map[string][]int32) { s.view.left() }

// adjust makes the position of each partition explicit before it is fetched, and none out of range: kgo would take an
// uncommitted partition back to offset 0 on an abort, and go on behind a gap without a word.
func (s *session) adjust(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	<-s.built
	topics := make([]string, 0, len(offsets))
	for topic := range offsets {
		topics = append(topics, topic)
	}
	if len(topics) == 0 {
		return offsets, nil
	}
	// The errors of single brokers come with what the others say, and are found again as partitions that are not listed.
	starts, startsErr := s.adm.ListStartOffsets(ctx, topics...)
	ends, endsErr := s.adm.ListEndOffsets(ctx, topics...)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	for topic, partitions := range offsets {
		for p, offset := range partitions {
			at := offset.EpochOffset().Offset
			start, ok := starts.Lookup(topic, p)
			end, ok2 := ends.Lookup(topic, p)
			if !ok || !ok2 || start.Err != nil || end.Err != nil {
				// Most likely it has no leader. An error from here would end the membership, with all other partitions;
				// kgo waits for this one alone, and goes on at its position or, where that is out of range, at the start.
				s.log.Warn("a partition cannot be looked up; it is read when it can be", "topic", topic, "partition", p,
					"error", errors.Join(startsErr, endsErr, start.Err, end.Err))
				from := at
				if at < 0 {
					partitions[p], from = kgo.NewOffset().AtStart(), unknown
				}
				s.placed(Partition{topic, p}, max(at, -1), from)
				continue
			}
			committed, from := at, at
			switch {
			case at < 0:
				committed, from = -1, start.Offset
				s.log.Info("a partition without a committed offset is read from its log's start", "topic", topic, "partition", p, "offset", from)
			case at < start.Offset:
				s.gap(topic, p, at, start.Offset, "the log begins behind the committed offset")
				from = start.Offset
			case at > end.Offset:
				// The broker lost the log's end, or the topic was made anew. All that it has may be unread.
				s.gap(topic, p, at, at, "the committed offset lies behind the log's end; reading goes on at the log's start")
				from = start.Offset
			}
			if from != at {
				partitions[p] = kgo.NewOffset().At(from)
			}
			s.placed(Partition{topic, p}, committed, from)
		}
	}
	return offsets, nil
}

// placed notes where a partition that was assigned is read from.
func (s *session) placed(p Partition, committed, from int64) {
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	if o := s.view.owned[p]; o != nil {
		o.committed, o.start = committed, from
	}
}

// gap counts and logs offsets from..to-1, which are gone.
func (s *session) gap(topic string, partition int32, from, to int64, why string) {
	s.metrics.gaps.Inc()
	s.metrics.gapRecords.Add(float64(max(0, to-from)))
	s.log.Error("gap in a consumed log", "why", why, "topic", topic, "partition", partition, "from_offset", from, "to_offset", to)
}

// watchTopics counts which of the consumed topics exist, until all do, and has kgo look for what appears.
func (s *session) watchTopics(ctx context.Context) {
	exist := -1
	for exist < len(s.cfg.Topics) {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		md, err := s.adm.Metadata(attempt, s.cfg.Topics...)
		cancel()
		if err == nil {
			n := 0
			for _, t := range md.Topics {
				if t.Err == nil && len(t.Partitions) > 0 {
					n++
				}
			}
			if n != exist {
				if missing := len(s.cfg.Topics) - n; missing > 0 {
					s.log.Warn("waiting for input topics that do not exist yet", "missing", missing, "topics", s.cfg.Topics)
				}
				if exist >= 0 {
					s.cl.ForceMetadataRefresh()
				}
				exist = n
				s.topics.Store(int32(n))
				s.view.mu.Lock()
				s.view.changed()
				s.view.mu.Unlock()
			}
		}
		if exist < len(s.cfg.Topics) && !wait(ctx, time.Second) {
			return
		}
	}
}

// loopUntil is the loop goroutine's.
func (s *session) loopUntil(ctx context.Context) error {
	for {
		s.deps.Stage.Beat()
		if s.stale() {
			if err := s.end(ctx, true); err != nil {
				return err
			}
			if err := s.reconcile(); err != nil {
				return err
			}
		}
		if err := s.install(ctx); err != nil {
			return err
		}
		s.health()
		if ctx.Err() != nil {
			return s.end(ctx, true)
		}
		if s.base.Err() != nil {
			return context.Cause(s.base)
		}

		fetches := s.poll(ctx)
		if err := s.fetchErrors(fetches); err != nil {
			return errors.Join(err, s.abandon())
		}
		if fetches.NumRecords() == 0 {
			if err := s.end(ctx, true); err != nil {
				return err
			}
			continue
		}
		if err := s.process(fetches); err != nil {
			return errors.Join(err, s.abandon())
		}
		if t := s.txn; t.doomed || t.more || time.Since(t.began) >= s.cfg.CommitInterval ||
			t.consumed+t.produced >= maxRecords || t.bytes >= maxBytes {
			if err := s.end(ctx, true); err != nil {
				return err
			}
		}
	}
}

// stale reports whether the view has changed since held was made of it.
func (s *session) stale() bool {
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	return s.view.seq != s.seq
}

// poll returns what is there; with no transaction open it waits for records, ctx's end or a change of ownership.
func (s *session) poll(ctx context.Context) kgo.Fetches {
	if s.txn != nil {
		return s.sess.PollRecords(nil, maxPoll) //nolint:staticcheck // nil: take what is buffered, do not wait
	}
	pollCtx, cancel := context.WithTimeout(ctx, idlePoll)
	defer cancel()
	s.view.mu.Lock()
	s.view.wake = cancel
	s.restores.mu.Lock()
	due := s.view.seq != s.seq || len(s.restores.done) > 0
	s.restores.mu.Unlock()
	s.view.mu.Unlock()
	if due {
		return nil
	}
	fetches := s.sess.PollRecords(pollCtx, maxPoll)
	s.view.mu.Lock()
	s.view.wake = nil
	s.view.mu.Unlock()
	return fetches
}

// fetchErrors judges the errors that came with a poll.
func (s *session) fetchErrors(fetches kgo.Fetches) error {
	var fail error
	fetches.EachError(func(topic string, partition int32, err error) {
		if loss, ok := errors.AsType[*kgo.ErrDataLoss](err); ok {
			s.gap(topic, partition, loss.ResetTo, loss.ConsumedTo, "the broker lost records")
			return
		}
		if group, ok := errors.AsType[*kgo.ErrGroupSession](err); ok {
			err := s.classify(fmt.Errorf("join the group %s: %w", s.cfg.Group(), group.Err), s.begun)
			if IsFatal(err) {
				fail = err
				return
			}
			// kgo rejoins by itself, and the assignment that follows is taken whole. It may have come by now, and must stay: what was
			// lost, kgo has told before.
			s.log.Warn("the group membership was lost", "error", group.Err)
			return
		}
		switch {
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		case errors.Is(err, kerr.UnknownTopicOrPartition):
		default:
			// kgo does not fetch a partition again after an error that it reports.
			fail = s.classify(fmt.Errorf("fetch %s-%d: %w", topic, partition, err), s.begun)
		}
	})
	return fail
}

// process hands the records to the handler, in a transaction that it begins where none is open.
func (s *session) process(fetches kgo.Fetches) error {
	if s.txn == nil {
		if d := pauseAfterEnd - time.Since(s.ended); d > 0 {
			time.Sleep(d)
		}
		if err := s.bounded(s.sess.Begin); err != nil {
			return s.classify(fmt.Errorf("begin a transaction: %w", err), s.committed)
		}
		t := &transaction{began: time.Now(), promises: kgo.AbortingFirstErrPromise(s.cl)}
		if err := s.bounded(func() (err error) { t.producerID, t.epoch, err = s.cl.ProducerID(s.base); return err }); err != nil {
			return s.classify(fmt.Errorf("begin a transaction: %w", err), s.committed)
		}
		s.txn = t
	}
	t := s.txn
	emit := func(r *kgo.Record) {
		t.produced++
		t.bytes += len(r.Key) + len(r.Value)
		s.sess.Produce(s.base, r, t.promises.Promise())
	}
	return s.bounded(func() error {
		for _, fetch := range fetches {
			for _, topic := range fetch.Topics {
				for _, p := range topic.Partitions {
					if len(p.Records) == 0 {
						continue
					}
					o := s.held[Partition{topic.Topic, p.Partition}]
					if o == nil || !o.restored {
						// Fetched before a revoke that is not yet reconciled: the transaction cannot commit.
						t.doomed = true
						continue
					}
					if !o.inTxn {
						o.inTxn = true
						t.touched = append(t.touched, o)
					}
					if o.next == unknown {
						o.next = o.start
					}
					first := p.Records[0].Offset
					if gone := min(first, p.LogStartOffset); !o.halfway && o.next >= 0 && gone > o.next {
						s.gap(topic.Topic, p.Partition, o.next, gone, "the log's start has passed the position")
					}
					for _, r := range p.Records {
						if o.halfway {
							break // it and what follows are read again
						}
						if r.Attrs.IsControl() {
							o.next = r.Offset + 1
							continue
						}
						in := Input{Record: r, TopicID: topic.TopicID, Behind: p.HighWatermark - 1 - r.Offset}
						more, err := s.deps.Handler.Process(in, emit)
						if err != nil {
							return Fatal(fmt.Errorf("process %s-%d offset %d: %w", topic.Topic, p.Partition, r.Offset, err))
						}
						t.consumed++
						t.bytes += len(r.Key) + len(r.Value)
						o.next = r.Offset + 1
						if more {
							o.next, o.halfway, t.more = r.Offset, true, true
						}
					}
				}
			}
		}
		return nil
	})
}

// stepBack has the partitions be read again from the record that is not done. kgo takes all that was polled for committed.
func (s *session) stepBack(t *transaction) {
	back := make(map[string]map[int32]kgo.EpochOffset)
	for _, o := range t.touched {
		if !o.halfway {
			continue
		}
		o.halfway = false
		if back[o.Topic] == nil {
			back[o.Topic] = make(map[int32]kgo.EpochOffset)
		}
		back[o.Topic][o.Partition.Partition] = kgo.EpochOffset{Epoch: -1, Offset: o.next}
	}
	if len(back) > 0 {
		s.cl.SetOffsets(back)
	}
}

// abandon aborts the open transaction before the session fails, so that readers do not wait for its timeout.
func (s *session) abandon() error {
	if s.txn == nil {
		return nil
	}
	s.txn.doomed = true
	return s.end(context.Background(), false)
}

// end ends the open transaction, if there is one: by a commit where it may. It returns an error where the session is
// over. again says whether a next transaction follows.
func (s *session) end(ctx context.Context, again bool) error {
	t := s.txn
	if t == nil {
		return nil
	}
	s.txn = nil
	var committed bool
	var produceErr error
	err := s.bounded(func() error {
		if err := s.cl.Flush(s.base); err != nil {
			return err
		}
		promised := make(chan error, 1)
		go func() { promised <- t.promises.Err() }()
		select {
		case produceErr = <-promised:
		case <-s.base.Done():
			// Closing the client fails what is buffered, and with it ends the goroutine.
			return s.base.Err()
		}
		try := kgo.TryCommit
		if t.doomed || produceErr != nil || s.lost(t) {
			try = kgo.TryAbort
		}
		var err error
		committed, err = s.sess.End(kgo.PreTxnCommitFnContext(s.base, t.asMember), try)
		return err
	})
	s.ended = time.Now()
	s.metrics.duration.Observe(s.ended.Sub(t.began).Seconds())
	for _, o := range t.touched {
		o.inTxn = false
		o.halfway = o.halfway && committed
	}
	if err != nil {
		s.metrics.transactions.WithLabelValues(outcomeFailed).Inc()
		return s.classify(fmt.Errorf("end a transaction: %w", err), s.committed)
	}
	if committed {
		for _, o := range t.touched {
			o.committed = o.next
		}
		if err := s.bounded(func() error { s.stepBack(t); return nil }); err != nil {
			return s.classify(fmt.Errorf("go on with a record: %w", err), s.committed)
		}
		s.deps.Handler.Commit()
		s.loop.committed = true
		s.aborts, s.abortAt = backoff{}, rising{}
		s.metrics.transactions.WithLabelValues(outcomeCommitted).Inc()
		s.metrics.consumed.Add(float64(t.consumed))
		s.metrics.produced.Add(float64(t.produced))
		return nil
	}
	s.metrics.transactions.WithLabelValues(outcomeAborted).Inc()
	if !again {
		s.deps.Handler.Rollback()
		return nil
	}
	s.deps.Stage.Beat()
	if err := s.bounded(func() error { return s.readBack(t) }); err != nil {
		return s.classify(err, s.committed)
	}
	s.deps.Handler.Rollback()
	for _, o := range t.touched {
		o.next = unknown
		if o.committed >= 0 {
			o.next = max(o.committed, o.start)
		}
	}
	if errors.Is(produceErr, kerr.MessageTooLarge) || errors.Is(produceErr, kerr.RecordListTooLarge) {
		// The same transaction would be aborted for ever.
		return Fatal(fmt.Errorf("produce: %w; set max.message.bytes of the topics %s.* to %d (kafka-configs.sh --alter --entity-type topics), or lower OFFHOOK_MAX_RECORD_BYTES",
			produceErr, s.cfg.Prefix, kafka.MaxOwnedBytes(s.cfg.MaxRecordBytes)))
	}
	if produceErr != nil {
		if err := s.classify(fmt.Errorf("produce: %w", produceErr), s.committed); IsFatal(err) {
			return err
		}
		if s.refused(produceErr) == "" {
			if err := s.bounded(func() error { return s.newEpoch(t, produceErr) }); err != nil {
				return s.classify(err, s.committed)
			}
		}
	}
	if s.stale() {
		return nil // a rebalance: the next transaction is another one
	}
	if s.abortAt.due(s.ended) {
		s.log.Warn("a transaction was aborted and is done again", "error", produceErr, "consecutive", s.aborts.n+1)
	}
	wait(ctx, s.aborts.next())
	return nil
}

// asMember refuses to commit under another member id than the one that the partitions were assigned to. kgo rejoins by
// itself, under a new id, where the coordinator has forgotten the old one, and would commit what others may have owned
// and moved on meanwhile. It is called with the id that the commit is about to carry.
//
// Of a partition with a record that is not done it commits no more than those before: kgo would commit what was polled.
func (t *transaction) asMember(r *kmsg.TxnOffsetCommitRequest) error {
	behind := make(map[Partition]int64)
	for _, o := range t.touched {
		if o.member != r.MemberID {
			return fmt.Errorf("%w: the coordinator forgot the member that owned %s", errDoubt, o.Partition)
		}
		if o.halfway {
			behind[o.Partition] = o.next
		}
	}
	t.mark = fmt.Sprintf("%s %d", r.MemberID, t.began.UnixNano())
	for i := range r.Topics {
		for j := range r.Topics[i].Partitions {
			p := &r.Topics[i].Partitions[j]
			p.Metadata = &t.mark
			if next, ok := behind[Partition{r.Topics[i].Topic, p.Partition}]; ok {
				p.Offset, p.LeaderEpoch = next, -1
			}
		}
	}
	return nil
}

// lost reports whether a partition that the transaction consumed from is no longer owned, or perhaps was not for a while.
func (s *session) lost(t *transaction) bool {
	if s.view.inDoubt() {
		return true
	}
	for _, o := range t.touched {
		if !s.view.owns(o) {
			return true
		}
	}
	return false
}

// readBack makes sure that an aborted transaction has committed nothing.
func (s *session) readBack(t *transaction) error {
	ask := make(map[string][]int32)
	for _, o := range t.touched {
		if s.view.owns(o) && o.committed != unknown {
			ask[o.Topic] = append(ask[o.Topic], o.Partition.Partition)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	// Where the outcome is unknown the client initialises its producer id again, which the coordinator answers when
	// the transaction has come to its end.
	if _, _, err := s.cl.ProducerID(s.base); err != nil {
		return fmt.Errorf("settle an aborted transaction: %w", err)
	}
	for {
		got, err := stableCommits(s.base, s.cl, s.cfg.Group(), ask)
		if errors.Is(err, kerr.UnstableOffsetCommit) {
			if !wait(s.base, 50*time.Millisecond) {
				return s.base.Err()
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("read back after an abort: %w", err)
		}
		for _, o := range t.touched {
			at, asked := got[o.Partition]
			if asked && (at.offset != o.committed || t.mark != "" && at.metadata == t.mark) && s.view.owns(o) {
				return fmt.Errorf("%w: %s has %d committed after an abort, and %d before", errDoubt, o.Partition, at.offset, o.committed)
			}
		}
		return nil
	}
}

// newEpoch makes sure that the next transaction is not written under the epoch of one of which a record failed. That record may have been
// written before the broker said so; kgo takes it for not written, and gives the next record of the partition the same
// sequence number. Under the same epoch the broker would drop that one as a copy, and say that it is written. Before Kafka 4.0
// an abort alone begins no new epoch; a new session does.
func (s *session) newEpoch(t *transaction, failed error) error {
	id, epoch, err := s.cl.ProducerID(s.base)
	if err == nil && id == t.producerID && epoch == t.epoch {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("begin a new producer epoch after a record failed: %w", err)
	}
	return nil
}

// reconcile takes the view over: drops what went, begins to restore what came. No transaction is open.
func (s *session) reconcile() error {
	// Takes down the flag that a revoke between two transactions has put up. What it resets positions to is what is
	// committed, which is where they are.
	if err := s.bounded(func() error { _, err := s.sess.End(s.base, kgo.TryAbort); return err }); err != nil {
		return s.classify(fmt.Errorf("clear the session after a rebalance: %w", err), s.begun)
	}
	s.view.mu.Lock()
	owned, doubt := maps.Clone(s.view.owned), s.view.doubt
	s.seq = s.view.seq
	seq, came := s.seq, false
	s.view.mu.Unlock()
	if doubt {
		return fmt.Errorf("%w: the coordinator forgot this member while it rejoined", errDoubt)
	}
	for name, o := range s.held {
		if owned[name] != o {
			delete(s.held, name)
			if o.restored {
				s.deps.Handler.Revoked(name)
			}
		}
	}
	slots := int64(1) // that each restore takes
	for _, o := range s.held {
		if o.restored {
			beside := max(1, runtime.GOMAXPROCS(0)-1) // restores beside what is read
			slots = int64(restoresAtOnce / min(restoresAtOnce, beside))
			break
		}
	}
	for name, o := range owned {
		if s.held[name] == nil {
			s.held[name], came = o, true
			s.restores.Go(func() { s.restore(o, slots) })
		}
	}
	if came {
		s.looking.Store(seq)
		s.restores.Go(func() { s.endHanging(s.base, seq) })
	}
	s.metrics.partitions.Set(float64(len(s.held)))
	return nil
}

// restore builds a partition's state, again and again until it is done or the partition goes, and takes some of the slots
// meanwhile.
func (s *session) restore(o *ownership, slots int64) {
	began := time.Now()
	done := restored{ownership: o}
	if s.restores.slots.Acquire(o.ctx, slots) != nil {
		s.metrics.restores.WithLabelValues(restoreCancelled).Inc()
		return
	}
	var delay backoff
	var said rising
	for {
		done.install, done.err = s.deps.Handler.Restore(o.ctx, o.Partition)
		if done.err == nil || IsFatal(done.err) {
			break
		}
		if o.ctx.Err() != nil {
			break
		}
		s.metrics.restores.WithLabelValues(restoreFailed).Inc()
		if said.due(time.Now()) {
			s.log.Warn("a restore failed and is tried again", "topic", o.Topic, "partition", o.Partition.Partition, "error", done.err)
		}
		if !wait(o.ctx, delay.next()) {
			break
		}
	}
	s.restores.slots.Release(slots)
	if o.ctx.Err() != nil {
		s.metrics.restores.WithLabelValues(restoreCancelled).Inc()
		return
	}
	s.metrics.restores.WithLabelValues(restoreDone).Inc()
	s.metrics.restoreTime.Observe(time.Since(began).Seconds())
	s.restores.mu.Lock()
	s.restores.done = append(s.restores.done, done)
	s.restores.mu.Unlock()
	s.view.mu.Lock()
	if s.view.wake != nil {
		s.view.wake()
	}
	s.view.mu.Unlock()
}

// install takes the finished restores over, ending the open transaction first, and lets their partitions be fetched.
func (s *session) install(ctx context.Context) error {
	s.restores.mu.Lock()
	done := s.restores.done
	s.restores.done = nil
	s.restores.mu.Unlock()
	if len(done) == 0 {
		return nil
	}
	if err := s.end(ctx, true); err != nil {
		return err
	}
	for _, r := range done {
		if r.err != nil {
			return fmt.Errorf("restore %s: %w", r.Partition, r.err)
		}
		if s.held[r.Partition] != r.ownership {
			continue
		}
		if r.install != nil {
			r.install()
		}
		r.restored = true
		s.view.mu.Lock()
		if s.view.owned[r.Partition] == r.ownership {
			r.serving = true
			s.cl.ResumeFetchPartitions(map[string][]int32{r.Topic: {r.Partition.Partition}})
		}
		s.view.mu.Unlock()
	}
	return nil
}

// health tells the stage whether it is ready, and whether it waits for the brokers.
func (s *session) health() {
	now := time.Now()
	if quiet := now.Sub(time.Unix(0, s.heard.Load())); quiet > silence {
		s.waiting = true
		s.deps.Stage.SetWaiting(true)
		if s.unheard.due(now) {
			s.log.Warn("waiting for the brokers, which do not answer", "silent_for", quiet.Round(time.Second))
		}
		return
	}
	if s.waiting {
		s.waiting = false
		s.unheard.reset()
		s.log.Info("the brokers answer again")
		s.deps.Stage.SetWaiting(false)
	}
	s.view.mu.Lock()
	ready := (s.view.joined || s.topics.Load() == 0) && s.view.seq == s.seq
	s.view.mu.Unlock()
	for _, o := range s.held {
		ready = ready && o.restored
	}
	if ready {
		s.begun = true
	}
	s.deps.Stage.SetReady(ready)
}
