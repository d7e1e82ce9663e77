package sink

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/schemas"
)

// TestArenaTakesWhatItHolds: what is kept of a fetch takes as much memory as it says. Of events that come one by one each once took
// 64 KiB: 36 lanes that were full by their own count held 1.8 GiB.
func TestArenaTakesWhatItHolds(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	text := func(most int) []byte { return bytes.Repeat([]byte{byte(random.Uint32())}, random.IntN(most)) }
	for _, n := range []int{1, 2, 10, 5000} {
		for _, most := range []int{20, 2000, 3 * arenaChunk / 2} {
			var records []*kgo.Record
			size := 0
			for range n {
				r := &kgo.Record{Key: text(20), Value: text(most)}
				if random.IntN(3) == 0 {
					r.Headers = []kgo.RecordHeader{{Key: schemas.HeaderTraceparent, Value: text(60)}}
				}
				records = append(records, r)
				size += len(r.Key) + len(r.Value) + len(header(r, schemas.HeaderTraceparent))
			}
			a := newArena(records)
			room, chunk := 0, a.chunk
			for _, r := range records {
				for _, b := range [][]byte{r.Key, r.Value, header(r, schemas.HeaderTraceparent)} {
					c := a.clone(b)
					if !bytes.Equal(b, c) || (b == nil) != (c == nil) || len(c) > 0 && cap(c) != len(c) {
						t.Fatalf("%d bytes are copied as %d, with room for %d", len(b), len(c), cap(c))
					}
					if cap(a.chunk) > 0 && (len(chunk) == 0 || &a.chunk[:1][0] != &chunk[:1][0]) {
						chunk = a.chunk
						room += cap(chunk)
					}
				}
			}
			// What is left of a chunk when the next record does not fit is at most half of it, or less than one record.
			if room > 2*size+most {
				t.Errorf("%d records of up to %d bytes, %d in all, take %d", n, most, size, room)
			}
		}
	}
}
