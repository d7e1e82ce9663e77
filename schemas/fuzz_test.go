package schemas

import (
	"bytes"
	"errors"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Every decoder is fuzzed for panics, and for this: what it accepts comes out again as it went in.

func typed(t *testing.T, err error) {
	t.Helper()
	_, invalid := errors.AsType[*InvalidError](err)
	_, version := errors.AsType[*VersionError](err)
	if err != nil && !invalid && !version {
		t.Errorf("error %v is neither an InvalidError nor a VersionError", err)
	}
}

func FuzzDecodeConnection(f *testing.F) {
	for _, in := range connectionInputs {
		f.Add([]byte(in.json))
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		before := bytes.Clone(record)
		c, err := DecodeConnection(record, 1_700_000_000_000)
		typed(t, err)
		if !bytes.Equal(record, before) {
			t.Error("decoding has changed the record")
		}
		if err != nil {
			return
		}
		if node := c.UID == ""; node != (c.ConnID == "") || !node && !ValidUID(c.UID) || c.NodeID == "" || c.Time < 0 || c.Time > maxTime {
			t.Errorf("accepted as %+v", c)
		}
		in, err := DecodeInbox(version, AppendInboxConnection(nil, &c))
		if diff := cmp.Diff(c, in.Connection); err != nil || diff != "" {
			t.Errorf("inbox record differs (error %v) (-want +got):\n%s", err, diff)
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	for _, in := range messageInputs {
		f.Add([]byte(in.json))
	}
	for _, record := range goldenMessages {
		f.Add([]byte(record))
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		before := bytes.Clone(record)
		m, err := DecodeMessage(record, goldenSource)
		typed(t, err)
		if !bytes.Equal(record, before) {
			t.Error("decoding has changed the record")
		}
		if err != nil {
			return
		}
		offline := AppendOfflineItem(nil, m.Item, m.Splice, []string{"u2"})
		for _, item := range [][]byte{m.Item, offline} {
			if !jsontext.Value(item).IsValid() {
				t.Fatalf("the item is no strict JSON: %s", item)
			}
			items, err := DecodeMessagesBody(AppendBody(nil, [][]byte{item}))
			if err != nil || len(items) != 1 || items[0].ChannelID != m.ChannelID || items[0].FromUID != m.FromUID {
				t.Fatalf("%s: decodes as %+v (error %v)", item, items, err)
			}
		}
		// A message that was decoded is one that can be decoded, with the same item.
		again, err := DecodeMessage(m.Item, Source{})
		if err != nil || !bytes.Equal(again.Item, m.Item) || again.Splice != m.Splice {
			t.Errorf("the item decodes to another item (error %v):\n%s\n%s", err, m.Item, again.Item)
		}
	})
}

func FuzzDecodeInbox(f *testing.F) {
	for _, c := range goldenInbox {
		f.Add(appendInbox(nil, &c.in))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		in, err := DecodeInbox(version, value)
		typed(t, err)
		if err != nil {
			return
		}
		again, err := DecodeInbox(version, appendInbox(nil, &in))
		if diff := cmp.Diff(in, again); err != nil || diff != "" {
			t.Errorf("differs (error %v) (-want +got):\n%s", err, diff)
		}
	})
}

func FuzzDecodePresenceKey(f *testing.F) {
	f.Add(AppendPresenceKey(nil, PresenceKey{Kind: PresenceConnection, UID: "u", NodeID: "0", ConnID: "c"}))
	f.Add(AppendPresenceKey(nil, PresenceKey{Kind: PresenceNodeStart, NodeID: "0"}))
	f.Add(AppendPresenceKey(nil, PresenceKey{Kind: PresenceStartMarker}))
	f.Fuzz(func(t *testing.T, key []byte) {
		k, err := DecodePresenceKey(key)
		typed(t, err)
		if err != nil {
			return
		}
		if again, err := DecodePresenceKey(AppendPresenceKey(nil, k)); err != nil || again != k {
			t.Errorf("%+v (error %v), want %+v", again, err, k)
		}
	})
}

func FuzzDecodePresenceValues(f *testing.F) {
	f.Add(AppendConnectionState(nil, ConnectionState{Open: true, Version: 5, OpenedAt: 1}))
	f.Add(AppendConnectionState(nil, ConnectionState{Version: 5, Opened: 4, InboxTime: 9, OpenedAt: -1}))
	f.Add(AppendNodeStart(nil, NodeStart{Time: 5, InboxTime: 4}))
	f.Add(AppendStartMarker(nil, StartMarker{Topics: []MarkedTopic{{Name: "t", ID: [16]byte{1}}}}))
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := DecodeConnectionState(value)
		typed(t, err)
		if err == nil {
			if again, err := DecodeConnectionState(AppendConnectionState(nil, s)); err != nil || again != s {
				t.Errorf("%+v (error %v), want %+v", again, err, s)
			}
		}
		n, err := DecodeNodeStart(value)
		typed(t, err)
		if err == nil {
			if again, err := DecodeNodeStart(AppendNodeStart(nil, n)); err != nil || again != n {
				t.Errorf("%+v (error %v), want %+v", again, err, n)
			}
		}
		m, err := DecodeStartMarker(value)
		typed(t, err)
		if err == nil {
			again, err := DecodeStartMarker(AppendStartMarker(nil, m))
			if diff := cmp.Diff(m, again); err != nil || diff != "" {
				t.Errorf("marker differs (error %v) (-want +got):\n%s", err, diff)
			}
		}
	})
}

func FuzzDecodeBodies(f *testing.F) {
	f.Add([]byte(`["u-1-1-1-1-1"]`))
	for _, record := range goldenMessages {
		m, err := DecodeMessage([]byte(record), goldenSource)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(AppendBody(nil, [][]byte{m.Item, AppendOfflineItem(nil, m.Item, m.Splice, []string{"u"})}))
		f.Add(m.Item)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		statuses, err := DecodeOnlineStatusBody(body)
		typed(t, err)
		if err == nil {
			var items [][]byte
			for _, s := range statuses {
				items = append(items, AppendOnlineStatus(nil, s))
			}
			again, err := DecodeOnlineStatusBody(AppendBody(nil, items))
			if diff := cmp.Diff(statuses, again); err != nil || diff != "" {
				t.Errorf("online status differs (error %v) (-want +got):\n%s", err, diff)
			}
		}
		_, err = DecodeMessagesBody(body)
		typed(t, err)
		if err == nil && !jsontext.Value(body).IsValid() {
			t.Error("a body that is no strict JSON is accepted")
		}
	})
}

func FuzzDecodeDeadLetter(f *testing.F) {
	for _, d := range goldenDeadLetters {
		f.Add(d.Key(), HeaderStatus, []byte("500"))
		f.Add(d.Key(), HeaderSourceTimestamp, []byte("-1"))
	}
	f.Fuzz(func(t *testing.T, key []byte, name string, value []byte) {
		for _, d := range goldenDeadLetters {
			got, err := DecodeDeadLetter(key, append(d.Headers(), Header{name, value}), d.Value)
			typed(t, err)
			if err != nil {
				continue
			}
			if !got.Truncated {
				got.Size = 0 // has no meaning, and is not written
			}
			if len(got.Traceparent) == 0 {
				got.Traceparent = nil // likewise
			}
			again, err := DecodeDeadLetter(got.Key(), got.Headers(), got.Value)
			if diff := cmp.Diff(got, again); err != nil || diff != "" {
				t.Errorf("differs (error %v) (-want +got):\n%s", err, diff)
			}
		}
	})
}

func FuzzParseOnlineStatus(f *testing.F) {
	for _, text := range []string{"u-1-1-1-1-1", "a-b-255-0-9223372036854775807-0-12", "-0-0-0-0-0", "u-1-2-1-1-1", "u-01-1-1-1-1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseOnlineStatus(text)
		typed(t, err)
		if err != nil {
			return
		}
		var again string
		if again, err = jsontextUnquote(AppendOnlineStatus(nil, s)); err != nil || again != text {
			t.Errorf("%q is written as %q (error %v)", text, again, err)
		}
	})
}

func jsontextUnquote(item []byte) (string, error) {
	text, err := jsontext.AppendUnquote(nil, item)
	return string(text), err
}

// FuzzOfflineUIDs: a sink finds the recipients that a receiver does.
func FuzzOfflineUIDs(f *testing.F) {
	for _, record := range goldenMessages {
		m, err := DecodeMessage([]byte(record), goldenSource)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Item)
		f.Add(AppendOfflineItem(nil, m.Item, m.Splice, []string{"u", "\"\n"}))
	}
	f.Add([]byte(`{"to_uids":["a",1]}`))
	f.Fuzz(func(t *testing.T, item []byte) {
		var got []string
		err := OfflineUIDs(item, func(uid []byte) { got = append(got, string(uid)) })
		typed(t, err)
		items, bodyErr := DecodeMessagesBody(item)
		if bodyErr != nil || bytes.HasPrefix(bytes.TrimLeft(item, " \t\r\n"), []byte("[")) {
			return
		}
		if err != nil || !slices.Equal(got, items[0].ToUIDs) {
			t.Errorf("the recipients are %q (error %v), want %q", got, err, items[0].ToUIDs)
		}
	})
}

func FuzzDecodeUsersQuery(f *testing.F) {
	for _, body := range []string{`{"uids":["a","b"]}`, `{"uids":[]}`, `{"uids":null}`, `{"uids":["a"],"more":1}`, `{"uids":["\u0000"]}`, `{"uids":["a"],"uids":["b"]}`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := DecodeUsersQuery(body)
		typed(t, err)
		if err != nil {
			return
		}
		if !jsontext.Value(body).IsValid() || len(q.UIDs) == 0 || len(q.UIDs) > MaxUsersQuery || slices.ContainsFunc(q.UIDs, func(uid string) bool { return !ValidUID(uid) }) {
			t.Errorf("%q is accepted as %q", body, q.UIDs)
		}
		again, err := DecodeUsersQuery(AppendQueryJSON(nil, &q))
		if diff := cmp.Diff(q, again); err != nil || diff != "" {
			t.Errorf("differs (error %v) (-want +got):\n%s", err, diff)
		}
	})
}

// FuzzDecodeAnswer is what a process reads of one that calls itself the owner of a partition.
func FuzzDecodeAnswer(f *testing.F) {
	f.Add([]byte(`{"uid":"u","online":true,"offline_push":false,"total":1,"devices":[{"device_flag":1,"count":1}],"connections":[{"node_id":"n","conn_id":"1","device_flag":1,"background":false,"since":9,"opened_at":5}]}`))
	f.Add([]byte(`{"users":[{"uid":"u","online":false,"offline_push":true,"total":0,"devices":[]}]}`))
	f.Add([]byte(`{"title":"Bad Request","status":400,"detail":"no"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		checkAnswer[User](t, body)
		checkAnswer[Users](t, body)
		checkAnswer[Problem](t, body)
	})
}

func checkAnswer[T User | Users | Problem](t *testing.T, body []byte) {
	t.Helper()
	v, err := DecodeAnswer[T](body)
	typed(t, err)
	if err != nil {
		return
	}
	again, err := DecodeAnswer[T](AppendQueryJSON(nil, &v))
	if diff := cmp.Diff(v, again, cmpopts.EquateEmpty()); err != nil || diff != "" {
		t.Errorf("differs (error %v) (-want +got):\n%s", err, diff)
	}
}

func FuzzValidTraceparent(f *testing.F) {
	f.Add([]byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	f.Add([]byte("00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01"))
	form := regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\z`)
	f.Fuzz(func(t *testing.T, value []byte) {
		if got, want := ValidTraceparent(value), form.Match(value); got != want {
			t.Errorf("%q: valid is %t, want %t", value, got, want)
		}
	})
}

func FuzzValidUID(f *testing.F) {
	for _, uid := range []string{"", "u", "\u0085", "\ufffd", "\xff", "é\x7f", string(bytes.Repeat([]byte("é"), 129))} {
		f.Add(uid)
	}
	f.Fuzz(func(t *testing.T, uid string) {
		want := len(uid) >= 1 && len(uid) <= MaxUIDBytes && utf8.ValidString(uid)
		for _, r := range uid {
			want = want && !unicode.IsControl(r)
		}
		if got := ValidUID(uid); got != want {
			t.Errorf("%q: valid is %t, want %t", uid, got, want)
		}
	})
}

func FuzzCheckVersion(f *testing.F) {
	for _, value := range []string{"1", "2", "01", "+1", "0", "", "9223372036854775808"} {
		f.Add([]byte(value))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		err := CheckVersion("record", []Header{{"other", nil}, {HeaderVersion, value}})
		typed(t, err)
		n, parseErr := strconv.ParseInt(string(value), 10, 64)
		known := parseErr == nil && n >= 1 && n <= Version && strconv.FormatInt(n, 10) == string(value)
		if (err == nil) != known {
			t.Errorf("version %q gives %v", value, err)
		}
	})
}
