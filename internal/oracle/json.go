package oracle

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// maxDepth is how deep arrays and objects may stand in each other; a deeper record is refused, since receivers' parsers have limits.
const maxDepth = 500

var (
	errSyntax    = errors.New("is no JSON")
	errUTF8      = errors.New("has text that is no UTF-8")
	errDuplicate = errors.New("has a name twice in an object")
	errDepth     = errors.New("is nested too deep")
)

// scanner reads strict JSON: RFC 8259, no name twice in an object, and no text that is not UTF-8, also once its
// escapes are resolved (a lone surrogate).
type scanner struct {
	b     []byte
	i     int
	depth int
	names [][]byte // of the open objects, the innermost last
}

// object is one that is being read.
type object struct {
	first int                 // where its names begin in scanner.names
	many  map[string]struct{} // its names, where they are too many to compare each with each
	begun bool
}

// manyNames is the number of names from which an object's are kept in a map.
const manyNames = 16

func (s *scanner) fail(err error) error { return fmt.Errorf("byte %d: %w", s.i, err) }

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

// peek is the next byte that is no space, 0 at the end.
func (s *scanner) peek() byte {
	s.space()
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

// end reports an error where anything but space follows.
func (s *scanner) end() error {
	if s.peek() != 0 || s.i < len(s.b) {
		return s.fail(errSyntax)
	}
	return nil
}

func (s *scanner) take(c byte) error {
	if s.peek() != c {
		return s.fail(errSyntax)
	}
	s.i++
	return nil
}

func (s *scanner) deeper() error {
	if s.depth++; s.depth > maxDepth {
		return s.fail(errDepth)
	}
	return nil
}

// object reads an opening brace.
func (s *scanner) object() (object, error) {
	if err := s.take('{'); err != nil {
		return object{}, err
	}
	return object{first: len(s.names)}, s.deeper()
}

// member reads up to a member's value; raw is its name as it stands there, quotes included. more is false after the
// closing brace.
func (s *scanner) member(o *object) (name, raw []byte, more bool, err error) {
	c := s.peek()
	switch {
	case c == '}':
		s.i++
		s.depth--
		s.names = s.names[:o.first]
		return nil, nil, false, nil
	case o.begun:
		if c != ',' {
			return nil, nil, false, s.fail(errSyntax)
		}
		s.i++
		s.space()
	}
	o.begun = true
	if raw, err = s.string(); err != nil {
		return nil, nil, false, err
	}
	name = unquote(raw)
	if o.many == nil {
		for _, other := range s.names[o.first:] {
			if string(other) == string(name) {
				return nil, nil, false, s.fail(errDuplicate)
			}
		}
		s.names = append(s.names, name)
		if len(s.names)-o.first > manyNames {
			o.many = make(map[string]struct{})
			for _, n := range s.names[o.first:] {
				o.many[string(n)] = struct{}{}
			}
		}
	} else {
		if _, twice := o.many[string(name)]; twice {
			return nil, nil, false, s.fail(errDuplicate)
		}
		o.many[string(name)] = struct{}{}
	}
	if err := s.take(':'); err != nil {
		return nil, nil, false, err
	}
	s.space()
	return name, raw, true, nil
}

// element reads up to an array's next element; first says that there was none yet. more is false after the closing
// bracket.
func (s *scanner) element(first bool) (more bool, err error) {
	c := s.peek()
	if c == ']' {
		s.i++
		s.depth--
		return false, nil
	}
	if !first {
		if c != ',' {
			return false, s.fail(errSyntax)
		}
		s.i++
		if s.peek() == ']' {
			return false, s.fail(errSyntax)
		}
	}
	return true, nil
}

// array reads an opening bracket.
func (s *scanner) array() error {
	if err := s.take('['); err != nil {
		return err
	}
	return s.deeper()
}

// value reads any value and returns it as it stands there.
func (s *scanner) value() ([]byte, error) {
	c := s.peek()
	start := s.i
	var err error
	switch c {
	case '{':
		var o object
		if o, err = s.object(); err != nil {
			return nil, err
		}
		for {
			_, _, more, err := s.member(&o)
			if err != nil {
				return nil, err
			}
			if !more {
				break
			}
			if _, err := s.value(); err != nil {
				return nil, err
			}
		}
	case '[':
		if err = s.array(); err != nil {
			return nil, err
		}
		for first := true; ; first = false {
			more, err := s.element(first)
			if err != nil {
				return nil, err
			}
			if !more {
				break
			}
			if _, err := s.value(); err != nil {
				return nil, err
			}
		}
	case '"':
		_, err = s.string()
	case 't':
		err = s.word("true")
	case 'f':
		err = s.word("false")
	case 'n':
		err = s.word("null")
	default:
		err = s.number()
	}
	if err != nil {
		return nil, err
	}
	return s.b[start:s.i], nil
}

func (s *scanner) word(w string) error {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		return s.fail(errSyntax)
	}
	s.i += len(w)
	return nil
}

func (s *scanner) digits() int {
	n := 0
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
		n++
	}
	return n
}

func (s *scanner) at(c byte) bool { return s.i < len(s.b) && s.b[s.i] == c }

func (s *scanner) number() error {
	if s.at('-') {
		s.i++
	}
	if s.at('0') {
		s.i++
	} else if s.digits() == 0 {
		return s.fail(errSyntax)
	}
	if s.at('.') {
		s.i++
		if s.digits() == 0 {
			return s.fail(errSyntax)
		}
	}
	if s.at('e') || s.at('E') {
		s.i++
		if s.at('+') || s.at('-') {
			s.i++
		}
		if s.digits() == 0 {
			return s.fail(errSyntax)
		}
	}
	return nil
}

// string reads a string and returns it with its quotes.
func (s *scanner) string() ([]byte, error) {
	start := s.i
	if !s.at('"') {
		return nil, s.fail(errSyntax)
	}
	s.i++
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return s.b[start:s.i], nil
		case c == '\\':
			if err := s.escape(); err != nil {
				return nil, err
			}
		case c < ' ':
			return nil, s.fail(errSyntax)
		case c < utf8.RuneSelf:
			s.i++
		default:
			r, n := utf8.DecodeRune(s.b[s.i:])
			if r == utf8.RuneError && n <= 1 {
				return nil, s.fail(errUTF8)
			}
			s.i += n
		}
	}
	return nil, s.fail(errSyntax)
}

func (s *scanner) escape() error {
	if s.i+1 >= len(s.b) {
		return s.fail(errSyntax)
	}
	switch s.b[s.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return nil
	case 'u':
	default:
		return s.fail(errSyntax)
	}
	u, ok := hex4(s.b[s.i+2:])
	switch {
	case !ok:
		return s.fail(errSyntax)
	case u >= 0xdc00 && u <= 0xdfff:
		return s.fail(errUTF8)
	case u >= 0xd800 && u <= 0xdbff:
		rest := s.b[s.i+6:]
		if len(rest) < 2 || rest[0] != '\\' || rest[1] != 'u' {
			return s.fail(errUTF8)
		}
		if low, ok := hex4(rest[2:]); !ok || low < 0xdc00 || low > 0xdfff {
			return s.fail(errUTF8)
		}
		s.i += 6
	}
	s.i += 6
	return nil
}

func hex4(b []byte) (u rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		u = u<<4 | rune(c)
	}
	return u, true
}

// unquote returns the text of a string that the scanner has read; without escapes it aliases raw.
func unquote(raw []byte) []byte {
	in := raw[1 : len(raw)-1]
	i := 0
	for i < len(in) && in[i] != '\\' {
		i++
	}
	if i == len(in) {
		return in
	}
	out := append(make([]byte, 0, len(in)), in[:i]...)
	for i < len(in) {
		c := in[i]
		if c != '\\' {
			out = append(out, c)
			i++
			continue
		}
		switch c = in[i+1]; c {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			u, _ := hex4(in[i+2:])
			if u >= 0xd800 && u <= 0xdbff {
				low, _ := hex4(in[i+8:])
				u = 0x10000 + (u-0xd800)<<10 + low - 0xdc00
				i += 6
			}
			out = utf8.AppendRune(out, u)
			i += 4
		default:
			out = append(out, c)
		}
		i += 2
	}
	return out
}

// appendQuoted appends text as a JSON string with the shortest escapes, and those only where JSON asks for them.
func appendQuoted(dst, text []byte) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	for _, c := range text {
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c >= ' ':
			dst = append(dst, c)
		case c == '\b':
			dst = append(dst, '\\', 'b')
		case c == '\f':
			dst = append(dst, '\\', 'f')
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(dst, '"')
}
