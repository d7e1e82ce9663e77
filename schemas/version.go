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
func CheckVersion(what string, headers []Header) error {
	for i := range headers {
		if headers[i].Key != HeaderVersion {
			continue
		}
		value := headers[i].Value
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
