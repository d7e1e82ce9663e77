package schemas

import (
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestIDNumber(t *testing.T) {
	for _, c := range []struct {
		id   ID
		want uint64
	}{
		{"0", 0},
		{"7", 7},
		{"9223372036854775807", 1<<63 - 1},
		// Not canonical digits of an integer in range, hence strings: the first 63 bits of their SHA-256.
		{"ab", 9063230908846710674},
		{"9223372036854775808", hash63("9223372036854775808")},
		{"18446744073709551616", hash63("18446744073709551616")},
		{"007", hash63("007")},
		{"-1", hash63("-1")},
		{"+1", hash63("+1")},
		{"", hash63("")},
	} {
		if got := c.id.Number(); got != c.want || got >= 1<<63 {
			t.Errorf("ID(%q).Number() = %d, want %d", c.id, got, c.want)
		}
	}
}

func TestIDCompare(t *testing.T) {
	want := []ID{"0", "2", "10", "9223372036854775807", "", "00", "01", "9223372036854775808", "a", "b", "ü"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, ID.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("sorted: %q, want %q", got, want)
	}
	for i, a := range want {
		for j, b := range want {
			if c := a.Compare(b); c < 0 != (i < j) || c > 0 != (i > j) {
				t.Errorf("%q.Compare(%q) = %d", a, b, c)
			}
		}
	}
}

func TestValidUID(t *testing.T) {
	for uid, want := range map[string]bool{
		"u": true, "": false, "ü-1": true, "\uFFFD": true, " ": true, `"\`: true, "\U0010FFFF": true,
		strings.Repeat("u", 256): true, strings.Repeat("u", 257): false, strings.Repeat("ü", 128): true, strings.Repeat("ü", 129): false,
		"a\x00": false, "a\x1f": false, "a\x7f": false, "a\u0080": false, "ü\u009f": false, "ü\n": false, "a\u00a0": true,
		"\xff": false, "a\xc3": false, "ü\xed\xa0\x80": false,
	} {
		if got := ValidUID(uid); got != want {
			t.Errorf("ValidUID(%q) = %t, want %t", uid, got, want)
		}
	}
}

func TestValidUIDAgainstItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var uid string
		if rapid.Bool().Draw(t, "bytes") {
			uid = string(rapid.SliceOfN(rapid.Byte(), 0, 6).Draw(t, "uid"))
		} else {
			uid = rapid.StringN(0, 300, 600).Draw(t, "uid")
		}
		want := len(uid) >= 1 && len(uid) <= 256 && utf8.ValidString(uid) && !strings.ContainsFunc(uid, unicode.IsControl)
		if got := ValidUID(uid); got != want {
			t.Fatalf("ValidUID(%q) = %t, want %t", uid, got, want)
		}
	})
}
