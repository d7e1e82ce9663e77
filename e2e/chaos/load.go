package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// What a burst is measured with: traffic at a rate that no small machine sustains, for a while.
const (
	probeRate   = 20000 // messages a second, as many as the simulator makes
	probeLength = 10 * time.Second
	burstTimes  = 10
)

// BurstScript is a burst for d, with calm before and after it.
func BurstScript(d time.Duration) []Fault {
	return []Fault{{At: 20 * time.Second, For: d, Kind: Burst}}
}

// OutageScript is an endpoint that is gone for d under traffic.
func OutageScript(d time.Duration) []Fault {
	return []Fault{{At: 20 * time.Second, For: d, Kind: KillReceiver}}
}

// burst measures what the installation sustains, and then sends ten times as much for a time.
func (w *world) burst(ctx context.Context, length time.Duration) error {
	began := time.Now()
	messages, err := w.pour(ctx, "probe", probeRate, probeLength)
	if err != nil {
		return err
	}
	if err := w.caughtUp(ctx); err != nil {
		return err
	}
	sustained := float64(messages) / time.Since(began).Seconds()
	w.log.Info("measured", "messages", messages, "sustained_messages_a_second", int(sustained))
	began = time.Now()
	messages, err = w.pour(ctx, "burst", burstTimes*sustained, length)
	if err != nil {
		return err
	}
	poured := time.Since(began)
	w.log.Info("the burst is over", "messages", messages, "messages_a_second", int(float64(messages)/poured.Seconds()),
		"times_sustained", fmt.Sprintf("%.1f", float64(messages)/poured.Seconds()/sustained))
	if err := w.caughtUp(ctx); err != nil {
		return err
	}
	w.log.Info("the burst is delivered", "seconds_after_it", int((time.Since(began) - poured).Seconds()))
	return nil
}

// pour sends traffic for a time and returns how many of its records were acknowledged.
func (w *world) pour(ctx context.Context, run string, rate float64, length time.Duration) (int, error) {
	p := w.traffic("simulator-"+run, run, rate, 1)
	if err := p.start(); err != nil {
		return 0, err
	}
	w.bursts = append(w.bursts, p)
	pause(ctx, length)
	if code, err := p.end(syscall.SIGTERM, 3*time.Minute); err != nil && !errors.Is(err, errEnded) || code != 0 {
		return 0, errors.Join(fmt.Errorf("end the simulator %s: exit code %d", run, code), err)
	}
	text, err := os.ReadFile(w.acks(run))
	if err != nil {
		return 0, fmt.Errorf("count what was acknowledged: %w", err)
	}
	return bytes.Count(text, []byte{'\n'}), nil
}

// caughtUp waits until the lag is that of the calm traffic.
func (w *world) caughtUp(ctx context.Context) error {
	calm := int64(3 * (w.cfg.Rate + w.cfg.Churn) * float64(w.cfg.Partitions))
	return w.await(ctx, "the lag is that of the calm traffic", func(ctx context.Context) (bool, string, error) {
		lag, err := w.lag(ctx, routeGroup, presenceGroup, sinkGroup)
		return lag >= 0 && lag < calm, fmt.Sprintf("lag %d", lag), err
	})
}
