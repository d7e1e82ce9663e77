package simulator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/offhook/offhook/internal/truth"
)

func upsetConfig() Config {
	cfg := testConfig()
	cfg.Nodes, cfg.Zipf, cfg.Crashes, cfg.Late, cfg.Doubled = 5, 1.3, 10, 0.05, 0.05
	cfg.Skew, cfg.Heartbeat = 2*time.Minute, 5*time.Second
	return cfg
}

// timed is a record as it was written, and when by the schedule.
type timed struct {
	*record
	at    time.Duration
	made  time.Duration   // when it was made; copies have that of the first
	event connectionEvent // of a connection record
	node  uint64          // of it
	conn  uint64
}

// epoch is the schedule's beginning, Unix ms.
const epoch = 1_700_000_000_000

// written plays traffic for a time, with a connection event and a message each 20 ms, as Run does.
func written(t *testing.T, traffic *traffic, length time.Duration) (all []timed) {
	t.Helper()
	var at time.Duration
	made := make(map[*byte]time.Duration) // by where the value is: copies share it
	add := func(r *record) bool {
		if r == nil {
			return true
		}
		first, again := made[&r.value[0]]
		if !again {
			first = at
		}
		w := timed{record: r, at: at, made: first}
		if !r.message {
			if err := json.Unmarshal(r.value, &w.event); err != nil {
				t.Fatal(err)
			}
			w.node, w.conn = number(t, w.event.NodeID), number(t, w.event.ConnID)
		}
		all = append(all, w)
		return true
	}
	now := func() int64 { return epoch + at.Milliseconds() }
	traffic.first(now, add)
	for ; at < length; at += 20 * time.Millisecond {
		traffic.advance(at)
		for r := traffic.due(now()); r != nil; r = traffic.due(now()) {
			add(r)
		}
		for _, r := range []*record{traffic.connection(now()), traffic.message(now())} {
			made[&r.value[0]] = at
			add(traffic.disturb(r))
		}
	}
	for r := traffic.rest(now()); r != nil; r = traffic.rest(now()) {
		add(r)
	}
	return all
}

func number(t *testing.T, id any) (n uint64) {
	t.Helper()
	if id == nil {
		return 0
	}
	var text string
	if s, ok := id.(string); ok {
		text = s
	} else {
		text = fmt.Sprintf("%.0f", id)
	}
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUpsetsOfASeedRepeat(t *testing.T) {
	play := func(seed uint64) []string {
		cfg := upsetConfig()
		cfg.Seed = seed
		var texts []string
		for _, w := range written(t, newTraffic(cfg), time.Minute) {
			texts = append(texts, string(w.value))
		}
		return texts
	}
	first := play(3)
	if !slices.Equal(first, play(3)) {
		t.Error("two runs of seed 3 differ")
	}
	if slices.Equal(first, play(4)) {
		t.Error("seed 4 is as seed 3")
	}
}

// TestWhoIsThereAmidUpsets reads the records by the design's rules: whatever crashes, comes twice and by whatever clock, in
// the end those connections are open that the simulator believes to be.
func TestWhoIsThereAmidUpsets(t *testing.T) {
	for what, change := range map[string]func(*Config){
		"crashes":   func(c *Config) { c.Crashes = 20 },
		"skew":      func(c *Config) { c.Skew = 5 * time.Minute },
		"doubled":   func(c *Config) { c.Doubled = 0.3 },
		"all three": func(c *Config) { c.Crashes, c.Skew, c.Doubled = 20, 5*time.Minute, 0.3 },
	} {
		cfg := testConfig()
		cfg.Nodes = 4
		change(&cfg)
		traffic := newTraffic(cfg)
		log := rules{make(map[name]entry), make(map[name]int64), make(map[string]int64), make(map[string][]string)}
		for _, w := range written(t, traffic, 3*time.Minute) {
			if !w.message {
				log.apply(t, w.value)
			}
		}
		for node := range traffic.upsets.down { // of those still down nobody has said that they are gone
			if traffic.upsets.down[node] {
				log.apply(t, traffic.startOf(uint64(node), epoch+time.Hour.Milliseconds()).value)
			}
		}
		want, got := make(map[string]bool), make(map[string]bool)
		for _, p := range traffic.people {
			for _, e := range p.opened {
				want[fmt.Sprint(p.uid, " ", e.connection.Node, " ", e.connection.Conn)] = true
			}
		}
		for n := range log.open {
			got[n.uid+" "+n.node+" "+n.conn] = true
		}
		if diff := gocmp.Diff(want, got); diff != "" || len(want) < 50 {
			t.Errorf("%s: %d connections are open (-simulator +rules):\n%s", what, len(want), diff)
		}
	}
}

func TestCrash(t *testing.T) {
	cfg := testConfig()
	cfg.Nodes, cfg.Crashes = 4, 12
	traffic := newTraffic(cfg)
	all := written(t, traffic, 5*time.Minute)
	type connection struct {
		uid        string
		node, conn uint64
	}
	open := make(map[connection]bool)
	latest := make(map[uint64]time.Duration) // of a node's events
	starts := make(map[uint64]int)
	again, elsewhere, residents := 0, 0, 0
	lost := make(map[string]uint64) // by uid: the node that crashed with a connection
	for _, w := range all {
		c := connection{w.event.UID, w.node, w.conn}
		switch w.event.Type {
		case "":
		case "node_started":
			if w.node == traffic.crashNode() {
				continue
			}
			starts[w.node]++
			gone := 0
			for c := range open {
				if c.node == w.node {
					gone++
					lost[c.uid] = w.node
					delete(open, c)
				}
			}
			if gone == 0 || w.key != nodeKey(w.node) {
				t.Errorf("node %d starts with %d connections gone, with key %s", w.node, gone, w.key)
			}
		case "online", "heartbeat":
			if w.event.Type == "heartbeat" && w.event.DeviceFlag == nil {
				continue
			}
			if from, ok := lost[c.uid]; ok && !open[c] {
				if again++; c.node != from {
					elsewhere++
				}
				delete(lost, c.uid)
			}
			open[c] = true
			if counted := w.node%2 == 0 && w.node <= 4; counted != (w.event.OpenedAt != 0) || w.event.OpenedAt > w.event.Timestamp {
				t.Fatalf("%s: opened_at on the wrong node, or after its event", w.value)
			}
		case "offline":
			delete(open, c)
		}
		latest[w.node] = w.at
	}
	for node := uint64(1); node <= 4; node++ {
		if starts[node] < 5 {
			t.Errorf("node %d starts %d times, want 5 and more of 60 crashes", node, starts[node])
		}
	}
	if int64(len(slices.Collect(maps.Keys(starts)))) != 4 || traffic.upsets.crashes < 40 || traffic.upsets.crashes > 80 {
		t.Errorf("%d crashes, starts by node %v; want about 60", traffic.upsets.crashes, starts)
	}
	if again < 100 || elsewhere < again/3 {
		t.Errorf("%d users come back, %d of them on another node", again, elsewhere)
	}
	for _, i := range traffic.residents {
		if len(traffic.people[i].opened) > 0 {
			residents++
		}
	}
	if residents < len(traffic.residents)*8/10 {
		t.Errorf("%d of %d residents are there in the end", residents, len(traffic.residents))
	}
	reused := make(map[connection]int64)
	n := 0
	for _, w := range all {
		c := connection{"", w.node, w.conn}
		if at, ok := reused[c]; ok && w.event.OpenedAt > at {
			n++
		}
		reused[c] = max(reused[c], w.event.OpenedAt)
	}
	if n < 100 {
		t.Errorf("%d conn_ids are used again", n)
	}
}

func TestNobodyIsHeardFromANodeThatIsDown(t *testing.T) {
	cfg := testConfig()
	cfg.Nodes, cfg.Crashes, cfg.Heartbeat = 4, 12, 5*time.Second
	traffic := newTraffic(cfg)
	wasDown := make([]time.Duration, cfg.Nodes+2)
	for at := time.Duration(0); at < 3*time.Minute; at += 20 * time.Millisecond {
		traffic.advance(at)
		now := epoch + at.Milliseconds()
		for r := traffic.due(now); ; r = traffic.due(now) {
			for node, down := range traffic.upsets.down {
				if down {
					wasDown[node] += 20 * time.Millisecond
				}
			}
			if r == nil {
				break
			}
			var e connectionEvent
			if err := json.Unmarshal(r.value, &e); err != nil {
				t.Fatal(err)
			}
			if node := number(t, e.NodeID); traffic.upsets.down[node] && e.Type != "offline" {
				t.Fatalf("%s, though its node is down", r.value)
			}
		}
		for i := range traffic.people {
			for _, e := range traffic.people[i].opened {
				if traffic.upsets.down[e.connection.Node] {
					t.Fatalf("%s has a connection to node %d, which is down", traffic.people[i].uid, e.connection.Node)
				}
			}
		}
		if r := traffic.connection(now); strings.Contains(string(r.value), `"online"`) {
			var e connectionEvent
			if err := json.Unmarshal(r.value, &e); err != nil {
				t.Fatal(err)
			}
			if e.DeviceFlag != nil && traffic.upsets.down[number(t, e.NodeID)] && e.Timestamp == now {
				t.Fatalf("%s, though its node is down", r.value)
			}
		}
	}
	for node := 1; node <= cfg.Nodes; node++ {
		if wasDown[node] < 2*time.Second {
			t.Errorf("node %d was down for %s", node, wasDown[node])
		}
	}
}

func TestLateAndDoubled(t *testing.T) {
	cfg := testConfig()
	cfg.Late, cfg.Doubled = 0.1, 0.2
	traffic := newTraffic(cfg)
	all := written(t, traffic, time.Minute)
	var late, behind, copies, atOnce, doubled int
	written := make(map[*byte]time.Duration) // when the first was
	passed := make(map[string]int64)         // of a user: the latest time that was written
	for _, w := range all {
		first, again := written[&w.value[0]]
		switch {
		case again:
			if copies++; w.at-first <= 20*time.Millisecond {
				atOnce++
			}
			if w.message {
				doubled++
			}
			if w.at-w.made > mostLate+20*time.Millisecond {
				t.Errorf("a copy comes %s late", w.at-w.made)
			}
			continue
		case w.at > w.made+20*time.Millisecond:
			if late++; w.message || w.at-w.made > mostLate+20*time.Millisecond {
				t.Errorf("%s comes %s late", w.value, w.at-w.made)
			}
		}
		written[&w.value[0]] = w.at
		if !w.message {
			if w.event.Timestamp < passed[w.event.UID] {
				behind++
			}
			passed[w.event.UID] = max(passed[w.event.UID], w.event.Timestamp)
		}
	}
	// 3,000 events and as many messages.
	if late < 200 || late > 350 || traffic.upsets.late < 250 || traffic.upsets.late > 350 {
		t.Errorf("%d connection events come late, %d are counted, want about 300", late, traffic.upsets.late)
	}
	if behind < 100 {
		t.Errorf("%d events come behind later ones of their user", behind)
	}
	if traffic.upsets.doubled != int64(copies) || copies < 1_100 || copies > 1_300 || atOnce < copies/4 || atOnce > copies*3/4 || doubled < copies/3 {
		t.Errorf("%d copies, %d of them at once and %d of messages, %d are counted, want about 1200", copies, atOnce, doubled, traffic.upsets.doubled)
	}
	if len(written) < 6_000+len(traffic.residents) {
		t.Errorf("%d records, want 6000 and the residents' first", len(written))
	}
}

func TestSkew(t *testing.T) {
	cfg := testConfig()
	cfg.Nodes, cfg.Skew, cfg.Crashes = 20, 4*time.Minute, 6
	latest := make(map[uint64]int64)
	ahead := make(map[uint64]time.Duration)
	seen := make(map[string]bool)
	for _, w := range written(t, newTraffic(cfg), time.Minute) {
		if w.message {
			if m := string(w.value); !strings.Contains(m, fmt.Sprintf(`"timestamp":%d`, epoch+w.at.Milliseconds())) {
				t.Fatalf("%s has another time than %s", m, w.at)
			}
			continue
		}
		if seen[string(w.value)] { // said again, as a late producer does
			continue
		}
		seen[string(w.value)] = true
		if w.event.Timestamp >= latest[w.node] {
			latest[w.node] = w.event.Timestamp
		} else {
			t.Fatalf("the clock of node %d goes back: %s", w.node, w.value)
		}
		if _, known := ahead[w.node]; !known {
			ahead[w.node] = time.Duration(w.event.Timestamp-epoch)*time.Millisecond - w.at
		}
	}
	offsets := slices.Sorted(maps.Values(ahead))
	if apart := offsets[len(offsets)-1] - offsets[0]; len(offsets) != 21 || apart > cfg.Skew || apart < cfg.Skew/2 || offsets[0] >= 0 {
		t.Errorf("the clocks of %d nodes are %s apart, want up to %s", len(offsets), apart, cfg.Skew)
	}
}

// TestHeartbeats measures how long nothing is heard of the connections that are open.
func TestHeartbeats(t *testing.T) {
	cfg := testConfig()
	cfg.Users, cfg.Nodes, cfg.Heartbeat = 100, 3, 10*time.Second // of which node 2 and the one that crashes speak for all
	length := 10 * time.Minute
	type connection struct{ node, conn uint64 }
	sign := make(map[connection]time.Duration)
	open := make(map[connection]bool)
	var longest, short int
	var silent, forever [2]int // by whether the node speaks for its connections
	speaks := func(c connection) int { return 1 - int(c.node%2) }
	gap := func(c connection, at time.Duration) {
		if !open[c] {
			return
		}
		switch d := at - sign[c]; {
		case d > cfg.Heartbeat*silence+cfg.Heartbeat:
			longest++
		case d > cfg.Heartbeat+40*time.Millisecond:
			silent[speaks(c)]++
		default:
			short++
		}
		sign[c] = at
	}
	for _, w := range written(t, newTraffic(cfg), length) {
		c := connection{w.node, w.conn}
		switch w.event.Type {
		case "online", "heartbeat":
			if w.event.UID == "" { // the node's
				for c := range open {
					if c.node == w.node {
						gap(c, w.at)
					}
				}
				continue
			}
			gap(c, w.at)
			if w.event.Type == "online" || w.event.DeviceFlag != nil {
				open[c], sign[c] = true, w.at
			}
		case "offline":
			gap(c, w.at)
			delete(open, c)
		case "node_started":
			for c := range open {
				if c.node == w.node {
					delete(open, c)
				}
			}
		}
	}
	for c := range open {
		if length-sign[c] > cfg.Heartbeat+time.Second {
			forever[speaks(c)]++
		}
	}
	if short < 5_000 || silent[0] < 20 || silent[1] < 20 || silent[0]+silent[1] > short/10 || longest > 0 {
		t.Errorf("between two signs of life: %d times up to %s, %d times more, %d times far more", short, cfg.Heartbeat, silent, longest)
	}
	if forever[0] < 5 {
		t.Errorf("%d connections fell silent for good", forever[0])
	}
}

func TestZipf(t *testing.T) {
	cfg := testConfig()
	cfg.Users, cfg.Groups, cfg.GroupSize, cfg.Zipf = 1000, 200, 300, 1.5
	traffic := newTraffic(cfg)
	small, middle := 0, 0
	for i, g := range traffic.groups {
		switch n := len(g.members); {
		case n < 2 || n > cfg.GroupSize || i == 0 && n != cfg.GroupSize:
			t.Errorf("group %d has %d members", i, n)
		case n < 5:
			small++
		case n < 100:
			middle++
		}
	}
	if small < 100 || middle < 20 {
		t.Errorf("%d groups are small and %d are not, of 200", small, middle)
	}
	groups, senders := make(map[string]int), make(map[string]int)
	for range 10_000 {
		line := traffic.message(epoch).lines[0]
		senders[line.FromUID]++
		if line.ChannelType == 2 {
			groups[line.ChannelID]++
		}
	}
	top := func(counts map[string]int) int { return slices.Max(slices.Collect(maps.Values(counts))) }
	if n := groups[traffic.groups[0].id]; n != top(groups) || n < 1_000 || len(groups) < 50 {
		t.Errorf("the largest of %d groups is spoken to %d times, the busiest %d times", len(groups), n, top(groups))
	}
	if n := top(senders); n < 500 || len(senders) < 100 {
		t.Errorf("of %d senders one speaks %d times", len(senders), n)
	}
}

func TestRunWithUpsets(t *testing.T) {
	_, cfg := start(t)
	cfg.Persist, cfg.Zipf, cfg.Crashes, cfg.Late, cfg.Doubled, cfg.Skew, cfg.Heartbeat = true, 1.2, 6000, 0.1, 0.1, time.Minute, 10*time.Millisecond
	cfg.Churn, cfg.Rate = 1_000, 2_000
	var acks bytes.Buffer
	summary, err := Run(t.Context(), cfg, Deps{Acks: &acks})
	if err != nil {
		t.Fatal(err)
	}
	if !summary.Upset || summary.Crashes == 0 || summary.Late == 0 || summary.Doubled == 0 || summary.Pushes != 0 || summary.Statuses != 0 ||
		summary.Messages <= 2_000 || summary.Connections <= 1_040 || summary.Doubtful != 0 {
		t.Errorf("summary = %+v", summary)
	}
	if diff := gocmp.Diff(logged(stored(t, cfg.Brokers, summary.Connections+summary.Messages)), linesOf(t, &acks)); diff != "" {
		t.Errorf("lines (-Kafka +acknowledged):\n%s", diff)
	}
	if text := summary.String(); strings.Contains(text, "to arrive") || !strings.Contains(text, "crashes") {
		t.Errorf("the summary says %q", text)
	}
}

func TestUpsetsRefuseATruth(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"crashes":   func(c *Config) { c.Crashes = 1 },
		"late":      func(c *Config) { c.Late = 0.1 },
		"doubled":   func(c *Config) { c.Doubled = 0.1 },
		"skew":      func(c *Config) { c.Skew = time.Second },
		"heartbeat": func(c *Config) { c.Heartbeat = time.Second },
	} {
		cfg := testConfig()
		change(&cfg)
		if _, err := Run(t.Context(), cfg, Deps{Truth: new(truth.Truth)}); err == nil || !strings.HasPrefix(err.Error(), "truth") {
			t.Errorf("%s: Run = %v, want an error about the truth", name, err)
		}
	}
}
