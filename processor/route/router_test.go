package route

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/processor/txn"
	"github.com/offhook/offhook/schemas"
)

const partitions = 4

func testRouter(change func(*Config)) *router {
	cfg := Config{
		ConnectionsTopics: []string{"im.connections"}, MessagesTopics: []string{"im.messages"},
		MaxRecordBytes: 1 << 20, SystemUIDs: []string{"system"},
	}
	if change != nil {
		change(&cfg)
	}
	return newRouter(&cfg, kafka.NewTopics("offhook"), partitions)
}

func input(topic, value string, headers ...kgo.RecordHeader) txn.Input {
	in := txn.Input{Record: &kgo.Record{
		Topic: topic, Partition: 7, Offset: 11, Key: []byte("k"), Timestamp: time.UnixMilli(1700000000123), Headers: headers,
	}, TopicID: [16]byte{1, 2}}
	if value != "null" {
		in.Value = []byte(value)
	}
	return in
}

func collect(r *router, in txn.Input) (out []*kgo.Record) {
	r.route(in, func(rec *kgo.Record) { out = append(out, rec) })
	return out
}

func headersText(r *kgo.Record) string {
	var b strings.Builder
	for _, h := range r.Headers {
		fmt.Fprintf(&b, "%s=%s ", h.Key, h.Value)
	}
	return strings.TrimSpace(b.String())
}

func schemaHeaders(r *kgo.Record) []schemas.Header {
	out := make([]schemas.Header, len(r.Headers))
	for i, h := range r.Headers {
		out[i] = schemas.Header(h)
	}
	return out
}

func decodeInbox(t *testing.T, r *kgo.Record) schemas.Inbox {
	t.Helper()
	in, err := schemas.DecodeInbox(schemaHeaders(r), r.Value)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func TestConnectionGoesToThePartitionOfItsUID(t *testing.T) {
	r := testRouter(nil)
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	out := collect(r, input("im.connections", `{"type":"online","uid":"uid1","conn_id":1001,"node_id":1,"device_flag":1}`, kgo.RecordHeader{Key: "traceparent", Value: []byte(trace)}))
	if len(out) != 1 {
		t.Fatalf("%d records, want 1", len(out))
	}
	o := out[0]
	if o.Topic != "offhook.inbox" || o.Partition != kafka.Partition("uid1", partitions) || string(o.Key) != "uid1" || !o.Timestamp.IsZero() {
		t.Errorf("got %s-%d key %q time %v", o.Topic, o.Partition, o.Key, o.Timestamp)
	}
	if got, want := headersText(o), "v=1 traceparent="+trace; got != want {
		t.Errorf("headers %q, want %q", got, want)
	}
	c := decodeInbox(t, o).Connection
	if c.UID != "uid1" || c.Type != schemas.Online || c.ConnID != "1001" || c.NodeID != "1" || c.DeviceFlag != 1 || c.Time != 1700000000123 {
		t.Errorf("got %+v", c)
	}
}

func TestNodeStartGoesToAllPartitions(t *testing.T) {
	r := testRouter(nil)
	out := collect(r, input("im.connections", `{"type":"node_started","node_id":2}`))
	if len(out) != partitions {
		t.Fatalf("%d records, want %d", len(out), partitions)
	}
	for p, o := range out {
		if o.Topic != "offhook.inbox" || o.Partition != int32(p) || o.Key != nil {
			t.Errorf("record %d: %s-%d key %q", p, o.Topic, o.Partition, o.Key)
		}
		if c := decodeInbox(t, o).Connection; c.Type != schemas.NodeStarted || c.NodeID != "2" {
			t.Errorf("got %+v", c)
		}
	}
	if out := collect(r, input("im.connections", `{"type":"heartbeat","node_id":2}`)); len(out) != partitions || r.tally.nodeHeartbeats != 1 {
		t.Errorf("a node's heartbeat made %d records, counted %d", len(out), r.tally.nodeHeartbeats)
	}
}

func TestMessageIsNotifiedOnceAndItsRecipientsSpread(t *testing.T) {
	r := testRouter(nil)
	uids := []string{"uid1", "uid2", "uid2", "uid3", "system", "uid4", "uid5", "uid6"}
	to, _ := json.Marshal(uids)
	out := collect(r, input("im.messages", `{"channel_id":"g1","channel_type":2,"from_uid":"uid1","message_id":9007199254740993,"to_uids":`+string(to)+`}`))
	notify := out[0]
	if notify.Topic != "offhook.msg.notify" || string(notify.Key) != "uid1" || notify.Partition != kafka.Partition("uid1", partitions) {
		t.Errorf("got %s-%d key %q", notify.Topic, notify.Partition, notify.Key)
	}
	if !bytes.Contains(notify.Value, []byte("9007199254740993")) || headersText(notify) != "v=1" {
		t.Errorf("got %s, headers %s", notify.Value, headersText(notify))
	}
	got := map[string]int32{}
	byPartition := map[int32]int{}
	for _, o := range out[1:] {
		if o.Topic != "offhook.inbox" || o.Key != nil {
			t.Errorf("got %s key %q", o.Topic, o.Key)
		}
		byPartition[o.Partition]++
		in := decodeInbox(t, o)
		if in.Kind != schemas.InboxRecipients || !bytes.Equal(in.Item, notify.Value) {
			t.Errorf("got kind %d, item %s", in.Kind, in.Item)
		}
		for _, uid := range in.UIDs {
			if _, twice := got[uid]; twice {
				t.Errorf("%s comes twice", uid)
			}
			got[uid] = o.Partition
		}
	}
	want := map[string]int32{}
	for _, uid := range []string{"uid2", "uid3", "uid4", "uid5", "uid6"} {
		want[uid] = kafka.Partition(uid, partitions)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("recipients by partition (-want +got):\n%s", diff)
	}
	for p, n := range byPartition {
		if n != 1 {
			t.Errorf("%d records for partition %d, want one", n, p)
		}
	}
	// Nothing is left over from one message to the next.
	if again := collect(r, input("im.messages", `{"channel_id":"uid9","from_uid":"uid1"}`)); len(again) != 2 {
		t.Errorf("%d records of a person's message, want 2", len(again))
	}
}

func TestOrderKey(t *testing.T) {
	for _, tt := range []struct{ order, from, want string }{
		{"", "u", "u"}, {OrderByFrom, "u", "u"}, {OrderByFrom, "", "ch"}, {OrderByChannel, "u", "ch"},
	} {
		r := testRouter(func(c *Config) { c.NotifyOrderBy = tt.order })
		out := collect(r, input("im.messages", `{"channel_id":"ch","channel_type":2,"from_uid":"`+tt.from+`"}`))
		if len(out) != 1 || string(out[0].Key) != tt.want || out[0].Partition != kafka.Partition(tt.want, partitions) {
			t.Errorf("order by %q from %q: key %q, want %q", tt.order, tt.from, out[0].Key, tt.want)
		}
	}
}

func TestMessagesWithoutPush(t *testing.T) {
	r := testRouter(nil)
	for _, value := range []string{
		`{"channel_id":"g","channel_type":2,"from_uid":"a"}`,
		`{"channel_id":"b","from_uid":"a","offline_push":false}`,
		`{"channel_id":"a","from_uid":"a"}`,
	} {
		if out := collect(r, input("im.messages", value)); len(out) != 1 {
			t.Errorf("%s: %d records, want msg.notify alone", value, len(out))
		}
	}
	if r.tally.withoutRecipients != 1 || r.tally.withoutPush != 1 {
		t.Errorf("counted %+v", r.tally)
	}
}

func TestLongListIsCut(t *testing.T) {
	r := testRouter(nil)
	var uids []string
	for i := range 30_000 {
		uids = append(uids, fmt.Sprintf(`u%05d"%s`, i, strings.Repeat("x", 20)))
	}
	to, _ := json.Marshal(uids)
	payload := strings.Repeat("QUJD", 250_000) // 1 MB
	in := input("im.messages", `{"channel_id":"g","channel_type":2,"from_uid":"a","payload":"`+payload+`","to_uids":`+string(to)+`}`)
	r.maxBytes = len(in.Value) + len(in.Key)
	out := collect(r, in)
	// The limit is now large enough for all; take one that the message alone nearly fills.
	if len(out) != 1+partitions {
		t.Fatalf("%d records, want %d", len(out), 1+partitions)
	}
	r.maxBytes = 1_010_000
	m, err := schemas.DecodeMessage(in.Value, schemas.Source{Topic: "im.messages"})
	if err != nil {
		t.Fatal(err)
	}
	out = nil
	r.recipients(&m, nil, func(rec *kgo.Record) { out = append(out, rec) })
	if len(out) <= 2*partitions {
		t.Errorf("%d records, want many", len(out))
	}
	seen := map[string]bool{}
	for _, o := range out {
		o.Headers = []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())}
		in := decodeInbox(t, o)
		offline := schemas.AppendOfflineItem(nil, in.Item, in.Splice, in.UIDs)
		if n := max(len(o.Value), len(offline)); n > r.maxBytes+64<<10 {
			t.Errorf("a record of %d bytes", n)
		}
		for _, uid := range in.UIDs {
			seen[uid] = true
		}
	}
	if len(seen) != len(uids) {
		t.Errorf("%d recipients, want %d", len(seen), len(uids))
	}
}

func TestDeadLetters(t *testing.T) {
	for _, tt := range []struct{ name, topic, value, field string }{
		{"no JSON", "im.messages", "hello secret-payload", ""},
		{"wrong type", "im.messages", `{"channel_id":5}`, "channel_id"},
		{"unknown type", "im.connections", `{"type":"away","uid":"u","conn_id":1}`, "type"},
		{"missing", "im.connections", `{"type":"online","conn_id":1}`, "uid"},
		{"empty", "im.connections", ``, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := testRouter(nil)
			in := input(tt.topic, tt.value)
			out := collect(r, in)
			if len(out) != 1 || out[0].Topic != "offhook.dead-letters" || out[0].Partition != 7%partitions {
				t.Fatalf("got %v", out)
			}
			d, err := schemas.DecodeDeadLetter(out[0].Key, schemaHeaders(out[0]), out[0].Value)
			if err != nil {
				t.Fatal(err)
			}
			detail := d.Detail
			d.Detail = ""
			want := schemas.DeadLetter{
				Source:  schemas.Source{Topic: tt.topic, Partition: 7, Offset: 11, Time: 1700000000123},
				TopicID: [16]byte{1, 2}, SourceKey: []byte("k"), Value: []byte(tt.value), Reason: schemas.ReasonInvalid, Sink: "route",
			}
			if diff := cmp.Diff(want, d); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !strings.Contains(detail, tt.field) || detail == "" || strings.Contains(detail, "secret-payload") {
				t.Errorf("detail %q, want one that names %q", detail, tt.field)
			}
			if r.tally.deadLetters[schemas.ReasonInvalid] != 1 {
				t.Errorf("counted %v", r.tally.deadLetters)
			}
		})
	}
}

func TestTooLarge(t *testing.T) {
	for _, tt := range []struct {
		name             string
		max, key, value  int
		wantKey, wantVal int
		header           int
	}{
		{"value", 1 << 20, 1, 2 << 20, 1, 64 << 10, 0},
		{"key", 1 << 20, 3 << 20, 10, 64 << 10, 10, 0},
		{"small limit", 1 << 10, 100_000, 100_000, 30 << 10, 30 << 10, 0},
		{"headers", 1 << 10, 1, 10, 1, 10, 2000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := testRouter(func(c *Config) { c.MaxRecordBytes = tt.max })
			in := input("im.messages", strings.Repeat("x", tt.value), kgo.RecordHeader{Key: "traceparent", Value: bytes.Repeat([]byte("h"), tt.header)})
			in.Key = bytes.Repeat([]byte("k"), tt.key)
			out := collect(r, in)
			if len(out) != 1 || out[0].Topic != "offhook.dead-letters" {
				t.Fatalf("got %d records", len(out))
			}
			if n := recordBytes(out[0]); n > kafka.MaxOwnedBytes(tt.max)-200 {
				t.Errorf("the letter has %d bytes and the topic takes %d", n, kafka.MaxOwnedBytes(tt.max))
			}
			d, err := schemas.DecodeDeadLetter(out[0].Key, schemaHeaders(out[0]), out[0].Value)
			if err != nil {
				t.Fatal(err)
			}
			if d.Reason != schemas.ReasonTooLarge || !d.Truncated || d.Size != tt.key+tt.value+tt.header+len("traceparent") {
				t.Errorf("reason %s, truncated %v, size %d", d.Reason, d.Truncated, d.Size)
			}
			if abs(len(d.Value)-tt.wantVal) > 5<<10 || abs(len(d.SourceKey)-tt.wantKey) > 5<<10 {
				t.Errorf("kept %d of the value and %d of the key", len(d.Value), len(d.SourceKey))
			}
		})
	}
}

func abs(n int) int { return max(n, -n) }

func TestNullIsSkipped(t *testing.T) {
	r := testRouter(nil)
	if out := collect(r, input("im.messages", "null")); len(out) != 0 || r.tally.nulls != 1 {
		t.Errorf("%d records, counted %d", len(out), r.tally.nulls)
	}
}

func TestMetricsAreCleanAndCountWhatIsCommitted(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := newMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	h := &handler{router: testRouter(nil), metrics: m}
	value := `{"channel_id":"g","channel_type":2,"from_uid":"a","to_uids":["",7,"b"]}`
	drop := func(*kgo.Record) {}
	_, _ = h.Process(input("im.messages", value), drop)
	h.Rollback()
	_, _ = h.Process(input("im.messages", value), drop)
	_, _ = h.Process(input("im.messages", "x"), drop)
	h.Commit()
	h.Commit()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			var name strings.Builder
			name.WriteString(f.GetName())
			for _, l := range s.GetLabel() {
				name.WriteString("/" + l.GetValue())
			}
			if v := s.GetCounter().GetValue(); v != 0 {
				got[name.String()] = v
			}
		}
	}
	want := map[string]float64{
		"offhook_route_records_total/messages":     2,
		"offhook_route_dead_letters_total/invalid": 1,
		"offhook_route_dropped_recipients_total":   2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

func BenchmarkMessage(b *testing.B) {
	r := testRouter(nil)
	in := input("im.messages", `{"channel_id":"g1","channel_type":2,"from_uid":"uid1","message_id":9007199254740993,"payload":"aGVsbG8=","to_uids":["uid2","uid3","uid4"]}`)
	b.ReportAllocs()
	for b.Loop() {
		r.route(in, func(*kgo.Record) {})
	}
}
