package oracle

import "slices"

// piece is what a source of a merge has at one place: a record with one hash, and (where it is a message) its
// recipients, which may come in several parts.
type piece struct {
	hash   uint64
	offset int64  // of its cause
	first  uint32 // its recipients in source.uids
	n      uint32
}

// source is one of the sequences that are merged.
type source struct {
	pieces []piece
	uids   []uint32
}

// place is a source's position: whole pieces, and recipients of the next one.
type place struct {
	pieces, uids uint32
}

// pieceRef names a piece.
type pieceRef struct {
	source int32
	piece  uint32
}

// fault is how a value does not fit into the merge.
type fault uint8

const (
	fits        fault = iota
	unexplained       // no source has it
	late              // its source has given a later one already
	again             // it came already
	differs           // its recipients are not those of the source
	tooManyWays       // what came before can be explained in more ways than are followed
)

// maxWays bounds the ways to explain a merge that are followed at once.
const maxWays = 512

// merge checks that what it is given is a merge of sources that keeps the order of each. Equal values may stand in
// several sources, so it follows every way in which they can have come: a way is one place in each source. What does
// not fit is put where it does best, so that one fault does not become many.
type merge struct {
	sources []source
	ways    [][]place
	next    [][]place // buffer of step
	free    [][]place // ways that are done with

	// Since a fault:
	index   map[uint64][]pieceRef // where each value stands
	skipped map[pieceRef]uint32   // what was passed over, with how many of its recipients have come
}

func newMerge(sources []source) *merge {
	return &merge{sources: sources, ways: [][]place{make([]place, len(sources))}}
}

// fit moves one source of the way on by a value, if it is what comes next there.
func (m *merge) fit(way []place, s int, hash uint64, uids []uint32) (place, bool) {
	p := way[s]
	src := &m.sources[s]
	if int(p.pieces) >= len(src.pieces) {
		return p, false
	}
	next := &src.pieces[p.pieces]
	if next.hash != hash {
		return p, false
	}
	return advance(src, next, p, uids)
}

func advance(src *source, next *piece, p place, uids []uint32) (place, bool) {
	n := uint32(len(uids))
	if p.uids+n > next.n || !slices.Equal(src.uids[next.first+p.uids:next.first+p.uids+n], uids) {
		return p, false
	}
	if p.uids += n; p.uids == next.n {
		return place{pieces: p.pieces + 1}, true
	}
	return p, true
}

// step takes the next value. ref is the piece that a fault is about.
func (m *merge) step(hash uint64, uids []uint32) (f fault, ref pieceRef) {
	if len(m.ways) == 1 {
		way, first, several := m.ways[0], -1, false
		var to place
		for s := range way {
			if p, ok := m.fit(way, s, hash, uids); ok {
				if several = first >= 0; several {
					break
				}
				first, to = s, p
			}
		}
		if !several {
			if first < 0 {
				return m.misfit(hash, uids)
			}
			way[first] = to
			return fits, pieceRef{}
		}
	}
	m.next = m.next[:0]
	for _, way := range m.ways {
		for s := range way {
			p, ok := m.fit(way, s, hash, uids)
			if !ok {
				continue
			}
			to := m.copyOf(way)
			to[s] = p
			if slices.ContainsFunc(m.next, func(w []place) bool { return slices.Equal(w, to) }) {
				m.free = append(m.free, to)
				continue
			}
			m.next = append(m.next, to)
		}
		if len(m.next) > maxWays {
			m.ways = append(m.ways[:0], m.next[0])
			return tooManyWays, pieceRef{}
		}
	}
	if len(m.next) == 0 {
		m.ways = m.ways[:1]
		return m.misfit(hash, uids)
	}
	m.free = append(m.free, m.ways...)
	m.ways, m.next = m.next, m.ways
	return fits, pieceRef{}
}

func (m *merge) copyOf(way []place) []place {
	if n := len(m.free); n > 0 {
		to := m.free[n-1]
		m.free = m.free[:n-1]
		copy(to, way)
		return to
	}
	return slices.Clone(way)
}

// misfit puts a value that comes next nowhere where it fits best: with what was passed over, with what came already, or
// ahead in a source, which passes over what stands before it.
func (m *merge) misfit(hash uint64, uids []uint32) (fault, pieceRef) {
	if m.index == nil {
		m.index, m.skipped = make(map[uint64][]pieceRef), make(map[pieceRef]uint32)
		for s := range m.sources {
			for i := range m.sources[s].pieces {
				h := m.sources[s].pieces[i].hash
				m.index[h] = append(m.index[h], pieceRef{int32(s), uint32(i)})
			}
		}
	}
	way := m.ways[0]
	refs := m.index[hash]
	if len(refs) == 0 {
		return unexplained, pieceRef{}
	}
	var before, ahead *pieceRef
	for i, ref := range refs {
		if came, is := m.skipped[ref]; is {
			src := &m.sources[ref.source]
			p, ok := advance(src, &src.pieces[ref.piece], place{ref.piece, came}, uids)
			if ok && p.pieces == ref.piece {
				m.skipped[ref] = p.uids
			} else {
				delete(m.skipped, ref)
			}
			if !ok {
				return differs, ref
			}
			return late, ref
		}
		at := way[ref.source].pieces
		switch {
		case ref.piece < at:
			before = &refs[i]
		case ahead == nil || ref.piece-at < ahead.piece-way[ahead.source].pieces:
			ahead = &refs[i]
		}
	}
	if before != nil && (ahead == nil || ahead.piece > way[ahead.source].pieces) {
		return again, *before
	}
	src := &m.sources[ahead.source]
	p := &way[ahead.source]
	for p.pieces < ahead.piece {
		m.skipped[pieceRef{ahead.source, p.pieces}] = p.uids
		*p = place{pieces: p.pieces + 1}
	}
	to, ok := advance(src, &src.pieces[p.pieces], *p, uids)
	if ok {
		*p = to
		return fits, pieceRef{}
	}
	if next := &src.pieces[p.pieces]; contains(src.uids[next.first:next.first+p.uids], uids) {
		return again, *ahead // a part of it
	}
	*p = place{pieces: p.pieces + 1}
	return differs, *ahead
}

func contains(list, part []uint32) bool {
	for i := 0; i+len(part) <= len(list); i++ {
		if slices.Equal(list[i:i+len(part)], part) {
			return len(part) > 0
		}
	}
	return false
}

// missing calls each with what has not come, in the sources' order.
func (m *merge) missing(each func(ref pieceRef, came, of uint32)) {
	best, least := m.ways[0], -1
	for _, way := range m.ways {
		left := 0
		for s, p := range way {
			left += len(m.sources[s].pieces) - int(p.pieces)
		}
		if least < 0 || left < least {
			best, least = way, left
		}
	}
	skipped := make([]pieceRef, 0, len(m.skipped))
	for ref := range m.skipped {
		skipped = append(skipped, ref)
	}
	slices.SortFunc(skipped, func(a, b pieceRef) int {
		if a.source != b.source {
			return int(a.source) - int(b.source)
		}
		return int(int64(a.piece) - int64(b.piece))
	})
	for _, ref := range skipped {
		each(ref, m.skipped[ref], m.sources[ref.source].pieces[ref.piece].n)
	}
	for s, p := range best {
		for i := p.pieces; int(i) < len(m.sources[s].pieces); i++ {
			each(pieceRef{int32(s), i}, p.uids, m.sources[s].pieces[i].n)
			p.uids = 0
		}
	}
}
