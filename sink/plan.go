package sink

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/offhook/offhook/schemas"
)

// planMark begins the metadata of every offset that a sink commits; what begins otherwise is not ours.
const planMark = "offhook/"

// The versions of the metadata. A plan is written in the oldest that can say it, so that a rollback reads what a lane
// without trouble has committed.
const (
	planVersion1 = 1 // a dead batch is one that retention cut
	planVersion2 = 2 // says why a batch is dead, and what troubles the first
	planVersion  = planVersion2
)

// metadataMax is the broker's default bound on an offset's metadata (offset.metadata.max.bytes), in bytes.
const metadataMax = 4096

// markMax is how many bytes a dead batch's mark has at most.
const markMax = 4

// metadataRoom is kept free of batches' ends, so that the first batch can be halved down to one event, marked dead, and
// its trouble told: each of at most 20 halvings (a batch has fewer than 2^20 events) puts one entry of at most 10 bytes
// and its mark more into the list, and a Trouble has at most 60.
const metadataRoom = 20*(10+markMax) + 60

// A Plan is what one committed offset says with its metadata: which batches begin at the offset. It is committed
// before any of its batches is first sent, and so is each change of it, so that whoever owns the partition next
// sends the same batches again, with the same content under the same ids (guarantee 4).
//
// The metadata's text, ASCII, is
//
//	offhook/1 <topic id, 32 hex digits> <rewind> <end>,<end>,…
//	offhook/2 <topic id, 32 hex digits> <rewind> <end>,<end>,… <since>/<last>/<attempts>/<answer>
//
// where rewind is a Unix second or 0, and an end is the number of offsets from the end before (for the first, from
// the committed offset less one) in decimal, followed by a mark where the batch is dead: x for one that retention cut,
// and in version 2 also r (refused), g (given up) and s (skipped), these with the last HTTP status where there was one.
// The last field of version 2 is what troubles the first batch; without trouble it and the blank before it are left out, and
// so are the list and its blank where there are no batches.
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
	// Trouble is what keeps the first batch from being done; the zero Trouble: nothing. It decides nothing but is told to
	// operators, who find here why a lane is stuck, also where nobody runs.
	Trouble Trouble
}

// Planned is one batch of a Plan.
type Planned struct {
	Last int64 // the offset of its last record
	Dead Dead
}

// Dead says of a batch that it goes to the dead letters and is never sent again, and why. The zero Dead: it is to be sent.
type Dead struct {
	Reason schemas.Reason // cut, refused, gave_up or skipped
	Status int            // the last HTTP status; 0: there was no answer
}

// Is reports whether the batch is dead.
func (d Dead) Is() bool { return d.Reason != "" }

// deadMarks are the reasons for which a batch can be dead, each with its mark.
var deadMarks = map[schemas.Reason]byte{
	schemas.ReasonCut: 'x', schemas.ReasonRefused: 'r', schemas.ReasonGaveUp: 'g', schemas.ReasonSkipped: 's',
}

// Trouble says what became of the attempts to send a batch so far.
type Trouble struct {
	Since    int64  // when the first attempt failed, or the first since the endpoint was wrong itself; Unix seconds
	Last     int64  // when the last one failed, Unix seconds
	Attempts int    // that failed, over all owners of the partition
	Answer   string // the last one: an HTTP status, timeout or connection
}

// verdict is that on the last answer.
func (t Trouble) verdict() Verdict { return judgeCode(t.Answer) }

// End is the offset after the last batch: where the next one begins.
func (p Plan) End() int64 {
	if n := len(p.Batches); n > 0 {
		return p.Batches[n-1].Last + 1
	}
	return p.Offset
}

// Equal reports whether two plans say the same.
func (p Plan) Equal(q Plan) bool {
	return p.TopicID == q.TopicID && p.Rewind == q.Rewind && p.Offset == q.Offset && p.Trouble == q.Trouble && slices.Equal(p.Batches, q.Batches)
}

// version is the oldest version of the text that can say p.
func (p Plan) version() int {
	if len(p.Batches) > 0 && p.Trouble != (Trouble{}) {
		return planVersion2
	}
	for _, b := range p.Batches {
		if b.Dead.Is() && b.Dead != (Dead{Reason: schemas.ReasonCut}) {
			return planVersion2
		}
	}
	return planVersion1
}

// Metadata is the plan's text for the offset commit.
func (p Plan) Metadata() string {
	b := make([]byte, 0, 64+8*len(p.Batches))
	b = fmt.Appendf(b, "%s%d %x %d", planMark, p.version(), p.TopicID, p.Rewind)
	sep := byte(' ')
	end := p.Offset - 1
	for _, batch := range p.Batches {
		b = append(b, sep)
		b = strconv.AppendInt(b, batch.Last-end, 10)
		if batch.Dead.Is() {
			b = append(b, deadMarks[batch.Dead.Reason])
			if s := batch.Dead.Status; s >= 100 && s <= 999 { // what the mark can say
				b = strconv.AppendInt(b, int64(batch.Dead.Status), 10)
			}
		}
		end = batch.Last
		sep = ','
	}
	if t := p.Trouble; t != (Trouble{}) && len(p.Batches) > 0 {
		b = fmt.Appendf(b, " %d/%d/%d/%s", t.Since, t.Last, t.Attempts, t.Answer)
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
	if most := 2 + version; len(fields) < 2 || len(fields) > most {
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
	if len(fields) > 2 {
		end := offset - 1
		for text := range strings.SplitSeq(fields[2], ",") {
			b, ok := parsePlanned(text, end, version)
			if !ok {
				return Plan{}, true, fmt.Errorf("read plan: no batch's end in %q", metadata)
			}
			p.Batches = append(p.Batches, b)
			end = b.Last
		}
	}
	if len(fields) > 3 {
		// It decides nothing that must not be guessed: one that cannot be read is none.
		p.Trouble, _ = parseTrouble(fields[3])
	}
	return p, true, nil
}

// parsePlanned reads an end and its mark; end is the one before.
func parsePlanned(text string, end int64, version int) (b Planned, ok bool) {
	if i := strings.IndexFunc(text, func(r rune) bool { return r >= 'a' && r <= 'z' }); i >= 0 {
		for reason, mark := range deadMarks {
			if text[i] == mark && (mark == 'x' || version >= planVersion2) {
				b.Dead.Reason = reason
			}
		}
		if status := text[i+1:]; status != "" {
			n, err := strconv.ParseUint(status, 10, 16)
			if err != nil || n < 100 || n > 999 || version < planVersion2 {
				return Planned{}, false
			}
			b.Dead.Status = int(n)
		}
		if !b.Dead.Is() {
			return Planned{}, false
		}
		text = text[:i]
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || end+n < end {
		return Planned{}, false
	}
	b.Last = end + n
	return b, true
}

func parseTrouble(text string) (t Trouble, ok bool) {
	parts := strings.Split(text, "/")
	if len(parts) != 4 {
		return Trouble{}, false
	}
	since, err1 := strconv.ParseInt(parts[0], 10, 64)
	last, err2 := strconv.ParseInt(parts[1], 10, 64)
	attempts, err3 := strconv.ParseInt(parts[2], 10, 32)
	t = Trouble{Since: since, Last: last, Attempts: int(attempts), Answer: parts[3]}
	if err1 != nil || err2 != nil || err3 != nil || since < 0 || last < 0 || attempts <= 0 || t.Answer == "" {
		return Trouble{}, false
	}
	return t, true
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
		case first < start && !b.Dead.Is():
			cut.Batches = append(cut.Batches, Planned{Last: b.Last, Dead: Dead{Reason: schemas.ReasonCut}})
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
