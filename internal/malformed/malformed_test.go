package malformed

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/offhook/offhook/internal/oracle"
	"github.com/offhook/offhook/schemas"
)

const testMaxBytes = 256 << 10

// recordTime is that of all records, Unix ms.
const recordTime = 1_700_000_000_123

func TestSeed(t *testing.T) {
	a, b, other := New(7, testMaxBytes), New(7, testMaxBytes), New(8, testMaxBytes)
	differs := false
	for i := range 2000 {
		first := a.Next()
		if second := b.Next(); !reflect.DeepEqual(first, second) {
			t.Fatalf("record %d of one seed differs (-first +second):\n%s", i, cmp.Diff(first, second))
		}
		differs = differs || !bytes.Equal(first.Value, other.Next().Value)
	}
	if !differs {
		t.Error("another seed gives the same records")
	}
}

// TestAgree holds the decoder against the oracle's, which is written anew from docs/design.md: both take the same records, and
// make the same of them. Each rule makes records that are refused, and among all there are many that are not.
func TestAgree(t *testing.T) {
	const n = 20_000
	g := New(1, testMaxBytes)
	accepted, refused, sizes := make(map[string]int), make(map[string]int), [3]int{}
	for i := range n {
		r := g.Next()
		switch size := r.Size(); {
		case size > testMaxBytes:
			sizes[2]++
			continue
		case size == testMaxBytes:
			sizes[1]++
		default:
			sizes[0]++
		}
		if r.Value == nil {
			continue
		}
		if agree(t, &r) {
			accepted[r.Rule]++
		} else {
			refused[r.Rule]++
		}
		if t.Failed() {
			t.Fatalf("record %d: %s", i, r.Rule)
		}
	}
	valid := 0
	for _, rule := range rules {
		valid += accepted[rule.name]
		t.Logf("%6d accepted %6d refused: %s", accepted[rule.name], refused[rule.name], rule.name)
		switch rule.name {
		case "a null value", "an odd key", "odd headers", "a size about the limit", "nothing wrong", "many recipients":
			continue
		}
		if refused[rule.name] == 0 {
			t.Errorf("%s: all %d records are accepted", rule.name, accepted[rule.name])
		}
	}
	if valid < n/10 || valid > n/2 || sizes[1] == 0 || sizes[2] == 0 {
		t.Errorf("%d of %d records are accepted; %d are below the limit, %d at it, %d above", valid, n, sizes[0], sizes[1], sizes[2])
	}
}

// agree reports whether a record is accepted, which both decoders must say.
func agree(t *testing.T, r *Record) bool {
	t.Helper()
	if r.Message {
		return agreeOnMessage(t, r.Value)
	}
	return agreeOnConnection(t, r.Value)
}

func agreeOnConnection(t *testing.T, value []byte) bool {
	t.Helper()
	got, gotErr := schemas.DecodeConnection(value, recordTime)
	want, wantErr := oracle.ParseConnection(value, recordTime)
	if (gotErr == nil) != (wantErr == nil) {
		t.Errorf("%.300q: %v; the oracle: %v", value, gotErr, wantErr)
		return false
	}
	if gotErr != nil {
		return false
	}
	same := oracle.Connection{
		Type: oracle.ConnectionType(got.Type), UID: got.UID, ConnID: string(got.ConnID), NodeID: string(got.NodeID), DeviceFlag: got.DeviceFlag,
		HasDeviceFlag: got.HasDeviceFlag, Time: got.Time, OpenedAt: got.OpenedAt, Background: got.Background, HasBackground: got.HasBackground,
	}
	if !reflect.DeepEqual(want, same) {
		t.Errorf("%.300q differs (-oracle +schemas):\n%s", value, cmp.Diff(want, same))
	}
	return true
}

func agreeOnMessage(t *testing.T, value []byte) bool {
	t.Helper()
	const topic, partition, offset = "im.messages", 3, 4711
	got, gotErr := schemas.DecodeMessage(value, schemas.Source{Topic: topic, Partition: partition, Offset: offset, Time: recordTime})
	want, wantErr := oracle.ParseMessage(topic, partition, offset, value, recordTime)
	if (gotErr == nil) != (wantErr == nil) {
		t.Errorf("%.300q: %v; the oracle: %v", value, gotErr, wantErr)
		return false
	}
	if gotErr != nil {
		return false
	}
	same := oracle.Message{
		Item: got.Item, Splice: got.Splice, FromUID: got.FromUID, ChannelID: got.ChannelID, ChannelType: got.ChannelType,
		Recipients: got.Recipients, OfflinePush: got.OfflinePush,
	}
	if !reflect.DeepEqual(want, same) {
		t.Errorf("%.300q differs (-oracle +schemas):\n%s", value, cmp.Diff(want, same))
	}
	return true
}

// FuzzAgree goes on where the generator ends.
func FuzzAgree(f *testing.F) {
	g := New(2, 1<<10)
	for range 300 {
		if r := g.Next(); r.Value != nil && len(r.Value) < 1<<10 {
			f.Add(r.Value)
		}
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		agreeOnConnection(t, value)
		agreeOnMessage(t, value)
	})
}
