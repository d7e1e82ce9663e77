package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/schemas"
)

// caughtUpEvery is how often presence is told where route is.
const caughtUpEvery = time.Second

// caughtUpAge is how old, in ms, what is told may be: presence would take it for a gap.
const caughtUpAge = 5_000

// watcher tells presence, by a record in each inbox partition, which partitions with connection events the group has read to
// their ends. What it says is read from the brokers, and so holds whoever reads a partition: ends, and a second later what is
// committed. A record that comes late is told by its time, which is of the clock that AsOf is of.
//
// It is no part of a transaction: all that the group has committed stands in the inbox before what it says of it.
type watcher struct {
	cfg    *Config
	deps   *Deps
	log    *slog.Logger
	leads  func() bool // one process speaks for all
	client *kgo.Client
	adm    *kadm.Client

	// asked is when ends were asked for, in the look before: what comes in all the time is never read to its very end.
	asked int64
	ends  kadm.ListedOffsets
}

// run tells it until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	client, err := w.deps.Kafka.NewClient(w.log, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("set up a Kafka client of %s: %w", Stage, err)
	}
	defer client.Close()
	w.client, w.adm = client, kadm.NewClient(client)
	tick := time.NewTicker(caughtUpEvery)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !w.leads() {
			w.asked, w.ends = 0, nil
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, 5*caughtUpEvery)
		err := w.tell(attempt)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			w.log.Warn("presence cannot be told where route is: no time to live ends until it is", "error", err)
		case err == nil && failing:
			w.log.Info("presence is told again where route is")
		}
		failing = err != nil
	}
}

// tell writes one record into each inbox partition.
func (w *watcher) tell(ctx context.Context) error {
	c, err := w.look(ctx)
	if err != nil || c == nil {
		return err
	}
	value := schemas.AppendInboxCaughtUp(nil, c)
	records := make([]*kgo.Record, w.deps.Owned.Partitions)
	for p := range records {
		records[p] = &kgo.Record{
			Topic: w.deps.Topics.Inbox, Partition: int32(p), Value: value, Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
		}
	}
	if err := w.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("write to the inbox: %w", err)
	}
	return nil
}

// look says where the group is; nil where the look before is too old or was none: what is said of it would begin all silence anew.
// An open transaction holds back what others have written behind it: that is not read either, and so the end is the log's.
// A topic that does not exist yet has no partitions, and holds up nothing.
func (w *watcher) look(ctx context.Context) (*schemas.CaughtUp, error) {
	now := time.Now().UnixMilli()
	next, err := w.adm.ListEndOffsets(ctx, w.cfg.ConnectionsTopics...)
	if err != nil {
		return nil, fmt.Errorf("list the ends of the connections topics: %w", err)
	}
	starts, err := w.adm.ListStartOffsets(ctx, w.cfg.ConnectionsTopics...)
	if err != nil {
		return nil, fmt.Errorf("list the starts of the connections topics: %w", err)
	}
	committed, err := w.adm.FetchOffsets(ctx, w.cfg.Prefix+"."+Stage)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return nil, fmt.Errorf("fetch the offsets of the group: %w", err)
	}
	c, ends := &schemas.CaughtUp{AsOf: w.asked}, w.ends
	w.asked, w.ends = now, next
	if time.Now().UnixMilli()-c.AsOf > caughtUpAge {
		return nil, nil
	}
	for _, name := range w.cfg.ConnectionsTopics {
		t := schemas.CaughtUpTopic{Name: name, Read: []int32{}}
		for p := range next[name] {
			if p < 0 { // so kadm says that there is no such topic
				continue
			}
			t.Partitions = max(t.Partitions, p+1)
			end, ok := ends[name][p]
			if !ok || end.Err != nil { // it is new, or this is the first look
				continue
			}
			at := int64(-1)
			if o, found := committed.Lookup(name, p); found && o.Err == nil {
				at = o.At
			}
			start, listed := starts.Lookup(name, p)
			if at >= end.Offset || listed && start.Err == nil && start.Offset >= end.Offset { // or there is nothing left to read
				t.Read = append(t.Read, p)
			}
		}
		c.Topics = append(c.Topics, t)
	}
	return c, nil
}
