package oracle

import (
	"slices"
	"sort"
)

// token is an event in a sequence: equal events have one full hash, and those that differ in their counts alone have
// one loose hash.
type token struct {
	full, loose uint64
}

// pair is a delivered and an expected event that are one, by their places.
type pair struct{ got, want int }

// alignment says how a delivered sequence differs from the expected one.
type alignment struct {
	moved   []pair // it came, at another place
	changed []pair // it came with other counts
	missing []int  // places in what was expected
	extra   []int  // places in what was delivered
}

// maxEdits bounds the search for the smallest difference; its time is the product of it and the length, its memory its
// square.
const maxEdits = 1000

// align compares what was delivered with what was expected. It looks for the longest sequence that both have, so that
// what is lost moves nothing else.
func align(want, got []token) alignment {
	first := 0
	for first < len(want) && first < len(got) && want[first].full == got[first].full {
		first++
	}
	endWant, endGot := len(want), len(got)
	for endWant > first && endGot > first && want[endWant-1].full == got[endGot-1].full {
		endWant--
		endGot--
	}
	pairs, ok := diff(want[first:endWant], got[first:endGot])
	if !ok {
		pairs = increasing(want[first:endWant], got[first:endGot])
	}
	// Those in no pair, each with how many pairs stand before it.
	type left struct{ at, pairs int }
	var lost, more []left
	w, g := first, first
	for n, p := range append(pairs, pair{endGot - first, endWant - first}) {
		for ; w < first+p.want; w++ {
			lost = append(lost, left{w, n})
		}
		for ; g < first+p.got; g++ {
			more = append(more, left{g, n})
		}
		w, g = first+p.want+1, first+p.got+1
	}
	var a alignment
	match := func(hash func(token) uint64, to *[]pair) {
		places := make(map[uint64][]int) // in lost
		for i, l := range lost {
			h := hash(want[l.at])
			places[h] = append(places[h], i)
		}
		taken := make(map[int]bool)
		rest := more[:0]
		for _, m := range more {
			h := hash(got[m.at])
			list := places[h]
			if len(list) == 0 {
				rest = append(rest, m)
				continue
			}
			nearest := 0
			for i := range min(len(list), 64) {
				if distance(lost[list[i]].pairs, m.pairs) < distance(lost[list[nearest]].pairs, m.pairs) {
					nearest = i
				}
			}
			*to = append(*to, pair{m.at, lost[list[nearest]].at})
			taken[list[nearest]] = true
			places[h] = slices.Delete(list, nearest, nearest+1)
		}
		more = rest
		kept := lost[:0]
		for i, l := range lost {
			if !taken[i] {
				kept = append(kept, l)
			}
		}
		lost = kept
	}
	match(func(t token) uint64 { return t.full }, &a.moved)
	match(func(t token) uint64 { return t.loose }, &a.changed)
	for _, l := range lost {
		a.missing = append(a.missing, l.at)
	}
	for _, m := range more {
		a.extra = append(a.extra, m.at)
	}
	return a
}

func distance(a, b int) int {
	if a < b {
		return b - a
	}
	return a - b
}

// diff is E. Myers' greedy algorithm ("An O(ND) difference algorithm and its variations", 1986): the pairs of a longest
// common subsequence, ascending. ok is false where more than maxEdits are needed.
func diff(want, got []token) (pairs []pair, ok bool) {
	n, m := len(want), len(got)
	// furthest[k+limit] is how far into want the furthest path on diagonal k = want − got leads; trace has it as it was
	// before each edit.
	limit := min(n+m, maxEdits)
	furthest := make([]int32, 2*limit+2)
	var trace [][]int32
	edits := -1
search:
	for d := 0; d <= limit; d++ {
		trace = append(trace, slices.Clone(furthest[limit-d:min(limit+d+2, len(furthest))]))
		for k := -d; k <= d; k += 2 {
			var x int
			if k == -d || k != d && furthest[limit+k-1] < furthest[limit+k+1] {
				x = int(furthest[limit+k+1])
			} else {
				x = int(furthest[limit+k-1]) + 1
			}
			y := x - k
			for x < n && y >= 0 && y < m && want[x].full == got[y].full {
				x, y = x+1, y+1
			}
			furthest[limit+k] = int32(x)
			if x >= n && y >= m {
				edits = d
				break search
			}
		}
	}
	if edits < 0 {
		return nil, false
	}
	x, y := n, m
	for d := edits; d >= 0; d-- {
		at := func(k int) int { return int(trace[d][k+d]) }
		k := x - y
		fromX, fromY := 0, 0
		if d > 0 {
			from := k - 1
			if k == -d || k != d && at(k-1) < at(k+1) {
				from = k + 1
			}
			fromX = at(from)
			fromY = fromX - from
		}
		for x > fromX && y > fromY && want[x-1].full == got[y-1].full {
			x, y = x-1, y-1
			pairs = append(pairs, pair{y, x})
		}
		x, y = fromX, fromY
	}
	slices.Reverse(pairs)
	return pairs, true
}

// increasing pairs equal events first with first, and keeps the longest sequence of pairs that ascends on both sides.
func increasing(want, got []token) []pair {
	places := make(map[uint64][]int)
	for i, t := range want {
		places[t.full] = append(places[t.full], i)
	}
	var pairs []pair
	for i, t := range got {
		if list := places[t.full]; len(list) > 0 {
			pairs = append(pairs, pair{i, list[0]})
			places[t.full] = list[1:]
		}
	}
	// ends[l] is the pair in which the ascending sequence of l+1 pairs ends that ends lowest; before is what stands
	// before each pair in the one that it ends.
	var ends []int
	before := make([]int, len(pairs))
	for i, p := range pairs {
		l := sort.Search(len(ends), func(l int) bool { return pairs[ends[l]].want >= p.want })
		before[i] = -1
		if l > 0 {
			before[i] = ends[l-1]
		}
		if l == len(ends) {
			ends = append(ends, i)
		} else {
			ends[l] = i
		}
	}
	if len(ends) == 0 {
		return nil
	}
	kept := make([]pair, 0, len(ends))
	for i := ends[len(ends)-1]; i >= 0; i = before[i] {
		kept = append(kept, pairs[i])
	}
	slices.Reverse(kept)
	return kept
}
