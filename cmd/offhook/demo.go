package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/offhook/offhook/internal/receiver"
	"github.com/offhook/offhook/internal/simulator"
	"github.com/offhook/offhook/internal/truth"
)

const (
	// demoStart is how long the demo's parts may take until they are ready.
	demoStart = 30 * time.Second

	// demoDrain is how long what was sent may take to arrive once the traffic has ended.
	demoDrain = 30 * time.Second

	demoPartitions = 4
	demoBrokers    = 1
)

type demoCommand struct {
	Duration time.Duration `help:"End after this time; 0: run until Ctrl-C."`
	Verbose  bool          `short:"v" help:"Show offhook's log at info, not only its warnings."`
	OpsAddr  string        `default:"off" help:"Where to serve /metrics, /livez and /readyz; off: nowhere."`
	Traffic  trafficFlags  `embed:""`
}

// Run is for kong.
func (f demoCommand) Run(c *call) error {
	stderr := &synchronized{w: c.stderr}
	// Everything but the traffic goes on when the context ends: what was sent is to arrive.
	background, cancel := context.WithCancelCause(context.WithoutCancel(c.ctx))
	defer cancel(nil)

	cluster, err := kfake.NewCluster(kfake.NumBrokers(demoBrokers))
	if err != nil {
		return fmt.Errorf("start the embedded broker: %w", err)
	}
	defer cluster.Close()

	var key [24]byte
	rand.Read(key[:])
	shown := &sampler{w: stderr, seen: make(map[string]bool)}
	r := receiver.New(receiver.Config{Secrets: [][]byte{key[:]}, Answer: shown.answer})
	level := slog.LevelWarn
	if f.Verbose {
		level = slog.LevelInfo
	}
	log := newLog(stderr, "text", level)
	server, err := listen(c.ctx, "127.0.0.1:0", r, log)
	if err != nil {
		return err
	}
	defer server.close()

	// The environment of a demo is its own.
	environ := environment{
		"OFFHOOK_PARTITIONS":      fmt.Sprint(demoPartitions),
		"OFFHOOK_WEBHOOK_URL":     "http://" + server.addr + "/",
		"OFFHOOK_WEBHOOK_SECRETS": secretPrefix + base64.StdEncoding.EncodeToString(key[:]),
		"OFFHOOK_OPS_ADDR":        f.OpsAddr,
	}
	for i, addr := range cluster.ListenAddrs() {
		if i > 0 {
			addr = environ["OFFHOOK_KAFKA_BROKERS"] + "," + addr
		}
		environ["OFFHOOK_KAFKA_BROKERS"] = addr
	}
	parts := []part{partProcessor, partSink}
	s, _, err := load(environ, append(parts, partProcess)...)
	if err != nil {
		return err
	}
	if err := createInputs(background, s, log); err != nil {
		return err
	}

	service := newService(s, log, parts...)
	served := make(chan struct{})
	var serveErr error
	go func() {
		defer close(served)
		serveErr = service.serve(background)
		cancel(serveErr) // wakes whoever waits below
	}()
	// ended stops the service and returns its error.
	ended := sync.OnceValue(func() error {
		cancel(nil)
		<-served
		return serveErr
	})
	defer func() { _ = ended() }() // reported below where it is the cause
	if err := awaitReady(c.ctx, background, service); err != nil {
		return errors.Join(ended(), err)
	}
	if c.ctx.Err() != nil { // nothing was sent
		if err := ended(); err != nil {
			return err
		}
		return conclude(c.stdout, r.Summary(nil))
	}
	line(stderr, "demo: broker on %s, receiver on http://%s; traffic begins", environ["OFFHOOK_KAFKA_BROKERS"], server.addr)

	live, stopLive := context.WithCancel(background)
	var printing sync.WaitGroup
	printing.Go(func() { r.Live(live, stderr) })
	defer printing.Wait()
	defer stopLive()

	traffic, stopTraffic := context.WithCancel(c.ctx)
	defer stopTraffic()
	defer context.AfterFunc(background, stopTraffic)() // a service that ends early ends the traffic
	cfg := f.Traffic.config()
	cfg.Brokers, cfg.Run, cfg.Duration, cfg.Settle = s.KafkaBrokers, "demo", f.Duration, time.Millisecond
	all := new(truth.Truth)
	// Messages begin when offhook knows who is online, however slow the machine is.
	settled := func(ctx context.Context, _ int64) bool { return r.WaitFor(ctx, all) == nil }
	summary, err := simulator.Run(traffic, cfg, simulator.Deps{Truth: all, Settled: settled})
	if err != nil {
		return errors.Join(background.Err(), fmt.Errorf("simulate traffic: %w", err))
	}
	line(stderr, "demo: traffic ended: %v", summary)

	drain, cancelDrain := context.WithTimeoutCause(background, demoDrain, fmt.Errorf("it did not arrive within %v", demoDrain))
	defer cancelDrain()
	if err := r.WaitFor(drain, all); err != nil {
		line(stderr, "demo: %v", err)
	}
	if err := ended(); err != nil {
		return err
	}
	stopLive()
	printing.Wait()
	server.close()
	return conclude(c.stdout, r.Summary(all))
}

// createInputs makes the input topics, which offhook never does.
func createInputs(ctx context.Context, s settings, log *slog.Logger) error {
	client, err := s.kafka().NewClient(log)
	if err != nil {
		return err
	}
	defer client.Close()
	for _, topic := range append(s.ConnectionsTopic, s.MessagesTopic...) {
		if _, err := kadm.NewClient(client).CreateTopic(ctx, demoPartitions, -1, nil, topic); err != nil {
			return fmt.Errorf("create input topic %s: %w", topic, err)
		}
	}
	return nil
}

// awaitReady waits until all stages are ready or ctx ends. It is an error if the service ends, or takes too long.
func awaitReady(ctx, serviceCtx context.Context, service *service) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.Now().Add(demoStart)
	for {
		unready := service.health.Unready()
		if len(unready) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready within %v: %v", demoStart, unready)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-serviceCtx.Done():
			return errors.New("offhook ended before it was ready")
		case <-ticker.C:
		}
	}
}

// sampler shows the first requests of each event.
type sampler struct {
	w    io.Writer
	mu   sync.Mutex
	seen map[string]bool // by event
}

// longestSample is how much of a body is shown.
const longestSample = 600

// answer is for receiver.Config.Answer; it takes everything.
func (s *sampler) answer(r *http.Request, body []byte) int {
	event := r.URL.Query().Get("event")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[event] {
		return 0
	}
	s.seen[event] = true
	shown := string(body)
	if len(shown) > longestSample {
		shown = strings.ToValidUTF8(shown[:longestSample], "") + "…"
	}
	line(s.w, "\nPOST %s\nwebhook-id: %s\nwebhook-timestamp: %s\nwebhook-signature: %s\n\n%s\n",
		r.URL.RequestURI(), r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), r.Header.Get("webhook-signature"), shown)
	return 0
}
