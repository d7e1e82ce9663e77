package presence

// slab holds values of one type by number, in chunks that never move: a pointer to a value stays good until it is given back.
// A table of millions of them costs the garbage collector a chunk each 256, not an object each. Its memory is that of the most
// values that it has held at once. The zero value is empty.
type slab[T any] struct {
	chunks []*[slabChunk]T
	used   ref   // the highest that was ever taken
	free   []ref // those at most used that are not taken
}

// ref names a value of a slab. 0 names none.
type ref uint32

const slabChunk = 256

// at is the value that r names, which must be taken.
func (s *slab[T]) at(r ref) *T {
	r--
	return &s.chunks[r/slabChunk][r%slabChunk]
}

// take returns a zero value that nobody else has.
func (s *slab[T]) take() (ref, *T) {
	if last := len(s.free) - 1; last >= 0 {
		r := s.free[last]
		s.free = s.free[:last]
		return r, s.at(r)
	}
	if int(s.used) == len(s.chunks)*slabChunk {
		s.chunks = append(s.chunks, new([slabChunk]T))
	}
	if s.used++; s.used == 0 {
		panic("presence: more values than there are numbers")
	}
	return s.used, s.at(s.used)
}

// give takes a value back, and makes it zero.
func (s *slab[T]) give(r ref) {
	var zero T
	*s.at(r) = zero
	s.free = append(s.free, r)
}
