package oracle

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/offhook/offhook/schemas"
)

// heard is an inbox record in short: what it says, of connection c of node n of user u, and when it came there.
type heard struct {
	inbox int64 // s
	event string
	time  int64 // s
	more  string
}

// statuses is what the model makes of inbox records, as user-flag-online-connection-count-count.
func statuses(t *testing.T, cfg Config, records []heard) []string {
	t.Helper()
	cfg.Partitions, cfg.Inbox, cfg.Connections, cfg.TTL = 1, "inbox", []string{"c"}, 30*time.Second
	o := New(cfg)
	for i, h := range records {
		var value []byte
		if h.event == "expire" {
			e := schemas.Expire{UID: "u", NodeID: "1", ConnID: "1"}
			if _, err := fmt.Sscan(h.more, &e.Offset); err != nil {
				t.Fatal(err)
			}
			value = schemas.AppendInboxExpire(nil, &e)
		} else {
			more := h.more
			if !strings.Contains(h.event, "node") {
				if more += `,"uid":"u"`; !strings.Contains(more, "conn_id") {
					more += `,"conn_id":1`
				}
			}
			json := fmt.Sprintf(`{"type":%q,"node_id":1,"timestamp":%d%s}`, strings.TrimPrefix(h.event, "node "), h.time, more)
			if h.event == "node_started" {
				json = fmt.Sprintf(`{"type":"node_started","node_id":1,"timestamp":%d}`, h.time)
			}
			c, err := schemas.DecodeConnection([]byte(json), 0)
			if err != nil {
				t.Fatalf("%s: %v", json, err)
			}
			value = schemas.AppendInboxConnection(nil, &c)
		}
		if err := o.Inbox(Record{Topic: "inbox", Offset: int64(i), Time: h.inbox * 1000, Value: value, Headers: []Header{{"v", []byte("1")}}}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for i := range o.expectedStatus.n {
		got = append(got, o.statusText(o.expectedStatus.at(uint32(i))))
	}
	if n := o.report.Counts[WrongClose]; n > 0 {
		got = append(got, fmt.Sprintf("wrong closes: %d", n))
	}
	return got
}

// TestRules has a case for each rule of docs/design.md about who is online.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		name    string
		records []heard
		want    string
	}{
		{"an online again emits nothing", []heard{{1, "online", 1, ""}, {2, "online", 2, ""}}, "u-0-1-1-1-1"},
		{"an online with another flag closes and opens", []heard{{1, "online", 1, ""}, {2, "online", 2, `,"device_flag":1`}}, "u-0-1-1-1-1 u-0-0-1-0-0 u-1-1-1-1-1"},
		{"counts are by flag and in all", []heard{{1, "online", 1, ""}, {2, "online", 2, `,"conn_id":2,"device_flag":1`}, {3, "online", 3, `,"conn_id":3`}, {4, "offline", 4, ""}},
			"u-0-1-1-1-1 u-1-1-2-1-2 u-0-1-3-2-3 u-0-0-1-1-2"},
		{"an offline of what is not open is ignored", []heard{{1, "offline", 1, ""}}, ""},
		{"an older offline is ignored", []heard{{1, "online", 5, ""}, {2, "offline", 4, ""}}, "u-0-1-1-1-1"},
		{"at equal times the offline's place counts", []heard{{1, "online", 5, ""}, {2, "offline", 5, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"a heartbeat is no version", []heard{{1, "online", 1, ""}, {2, "heartbeat", 9, ""}, {3, "offline", 2, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"an online again is a version", []heard{{1, "online", 1, ""}, {2, "online", 9, ""}, {3, "offline", 2, ""}}, "u-0-1-1-1-1"},
		{"a heartbeat without a flag opens nothing", []heard{{1, "heartbeat", 1, ""}}, ""},
		{"a heartbeat with a flag opens", []heard{{1, "heartbeat", 1, `,"device_flag":3`}}, "u-3-1-1-1-1"},
		{"a heartbeat never changes the flag", []heard{{1, "online", 1, ""}, {2, "heartbeat", 2, `,"device_flag":3`}, {3, "offline", 3, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"a late online of a closed one", []heard{{1, "online", 1, ""}, {2, "offline", 9, ""}, {3, "online", 5, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"a late heartbeat of a closed one", []heard{{1, "online", 1, ""}, {2, "offline", 9, ""}, {3, "heartbeat", 5, `,"device_flag":0`}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"an online at the time of the close", []heard{{1, "online", 1, ""}, {2, "offline", 9, ""}, {3, "online", 9, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0 u-0-1-1-1-1"},
		{"a copy of the online that was closed at its time", []heard{{1, "online", 9, ""}, {2, "offline", 9, ""}, {3, "online", 9, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"a close of one never seen wins", []heard{{1, "offline", 9, ""}, {2, "online", 9, ""}}, ""},
		{"and loses against a later online", []heard{{1, "offline", 9, ""}, {2, "online", 10, ""}}, "u-0-1-1-1-1"},
		{"a later close of a closed one is like one never seen", []heard{{1, "online", 1, ""}, {2, "offline", 5, ""}, {3, "offline", 9, ""}, {4, "online", 9, ""}, {5, "online", 10, ""}},
			"u-0-1-1-1-1 u-0-0-1-0-0 u-0-1-1-1-1"},
		{"a copy of the close is not later", []heard{{1, "online", 1, ""}, {2, "offline", 5, ""}, {3, "offline", 5, ""}, {4, "online", 5, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0 u-0-1-1-1-1"},
		{"a close is forgotten", []heard{{1, "offline", 9, ""}, {601, "online", 5, ""}}, "u-0-1-1-1-1"},
		{"a close is remembered until then", []heard{{1, "offline", 9, ""}, {600, "online", 5, ""}}, ""},
		{"a start closes what is at or before it", []heard{{1, "online", 1, `,"conn_id":"b"`}, {1, "online", 2, `,"conn_id":10`}, {1, "online", 2, `,"conn_id":9`}, {1, "online", 3, `,"conn_id":1`}, {2, "node_started", 2, ""}},
			"u-0-1-2238838817863543973-1-1 u-0-1-10-2-2 u-0-1-9-3-3 u-0-1-1-4-4 u-0-0-9-3-3 u-0-0-10-2-2 u-0-0-2238838817863543973-1-1"},
		{"a start holds against older onlines", []heard{{1, "node_started", 5, ""}, {2, "online", 4, ""}, {2, "heartbeat", 4, `,"device_flag":0`}, {3, "online", 5, ""}}, "u-0-1-1-1-1"},
		{"a start at or before the last is ignored", []heard{{1, "node_started", 5, ""}, {2, "online", 5, ""}, {3, "node_started", 5, ""}, {4, "node_started", 4, ""}}, "u-0-1-1-1-1"},
		{"a start is forgotten", []heard{{1, "node_started", 5, ""}, {601, "online", 4, ""}}, "u-0-1-1-1-1"},
		{"what a start closed at its own time is a copy", []heard{{1, "online", 5, ""}, {2, "node_started", 5, ""}, {3, "online", 5, ""}, {4, "online", 6, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0 u-0-1-1-1-1"},
		{"a later generation is newer", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "offline", 12, ""}, {3, "online", 10, `,"opened_at":10`}}, "u-0-1-1-1-1 u-0-0-1-0-0 u-0-1-1-1-1"},
		{"an earlier generation is older", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "offline", 20, `,"opened_at":8`}, {3, "online", 21, `,"opened_at":8,"device_flag":1`}}, "u-0-1-1-1-1"},
		{"an earlier generation does not come back", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "offline", 10, `,"opened_at":9`}, {3, "online", 30, `,"opened_at":8`}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"a close of a later generation", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "offline", 8, `,"opened_at":10`}, {3, "online", 8, `,"opened_at":10`}, {4, "online", 9, `,"opened_at":10`}}, "u-0-1-1-1-1 u-0-0-1-0-0 u-0-1-1-1-1"},
		{"an online keeps the generation that it does not say", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "online", 10, ""}, {3, "offline", 20, `,"opened_at":8`}}, "u-0-1-1-1-1"},
		{"with another flag it does not", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "online", 10, `,"device_flag":1`}, {3, "offline", 20, `,"opened_at":8`}}, "u-0-1-1-1-1 u-0-0-1-0-0 u-1-1-1-1-1 u-1-0-1-0-0"},
		{"an online of a later generation on an open one", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "online", 5, `,"opened_at":10`}, {3, "offline", 20, `,"opened_at":9`}, {4, "offline", 5, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"also before the start of its node, where it was open after", []heard{{1, "node_started", 5, ""}, {2, "online", 9, `,"opened_at":9`}, {3, "online", 4, `,"opened_at":10,"device_flag":1`}}, "u-0-1-1-1-1 u-0-0-1-0-0 u-1-1-1-1-1"},
		{"a heartbeat with a flag tells of a later generation", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "heartbeat", 8, `,"opened_at":10,"device_flag":1`}, {3, "offline", 20, `,"opened_at":9`}}, "u-0-1-1-1-1"},
		{"one without a flag does not", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "heartbeat", 20, `,"opened_at":10`}, {3, "offline", 20, `,"opened_at":9`}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"nor one before the start of its node", []heard{{1, "node_started", 5, ""}, {2, "online", 9, `,"opened_at":9`}, {3, "heartbeat", 4, `,"opened_at":10,"device_flag":0`}, {4, "offline", 20, `,"opened_at":9`}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"a node's heartbeat before its start is no sign", []heard{{1, "online", 9, ""}, {2, "node_started", 5, ""}, {20, "node heartbeat", 4, ""}, {31, "expire", 0, "0"}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"without a generation times decide", []heard{{1, "online", 9, `,"opened_at":9`}, {2, "offline", 9, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"a silent connection expires", []heard{{1, "online", 1, ""}, {31, "expire", 0, "0"}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"too early", []heard{{1, "online", 1, ""}, {30, "expire", 0, "0"}}, "u-0-1-1-1-1 u-0-0-1-0-0 wrong closes: 1"},
		{"not with a sign since", []heard{{1, "online", 1, ""}, {2, "heartbeat", 2, ""}, {40, "expire", 0, "0"}}, "u-0-1-1-1-1"},
		{"nor one of its node", []heard{{1, "online", 1, ""}, {2, "node heartbeat", 2, ""}, {40, "expire", 0, "0"}}, "u-0-1-1-1-1"},
		{"its sign was its node's", []heard{{1, "online", 1, ""}, {12, "node heartbeat", 2, ""}, {40, "expire", 0, "1"}}, "u-0-1-1-1-1 u-0-0-1-0-0 wrong closes: 1"},
		{"an event that is older is no sign", []heard{{1, "online", 5, ""}, {20, "heartbeat", 4, ""}, {31, "expire", 0, "0"}}, "u-0-1-1-1-1 u-0-0-1-0-0"},
		{"the close carries the version", []heard{{1, "online", 5, ""}, {31, "expire", 0, "0"}, {32, "online", 5, ""}, {33, "online", 6, ""}}, "u-0-1-1-1-1 u-0-0-1-0-0 u-0-1-1-1-1"},
	} {
		got := statuses(t, Config{CloseMemory: 10 * time.Minute}, c.records)
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s:\ngot  %q\nwant %q", c.name, got, c.want)
		}
	}
}

func TestReachable(t *testing.T) {
	open := []connection{{flag: 1}, {flag: 0, background: true}}
	for _, c := range []struct {
		cfg  Config
		want bool
	}{
		{Config{}, true},
		{Config{OnlineFlags: []uint8{0}}, false},
		{Config{OnlineFlags: []uint8{0}, BackgroundIsOnline: true}, true},
		{Config{OnlineFlags: []uint8{}}, false},
		{Config{OnlineFlags: []uint8{2, 1}}, true},
	} {
		if got := New(c.cfg).reachable(open); got != c.want {
			t.Errorf("%+v: %t", c.cfg, got)
		}
	}
}

func TestMurmur2(t *testing.T) {
	// The vectors of Kafka's own test of Utils.murmur2.
	for key, want := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		if got := int32(murmur2(key)); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
}

// sources makes a merge's sources of words, a letter a value; (abc) is one with the recipients a, b and c.
func sources(words ...string) []source {
	list := make([]source, len(words))
	for s, word := range words {
		src := &list[s]
		var in *piece
		for _, c := range word {
			switch {
			case c == '(':
				src.pieces = append(src.pieces, piece{hash: '(', first: uint32(len(src.uids))})
				in = &src.pieces[len(src.pieces)-1]
			case c == ')':
				in = nil
			case in != nil:
				in.n++
				src.uids = append(src.uids, uint32(c))
			default:
				src.pieces = append(src.pieces, piece{hash: uint64(c)})
			}
		}
	}
	return list
}

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		sources []string
		merged  string
		faults  string // one a value: a dot fits, - is late, + again, ? unexplained, ! different
		missing string
	}{
		{[]string{"abc", "xyz"}, "axbycz", "......", ""},
		{[]string{"abc", "ade"}, "aadebc", "......", ""},
		{[]string{"aab", "aac"}, "aaaacb", "......", ""},
		{[]string{"aab", "aac"}, "aacaab", "......", ""},
		{[]string{"abc"}, "acb", "..-", ""},
		{[]string{"abc"}, "ac", "..", "b"},
		{[]string{"abc"}, "ab", "..", "c"},
		{[]string{"abc"}, "aab", ".+.", "c"},
		{[]string{"abc"}, "axbc", ".?..", ""},
		{[]string{"ab", "cd"}, "bacd", ".-..", ""},
		{[]string{"a(123)b", "(45)"}, "a(1)(4)(23)(5)b", "......", ""},
		{[]string{"a(123)b"}, "a(1)b", "...", "("},
		{[]string{"a(123)b"}, "a(1)(1)(23)b", "..+..", ""},
		{[]string{"a(123)b"}, "a(13)b", ".!.", ""},
		{[]string{"a(12)b"}, "a(1)b(2)", "...-", ""},
	} {
		m := newMerge(sources(c.sources...))
		var got, missing strings.Builder
		all := sources(c.merged)[0]
		for _, value := range all.pieces {
			f, _ := m.step(value.hash, all.uids[value.first:value.first+value.n])
			got.WriteByte(".?-+!*"[f])
		}
		m.missing(func(ref pieceRef, _, _ uint32) {
			missing.WriteRune(rune(m.sources[ref.source].pieces[ref.piece].hash))
		})
		if got.String() != c.faults || missing.String() != c.missing {
			t.Errorf("%q of %q: %q, missing %q; want %q, %q", c.merged, c.sources, got.String(), missing.String(), c.faults, c.missing)
		}
	}
}

// TestMergeWays bounds what equal values cost: 20 sources that all have the same.
func TestMergeWays(t *testing.T) {
	words := slices.Repeat([]string{"aaaaaaaaaaaaaaaaaaaab"}, 20)
	m := newMerge(sources(words...))
	many := 0
	for range 20 * 20 {
		if f, _ := m.step('a', nil); f == tooManyWays {
			many++
		}
		if len(m.ways) > maxWays {
			t.Fatalf("%d ways", len(m.ways))
		}
	}
	if many == 0 {
		t.Error("it is not said that there are too many ways")
	}
}
