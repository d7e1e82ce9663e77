package ops_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/ops"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(t *testing.T, handler http.Handler, path string) (int, string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	return recorder.Code, recorder.Body.String()
}

func want(t *testing.T, handler http.Handler, path string, code int, substring string) {
	t.Helper()
	got, body := get(t, handler, path)
	if got != code || !strings.Contains(body, substring) {
		t.Errorf("%s answers %d %q, want %d and %q", path, got, body, code, substring)
	}
}

func TestReady(t *testing.T) {
	health := ops.NewHealth()
	handler := ops.Handler(ops.NewRegistry(), health, nil)
	want(t, handler, "/readyz", 200, "ok")
	route, sink := health.Stage("route"), health.Stage("sink")
	want(t, handler, "/readyz", 503, "route:")
	want(t, handler, "/readyz", 503, "sink:")
	route.SetReady(true)
	if _, body := get(t, handler, "/readyz"); strings.Contains(body, "route") {
		t.Errorf("a stage that is ready is named: %q", body)
	}
	sink.SetReady(true)
	want(t, handler, "/readyz", 200, "ok")
	sink.SetWaiting(true)
	want(t, handler, "/readyz", 503, "sink: waits")
	sink.SetWaiting(false)
	want(t, handler, "/readyz", 200, "ok")
	route.SetReady(false)
	want(t, handler, "/readyz", 503, "route:")
}

func TestLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		health := ops.NewHealth()
		handler := ops.Handler(ops.NewRegistry(), health, nil)
		stage := health.Stage("presence")
		time.Sleep(time.Minute)
		want(t, handler, "/livez", 200, "ok")
		time.Sleep(time.Second)
		want(t, handler, "/livez", 503, "presence: its loop has been stuck for 1m1s")
		stage.Beat()
		want(t, handler, "/livez", 200, "ok")
		stage.SetWaiting(true)
		time.Sleep(time.Hour)
		want(t, handler, "/livez", 200, "ok")
		stage.SetWaiting(false)
		want(t, handler, "/livez", 200, "ok") // its minute begins now
		time.Sleep(2 * time.Minute)
		want(t, handler, "/livez", 503, "presence:")
	})
}

func TestNilStage(*testing.T) {
	var stage *ops.Stage
	stage.Beat()
	stage.SetReady(true)
	stage.SetWaiting(true)
}

func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var text bytes.Buffer
	wait, err := ops.Serve(ctx, "127.0.0.1:0", ops.NewRegistry(), ops.NewHealth(), nil, slog.New(slog.NewTextHandler(&text, nil)))
	if err != nil {
		t.Fatal(err)
	}
	_, addr, ok := strings.Cut(strings.TrimSpace(text.String()), "addr=")
	if !ok {
		t.Fatalf("the address is not logged: %s", text.String())
	}
	defer http.DefaultClient.CloseIdleConnections()
	response, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("/metrics answers %d, %v", response.StatusCode, err)
	}
	for _, metric := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(string(body), "\n"+metric+" ") {
			t.Errorf("no metric %s", metric)
		}
	}
	if _, err := ops.Serve(ctx, addr, ops.NewRegistry(), ops.NewHealth(), nil, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("an address in use is no error")
	}
	cancel()
	wait()
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("it listens after its end")
	}
}

func TestServeOff(t *testing.T) {
	wait, err := ops.Serve(t.Context(), ops.Off, ops.NewRegistry(), ops.NewHealth(), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	wait()
}
