package oracle

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/offhook/offhook/schemas"
)

var goodConnections = []string{
	`{"type":"online","uid":"uid1","conn_id":1001}`,
	`{"type":"online","uid":"uid1","device_flag":1,"conn_id":"1001","node_id":1,"timestamp":1767323045,"background":false,"opened_at":1767323045123}`,
	`{"type":"offline","uid":"\u00fcid","conn_id":"c-1","node_id":"gw-a","timestamp":"2026-01-02T03:04:05.678999+08:00","background":true}`,
	`{"type":"offline","uid":"uid1","conn_id":"007","timestamp":99999999999}`,
	`{"type":"heartbeat","uid":"uid1","device_flag":255,"conn_id":9223372036854775807,"background":true,"more":{"a":[1]}}`,
	`{"type":"heartbeat","node_id":2,"device_flag":1,"timestamp":"1970-01-01T00:00:00Z"}`,
	`{"type":"node_started","node_id":"2","uid":"uid1","conn_id":7,"timestamp":253402300799999}`,
	` { "type" : "online" , "uid" : "\ud83d\ude00" , "conn_id" : 0 , "node_id" : null , "x" : [ -0.5e+3 , { } , "" , true ] } `,
}

var goodMessages = []string{
	`{"channel_id":"u2"}`,
	`{"header":{"no_persist":1,"red_dot":1,"sync_once":1},"setting":255,"message_id":9007199254740993,"message_idstr":"9007199254740993","client_msg_no":"n-1","message_seq":18446744073709551615,"from_uid":"u1","channel_id":"g1","channel_type":2,"timestamp":1767323045,"payload":"aGVsbG8=","to_uids":["u2","u3","u2","u1"]}`,
	`{"z":1.50,"channel_id":"g1","channel_type":2,"payload":"a\/+=","header":{"x":{ "y": null },"red_dot":1,"w":null,"sync_once":null},"a":"\u00e9\/","n":null,"list":[1, 2],"message_id":"18446744073709551615"}`,
	`{"channel_id":"\u0075\"2\u000a","from_uid":"\u00fc\\","client_msg_no":"\u0061\t\/<&>\u007f\u2028","message_id":"\u0061b","message_idstr":"lost","timestamp":"2026-01-02T03:04:05.678Z"}`,
	`{"channel_id":"u2","message_idstr":"77","offline_push":false}`,
	`{"channel_id":"g1","channel_type":0,"to_uids":["a",null,1.5,{"b":1},["c"],true,"","\u0000","d\u00e9"]}`,
	` { "\u0061" : [ ] , "channel_id" : "u\u0085" , "\ud83d\ude00 b" : { "c" : "\ud83d\ude00" } , "message_id" : "" } `,
}

// tokens are what mutations put into a record.
var tokens = strings.Split(`null true false 0 -0 1 2 255 256 1.0 1e0 -1 9223372036854775808 18446744073709551615 18446744073709551616 99999999999 100000000000 253402300799999 253402300800000 "" "a" "\ud800" "\udc00\ud800" "\ud83d\ude00" "\u0000" "\u0085" [] {} [1] ["a"] {"a":1,"\u0061":2} {"no_persist":2} {"a":{"b":1}} "QQ==" "QR==" "QQ=" "Q===" "====" "=QQQ" "007" "-1" "2026-01-02T03:04:05Z" "2026-02-29T03:04:05Z" "2024-02-29T23:59:59.9-23:59" "2026-01-02T03:04:60Z" "2026-01-02t03:04:05z" "2026-01-02T03:04:05,5Z" "2026-01-02T24:00:00Z" "1969-12-31T23:59:59.999Z" "1969-12-31T23:00:00-08:00" "1970-01-01T00:00:00+01:00" "9999-12-31T23:59:59-00:01" "2026-01-02T03:04:05+24:00" "2026-01-02T03:04:05.Z" "type" "uid" "conn_id" "node_id" "device_flag" "opened_at" "timestamp" "background" "header" "payload" "to_uids" "channel_id" "channel_type" "from_uid" "message_id" "message_idstr" "message_seq" "setting" "offline_push" "online" "offline" "heartbeat" "node_started" , : { } [ ] "`, " ")

func mutate(r *rand.Rand, good []string) []byte {
	b := []byte(good[r.IntN(len(good))])
	for range 1 + r.IntN(3) {
		if len(b) == 0 {
			break
		}
		at := r.IntN(len(b))
		switch r.IntN(7) {
		case 0:
			b[at] = byte(r.Uint32())
		case 1:
			b = slices.Delete(b, at, min(len(b), at+1+r.IntN(4)))
		case 2:
			b = slices.Insert(b, at, []byte(tokens[r.IntN(len(tokens))])...)
		default: // a value or a name, by another
			s := scanner{b: b}
			s.peek()
			var spans [][2]int
			for i := range b {
				if bytes.IndexByte([]byte(`"0123456789tfn[{`), b[i]) >= 0 {
					v := scanner{b: b, i: i}
					if _, err := v.value(); err == nil && i > 0 {
						spans = append(spans, [2]int{i, v.i})
					}
				}
			}
			if len(spans) > 0 {
				span := spans[r.IntN(len(spans))]
				b = slices.Replace(b, span[0], span[1], []byte(tokens[r.IntN(len(tokens))])...)
			}
		}
	}
	return b
}

var recordTimes = []int64{1_700_000_000_999, -1, 0, maxTime + 1, 1 << 62}

func compareConnections(t *testing.T, value []byte, recordTime int64) bool {
	t.Helper()
	got, err := ParseConnection(value, recordTime)
	want, wantErr := schemas.DecodeConnection(value, recordTime)
	if (err == nil) != (wantErr == nil) {
		t.Errorf("%.2000q at %d: oracle: %v; schemas: %v", value, recordTime, err, wantErr)
		return false
	}
	if err != nil {
		return false
	}
	if got.node() || got.Type == Offline { // what says nothing there
		got.DeviceFlag, got.HasDeviceFlag, want.DeviceFlag, want.HasDeviceFlag = 0, false, 0, false
	}
	if diff := cmp.Diff(Connection{
		Type: ConnectionType(want.Type), UID: want.UID, ConnID: string(want.ConnID), NodeID: string(want.NodeID), DeviceFlag: want.DeviceFlag,
		HasDeviceFlag: want.HasDeviceFlag, Time: want.Time, OpenedAt: want.OpenedAt, Background: want.Background, HasBackground: want.HasBackground,
	}, got); diff != "" {
		t.Errorf("%.2000q at %d: (-schemas +oracle):\n%s", value, recordTime, diff)
	}
	return true
}

func compareMessages(t *testing.T, value []byte, recordTime int64) bool {
	t.Helper()
	got, err := ParseMessage("im.messages", 3, 42, value, recordTime)
	want, wantErr := schemas.DecodeMessage(value, schemas.Source{Topic: "im.messages", Partition: 3, Offset: 42, Time: recordTime})
	if (err == nil) != (wantErr == nil) {
		t.Errorf("%.2000q at %d: oracle: %v; schemas: %v", value, recordTime, err, wantErr)
		return false
	}
	if err != nil {
		return false
	}
	if string(got.Item) != string(want.Item) || got.Splice != want.Splice || got.FromUID != want.FromUID || got.ChannelID != want.ChannelID ||
		got.ChannelType != want.ChannelType || !slices.Equal(got.Recipients, want.Recipients) || got.OfflinePush != want.OfflinePush {
		t.Errorf("%.2000q at %d:\noracle  %s %+v\nschemas %s %+v", value, recordTime, got.Item, got, want.Item, want)
	}
	s := scanner{b: schemas.AppendOfflineItem(nil, got.Item, got.Splice, []string{"a", `b"`})}
	it, err := readItem(&s, true)
	if err != nil {
		t.Fatalf("%.1000s: %v", got.Item, err)
	}
	if string(it.before)+string(it.after) != string(got.Item) || !slices.Equal(it.uids, []string{"a", `b"`}) ||
		it.from != want.FromUID || it.channel != want.ChannelID {
		t.Errorf("%.1000s is read as %+v", got.Item, it)
	}
	return true
}

// TestParsersAgree compares the two decoders of each format, which were written by different hands.
func TestParsersAgree(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name    string
		good    []string
		compare func(*testing.T, []byte, int64) bool
	}{{"connections", goodConnections, compareConnections}, {"messages", goodMessages, compareMessages}} {
		for _, v := range c.good {
			if !c.compare(t, []byte(v), recordTimes[0]) {
				t.Errorf("%s is refused", v)
			}
		}
		accepted := 0
		const tries = 60_000
		for range tries {
			if c.compare(t, mutate(r, c.good), recordTimes[r.IntN(len(recordTimes))]) {
				accepted++
			}
			if t.Failed() {
				break
			}
		}
		if accepted < tries/20 || accepted > tries*19/20 {
			t.Errorf("%s: %d of %d mutations are accepted, which tests little", c.name, accepted, tries)
		}
	}
}

func TestDepth(t *testing.T) {
	for _, n := range []int{maxDepth - 1, maxDepth, maxDepth + 1, 100_000} {
		deep := strings.Repeat("[", n-1) + strings.Repeat("]", n-1)
		compareConnections(t, []byte(`{"type":"node_started","node_id":1,"x":`+deep+`}`), 0)
		compareMessages(t, []byte(`{"channel_id":"a","x":`+deep+`}`), 0)
		open := strings.Repeat(`{"a":`, n)
		compareMessages(t, []byte(`{"channel_id":"a","x":`+open), 0)
	}
}

func FuzzConnection(f *testing.F) {
	for _, v := range goodConnections {
		f.Add([]byte(v), recordTimes[0])
	}
	f.Fuzz(func(t *testing.T, value []byte, recordTime int64) { compareConnections(t, value, recordTime) })
}

func FuzzMessage(f *testing.F) {
	for _, v := range goodMessages {
		f.Add([]byte(v), recordTimes[0])
	}
	f.Fuzz(func(t *testing.T, value []byte, recordTime int64) { compareMessages(t, value, recordTime) })
}
