package txn

import (
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/schemas"
)

// HeadersOf are the headers of what a stage makes of a record: the version, and the record's trace context.
func HeadersOf(r *kgo.Record) []kgo.RecordHeader {
	headers := make([]kgo.RecordHeader, 1, 2)
	headers[0] = kgo.RecordHeader(schemas.VersionHeader())
	if t := Traceparent(r); t != nil {
		headers = append(headers, kgo.RecordHeader{Key: schemas.HeaderTraceparent, Value: t})
	}
	return headers
}

// Traceparent is the record's trace context, nil where it has none that is valid.
func Traceparent(r *kgo.Record) []byte {
	for _, h := range r.Headers {
		if h.Key == schemas.HeaderTraceparent && schemas.ValidTraceparent(h.Value) {
			return h.Value
		}
	}
	return nil
}
