package oracle

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func tokensOf(s string) []token {
	list := make([]token, len(s))
	for i, c := range s {
		// An upper-case letter is the lower-case one with other counts.
		list[i] = token{full: uint64(c), loose: uint64(c | 0x20)}
	}
	return list
}

func TestAlign(t *testing.T) {
	for _, c := range []struct {
		want, got string
		a         alignment
	}{
		{"abcd", "abcd", alignment{}},
		{"abcd", "acd", alignment{missing: []int{1}}},
		{"abcd", "abcbd", alignment{extra: []int{3}}},
		{"abcd", "acbd", alignment{moved: []pair{{2, 1}}}},
		{"abcd", "aBcd", alignment{changed: []pair{{1, 1}}}},
		{"xayaz", "xyAz", alignment{changed: []pair{{2, 3}}, missing: []int{1}}}, // the nearest
		{"abab", "aab", alignment{missing: []int{1}}},
		{"acacac", "caac", alignment{missing: []int{0, 3}}},
		{"abcdefgh", "efgh", alignment{missing: []int{0, 1, 2, 3}}},
		{"abcd", "", alignment{missing: []int{0, 1, 2, 3}}},
		{"", "ab", alignment{extra: []int{0, 1}}},
	} {
		a := align(tokensOf(c.want), tokensOf(c.got))
		if !slices.Equal(a.moved, c.a.moved) || !slices.Equal(a.changed, c.a.changed) || !slices.Equal(a.missing, c.a.missing) || !slices.Equal(a.extra, c.a.extra) {
			t.Errorf("%q and %q: %+v, want %+v", c.want, c.got, a, c.a)
		}
	}
}

// common is the length of a longest common subsequence, by the table of all prefixes.
func common(want, got []token) int {
	lengths := make([][]int, len(want)+1)
	for i := range lengths {
		lengths[i] = make([]int, len(got)+1)
	}
	for i := range want {
		for j := range got {
			lengths[i+1][j+1] = max(lengths[i][j+1], lengths[i+1][j])
			if want[i].full == got[j].full {
				lengths[i+1][j+1] = lengths[i][j] + 1
			}
		}
	}
	return lengths[len(want)][len(got)]
}

// TestDiff compares both searches with that table, and checks that each pairs equal events in ascending order.
func TestDiff(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		words := make([]string, 2)
		distinct := 1 + r.IntN(8)
		for i := range words {
			for range r.IntN(12) {
				words[i] += string(rune('a' + r.IntN(distinct)))
			}
		}
		want, got := tokensOf(words[0]), tokensOf(words[1])
		check := func(name string, pairs []pair) {
			for i, p := range pairs {
				if want[p.want].full != got[p.got].full || i > 0 && (p.want <= pairs[i-1].want || p.got <= pairs[i-1].got) {
					t.Fatalf("%s of %q: %v", name, words, pairs)
				}
			}
		}
		pairs, ok := diff(want, got)
		if check("diff", pairs); !ok || len(pairs) != common(want, got) {
			t.Fatalf("diff of %q: %v, %t", words, pairs, ok)
		}
		check("increasing", increasing(want, got))

		a := align(want, got)
		paired := len(want) - len(a.missing)
		if paired != len(got)-len(a.extra) || len(a.changed) > 0 {
			t.Fatalf("align of %q: %+v", words, a)
		}
	}
	// So many edits that the other search decides.
	long := make([]token, 2*maxEdits)
	for i := range long {
		long[i] = token{full: uint64(i), loose: uint64(i)}
	}
	reversed := slices.Clone(long)
	slices.Reverse(reversed)
	if a := align(long, reversed); len(a.moved) != len(long)-1 || len(a.missing)+len(a.extra) > 0 {
		t.Errorf("%d of %d moved, %d missing, %d extra", len(a.moved), len(long), len(a.missing), len(a.extra))
	}
}
