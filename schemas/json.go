package schemas

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// reader reads one JSON record in a single pass. Its raw values are slices of the record; it owns the buffers that a
// record is taken apart into, which is why it comes from a pool.
type reader struct {
	value []byte
	buf   bytes.Buffer // aliases value, so that dec reads without a copy
	dec   jsontext.Decoder

	unquoted   []byte // the last string with escapes
	name       []byte // the last name with escapes
	header     []byte // unknown members of a message's header, as they are passed on
	rest       []byte // unknown members of a message, likewise
	recipients []byte // the uids of to_uids, end to end
	ends       []int  // where each of them ends in recipients
}

var readers = sync.Pool{New: func() any { return new(reader) }}

// keptBytes bounds the buffers that go back to the pool: one large record must not pin its size for ever.
const keptBytes = 64 << 10

func newReader(value []byte) *reader {
	r := readers.Get().(*reader)
	r.value = value
	r.buf = *bytes.NewBuffer(value)
	r.dec.Reset(&r.buf)
	return r
}

func (r *reader) release() {
	if cap(r.unquoted) > keptBytes || cap(r.header) > keptBytes || cap(r.rest) > keptBytes ||
		cap(r.recipients) > keptBytes || cap(r.ends) > keptBytes/8 {
		return
	}
	r.value, r.buf = nil, bytes.Buffer{}
	r.dec.Reset(&r.buf)
	r.header, r.rest, r.recipients, r.ends = r.header[:0], r.rest[:0], r.recipients[:0], r.ends[:0]
	readers.Put(r)
}

func invalid(field, reason string) error { return &InvalidError{Field: field, Reason: reason} }

// maxDepth is how deep arrays and objects of an input record may stand in each other. What is passed on must be read by receivers:
// their parsers have limits of their own (PHP's 512, Jackson's 1,000, Go's 10,000), and a body adds one level.
const maxDepth = 500

// shallow refuses a record that is nested too deep. Of what is no JSON it says nothing certain.
func (r *reader) shallow() error {
	if bytes.Count(r.value, []byte{'['})+bytes.Count(r.value, []byte{'{'}) <= maxDepth {
		return nil
	}
	depth, quoted := 0, false
	for i := 0; i < len(r.value); i++ {
		switch c := r.value[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			if depth++; depth > maxDepth {
				return invalid("", fmt.Sprintf("the record is nested deeper than %d levels at byte %d", maxDepth, i))
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return nil
}

// begin reads the record's opening brace.
func (r *reader) begin() error {
	switch r.dec.PeekKind() {
	case '{':
		return r.enter()
	case 'n', 't', 'f', '"', '0', '[':
		return invalid("", "the record is no JSON object; send one object")
	}
	return r.enter()
}

// enter reads an opening brace or bracket, leave the closing one.
func (r *reader) enter() error {
	_, err := r.dec.ReadToken()
	return r.syntax(err)
}

func (r *reader) leave() error { return r.enter() }

// finish reads to the record's end and refuses what stands after its value.
func (r *reader) finish() error {
	end := r.dec.InputOffset()
	if _, err := r.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return invalid("", fmt.Sprintf("data follows the JSON value, which ends at byte %d; send one value a record", end))
	}
	return nil
}

// member reads the next member's name, unquoted and as it stands; ok is false at the object's closing brace, which is
// left to read. Both slices are valid until the next member.
func (r *reader) member() (name, raw []byte, ok bool, err error) {
	if r.dec.PeekKind() == '}' {
		return nil, nil, false, nil
	}
	if raw, err = r.raw(); err != nil {
		return nil, nil, false, err
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], raw, true, nil
	}
	if r.name, err = jsontext.AppendUnquote(r.name[:0], raw); err != nil {
		return nil, nil, false, r.syntax(err)
	}
	return r.name, raw, true, nil
}

// raw reads the next value whole, as it stands in the record: the slice stays valid as long as the record does.
func (r *reader) raw() ([]byte, error) {
	v, err := r.dec.ReadValue()
	if err != nil {
		return nil, r.syntax(err)
	}
	end := int(r.dec.InputOffset())
	return r.value[end-len(v) : end : end], nil
}

// syntax makes an *InvalidError of the decoder's error. The decoder's own text may quote the record, so it is not used.
func (r *reader) syntax(err error) error {
	if err == nil {
		return nil
	}
	offset := int64(len(r.value))
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		offset = e.ByteOffset
	}
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return invalid("", fmt.Sprintf("an object has a name for the second time at byte %d; each name may stand once", offset))
	case len(r.value) == 0:
		return invalid("", "the record is empty; send one JSON object")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("", fmt.Sprintf("the JSON is not complete at the record's end, byte %d", len(r.value)))
	case !utf8.Valid(r.value):
		return invalid("", fmt.Sprintf("the record is not UTF-8 at byte %d; send JSON in UTF-8", invalidUTF8(r.value)))
	}
	return invalid("", fmt.Sprintf("the record is not valid JSON at byte %d; send one JSON object", offset))
}

// invalidUTF8 is the offset of the first byte that is no UTF-8.
func invalidUTF8(b []byte) int {
	for i := 0; i < len(b); {
		c, size := utf8.DecodeRune(b[i:])
		if c == utf8.RuneError && size <= 1 {
			return i
		}
		i += size
	}
	return len(b)
}

func isNull(raw []byte) bool { return raw[0] == 'n' }

// text unquotes a string; the slice is valid until the next call.
func (r *reader) text(field string, raw []byte) ([]byte, error) {
	if raw[0] != '"' {
		return nil, invalid(field, "must be a string")
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], nil
	}
	var err error
	if r.unquoted, err = jsontext.AppendUnquote(r.unquoted[:0], raw); err != nil {
		return nil, r.syntax(err)
	}
	return r.unquoted, nil
}

// integer checks an integer of 0 to limit, without sign, fraction and exponent.
func integer(field string, raw []byte, limit uint64) (uint64, error) {
	n, ok := canonicalDigits(raw, limit)
	if !ok {
		return 0, invalid(field, fmt.Sprintf("must be an integer from 0 to %d, without fraction and exponent", limit))
	}
	return n, nil
}

func boolean(field string, raw []byte) (bool, error) {
	if raw[0] != 't' && raw[0] != 'f' {
		return false, invalid(field, "must be true or false")
	}
	return raw[0] == 't', nil
}

// appendMember appends `,name:value`, both as they stand.
func appendMember(dst, name, value []byte) []byte {
	dst = append(dst, ',')
	dst = append(dst, name...)
	dst = append(dst, ':')
	return append(dst, value...)
}

// appendText appends a JSON string that was read, with no more escapes than it needs. One that has none is such already.
func (r *reader) appendText(dst, raw []byte) []byte {
	if bytes.IndexByte(raw, '\\') < 0 {
		return append(dst, raw...)
	}
	// raw went through the decoder, so neither step can fail.
	r.unquoted, _ = jsontext.AppendUnquote(r.unquoted[:0], raw)
	dst, _ = jsontext.AppendQuote(dst, r.unquoted)
	return dst
}

// appendQuoted appends s as a JSON string. Bytes that are no UTF-8 become U+FFFD, but no decoder lets any in.
func appendQuoted(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			dst, _ = jsontext.AppendQuote(dst, s)
			return dst
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// takeStrings makes strings of the uids that were collected, all of them in one allocation beside the slice.
func (r *reader) takeStrings() []string {
	if len(r.ends) == 0 {
		return nil
	}
	all, start := string(r.recipients), 0
	uids := make([]string, len(r.ends))
	for i, end := range r.ends {
		uids[i], start = all[start:end], end
	}
	return uids
}
