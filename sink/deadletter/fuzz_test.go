package deadletter

import "testing"

func FuzzParsePosition(f *testing.F) {
	for _, text := range []string{"0-0", "3-1042", "2147483647-9223372036854775807", "-1-1", "1", "", "1-1-1", "+1-1", "1-x"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePosition(text)
		if err != nil {
			return
		}
		if again, err := ParsePosition(p.String()); err != nil || again != p || p.Partition < 0 || p.Offset < 0 {
			t.Errorf("%q is %+v, which reads back as %+v (error %v)", text, p, again, err)
		}
	})
}
