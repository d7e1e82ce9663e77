package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

const (
	startTimeout = 60 * time.Second // until a process is ready; a member that was killed holds a group up for 10 s
	stopTimeout  = 40 * time.Second // OFFHOOK_SHUTDOWN_TIMEOUT's default, and more
	logLines     = 150              // of a process's log that a failed test shows
)

// output is what a process has written so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// lines are the lines that are complete, without empty ones.
func (o *output) lines() []string {
	text := o.String()
	text = text[:strings.LastIndexByte(text, '\n')+1]
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// tail are the last n lines.
func (o *output) tail(n int) string {
	lines := o.lines()
	if left := len(lines) - n; left > 0 {
		lines = append([]string{fmt.Sprintf("… %d lines before", left)}, lines[left:]...)
	}
	return strings.Join(lines, "\n")
}

// process is a running offhook. The test's end kills it where it still runs.
type process struct {
	t              testing.TB
	name           string // for the log
	cmd            *exec.Cmd
	stdout, stderr output
	done           chan struct{} // closed when it has ended
	ops            string        // address of /metrics and so on, once ready has seen it
}

// start starts the binary with args and, beside what any process needs, the environment env alone.
func start(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: strings.Join(args, " "), cmd: exec.Command(offhook, args...), done: make(chan struct{})}
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			p.cmd.Env = append(p.cmd.Env, name+"="+value)
		}
	}
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	dieWithTest(p.cmd)
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start offhook %s: %v", p.name, err)
	}
	p.name = fmt.Sprintf("%s (%d)", p.name, p.cmd.Process.Pid)
	go func() {
		_ = p.cmd.Wait() // the exit code is read from the state
		close(p.done)
	}()
	t.Cleanup(func() {
		if !p.ended() {
			_ = p.cmd.Process.Kill() // it may end by itself meanwhile
			<-p.done
		}
		if t.Failed() {
			t.Logf("offhook %s, %v; stdout:\n%s\nstderr:\n%s", p.name, p.cmd.ProcessState, p.stdout.tail(10), p.stderr.tail(logLines))
		}
	})
	return p
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// wait waits for the process's end and returns its exit code, -1 where a signal ended it.
func (p *process) wait(timeout time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(timeout):
		p.t.Fatalf("offhook %s still runs after %v", p.name, timeout)
	}
	return p.cmd.ProcessState.ExitCode()
}

// kill is kill -9.
func (p *process) kill() {
	p.t.Helper()
	if p.ended() {
		p.t.Fatalf("offhook %s ended by itself: %v", p.name, p.cmd.ProcessState)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatalf("kill offhook %s: %v", p.name, err)
	}
	<-p.done
}

// terminate sends SIGTERM and expects the exit code 0.
func (p *process) terminate() {
	p.t.Helper()
	if p.ended() {
		p.t.Fatalf("offhook %s ended by itself: %v", p.name, p.cmd.ProcessState)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatalf("send SIGTERM to offhook %s: %v", p.name, err)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // as GNU timeout does: to the process, and to its group
	if code := p.wait(stopTimeout); code != 0 {
		p.t.Errorf("offhook %s ended with exit code %d after SIGTERM, want 0", p.name, code)
	}
}

// opsAddr waits until the process has said where it serves /metrics. Tests have it choose a port: one that was free a
// moment ago may be another's by now.
func (p *process) opsAddr() string {
	p.t.Helper()
	kafkatest.Wait(p.t, startTimeout, "offhook "+p.name+" to serve /metrics", func() bool {
		if p.ended() {
			p.t.Fatalf("offhook %s ended: %v", p.name, p.cmd.ProcessState)
		}
		for _, line := range p.stderr.lines() {
			var entry struct {
				Msg  string `json:"msg"`
				Addr string `json:"addr"`
			}
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "serving metrics and health" {
				p.ops = entry.Addr
			}
		}
		return p.ops != ""
	})
	return p.ops
}

// ready waits until /readyz answers 200.
func (p *process) ready() *process {
	p.t.Helper()
	p.opsAddr()
	var status int
	var body string
	deadline := time.Now().Add(startTimeout)
	for status != http.StatusOK {
		if p.ended() {
			p.t.Fatalf("offhook %s ended: %v", p.name, p.cmd.ProcessState)
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("offhook %s is not ready after %v: %s", p.name, startTimeout, body)
		}
		status, body = p.get("/readyz")
		time.Sleep(10 * time.Millisecond)
	}
	return p
}

// get asks the process's operations address.
func (p *process) get(path string) (status int, body string) {
	p.t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + p.ops + path)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(raw)
}

// command runs a command that ends by itself.
func command(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := start(t, env, args...)
	code = p.wait(startTimeout)
	return code, p.stdout.String(), p.stderr.String()
}
