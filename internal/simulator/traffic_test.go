package simulator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/offhook/offhook/internal/truth"
	"github.com/offhook/offhook/schemas"
)

func testConfig() Config {
	cfg := Default()
	cfg.Run, cfg.Brokers = "t", []string{"unused:9092"}
	return cfg
}

// rules are the design's rules for connections, with their times, over one log; the truth's model has none.
type rules struct {
	open   map[name]entry
	closes map[name]int64 // the close's time
	starts map[string]int64
	items  map[string][]string // by uid
}

type name struct{ uid, node, conn string }

type entry struct {
	flag    uint8
	version int64
}

func (r *rules) apply(t *testing.T, value []byte) {
	t.Helper()
	var e struct {
		Type       string          `json:"type"`
		UID        string          `json:"uid"`
		DeviceFlag *uint8          `json:"device_flag"`
		ConnID     json.RawMessage `json:"conn_id"`
		NodeID     json.RawMessage `json:"node_id"`
		Timestamp  int64           `json:"timestamp"`
	}
	if err := json.Unmarshal(value, &e); err != nil {
		t.Fatalf("decode %s: %v", value, err)
	}
	id := func(raw json.RawMessage) string {
		if s, err := strconv.Unquote(string(raw)); err == nil {
			return s
		}
		return string(raw)
	}
	n := name{e.UID, id(e.NodeID), id(e.ConnID)}
	conn, isOpen := r.open[n]
	switch e.Type {
	case "online", "heartbeat":
		if e.Type == "heartbeat" && (isOpen || e.DeviceFlag == nil) {
			return
		}
		var flag uint8
		if e.DeviceFlag != nil {
			flag = *e.DeviceFlag
		}
		if e.Timestamp <= r.starts[n.node] || e.Timestamp <= r.closes[n] || isOpen && e.Timestamp < conn.version {
			return
		}
		if isOpen && conn.flag != flag {
			r.close(n)
		}
		r.open[n] = entry{flag, e.Timestamp}
		if !isOpen || conn.flag != flag {
			r.emit(n, flag, 1)
		}
	case "offline":
		if isOpen && e.Timestamp >= conn.version {
			r.close(n)
			r.closes[n] = e.Timestamp
		}
	case "node_started":
		var gone []name
		for open, c := range r.open {
			if open.node == n.node && c.version <= e.Timestamp {
				gone = append(gone, open)
			}
		}
		slices.SortFunc(gone, func(a, b name) int {
			return cmp.Or(cmp.Compare(a.uid, b.uid), cmp.Compare(len(a.conn), len(b.conn)), cmp.Compare(a.conn, b.conn))
		})
		for _, g := range gone {
			r.close(g)
			r.closes[g] = e.Timestamp
		}
		r.starts[n.node] = e.Timestamp
	default:
		t.Fatalf("type %q", e.Type)
	}
}

func (r *rules) close(n name) {
	flag := r.open[n].flag
	delete(r.open, n)
	r.emit(n, flag, 0)
}

func (r *rules) emit(n name, flag uint8, online int) {
	device, total := 0, 0
	for o, e := range r.open {
		if o.uid == n.uid {
			total++
			if e.flag == flag {
				device++
			}
		}
	}
	var item strings.Builder
	item.WriteString(n.uid)
	for _, v := range []string{strconv.Itoa(int(flag)), strconv.Itoa(online), n.conn, strconv.Itoa(device), strconv.Itoa(total)} {
		item.WriteString("-" + v)
	}
	r.items[n.uid] = append(r.items[n.uid], item.String())
}

// TestTrafficOfASeedStays holds the records of one seed against those that it has always made.
func TestTrafficOfASeedStays(t *testing.T) {
	traffic := newTraffic(testConfig())
	h := fnv.New64a()
	n := 0
	add := func(r *record) bool {
		n++
		fmt.Fprintf(h, "%s %s %s\n", r.topic, r.key, r.value)
		for _, line := range r.lines {
			fmt.Fprintf(h, "%+v\n", line)
		}
		return true
	}
	now := func() int64 { return 1_700_000_000_000 + int64(n/3) }
	traffic.first(now, add)
	for range 5_000 {
		add(traffic.connection(now()))
		add(traffic.message(now()))
	}
	if got, want := h.Sum64(), uint64(0x39fcaf85c2f4a400); got != want {
		t.Errorf("the records of seed 1 have the hash %#x, want %#x", got, want)
	}
}

// TestStatusesFollowFromTheRecords reads the records as offhook does, each partition in order and the partitions
// against one another at random: whatever the order, the statuses are the truth's.
func TestStatusesFollowFromTheRecords(t *testing.T) {
	cfg := testConfig()
	cfg.Users = 60
	traffic := newTraffic(cfg)
	var records []*record
	// Time stands still for ten records, and so must rise by itself.
	clock := func() int64 { return 1_700_000_000_000 + int64(len(records)/10) }
	traffic.first(clock, func(r *record) bool { records = append(records, r); return true })
	for range 6_000 {
		records = append(records, traffic.connection(clock()))
	}
	want := make(map[string][]string)
	types := make(map[string]int)
	silent := make(map[string]int)
	for _, r := range records {
		var e connectionEvent
		if err := json.Unmarshal(r.value, &e); err != nil {
			t.Fatal(err)
		}
		types[e.Type]++
		if len(r.lines) == 0 {
			silent[e.Type]++
		}
		for _, line := range r.lines {
			want[line.UID] = append(want[line.UID], line.Item)
		}
	}
	for _, kind := range []string{"online", "offline", "heartbeat", "node_started"} {
		if types[kind] < 10 || silent[kind] == types[kind] || kind != "node_started" && silent[kind] < 10 {
			t.Errorf("%d records of type %s, %d of which change nothing: too one-sided to test anything", types[kind], kind, silent[kind])
		}
	}
	for seed := range uint64(3) {
		order := rand.New(rand.NewPCG(seed, 0))
		partitions := make(map[string][]*record) // one for each key, the finest there can be
		for _, r := range records {
			partitions[r.key] = append(partitions[r.key], r)
		}
		keys := slices.Sorted(func(yield func(string) bool) {
			for key := range partitions {
				if !yield(key) {
					return
				}
			}
		})
		log := rules{make(map[name]entry), make(map[name]int64), make(map[string]int64), make(map[string][]string)}
		for len(keys) > 0 {
			k := order.IntN(len(keys))
			part := partitions[keys[k]]
			n := min(len(part), 1+order.IntN(50))
			for _, r := range part[:n] {
				log.apply(t, r.value)
			}
			if partitions[keys[k]] = part[n:]; n == len(part) {
				keys = slices.Delete(keys, k, k+1)
			}
		}
		if !reflect.DeepEqual(want, log.items) { // go-cmp is slow on what is equal
			t.Fatalf("order %d: statuses by uid (-truth +records):\n%s", seed, gocmp.Diff(want, log.items))
		}
	}
}

// TestMessagesFollowFromTheRecords reads each message as a receiver's author would, and compares with the truth.
func TestMessagesFollowFromTheRecords(t *testing.T) {
	t.Run("all alike", func(t *testing.T) { messagesFollow(t, testConfig()) })
	cfg := testConfig()
	cfg.Zipf, cfg.GroupSize = 1.5, 100
	t.Run("some busy", func(t *testing.T) { messagesFollow(t, cfg) })
}

func messagesFollow(t *testing.T, cfg Config) {
	traffic := newTraffic(cfg)
	presence := make(map[string]truth.Presence)
	var known truth.Truth
	for line := range traffic.lines {
		if line.Kind == truth.KindUser {
			presence[line.UID] = line.Presence
		}
		if err := known.Record(line); err != nil {
			t.Fatal(err)
		}
	}
	want := make(map[string]map[string]bool) // client_msg_no, uids that must be pushed to
	numbers := make(map[string]int)
	shapes := make(map[string]int)
	var pushes, wantPushes int64
	for range 5_000 {
		r := traffic.message(1_700_000_000_000)
		pushes += r.pushes
		for _, line := range r.lines {
			if err := known.Record(line); err != nil {
				t.Fatal(err)
			}
		}
		var m struct {
			ClientMsgNo string   `json:"client_msg_no"`
			FromUID     string   `json:"from_uid"`
			ChannelID   string   `json:"channel_id"`
			ChannelType int      `json:"channel_type"`
			ToUIDs      []string `json:"to_uids"`
			OfflinePush *bool    `json:"offline_push"`
		}
		if err := json.Unmarshal(r.value, &m); err != nil {
			t.Fatal(err)
		}
		numbers[m.FromUID]++
		if no := "t-" + m.FromUID + "-" + strconv.Itoa(numbers[m.FromUID]); m.ClientMsgNo != no || r.key != m.FromUID {
			t.Fatalf("client_msg_no %s with key %s, want %s with key %s", m.ClientMsgNo, r.key, no, m.FromUID)
		}
		if m.ChannelID == m.FromUID {
			t.Fatalf("%s is to its sender", m.ClientMsgNo)
		}
		to := m.ToUIDs
		shape := "group"
		if m.ChannelType == 1 {
			shape = "person"
		}
		if to == nil && m.ChannelType == 1 {
			to = []string{m.ChannelID}
			shape += " without to_uids"
		} else if to == nil {
			shape += " without to_uids"
		}
		if m.OfflinePush != nil {
			to = nil
			shape += " without push"
		}
		shapes[shape]++
		want[m.ClientMsgNo] = make(map[string]bool)
		for _, uid := range to {
			if uid != m.FromUID && presence[uid] == truth.Sleeper {
				want[m.ClientMsgNo][uid] = true
			}
		}
		wantPushes += int64(len(want[m.ClientMsgNo]))
	}
	got := make(map[string]map[string]bool)
	for m := range known.Messages() {
		got[m.ClientMsgNo] = make(map[string]bool)
		for uid, claim := range known.Recipients(m) {
			if claim == truth.Must {
				got[m.ClientMsgNo][uid] = true
			}
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("who must be pushed to (-records +truth):\n%s", diff)
	}
	if pushes != wantPushes {
		t.Errorf("pushes = %d, want %d", pushes, wantPushes)
	}
	if len(shapes) != 8 {
		t.Errorf("shapes of messages: %v, want 8", shapes)
	}
}

// TestRecordsAreValid holds the records against offhook's own decoding, which the truth does not use.
func TestRecordsAreValid(t *testing.T) {
	t.Run("plain", func(t *testing.T) { recordsAreValid(t, testConfig()) })
	t.Run("upset", func(t *testing.T) { recordsAreValid(t, upsetConfig()) })
}

func recordsAreValid(t *testing.T, cfg Config) {
	traffic := newTraffic(cfg)
	check := func(r *record) {
		var err error
		if r.message {
			var m schemas.Message
			m, err = schemas.DecodeMessage(r.value, schemas.Source{Topic: r.topic})
			if m.Dropped > 0 {
				t.Errorf("%s names %d recipients that are no uids", r.value, m.Dropped)
			}
		} else {
			_, err = schemas.DecodeConnection(r.value, 0)
		}
		if err != nil {
			t.Errorf("%s: %v", r.value, err)
		}
	}
	traffic.first(func() int64 { return 1_700_000_000_000 }, func(r *record) bool { check(r); return true })
	for i := range 2_000 {
		traffic.advance(time.Duration(i) * 50 * time.Millisecond)
		for r := traffic.due(1_700_000_000_000); r != nil; r = traffic.due(1_700_000_000_000) {
			check(r)
		}
		check(traffic.connection(1_700_000_000_000))
		check(traffic.message(1_700_000_000_000))
	}
}

// BenchmarkTraffic measures the making of records.
func BenchmarkTraffic(b *testing.B) {
	traffic := newTraffic(testConfig())
	traffic.first(func() int64 { return 1_700_000_000_000 }, func(*record) bool { return true })
	for b.Loop() {
		traffic.connection(1_700_000_000_000)
		traffic.message(1_700_000_000_000)
	}
}

func TestStreamsTakeTurns(t *testing.T) {
	count := func(a, b stream) [2]int {
		var n [2]int
		for range 10_000 {
			turn := next(&a, &b)
			if turn == nil {
				break
			}
			turn.n++
			if turn == &a {
				n[0]++
			} else {
				n[1]++
			}
		}
		return n
	}
	tests := []struct {
		name string
		a, b stream
		want [2]int
	}{
		{"both by duration", stream{rate: 10, duration: 2e9}, stream{rate: 30, duration: 2e9}, [2]int{20, 60}},
		{"one by count, the other by duration", stream{rate: 10, duration: 2e9, limit: 5}, stream{rate: 30, duration: 2e9}, [2]int{5, 60}},
		{"one by count, the other by nothing", stream{rate: 10, limit: 5}, stream{rate: 30}, [2]int{5, 12}},
		{"the other way about", stream{rate: 30}, stream{rate: 10, limit: 5}, [2]int{13, 5}},
		{"only one", stream{}, stream{rate: 10, limit: 5}, [2]int{0, 5}},
		{"none", stream{}, stream{}, [2]int{}},
		{"no bound", stream{rate: 1}, stream{rate: 1}, [2]int{5000, 5000}},
	}
	for _, tt := range tests {
		if got := count(tt.a, tt.b); got != tt.want {
			t.Errorf("%s: %v records, want %v", tt.name, got, tt.want)
		}
	}
}
