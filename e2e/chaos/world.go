package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// What an installation of the run is made of.
const (
	brokers          = 3
	inputPartitions  = 3 // of each input topic at first
	grownPartitions  = 5 // and once they have grown
	connectionsTopic = "im.connections"
	messagesTopic    = "im.messages"
	webhookTimeout   = 3 * time.Second
	connectionTTL    = 60 * time.Second
	closeMemory      = 10 * time.Minute // the default
	refusedUser      = "u1907-chaos"    // its statuses are refused, by every receiver
	refusedMessage   = "chaos-u1903-chaos-2"
	instances        = 2 // processors that have an instance id; the others are dynamic members
	stopPatience     = 60 * time.Second
)

// world is the installation.
type world struct {
	cfg  Config
	log  *slog.Logger
	dir  string // evidence
	root string // of the repository

	proxy     toxiproxy
	admin     *kadm.Client
	client    *kgo.Client
	direct    []string // the brokers' addresses, past the proxy
	proxied   []string // and through it
	offhook   string   // the binary
	kafkaEnv  []string // of scripts/kafka.sh
	toxics    *process
	receiver  *process
	simulator *process

	processors, sinks []*process
	bursts            []*process // simulators that were started under way
}

// newWorld builds and starts what the run needs, but for simulator and faults. On an error what was started is ended by close.
func newWorld(ctx context.Context, cfg Config, log *slog.Logger, dir, root string) (*world, error) {
	w := &world{cfg: cfg, log: log, dir: dir, root: root}
	log.Info("building")
	w.offhook = filepath.Join(dir, "offhook")
	server := filepath.Join(dir, "toxiproxy")
	if _, err := run(ctx, root, nil, "go", "build", "-o", w.offhook, "./cmd/offhook"); err != nil {
		return w, err
	}
	if _, err := run(ctx, root, nil, "go", "build", "-modfile=tools/go.mod", "-o", server, "github.com/Shopify/toxiproxy/v2/cmd/server"); err != nil {
		return w, err
	}
	ports, err := freePorts(2*brokers + 3)
	if err != nil {
		return w, err
	}
	local := func(n int) string { return "127.0.0.1:" + strconv.Itoa(ports[n]) }
	proxyPort, receiverPort, endpointPort := 2*brokers, 2*brokers+1, 2*brokers+2
	receiverAddr := local(receiverPort)

	log.Info("starting toxiproxy and brokers")
	w.proxy = toxiproxy{local(proxyPort)}
	w.toxics = w.process("toxiproxy", server, "-host", "127.0.0.1", "-port", strconv.Itoa(ports[proxyPort]))
	if err := w.toxics.start(); err != nil {
		return w, err
	}
	if err := answers(ctx, w.proxy.addr); err != nil {
		return w, err
	}
	var pairs []string
	for n := range brokers {
		pairs = append(pairs, fmt.Sprintf("%d:%d", ports[n], ports[brokers+n]))
		w.proxied = append(w.proxied, local(brokers+n))
		if err := w.proxy.proxy(ctx, brokerProxy(n), local(brokers+n), local(n)); err != nil {
			return w, err
		}
	}
	if err := w.proxy.proxy(ctx, endpointProxy, local(endpointPort), receiverAddr); err != nil {
		return w, err
	}
	w.kafkaEnv = []string{"KAFKA_STATE_DIR=" + filepath.Join(dir, "kafka"), "KAFKA_PROXIED=" + strings.Join(pairs, ","), "KAFKA_HEAP=640m"}
	line, err := w.kafka(ctx, "up", strconv.Itoa(brokers))
	if err != nil {
		return w, err
	}
	_, list, _ := strings.Cut(strings.TrimSpace(line), "=")
	w.direct = strings.Split(list, ",")
	if w.client, err = kgo.NewClient(kgo.SeedBrokers(w.direct...), kgo.MetadataMinAge(100*time.Millisecond)); err != nil {
		return w, fmt.Errorf("make a Kafka client: %w", err)
	}
	w.admin = kadm.NewClient(w.client)
	for _, topic := range []string{connectionsTopic, messagesTopic} {
		if _, err := w.admin.CreateTopic(ctx, inputPartitions, brokers, map[string]*string{"retention.ms": new("-1")}, topic); err != nil {
			return w, fmt.Errorf("create topic %s: %w", topic, err)
		}
	}

	w.receiver = w.process("receiver", w.offhook, "receive", "--addr", receiverAddr, "--journal", w.journal(), "--no-check",
		"--seed", strconv.FormatUint(cfg.Seed, 10), "--scenario", "refuse:"+refusedUser+":422", "--scenario", "refuse:"+refusedMessage+":400")
	if err := w.receiver.start(); err != nil {
		return w, err
	}
	if err := answers(ctx, receiverAddr); err != nil {
		return w, err
	}
	env := append(base(),
		"OFFHOOK_KAFKA_BROKERS="+strings.Join(w.proxied, ","),
		"OFFHOOK_PARTITIONS="+strconv.Itoa(cfg.Partitions),
		"OFFHOOK_CONNECTION_TTL="+connectionTTL.String(),
		"OFFHOOK_MESSAGES_START=earliest",
		"OFFHOOK_INBOX_KEEP=240h",
		"OFFHOOK_WEBHOOK_URL=http://"+local(endpointPort)+"/",
		"OFFHOOK_WEBHOOK_TIMEOUT="+webhookTimeout.String(),
		"OFFHOOK_WEBHOOK_FLUSH_INTERVAL="+cfg.Flush.String(),
		"OFFHOOK_OPS_ADDR=127.0.0.1:0",
		"OFFHOOK_LOG_FORMAT=text",
	)
	for n := range cfg.Processors {
		p := w.process(fmt.Sprintf("processor-%d", n+1), w.offhook, "processor")
		p.env = env
		if n < instances {
			p.env = append(env[:len(env):len(env)], "OFFHOOK_INSTANCE_ID="+p.name)
		}
		w.processors = append(w.processors, p)
	}
	for n := range cfg.Sinks {
		p := w.process(fmt.Sprintf("sink-%d", n+1), w.offhook, "sink")
		p.env = env
		w.sinks = append(w.sinks, p)
	}
	for _, p := range w.members() {
		if err := p.start(); err != nil {
			return w, err
		}
	}
	w.simulator = w.traffic("simulator", "chaos", cfg.Rate, cfg.Churn)
	return w, nil
}

func base() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func (w *world) process(name string, args ...string) *process {
	return &process{name: name, dir: w.dir, args: args, env: base()}
}

func (w *world) journal() string { return filepath.Join(w.dir, "journal") }

// acks is where a simulator notes what is acknowledged.
func (w *world) acks(run string) string { return filepath.Join(w.dir, "acks-"+run) }

// traffic is a simulator that is not started yet. Its users are its run's.
func (w *world) traffic(name, run string, rate, churn float64) *process {
	decimal := func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
	return w.process(name, w.offhook, "simulate", "--brokers", strings.Join(w.proxied, ","), "--run", run,
		"--seed", strconv.FormatUint(w.cfg.Seed, 10), "--acks", w.acks(run), "--users", strconv.Itoa(w.cfg.Users), "--groups", strconv.Itoa(w.cfg.Users/5),
		"--group-size", strconv.Itoa(w.cfg.GroupSize), "--zipf", "1.5", "--nodes", "8", "--rate", decimal(rate), "--churn", decimal(churn),
		"--crashes", "2", "--late", "0.02", "--doubled", "0.01", "--skew", "4m", "--heartbeat", (connectionTTL / 4).String(), "--settle", "0s")
}

// members are the processes of offhook.
func (w *world) members() []*process {
	return append(w.processors[:len(w.processors):len(w.processors)], w.sinks...)
}

// all are the processes that are to run until the run ends them.
func (w *world) all() []*process {
	all := w.members()
	for _, p := range []*process{w.toxics, w.receiver, w.simulator} {
		if p != nil {
			all = append(all, p)
		}
	}
	return append(all, w.bursts...)
}

func brokerProxy(n int) string { return fmt.Sprintf("broker-%d", n+1) }

const endpointProxy = "endpoint"

// kafka runs scripts/kafka.sh.
func (w *world) kafka(ctx context.Context, args ...string) (string, error) {
	return run(ctx, w.root, w.kafkaEnv, append([]string{"scripts/kafka.sh"}, args...)...)
}

// close ends what runs. The evidence stays.
func (w *world) close() error {
	var errs []error
	for _, p := range w.all() {
		if _, err := p.end(syscall.SIGKILL, stopPatience); err != nil && !errors.Is(err, errEnded) {
			errs = append(errs, err)
		}
	}
	if w.client != nil {
		w.client.Close()
	}
	if w.kafkaEnv != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		defer cancel()
		if _, err := w.kafka(ctx, "down"); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// The groups of the stages.
const (
	routeGroup    = "offhook.route"
	presenceGroup = "offhook.presence"
	sinkGroup     = "offhook.sink.default"
)

// lag is the sum over the partitions of groups, and -1 where it is not known.
func (w *world) lag(ctx context.Context, groups ...string) (int64, error) {
	lags, err := w.admin.Lag(ctx, groups...)
	if err != nil {
		return -1, fmt.Errorf("ask for lags: %w", err)
	}
	var all int64
	for _, name := range groups {
		l, ok := lags[name]
		if !ok {
			return -1, nil
		}
		if err := l.Error(); err != nil {
			return -1, fmt.Errorf("ask for the lag of %s: %w", name, err)
		}
		for _, topic := range l.Lag {
			for _, partition := range topic {
				if partition.Err != nil {
					return -1, fmt.Errorf("ask for the lag of %s: %w", name, partition.Err)
				}
				all += max(0, partition.Lag)
			}
		}
	}
	return all, nil
}

// await waits until ok, which says for people how far it is, and fails where ctx ends first.
func (w *world) await(ctx context.Context, what string, ok func(context.Context) (bool, string, error)) error {
	for said := time.Now(); ; {
		asked, cancel := context.WithTimeout(ctx, 20*time.Second)
		done, state, err := ok(asked)
		cancel()
		if err == nil && done {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait until %s (%s): %w", what, state, errors.Join(context.Cause(ctx), err))
		}
		if time.Since(said) > 10*time.Second {
			w.log.Info("waiting", "until", what, "now", state, "err", err)
			said = time.Now()
		}
		pause(ctx, 500*time.Millisecond)
	}
}

func (w *world) awaitLag(ctx context.Context, what, group string) error {
	return w.await(ctx, what, func(ctx context.Context) (bool, string, error) {
		lag, err := w.lag(ctx, group)
		return lag == 0, fmt.Sprintf("lag %d", lag), err
	})
}

// processed waits until the processors have done all that has come from the input. With a time to live they never rest: what they
// write themselves into the inbox, and read there, goes on.
func (w *world) processed(ctx context.Context) error {
	if err := w.awaitLag(ctx, "route has read the input", routeGroup); err != nil {
		return err
	}
	var ends kadm.ListedOffsets
	return w.await(ctx, "presence has read the inbox as route left it", func(ctx context.Context) (bool, string, error) {
		if ends == nil {
			listed, err := whole(w.admin.ListEndOffsets(ctx, inboxTopic))
			if err != nil {
				return false, "", fmt.Errorf("list the inbox's ends: %w", err)
			}
			ends = listed
		}
		committed, err := w.committedInbox(ctx)
		if err != nil {
			return false, "", err
		}
		var left int64
		ends.Each(func(end kadm.ListedOffset) { left += max(0, end.Offset-committed[end.Partition]) })
		return left == 0, fmt.Sprintf("%d records to read", left), nil
	})
}

// whole is what the brokers answered, and an error also where that is of a part alone.
func whole[T interface{ Error() error }](answer T, err error) (T, error) {
	if err == nil {
		err = answer.Error()
	}
	return answer, err
}

// committedInbox are the offsets that presence has committed.
func (w *world) committedInbox(ctx context.Context) (map[int32]int64, error) {
	fetched, err := whole(w.admin.FetchOffsets(ctx, presenceGroup))
	if err != nil {
		return nil, fmt.Errorf("fetch the offsets of %s: %w", presenceGroup, err)
	}
	committed := make(map[int32]int64)
	for p, o := range fetched[inboxTopic] {
		committed[p] = o.At
	}
	return committed, nil
}

// follow writes a summary of the journal's size and of lag now and then; it samples memory.
func (w *world) follow(ctx context.Context, out io.Writer, begun time.Time) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asked, cancel := context.WithTimeout(ctx, 5*time.Second)
		lag, err := w.lag(asked, routeGroup, presenceGroup, sinkGroup)
		cancel()
		if err != nil {
			lag = -1
		}
		var size int64
		if info, err := os.Stat(w.journal()); err == nil {
			size = info.Size()
		}
		var most int64
		for _, p := range w.members() {
			most = max(most, p.memory())
		}
		fmt.Fprintf(out, "%8s  lag %d, journal %d MiB, largest process %d MiB\n", time.Since(begun).Round(time.Second), lag, size>>20, most>>20)
	}
}
