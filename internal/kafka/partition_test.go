package kafka

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"
)

// TestMurmur2 holds the vectors of org.apache.kafka.common.utils.UtilsTest.
func TestMurmur2(t *testing.T) {
	for key, want := range map[string]int32{
		"21":                         -973932308,
		"foobar":                     -790332482,
		"a-little-bit-long-string":   -985981536,
		"a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
		"abc": 479470107,
	} {
		if got := int32(murmur2(key)); got != want {
			t.Errorf("murmur2(%q) = %d, want %d", key, got, want)
		}
	}
}

func TestPartitionEqualsTheClientsOwn(t *testing.T) {
	client := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "key")
		n := rapid.Int32Range(1, 10_000).Draw(t, "n")
		want := client.Partition(&kgo.Record{Key: key}, int(n))
		if got := Partition(key, n); int(got) != want {
			t.Fatalf("Partition(%x, %d) = %d, want %d", key, n, got, want)
		}
		if got := Partition(string(key), n); int(got) != want {
			t.Fatalf("Partition of the string %x, %d = %d, want %d", key, n, got, want)
		}
	})
}

func TestPartitionAllocatesNothing(t *testing.T) {
	uid, key := "user-4711", []byte("user-4711")
	if n := testing.AllocsPerRun(100, func() { Partition(uid, 12); Partition(key, 12) }); n != 0 {
		t.Errorf("Partition allocates %v times", n)
	}
}

func ExamplePartition() {
	fmt.Println(Partition("uid1", 12))
	// Output: 5
}
