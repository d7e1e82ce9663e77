package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/offhook/offhook/e2e/chaos"
)

// commands are those of `go run ./e2e`.
type commands struct {
	Chaos  chaosCommand  `cmd:"" help:"Break everything around offhook on three Apache Kafka brokers, and judge what came of it."`
	Burst  burstCommand  `cmd:"" help:"Send ten times what offhook sustains on this machine for a while, and judge what came of it."`
	Outage outageCommand `cmd:"" help:"Have the endpoint gone for a while under traffic, and judge what came of it."`
}

// loadFlags are those of the runs that load one processor and one sink.
type loadFlags struct {
	For      time.Duration `default:"1m" help:"How long it lasts."`
	Seed     uint64        `default:"1" help:"The same seed makes the same traffic."`
	Rate     float64       `default:"150" help:"Messages a second, beside it."`
	Evidence string        `help:"Keep logs, journals and the report in this directory (by default in a temporary one, and only if the run fails)." placeholder:"DIR"`
}

func (l loadFlags) run(ctx context.Context, out io.Writer, script []chaos.Fault, calm time.Duration) error {
	cfg := chaos.Default()
	cfg.Seed, cfg.Rate, cfg.Dir, cfg.Processors, cfg.Sinks, cfg.Script = l.Seed, l.Rate, l.Evidence, 1, 1, script
	cfg.Drain = 30 * time.Minute
	for _, f := range script {
		cfg.Duration = f.At + f.For + calm
	}
	return judged(ctx, cfg, out)
}

type burstCommand struct{ loadFlags }

// Run is for kong.
func (c burstCommand) Run(ctx context.Context, out io.Writer) error {
	return c.run(ctx, out, chaos.BurstScript(c.For), 0)
}

type outageCommand struct{ loadFlags }

// Run is for kong.
func (c outageCommand) Run(ctx context.Context, out io.Writer) error {
	return c.run(ctx, out, chaos.OutageScript(c.For), 20*time.Second)
}

type chaosCommand struct {
	Seed       uint64        `default:"1" help:"The same seed makes the same faults and traffic; 0: a fresh one."`
	Duration   time.Duration `default:"5m" help:"How long faults go on."`
	Drain      time.Duration `default:"10m" help:"Longest wait afterwards until all is delivered."`
	Rate       float64       `default:"150" help:"Messages a second."`
	Churn      float64       `default:"100" help:"Connection events a second."`
	Users      int           `default:"2000" help:"Users."`
	GroupSize  int           `default:"300" help:"Members of the largest group."`
	Processors int           `default:"3" help:"Processors."`
	Sinks      int           `default:"3" help:"Processes of the sink."`
	Fault      []string      `sep:"none" help:"Play this kind of fault alone; may be given several times." placeholder:"KIND"`
	Evidence   string        `help:"Keep logs, journals and the report in this directory (by default in a temporary one, and only if the run fails)." placeholder:"DIR"`
}

// Run is for kong.
func (c chaosCommand) Run(ctx context.Context, out io.Writer) error {
	cfg := chaos.Default()
	if c.Seed == 0 {
		c.Seed = rand.Uint64N(1_000_000) + 1
	}
	cfg.Seed, cfg.Duration, cfg.Drain, cfg.Rate, cfg.Churn, cfg.Users, cfg.GroupSize = c.Seed, c.Duration, c.Drain, c.Rate, c.Churn, c.Users, c.GroupSize
	cfg.Processors, cfg.Sinks, cfg.Dir = c.Processors, c.Sinks, c.Evidence
	for _, kind := range c.Fault {
		cfg.Faults = append(cfg.Faults, chaos.Kind(kind))
	}
	fmt.Fprintf(out, "again: go run ./e2e chaos --seed %d --duration %s\n", cfg.Seed, cfg.Duration)
	return judged(ctx, cfg, out)
}

// judged does a run and prints what came of it; an error where a guarantee was broken.
func judged(ctx context.Context, cfg chaos.Config, out io.Writer) error {
	var err error
	if cfg.Root, err = root(); err != nil {
		return err
	}
	report, err := chaos.Run(ctx, cfg, out)
	if report != nil {
		report.Print(out)
	}
	if err != nil {
		return err
	}
	if report.Wrong() {
		return errors.New("a guarantee was broken, or a process ended by itself: see above")
	}
	return nil
}

// root is the repository's directory, which holds go.mod: the working directory or one above.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "scripts", "kafka.sh")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the repository: run this within it")
		}
		dir = filepath.Dir(dir)
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var c commands
	k := kong.Parse(&c, kong.Name("e2e"), kong.UsageOnError())
	k.BindTo(ctx, (*context.Context)(nil))
	k.BindTo(os.Stdout, (*io.Writer)(nil))
	err := k.Run()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}
