package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// sameSignal is how close behind the first a signal counts as the same one: a terminal or a supervisor (GNU timeout among
// them) signals the process and then its group.
const sameSignal = time.Second

// withSignals returns a context that SIGINT and SIGTERM cancel, with the signal as its cause. A second signal, sameSignal or
// more after the first, ends the process at once. stop ends the listening.
func withSignals(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		var first time.Time
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				switch {
				case first.IsZero():
					first = time.Now()
					cancel(fmt.Errorf("signal: %v", s))
				case time.Since(first) >= sameSignal:
					fmt.Fprintf(os.Stderr, "offhook: a second signal (%v): ending at once\n", s)
					os.Exit(exitFatal)
				}
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(context.Canceled)
	}
}
