package schemas

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxUIDBytes is the longest uid, conn_id or node_id, in bytes of UTF-8.
const MaxUIDBytes = 256

// ID is a conn_id or node_id in canonical text: an integer in 0..2^63-1 is its decimal digits, anything else is
// the string itself. Canonical digits in a JSON string equal the integer, so the text alone identifies.
type ID string

// Number is the id as an integer: its value where it is one, else the first 63 bits of its SHA-256.
func (id ID) Number() uint64 {
	if n, ok := canonicalDigits(id, math.MaxInt64); ok {
		return n
	}
	return hash63(string(id))
}

// Compare orders ids: integers by value first, then other strings bytewise.
func (id ID) Compare(other ID) int {
	a, aInt := canonicalDigits(id, math.MaxInt64)
	b, bInt := canonicalDigits(other, math.MaxInt64)
	switch {
	case aInt && bInt:
		return cmp.Compare(a, b)
	case aInt:
		return -1
	case bInt:
		return 1
	}
	return strings.Compare(string(id), string(other))
}

// ValidUID reports whether s may be a uid: 1 to 256 bytes of UTF-8 without control characters (Unicode's Cc).
func ValidUID(s string) bool { return validUID(s) }

func validUID[T ~string | ~[]byte](s T) bool {
	if len(s) < 1 || len(s) > MaxUIDBytes {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < ' ' || c == 0x7f:
			return false
		case c >= utf8.RuneSelf:
			return validUnicodeUID(string(s[i:]))
		}
	}
	return true
}

func validUnicodeUID(s string) bool {
	for i, r := range s {
		if unicode.IsControl(r) {
			return false
		}
		// U+FFFD is also what range yields for a byte that is no UTF-8.
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD") {
			return false
		}
	}
	return true
}

// canonicalDigits parses s as a decimal integer of 0 to limit, without sign and leading zeros.
func canonicalDigits[T ~string | ~[]byte](s T, limit uint64) (n uint64, ok bool) {
	if len(s) == 0 || len(s) > 20 || s[0] == '0' && len(s) > 1 {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		c := uint64(s[i]) - '0'
		if c > 9 || c > limit || n > (limit-c)/10 {
			return 0, false
		}
		n = n*10 + c
	}
	return n, true
}

// hash63 is the first 63 bits of the SHA-256 of s, big-endian.
func hash63[T ~string | ~[]byte](s T) uint64 {
	sum := sha256.Sum256([]byte(s))
	return binary.BigEndian.Uint64(sum[:]) >> 1
}
