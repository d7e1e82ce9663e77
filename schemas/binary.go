package schemas

import (
	"encoding/binary"
	"fmt"
)

// The records of offhook's own topics are binary. Integers are varints of encoding/binary, signed ones zigzag;
// strings have their length before them, because they may hold any byte. A record is read to its last byte: what
// follows is damage. Unknown kinds and flags are a newer release's, hence a *VersionError.

func appendString[T ~string | ~[]byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// parser reads a binary record. The first fault sticks, and what is read after it is zero.
type parser struct {
	what string // the kind of record, for errors
	rest []byte
	err  error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = invalid("", p.what+" "+fmt.Sprintf(format, args...))
	}
	p.rest = nil
}

func (p *parser) unknown(format string, args ...any) {
	if p.err == nil {
		p.err = &VersionError{What: p.what, Part: fmt.Sprintf(format, args...)}
	}
	p.rest = nil
}

const cutShort = "ends too early: it is cut or damaged"

func (p *parser) byte() byte {
	if len(p.rest) == 0 {
		p.fail(cutShort)
		return 0
	}
	b := p.rest[0]
	p.rest = p.rest[1:]
	return b
}

// flags reads a byte of which only the bits in known may be set.
func (p *parser) flags(known byte) byte {
	b := p.byte()
	if b&^known != 0 {
		p.unknown("flags %#02x", b&^known)
		return 0
	}
	return b
}

func (p *parser) uvarint() uint64 {
	v, n := binary.Uvarint(p.rest)
	if n <= 0 {
		p.fail("has a damaged integer")
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

func (p *parser) varint() int64 {
	v, n := binary.Varint(p.rest)
	if n <= 0 {
		p.fail("has a damaged integer")
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

// bytes reads a string; the slice aliases the record.
func (p *parser) bytes() []byte {
	n := p.uvarint()
	return p.take(n)
}

func (p *parser) take(n uint64) []byte {
	if n > uint64(len(p.rest)) {
		p.fail(cutShort)
		return nil
	}
	b := p.rest[:n:n]
	p.rest = p.rest[n:]
	return b
}

// end is the record's fault, if any; bytes that were not read are one.
func (p *parser) end() error {
	if p.err == nil && len(p.rest) > 0 {
		p.fail("has %d bytes too many: it is damaged", len(p.rest))
	}
	return p.err
}
