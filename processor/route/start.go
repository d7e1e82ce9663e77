package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

// Where route begins on a topic. Kafka's own answer to a missing offset (auto.offset.reset) cannot tell "never read"
// from "the offsets are gone", and decides anew for each partition at each start. So it is decided once a topic,
// before anyone joins: the offsets of all its partitions are committed, and a marker in the presence topic says so.
//
// Offsets and marker are one transaction of the transactional id "<prefix>-route-start", which all processes share:
// each initialises it before it reads what it decides by, so that of two that start at once the earlier is fenced
// and decides again, by what the later has committed. Committed is either both or none, and never over a group that
// has begun to read: that would take it back, or forward past what it has not read.

// topicState is what is known of one input topic.
type topicState struct {
	name      string
	exists    bool
	id        [16]byte
	committed bool // the group has an offset of one of its partitions at least
	start     string
}

// decision is what is to be done before joining.
type decision struct {
	resolve []topicState // whose start offsets are to be committed
	marker  schemas.StartMarker
	write   bool // the marker is to be written
}

// decide says what is to be done before joining the group. An error is a sentence for the operator.
func decide(topics []topicState, marker schemas.StartMarker, group string) (decision, error) {
	d := decision{marker: schemas.StartMarker{Topics: slices.Clone(marker.Topics)}}
	mark := func(name string, id [16]byte) {
		i := slices.IndexFunc(d.marker.Topics, func(m schemas.MarkedTopic) bool { return m.Name == name })
		switch {
		case i < 0:
			d.marker.Topics = append(d.marker.Topics, schemas.MarkedTopic{Name: name, ID: id})
		case d.marker.Topics[i].ID == id:
			return
		default:
			d.marker.Topics[i].ID = id
		}
		d.write = true
	}
	var gone []string
	for _, t := range topics {
		i := slices.IndexFunc(marker.Topics, func(m schemas.MarkedTopic) bool { return m.Name == t.name })
		marked := i >= 0
		switch {
		case !t.exists:
			// It begins at its beginning when it appears. Offsets of a topic that was deleted do not matter.
			if !marked {
				mark(t.name, [16]byte{})
			}
		case t.committed:
			mark(t.name, t.id)
		case marked && marker.Topics[i].ID == t.id:
			gone = append(gone, t.name)
		case marked:
			// It was not there when route began, or was made anew since: its beginning. It is marked under its id
			// when offsets of it are committed.
		default:
			d.resolve = append(d.resolve, t)
			mark(t.name, t.id)
		}
	}
	if len(gone) > 0 {
		return decision{}, fmt.Errorf("the group %s has no committed offsets for %s, which route has read before: they were deleted or have expired; with route stopped, say where to begin: kafka-consumer-groups.sh --bootstrap-server HOST:PORT --group %[1]s --topic %[3]s --reset-offsets --to-latest --execute (or --to-earliest, or --to-datetime)",
			group, strings.Join(gone, ", "), gone[0])
	}
	return d, nil
}

// starter carries a decision out.
type starter struct {
	cfg  *Config
	deps *Deps
	log  *slog.Logger

	hold func(before string) // a test's, nil otherwise
}

// busyPatience is how long a group that is not empty is waited for: members that were killed leave it after 10 s. A
// variable for tests alone.
var busyPatience = 15 * time.Second

// errBusy says that the group has members, so that nothing can be committed for it.
var errBusy = errors.New("the group is not empty")

// errPending says that the marker cannot be read for now, perhaps because a transaction is open that it is in.
var errPending = errors.New("the start marker is not readable yet")

// markerPatience is how long the marker is read before other processes that decide are fenced for it.
const markerPatience = 2 * time.Second

// begin makes sure that route may join its group.
func begin(ctx context.Context, cfg *Config, deps *Deps, log *slog.Logger) error {
	s := &starter{cfg: cfg, deps: deps, log: log}
	cl, err := deps.Kafka.NewClient(log, kgo.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("set up the Kafka client of route: %w", err)
	}
	defer cl.Close()
	deadline := time.Now().Add(busyPatience)
	for attempt := 0; ; attempt++ {
		deps.Stage.Beat()
		if err := txn.Await(ctx, cl, deps.Stage, log); err != nil {
			return err
		}
		if attempt == 0 {
			// The offsets that are looked at would wait for it; a refusal comes again, where the stage says what to grant.
			own := txn.Config{Stage: Stage, Prefix: cfg.Prefix, InstanceID: cfg.InstanceID}
			if err := txn.EndOpen(ctx, cl, own); err != nil {
				log.Debug("what an earlier process may have left open is not ended yet", "error", err)
			}
		}
		done, err := s.try(ctx, cl)
		switch {
		case done:
			return nil
		case err == nil:
			// Look once more: what was committed is there for the join when its transaction's markers are written.
			continue
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case txn.IsFatal(err):
			return err
		case errors.Is(err, errBusy) && time.Now().After(deadline):
			return fmt.Errorf("%w; stop all processes that run route, then start them: where a topic begins is committed while nobody reads", err)
		case kafka.Refused(err) != nil:
			return fmt.Errorf("decide where route begins: %w", kafka.Refused(err))
		}
		if attempt >= 8 && attempt&(attempt-1) == 0 { // a few are in the nature of it; then at 8, 16, 32, …
			log.Warn("where route begins cannot be decided; trying again", "attempts", attempt, "error", err)
		}
		pause := time.Duration(100+rand.IntN(200)) * time.Millisecond << min(attempt, 3)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// try looks, and where something is to be done, does it in a transaction of its own. done says that there was nothing
// to be done.
func (s *starter) try(ctx context.Context, cl *kgo.Client) (done bool, err error) {
	d, err := s.look(ctx, cl, false)
	switch {
	case errors.Is(err, kerr.UnstableOffsetCommit), errors.Is(err, errPending):
		// Perhaps of a process that died while it decided: what follows ends its transaction.
	case err != nil, !d.write:
		return err == nil, err
	}
	versions := kversion.Stable()
	// From version 5 on the request joins the transaction by itself, on clusters with transaction.version 2 alone.
	versions.SetMaxKeyVersion(int16(kmsg.TxnOffsetCommit), 4)
	own, err := s.deps.Kafka.NewClient(s.log,
		kgo.WithContext(ctx),
		kgo.TransactionalID(s.cfg.Prefix+"-"+Stage+"-start"),
		kgo.TransactionTimeout(10*time.Second),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MaxVersions(versions),
	)
	if err != nil {
		return false, fmt.Errorf("set up the Kafka client of route: %w", err)
	}
	defer own.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if s.hold != nil {
		s.hold("fence")
	}
	// From here on any other process that decides is fenced, or fences this one.
	id, epoch, err := own.ProducerID(ctx)
	if err != nil {
		return false, fmt.Errorf("initialise the transaction: %w", err)
	}
	adm := kadm.NewClient(own)
	d, err = s.look(ctx, own, true)
	if err != nil || !d.write {
		return err == nil, err
	}
	var offsets []kmsg.TxnOffsetCommitRequestTopic
	if len(d.resolve) > 0 {
		if err := s.empty(ctx, adm); err != nil {
			return false, err
		}
		if offsets, err = s.resolve(ctx, adm, d.resolve); err != nil {
			return false, err
		}
	}
	if err := own.BeginTransaction(); err != nil {
		return false, fmt.Errorf("begin the transaction: %w", err)
	}
	if err := s.write(ctx, own, id, epoch, d.marker, offsets); err != nil {
		return false, errors.Join(err, own.EndTransaction(ctx, kgo.TryAbort))
	}
	if s.hold != nil {
		s.hold("commit")
	}
	if err := own.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return false, fmt.Errorf("commit the start offsets: %w", errors.Join(err, own.EndTransaction(ctx, kgo.TryAbort)))
	}
	for _, t := range d.resolve {
		s.log.Info("route begins on a topic that it has never read", "topic", t.name, "start", t.start)
	}
	return false, nil
}

// look reads what is committed and marked, and decides. Before this process has fenced the others, what may be held
// up by a transaction of theirs is an error: kerr.UnstableOffsetCommit or errPending.
func (s *starter) look(ctx context.Context, cl *kgo.Client, fenced bool) (decision, error) {
	group := s.cfg.Prefix + "." + Stage
	md, err := kadm.NewClient(cl).Metadata(ctx, s.cfg.inputs()...)
	if err != nil {
		return decision{}, fmt.Errorf("look the input topics up: %w", err)
	}
	partitions := make(map[string][]int32)
	for name, detail := range md.Topics {
		if detail.Err == nil {
			partitions[name] = detail.Partitions.Numbers()
		}
	}
	// The marker first, then the offsets, and these stable: so a marker that another process commits meanwhile is
	// never seen without the offsets that it was committed with.
	markerCtx, cancel := ctx, context.CancelFunc(func() {})
	if !fenced {
		markerCtx, cancel = context.WithTimeoutCause(ctx, markerPatience, errPending)
	}
	defer cancel()
	marker, err := s.marker(markerCtx)
	if err != nil {
		return decision{}, err
	}
	offsets, err := txn.StableOffsets(ctx, cl, group, partitions)
	if err != nil {
		return decision{}, err
	}
	var topics []topicState
	for i, name := range s.cfg.inputs() {
		t := topicState{name: name, start: s.cfg.ConnectionsStart}
		if i >= len(s.cfg.ConnectionsTopics) {
			t.start = s.cfg.MessagesStart
		}
		detail, ok := md.Topics[name]
		switch {
		case !ok || errors.Is(detail.Err, kerr.UnknownTopicOrPartition):
		case detail.Err != nil:
			return decision{}, fmt.Errorf("look the topic %s up: %w", name, detail.Err)
		default:
			t.exists, t.id = true, detail.ID
		}
		for _, p := range partitions[name] {
			t.committed = t.committed || offsets[txn.Partition{Topic: name, Partition: p}] >= 0
		}
		topics = append(topics, t)
	}
	d, err := decide(topics, marker, group)
	return d, txn.Fatal(err)
}

// marker reads the marker; empty where there is none.
func (s *starter) marker(ctx context.Context) (schemas.StartMarker, error) {
	var marker schemas.StartMarker
	want := schemas.AppendPresenceKey(nil, schemas.PresenceKey{Kind: schemas.PresenceStartMarker})
	p := txn.Partition{Topic: s.deps.Topics.Presence, Partition: 0}
	_, err := txn.ReadChangelog(ctx, s.deps.Kafka, s.log, p, func(r *kgo.Record) error {
		if string(r.Key) != string(want) {
			return nil
		}
		marker = schemas.StartMarker{}
		if r.Value == nil {
			return nil
		}
		err := schemas.CheckVersion("start marker", r.Headers)
		if err == nil {
			marker, err = schemas.DecodeStartMarker(r.Value)
		}
		if err != nil {
			return txn.Fatal(fmt.Errorf("read the start marker at %s offset %d: %w", p, r.Offset, err))
		}
		return nil
	})
	if err != nil {
		return schemas.StartMarker{}, fmt.Errorf("look for the start marker: %w", err)
	}
	return marker, nil
}

// empty makes sure that nobody is a member of the group.
func (s *starter) empty(ctx context.Context, adm *kadm.Client) error {
	group := s.cfg.Prefix + "." + Stage
	described, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		return fmt.Errorf("describe the group %s: %w", group, err)
	}
	d := described[group]
	switch {
	case errors.Is(d.Err, kerr.GroupIDNotFound):
	case d.Err != nil:
		return fmt.Errorf("describe the group %s: %w", group, d.Err)
	case len(d.Members) > 0:
		return fmt.Errorf("%w: %s has members, and no offsets for a topic that is new to route", errBusy, group)
	}
	return nil
}

// resolve asks where the topics start, for all partitions that exist.
func (s *starter) resolve(ctx context.Context, adm *kadm.Client, topics []topicState) ([]kmsg.TxnOffsetCommitRequestTopic, error) {
	var out []kmsg.TxnOffsetCommitRequestTopic
	for _, t := range topics {
		list := adm.ListStartOffsets
		if t.start == Latest {
			// The last stable offset: what an open transaction holds is not old before it is committed.
			list = adm.ListCommittedOffsets
		}
		listed, err := list(ctx, t.name)
		if err == nil {
			err = listed.Error()
		}
		if err != nil {
			return nil, fmt.Errorf("list the offsets of %s: %w", t.name, err)
		}
		rt := kmsg.NewTxnOffsetCommitRequestTopic()
		rt.Topic = t.name
		for _, o := range listed[t.name] {
			rp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch = o.Partition, o.Offset, -1
			rt.Partitions = append(rt.Partitions, rp)
		}
		out = append(out, rt)
	}
	return out, nil
}

// write puts the marker and the offsets into the open transaction.
func (s *starter) write(ctx context.Context, cl *kgo.Client, id int64, epoch int16, marker schemas.StartMarker, offsets []kmsg.TxnOffsetCommitRequestTopic) error {
	if err := cl.ProduceSync(ctx, &kgo.Record{
		Topic: s.deps.Topics.Presence, Partition: 0,
		Key:     schemas.AppendPresenceKey(nil, schemas.PresenceKey{Kind: schemas.PresenceStartMarker}),
		Value:   schemas.AppendStartMarker(nil, marker),
		Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
	}).FirstErr(); err != nil {
		return fmt.Errorf("write the start marker: %w", err)
	}
	if len(offsets) == 0 {
		return nil
	}
	group := s.cfg.Prefix + "." + Stage
	add := kmsg.NewPtrAddOffsetsToTxnRequest()
	add.TransactionalID = s.cfg.Prefix + "-" + Stage + "-start"
	add.ProducerID, add.ProducerEpoch, add.Group = id, epoch, group
	added, err := add.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(added.ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("add the group %s to the transaction: %w", group, err)
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.Group = add.TransactionalID, group
	req.ProducerID, req.ProducerEpoch, req.Generation = id, epoch, -1
	req.Topics = offsets
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return fmt.Errorf("commit offsets of %s: %w", group, err)
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("commit the offset of %s-%d for %s: %w", t.Topic, p.Partition, group, err)
			}
		}
	}
	return nil
}
