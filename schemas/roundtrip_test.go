package schemas

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var (
	drawUID = rapid.OneOf(rapid.StringMatching(`[a-z0-9-]{1,12}`), rapid.StringN(1, 40, 256)).Filter(ValidUID)
	drawID  = rapid.Custom(func(t *rapid.T) ID {
		if rapid.Bool().Draw(t, "integer") {
			return ID(strconv.FormatInt(rapid.Int64Min(0).Draw(t, "id"), 10))
		}
		return ID(rapid.StringN(1, 40, 256).Draw(t, "id"))
	})
	drawTime       = rapid.Int64Range(0, maxTime)
	drawConnection = rapid.Custom(func(t *rapid.T) Connection {
		c := Connection{
			Type: ConnectionType(rapid.IntRange(1, 4).Draw(t, "type")), NodeID: drawID.Draw(t, "node"),
			Time: drawTime.Draw(t, "time"), OpenedAt: rapid.OneOf(rapid.Just(int64(-1)), drawTime).Draw(t, "opened_at"),
		}
		if c.Type == NodeStarted || c.Type == Heartbeat && rapid.Bool().Draw(t, "of a node") {
			return c
		}
		c.UID, c.ConnID = drawUID.Draw(t, "uid"), drawID.Draw(t, "conn")
		if c.HasDeviceFlag = c.Type == Online || rapid.Bool().Draw(t, "has flag"); c.HasDeviceFlag {
			c.DeviceFlag = rapid.Byte().Draw(t, "flag")
		}
		if c.HasBackground = c.Type != Offline && rapid.Bool().Draw(t, "has background"); c.HasBackground {
			c.Background = rapid.Bool().Draw(t, "background")
		}
		return c
	})
)

var version = []Header{{Key: "other", Value: []byte("x")}, VersionHeader()}

// The JSON of a connection event, written by another encoder, decodes to what it says, however its members are ordered.
func TestConnectionRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawConnection.Draw(t, "connection")
		fields := map[string]any{"type": want.Type.String(), "more": []any{nil, map[string]any{"uid": nil}}, "nothing": nil}
		setID := func(name string, id ID) {
			n, err := strconv.ParseUint(string(id), 10, 63)
			if err == nil && strconv.FormatUint(n, 10) == string(id) && rapid.Bool().Draw(t, name+" as a number") {
				fields[name] = n
			} else {
				fields[name] = string(id)
			}
		}
		setTime := func(name string, ms int64) {
			if ms < secondsBelow { // as milliseconds it would be taken for seconds
				fields[name] = "1970-01-01T00:00:00Z"
				ms = 0
			} else {
				fields[name] = ms
			}
			switch name {
			case "timestamp":
				want.Time = ms
			default:
				want.OpenedAt = ms
			}
		}
		setID("node_id", want.NodeID)
		if want.UID != "" {
			fields["uid"] = want.UID
			setID("conn_id", want.ConnID)
		}
		if want.HasDeviceFlag {
			fields["device_flag"] = want.DeviceFlag
		}
		if want.HasBackground {
			fields["background"] = want.Background
		}
		if want.OpenedAt >= 0 {
			setTime("opened_at", want.OpenedAt)
		}
		setTime("timestamp", want.Time)
		record, err := json.Marshal(fields, jsontext.EscapeForJS(rapid.Bool().Draw(t, "escapes")), jsontext.Multiline(rapid.Bool().Draw(t, "spaces")))
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeConnection(record, 5)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Fatalf("%s: differs (error %v) (-want +got):\n%s", record, err, diff)
		}
	})
}

// reference is a message as another JSON library sees it, field for field.
type reference struct {
	Header       jsontext.Value `json:"header"`
	Setting      uint8          `json:"setting"`
	MessageID    uint64         `json:"message_id"`
	MessageIDStr string         `json:"message_idstr"`
	ClientMsgNo  string         `json:"client_msg_no"`
	MessageSeq   uint64         `json:"message_seq"`
	FromUID      string         `json:"from_uid"`
	ChannelID    string         `json:"channel_id"`
	ChannelType  uint8          `json:"channel_type"`
	Timestamp    int64          `json:"timestamp"`
	Payload      []byte         `json:"payload"`
	ToUIDs       []string       `json:"to_uids,omitzero"`
	More         jsontext.Value `json:"more"`
}

func TestMessageRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := reference{
			Setting: rapid.Byte().Draw(t, "setting"), MessageID: rapid.Uint64().Draw(t, "message_id"),
			ClientMsgNo: rapid.String().Draw(t, "client_msg_no"), MessageSeq: rapid.Uint64().Draw(t, "message_seq"),
			FromUID:   rapid.OneOf(rapid.Just(""), drawUID).Draw(t, "from_uid"),
			ChannelID: rapid.StringN(1, 20, -1).Draw(t, "channel_id"), ChannelType: rapid.Byte().Draw(t, "channel_type"),
			Timestamp: rapid.Int64Range(0, secondsBelow-1).Draw(t, "timestamp"),
			Payload:   rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "payload"),
			ToUIDs:    rapid.SliceOfN(drawUID, 0, 5).Draw(t, "to_uids"),
			More:      jsontext.Value(rapid.SampledFrom([]string{`1`, `"\u0001é"`, `{"a":[1.5e3,null]}`}).Draw(t, "more")),
		}
		want.MessageIDStr = strconv.FormatUint(want.MessageID, 10)
		offline := rapid.SliceOfNDistinct(drawUID, 1, 5, rapid.ID).Draw(t, "offline")
		fields := map[string]any{
			"setting": want.Setting, "message_id": want.MessageID, "client_msg_no": want.ClientMsgNo, "message_seq": want.MessageSeq,
			"from_uid": want.FromUID, "channel_id": want.ChannelID, "channel_type": want.ChannelType, "timestamp": want.Timestamp,
			"payload": base64.StdEncoding.EncodeToString(want.Payload), "to_uids": want.ToUIDs, "more": want.More,
			"header": map[string]int{}, "offline_push": true,
		}
		record, err := json.Marshal(fields, jsontext.EscapeForHTML(rapid.Bool().Draw(t, "escapes")), jsontext.Multiline(rapid.Bool().Draw(t, "spaces")))
		if err != nil {
			t.Fatal(err)
		}
		m, err := DecodeMessage(record, Source{Topic: "t"})
		if err != nil {
			t.Fatalf("%s: %v", record, err)
		}
		if m.FromUID != want.FromUID || m.ChannelID != want.ChannelID || m.ChannelType != want.ChannelType || !m.HasRecipients || m.Dropped != 0 {
			t.Fatalf("%s: decoded as %+v", record, m)
		}
		if diff := cmp.Diff(want.ToUIDs, m.Recipients, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s: recipients differ (-want +got):\n%s", record, diff)
		}

		var notify, withUIDs reference
		parse(t, m.Item, &notify)
		parse(t, AppendOfflineItem(nil, m.Item, m.Splice, offline), &withUIDs)
		compare := func(what string, want, got reference) {
			options := cmp.Options{cmpopts.EquateEmpty(), cmpopts.IgnoreFields(reference{}, "Header", "More")}
			if diff := cmp.Diff(want, got, options); diff != "" {
				t.Fatalf("%s: %s differs (-want +got):\n%s", record, what, diff)
			}
			// Compared without white space, which Multiline puts into values too.
			if a, b := compact(t, want.More), compact(t, got.More); a != b {
				t.Fatalf("%s: %s has more %s, want %s", record, what, b, a)
			}
		}
		want.ToUIDs = nil
		compare("msg.notify", want, notify)
		want.ToUIDs = offline
		compare("msg.offline", want, withUIDs)

		// The item as the presence stage gets it.
		in, err := DecodeInbox(version, AppendInboxRecipients(nil, m.Item, m.Splice, offline))
		if diff := cmp.Diff(Inbox{Kind: InboxRecipients, Item: m.Item, Splice: m.Splice, UIDs: offline}, in); err != nil || diff != "" {
			t.Fatalf("inbox record differs (error %v) (-want +got):\n%s", err, diff)
		}
	})
}

func parse(t *rapid.T, item []byte, into *reference) {
	if err := json.Unmarshal(item, into, json.RejectUnknownMembers(true)); err != nil {
		t.Fatalf("%s: %v", item, err)
	}
}

func compact(t *rapid.T, v jsontext.Value) string {
	v = v.Clone()
	if err := v.Compact(); err != nil {
		t.Fatalf("%s: %v", v, err)
	}
	return string(v)
}

func TestBinaryRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawConnection.Draw(t, "connection")
		in, err := DecodeInbox(version, AppendInboxConnection([]byte("x"), &c)[1:])
		if diff := cmp.Diff(Inbox{Kind: InboxConnection, Connection: c}, in); err != nil || diff != "" {
			t.Fatalf("inbox record differs (error %v) (-want +got):\n%s", err, diff)
		}

		k := PresenceKey{Kind: PresenceConnection, UID: c.UID, NodeID: c.NodeID, ConnID: c.ConnID}
		if rapid.Bool().Draw(t, "node's key") {
			k = PresenceKey{Kind: PresenceNodeStart, NodeID: c.NodeID}
		}
		if got, err := DecodePresenceKey(AppendPresenceKey(nil, k)); err != nil || got != k {
			t.Fatalf("presence key: %+v (error %v), want %+v", got, err, k)
		}

		s := ConnectionState{
			Open: rapid.Bool().Draw(t, "open"), DeviceFlag: c.DeviceFlag, Version: rapid.Int64().Draw(t, "version"),
			OpenedAt: c.OpenedAt, Background: c.Background,
		}
		if !s.Open {
			s.Opened, s.InboxTime = rapid.Int64().Draw(t, "opened"), rapid.Int64().Draw(t, "inbox time")
		}
		if got, err := DecodeConnectionState(AppendConnectionState(nil, s)); err != nil || got != s {
			t.Fatalf("connection state: %+v (error %v), want %+v", got, err, s)
		}

		n := NodeStart{Time: rapid.Int64().Draw(t, "start"), InboxTime: rapid.Int64().Draw(t, "start's inbox time"), Offset: rapid.Int64Range(-1, 1<<60).Draw(t, "start's offset")}
		if got, err := DecodeNodeStart(AppendNodeStart(nil, n)); err != nil || got != n {
			t.Fatalf("node start: %+v (error %v), want %+v", got, err, n)
		}

		status := OnlineStatus{
			UID: drawUID.Draw(t, "status uid"), DeviceFlag: c.DeviceFlag, Online: s.Open, ConnID: c.ConnID.Number(),
			DeviceCount: rapid.IntRange(0, math.MaxInt32).Draw(t, "devices"), TotalCount: rapid.IntRange(0, math.MaxInt32).Draw(t, "total"),
		}
		statuses, err := DecodeOnlineStatusBody(AppendBody(nil, [][]byte{AppendOnlineStatus(nil, status)}))
		if diff := cmp.Diff([]OnlineStatus{status}, statuses); err != nil || diff != "" {
			t.Fatalf("online status differs (error %v) (-want +got):\n%s", err, diff)
		}

		d := DeadLetter{
			Source: Source{Topic: rapid.String().Draw(t, "topic"), Partition: rapid.Int32Min(0).Draw(t, "partition"),
				Offset: rapid.Int64Min(0).Draw(t, "offset"), Time: rapid.Int64().Draw(t, "source time")},
			SourceKey: rapid.SliceOf(rapid.Byte()).Draw(t, "key"), Value: rapid.SliceOf(rapid.Byte()).Draw(t, "value"),
			Reason: rapid.SampledFrom(Reasons()).Draw(t, "reason"), Detail: rapid.String().Draw(t, "detail"),
			Sink: rapid.String().Draw(t, "sink"), Status: rapid.IntRange(0, 599).Draw(t, "status"),
			Attempts: rapid.IntRange(0, math.MaxInt32).Draw(t, "attempts"), Truncated: rapid.Bool().Draw(t, "truncated"),
		}
		copy(d.TopicID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "topic id"))
		if rapid.Bool().Draw(t, "no key") {
			d.SourceKey = nil
		}
		if d.Truncated {
			d.Size = rapid.IntRange(0, math.MaxInt32).Draw(t, "size")
		}
		got, err := DecodeDeadLetter(d.Key(), d.Headers(), d.Value)
		if diff := cmp.Diff(d, got); err != nil || diff != "" {
			t.Fatalf("dead letter differs (error %v) (-want +got):\n%s", err, diff)
		}
	})
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	for name, got := range map[string][]byte{
		"connection":   AppendInboxConnection([]byte("x"), &Connection{Type: Online, OpenedAt: -1}),
		"recipients":   AppendInboxRecipients([]byte("x"), []byte("{}"), 1, []string{"u"}),
		"caught up":    AppendInboxCaughtUp([]byte("x"), &CaughtUp{}),
		"expire":       AppendInboxExpire([]byte("x"), &Expire{}),
		"presence key": AppendPresenceKey([]byte("x"), PresenceKey{Kind: PresenceStartMarker}),
		"state":        AppendConnectionState([]byte("x"), ConnectionState{}),
		"node start":   AppendNodeStart([]byte("x"), NodeStart{}),
		"marker":       AppendStartMarker([]byte("x"), StartMarker{}),
		"status":       AppendOnlineStatus([]byte("x"), OnlineStatus{UID: "u"}),
		"offline":      AppendOfflineItem([]byte("x"), []byte("{}"), 1, []string{"u"}),
		"body":         AppendBody([]byte("x"), nil),
	} {
		if got[0] != 'x' || len(got) < 2 {
			t.Errorf("%s: appended %q to x", name, got)
		}
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		headers []Header
		newer   bool
		invalid bool
	}{
		{headers: version},
		{headers: []Header{{"v", []byte("2")}}, newer: true},
		{headers: []Header{{"v", []byte("10")}}, newer: true},
		{headers: nil, invalid: true},
		{headers: []Header{{"V", []byte("1")}}, invalid: true},
		{headers: []Header{{"v", nil}}, invalid: true},
		{headers: []Header{{"v", []byte("0")}}, invalid: true},
		{headers: []Header{{"v", []byte("01")}}, invalid: true},
		{headers: []Header{{"v", []byte("+1")}}, invalid: true},
		{headers: []Header{{"v", []byte("one")}}, invalid: true},
	} {
		_, inbox := DecodeInbox(c.headers, goldenInboxValue())
		_, letter := DecodeDeadLetter(goldenDeadLetters[0].Key(), append(c.headers, goldenDeadLetters[0].Headers()[1:]...), nil)
		for _, err := range []error{CheckVersion("record", c.headers), inbox, letter} {
			_, newer := errors.AsType[*VersionError](err)
			_, invalid := errors.AsType[*InvalidError](err)
			if newer != c.newer || invalid != c.invalid || (err != nil) != (c.newer || c.invalid) {
				t.Errorf("%v: error %v, want newer %t, invalid %t", c.headers, err, c.newer, c.invalid)
			}
		}
	}
	const want = `inbox record has format version "2" and this release knows versions up to 1; run a release that knows it`
	if err := CheckVersion("inbox record", []Header{{"v", []byte("2")}}); err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func goldenInboxValue() []byte { return appendInbox(nil, &goldenInbox[0].in) }

// What a newer release may add to a known version stops the stage by a VersionError, and must not pass as damage.
func TestUnknownParts(t *testing.T) {
	inbox := func(b []byte) error { _, err := DecodeInbox(version, b); return err }
	key := func(b []byte) error { _, err := DecodePresenceKey(b); return err }
	state := func(b []byte) error { _, err := DecodeConnectionState(b); return err }
	start := func(b []byte) error { _, err := DecodeNodeStart(b); return err }
	marker := func(b []byte) error { _, err := DecodeStartMarker(b); return err }
	change := func(b []byte, at int, to byte) []byte { b = bytes.Clone(b); b[at] = to; return b }

	connection := goldenInboxValue()
	for _, c := range []struct {
		decode func([]byte) error
		value  []byte
		want   string
	}{
		{inbox, []byte{5, 1, 2, 3}, "inbox record has kind 5, which this release does not know; run a release that knows it"},
		{inbox, []byte{6}, "inbox record has kind 6"},
		{inbox, []byte{0}, "inbox record has kind 0"},
		{inbox, change(connection, 1, 5), "inbox record has connection type 5"},
		{inbox, change(connection, 1, 0), "inbox record has connection type 0"},
		{inbox, change(connection, 2, 0x11), "inbox record has flags 0x10"},
		{key, []byte{4, 1, 2}, "presence key has kind 4"},
		{key, []byte{0}, "presence key has kind 0"},
		{state, change(AppendConnectionState(nil, ConnectionState{}), 0, 0x80), "connection state has flags 0x80"},
		{start, change(AppendNodeStart(nil, NodeStart{}), 0, 2), "node start has flags 0x02"},
		{marker, change(AppendStartMarker(nil, StartMarker{}), 0, 1), "start marker has flags 0x01"},
	} {
		err := c.decode(c.value)
		if _, is := errors.AsType[*VersionError](err); !is || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%x: error %v, want a VersionError: %s", c.value, err, c.want)
		}
	}
}

// Every prefix of a record, and a record with a byte behind it, is damage.
func TestDamage(t *testing.T) {
	values := map[string][]byte{
		"connection": appendInbox(nil, &goldenInbox[2].in),
		"recipients": appendInbox(nil, &goldenInbox[5].in),
		"key":        AppendPresenceKey(nil, PresenceKey{Kind: PresenceConnection, UID: "u", NodeID: "n", ConnID: "c"}),
		"state":      AppendConnectionState(nil, ConnectionState{Version: 1e12, Opened: 1, OpenedAt: 1e12}),
		"start":      AppendNodeStart(nil, NodeStart{Time: 1e12, InboxTime: 5}),
		"marker":     AppendStartMarker(nil, StartMarker{Topics: []MarkedTopic{{Name: "a"}, {Name: "b"}}}),
	}
	decode := map[string]func([]byte) error{
		"connection": func(b []byte) error { _, err := DecodeInbox(version, b); return err },
		"recipients": func(b []byte) error { _, err := DecodeInbox(version, b); return err },
		"key":        func(b []byte) error { _, err := DecodePresenceKey(b); return err },
		"state":      func(b []byte) error { _, err := DecodeConnectionState(b); return err },
		"start":      func(b []byte) error { _, err := DecodeNodeStart(b); return err },
		"marker":     func(b []byte) error { _, err := DecodeStartMarker(b); return err },
	}
	for name, value := range values {
		if err := decode[name](value); err != nil {
			t.Errorf("%s: whole: %v", name, err)
		}
		for n := range len(value) {
			if _, is := errors.AsType[*InvalidError](decode[name](value[:n:n])); !is {
				t.Errorf("%s: its first %d bytes of %d: error %v, want an InvalidError", name, n, len(value), decode[name](value[:n:n]))
			}
		}
		if _, is := errors.AsType[*InvalidError](decode[name](append(bytes.Clone(value), 0))); !is {
			t.Errorf("%s: a byte too many is accepted", name)
		}
	}
	for name, value := range map[string][]byte{
		"no recipients":          AppendInboxRecipients(nil, []byte("{}"), 1, nil),
		"empty uid":              AppendInboxRecipients(nil, []byte("{}"), 1, []string{"u", ""}),
		"splice past the item":   AppendInboxRecipients(nil, []byte("{}"), 3, []string{"u"}),
		"huge number of uids":    append([]byte{2, 2, '{', '}', 1}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 'u'),
		"huge length":            append([]byte{2}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 'u'),
		"integer over 64 bits":   append([]byte{2}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2),
		"huge splice":            append([]byte{2, 2, '{', '}'}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 1, 'u'),
		"negative generation":    {1, 1, inboxHasOpenedAt, 0, 1, 'u', 1, 'c', 1, 'n', 1},
		"no value":               nil,
		"kind without a content": {1},
	} {
		if _, is := errors.AsType[*InvalidError](decode["recipients"](value)); !is {
			t.Errorf("%s: error %v, want an InvalidError", name, decode["recipients"](value))
		}
	}
	huge := []byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 'a'}
	if _, is := errors.AsType[*InvalidError](decode["marker"](huge)); !is {
		t.Error("marker: a huge number of topics is accepted")
	}
}

func TestParseOnlineStatusRefuses(t *testing.T) {
	for _, s := range []string{
		"", "u", "-1-1-1-1-1", "1-1-1-1-1", "u-256-1-1-1-1", "u-1-2-1-1-1", "u-1-1-9223372036854775808-1-1", "u-1-1-1-2147483648-1",
		"u-1-1-1-1-2147483648", "u-01-1-1-1-1", "u-1-1-+1-1-1", "u-1-1-1-1-", "u-1-1-1-1-1 ", "u\n-1-1-1-1-1", strings.Repeat("u", 257) + "-1-1-1-1-1",
	} {
		if got, err := ParseOnlineStatus(s); err == nil {
			t.Errorf("%q: parsed as %+v, want an error", s, got)
		}
	}
	const dashes = "a-1-1-1-1-1-0-0-5-0-0"
	if got, err := ParseOnlineStatus(dashes); err != nil || got != (OnlineStatus{UID: "a-1-1-1-1-1", ConnID: 5}) {
		t.Errorf("%q: parsed as %+v (error %v)", dashes, got, err)
	}
}

func TestBodiesRefuse(t *testing.T) {
	m, err := DecodeMessage([]byte(goldenMessages[1]), goldenSource)
	if err != nil {
		t.Fatal(err)
	}
	item := string(m.Item)
	for _, body := range []string{
		``, `null`, `5`, `"a"`, `[5]`, `[null]`, `[[]]`, `[` + item, `[` + item + `]]`, item + item, `[` + item + `,]`, `{}`,
		strings.Replace(item, `"setting":255,`, ``, 1),
		strings.Replace(item, `"header":{`, `"heade":{`, 1),
		strings.Replace(item, `"message_id":9007199254740993`, `"message_id":"9007199254740993"`, 1),
		strings.Replace(item, `"message_id":9007199254740993`, `"message_id":9007199254740993.0`, 1),
		strings.Replace(item, `"channel_type":2`, `"channel_type":256`, 1),
		strings.Replace(item, `"channel_type":2`, `"channel_type":2,"channel_type":2`, 1),
		strings.Replace(item, `"timestamp":1767323045`, `"timestamp":-1`, 1),
		strings.Replace(item, `"payload":"aGVsbG8="`, `"payload":"aGVsbG8"`, 1),
		strings.Replace(item, `"payload":`, `"to_uids":"u","payload":`, 1),
		strings.Replace(item, `"payload":`, `"to_uids":[1],"payload":`, 1),
		strings.Replace(item, `"payload":`, `"to_uids":["a","payload":`, 1),
	} {
		if items, err := DecodeMessagesBody([]byte(body)); err == nil {
			t.Errorf("%s: decoded as %+v, want an error", body, items)
		}
	}
	if items, err := DecodeMessagesBody([]byte(`[]`)); err != nil || len(items) != 0 {
		t.Errorf("[]: decoded as %+v (error %v)", items, err)
	}
	for _, body := range []string{``, `{}`, `null`, `["u-1-1-1-1-1"`, `["u-1-1-1-1-1"]x`, `["u-1-1-1-1"]`, `[5]`, `["u-1-1-1-1-1",]`} {
		if items, err := DecodeOnlineStatusBody([]byte(body)); err == nil {
			t.Errorf("%s: decoded as %+v, want an error", body, items)
		}
	}
}

func TestDeadLettersRefuse(t *testing.T) {
	good := goldenDeadLetters[0]
	for _, key := range []string{
		"", "route", "ab/3/42", "route/ab000000000000000000000000000001/3/-42", "route/ab00000000000000000000000000000/3/42",
		"route/zb000000000000000000000000000001/3/42", "route/ab000000000000000000000000000001/2147483648/42",
		"route/ab000000000000000000000000000001/3/43", "other/ab000000000000000000000000000001/3/42", "route/ab000000000000000000000000000001/4/42",
	} {
		if _, err := DecodeDeadLetter([]byte(key), good.Headers(), nil); err == nil {
			t.Errorf("key %q is accepted", key)
		}
	}
	for i, h := range good.Headers() {
		headers := good.Headers()
		headers = append(headers[:i:i], headers[i+1:]...)
		optional := h.Key == HeaderSourceKey || h.Key == HeaderTraceparent
		_, err := DecodeDeadLetter(good.Key(), headers, nil)
		if invalid, is := errors.AsType[*InvalidError](err); is == optional || is && invalid.Field != h.Key {
			t.Errorf("without %s: error %v", h.Key, err)
		}
	}
	for _, h := range []Header{
		{HeaderReason, []byte("bored")}, {HeaderSourceOffset, []byte("x")}, {HeaderSourcePartition, []byte("-1")}, {HeaderSourceTimestamp, []byte("now")},
		{HeaderStatus, []byte("ok")}, {HeaderAttempts, nil}, {HeaderTruncated, []byte("false")}, {HeaderSize, []byte("1e3")},
	} {
		_, err := DecodeDeadLetter(good.Key(), append(good.Headers(), h), nil)
		if invalid, is := errors.AsType[*InvalidError](err); !is || invalid.Field != h.Key {
			t.Errorf("%s %q: error %v", h.Key, h.Value, err)
		}
	}
	if _, err := DecodeDeadLetter(good.Key(), append(good.Headers(), Header{"later", []byte("x")}), nil); err != nil {
		t.Errorf("a header of its own: %v", err)
	}
}

// A record that is decoded may be overwritten: its fetch buffer is used again.
func TestDecodedOwnsItsStrings(t *testing.T) {
	record := []byte(`{"type":"online","uid":"abc","conn_id":"conn","node_id":"node"}`)
	c, err := DecodeConnection(record, 0)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte(goldenMessages[1])
	m, err := DecodeMessage(message, goldenSource)
	if err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprintf("%+v %s %v", c, m.Item, m)
	clear(record)
	clear(message)
	if _, err := DecodeMessage([]byte(`{"channel_id":"zzzz","to_uids":["yyyyyyyyy"],"header":{"q":1},"w":2}`), goldenSource); err != nil {
		t.Fatal(err)
	}
	if after := fmt.Sprintf("%+v %s %v", c, m.Item, m); after != before {
		t.Errorf("decoded values changed with the record:\n%s\n%s", before, after)
	}
}

func TestSchemas(t *testing.T) {
	for _, name := range SchemaNames() {
		compileSchema(t, name)
	}
	if _, err := Schema("../schemas.go"); err == nil {
		t.Error("a schema that is none is given out")
	}
	names := SchemaNames()
	names[0] = "changed"
	if SchemaNames()[0] == "changed" {
		t.Error("the list of names can be changed from outside")
	}
}

// A wrong count must not ask for more memory than the record could fill.
func TestWrongCountsAskForNoMemory(t *testing.T) {
	const size = 1 << 20
	junk := make([]byte, size)
	inbox := append(binary.AppendUvarint([]byte{byte(InboxRecipients), 0, 0}, size/2+1), junk...)
	marker := append(binary.AppendUvarint([]byte{0}, size/17+1), junk...)
	for name, decode := range map[string]func() error{
		"inbox":  func() error { _, err := DecodeInbox(version, inbox); return err },
		"marker": func() error { _, err := DecodeStartMarker(marker); return err },
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := decode()
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; err == nil || got > size/2 {
			t.Errorf("%s: error %v after %d bytes were allocated for a record of %d", name, err, got, size)
		}
	}
}

// Decoders share pooled buffers; none may see another's.
func TestDecodeInParallel(t *testing.T) {
	want := make([][]byte, len(goldenMessages))
	for i, record := range goldenMessages {
		m, err := DecodeMessage([]byte(record), goldenSource)
		if err != nil {
			t.Fatal(err)
		}
		want[i] = m.Item
	}
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for n := range 200 {
				i := (n + worker) % len(goldenMessages)
				m, err := DecodeMessage([]byte(goldenMessages[i]), goldenSource)
				if err != nil || !bytes.Equal(m.Item, want[i]) {
					t.Errorf("%s: item %s (error %v), want %s", goldenMessages[i], m.Item, err, want[i])
					return
				}
				if _, err := DecodeConnection([]byte(goldenMessages[i]), 0); err == nil {
					t.Errorf("%s: accepted as a connection event", goldenMessages[i])
					return
				}
			}
		})
	}
	wg.Wait()
}
