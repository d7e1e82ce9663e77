package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/ops"
	"github.com/offhook/offhook/internal/receiver"
)

// asProgram makes the test binary be offhook, for tests that need a process of its own.
const asProgram = "OFFHOOK_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	switch os.Getenv(asProgram) {
	case "":
	case "hang": // a program that does not heed its context
		ctx, _ := withSignals(context.Background())
		fmt.Fprintln(os.Stderr, "begun")
		<-ctx.Done()
		fmt.Fprintln(os.Stderr, "stopping")
		select {}
	default:
		main()
	}
	// sarama: the metrics have one goroutine a process, for ever; the circuit breaker waits out its ten seconds.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"),
		goleak.IgnoreAnyFunction("github.com/eapache/go-resiliency/breaker.(*Breaker).timer"))
}

// buffer may be read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// process is a run of the program within the test.
type process struct {
	stdout, stderr buffer
	stop           context.CancelFunc
	done           chan struct{}
	code           int
}

func start(t *testing.T, environ environment, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.code = run(ctx, args, environ.list(), &p.stdout, &p.stderr)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
		if t.Failed() {
			t.Logf("offhook %s, stderr:\n%s", strings.Join(args, " "), p.stderr.String())
		}
	})
	return p
}

// exit waits for the process's end.
func (p *process) exit(t *testing.T, want int) {
	t.Helper()
	select {
	case <-p.done:
		if p.code != want {
			t.Errorf("exit code %d, want %d", p.code, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the process does not end")
	}
}

func command(t *testing.T, environ environment, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := start(t, environ, args...)
	select {
	case <-p.done:
	case <-time.After(time.Minute):
		t.Fatalf("offhook %s does not end:\n%s", strings.Join(args, " "), p.stderr.String())
	}
	return p.code, p.stdout.String(), p.stderr.String()
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// cluster is a broker with input topics, and the environment to use it.
func cluster(t *testing.T) (*kafkatest.Cluster, environment) {
	t.Helper()
	c := kafkatest.New(t)
	environ := environment{
		"OFFHOOK_KAFKA_BROKERS": strings.Join(c.Brokers, ","), "OFFHOOK_TOPIC_PREFIX": c.Prefix, "OFFHOOK_PARTITIONS": "3",
		"OFFHOOK_CONNECTIONS_TOPIC": c.Prefix + "-connections", "OFFHOOK_MESSAGES_TOPIC": c.Prefix + "-messages",
		"OFFHOOK_OPS_ADDR": "off", "OFFHOOK_WEBHOOK_URL": "http://127.0.0.1:1/", "OFFHOOK_WEBHOOK_FLUSH_INTERVAL": "10ms",
	}
	c.CreateTopic(t, environ["OFFHOOK_CONNECTIONS_TOPIC"], 2)
	c.CreateTopic(t, environ["OFFHOOK_MESSAGES_TOPIC"], 2)
	return c, environ
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return 0, ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// webhooks is an endpoint that keeps what it is sent.
type webhooks struct {
	mu   sync.Mutex
	sent []string // "<event> <body>"
}

func (w *webhooks) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, r.URL.Query().Get("event")+" "+string(body))
}

func (w *webhooks) has(substring string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Contains(strings.Join(w.sent, "\n"), substring)
}

func TestRunAndItsParts(t *testing.T) {
	for _, test := range []struct {
		name     string
		commands []string
	}{{"run", []string{"run"}}, {"processor and sink", []string{"processor", "sink"}}} {
		t.Run(test.name, func(t *testing.T) {
			c, environ := cluster(t)
			endpoint := new(webhooks)
			server := httptest.NewServer(endpoint)
			defer server.Close()
			environ["OFFHOOK_WEBHOOK_URL"] = server.URL + "/hook"
			var processes []*process
			for _, name := range test.commands {
				addr := freeAddress(t)
				environ["OFFHOOK_OPS_ADDR"] = addr
				p := start(t, environ, name)
				processes = append(processes, p)
				kafkatest.Wait(t, 20*time.Second, name+" to be ready", func() bool {
					code, _ := get(t, "http://"+addr+"/readyz")
					return code == http.StatusOK
				})
				if code, body := get(t, "http://"+addr+"/livez"); code != http.StatusOK {
					t.Errorf("/livez of %s answers %d %s", name, code, body)
				}
				if _, body := get(t, "http://"+addr+"/metrics"); !strings.Contains(body, "\noffhook_build_info{") {
					t.Errorf("no offhook_build_info in /metrics of %s", name)
				}
			}
			c.Produce(t,
				&kgo.Record{Topic: environ["OFFHOOK_CONNECTIONS_TOPIC"], Value: []byte(`{"type":"online","uid":"u1","conn_id":7,"node_id":1,"device_flag":1}`)},
				&kgo.Record{Topic: environ["OFFHOOK_MESSAGES_TOPIC"], Value: []byte(`{"from_uid":"u1","channel_id":"u2","channel_type":1,"payload":"aGk="}`)},
			)
			for _, want := range []string{`user.onlinestatus ["u1-1-1-7-1-1"]`, "msg.notify [{", `"to_uids":["u2"]`} {
				kafkatest.Wait(t, 20*time.Second, "webhook "+want, func() bool { return endpoint.has(want) })
			}
			for _, p := range processes {
				p.stop()
				p.exit(t, exitOK)
				if p.stdout.String() != "" {
					t.Errorf("stdout: %s", p.stdout.String())
				}
			}
		})
	}
}

func TestAddressInUseStopsTheStart(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	environ := good()
	environ["OFFHOOK_OPS_ADDR"] = listener.Addr().String()
	code, _, stderr := command(t, environ, "run")
	if code != exitFatal || !strings.Contains(stderr, "OFFHOOK_OPS_ADDR") {
		t.Errorf("exit code %d, stderr %s", code, stderr)
	}
}

func TestBrokersThatAreAwayAreWaitedFor(t *testing.T) {
	addr := freeAddress(t)
	p := start(t, environment{
		"OFFHOOK_KAFKA_BROKERS": freeAddress(t), "OFFHOOK_WEBHOOK_URL": "http://x", "OFFHOOK_OPS_ADDR": addr, "OFFHOOK_SERVICE_HOST": "x",
	}, "run")
	kafkatest.Wait(t, 10*time.Second, "the wait to be logged", func() bool { return strings.Contains(p.stderr.String(), "waiting for the Kafka brokers") })
	if code, body := get(t, "http://"+addr+"/livez"); code != http.StatusOK {
		t.Errorf("/livez answers %d %s", code, body)
	}
	if code, body := get(t, "http://"+addr+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "presence: waits") {
		t.Errorf("/readyz answers %d %s", code, body)
	}
	if !strings.Contains(p.stderr.String(), "OFFHOOK_SERVICE_HOST is no variable") {
		t.Error("an unknown variable is not warned of")
	}
	p.stop()
	p.exit(t, exitOK)
}

func TestNewSinkMustSayWhereItStarts(t *testing.T) {
	_, environ := cluster(t)
	environ["OFFHOOK_SINK_NAME"] = "second"
	code, _, stderr := command(t, environ, "sink")
	if code != exitSettings || !strings.Contains(stderr, "OFFHOOK_SINK_START") {
		t.Errorf("exit code %d, stderr %s", code, stderr)
	}
}

// testService is a service on a kfake cluster with the stages given.
func testService(t *testing.T, stages map[string]func(context.Context) error) (*kafkatest.Cluster, *service) {
	t.Helper()
	c, environ := cluster(t)
	s, _, err := load(environ, allParts...)
	if err != nil {
		t.Fatal(err)
	}
	v := newService(s, slog.New(slog.DiscardHandler))
	v.watchEvery, v.overtime, v.settings.ShutdownTimeout = 50*time.Millisecond, 0, duration(200*time.Millisecond)
	for name, run := range stages {
		v.add(name, func(ctx context.Context, _ stageDeps) error { return run(ctx) })
	}
	return c, v
}

func untilStopped(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func TestServiceEndsAsAWhole(t *testing.T) {
	broken := errors.New("broken")
	t.Run("with a stage that fails", func(t *testing.T) {
		_, v := testService(t, map[string]func(context.Context) error{"good": untilStopped, "bad": func(context.Context) error { return broken }})
		if err := v.serve(t.Context()); !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "bad: ") {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("with a stage that ends", func(t *testing.T) {
		_, v := testService(t, map[string]func(context.Context) error{"good": untilStopped, "short": func(context.Context) error { return nil }})
		if err := v.serve(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "short: ") {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("when it is stopped", func(t *testing.T) {
		_, v := testService(t, map[string]func(context.Context) error{"one": untilStopped, "two": untilStopped})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := v.serve(ctx); err != nil {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("with a stage that fails to stop", func(t *testing.T) {
		_, v := testService(t, map[string]func(context.Context) error{"one": untilStopped, "two": func(ctx context.Context) error { <-ctx.Done(); return broken }})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := v.serve(ctx); !errors.Is(err, broken) {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("though a stage hangs", func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		_, v := testService(t, map[string]func(context.Context) error{"good": untilStopped, "hanging": func(context.Context) error { <-release; return nil }})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := v.serve(ctx); err == nil || !strings.Contains(err.Error(), "OFFHOOK_SHUTDOWN_TIMEOUT: hanging") {
			t.Errorf("got error %v", err)
		}
	})
	t.Run("when a topic changes", func(t *testing.T) {
		c, v := testService(t, map[string]func(context.Context) error{"good": untilStopped})
		done := make(chan error, 1)
		go func() { done <- v.serve(t.Context()) }()
		inbox := v.settings.spec().Topics.Inbox
		kafkatest.Wait(t, 10*time.Second, "the topics", func() bool { return len(v.health.Unready()) == 1 && c.Fake.TopicInfo(inbox) != nil })
		admin := kadm.NewClient(c.Client(t))
		kafkatest.Wait(t, 10*time.Second, "the stages to run", func() bool {
			return !strings.Contains(strings.Join(v.health.Unready(), ""), "waits")
		})
		if _, err := admin.CreatePartitions(t.Context(), 1, inbox); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), inbox+" had 3 partitions and has 4") {
				t.Errorf("got error %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the service goes on")
		}
	})
}

func TestTopics(t *testing.T) {
	c, environ := cluster(t)
	delete(environ, "OFFHOOK_WEBHOOK_URL")
	code, _, stderr := command(t, environ, "topics", "check")
	if code != exitFatal || !strings.Contains(stderr, c.Prefix+".inbox") || !strings.Contains(stderr, "offhook topics create") {
		t.Errorf("check without topics: exit code %d, stderr %s", code, stderr)
	}
	for _, sub := range []string{"create", "create", "check"} {
		code, stdout, stderr := command(t, environ, "topics", sub)
		if code != exitOK || !strings.Contains(stdout, c.Prefix+".dead-letters") || strings.Contains(stderr, "WARN") {
			t.Errorf("%s: exit code %d, stdout %s, stderr %s", sub, code, stdout, stderr)
		}
	}
	code, _, stderr = command(t, environment{"OFFHOOK_KAFKA_BROKERS": freeAddress(t)}, "topics", "check", "--timeout", "300ms")
	if code != exitFatal || !strings.Contains(stderr, "OFFHOOK_KAFKA_BROKERS did not answer within 300ms") {
		t.Errorf("without brokers: exit code %d, stderr %s", code, stderr)
	}
}

func TestPlainCommands(t *testing.T) {
	for _, test := range []struct {
		args           string
		code           int
		stdout, stderr string // what they hold
	}{
		{"version", exitOK, "offhook ", ""},
		{"schemas", exitOK, "connection\n", ""},
		{"schemas connection", exitOK, `"$schema"`, ""},
		{"schemas bogus", exitSettings, "", "connection"},
		{"--help", exitOK, "demo", ""},
		{"sink --help", exitOK, "Usage: offhook sink", ""},
		{"bogus", exitSettings, "", "bogus"},
		{"run --bogus", exitSettings, "", "--bogus"},
		{"", exitSettings, "", "offhook --help"},
		{"simulate --users 1", exitFatal, "", "users"},
		{"receive --secret hunter", exitFatal, "", "whsec_"},
		{"receive --secret-file /nowhere", exitFatal, "", "--secret-file"},
	} {
		t.Run(test.args, func(t *testing.T) {
			code, stdout, stderr := command(t, nil, strings.Fields(test.args)...)
			if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			if test.code != exitOK && strings.Count(stderr, "\n") != 1 {
				t.Errorf("want one line on stderr, got %q", stderr)
			}
		})
	}
}

// lastLine decodes the summary that stdout ends with.
func lastLine(t *testing.T, stdout string) receiver.Summary {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	var summary receiver.Summary
	decoder := json.NewDecoder(strings.NewReader(lines[len(lines)-1]))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&summary); err != nil {
		t.Fatalf("the last line of stdout is no summary: %v\n%s", err, stdout)
	}
	return summary
}

func TestDemo(t *testing.T) {
	// What it finds in the environment does not concern it.
	environ := environment{"OFFHOOK_KAFKA_BROKERS": "nowhere:1", "OFFHOOK_WEBHOOK_URL": "ftp://x", "OFFHOOK_PARTITIONS": "0"}
	check := func(t *testing.T, p *process) {
		t.Helper()
		p.exit(t, exitOK)
		summary := lastLine(t, p.stdout.String())
		if summary.Events.OnlineStatus == 0 || summary.Events.Notify == 0 || summary.Events.Offline == 0 {
			t.Errorf("events are missing: %+v", summary)
		}
		if summary.Lost == nil || *summary.Lost != 0 || summary.Wrong() {
			t.Errorf("summary: %+v", summary)
		}
		for _, event := range []string{"user.onlinestatus", "msg.notify", "msg.offline"} {
			if !strings.Contains(p.stderr.String(), "POST /?event="+event) {
				t.Errorf("no request of %s is shown", event)
			}
		}
	}
	t.Run("for a duration", func(t *testing.T) { check(t, start(t, environ, "demo", "--duration", "2s")) })
	t.Run("until it is stopped", func(t *testing.T) {
		p := start(t, environ, "demo")
		kafkatest.Wait(t, 20*time.Second, "each event", func() bool { return strings.Count(p.stderr.String(), "POST /?event=") == 3 })
		p.stop()
		check(t, p)
	})
	t.Run("stopped before it is ready", func(t *testing.T) {
		p := start(t, environ, "demo")
		p.stop()
		p.exit(t, exitOK)
		lastLine(t, p.stdout.String())
	})
}

// TestSimulateAndReceive hands what simulate must have written to a receiver that gets nothing.
func TestSimulateAndReceive(t *testing.T) {
	_, environ := cluster(t)
	file := filepath.Join(t.TempDir(), "truth.jsonl")
	code, stdout, stderr := command(t, nil, "simulate", "--brokers", environ["OFFHOOK_KAFKA_BROKERS"], "--connections-topic", environ["OFFHOOK_CONNECTIONS_TOPIC"],
		"--messages-topic", environ["OFFHOOK_MESSAGES_TOPIC"], "--messages", "20", "--connections", "20", "--rate", "1000", "--churn", "1000", "--settle", "0s",
		"--run", "r1", "--truth", file)
	if code != exitOK || !strings.Contains(stdout, "run r1, seed 1") {
		t.Fatalf("simulate: exit code %d, stdout %s, stderr %s", code, stdout, stderr)
	}
	code, stdout, stderr = command(t, nil, "receive", "--addr", "127.0.0.1:0", "--truth", file, "--duration", "50ms")
	if summary := lastLine(t, stdout); code != exitFatal || summary.Lost == nil || *summary.Lost < 20 {
		t.Errorf("receive: exit code %d, summary %+v, stderr %s", code, summary, stderr)
	}
}

func TestReceive(t *testing.T) {
	addr := freeAddress(t)
	p := start(t, nil, "receive", "--addr", addr)
	post := func(body string) int {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		request, err := http.NewRequest(http.MethodPost, "http://"+addr+"/?event=user.onlinestatus", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("webhook-id", "id-1")
		response, err := client.Do(request)
		if err != nil {
			return 0
		}
		response.Body.Close()
		return response.StatusCode
	}
	kafkatest.Wait(t, 10*time.Second, "the receiver", func() bool { return post(`["u1-0-1-5-1-1"]`) == http.StatusOK })
	p.stop()
	p.exit(t, exitOK)
	if summary := lastLine(t, p.stdout.String()); summary.Requests != 1 || summary.Events.OnlineStatus != 1 || summary.Lost != nil {
		t.Errorf("summary: %+v", summary)
	}

	p = start(t, nil, "receive", "--addr", addr, "--secret", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3")
	kafkatest.Wait(t, 10*time.Second, "the receiver", func() bool { return post(`["u1-0-1-5-1-1"]`) == http.StatusUnauthorized })
	p.stop()
	p.exit(t, exitFatal)
	if summary := lastLine(t, p.stdout.String()); summary.BadSignatures != 1 {
		t.Errorf("summary: %+v", summary)
	}
}

// TestSignals runs the program as a process: the first signal stops it cleanly, a second at once.
func TestSignals(t *testing.T) {
	program := func(t *testing.T, mode string) (*exec.Cmd, *buffer) {
		t.Helper()
		log := new(buffer)
		cmd := exec.Command(os.Args[0], "run")
		cmd.Env = append(os.Environ(), asProgram+"="+mode, "OFFHOOK_KAFKA_BROKERS="+freeAddress(t), "OFFHOOK_WEBHOOK_URL=http://x", "OFFHOOK_OPS_ADDR=off")
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it has ended where the test succeeded
			_ = cmd.Wait()
		})
		return cmd, log
	}
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(fmt.Sprint(signal), func(t *testing.T) {
			cmd, log := program(t, "run")
			kafkatest.Wait(t, 20*time.Second, "the start", func() bool { return strings.Contains(log.String(), "waiting for the Kafka brokers") })
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the process ends with %v:\n%s", err, log.String())
			}
			if !strings.Contains(log.String(), "signal: "+fmt.Sprint(signal)) {
				t.Errorf("the log does not say why it stopped:\n%s", log.String())
			}
		})
	}
	t.Run("twice", func(t *testing.T) {
		cmd, log := program(t, "hang")
		kafkatest.Wait(t, 20*time.Second, "begun", func() bool { return strings.Contains(log.String(), "begun") })
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		begun := time.Now()
		var err error
		for waiting := true; waiting; { // the first that comes sameSignal after the first of all ends it
			_ = cmd.Process.Signal(syscall.SIGTERM)
			select {
			case err = <-ended:
				waiting = false
			case <-time.After(50 * time.Millisecond):
				if time.Since(begun) > 20*time.Second {
					t.Fatal("it does not end")
				}
			}
		}
		if time.Since(begun) < sameSignal {
			t.Errorf("it ends at once after a signal that is the same one:\n%s", log.String())
		}
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() != exitFatal {
			t.Errorf("the process ends with %v:\n%s", exit, log.String())
		}
	})
}

func TestUnreadyIsSaid(t *testing.T) {
	v := &service{health: ops.NewHealth()}
	v.health.Stage("sink")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := awaitReady(t.Context(), ctx, v); err == nil {
		t.Error("a service that ended is ready")
	}
}
