package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config is one run. [Default] has values to begin with.
type Config struct {
	Seed     uint64
	Duration time.Duration // of the faults
	// Drain bounds how long the run waits afterwards until all is delivered.
	Drain             time.Duration
	Processors, Sinks int     // at least 1
	Partitions        int     // of the topics that offhook owns
	Users             int     // of the simulator
	GroupSize         int     // of its largest group
	Rate, Churn       float64 // messages and connection events a second
	Flush             time.Duration
	Faults            []Kind  // nil: all
	Script            []Fault // nil: those that [Plan] draws
	Root              string  // of the repository
	Dir               string  // for evidence; empty: a temporary one, kept where the run failed
}

// Default is a lively installation on a small machine.
func Default() Config {
	return Config{
		Seed: 1, Duration: 5 * time.Minute, Drain: 10 * time.Minute, Processors: 3, Sinks: 3, Partitions: 12,
		Users: 2000, GroupSize: 300, Rate: 150, Churn: 100, Flush: 200 * time.Millisecond,
	}
}

// Report is what came of a run.
type Report struct {
	Seed       uint64           `json:"seed"`
	Seconds    float64          `json:"seconds"` // of faults
	DrainedIn  float64          `json:"drained_in_seconds"`
	Faults     map[Kind]int     `json:"faults"`
	Ended      []string         `json:"ended_by_themselves,omitempty"` // processes
	PeakMemory map[string]int64 `json:"peak_memory_mib"`               // the largest of the processors, and of the sinks
	Verdict    Verdict          `json:"verdict"`
	// Evidence is the directory; empty where it was not kept.
	Evidence string `json:"evidence,omitempty"`
}

// Wrong reports whether a guarantee was broken, or a process ended by itself.
func (r *Report) Wrong() bool { return len(r.Ended) > 0 || r.Verdict.Wrong() }

// Run does one run. The error says that it could not be done or judged; what was found stands in the report.
func Run(ctx context.Context, cfg Config, out io.Writer) (report *Report, err error) {
	dir := cfg.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "offhook-chaos-"); err != nil {
			return nil, fmt.Errorf("make a directory for evidence: %w", err)
		}
	} else if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make --evidence: %w", err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("find --evidence: %w", err)
	}
	log := slog.New(slog.NewTextHandler(out, nil))
	w, err := newWorld(ctx, cfg, log, dir, cfg.Root)
	keep := true
	defer func() {
		err = errors.Join(err, w.close())
		if cfg.Dir == "" && !keep {
			err = errors.Join(err, os.RemoveAll(dir))
		} else {
			fmt.Fprintf(out, "evidence: %s\n", dir)
		}
	}()
	if err != nil {
		return nil, err
	}
	report, err = w.run(ctx, out)
	if report != nil {
		report.Evidence = dir
		if keep = err != nil || report.Wrong(); !keep && cfg.Dir == "" {
			report.Evidence = ""
		}
		err = errors.Join(err, w.keep("report.json", report))
	}
	return report, err
}

func (w *world) keep(name string, what any) error {
	text, err := json.MarshalIndent(what, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return os.WriteFile(filepath.Join(w.dir, name), append(text, '\n'), 0o600)
}

func (w *world) run(ctx context.Context, out io.Writer) (*Report, error) {
	cfg := w.cfg
	plan := cfg.Script
	if plan == nil {
		plan = Plan(cfg.Seed, cfg.Duration, cfg.Processors, cfg.Sinks, brokers, cfg.Faults)
	}
	var text strings.Builder
	for _, f := range plan {
		fmt.Fprintln(&text, f)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "plan"), []byte(text.String()), 0o600); err != nil {
		return nil, fmt.Errorf("keep the plan: %w", err)
	}
	report := &Report{Seed: cfg.Seed, Seconds: cfg.Duration.Seconds(), Faults: make(map[Kind]int), PeakMemory: make(map[string]int64)}
	if err := w.simulator.start(); err != nil {
		return nil, err
	}
	begun := time.Now()
	followed, stop := context.WithCancel(ctx)
	defer stop()
	var following sync.WaitGroup
	following.Go(func() { w.follow(followed, out, begun) })

	if err := w.playAll(ctx, plan, begun, report, out); err != nil {
		return report, err
	}
	w.log.Info("all faults are healed; stopping the simulator")
	if code, err := w.simulator.end(syscall.SIGTERM, 3*time.Minute); err != nil || code != 0 {
		return report, fmt.Errorf("end the simulator: exit code %d, %w", code, err)
	}
	stopped := time.Now()
	drain, cancel := context.WithTimeoutCause(ctx, cfg.Drain, fmt.Errorf("not all is delivered after %v", cfg.Drain))
	defer cancel()
	if err := w.processed(drain); err != nil {
		return report, err
	}
	w.stop(w.processors) // so that no more events come
	if err := w.awaitLag(drain, "the sinks have delivered all", sinkGroup); err != nil {
		return report, err
	}
	report.DrainedIn = time.Since(stopped).Seconds()
	stop()
	following.Wait()
	w.stop(w.sinks)
	if _, err := w.receiver.end(syscall.SIGTERM, stopPatience); err != nil && !errors.Is(err, errEnded) {
		return report, err
	}
	for _, p := range w.all() {
		report.Ended = append(report.Ended, p.unasked...)
		name, _, _ := strings.Cut(p.name, "-")
		report.PeakMemory[name] = max(report.PeakMemory[name], p.peakRSS>>20)
	}
	w.log.Info("reading everything, and judging it")
	verdict, err := w.judge(ctx, stopped)
	if err != nil {
		return report, err
	}
	report.Verdict = verdict
	return report, nil
}

// stop ends processes as Kubernetes would; what is wrong with how they end is noted.
func (w *world) stop(processes []*process) {
	for _, p := range processes {
		code, err := p.end(syscall.SIGTERM, stopPatience)
		if err != nil && !errors.Is(err, errEnded) {
			p.note(err.Error())
		} else if err == nil && code != 0 {
			p.note(fmt.Sprintf("%s ended with exit code %d after SIGTERM, want 0", p.name, code))
		}
	}
}

// playAll plays the plan: the faults of a track one after the other.
func (w *world) playAll(ctx context.Context, plan []Fault, begun time.Time, report *Report, out io.Writer) error {
	var mu sync.Mutex
	played, err := os.Create(filepath.Join(w.dir, "played"))
	if err != nil {
		return fmt.Errorf("keep what is played: %w", err)
	}
	defer played.Close()
	say := func(f Fault, what string) {
		line := fmt.Sprintf("%8s  %s %s %d\n", time.Since(begun).Round(time.Millisecond), what, f.Kind, f.Target+1)
		fmt.Fprint(io.MultiWriter(played, out), line)
	}
	group, playing := errgroup.WithContext(ctx)
	for _, series := range byTrack(plan, w.cfg) {
		group.Go(func() error {
			for _, f := range series {
				pause(playing, time.Until(begun.Add(f.At)))
				if playing.Err() != nil {
					return playing.Err()
				}
				mu.Lock()
				say(f, "begins:")
				report.Faults[f.Kind]++
				mu.Unlock()
				err := w.play(playing, f)
				mu.Lock()
				say(f, "ends:  ")
				mu.Unlock()
				if err != nil {
					return fmt.Errorf("play %s: %w", f.Kind, err)
				}
				for _, p := range w.members() { // as Kubernetes would
					if !w.playedOn(p) {
						if err := p.again(); err != nil {
							return err
						}
					}
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	pause(ctx, time.Until(begun.Add(w.cfg.Duration)))
	return ctx.Err()
}

// playedOn reports whether a fault is about to start the process again.
func (w *world) playedOn(p *process) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.wanted
}

// byTrack are the plan's faults, each track's by themselves.
func byTrack(plan []Fault, cfg Config) [][]Fault {
	trackOf := make(map[Kind]int)
	for n, t := range tracks(cfg.Processors, cfg.Sinks, brokers) {
		for _, c := range t {
			trackOf[c.kind] = n + 1
		}
	}
	series := make(map[int][]Fault)
	for _, f := range plan {
		series[trackOf[f.Kind]] = append(series[trackOf[f.Kind]], f)
	}
	var all [][]Fault
	for _, n := range slices.Sorted(maps.Keys(series)) {
		all = append(all, series[n])
	}
	return all
}
