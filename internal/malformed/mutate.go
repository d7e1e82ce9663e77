package malformed

import "bytes"

// mutations change good records without a look at what they say.
var mutations = []rule{
	{"flipped bits", 150, mutate(func(g *Generator, b []byte, _ func() []byte) []byte {
		for range 1 + g.rand.IntN(4) {
			b[g.rand.IntN(len(b))] ^= 1 << g.rand.IntN(8)
		}
		return b
	})},
	{"cut off", 60, mutate(func(g *Generator, b []byte, _ func() []byte) []byte { return b[:g.rand.IntN(len(b))] })},
	{"the head cut off", 20, mutate(func(g *Generator, b []byte, _ func() []byte) []byte { return b[1+g.rand.IntN(len(b)-1):] })},
	{"a part left out", 60, mutate(func(g *Generator, b []byte, _ func() []byte) []byte {
		from, to := g.part(b)
		return append(b[:from:from], b[to:]...)
	})},
	{"a part repeated", 60, mutate(func(g *Generator, b []byte, _ func() []byte) []byte {
		from, to := g.part(b)
		return bytes.Join([][]byte{b[:to], bytes.Repeat(b[from:to], g.rand.IntN(20)), b[to:]}, nil)
	})},
	{"two parts swapped", 60, mutate(func(g *Generator, b []byte, _ func() []byte) []byte {
		from, to := g.part(b)
		end := to + g.rand.IntN(len(b)-to+1)
		return bytes.Join([][]byte{b[:from], b[to:end], b[from:to], b[end:]}, nil)
	})},
	{"two records spliced", 60, mutate(func(g *Generator, b []byte, other func() []byte) []byte {
		o := other()
		return append(b[:g.rand.IntN(len(b))], o[g.rand.IntN(len(o)):]...)
	})},
	{"a part of another put in", 40, mutate(func(g *Generator, b []byte, other func() []byte) []byte {
		o := other()
		at := g.rand.IntN(len(b) + 1)
		from, to := g.part(o)
		return bytes.Join([][]byte{b[:at], o[from:to], b[at:]}, nil)
	})},
	{"a byte put in", 40, mutate(func(g *Generator, b []byte, _ func() []byte) []byte {
		at := g.rand.IntN(len(b) + 1)
		return bytes.Join([][]byte{b[:at], {byte(g.rand.Uint32())}, b[at:]}, nil)
	})},
	{"the other input's", 15, func(g *Generator, r *Record) {
		r.Value = g.good(!r.Message).json()
	}},
	{"nothing wrong", 15, func(g *Generator, r *Record) { r.Value = g.good(r.Message).json() }},
}

// mutate is a mutation of a record's value; other makes another value.
func mutate(f func(g *Generator, b []byte, other func() []byte) []byte) func(*Generator, *Record) {
	return func(g *Generator, r *Record) {
		value := f(g, g.good(r.Message).json(), func() []byte { return g.good(g.chance(50) == r.Message).json() })
		if value == nil {
			value = []byte{}
		}
		r.Value = value
	}
}

// part is a part of b, mostly a short one, and never an empty one.
func (g *Generator) part(b []byte) (from, to int) {
	from = g.rand.IntN(len(b))
	length := 1 + g.rand.IntN(8)
	if g.chance(20) {
		length = 1 + g.rand.IntN(len(b))
	}
	return from, min(from+length, len(b))
}
