package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// TestBadInput writes what cannot be used between good records: it lands in the dead letters with its source and the
// reason, and the good records go on.
func TestBadInput(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3, "max.message.bytes=4194304")
		p := s.run().ready()

		large := `{"from_uid":"u","channel_id":"g","channel_type":2,"payload":"` + strings.Repeat("QUJD", 2<<20/4) + `"}`
		bad := []struct {
			topic  string
			value  string
			reason string
			detail string // part of it: the field's name
		}{
			{s.connections, `online`, "invalid", ""},
			{s.connections, ``, "invalid", ""},
			{s.connections, `[]`, "invalid", ""},
			{s.connections, `{"type":"online","uid":"u","conn_id":1}{}`, "invalid", ""},
			{s.connections, "{\"type\":\"online\",\"uid\":\"\xff\",\"conn_id\":1}", "invalid", ""},
			{s.connections, `{"type":"online","uid":"u","uid":"v","conn_id":1}`, "invalid", "second time"},
			{s.connections, `{"type":"dance","uid":"u","conn_id":1}`, "invalid", "type"},
			{s.connections, `{"uid":"u","conn_id":1}`, "invalid", "type"},
			{s.connections, `{"type":"online","conn_id":1}`, "invalid", "uid"},
			{s.connections, `{"type":"online","uid":"u"}`, "invalid", "conn_id"},
			{s.connections, `{"type":"online","uid":7,"conn_id":1}`, "invalid", "uid"},
			{s.connections, `{"type":"online","uid":"a\u0000b","conn_id":1}`, "invalid", "uid"},
			{s.connections, `{"type":"online","uid":"u","conn_id":1.5}`, "invalid", "conn_id"},
			{s.connections, `{"type":"online","uid":"u","conn_id":-1}`, "invalid", "conn_id"},
			{s.connections, `{"type":"online","uid":"u","conn_id":1,"device_flag":256}`, "invalid", "device_flag"},
			{s.connections, `{"type":"online","uid":"u","conn_id":1,"timestamp":"yesterday"}`, "invalid", "timestamp"},
			{s.connections, `{"type":"node_started"}`, "invalid", "node_id"},
			{s.messages, `{"from_uid":"u"}`, "invalid", "channel_id"},
			{s.messages, `{"channel_id":"g","to_uids":"u"}`, "invalid", "to_uids"},
			{s.messages, `{"channel_id":"g","message_id":18446744073709551616}`, "invalid", "message_id"},
			{s.messages, `{"channel_id":"g","payload":"not base64"}`, "invalid", "payload"},
			{s.messages, `{"channel_id":"g","header":{"red_dot":2}}`, "invalid", "red_dot"},
			{s.messages, `{"channel_id":"g","channel_type":"2"}`, "invalid", "channel_type"},
			{s.messages, large, "too_large", ""},
		}
		client := c.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(4<<20))
		type position struct {
			topic     string
			partition int32
			offset    int64
		}
		want := make(map[position]int)
		for i, b := range bad {
			r := &kgo.Record{Topic: b.topic, Partition: int32(i % 3), Value: []byte(b.value)}
			if i%2 == 0 {
				r.Key = fmt.Append(nil, "key-", i)
			}
			if err := client.ProduceSync(context.Background(), r).FirstErr(); err != nil {
				t.Fatalf("write record %d: %v", i, err)
			}
			want[position{r.Topic, r.Partition, r.Offset}] = i
			// In between: nothing at all, and a good one.
			good := []*kgo.Record{
				{Topic: b.topic, Partition: r.Partition, Value: nil},
				{Topic: s.messages, Partition: r.Partition, Value: fmt.Appendf(nil, `{"channel_id":"g","channel_type":2,"client_msg_no":"good-%d"}`, i)},
			}
			if err := client.ProduceSync(context.Background(), good...).FirstErr(); err != nil {
				t.Fatalf("write after record %d: %v", i, err)
			}
		}
		write := newFranz(t, c)
		write(t, s.messages, "", `{"channel_id":"g","channel_type":2,"client_msg_no":"some","to_uids":["asleep",7,"",null]}`)
		write(t, s.messages, "", `{"channel_id":"asleep","client_msg_no":"silent","offline_push":false}`)
		e.waitItems(schemas.EventNotify, len(bad)+2, drainTimeout)
		checkMessage(t, e.waitItems(schemas.EventOffline, 1, effectTimeout), "some", []string{"asleep"})
		kafkatest.Wait(t, effectTimeout, "the dead letters", func() bool {
			return len(c.ReadAll(t, s.topics.DeadLetters)) >= len(bad)
		})

		letters := c.ReadAll(t, s.topics.DeadLetters)
		if len(letters) != len(bad) {
			t.Errorf("%d dead letters, want %d", len(letters), len(bad))
		}
		for _, r := range letters {
			headers := make(map[string]string)
			for _, h := range r.Headers {
				headers[h.Key] = string(h.Value)
			}
			var at position
			at.topic = headers["source-topic"]
			if _, err := fmt.Sscan(headers["source-partition"], &at.partition); err != nil {
				t.Errorf("source-partition of a dead letter: %v: %v", err, headers)
			}
			if _, err := fmt.Sscan(headers["source-offset"], &at.offset); err != nil {
				t.Errorf("source-offset of a dead letter: %v: %v", err, headers)
			}
			i, ok := want[at]
			if !ok {
				t.Errorf("a dead letter of %v, which was good or is there twice", at)
				continue
			}
			delete(want, at)
			b := bad[i]
			source := &kgo.Record{Topic: b.topic, Partition: int32(i % 3), Value: []byte(b.value)}
			if r.Partition != source.Partition%4 {
				t.Errorf("record %d: its dead letter is in partition %d, want %d", i, r.Partition, source.Partition%4)
			}
			if headers["v"] != "1" || headers["sink"] != "route" || headers["reason"] != b.reason ||
				headers["detail"] == "" || !strings.Contains(headers["detail"], b.detail) {
				t.Errorf("record %d %.100q: the headers are %v, want v 1, sink route, reason %s and a detail with %q", i, b.value, headers, b.reason, b.detail)
			}
			if key, ok := headers["source-key"]; ok != (i%2 == 0) || ok && key != fmt.Sprint("key-", i) {
				t.Errorf("record %d: source-key is %q (there: %v)", i, key, ok)
			}
			if headers["source-timestamp"] == "" {
				t.Errorf("record %d: no source-timestamp", i)
			}
			value, truncated, size := source.Value, "", ""
			if b.reason == "too_large" {
				value, truncated, size = value[:64<<10], "true", fmt.Sprint(len(b.value)+len(fmt.Sprint("key-", i))*(1-i%2))
			}
			if !bytes.Equal(r.Value, value) {
				t.Errorf("record %d: the value has %d bytes and differs from the source's, want %d", i, len(r.Value), len(value))
			}
			if headers["truncated"] != truncated || headers["size"] != size {
				t.Errorf("record %d: truncated is %q and size %q, want %q and %q", i, headers["truncated"], headers["size"], truncated, size)
			}
			letter, err := schemas.DecodeDeadLetter(r.Key, deadHeaders(r.Headers), r.Value)
			if err != nil {
				t.Errorf("record %d: decode its dead letter: %v", i, err)
			} else if letter.Source.Topic != b.topic || letter.TopicID == [16]byte{} {
				t.Errorf("record %d: its dead letter's key says another source: %s", i, r.Key)
			}
		}
		for at := range want {
			t.Errorf("no dead letter of %v", at)
		}
		if summary := e.receiver.Summary(nil); summary.Wrong() {
			t.Errorf("the receiver finds something wrong: %+v", summary)
		}
		checkCounts(t, p, []count{
			{"offhook_route_dead_letters_total", []string{"reason=invalid"}, float64(len(bad) - 1)},
			{"offhook_route_dead_letters_total", []string{"reason=too_large"}, 1},
			{"offhook_route_null_records_total", nil, float64(len(bad))},
			{"offhook_route_messages_without_recipients_total", nil, float64(len(bad))},
			{"offhook_route_messages_without_push_total", nil, 1},
			{"offhook_route_dropped_recipients_total", nil, 3},
		})
		p.terminate()
	})
}

func deadHeaders(headers []kgo.RecordHeader) []schemas.Header {
	out := make([]schemas.Header, len(headers))
	for i, h := range headers {
		out[i] = schemas.Header(h)
	}
	return out
}

// TestLargeMessage sends a message of nearly 1 MiB to 20,000 recipients, some of them online: one msg.notify, and each
// of the others once in msg.offline.
func TestLargeMessage(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 1, "max.message.bytes=4194304")
		p := s.run().ready()
		write := newFranz(t, c)
		const recipients, online = 20_000, 100
		uid := func(i int) string { return fmt.Sprintf("recipient-%05d", i) }
		client := c.Client(t)
		var records []*kgo.Record
		for i := range online {
			records = append(records, &kgo.Record{Topic: s.connections, Key: []byte(uid(i * 7)),
				Value: fmt.Appendf(nil, `{"type":"online","uid":%q,"conn_id":%d}`, uid(i*7), i)})
		}
		if err := client.ProduceSync(context.Background(), records...).FirstErr(); err != nil {
			t.Fatalf("write the connections: %v", err)
		}
		e.waitItems(schemas.EventOnlineStatus, online, effectTimeout)

		uids := make([]string, recipients)
		for i := range uids {
			uids[i] = uid(i)
		}
		list, err := json.Marshal(uids)
		if err != nil {
			t.Fatal(err)
		}
		head := `{"from_uid":"sender","channel_id":"g","channel_type":2,"client_msg_no":"large","to_uids":` + string(list) + `,"payload":"`
		payload := strings.Repeat("QUJD", (1<<20-200-len(head))/4)
		write(t, s.messages, "", head+payload+`"}`)
		notify := e.waitItems(schemas.EventNotify, 1, drainTimeout)
		if len(notify) != 1 || !strings.Contains(notify[0], `"payload":"`+payload+`"`) || strings.Contains(notify[0], "to_uids") {
			t.Errorf("%d msg.notify items, want one with the payload and without to_uids", len(notify))
		}
		times := make(map[string]int)
		kafkatest.Wait(t, drainTimeout, "msg.offline for all recipients that are offline", func() bool {
			clear(times)
			for _, item := range e.items(schemas.EventOffline) {
				var got struct {
					Payload string   `json:"payload"`
					ToUIDs  []string `json:"to_uids"`
				}
				if err := json.Unmarshal([]byte(item), &got); err != nil {
					t.Fatalf("decode an item: %v", err)
				}
				if got.Payload != payload {
					t.Fatal("the payload of a msg.offline is another")
				}
				for _, to := range got.ToUIDs {
					times[to]++
				}
			}
			return len(times) >= recipients-online
		})
		for i, to := range uids {
			want := 1
			if i%7 == 0 && i < 7*online {
				want = 0
			}
			if times[to] != want {
				t.Errorf("%s is in %d msg.offline, want %d", to, times[to], want)
			}
		}

		write(t, s.messages, "", `{"channel_id":"after","channel_type":2,"client_msg_no":"after"}`)
		checkMessage(t, e.waitItems(schemas.EventNotify, 2, effectTimeout)[1:], "after", nil)
		p.terminate()
	})
}
