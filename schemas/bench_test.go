package schemas

import (
	"fmt"
	"strings"
	"testing"
)

func BenchmarkDecodeConnection(b *testing.B) {
	record := []byte(`{"type":"online","uid":"user-0001234567","device_flag":1,"conn_id":9182736455,"node_id":3,"timestamp":1767323045678}`)
	b.ReportAllocs()
	b.SetBytes(int64(len(record)))
	for b.Loop() {
		if _, err := DecodeConnection(record, 0); err != nil {
			b.Fatal(err)
		}
	}
}

func benchMessage(recipients int) []byte {
	uids := make([]string, recipients)
	for i := range uids {
		uids[i] = fmt.Sprintf(`"user-%010d"`, i)
	}
	return fmt.Appendf(nil, `{"header":{"no_persist":0,"red_dot":1,"sync_once":0},"setting":0,"message_id":9007199254740993,`+
		`"client_msg_no":"3f2c-user-0001234567-42","message_seq":42,"from_uid":"user-0001234567","channel_id":"group-00042","channel_type":2,`+
		`"timestamp":1767323045,"payload":"%s","to_uids":[%s]}`, strings.Repeat("aGVs", 40), strings.Join(uids, ","))
}

func BenchmarkDecodeMessage(b *testing.B) {
	for _, recipients := range []int{1, 10, 1000} {
		b.Run(fmt.Sprintf("recipients=%d", recipients), func(b *testing.B) {
			record := benchMessage(recipients)
			b.ReportAllocs()
			b.SetBytes(int64(len(record)))
			for b.Loop() {
				if _, err := DecodeMessage(record, goldenSource); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecodeInbox(b *testing.B) {
	c, err := DecodeConnection([]byte(`{"type":"online","uid":"user-0001234567","device_flag":1,"conn_id":9182736455,"node_id":3}`), 1_700_000_000_000)
	if err != nil {
		b.Fatal(err)
	}
	m, err := DecodeMessage(benchMessage(10), goldenSource)
	if err != nil {
		b.Fatal(err)
	}
	for name, value := range map[string][]byte{
		"connection": AppendInboxConnection(nil, &c),
		"recipients": AppendInboxRecipients(nil, m.Item, m.Splice, m.Recipients),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(value)))
			for b.Loop() {
				if _, err := DecodeInbox(version, value); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendOfflineItem(b *testing.B) {
	m, err := DecodeMessage(benchMessage(10), goldenSource)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(AppendOfflineItem(nil, m.Item, m.Splice, m.Recipients)) == 0 {
			b.Fatal("nothing appended")
		}
	}
}
