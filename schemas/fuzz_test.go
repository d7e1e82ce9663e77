package schemas

import (
	"bytes"
	"errors"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
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
			items, err := DecodeMessagesBody(item)
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
