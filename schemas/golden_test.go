package schemas

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

var update = flag.Bool("update", false, "write testdata/ anew: a change there is a change of format")

// golden holds got against the file of that name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

// stored is the value of `<name> <hex>` in a golden file: what is decoded is what an earlier release has written.
func stored(t *testing.T, file, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if digits, is := strings.CutPrefix(strings.TrimSuffix(line, "\n"), name+" "); is {
			b, err := hex.DecodeString(digits)
			if err != nil {
				t.Fatalf("%s: %s: %v", file, name, err)
			}
			return b
		}
	}
	t.Fatalf("%s: there is no %s", file, name)
	return nil
}

func TestGoldenConnections(t *testing.T) {
	var out strings.Builder
	for _, record := range []string{
		`{"type":"online","uid":"uid1","conn_id":1001}`,
		`{"type":"online","uid":"uid1","device_flag":1,"conn_id":"1001","node_id":1,"timestamp":1767323045,"background":false,"opened_at":1767323045123}`,
		`{"type":"offline","uid":"\u00fcid","conn_id":"c-1","node_id":"gw-a","timestamp":"2026-01-02T03:04:05.678999+08:00","background":true}`,
		`{"type":"offline","uid":"uid1","conn_id":"007","timestamp":99999999999}`,
		`{"type":"offline","uid":"uid1","conn_id":9223372036854775807,"timestamp":100000000000}`,
		`{"type":"heartbeat","uid":"uid1","device_flag":1,"conn_id":7,"background":true,"more":{"a":[1]}}`,
		`{"type":"heartbeat","uid":"uid1","conn_id":7}`,
		`{"type":"heartbeat","node_id":2,"device_flag":1,"background":true}`,
		`{"type":"node_started","node_id":"2","uid":"uid1","conn_id":7,"device_flag":3}`,
	} {
		c, err := DecodeConnection([]byte(record), 1_700_000_000_000)
		if err != nil {
			t.Fatalf("%s: %v", record, err)
		}
		fmt.Fprintf(&out, "%s\n  %s uid=%q conn=%q node=%q flag=%d %t time=%d opened_at=%d background=%t %t\n", record,
			c.Type, c.UID, c.ConnID, c.NodeID, c.DeviceFlag, c.HasDeviceFlag, c.Time, c.OpenedAt, c.Background, c.HasBackground)
	}
	c, err := DecodeConnection([]byte(`{"type":"node_started","node_id":1}`), -1)
	if err != nil || c.Time != 0 {
		t.Errorf("time %d (error %v) for a record without timestamp, want 0", c.Time, err)
	}
	golden(t, "connections.golden", out.String())
}

var goldenSource = Source{Topic: "im.messages", Partition: 3, Offset: 42, Time: 1_700_000_000_999}

var goldenMessages = []string{
	`{"channel_id":"u2"}`,
	`{"header":{"no_persist":1,"red_dot":1,"sync_once":1},"setting":255,"message_id":9007199254740993,"message_idstr":"9007199254740993","client_msg_no":"n-1","message_seq":18446744073709551615,"from_uid":"u1","channel_id":"g1","channel_type":2,"timestamp":1767323045,"payload":"aGVsbG8=","to_uids":["u2","u3","u2","u1"]}`,
	`{"z":1.50,"channel_id":"g1","channel_type":2,"payload":"a\/+=","header":{"x":{ "y": null },"red_dot":1,"w":null,"sync_once":null},"a":"\u00e9\/","n":null,"list":[1, 2],"message_id":"18446744073709551615"}`,
	`{"channel_id":"\u0075\"2\u000a","from_uid":"\u00fc\\","client_msg_no":"\u0061\t\/<&>","message_id":"\u0061b","message_idstr":"lost","timestamp":"2026-01-02T03:04:05.678Z"}`,
	`{"channel_id":"u2","message_id":7,"message_idstr":"seven"}`,
	`{"channel_id":"u2","message_idstr":"77"}`,
	`{"channel_id":"u2","message_idstr":"any \u0022id\u0022"}`,
	`{"channel_id":"u2","message_id":"007"}`,
	`{"channel_id":"u2","message_id":"","message_idstr":""}`,
	`{"channel_id":"u2","message_id":"18446744073709551616"}`,
	`{"channel_id":"g1","channel_type":2,"from_uid":"u1","offline_push":false}`,
	`{"channel_id":"u2","to_uids":[]}`,
	`{"channel_id":"g1","channel_type":0,"to_uids":["a",null,1.5,{"b":1},["c"],true,"","\u0000","d\u00e9"]}`,
	`{"channel_id":"\u0007","from_uid":"u1","timestamp":4102444800000}`,
}

func TestGoldenMessages(t *testing.T) {
	var out strings.Builder
	schema := compileSchema(t, "notify")
	for _, record := range goldenMessages {
		m, err := DecodeMessage([]byte(record), goldenSource)
		if err != nil {
			t.Fatalf("%s: %v", record, err)
		}
		if m.Splice < 1 || m.Splice >= len(m.Item) {
			t.Fatalf("%s: splice %d of %d", record, m.Splice, len(m.Item))
		}
		body := AppendBody(nil, [][]byte{m.Item})
		validate(t, schema, body)
		items, err := DecodeMessagesBody(body)
		if err != nil || len(items) != 1 || items[0].FromUID != m.FromUID || items[0].ChannelID != m.ChannelID ||
			items[0].ChannelType != m.ChannelType || items[0].ToUIDs != nil {
			t.Errorf("%s: its item decodes as %+v (error %v)", record, items, err)
		}
		fmt.Fprintf(&out, "%s\n  %s|%s\n  from=%q channel=%q type=%d recipients=%t %q dropped=%d push=%t\n", record,
			m.Item[:m.Splice], m.Item[m.Splice:], m.FromUID, m.ChannelID, m.ChannelType, m.HasRecipients, m.Recipients, m.Dropped, m.OfflinePush)
	}
	golden(t, "messages.golden", out.String())
}

func validate(t *testing.T, schema *jsonschema.Schema, body []byte) {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if err := schema.Validate(value); err != nil {
		t.Errorf("%s: %v", body, err)
	}
}

var goldenInbox = []struct {
	name string
	in   Inbox
}{
	{"online", Inbox{Kind: InboxConnection, Connection: Connection{
		Type: Online, UID: "uid1", ConnID: "1001", NodeID: "1", DeviceFlag: 1, HasDeviceFlag: true, Time: 1_767_323_045_678, OpenedAt: -1}}},
	{"offline", Inbox{Kind: InboxConnection, Connection: Connection{
		Type: Offline, UID: "ü\n", ConnID: "c\x00", NodeID: "gw", Time: 0, OpenedAt: 0}}},
	{"heartbeat", Inbox{Kind: InboxConnection, Connection: Connection{
		Type: Heartbeat, UID: "u", ConnID: "9223372036854775807", NodeID: "0", Time: maxTime, OpenedAt: 1_767_323_045_000, Background: true, HasBackground: true}}},
	{"foreground", Inbox{Kind: InboxConnection, Connection: Connection{
		Type: Heartbeat, UID: "u", ConnID: "7", NodeID: "0", DeviceFlag: 255, HasDeviceFlag: true, Time: 1, OpenedAt: -1, HasBackground: true}}},
	{"node_started", Inbox{Kind: InboxConnection, Connection: Connection{Type: NodeStarted, NodeID: "2", Time: 5, OpenedAt: -1}}},
	{"recipients", Inbox{Kind: InboxRecipients, Item: []byte(`{"payload":""}`), Splice: 13, UIDs: []string{"u2", "ü", strings.Repeat("u", 256)}}},
	{"caught_up", Inbox{Kind: InboxCaughtUp, CaughtUp: CaughtUp{AsOf: 1_767_323_045_678, Topics: []CaughtUpTopic{
		{Name: "im.connections", Partitions: 300, Read: []int32{0, 7, 299}}, {Name: "other", Partitions: 1, Read: []int32{}},
	}}}},
	{"expire", Inbox{Kind: InboxExpire, Expire: Expire{UID: "ü", NodeID: "2", ConnID: "c", Offset: 1 << 40}}},
}

func appendInbox(dst []byte, in *Inbox) []byte {
	switch in.Kind {
	case InboxConnection:
		return AppendInboxConnection(dst, &in.Connection)
	case InboxCaughtUp:
		return AppendInboxCaughtUp(dst, &in.CaughtUp)
	case InboxExpire:
		return AppendInboxExpire(dst, &in.Expire)
	}
	return AppendInboxRecipients(dst, in.Item, in.Splice, in.UIDs)
}

func TestGoldenInbox(t *testing.T) {
	var out strings.Builder
	for _, c := range goldenInbox {
		fmt.Fprintf(&out, "%s %x\n", c.name, appendInbox(nil, &c.in))
	}
	golden(t, "inbox.golden", out.String())
	for _, c := range goldenInbox {
		got, err := DecodeInbox([]Header{VersionHeader()}, stored(t, "inbox.golden", c.name))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.in, got); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestGoldenPresence(t *testing.T) {
	keys := []struct {
		name string
		key  PresenceKey
	}{
		{"key/connection", PresenceKey{Kind: PresenceConnection, UID: "uid1", NodeID: "1", ConnID: "1001"}},
		{"key/any_bytes", PresenceKey{Kind: PresenceConnection, UID: "ü", NodeID: "\x00", ConnID: ID(strings.Repeat("c", 256))}},
		{"key/node", PresenceKey{Kind: PresenceNodeStart, NodeID: "gw-1"}},
		{"key/marker", PresenceKey{Kind: PresenceStartMarker}},
	}
	states := []struct {
		name  string
		state ConnectionState
	}{
		{"state/open", ConnectionState{Open: true, DeviceFlag: 1, Version: 1_767_323_045_678, OpenedAt: -1}},
		{"state/background", ConnectionState{Open: true, Version: 1_767_323_045_678, OpenedAt: 1_767_323_045_000, Background: true}},
		{"state/closed", ConnectionState{DeviceFlag: 255, Version: 1_767_323_045_678, Opened: 1_767_323_000_000, InboxTime: 1_767_323_045_700, OpenedAt: -1}},
		{"state/never_seen", ConnectionState{Version: 7, Opened: 7, InboxTime: 1, OpenedAt: 0, Background: true}},
	}
	node := NodeStart{Time: 1_767_323_045_678, InboxTime: 1_767_323_045_000, Offset: -1}
	marker := StartMarker{Topics: []MarkedTopic{{Name: "im.connections", ID: [16]byte{1, 15: 255}}, {Name: "im.messages"}}}

	var out strings.Builder
	for _, c := range keys {
		fmt.Fprintf(&out, "%s %x\n", c.name, AppendPresenceKey(nil, c.key))
	}
	for _, c := range states {
		fmt.Fprintf(&out, "%s %x\n", c.name, AppendConnectionState(nil, c.state))
	}
	numbered := node
	numbered.Offset = 1 << 40
	fmt.Fprintf(&out, "node_start/offset %x\n", AppendNodeStart(nil, numbered))
	if got, err := DecodeNodeStart(AppendNodeStart(nil, numbered)); err != nil || got != numbered {
		t.Errorf("node start: %+v (error %v), want %+v", got, err, numbered)
	}
	fmt.Fprintf(&out, "node_start %x\nmarker %x\nmarker/empty %x\n",
		AppendNodeStart(nil, node), AppendStartMarker(nil, marker), AppendStartMarker(nil, StartMarker{}))
	const file = "presence.golden"
	golden(t, file, out.String())

	for _, c := range keys {
		if got, err := DecodePresenceKey(stored(t, file, c.name)); err != nil || got != c.key {
			t.Errorf("%s: %+v (error %v), want %+v", c.name, got, err, c.key)
		}
	}
	for _, c := range states {
		if got, err := DecodeConnectionState(stored(t, file, c.name)); err != nil || got != c.state {
			t.Errorf("%s: %+v (error %v), want %+v", c.name, got, err, c.state)
		}
	}
	if got, err := DecodeNodeStart(stored(t, file, "node_start")); err != nil || got != node {
		t.Errorf("node start: %+v (error %v), want %+v", got, err, node)
	}
	for name, want := range map[string]StartMarker{"marker": marker, "marker/empty": {}} {
		got, err := DecodeStartMarker(stored(t, file, name))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s differs (error %v) (-want +got):\n%s", name, err, diff)
		}
	}
}

var goldenDeadLetters = []DeadLetter{
	{
		Source: Source{Topic: "im.messages", Partition: 3, Offset: 42, Time: 1_767_323_045_678}, TopicID: [16]byte{0xab, 15: 0x01},
		SourceKey: []byte("k"), Value: []byte("not JSON"), Reason: ReasonInvalid, Detail: "the record is not valid JSON at byte 0", Sink: "route",
		Traceparent: []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
	},
	{
		Source: Source{Topic: "im.messages", Offset: 1<<63 - 1, Time: -1}, Value: []byte("{"), SourceKey: []byte{},
		Reason: ReasonTooLarge, Detail: "larger than 1 MiB", Sink: "route", Truncated: true, Size: 2_097_152,
	},
	{
		Source: Source{Topic: "offhook.msg.notify", Partition: 1<<31 - 1, Time: 1}, Value: []byte("{}"),
		Reason: ReasonRefused, Detail: "the endpoint refuses it", Sink: "a/b", Status: 422, Attempts: 2,
	},
}

func TestGoldenDeadLetters(t *testing.T) {
	schema := compileSchema(t, "deadletter")
	var out strings.Builder
	for _, d := range goldenDeadLetters {
		fmt.Fprintf(&out, "%s\n", d.Key())
		object := map[string]any{}
		for _, h := range d.Headers() {
			fmt.Fprintf(&out, "  %s: %s\n", h.Key, h.Value)
			object[h.Key] = string(h.Value)
		}
		if err := schema.Validate(object); err != nil {
			t.Errorf("%s: %v", d.Key(), err)
		}
	}
	const file = "deadletters.golden"
	golden(t, file, out.String())

	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	var got []DeadLetter
	var key []byte
	var headers []Header
	flush := func() {
		if key == nil {
			return
		}
		d, err := DecodeDeadLetter(key, headers, goldenDeadLetters[len(got)].Value)
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
		got, headers = append(got, d), nil
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if name, value, is := strings.Cut(strings.TrimPrefix(line, "  "), ": "); is && strings.HasPrefix(line, "  ") {
			headers = append(headers, Header{name, []byte(value)})
			continue
		}
		flush()
		key = []byte(line)
	}
	flush()
	if diff := cmp.Diff(goldenDeadLetters, got); diff != "" {
		t.Errorf("dead letters differ (-want +got):\n%s", diff)
	}
}

func TestGoldenBodies(t *testing.T) {
	statuses := []OnlineStatus{
		{UID: "uid1", DeviceFlag: 1, Online: true, ConnID: 1001, DeviceCount: 1, TotalCount: 1},
		{UID: `a-1-"\`, DeviceFlag: 255, ConnID: 1<<63 - 1, DeviceCount: 0, TotalCount: 2147483647},
		{UID: "ü<&>\u2028", Online: true, ConnID: ID("gw-conn").Number(), DeviceCount: 2, TotalCount: 3},
	}
	var items [][]byte
	for _, s := range statuses {
		items = append(items, AppendOnlineStatus(nil, s))
	}
	status := AppendBody(nil, items)
	validate(t, compileSchema(t, "onlinestatus"), status)

	var notify, offline [][]byte
	for _, record := range goldenMessages[1:3] {
		m, err := DecodeMessage([]byte(record), goldenSource)
		if err != nil {
			t.Fatal(err)
		}
		notify = append(notify, m.Item)
		offline = append(offline, AppendOfflineItem(nil, m.Item, m.Splice, []string{"u2", `"\`, "ü\u2028"}))
	}
	notifyBody, offlineBody := AppendBody(nil, notify), AppendBody(nil, offline)
	validate(t, compileSchema(t, "notify"), notifyBody)
	validate(t, compileSchema(t, "offline"), offlineBody)
	golden(t, "bodies.golden", fmt.Sprintf("%s\n  %s\n%s\n  %s\n%s\n  %s\nempty\n  %s\n",
		EventOnlineStatus, status, EventNotify, notifyBody, EventOffline, offlineBody, AppendBody(nil, nil)))

	gotStatuses, err := DecodeOnlineStatusBody(status)
	if diff := cmp.Diff(statuses, gotStatuses); err != nil || diff != "" {
		t.Errorf("online status differs (error %v) (-want +got):\n%s", err, diff)
	}
	want := []MessageItem{
		{
			MessageID: "9007199254740993", MessageIDStr: "9007199254740993", ClientMsgNo: "n-1", FromUID: "u1", ChannelID: "g1",
			ChannelType: 2, Timestamp: 1767323045, ToUIDs: []string{"u2", `"\`, "ü\u2028"},
		},
		{
			MessageID: "18446744073709551615", MessageIDStr: "18446744073709551615", ChannelID: "g1", ChannelType: 2,
			Timestamp: 1_700_000_000, ToUIDs: []string{"u2", `"\`, "ü\u2028"},
		},
	}
	gotItems, err := DecodeMessagesBody(offlineBody)
	if diff := cmp.Diff(want, gotItems); err != nil || diff != "" {
		t.Errorf("msg.offline differs (error %v) (-want +got):\n%s", err, diff)
	}
	gotItems, err = DecodeMessagesBody(notifyBody)
	if diff := cmp.Diff(want, gotItems, cmpopts.IgnoreFields(MessageItem{}, "ToUIDs")); err != nil || diff != "" {
		t.Errorf("msg.notify differs (error %v) (-want +got):\n%s", err, diff)
	}
	gotItems, err = DecodeMessagesBody(offline[0])
	if diff := cmp.Diff(want[:1], gotItems); err != nil || diff != "" {
		t.Errorf("msg.offline as an object differs (error %v) (-want +got):\n%s", err, diff)
	}
}
