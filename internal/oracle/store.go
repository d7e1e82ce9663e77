package oracle

// chunk is how many values of a list stand together. A list grows by chunks, so that it needs no second copy of itself.
const chunk = 1 << 14

// list is a long slice. Its zero value is empty.
type list[T any] struct {
	chunks [][]T
	n      int
}

func (l *list[T]) add(v T) {
	if l.n%chunk == 0 {
		l.chunks = append(l.chunks, make([]T, 0, chunk))
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, v)
	l.n++
}

func (l *list[T]) at(i uint32) *T { return &l.chunks[i/chunk][i%chunk] }

// grouped is the positions of a list's values, sorted by a key; those of one key keep their order.
type grouped struct {
	positions []uint32
	ends      []uint32 // by key
}

func (g *grouped) of(key uint32) []uint32 {
	from := uint32(0)
	if key > 0 {
		from = g.ends[key-1]
	}
	return g.positions[from:g.ends[key]]
}

// group sorts l by the key, one of keys.
func group[T any](l *list[T], keys int, key func(*T) uint32) grouped {
	g := grouped{positions: make([]uint32, l.n), ends: make([]uint32, keys)}
	for _, c := range l.chunks {
		for i := range c {
			g.ends[key(&c[i])]++
		}
	}
	// ends becomes where each key's begin, and moves to their end as they are put there.
	at := uint32(0)
	for k, n := range g.ends {
		g.ends[k] = at
		at += n
	}
	i := uint32(0)
	for _, c := range l.chunks {
		for j := range c {
			k := key(&c[j])
			g.positions[g.ends[k]] = i
			g.ends[k]++
			i++
		}
	}
	return g
}

// names gives each text a small number.
type names struct {
	numbers map[string]uint32
	texts   []string
}

func newNames() names { return names{numbers: make(map[string]uint32)} }

func (n *names) number(text string) uint32 {
	i, ok := n.numbers[text]
	if !ok {
		i = n.insert(text)
	}
	return i
}

// numberOf is number for bytes, which it copies when they are new.
func (n *names) numberOf(text []byte) uint32 {
	if i, ok := n.numbers[string(text)]; ok {
		return i
	}
	return n.insert(string(text))
}

func (n *names) insert(text string) uint32 {
	i := uint32(len(n.texts))
	n.numbers[text] = i
	n.texts = append(n.texts, text)
	return i
}

// murmur2 is the hash by which Kafka's Java client partitions keys.
func murmur2[T ~string | ~[]byte](key T) uint32 {
	const m = 0x5bd1e995
	n := len(key)
	h := 0x9747b28c ^ uint32(n)
	i := 0
	for ; i+4 <= n; i += 4 {
		k := uint32(key[i]) | uint32(key[i+1])<<8 | uint32(key[i+2])<<16 | uint32(key[i+3])<<24
		k *= m
		k ^= k >> 24
		k *= m
		h = h*m ^ k
	}
	if i < n {
		switch n - i {
		case 3:
			h ^= uint32(key[i+2]) << 16
			fallthrough
		case 2:
			h ^= uint32(key[i+1]) << 8
			fallthrough
		case 1:
			h ^= uint32(key[i])
		}
		h *= m
	}
	h ^= h >> 13
	h *= m
	return h ^ h>>15
}

// partition is where a key belongs.
func partition[T ~string | ~[]byte](key T, partitions int32) int32 {
	return int32(murmur2(key)&0x7fffffff) % partitions
}
