package oracle

import (
	"testing"

	"github.com/offhook/offhook/schemas"
)

// FuzzInboxRecord: what presence reads of the inbox, the oracle reads too, and the same.
func FuzzInboxRecord(f *testing.F) {
	f.Add(schemas.AppendInboxConnection(nil, &schemas.Connection{
		Type: schemas.Online, UID: "u", ConnID: "1", NodeID: "n", DeviceFlag: 2, HasDeviceFlag: true, Time: 5, OpenedAt: 4, Background: true, HasBackground: true,
	}))
	f.Add(schemas.AppendInboxConnection(nil, &schemas.Connection{Type: schemas.NodeStarted, NodeID: "n", Time: 5, OpenedAt: -1}))
	f.Add(schemas.AppendInboxRecipients(nil, []byte(`{"a":1}`), 6, []string{"u", "v"}))
	f.Add(schemas.AppendInboxCaughtUp(nil, &schemas.CaughtUp{AsOf: 5, Topics: []schemas.CaughtUpTopic{{Name: "t", Partitions: 3, Read: []int32{0, 2}}}}))
	f.Add(schemas.AppendInboxExpire(nil, &schemas.Expire{UID: "u", NodeID: "n", ConnID: "c", Offset: 7}))
	f.Fuzz(func(t *testing.T, value []byte) {
		v := schemas.VersionHeader()
		want, wantErr := schemas.DecodeInbox([]schemas.Header{v}, value)
		var got inboxRecord
		err := got.decode([]Header{Header(v)}, value)
		switch {
		case wantErr != nil:
			return
		case err != nil:
			t.Fatalf("%q is refused: %v", value, err)
		case got.kind != byte(want.Kind):
			t.Fatalf("%q is of kind %d, want %d", value, got.kind, want.Kind)
		}
		switch want.Kind {
		case schemas.InboxConnection:
			c := want.Connection
			same := Connection{
				Type: ConnectionType(c.Type), UID: c.UID, ConnID: string(c.ConnID), NodeID: string(c.NodeID), DeviceFlag: c.DeviceFlag, HasDeviceFlag: c.HasDeviceFlag,
				Time: c.Time, OpenedAt: c.OpenedAt, Background: c.Background, HasBackground: c.HasBackground,
			}
			if got.connection != same {
				t.Errorf("%q is %+v, want %+v", value, got.connection, same)
			}
		case schemas.InboxRecipients:
			if string(got.item) != string(want.Item) || got.splice != want.Splice || len(got.uids) != len(want.UIDs) {
				t.Fatalf("%q: item %q, splice %d, %d uids; want %q, %d, %d", value, got.item, got.splice, len(got.uids), want.Item, want.Splice, len(want.UIDs))
			}
			for i, uid := range want.UIDs {
				if string(got.uids[i]) != uid {
					t.Errorf("uid %d is %q, want %q", i, got.uids[i], uid)
				}
			}
		case schemas.InboxExpire:
			if e := want.Expire; got.expire.offset != e.Offset || got.expire.uid != e.UID || got.expire.connID != string(e.ConnID) || got.expire.nodeID != string(e.NodeID) {
				t.Errorf("%q is %+v, want %+v", value, got.expire, e)
			}
		}
	})
}
