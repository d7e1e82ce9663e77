package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a place for one process at a time: it is started, ended and started again under one name, and all that run in
// it write to one log.
type process struct {
	name string // of the log, and for people
	dir  string // of the log
	env  []string
	args []string // the binary first

	mu       sync.Mutex
	cmd      *exec.Cmd
	done     chan struct{} // closed when cmd has ended
	wanted   bool          // it is to run: an end is not ours
	started  int
	unasked  []string // how it ended by itself, each time
	peakRSS  int64    // bytes, of all that ran in it
	lastArgs []string
}

// errEnded says that the process had ended by itself.
var errEnded = errors.New("it has ended by itself")

// start starts it with further arguments, where it does not run.
func (p *process) start(args ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return nil
	}
	log, err := os.OpenFile(p.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", p.name, err)
	}
	defer log.Close() // the process has its own
	// Not through CommandContext: it is ended by [process.end], also where the run was cut short.
	cmd := exec.Command(p.args[0], append(p.args[1:len(p.args):len(p.args)], args...)...) //nolint:noctx // see above
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, log, log
	endWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done, p.wanted, p.lastArgs = cmd, done, true, args
	p.started++
	go func() {
		_ = cmd.Wait() // the state says it
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.wanted {
			p.unasked = append(p.unasked, fmt.Sprintf("%s, started for the %d. time, ended by itself: %v", p.name, p.started, cmd.ProcessState))
		}
		if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			p.peakRSS = max(p.peakRSS, usage.Maxrss*1024)
		}
		p.cmd = nil
		close(done)
	}()
	return nil
}

func (p *process) log() string { return filepath.Join(p.dir, p.name+".log") }

// again starts it as it was started last, where it does not run.
func (p *process) again() error {
	p.mu.Lock()
	args := p.lastArgs
	p.mu.Unlock()
	return p.start(args...)
}

// signal sends a signal; errEnded where there is nobody to take it.
func (p *process) signal(s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errEnded
	}
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", s, p.name, err)
	}
	return nil
}

// end sends a signal that ends it, waits, and returns its exit code, -1 where a signal ended it. errEnded where it had ended.
func (p *process) end(s syscall.Signal, patience time.Duration) (int, error) {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.wanted = false
	p.mu.Unlock()
	if cmd == nil {
		return 0, errEnded
	}
	if err := p.signal(s); err != nil && !errors.Is(err, errEnded) {
		return 0, err
	}
	select {
	case <-done:
		return cmd.ProcessState.ExitCode(), nil
	case <-time.After(patience):
		_ = p.signal(syscall.SIGKILL)
		<-done
		return 0, fmt.Errorf("%s did not end within %v of %v", p.name, patience, s)
	}
}

// run runs a command that ends by itself, in dir, and returns what it wrote to stdout.
func run(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// memory is what a running process holds in memory, in bytes; 0 where that is not known.
func (p *process) memory() int64 {
	p.mu.Lock()
	cmd := p.cmd
	p.mu.Unlock()
	if cmd == nil {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
