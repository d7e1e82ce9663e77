// Package malformed makes input records that are wrong: by rules that each break one thing of what docs/design.md says of
// an input record, and by mutations of good records. Some of them are valid all the same; who reads them says which.
//
// What it makes depends on the seed alone. Uids, nodes and channels begin with "bad", or are what nobody has, and there is no
// event of another's node: a record that is accepted does nothing to others' users.
package malformed

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/offhook/offhook/schemas"
)

// Record is an input record.
type Record struct {
	Rule    string // what is wrong with it, a few words
	Message bool   // it is for a messages topic; false: for a connections topic
	Key     []byte // nil: null
	Value   []byte // nil: null, which an empty value is not
	Headers []schemas.Header
}

// Size is the record's size in bytes as OFFHOOK_MAX_RECORD_BYTES counts it: key, value and headers.
func (r *Record) Size() int {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// Generator makes records. It is for one goroutine.
type Generator struct {
	rand     *rand.Rand
	maxBytes int
	n        int // records made
}

// New returns a generator of records around the limit maxBytes (OFFHOOK_MAX_RECORD_BYTES), at least 1 KiB.
func New(seed uint64, maxBytes int) *Generator {
	return &Generator{rand: rand.New(rand.NewPCG(seed, 0x6f6666686f6f6b)), maxBytes: max(maxBytes, 1<<10)}
}

// rule is one way to be wrong. weight is how often it is taken, in relation to the others.
type rule struct {
	name   string
	weight int
	apply  func(g *Generator, r *Record)
}

var rules = slices.Concat(fieldRules, documentRules, recordRules, mutations)

var totalWeight = func() int {
	n := 0
	for _, r := range rules {
		n += r.weight
	}
	return n
}()

// Next makes one record. Its slices are the caller's.
func (g *Generator) Next() Record {
	for {
		if r := g.next(); r.Message || !concernsOthers(r.Value) {
			return r
		}
	}
}

// concernsOthers reports whether a connection event is one of a whole node that is none of ours.
func concernsOthers(value []byte) bool {
	c, err := schemas.DecodeConnection(value, 0)
	return err == nil && c.UID == "" && !strings.HasPrefix(string(c.NodeID), "bad")
}

func (g *Generator) next() Record {
	g.n++
	r := Record{Message: g.rand.IntN(2) == 0}
	at := g.rand.IntN(totalWeight)
	for _, rule := range rules {
		if at -= rule.weight; at < 0 {
			r.Rule = rule.name
			rule.apply(g, &r)
			break
		}
	}
	if r.Key == nil && g.rand.IntN(4) > 0 {
		r.Key = []byte(g.uid())
	}
	return r
}

// pick is one of values, by chance.
func pick[T any](g *Generator, values []T) T { return values[g.rand.IntN(len(values))] }

// chance is true in n of 100 cases.
func (g *Generator) chance(n int) bool { return g.rand.IntN(100) < n }

// repeat is text, often enough to be n bytes, cut there.
func repeat(text string, n int) string {
	return string(bytes.Repeat([]byte(text), n/len(text)+1)[:n])
}
