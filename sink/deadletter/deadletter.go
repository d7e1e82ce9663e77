package deadletter

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/schemas"
)

// Route is the sink of the letters that the processor wrote: input records that could not be used.
const Route = "route"

// A Position is where a letter stands in the dead-letter topic. Its text is PARTITION-OFFSET.
type Position struct {
	Partition int32
	Offset    int64
}

func (p Position) String() string {
	return strconv.FormatInt(int64(p.Partition), 10) + "-" + strconv.FormatInt(p.Offset, 10)
}

// ParsePosition reads what [Position.String] writes.
func ParsePosition(text string) (Position, error) {
	left, right, _ := strings.Cut(text, "-")
	partition, err1 := strconv.ParseUint(left, 10, 31)
	offset, err2 := strconv.ParseUint(right, 10, 63)
	if err1 != nil || err2 != nil {
		return Position{}, errors.New("a position is PARTITION-OFFSET, such as 3-1042")
	}
	return Position{Partition: int32(partition), Offset: int64(offset)}, nil
}

// A Letter is one record of the dead-letter topic. Its text is its position alone.
type Letter struct {
	Position
	Time   time.Time   // the record's own timestamp: when it was buried
	Record *kgo.Record // as it was fetched
	Copy   bool        // an earlier record of the partition that the filter allows has the same key
	Err    error       // why the record cannot be read; what follows is zero then

	schemas.DeadLetter // aliases Record
}

// A Filter says which letters are meant: those that all its fields allow. The zero Filter means all.
type Filter struct {
	Sink   string         // a sink's name, or [Route]; empty: any
	Topic  string         // the source topic; empty: any
	Reason schemas.Reason // empty: any

	// Since and Until bound [Letter.Time]: Since ≤ time < Until. Zero: no bound.
	Since, Until time.Time

	Partitions []int32         // of the dead-letter topic; empty: all
	Positions  []Position      // empty: all
	After      map[int32]int64 // offset by partition: only later letters of it; nil: all
}

// A Tally counts what a selection left out.
type Tally struct {
	Copies     int // of letters that the filter allows
	Unreadable int // of the partitions and times that the filter allows: the rest of them cannot be read
}

// Select reports whether l is one of the letters that are meant, and counts it in t where it is none because it is a copy,
// or cannot be read.
func (f *Filter) Select(l *Letter, t *Tally) bool {
	switch {
	case f.excludes(l) != "":
		return false
	case l.Err != nil:
		t.Unreadable++
		return false
	case l.Copy:
		t.Copies++
		return false
	}
	return true
}

// excludes says why the filter does not allow l, as what l is; empty: it does. Of a letter that cannot be read only the
// place and the time count.
func (f *Filter) excludes(l *Letter) string {
	after, bounded := f.After[l.Partition]
	switch {
	case len(f.Partitions) > 0 && !slices.Contains(f.Partitions, l.Partition):
		return "in another partition"
	case len(f.Positions) > 0 && !slices.Contains(f.Positions, l.Position):
		return "another letter"
	case bounded && l.Offset <= after:
		return "not after offset " + strconv.FormatInt(after, 10)
	case !f.Since.IsZero() && l.Time.Before(f.Since), !f.Until.IsZero() && !l.Time.Before(f.Until):
		return "of " + l.Time.UTC().Format(time.RFC3339)
	case l.Err != nil:
		return ""
	case f.Sink != "" && l.Sink != f.Sink:
		return fmt.Sprintf("of the sink %q, not of %q", l.Sink, f.Sink)
	case f.Topic != "" && l.Source.Topic != f.Topic:
		return fmt.Sprintf("from the topic %q", l.Source.Topic)
	case f.Reason != "" && l.Reason != f.Reason:
		return fmt.Sprintf("dead for the reason %q", l.Reason)
	}
	return ""
}
