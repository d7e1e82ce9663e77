package schemas

// The lengths of a traceparent's fields, in hexadecimal digits: version, trace id, parent id, flags.
var traceparentFields = [...]int{2, 32, 16, 2}

// ValidTraceparent reports whether value is a traceparent of W3C Trace Context (version 00's form, lower-case hexadecimal).
// Anything else in the header is not passed on: a byte that no HTTP header may hold would keep a request from being sent.
func ValidTraceparent(value []byte) bool {
	at := 0
	for i, n := range traceparentFields {
		if i > 0 {
			if at >= len(value) || value[at] != '-' {
				return false
			}
			at++
		}
		for ; n > 0; n-- {
			if at >= len(value) || !isLowerHex(value[at]) {
				return false
			}
			at++
		}
	}
	return at == len(value)
}

func isLowerHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }
