package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// play lets one fault happen and ends it. What it returns is an error of the run, not of what it tests.
func (w *world) play(ctx context.Context, f Fault) error {
	switch f.Kind {
	case KillProcessor:
		return w.interrupt(ctx, w.processors[f.Target], syscall.SIGKILL, f.For)
	case KillSink:
		return w.interrupt(ctx, w.sinks[f.Target], syscall.SIGKILL, f.For)
	case StopProcessor:
		return w.interrupt(ctx, w.processors[f.Target], syscall.SIGTERM, f.For)
	case StopSink:
		return w.interrupt(ctx, w.sinks[f.Target], syscall.SIGTERM, f.For)
	case FreezeProcessor:
		return w.freeze(ctx, w.processors[f.Target], f.For)
	case FreezeSink:
		return w.freeze(ctx, w.sinks[f.Target], f.For)

	case KillBroker, StopBroker:
		command := map[Kind]string{KillBroker: "kill", StopBroker: "stop"}[f.Kind]
		n := strconv.Itoa(f.Target + 1)
		if _, err := w.kafka(ctx, command, n); err != nil {
			return err
		}
		pause(ctx, f.For)
		_, err := w.kafka(ctx, "start", n)
		return err
	case MoveLeaders:
		return w.moveLeaders(ctx)
	case GrowInputs:
		return w.grow(ctx)
	case CutBroker:
		return w.cut(ctx, brokerProxy(f.Target), f.For)
	case ResetBroker:
		return w.poison(ctx, brokerProxy(f.Target), f.For, toxic{Type: "reset_peer", Stream: "downstream", Toxicity: 0.5, Attributes: map[string]any{"timeout": 700}})
	case SlowBroker:
		return w.poison(ctx, brokerProxy(f.Target), f.For,
			toxic{Type: "latency", Stream: "downstream", Toxicity: 1, Attributes: map[string]any{"latency": 300, "jitter": 200}},
			toxic{Type: "bandwidth", Stream: "upstream", Toxicity: 1, Attributes: map[string]any{"rate": 2000}}) // KB/s
	case SilenceBroker:
		return w.poison(ctx, brokerProxy(f.Target), f.For, toxic{Type: "timeout", Stream: "downstream", Toxicity: 1, Attributes: map[string]any{"timeout": 0}})

	case KillReceiver:
		return w.interrupt(ctx, w.receiver, syscall.SIGKILL, f.For)
	case SlowReceiver:
		return w.misbehave(ctx, f.For, "slow:100ms:1500ms")
	case FailReceiver:
		return w.misbehave(ctx, f.For, "errors:30:503", "errors:5:500", "busy:20:1", "cut:5%")
	case LateReceiver:
		return w.misbehave(ctx, f.For, "late:20%:"+(webhookTimeout+2*time.Second).String(), "cut:5%:answer")
	case CutEndpoint:
		return w.cut(ctx, endpointProxy, f.For)
	case ResetEndpoint:
		return w.poison(ctx, endpointProxy, f.For, toxic{Type: "reset_peer", Stream: "downstream", Toxicity: 0.5, Attributes: map[string]any{"timeout": 200}})
	case SlowEndpoint:
		return w.poison(ctx, endpointProxy, f.For,
			toxic{Type: "latency", Stream: "downstream", Toxicity: 1, Attributes: map[string]any{"latency": 400, "jitter": 300}},
			toxic{Type: "slicer", Stream: "upstream", Toxicity: 1, Attributes: map[string]any{"average_size": 2000, "size_variation": 500, "delay": 500}}) // bytes, µs
	case Burst:
		return w.burst(ctx, f.For)
	case SilentEndpoint:
		return w.poison(ctx, endpointProxy, f.For, toxic{Type: "timeout", Stream: "downstream", Toxicity: 1, Attributes: map[string]any{"timeout": 0}})
	}
	return fmt.Errorf("no such fault: %s", f.Kind)
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// interrupt ends a process and starts it again. Where it had ended by itself it is started again likewise.
func (w *world) interrupt(ctx context.Context, p *process, s syscall.Signal, length time.Duration) error {
	code, err := p.end(s, stopPatience)
	if err != nil && !errors.Is(err, errEnded) {
		return err
	}
	if err == nil && s == syscall.SIGTERM && code != 0 {
		p.note(fmt.Sprintf("%s ended with exit code %d after SIGTERM, want 0", p.name, code))
	}
	pause(ctx, length)
	return p.again()
}

// note keeps something that went wrong with the process.
func (p *process) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unasked = append(p.unasked, text)
}

func (w *world) freeze(ctx context.Context, p *process, length time.Duration) error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return ignoreEnded(err)
	}
	pause(ctx, length)
	return ignoreEnded(p.signal(syscall.SIGCONT))
}

func ignoreEnded(err error) error {
	if errors.Is(err, errEnded) { // said elsewhere
		return nil
	}
	return err
}

func (w *world) cut(ctx context.Context, proxy string, length time.Duration) error {
	if err := w.proxy.enable(ctx, proxy, false); err != nil {
		return err
	}
	pause(ctx, length)
	return w.proxy.enable(context.WithoutCancel(ctx), proxy, true)
}

func (w *world) poison(ctx context.Context, proxy string, length time.Duration, toxics ...toxic) error {
	var errs []error
	for _, t := range toxics {
		errs = append(errs, w.proxy.add(ctx, proxy, t))
	}
	pause(ctx, length)
	for _, t := range toxics {
		errs = append(errs, w.proxy.remove(context.WithoutCancel(ctx), proxy, t))
	}
	return errors.Join(errs...)
}

// misbehave has another receiver, with scenarios, take the place of the one that is there.
func (w *world) misbehave(ctx context.Context, length time.Duration, scenarios ...string) error {
	exchange := func(args ...string) error {
		if _, err := w.receiver.end(syscall.SIGKILL, stopPatience); err != nil && !errors.Is(err, errEnded) {
			return err
		}
		return w.receiver.start(args...)
	}
	var args []string
	for _, s := range scenarios {
		args = append(args, "--scenario", s)
	}
	if err := exchange(args...); err != nil {
		return err
	}
	pause(ctx, length)
	return exchange()
}

// moveLeaders puts another replica in front of each partition's list, and has that lead it: of every topic, so that group and
// transaction coordinators move too.
func (w *world) moveLeaders(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	topics, err := w.admin.ListTopicsWithInternal(ctx)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	var assignments kadm.AlterPartitionAssignmentsReq
	all := make(kadm.TopicsSet)
	for name, topic := range topics {
		for partition, p := range topic.Partitions {
			if len(p.Replicas) > 1 {
				assignments.Assign(name, partition, append(slices.Clone(p.Replicas[1:]), p.Replicas[0]))
				all.Add(name, partition)
			}
		}
	}
	if _, err := w.admin.AlterPartitionAssignments(ctx, assignments); err != nil {
		return fmt.Errorf("reassign partitions: %w", err)
	}
	if _, err := w.admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, all); err != nil {
		return fmt.Errorf("elect leaders: %w", err)
	}
	return nil
}

func (w *world) grow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for {
		_, err := w.admin.UpdatePartitions(ctx, grownPartitions, connectionsTopic, messagesTopic)
		var list kadm.TopicDetails
		if err == nil {
			list, err = w.admin.ListTopics(ctx, connectionsTopic, messagesTopic)
		}
		if err == nil && len(list[connectionsTopic].Partitions) == grownPartitions && len(list[messagesTopic].Partitions) == grownPartitions {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("give the input topics %d partitions: %w", grownPartitions, errors.Join(err, ctx.Err()))
		}
		pause(ctx, time.Second) // a controller may be on its way
	}
}
