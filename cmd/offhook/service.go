package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log" //nolint:depguard // to silence it
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/ops"
	"github.com/offhook/offhook/processor/presence"
	"github.com/offhook/offhook/processor/query"
	"github.com/offhook/offhook/processor/route"
	"github.com/offhook/offhook/sink"
)

const (
	// watchEvery is how often the owned topics are looked at for a change of their partitions.
	watchEvery = 30 * time.Second

	// overtime is what a stop may take beyond OFFHOOK_SHUTDOWN_TIMEOUT, which the stages keep by themselves.
	overtime = 5 * time.Second

	// memoryShare is how much of a container's memory the Go runtime aims to stay below.
	memoryShare = 0.9
)

// service is a process that runs some stages until it is stopped.
type service struct {
	settings   settings
	log        *slog.Logger
	health     *ops.Health
	registry   *prometheus.Registry
	stages     []*stage
	watchEvery time.Duration
	overtime   time.Duration
	presence   *presence.Query // of the process's own tables; nil: it runs no presence
}

// stage is one of a service's loops. run returns nil when ctx ends, and before that only with an error.
type stage struct {
	name   string
	health *ops.Stage
	run    func(ctx context.Context, d stageDeps) error
}

// stageDeps are what each stage is given.
type stageDeps struct {
	kafka      kafka.Config
	topics     kafka.Topics
	owned      kafka.Owned
	log        *slog.Logger
	registerer prometheus.Registerer
	stage      *ops.Stage
}

func newService(s settings, log *slog.Logger, parts ...part) *service {
	v := &service{settings: s, log: log, health: ops.NewHealth(), registry: ops.NewRegistry(), watchEvery: watchEvery, overtime: overtime}
	v.registry.MustRegister(buildInfo())
	if slices.Contains(parts, partProcessor) {
		v.add("route", s.runRoute)
		v.presence = new(presence.Query)
		v.add("presence", func(ctx context.Context, d stageDeps) error { return s.runPresence(ctx, d, v.presence) })
	}
	if slices.Contains(parts, partSink) {
		v.add("sink", s.runSink)
	}
	return v
}

func (v *service) add(name string, run func(context.Context, stageDeps) error) {
	v.stages = append(v.stages, &stage{name: name, health: v.health.Stage(name), run: run})
}

func (s *settings) runRoute(ctx context.Context, d stageDeps) error {
	return route.Run(ctx, route.Config{
		ConnectionsTopics: s.ConnectionsTopic, MessagesTopics: s.MessagesTopic, ConnectionsStart: s.ConnectionsStart, MessagesStart: s.MessagesStart,
		Prefix: string(s.TopicPrefix), InstanceID: string(s.InstanceID), CommitInterval: time.Duration(s.CommitInterval),
		MaxRecordBytes: int(s.MaxRecordBytes), SystemUIDs: s.SystemUIDs, NotifyOrderBy: s.NotifyOrderBy,
		ConnectionTTL:   time.Duration(s.ConnectionTTL),
		ShutdownTimeout: time.Duration(s.ShutdownTimeout),
	}, route.Deps{Kafka: d.kafka, Topics: d.topics, Owned: d.owned, Log: d.log, Registerer: d.registerer, Stage: d.stage})
}

func (s *settings) runPresence(ctx context.Context, d stageDeps, query *presence.Query) error {
	return presence.Run(ctx, presence.Config{
		Prefix: string(s.TopicPrefix), InstanceID: string(s.InstanceID), CommitInterval: time.Duration(s.CommitInterval),
		MaxRecordBytes: int(s.MaxRecordBytes), CloseMemory: time.Duration(s.CloseMemory), InboxKeep: time.Duration(s.InboxKeep),
		OnlineFlags: s.OnlineDeviceFlags, BackgroundIsOnline: bool(s.BackgroundIsOnline), ConnectionTTL: time.Duration(s.ConnectionTTL),
		AdvertisedURL:   string(s.AdvertisedURL),
		ShutdownTimeout: time.Duration(s.ShutdownTimeout),
	}, presence.Deps{Kafka: d.kafka, Topics: d.topics, Owned: d.owned, Log: d.log, Registerer: d.registerer, Stage: d.stage, Query: query})
}

func (s *settings) runSink(ctx context.Context, d stageDeps) error {
	cfg, err := s.sinkConfig()
	if err != nil {
		return err
	}
	credentials, err := s.credentials(d.log)
	if err != nil {
		return err
	}
	cfg.Current = credentials.current.Load
	ctx, stop := context.WithCancel(ctx)
	var polling sync.WaitGroup
	polling.Go(func() { credentials.poll(ctx) })
	defer polling.Wait()
	defer stop()
	return sink.Run(ctx, cfg, sink.Deps{Kafka: d.kafka, Topics: d.topics, Owned: d.owned, Log: d.log, Registerer: d.registerer, Stage: d.stage})
}

// limitMemory makes the Go runtime heed the container's memory limit.
func limitMemory(log *slog.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryShare))
	if err != nil && !errors.Is(err, memlimit.ErrNoLimit) {
		log.Debug("no memory limit is set", "error", err)
	} else if err == nil && limit > 0 {
		log.Debug("memory limit", "bytes", limit)
	}
}

// errStopped is the cause with which the stages are stopped once ctx has ended or one of them has.
var errStopped = errors.New("the process is stopping")

// serve runs the stages until ctx ends (nil) or one of them does (its error); then all end.
func (v *service) serve(ctx context.Context) error {
	config := v.settings.kafka()
	client, err := config.NewClient(v.log)
	if err != nil {
		return err
	}
	defer client.Close()
	api, err := v.api(client)
	if err != nil {
		return err
	}
	// The servers outlive the stages: a probe during the stop gets its answer.
	opsCtx, stopOps := context.WithCancel(context.WithoutCancel(ctx))
	var handler http.Handler
	if api != nil {
		handler = api
		defer api.Close()
	}
	wait, err := ops.Serve(opsCtx, string(v.settings.OpsAddr), v.registry, v.health, handler, v.log)
	if err != nil {
		stopOps()
		return fmt.Errorf("OFFHOOK_OPS_ADDR: %w", err)
	}
	defer wait()
	defer stopOps()

	for _, s := range v.stages {
		s.health.SetWaiting(true)
	}
	spec := v.settings.spec()
	owned, err := kafka.Ensure(ctx, client, spec, v.log)
	if ctx.Err() != nil {
		v.log.Info("stopped", "cause", context.Cause(ctx))
		return nil
	}
	if err != nil {
		return err
	}
	for _, s := range v.stages {
		s.health.SetWaiting(false)
	}

	if api != nil {
		api.Begin(owned.Partitions)
	}
	stagesCtx, stop := context.WithCancelCause(ctx)
	defer stop(errStopped)
	type end struct {
		name string
		err  error
	}
	ends := make(chan end, len(v.stages)+1)
	running := make(map[string]bool)
	begin := func(name string, run func() error) {
		running[name] = true
		go func() { ends <- end{name, run()} }()
	}
	for _, s := range v.stages {
		begin(s.name, func() error {
			return s.run(stagesCtx, stageDeps{
				kafka: config, topics: spec.Topics, owned: owned, log: v.log, registerer: v.registry, stage: s.health,
			})
		})
	}
	begin("topics", func() error { return kafka.WatchPartitions(stagesCtx, client, owned, v.watchEvery) })
	v.log.Info("started", "stages", len(v.stages), "partitions", owned.Partitions)

	var first error
	stopping := ctx.Done()
	var deadline <-chan time.Time
	bound := func() {
		stop(errStopped)
		stopping = nil
		if deadline == nil {
			deadline = time.After(time.Duration(v.settings.ShutdownTimeout) + v.overtime)
		}
	}
	for len(running) > 0 {
		select {
		case <-stopping:
			v.log.Info("stopping", "cause", context.Cause(ctx))
			bound()
		case e := <-ends:
			delete(running, e.name)
			if e.err == nil && stagesCtx.Err() == nil {
				e.err = errors.New("it ended by itself")
			}
			if e.err != nil && first == nil {
				first = fmt.Errorf("%s: %w", e.name, e.err)
			}
			bound()
		case <-deadline:
			var names []string
			for name := range running {
				names = append(names, name)
			}
			slices.Sort(names)
			return errors.Join(first, fmt.Errorf("not stopped within OFFHOOK_SHUTDOWN_TIMEOUT: %s", strings.Join(names, ", ")))
		}
	}
	if first == nil {
		v.log.Info("stopped")
	}
	return first
}

// api is the query API, nil where it is off.
func (v *service) api(client *kgo.Client) (*query.API, error) {
	token := string(v.settings.QueryToken)
	if token == "" && !v.settings.OpsAddr.loopback() {
		return nil, nil
	}
	group := string(v.settings.TopicPrefix) + "." + presence.Stage
	deps := query.Deps{
		Owners: query.NewGroup(client, group, kafka.NewTopics(string(v.settings.TopicPrefix)).Inbox), Log: v.log, Registerer: v.registry,
	}
	if v.presence != nil {
		deps.Local = v.presence
	}
	return query.New(query.Config{Token: token, Group: group}, deps)
}

// serveParts is what run, processor and sink do.
func serveParts(c *call, parts ...part) error {
	s, log, err := c.settings(append(parts, partProcess)...)
	if err != nil {
		return err
	}
	limitMemory(log)
	return newService(s, log, parts...).serve(c.ctx)
}

// muteStandardLog keeps what net/http says of a peer out of the log: it quotes what the peer has sent ("Unsolicited response
// received on idle HTTP channel starting with …"), and that may be a request of ours, with its secrets. Our own servers have
// loggers of their own.
func muteStandardLog() { stdlog.SetOutput(io.Discard) }

// line writes a line, for people; one that cannot be written stops nothing.
func line(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }

// synchronized is a writer that several goroutines share.
type synchronized struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *synchronized) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}
