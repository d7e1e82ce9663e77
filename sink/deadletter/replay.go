package deadletter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/sink"
)

// Config says what to replay, and how.
type Config struct {
	// Filter selects the letters; its Sink is required. Where it is [Route], they are put back into their source topics,
	// else they are sent to the endpoint of Sink, whatever its name is.
	Filter Filter
	Sink   sink.Config
	Topics kafka.Topics
	// Run is the n of the ids, a Unix second. Letters of route have none.
	Run int64
	// Patience is how long a letter is tried before the replay ends; 0: once.
	Patience time.Duration
	// DryRun has the replay report what it would do, and do nothing.
	DryRun bool
	// Report, where not nil, is told what became of each letter, by one goroutine at a time. Copies are not reported.
	Report func(Outcome)
}

// What became of a letter: a closed list.
type What string

// The outcomes.
const (
	Replayed      What = "replayed"       // the endpoint took it
	Refused       What = "refused"        // the endpoint refuses its content again
	PutBack       What = "put_back"       // it stands in its source topic once more
	NotReplayable What = "not_replayable" // see Outcome.Why
	Unreadable    What = "unreadable"     // see Outcome.Why
)

// An Outcome is what became of one letter; in a dry run, what would.
type Outcome struct {
	Position
	What   What
	To     string // the event and the endpoint's scheme and host, or the source topic and partition
	ID     string // the webhook-id; empty where there is none
	Status int    // the HTTP status that refused it
	Why    string // a sentence on what could not be replayed or read
}

// A Summary is what a replay did; in a dry run, what it would have done.
type Summary struct {
	Replayed      int   `json:"replayed"`
	Refused       int   `json:"refused"`
	PutBack       int   `json:"put_back"`
	Copies        int   `json:"copies"`
	Unreadable    int   `json:"unreadable"`
	NotReplayable int   `json:"not_replayable"`
	Run           int64 `json:"run"` // of the ids; 0: the letters have none
	DryRun        bool  `json:"dry_run,omitempty"`
}

// A StoppedError ends a replay that is to be gone on with.
type StoppedError struct {
	Cause error
	// After is, by partition, the offset up to which nothing is left to do: what [Filter.After] takes. A partition that
	// was not begun is not in it.
	After map[int32]int64
}

func (e *StoppedError) Error() string { return "the replay has ended early: " + e.Cause.Error() }
func (e *StoppedError) Unwrap() error { return e.Cause }

// errOver ends what is left of a replay that is done.
var errOver = errors.New("the replay is over")

// Replay replays the letters that cfg.Filter selects. Where it names positions, all of them are looked at before anything
// is done, and one that cannot be replayed is an error. ctx's end lets the requests under way end and stops the rest. The
// error of a replay that has begun is a *StoppedError; the summary counts what was done all the same.
func Replay(ctx context.Context, topic *Topic, cfg Config) (Summary, error) {
	partitions, err := topic.Partitions(&cfg.Filter)
	if err != nil {
		return Summary{}, err
	}
	if len(cfg.Filter.Positions) > 0 {
		if err := topic.verify(ctx, &cfg.Filter, partitions); err != nil {
			return Summary{}, err
		}
	}
	r := &replay{cfg: &cfg, topic: topic, after: make(map[int32]int64)}
	maps.Copy(r.after, cfg.Filter.After)
	r.summary.DryRun = cfg.DryRun
	if cfg.Filter.Sink == Route {
		source, err := newSources(topic, &cfg)
		if err != nil {
			return Summary{}, err
		}
		defer source.close()
		r.way = source
	} else {
		r.summary.Run = cfg.Run
		endpoint := newEndpoint(topic, &cfg)
		defer endpoint.close()
		r.way = endpoint
	}
	workers := min(len(partitions), max(cfg.Sink.MaxInFlight, 1))
	if cfg.DryRun {
		workers = 1 // its report is in order then
	}
	halt, stop := context.WithCancelCause(ctx)
	defer stop(errOver)
	todo := make(chan int32, len(partitions))
	for _, p := range partitions {
		todo <- p
	}
	close(todo)
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for p := range todo {
				if halt.Err() != nil {
					return
				}
				if err := r.partition(halt, p); err != nil {
					stop(err)
					return
				}
			}
		})
	}
	working.Wait()
	r.summary.Copies, r.summary.Unreadable = r.tally.Copies, r.tally.Unreadable
	if halt.Err() != nil {
		return r.summary, &StoppedError{Cause: context.Cause(halt), After: r.after}
	}
	return r.summary, nil
}

// A way is how letters are replayed.
type way interface {
	// plan is what carry would do, without doing it; a What other than Replayed and PutBack says that it cannot be done.
	plan(ctx context.Context, l *Letter) (Outcome, error)
	// carry does what was planned, and says what became of it. It stops trying when halt ends, but ends what is under way.
	carry(halt context.Context, l *Letter, planned Outcome) (Outcome, error)
	close()
}

type replay struct {
	cfg   *Config
	topic *Topic
	way   way

	mu      sync.Mutex // guards what follows, and calls of Report
	summary Summary
	tally   Tally
	after   map[int32]int64
}

// partition replays the letters of one partition, one at a time.
func (r *replay) partition(halt context.Context, p int32) error {
	for l, err := range r.topic.Letters(halt, p, &r.cfg.Filter) {
		if err != nil {
			return err
		}
		if !r.selected(l) {
			continue
		}
		outcome, err := r.way.plan(halt, l)
		if err == nil && !r.cfg.DryRun && (outcome.What == Replayed || outcome.What == PutBack) {
			outcome, err = r.way.carry(halt, l, outcome)
		}
		if err != nil {
			return fmt.Errorf("letter %s: %w", l.Position, err)
		}
		r.done(outcome)
		if halt.Err() != nil {
			return context.Cause(halt)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if last := r.topic.bounds[p].end - 1; last >= 0 {
		r.after[p] = max(last, r.after[p])
	}
	return nil
}

func (r *replay) selected(l *Letter) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.tally.Unreadable
	selected := r.cfg.Filter.Select(l, &r.tally)
	if r.tally.Unreadable > before {
		r.report(Outcome{Position: l.Position, What: Unreadable, Why: l.Err.Error()})
	}
	return selected
}

func (r *replay) done(o Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch o.What {
	case Replayed:
		r.summary.Replayed++
	case Refused:
		r.summary.Refused++
	case PutBack:
		r.summary.PutBack++
	case NotReplayable:
		r.summary.NotReplayable++
	case Unreadable: // counted by the selection
	}
	r.after[o.Partition] = o.Offset
	r.report(o)
}

func (r *replay) report(o Outcome) {
	if r.cfg.Report != nil {
		r.cfg.Report(o)
	}
}

// verify looks whether all positions that f names can be replayed.
func (t *Topic) verify(ctx context.Context, f *Filter, partitions []int32) error {
	left := make(map[int32]map[int64]bool)
	for _, p := range f.Positions {
		if left[p.Partition] == nil {
			left[p.Partition] = make(map[int64]bool)
		}
		left[p.Partition][p.Offset] = true
	}
	for _, p := range partitions {
		for l, err := range t.Letters(ctx, p, f) {
			if err != nil {
				return err
			}
			if !left[p][l.Offset] {
				continue
			}
			rest := *f
			rest.After = nil // what was done before is passed over, not refused
			switch excluded := rest.excludes(l); {
			case l.Err != nil:
				return fmt.Errorf("letter %s cannot be read: %w", l.Position, l.Err)
			case excluded != "":
				return fmt.Errorf("letter %s is %s", l.Position, excluded)
			case l.Copy:
				return fmt.Errorf("letter %s is a copy of an earlier one of its partition: name that", l.Position)
			}
			if delete(left[p], l.Offset); len(left[p]) == 0 {
				break
			}
		}
		for offset := range left[p] {
			return fmt.Errorf("there is no letter %s", Position{p, offset})
		}
	}
	return nil
}

// pause waits; false where halt ends first.
func pause(halt context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-halt.Done():
		return false
	}
}

// A pace spaces requests out to so many a second; 0: not at all.
type pace struct {
	every time.Duration
	mu    sync.Mutex
	next  time.Time
}

func newPace(rate int) *pace {
	p := new(pace)
	if rate > 0 {
		p.every = time.Second / time.Duration(rate)
	}
	return p
}

// wait waits for the caller's turn; false where halt ends first.
func (p *pace) wait(halt context.Context) bool {
	if p.every == 0 {
		return halt.Err() == nil
	}
	p.mu.Lock()
	now := time.Now()
	turn := p.next
	if turn.Before(now) {
		turn = now
	}
	p.next = turn.Add(p.every)
	p.mu.Unlock()
	return pause(halt, turn.Sub(now))
}

// retryAt says when to try again after so many failed attempts, the first of which began at began: the delay, or false
// where that would be past patience.
func retryAt(attempts int, random float64, retryAfter, elapsed, patience time.Duration) (time.Duration, bool) {
	left := patience - elapsed
	if left <= 0 || retryAfter > left {
		return 0, false
	}
	// Cut to what is left, so that the last attempt is made when patience ends.
	return max(min(sink.RetryDelay(attempts, random), left), retryAfter), true
}
