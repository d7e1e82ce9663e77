// Package schemas holds everything that crosses a topic or the wire: the input records, the records of
// offhook's own topics, the webhook items and bodies, and the dead letters. It is the only package that
// reads or writes JSON of records and webhooks. It imports nothing of offhook.
//
// Decoding is strict (no duplicate names, no invalid UTF-8, integers without fraction) and validates all
// that docs/design.md says of a record; an error is an *[InvalidError] that names the field and the reason.
package schemas

import "fmt"

// Event is the name of a webhook event, as it stands in the request's `event` parameter.
type Event string

// The three events of the webhook contract.
const (
	EventOnlineStatus Event = "user.onlinestatus"
	EventOffline      Event = "msg.offline"
	EventNotify       Event = "msg.notify"
)

// Events lists all events, in the order of docs/design.md.
func Events() []Event { return []Event{EventOnlineStatus, EventOffline, EventNotify} }

// HeaderVersion is the header that every record of an owned topic carries: its format's version, in decimal.
const HeaderVersion = "v"

// HeaderTraceparent is the W3C trace context header; it passes from an input record to what is made of it.
const HeaderTraceparent = "traceparent"

// Version is the format version that this release writes, in each of the owned topics.
const Version = 1

// Header is a record header; it converts to and from kgo.RecordHeader.
type Header struct {
	Key   string
	Value []byte
}

// AnyHeader is a Header, or a client's type that converts to it: kgo.RecordHeader.
type AnyHeader interface {
	~struct {
		Key   string
		Value []byte
	}
}

// InvalidError says why a record cannot be used.
type InvalidError struct {
	Field  string // the JSON name of the field; empty where the record as a whole is wrong
	Reason string // what is wrong and what would be right; never holds a value of the record
}

func (e *InvalidError) Error() string {
	if e.Field == "" {
		return e.Reason
	}
	return fmt.Sprintf("field %s: %s", e.Field, e.Reason)
}

// VersionError says that a record was written by a newer release, in a format that this one does not know.
// The stage that meets one stops.
type VersionError struct {
	What    string // the kind of record, e.g. "inbox record"
	Version string // the header's value; empty where Part says what is unknown
	Part    string // the unknown part of a record of a known version, e.g. "kind 3"; empty: it is the version
}

func (e *VersionError) Error() string {
	if e.Part != "" {
		return fmt.Sprintf("%s has %s, which this release does not know; run a release that knows it", e.What, e.Part)
	}
	return fmt.Sprintf("%s has format version %q and this release knows versions up to %d; run a release that knows it", e.What, e.Version, Version)
}
