package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

func (p *process) complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unasked
}

func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

func TestProcess(t *testing.T) {
	p := &process{name: "sleeper", dir: t.TempDir(), args: []string{"sh", "-c", `trap 'exit 7' TERM; echo "$1 started"; while :; do sleep 0.01; done`, "sh"}}
	logged := func(n int) func() bool {
		return func() bool {
			text, err := os.ReadFile(p.log())
			return err == nil && strings.Count(string(text), "one started\n") == n
		}
	}
	if err := p.start("one"); err != nil {
		t.Fatal(err)
	}
	kafkatest.Wait(t, 20*time.Second, "its line", logged(1))
	if code, err := p.end(syscall.SIGTERM, 10*time.Second); err != nil || code != 7 {
		t.Errorf("ended with %d, %v, want 7", code, err)
	}
	if _, err := p.end(syscall.SIGTERM, time.Second); !errors.Is(err, errEnded) {
		t.Errorf("ended again: %v", err)
	}
	if err := p.again(); err != nil { // with the same arguments
		t.Fatal(err)
	}
	kafkatest.Wait(t, 20*time.Second, "its line again", logged(2))
	if p.memory() <= 0 {
		t.Error("it takes no memory")
	}
	if code, err := p.end(syscall.SIGKILL, 10*time.Second); err != nil || code != -1 {
		t.Errorf("killed: %d, %v, want -1", code, err)
	}
	if got := p.complaints(); len(got) > 0 {
		t.Errorf("ends that were asked for are held against it: %v", got)
	}
	if err := p.again(); err != nil {
		t.Fatal(err)
	}
	kafkatest.Wait(t, 20*time.Second, "its line", logged(3))
	if err := syscall.Kill(p.pid(), syscall.SIGKILL); err != nil { // as a crash
		t.Fatal(err)
	}
	kafkatest.Wait(t, 20*time.Second, "its end", func() bool { return p.pid() == 0 })
	if got := p.complaints(); len(got) != 1 || !strings.Contains(got[0], "sleeper, started for the 3. time, ended by itself: signal: killed") {
		t.Errorf("an end by itself is told as %q", got)
	}
}

func TestProcessThatDoesNotEnd(t *testing.T) {
	p := &process{name: "deaf", dir: t.TempDir(), args: []string{"sh", "-c", `trap '' TERM; echo ready; while :; do sleep 0.01; done`}}
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	kafkatest.Wait(t, 20*time.Second, "its line", func() bool { text, err := os.ReadFile(p.log()); return err == nil && len(text) > 0 })
	if _, err := p.end(syscall.SIGTERM, 100*time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not end") {
		t.Errorf("got %v", err)
	}
	if p.pid() != 0 {
		t.Error("it runs still")
	}
}

func TestToxiproxyAPI(t *testing.T) {
	var got []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var content any
		if len(body) > 0 && json.Unmarshal(body, &content) != nil {
			t.Errorf("no JSON: %s", body)
		}
		text, err := json.Marshal(content)
		if err != nil {
			t.Error(err)
		}
		got = append(got, r.Method+" "+r.URL.Path+" "+string(text))
		if strings.Contains(r.URL.Path, "refused") {
			http.Error(w, "no such proxy", http.StatusNotFound)
		}
	}))
	defer server.Close()
	proxy := toxiproxy{strings.TrimPrefix(server.URL, "http://")}
	ctx := context.Background()
	slow := toxic{Type: "latency", Stream: "downstream", Toxicity: 1, Attributes: map[string]any{"latency": 300}}
	for _, err := range []error{
		proxy.proxy(ctx, "a", "127.0.0.1:1", "127.0.0.1:2"), proxy.enable(ctx, "a", false), proxy.add(ctx, "a", slow), proxy.remove(ctx, "a", slow),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{
		`POST /proxies {"enabled":true,"listen":"127.0.0.1:1","name":"a","upstream":"127.0.0.1:2"}`,
		`POST /proxies/a {"enabled":false}`,
		`POST /proxies/a/toxics {"attributes":{"latency":300},"stream":"downstream","toxicity":1,"type":"latency"}`,
		`DELETE /proxies/a/toxics/latency_downstream null`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := proxy.enable(ctx, "refused", true); err == nil || !strings.Contains(err.Error(), "no such proxy") {
		t.Errorf("a refusal is told as %v", err)
	}
}
