package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

const (
	rebalancePartitions = 12                     // P, and as many of the topic of connections
	rebalanceProbes     = 20 * time.Millisecond  // between two probes of a partition
	rebalanceCalm       = 3 * time.Second        // how long all must be well to count as restored
	rebalanceLate       = 300 * time.Millisecond // what a probe may take where all is well
	rebalancePatience   = 3 * time.Minute        // for one case
)

// rebalanceCase is one way to change who is there.
type rebalanceCase struct {
	name          string
	before, after int // processes
	do            func(r *rebalance)
}

var rebalanceCases = []rebalanceCase{
	{"planned restart", 3, 3, func(r *rebalance) { r.stop(2); r.launch(2) }},
	{"kill -9, restart", 3, 3, func(r *rebalance) { r.kill(2); r.launch(2) }},
	{"kill -9, gone", 3, 2, func(r *rebalance) { r.kill(2) }},
	{"scale 2 to 3", 2, 3, func(r *rebalance) { r.launch(2) }},
	{"scale 3 to 2", 3, 2, func(r *rebalance) { r.stop(2) }},
	{"scale 3 to 2, removed", 3, 2, func(r *rebalance) { r.stop(2); r.remove(2) }},
}

// BenchmarkRebalance measures for how long a change of processes holds up the partitions that move, and those that stay, with
// OFFHOOK_BENCH_CONNECTIONS (1,000,000 by default) live connections:
//
//	go test ./e2e -run '^$' -bench Rebalance -benchtime 1x -timeout 30m
//
// It prints a table. In each partition two users come and go every 20 ms, without waiting for anything: one by a record in the
// inbox ("presence"), one by a record in im.connections, input partition n for inbox partition n ("chain"). The pause of a
// partition is the longest time from the moment at which a probe was due to that at which its user.onlinestatus was read, read
// committed, of the probes that were due from the event on. A partition is affected if its owner changed meanwhile in the
// presence group (or, in the chain, in route's too). Restored is when the groups have settled, every process is ready, and every
// probe has arrived, for three seconds at least. OFFHOOK_BENCH_CASES chooses cases by a part of their names.
func BenchmarkRebalance(b *testing.B) {
	connections := 1_000_000
	if text := os.Getenv("OFFHOOK_BENCH_CONNECTIONS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatalf("OFFHOOK_BENCH_CONNECTIONS: %v", err)
		}
		connections = n
	}
	c := kafkatest.Bench(b)
	r := &rebalance{B: b, c: c, topics: kafka.NewTopics(c.Prefix), connections: c.Prefix + "-im.connections", adm: kadm.NewClient(c.Client(b))}
	c.CreateTopic(b, r.connections, rebalancePartitions)
	c.CreateTopic(b, c.Prefix+"-im.messages", 1)
	if _, err := kafka.Ensure(b.Context(), c.Client(b), kafka.Spec{
		Topics: r.topics, Create: true, Partitions: rebalancePartitions, ReplicationFactor: -1, EventRetention: time.Hour, MaxRecordBytes: 1 << 20,
	}, slog.New(slog.DiscardHandler)); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	r.fill(connections)
	b.Logf("%d live connections written in %v", connections, time.Since(began).Round(time.Millisecond))
	for b.Loop() {
		var table strings.Builder
		w := tabwriter.NewWriter(io.MultiWriter(&table, os.Stderr), 0, 0, 2, ' ', 0)
		fmt.Fprint(w, rebalanceHeader)
		for _, instance := range []bool{false, true} {
			for _, tc := range rebalanceCases {
				id := "none"
				if instance {
					id = "instance"
				}
				if !strings.Contains(tc.name+", "+id, os.Getenv("OFFHOOK_BENCH_CASES")) || !instance && strings.HasSuffix(tc.name, "removed") {
					continue
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", tc.name, id, r.run(tc, instance))
				_ = w.Flush()
			}
		}
		b.Logf("pauses in ms, n of %d partitions, longest and median:\n%s", rebalancePartitions, &table)
	}
}

const rebalanceHeader = "case\tid\tbefore\taffected\tpresence\tchain\tunaffected\tpresence\tchain\trestored\n"

// rebalance is a set of processes and the probes through them.
type rebalance struct {
	*testing.B
	c           *kafkatest.Cluster
	topics      kafka.Topics
	connections string // the input topic
	adm         *kadm.Client
	runs        int

	instance  bool
	processes []*process // nil: none runs
}

// fill writes live connections, 1.5 a user, with uids of 16 bytes, as presence would.
func (r *rebalance) fill(connections int) {
	r.Helper()
	cl := r.c.Client(r, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(100_000))
	promise := kgo.AbortingFirstErrPromise(cl)
	headers := []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())}
	n := 0
	for u := 0; n < connections; u++ {
		uid := fmt.Sprintf("user%012d", u)
		for i := 0; i < 1+u%2 && n < connections; i++ {
			cl.Produce(r.Context(), &kgo.Record{
				Topic: r.topics.Presence, Partition: kafka.Partition(uid, rebalancePartitions), Headers: headers,
				Key: schemas.AppendPresenceKey(nil, schemas.PresenceKey{
					Kind: schemas.PresenceConnection, UID: uid, NodeID: schemas.ID(strconv.Itoa(n % 50)), ConnID: schemas.ID(strconv.Itoa(1_000_000 + n)),
				}),
				Value: schemas.AppendConnectionState(nil, schemas.ConnectionState{Open: true, Version: 1_700_000_000_000, OpenedAt: -1}),
			}, promise.Promise())
			n++
		}
	}
	if err := cl.Flush(r.Context()); err != nil {
		r.Fatal(err)
	}
	if err := promise.Err(); err != nil {
		r.Fatal(err)
	}
}

// run measures one case and returns its columns.
func (r *rebalance) run(tc rebalanceCase, instance bool) string {
	r.Helper()
	r.runs++
	r.instance, r.processes = instance, make([]*process, 3)
	defer r.over()
	for i := range tc.before {
		r.launch(i)
	}
	kafkatest.Wait(r, rebalancePatience, "the processes to share the partitions", func() bool { return r.settled(tc.before) })
	probes := r.probe()
	defer probes.end()
	// A join that was under way settles, and the processes get warm.
	calm := func(what string, also func() bool) time.Time {
		var since time.Time
		kafkatest.Wait(r, rebalancePatience, what, func() bool {
			switch {
			case !probes.flow() || !also():
				since = time.Time{}
			case since.IsZero():
				since = time.Now()
			}
			return !since.IsZero() && time.Since(since) > rebalanceCalm
		})
		return since
	}
	quiet := calm("probes to arrive", func() bool { return true })

	owners := r.watch()
	began := time.Now()
	tc.do(r)
	restored := calm("all to be restored after "+tc.name, func() bool { return r.settled(tc.after) })
	until := time.Now().Add(-rebalanceLate)
	moved := owners.end()

	before := probes.pauses(kindPresence, quiet, began.Add(-rebalanceLate))
	chain, presence := probes.pauses(kindChain, began, until), probes.pauses(kindPresence, began, until)
	var columns [2][2][]time.Duration // affected or not; presence, chain
	for p := range int32(rebalancePartitions) {
		at := 1
		if moved[r.topics.Inbox][p] {
			at = 0
		}
		columns[at][0] = append(columns[at][0], presence[p])
		if moved[r.connections][p] {
			at = 0
		}
		columns[at][1] = append(columns[at][1], chain[p])
	}
	format := func(pauses []time.Duration) string {
		if len(pauses) == 0 {
			return "-"
		}
		slices.Sort(pauses)
		return fmt.Sprintf("%d / %d", pauses[len(pauses)-1].Milliseconds(), pauses[len(pauses)/2].Milliseconds())
	}
	n := func(at int) string { return fmt.Sprintf("%d, %d", len(columns[at][0]), len(columns[at][1])) }
	return strings.Join([]string{
		format(before), n(0), format(columns[0][0]), format(columns[0][1]), n(1), format(columns[1][0]), format(columns[1][1]),
		restored.Sub(began).Round(10 * time.Millisecond).String(),
	}, "\t")
}

// launch starts process i, and does not wait for it.
func (r *rebalance) launch(i int) {
	r.Helper()
	env := []string{
		"OFFHOOK_KAFKA_BROKERS=" + strings.Join(r.c.Brokers, ","), "OFFHOOK_TOPIC_PREFIX=" + r.c.Prefix,
		"OFFHOOK_PARTITIONS=" + strconv.Itoa(rebalancePartitions),
		"OFFHOOK_CONNECTIONS_TOPIC=" + r.connections, "OFFHOOK_MESSAGES_TOPIC=" + r.c.Prefix + "-im.messages", "OFFHOOK_OPS_ADDR=127.0.0.1:0",
	}
	if r.instance {
		env = append(env, "OFFHOOK_INSTANCE_ID="+strconv.Itoa(i))
	}
	r.processes[i] = start(r, env, "processor")
}

func (r *rebalance) stop(i int) { r.processes[i].terminate(); r.processes[i] = nil }
func (r *rebalance) kill(i int) { r.processes[i].kill(); r.processes[i] = nil }

// groups are the groups of the stages.
func (r *rebalance) groups() []string {
	return []string{r.c.Prefix + ".route", r.c.Prefix + ".presence"}
}

// remove takes the instance id of a process that is gone out of the groups, as an operator would.
func (r *rebalance) remove(i int) {
	r.Helper()
	for _, group := range r.groups() {
		answers, err := r.adm.LeaveGroup(r.Context(), kadm.LeaveGroup(group).InstanceIDs(strconv.Itoa(i)).Reason("scaled in"))
		if err != nil || answers.Error() != nil {
			r.Fatalf("remove instance %d from %s: %v %v", i, group, err, answers.Error())
		}
	}
}

// over ends the processes and empties the groups.
func (r *rebalance) over() {
	for i, p := range r.processes {
		if p != nil && !r.Failed() {
			r.stop(i)
		}
	}
	kafkatest.Wait(r, rebalancePatience, "the groups to be empty", func() bool {
		described, err := r.adm.DescribeGroups(context.Background(), r.groups()...)
		if err != nil {
			return false
		}
		members := 0
		for _, g := range described {
			for _, m := range g.Members {
				members++
				if m.InstanceID != nil {
					_, _ = r.adm.LeaveGroup(context.Background(), kadm.LeaveGroup(g.Group).InstanceIDs(*m.InstanceID))
				}
			}
		}
		return members == 0
	})
}

// owners are the member ids by topic and partition; nil where a group is not stable.
type owners map[string]map[int32]string

// owners asks who owns what, how many members each group has, and how few partitions one of them.
func (r *rebalance) owners() (all owners, members []int, fewest int, stable bool) {
	described, err := r.adm.DescribeGroups(context.Background(), r.groups()...)
	if err != nil {
		return nil, nil, 0, false
	}
	all, stable, fewest = make(owners), true, rebalancePartitions
	for _, name := range r.groups() {
		g := described[name]
		stable = stable && g.Err == nil && g.State == "Stable"
		members = append(members, len(g.Members))
		for _, m := range g.Members {
			assigned, ok := m.Assigned.AsConsumer()
			if !ok {
				continue
			}
			n := 0
			for _, t := range assigned.Topics {
				if all[t.Topic] == nil {
					all[t.Topic] = make(map[int32]string)
				}
				for _, p := range t.Partitions {
					all[t.Topic][p] = m.MemberID
					n++
				}
			}
			fewest = min(fewest, n)
		}
	}
	return all, members, fewest, stable
}

// settled reports whether n processes share all partitions and are ready.
func (r *rebalance) settled(n int) bool {
	all, members, fewest, stable := r.owners()
	if !stable || fewest < rebalancePartitions/n || !slices.Equal(members, []int{n, n}) ||
		len(all[r.topics.Inbox]) != rebalancePartitions || len(all[r.connections]) != rebalancePartitions {
		return false
	}
	for _, p := range r.processes {
		if p == nil {
			continue
		}
		p.opsAddr()
		if status, _ := p.get("/readyz"); status != 200 {
			return false
		}
	}
	return true
}

// watching notes which partitions had more owners than one.
type watching struct {
	moved map[string]map[int32]bool
	stop  context.CancelFunc
	done  chan struct{}
}

func (r *rebalance) watch() *watching {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{moved: make(map[string]map[int32]bool), stop: cancel, done: make(chan struct{})}
	first, _, _, stable := r.owners()
	if !stable {
		r.Fatal("the groups are not stable")
	}
	go func() {
		defer close(w.done)
		for ctx.Err() == nil {
			// In a rebalance the members have no assignment for a moment.
			if all, _, _, stable := r.owners(); stable {
				for topic, partitions := range first {
					for p, owner := range partitions {
						if all[topic][p] != owner {
							if w.moved[topic] == nil {
								w.moved[topic] = make(map[int32]bool)
							}
							w.moved[topic][p] = true
						}
					}
				}
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	return w
}

func (w *watching) end() map[string]map[int32]bool {
	w.stop()
	<-w.done
	return w.moved
}

// The two ways of a probe.
const (
	kindPresence = iota
	kindChain
)

// probing writes probes and reads what comes of them.
type probing struct {
	start   time.Time // probe n is due at start + n × rebalanceProbes
	writing context.CancelFunc
	reading context.CancelFunc
	done    sync.WaitGroup

	mu      sync.Mutex
	arrived [2][rebalancePartitions][]time.Time // by kind, partition and n
}

// probe begins to probe.
func (r *rebalance) probe() *probing {
	r.Helper()
	uids := make(map[string]int32)
	var names [2][rebalancePartitions]string
	for kind := range names {
		for n := 0; slices.Contains(names[kind][:], ""); n++ {
			uid := fmt.Sprintf("probe.%d.%d.%d", r.runs, kind, n)
			if p := kafka.Partition(uid, rebalancePartitions); names[kind][p] == "" {
				names[kind][p], uids[uid] = uid, int32(kind)<<16|p
			}
		}
	}
	ends, err := r.adm.ListEndOffsets(r.Context(), r.topics.OnlineStatus)
	if err != nil {
		r.Fatal(err)
	}
	from := make(map[int32]kgo.Offset)
	ends.Each(func(o kadm.ListedOffset) { from[o.Partition] = kgo.NewOffset().At(o.Offset) })
	reader := r.c.Client(r, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{r.topics.OnlineStatus: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(250*time.Millisecond))
	writer := r.c.Client(r, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))

	p := &probing{start: time.Now()}
	writing, stopWriting := context.WithCancel(context.Background())
	reading, stopReading := context.WithCancel(context.Background())
	p.writing, p.reading = stopWriting, stopReading
	p.done.Go(func() {
		defer reader.Close()
		for reading.Err() == nil {
			fetches := reader.PollFetches(reading)
			now := time.Now()
			p.mu.Lock()
			fetches.EachRecord(func(record *kgo.Record) {
				at, ok := uids[string(record.Key)]
				if !ok {
					return
				}
				// "uid-flag-online-conn-…": probe 2n opens the connection n, probe 2n+1 closes it.
				f := strings.Split(strings.Trim(string(record.Value), `"`), "-")
				n, err := strconv.Atoi(f[3])
				if err != nil {
					r.Errorf("status %s: %v", record.Value, err)
					return
				}
				n *= 2
				if f[2] == "0" {
					n++
				}
				list := &p.arrived[at>>16][at&0xffff]
				for len(*list) <= n {
					*list = append(*list, time.Time{})
				}
				(*list)[n] = now
			})
			p.mu.Unlock()
		}
	})
	p.done.Go(func() {
		defer writer.Close()
		headers := []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())}
		failed := func(_ *kgo.Record, err error) {
			if err != nil {
				r.Errorf("produce a probe: %v", err)
			}
		}
		tick := time.NewTicker(rebalanceProbes)
		defer tick.Stop()
		for n := 0; ; {
			select {
			case <-writing.Done():
				_ = writer.Flush(context.Background())
				return
			case <-tick.C:
			}
			for ; !p.due(n).After(time.Now()); n++ {
				due := p.due(n).UnixMilli()
				online := schemas.Connection{Type: schemas.Online, ConnID: schemas.ID(strconv.Itoa(n / 2)), NodeID: "0", HasDeviceFlag: true, Time: due, OpenedAt: -1}
				if n%2 == 1 {
					online.Type, online.HasDeviceFlag = schemas.Offline, false
				}
				for partition := range int32(rebalancePartitions) {
					event := online
					event.UID = names[kindPresence][partition]
					writer.Produce(context.Background(), &kgo.Record{
						Topic: r.topics.Inbox, Partition: partition, Key: []byte(event.UID), Headers: headers, Value: schemas.AppendInboxConnection(nil, &event),
					}, failed)
					writer.Produce(context.Background(), &kgo.Record{
						Topic: r.connections, Partition: partition,
						Value: fmt.Appendf(nil, `{"type":%q,"uid":%q,"conn_id":%d,"timestamp":%d}`, event.Type, names[kindChain][partition], n/2, due),
					}, failed)
				}
			}
		}
	})
	return p
}

// due is when probe n is to be written.
func (p *probing) due(n int) time.Time { return p.start.Add(time.Duration(n) * rebalanceProbes) }

// flow reports whether every probe that was due some time ago has arrived.
func (p *probing) flow() bool {
	n := int((time.Since(p.start) - rebalanceLate) / rebalanceProbes)
	p.mu.Lock()
	defer p.mu.Unlock()
	for kind := range p.arrived {
		for partition := range p.arrived[kind] {
			if n < 0 || len(p.arrived[kind][partition]) < n {
				return false
			}
		}
	}
	return true
}

// pauses are the longest delays, by partition, of the probes that were due from one moment until another.
func (p *probing) pauses(kind int, from, to time.Time) []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	longest := make([]time.Duration, rebalancePartitions)
	for partition, list := range p.arrived[kind] {
		for n, at := range list {
			if due := p.due(n); !due.Before(from) && due.Before(to) {
				if at.IsZero() {
					at = time.Now() // a later one has overtaken it
				}
				longest[partition] = max(longest[partition], at.Sub(due))
			}
		}
	}
	return longest
}

// end stops the probes.
func (p *probing) end() {
	p.writing()
	p.reading()
	p.done.Wait()
}
