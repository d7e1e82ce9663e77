package schemas

import (
	"math"
	"strconv"
)

var versionValue = []byte(strconv.Itoa(Version))

// VersionHeader is the header of the version that this release writes. Its value is shared: do not write to it.
func VersionHeader() Header { return Header{Key: HeaderVersion, Value: versionValue} }

// CheckVersion returns a *VersionError where the headers say a version newer than Version, and an
// *InvalidError where there is none or it is no number. what is the kind of record, e.g. "inbox record".
func CheckVersion[H AnyHeader](what string, headers []H) error {
	for i := range headers {
		h := Header(headers[i])
		if h.Key != HeaderVersion {
			continue
		}
		value := h.Value
		n, ok := canonicalDigits(value, math.MaxInt64)
		switch {
		case ok && n >= 1 && n <= Version:
			return nil
		case ok && n > Version:
			return &VersionError{What: what, Version: string(value)}
		}
		return invalid(HeaderVersion, what+" has a format version that is no integer from 1")
	}
	return invalid(HeaderVersion, what+" has no format version: it is not offhook's")
}
