package txn

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// hangingLook is how often a member that was given partitions looks for transactions that hang.
	hangingLook = time.Second
	// hangingStill is how long one must stand still before our eyes. Others have held theirs open while they waited for the join
	// to end, which may have been as long as a member may be silent, and end them then.
	hangingStill = 2 * time.Second
)

// EndOpen ends the transaction that an earlier process with this Config.InstanceID has left open, before anything waits for
// what is written in it; a session does so too, but later than some must read. Without an instance id it does nothing. The error is the
// coordinator's, or ctx's.
func EndOpen(ctx context.Context, cl *kgo.Client, cfg Config) error {
	if cfg.InstanceID == "" {
		return nil
	}
	id := cfg.staticID()
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID, req.TransactionTimeoutMillis = &id, int32(transactionTimeout.Milliseconds())
	for {
		resp, err := req.RequestWith(ctx, cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, kerr.ConcurrentTransactions): // it is being ended
			return fmt.Errorf("initialise the transactional id %s: %w", id, err)
		case !wait(ctx, 20*time.Millisecond):
			return context.Cause(ctx)
		}
	}
}

// incarnation is one transaction of one transactional id: the next has another epoch or another start.
type incarnation struct {
	id       string
	producer int64
	epoch    int16
	start    int64 // Unix ms, of the coordinator
}

// endHanging ends the transactions of the stage that a process which is gone has left open, as their coordinator would later: it looks for
// transactions past their timeout every 10 s by default, and until it does nobody reads past one, neither the new owner's
// restore nor, where route has died, presence in any partition of the inbox.
//
// It runs when the group has given partitions to this member. Which process a transactional id belongs to nobody can tell, so
// one hangs that is as old as a member may be silent, and was seen for a while in a group that is stable: a member that lives
// has then ended what it had open when the group rebalanced. The coordinator ends it only if it is still the same one; whoever
// writes in it is fenced and begins a new session, as at the timeout.
func (s *session) endHanging(ctx context.Context, seq uint64) {
	seen := make(map[incarnation]time.Time)
	// Past its timeout and the coordinator's look, each is gone anyway.
	for range int(2 * transactionTimeout / hangingLook) {
		hanging, young, err := s.hanging(ctx)
		if err != nil {
			// A broker that is away for now, an older one, or one that does not let us look.
			s.log.Debug("transactions that hang cannot be looked for", "error", err)
			hanging, young = nil, 1
		}
		if s.looking.Load() != seq || len(hanging)+young == 0 {
			return // a later one looks, or there is nothing
		}
		for _, t := range hanging {
			if since, ok := seen[t]; !ok {
				seen[t] = time.Now()
				continue
			} else if time.Since(since) < hangingStill {
				continue
			}
			err := s.endAs(ctx, t)
			if errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) {
				continue // another member has ended it, or its own process has
			}
			if err != nil {
				s.log.Warn("a transaction that hangs could not be ended; its coordinator will", "transactional_id", t.id, "error", err)
				continue
			}
			s.log.Info("ended a transaction that a process which is gone has left open", "transactional_id", t.id)
		}
		if !wait(ctx, hangingLook) {
			return
		}
	}
}

// hanging lists the other transactions of the stage that are open for as long as a member may be silent, none while the group
// rebalances, and says how many more are open.
func (s *session) hanging(ctx context.Context) (old []incarnation, young int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	listed, err := s.adm.ListTransactions(ctx, nil, []string{"Ongoing"})
	if err != nil {
		return nil, 0, fmt.Errorf("list transactions: %w", err)
	}
	var ids []string
	for id, t := range listed {
		if t.State == "Ongoing" && id != s.txnID && strings.HasPrefix(id, s.cfg.Prefix+"-"+s.cfg.Stage+"-") {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, 0, nil
	}
	described, err := s.adm.DescribeTransactions(ctx, ids...)
	if err != nil {
		return nil, 0, fmt.Errorf("describe transactions: %w", err)
	}
	now := time.Now()
	described.Each(func(t kadm.DescribedTransaction) {
		switch {
		case t.Err != nil || t.State != "Ongoing":
		case now.Sub(time.UnixMilli(t.StartTimestamp)) < s.cfg.hangingAfter:
			young++
		default:
			old = append(old, incarnation{t.TxnID, t.ProducerID, t.ProducerEpoch, t.StartTimestamp})
		}
	})
	if len(old) == 0 {
		return nil, young, nil
	}
	groups, err := s.adm.DescribeGroups(ctx, s.cfg.Group())
	if err != nil {
		return nil, 0, fmt.Errorf("describe the group: %w", err)
	}
	if groups[s.cfg.Group()].State != "Stable" {
		return nil, young + len(old), nil
	}
	return old, young, nil
}

// endAs has the coordinator abort the transaction, if it is still that one.
func (s *session) endAs(ctx context.Context, t incarnation) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = &t.id
	req.TransactionTimeoutMillis = int32(transactionTimeout.Milliseconds())
	req.ProducerID, req.ProducerEpoch = t.producer, t.epoch
	resp, err := req.RequestWith(ctx, s.cl)
	if err != nil {
		return err
	}
	err = kerr.ErrorForCode(resp.ErrorCode)
	if errors.Is(err, kerr.ConcurrentTransactions) {
		return nil // it is being ended
	}
	return err
}
