package truth

import (
	"bytes"
	"testing"
)

// FuzzRead: a truth file is read, or the error says which line is wrong.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"kind":"run","run":"r","seed":1,"settled":true}
{"kind":"user","uid":"a","presence":"sleeper"}
{"kind":"user","uid":"b","presence":"churner"}
{"kind":"group","channel_id":"g","members":["a","b"]}
{"kind":"message","client_msg_no":"r-a-1","from_uid":"a","n":1,"channel_id":"g","channel_type":2,"push":true}
{"kind":"message","client_msg_no":"r-b-1","from_uid":"b","n":1,"channel_id":"a","channel_type":1}
{"kind":"status","uid":"b","item":"b-1-1-7-1-1"}
{"kind":"doubt","uid":"b"}
{"kind":"end","messages":2,"items":1}
`))
	f.Add([]byte(`{"kind":"run"}{"kind":"end"}`))
	f.Add([]byte(`{"kind":"user","uid":"a","presence":"sleeper"}`))
	f.Fuzz(func(t *testing.T, file []byte) {
		got, err := Read(bytes.NewReader(file))
		if (got == nil) != (err != nil) {
			t.Fatalf("a truth %v with error %v", got, err)
		}
		if err == nil && !got.ended {
			t.Error("a file without an end is a truth")
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	for _, text := range []string{"u-1-1-1-1-1", "a-b-255-0-18446744073709551615-0-2147483647", "-1-1-1-1-1", "u-256-1-1-1-1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseStatus(text)
		if err != nil {
			return
		}
		if again, err := ParseStatus(s.String()); err != nil || again != s || s.UID == "" {
			t.Errorf("%q is %+v, which reads back as %+v (error %v)", text, s, again, err)
		}
	})
}
