package simulator

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// defaultFlushTimeout is what a zero Config.FlushTimeout means.
const defaultFlushTimeout = 10 * time.Second

// overrun is how far past Config.Duration a run may go to write what was due within it.
const overrun = time.Second

// Run writes one run's traffic and returns what it wrote. That ctx ended is no error once Kafka was reached. After an
// error too the summary counts, and the truth is complete, where the error is not the truth's own.
func Run(ctx context.Context, cfg Config, deps Deps) (Summary, error) {
	start := time.Now()
	if cfg.Run == "" {
		cfg.Run = runName(start)
	}
	if cfg.FlushTimeout == 0 {
		cfg.FlushTimeout = defaultFlushTimeout
	}
	if err := cfg.validate(); err != nil {
		return Summary{}, err
	}
	if err := cfg.fits(deps); err != nil {
		return Summary{}, err
	}
	p, err := connect(ctx, cfg, deps)
	if err != nil {
		return Summary{}, err
	}
	stopProgress := reportProgress(deps.Progress, p, start)
	defer stopProgress()

	t := newTraffic(cfg)
	for line := range t.lines {
		if err := p.record(line); err != nil {
			p.fail(err)
			break
		}
	}
	write(ctx, cfg, t, p, deps.Settled)
	err = p.close(ctx, cfg.FlushTimeout)
	stopProgress()
	s, _ := p.counts()
	s.Run, s.Seed, s.Seconds = cfg.Run, cfg.Seed, time.Since(start).Seconds()
	if s.Upset = cfg.upset(); s.Upset {
		s.Pushes, s.Crashes, s.Late, s.Doubled = 0, t.upsets.crashes, t.upsets.late, t.upsets.doubled
	}
	if endErr := p.end(); err == nil {
		err = endErr
	}
	return s, err
}

// write writes the residents' onlines, waits, and then what comes until the bounds, the end of ctx or a failure.
func write(ctx context.Context, cfg Config, t *traffic, p *producer, settled func(context.Context, int64) bool) {
	alive := true
	t.first(func() int64 { return time.Now().UnixMilli() }, func(r *record) bool {
		alive = p.send(ctx, r)
		return alive
	})
	if !alive || !p.flush(ctx) || !wait(ctx, p, cfg.Settle) {
		return
	}
	if settled != nil {
		if s, _ := p.counts(); !settled(ctx, s.Statuses) {
			return
		}
	}
	churn := stream{rate: cfg.Churn, limit: cfg.Connections, duration: cfg.Duration}
	talk := stream{rate: cfg.Rate, limit: cfg.Messages, duration: cfg.Duration}
	start := time.Now()
	for turn := next(&churn, &talk); turn != nil; turn = next(&churn, &talk) {
		t.advance(turn.due())
		if ahead := turn.due() - time.Since(start); ahead > time.Millisecond && !wait(ctx, p, ahead) {
			return
		}
		if cfg.Duration > 0 && time.Since(start) > cfg.Duration+overrun {
			break
		}
		now := time.Now().UnixMilli()
		for r := t.due(now); r != nil; r = t.due(now) {
			if !p.send(ctx, r) {
				return
			}
		}
		turn.n++
		var r *record
		if turn == &churn {
			r = t.connection(now)
		} else {
			r = t.message(now)
		}
		if r = t.disturb(r); r != nil && !p.send(ctx, r) {
			return
		}
	}
	now := time.Now().UnixMilli()
	for r := t.rest(now); r != nil && p.send(ctx, r); r = t.rest(now) {
	}
}

// stream says when records of one kind are due: the nth at n/rate, whatever the clock says, so that what is written
// between two messages does not depend on the machine's speed.
type stream struct {
	rate     float64
	limit    int64 // 0: none
	duration time.Duration
	n        int64
}

func (s *stream) due() time.Duration {
	return time.Duration(float64(s.n) / s.rate * float64(time.Second))
}

func (s *stream) bounded() bool { return s.limit > 0 || s.duration > 0 }

func (s *stream) ended() bool {
	return s.rate == 0 || s.limit > 0 && s.n >= s.limit || s.duration > 0 && s.due() >= s.duration
}

// next is the stream whose record comes next, nil where the run has ended.
func next(a, b *stream) *stream {
	switch {
	case a.ended() && b.ended():
		return nil
	case a.ended():
		if a.rate > 0 && !b.bounded() {
			return nil
		}
		return b
	case b.ended():
		if b.rate > 0 && !a.bounded() {
			return nil
		}
		return a
	case b.due() < a.due():
		return b
	}
	return a
}

// wait sleeps. False: ctx has ended or a record has failed.
func wait(ctx context.Context, p *producer, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	case <-p.failed.Done():
		return false
	}
}

// reportProgress writes a line a second to w until the returned function, which may be called twice, is called.
func reportProgress(w io.Writer, p *producer, start time.Time) (stop func()) {
	if w == nil {
		return func() {}
	}
	quit := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		var before Summary
		for {
			select {
			case <-quit:
				return
			case <-ticker.C:
			}
			s, pending := p.counts()
			// A progress line that cannot be written is no reason to stop.
			_, _ = fmt.Fprintf(w, "simulate %4.0fs  connections %d (%d/s)  messages %d (%d/s)  waiting for Kafka %d\n",
				time.Since(start).Seconds(), s.Connections, s.Connections-before.Connections,
				s.Messages, s.Messages-before.Messages, pending)
			before = s
		}
	})
	return sync.OnceFunc(func() {
		close(quit)
		running.Wait()
	})
}
