// Package ops serves what operators look at: metrics, liveness and readiness.
//
// A process is ready when each of its stages has said so and none waits for the broker. It is live as long as no stage
// is stuck: its loop has gone round within the last 60 s, or waits for the broker, which restarting would not mend.
// A process without stages is both.
package ops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Off is the address that serves nothing.
const Off = "off"

const (
	// stuckAfter is how long a loop may take to go round.
	stuckAfter = 60 * time.Second

	// drain is how long the server's end waits for a scrape under way.
	drain = 2 * time.Second
)

// Health gathers the state of the process's stages.
type Health struct {
	mu     sync.Mutex
	stages []*Stage
}

// NewHealth returns a Health without stages, which is ready and live.
func NewHealth() *Health { return &Health{} }

// Stage adds a stage (route, presence, sink), not ready at first.
func (h *Health) Stage(name string) *Stage {
	s := &Stage{name: name, beat: time.Now()}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stages = append(h.stages, s)
	return s
}

// Unready says for each stage that is not ready why; empty: the process is ready.
func (h *Health) Unready() []string { return h.collect((*Stage).unready) }

// Stuck says for each stage that is stuck since when; empty: the process is live.
func (h *Health) Stuck() []string { return h.collect((*Stage).stuck) }

func (h *Health) collect(problem func(*Stage) string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var problems []string
	for _, s := range h.stages {
		if p := problem(s); p != "" {
			problems = append(problems, p)
		}
	}
	return problems
}

// Stage is one stage's state. All methods may be called from any goroutine, and on a nil Stage.
type Stage struct {
	name string

	mu      sync.Mutex
	ready   bool
	waiting bool
	beat    time.Time // of the last Beat, or of the end of waiting
}

// SetReady says whether the stage has joined its group and restored what it was assigned.
func (s *Stage) SetReady(ready bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = ready
}

// Beat says that the stage's loop has gone round. A stage whose last Beat is more than 60 s ago, and that is not
// waiting for the broker, makes the process not live.
func (s *Stage) Beat() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat = time.Now()
}

// SetWaiting says that the stage waits for the broker: it is not ready, and live without Beat.
func (s *Stage) SetWaiting(waiting bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = waiting
	s.beat = time.Now()
}

func (s *Stage) unready() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.waiting:
		return s.name + ": waits for the Kafka brokers"
	case !s.ready:
		return s.name + ": has not joined its group and restored its partitions yet"
	}
	return ""
}

func (s *Stage) stuck() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if since := time.Since(s.beat); !s.waiting && since > stuckAfter {
		return fmt.Sprintf("%s: its loop has been stuck for %s", s.name, since.Truncate(time.Second))
	}
	return ""
}

// NewRegistry returns a registry with the metrics of the process and of the Go runtime.
func NewRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// Handler serves /metrics, /livez and /readyz: 200, or 503 with a line for each stage that is the cause; and api, where it is not
// nil, at /v1/.
func Handler(reg *prometheus.Registry, h *Health, api http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	mux.Handle("GET /livez", answer(h.Stuck))
	mux.Handle("GET /readyz", answer(h.Unready))
	if api != nil {
		mux.Handle("/v1/", api)
	}
	return mux
}

func answer(problems func() []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		lines := problems()
		if len(lines) == 0 {
			lines = []string{"ok"}
		} else {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, strings.Join(lines, "\n"))
	})
}

// Serve listens on addr ([Off]: serves nothing) until ctx ends: see [Handler]. It returns once it listens; an address
// in use is an error. wait waits for the server's end.
func Serve(ctx context.Context, addr string, reg *prometheus.Registry, h *Health, api http.Handler, log *slog.Logger) (wait func(), err error) {
	if addr == Off {
		return func() {}, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics and health: %w", err)
	}
	server := &http.Server{
		Handler:           Handler(reg, h, api),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	log.Info("serving metrics and health", "addr", listener.Addr().String())
	var wg sync.WaitGroup
	served := make(chan struct{})
	wg.Go(func() {
		defer close(served)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serving metrics and health ended", "error", err)
		}
	})
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-served:
		}
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		if server.Shutdown(stop) != nil {
			server.Close()
		}
	})
	return wg.Wait, nil
}
