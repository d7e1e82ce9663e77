package sink

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// planMark begins the metadata of every offset that a sink commits; what begins otherwise is not ours.
const planMark = "offhook/"

// planVersion is the version of the metadata that this release writes.
const planVersion = 1

// metadataMax is the broker's default bound on an offset's metadata (offset.metadata.max.bytes), in bytes.
const metadataMax = 4096

// metadataRoom is kept free of batches' ends, so that the first batch can be halved down to one event: each of at
// most 20 halvings (a batch has fewer than 2^20 events) puts one entry of at most 10 bytes more into the list.
const metadataRoom = 20 * 10

// A Plan is what one committed offset says with its metadata: which batches begin at the offset. It is committed
// before any of its batches is first sent, and so is each change of it, so that whoever owns the partition next
// sends the same batches again, with the same content under the same ids (guarantee 4).
//
// The metadata's text, ASCII, is
//
//	offhook/1 <topic id, 32 hex digits> <rewind> <end>,<end>,…
//
// where rewind is a Unix second or 0, and an end is the number of offsets from the end before (for the first, from
// the committed offset less one) in decimal, followed by x where the batch is dead. Without batches the list and
// the blank before it are left out.
type Plan struct {
	// TopicID is the topic's id: with another one the topic was made anew, and the offset means nothing.
	TopicID [16]byte
	// Rewind is the Unix second of the last rewind on purpose; 0: there was none. It is part of every id.
	Rewind int64
	// Offset is the committed offset, the first of the first batch: all before it is done, in the meaning of
	// guarantee 4, and nothing at or after it is done but what stands in Batches.
	Offset int64
	// Batches are the ends of the batches, ascending. The first offset of each is the one after the end before,
	// whether a record lies there or not.
	Batches []Planned
}

// Planned is one batch of a Plan.
type Planned struct {
	Last int64 // the offset of its last record
	Dead bool  // it goes to the dead letters and is never sent again
}

// End is the offset after the last batch: where the next one begins.
func (p Plan) End() int64 {
	if n := len(p.Batches); n > 0 {
		return p.Batches[n-1].Last + 1
	}
	return p.Offset
}

// Equal reports whether two plans say the same.
func (p Plan) Equal(q Plan) bool {
	if p.TopicID != q.TopicID || p.Rewind != q.Rewind || p.Offset != q.Offset || len(p.Batches) != len(q.Batches) {
		return false
	}
	for i, b := range p.Batches {
		if b != q.Batches[i] {
			return false
		}
	}
	return true
}

// Metadata is the plan's text for the offset commit.
func (p Plan) Metadata() string {
	b := make([]byte, 0, 64+8*len(p.Batches))
	b = fmt.Appendf(b, "%s%d %x %d", planMark, planVersion, p.TopicID, p.Rewind)
	sep := byte(' ')
	end := p.Offset - 1
	for _, batch := range p.Batches {
		b = append(b, sep)
		b = strconv.AppendInt(b, batch.Last-end, 10)
		if batch.Dead {
			b = append(b, 'x')
		}
		end = batch.Last
		sep = ','
	}
	return string(b)
}

// A PlanVersionError says that an offset's metadata was written by a newer release.
type PlanVersionError struct{ Version int }

func (e *PlanVersionError) Error() string {
	return fmt.Sprintf("the committed plan has version %d and this release knows versions up to %d; run a release that knows it", e.Version, planVersion)
}

// ParsePlan reads the plan of a committed offset. ours is false for metadata that no sink wrote, such as that of
// an offset set by Kafka's own tools. Metadata that is a sink's and cannot be read is an error: a plan is
// never guessed.
func ParsePlan(offset int64, metadata string) (p Plan, ours bool, err error) {
	rest, ours := strings.CutPrefix(metadata, planMark)
	if !ours {
		return Plan{}, false, nil
	}
	versionText, rest, _ := strings.Cut(rest, " ")
	version, err := strconv.Atoi(versionText)
	if err != nil || version < 1 {
		return Plan{}, true, fmt.Errorf("read plan: no version in %q", metadata)
	}
	if version > planVersion {
		return Plan{}, true, &PlanVersionError{version}
	}
	p.Offset = offset
	fields := strings.Split(rest, " ")
	if len(fields) != 2 && len(fields) != 3 {
		return Plan{}, true, fmt.Errorf("read plan: %d fields in %q", len(fields), metadata)
	}
	id, err := hex.DecodeString(fields[0])
	if err != nil || len(id) != len(p.TopicID) {
		return Plan{}, true, fmt.Errorf("read plan: no topic id in %q", metadata)
	}
	copy(p.TopicID[:], id)
	if p.Rewind, err = strconv.ParseInt(fields[1], 10, 64); err != nil || p.Rewind < 0 {
		return Plan{}, true, fmt.Errorf("read plan: no time of a rewind in %q", metadata)
	}
	if len(fields) == 2 {
		return p, true, nil
	}
	end := offset - 1
	for text := range strings.SplitSeq(fields[2], ",") {
		length, dead := strings.CutSuffix(text, "x")
		n, err := strconv.ParseInt(length, 10, 64)
		if err != nil || n < 1 || end+n < end {
			return Plan{}, true, fmt.Errorf("read plan: no batch's end in %q", metadata)
		}
		end += n
		p.Batches = append(p.Batches, Planned{Last: end, Dead: dead})
	}
	return p, true, nil
}

// CutTo is the plan that is left when the log's start has passed the committed offset, by retention: batches wholly
// before start are dropped, what is left of one that is cut is dead, the others stand. dropped counts the batches
// that are gone; a batch that is cut is not among them.
func (p Plan) CutTo(start int64) (cut Plan, dropped int) {
	if start <= p.Offset {
		return p, 0
	}
	cut = Plan{TopicID: p.TopicID, Rewind: p.Rewind, Offset: start}
	first := p.Offset
	for _, b := range p.Batches {
		switch {
		case b.Last < start:
			dropped++
		case first < start:
			cut.Batches = append(cut.Batches, Planned{Last: b.Last, Dead: true})
		default:
			cut.Batches = append(cut.Batches, b)
		}
		first = b.Last + 1
	}
	return cut, dropped
}

// BatchID is a request's webhook-id: `<topic id>-<partition>-<first>-<last>`, with `-r<n>` after a rewind.
func BatchID(topicID [16]byte, partition int32, first, last, rewind int64) string {
	id := fmt.Sprintf("%x-%d-%d-%d", topicID, partition, first, last)
	if rewind != 0 {
		id += "-r" + strconv.FormatInt(rewind, 10)
	}
	return id
}
