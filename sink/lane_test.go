package sink

import (
	"fmt"
	"testing"
	"time"

	"github.com/offhook/offhook/schemas"
	"pgregory.net/rapid"
)

var epoch = time.Unix(1_767_225_600, 0)

func event(offset int64, size int, read time.Time) Record {
	value := fmt.Appendf(nil, "%q", fmt.Sprintf("event-%d", offset))
	for len(value) < size {
		value = append(value, ' ')
	}
	return Record{Offset: offset, Value: value, Read: read}
}

// settle plays a coordinator that accepts everything, until the lane has nothing to commit at once; held, where not
// nil, becomes what it holds.
func settle(l *Lane, held *Plan, now time.Time) {
	for due := l.CommitDue(now); !due.IsZero() && !due.After(now); due = l.CommitDue(now) {
		p := l.Propose()
		if held != nil {
			*held = p
		}
		l.Committed()
	}
}

func testLane(cfg LaneConfig) *Lane {
	return NewLane(cfg, Plan{TopicID: testTopic, Offset: 10}, false, false, epoch)
}

func TestLaneBatchEnds(t *testing.T) {
	cfg := LaneConfig{BatchMax: 3, BatchBytes: 100, FlushInterval: time.Second, PlanAhead: 8}
	for _, tt := range []struct {
		name    string
		sizes   []int
		after   time.Duration
		batches []string // first-last reason
		again   time.Duration
	}{
		{name: "nothing", after: time.Hour},
		{name: "young", sizes: []int{20, 20}, again: time.Second},
		{name: "age", sizes: []int{20, 20}, after: time.Second, batches: []string{"10-11 age"}},
		{name: "count", sizes: []int{20, 20, 20, 20}, batches: []string{"10-12 count"}},
		{name: "count twice", sizes: []int{20, 20, 20, 20, 20, 20}, batches: []string{"10-12 count", "13-15 count"}},
		{name: "bytes before the next", sizes: []int{60, 60}, batches: []string{"10-10 bytes"}},
		{name: "one too large goes alone", sizes: []int{500, 20}, batches: []string{"10-10 bytes"}},
		{name: "a partial one waits behind one that is not sent", sizes: []int{60, 60}, after: time.Second, batches: []string{"10-10 bytes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := testLane(cfg)
			for i, size := range tt.sizes {
				l.Read(event(10+int64(i), size, epoch))
			}
			again := l.Cut(epoch.Add(tt.after))
			var got []string
			for _, b := range l.batches {
				got = append(got, fmt.Sprintf("%d-%d %s", b.First, b.Last, b.Ended))
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.batches) {
				t.Errorf("batches %v, want %v", got, tt.batches)
			}
			if want := tt.again; want == 0 != again.IsZero() || want != 0 && !again.Equal(epoch.Add(want)) {
				t.Errorf("asks to come again at %v, want after %v", again, want)
			}
		})
	}
}

// TestLanePlansBeforeSending is guarantee 4's first half: nothing is sent that no committed plan holds.
func TestLanePlansBeforeSending(t *testing.T) {
	l := testLane(LaneConfig{BatchMax: 1, BatchBytes: 100, PlanAhead: 8})
	l.Read(event(10, 5, epoch))
	l.Cut(epoch)
	if b := l.Next(); b != nil {
		t.Fatal("a batch is sent before its plan is proposed")
	}
	if due := l.CommitDue(epoch); due.After(epoch) || due.IsZero() {
		t.Fatalf("the plan is due at %v, want at once", due)
	}
	p := l.Propose()
	if want := (Plan{TopicID: testTopic, Offset: 10, Batches: []Planned{{Last: 10}}}); !p.Equal(want) {
		t.Fatalf("proposed %+v, want %+v", p, want)
	}
	if b := l.Next(); b != nil {
		t.Fatal("a batch is sent before its plan is committed")
	}
	l.Read(event(11, 5, epoch)) // comes while the commit is in flight
	l.Cut(epoch)
	l.Committed()
	b := l.Next()
	if b == nil || b.First != 10 || b.Last != 10 {
		t.Fatalf("the planned batch is not sent: %+v", b)
	}
	l.Done(b, epoch)
	if b := l.Next(); b != nil {
		t.Fatal("what came after the proposal counts as planned")
	}
	l.Refused(epoch) // harmless: nothing is proposed
	p = l.Propose()
	if want := (Plan{TopicID: testTopic, Offset: 11, Batches: []Planned{{Last: 11}}}); !p.Equal(want) {
		t.Fatalf("proposed %+v, want %+v", p, want)
	}
	l.Refused(epoch)
	if b := l.Next(); b != nil {
		t.Fatal("a batch of a plan that was refused is sent")
	}
}

// TestLaneAcknowledges: with nothing after it an acknowledgement is committed within the flush interval, past the
// markers of transactions, so that lag reaches zero.
func TestLaneAcknowledges(t *testing.T) {
	l := testLane(LaneConfig{BatchMax: 1, BatchBytes: 100, FlushInterval: time.Second, PlanAhead: 8})
	l.Read(event(10, 5, epoch))
	l.Skip(11, epoch)
	l.Cut(epoch)
	settle(l, nil, epoch)
	b := l.Next()
	l.Done(b, epoch)
	if due := l.CommitDue(epoch); !due.Equal(epoch.Add(time.Second)) {
		t.Errorf("the acknowledgement is due at %v, want a second later", due)
	}
	if p := l.Propose(); p.Offset != 12 || len(p.Batches) != 0 {
		t.Errorf("proposed %+v, want the empty plan of offset 12", p)
	}
	l.Committed()
	if due := l.CommitDue(epoch); !due.IsZero() {
		t.Errorf("an idle lane wants to commit at %v", due)
	}
	// The next batch begins at the end before, whether a record lies there or not.
	l.Read(event(14, 5, epoch))
	l.Cut(epoch)
	settle(l, nil, epoch)
	if b := l.Next(); b == nil || b.First != 12 || b.Last != 14 {
		t.Errorf("the next batch is %+v, want [12, 14]", b)
	}
}

// TestLaneResumes: a new owner sends the planned batches again as they were, whatever its own settings are.
func TestLaneResumes(t *testing.T) {
	plan := Plan{TopicID: testTopic, Rewind: 7, Offset: 10, Batches: []Planned{{Last: 12}, {Last: 19}}}
	l := NewLane(LaneConfig{BatchMax: 1, BatchBytes: 1, PlanAhead: 1}, plan, false, false, epoch)
	for _, offset := range []int64{10, 12, 15, 19, 20} {
		if l.Full() && offset < 19 {
			t.Fatal("the lane pauses before its planned batches are read")
		}
		l.Read(event(offset, 5, epoch))
		l.Cut(epoch)
	}
	b := l.Next()
	if b == nil || l.ID(3, b) != "deadbeef000000000000000000000001-3-10-12-r7" || len(b.Records) != 2 {
		t.Fatalf("the first batch is %+v", b)
	}
	l.Done(b, epoch)
	if b = l.Next(); b == nil || b.First != 13 || b.Last != 19 || len(b.Records) != 2 {
		t.Fatalf("the second batch is %+v", b)
	}
}

// TestLaneFresh: a start that is not committed is not read from.
func TestLaneFresh(t *testing.T) {
	l := NewLane(LaneConfig{BatchMax: 1, BatchBytes: 1, PlanAhead: 1}, Plan{TopicID: testTopic, Offset: 5}, true, false, epoch)
	if l.Readable() {
		t.Fatal("readable before the start is committed")
	}
	if p := l.Propose(); !p.Equal(Plan{TopicID: testTopic, Offset: 5}) {
		t.Fatalf("proposed %+v", p)
	}
	l.Committed()
	if !l.Readable() {
		t.Fatal("not readable after the start is committed")
	}
}

// TestLaneMetadataBound: a plan's text never passes the bound, and a broker's smaller bound is met too.
func TestLaneMetadataBound(t *testing.T) {
	l := testLane(LaneConfig{BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 1 << 20})
	for i := range int64(10_000) {
		l.Read(event(10+i*1_000_000, 5, epoch))
	}
	l.Cut(epoch)
	if n := len(l.Propose().Metadata()); n > metadataMax-metadataRoom || n < metadataMax-2*metadataRoom {
		t.Errorf("the plan has %d bytes", n)
	}
	before := len(l.batches)
	l.Refused(epoch)
	if !l.Shorten() || len(l.batches) != before/2 {
		t.Errorf("%d batches became %d, want half", before, len(l.batches))
	}
	for l.Shorten() {
	}
	if len(l.batches) != 1 || len(l.queue) != 9_999 || l.queue[0].Offset != 1_000_010 {
		t.Errorf("%d batches and %d records are left, from %d on", len(l.batches), len(l.queue), l.queue[0].Offset)
	}
}

// TestLaneLostRecords: a planned batch whose last record the log has lost does not hold up the lane.
func TestLaneLostRecords(t *testing.T) {
	plan := Plan{TopicID: testTopic, Offset: 10, Batches: []Planned{{Last: 12}, {Last: 19}}}
	l := NewLane(LaneConfig{BatchMax: 1, BatchBytes: 1, PlanAhead: 4}, plan, false, false, epoch)
	if missing := l.Read(event(11, 5, epoch)); missing != 0 {
		t.Errorf("%d missing", missing)
	}
	if missing := l.Read(event(25, 5, epoch)); missing != 2 {
		t.Errorf("%d missing, want 2", missing)
	}
	if b := l.Next(); b != nil {
		t.Fatalf("[%d, %d] is sent without its last record: another body under its id", b.First, b.Last)
	}
	l.Cut(epoch)
	if p := l.Propose(); !p.Equal(Plan{TopicID: testTopic, Offset: 10, Batches: []Planned{{12, Dead{Reason: schemas.ReasonCut}}, {Last: 19}, {Last: 25}}}) {
		t.Fatalf("proposed %+v", p)
	}
	l.Committed()
	b := l.Next()
	if b == nil || !b.Dead.Is() || len(b.Records) != 1 {
		t.Fatalf("the first batch is %+v, want what is left of it, dead", b)
	}
	l.Done(b, epoch)
	if b := l.Next(); b == nil || b.First != 20 || b.Last != 25 {
		t.Errorf("the next batch is %+v, want [20, 25]", b)
	}
}

// TestLaneProperties drives lanes over a log through commits that are accepted, refused or end with a crash after
// they were applied, and requests that are taken by the endpoint whether or not the owner learns of it. It checks that
// nothing is sent unplanned, that an id always has the same content, that nothing is lost, that what the endpoint sees
// for the first time is in order, and that the committed offset never passes what is not done.
func TestLaneProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var log []int64 // offsets with events; the others hold markers
		end := int64(10)
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			end += rapid.Int64Range(0, 2).Draw(t, "gap")
			log = append(log, end)
			end++
		}
		end += rapid.Int64Range(0, 2).Draw(t, "tail")
		cfg := LaneConfig{
			BatchMax: rapid.IntRange(1, 7).Draw(t, "max"), BatchBytes: rapid.IntRange(1, 200).Draw(t, "bytes"),
			FlushInterval: time.Second, PlanAhead: rapid.IntRange(1, 5).Draw(t, "ahead"),
		}
		now := epoch
		held := Plan{TopicID: testTopic, Offset: 10} // what the coordinator holds
		l := NewLane(cfg, held, false, false, now)
		var underway *Batch
		bodies := make(map[string]string)
		taken := make(map[int64]bool)
		var order []int64
		send := func(b *Batch) {
			body, planned := "", false
			first := held.Offset
			for _, p := range held.Batches {
				planned = planned || first == b.First && p.Last == b.Last && !p.Dead.Is()
				first = p.Last + 1
			}
			if !planned {
				t.Fatalf("[%d, %d] is sent and the coordinator holds %+v", b.First, b.Last, held)
			}
			for _, r := range b.Records {
				body += string(r.Value)
				if !taken[r.Offset] {
					taken[r.Offset] = true
					order = append(order, r.Offset)
				}
			}
			id := l.ID(0, b)
			if before, ok := bodies[id]; ok && before != body {
				t.Fatalf("%s has another body", id)
			}
			bodies[id] = body
		}
		step := func(choice int) {
			now = now.Add(300 * time.Millisecond)
			switch choice {
			case 0, 1: // read
				if l.Full() || l.Position() >= end {
					break
				}
				at, i := l.Position(), 0
				for i < len(log) && log[i] < at {
					i++
				}
				if i < len(log) && log[i] == at {
					l.Read(event(at, 5, now))
				} else {
					l.Skip(at, now)
				}
			case 2, 3: // commit
				if due := l.CommitDue(now); due.IsZero() || due.After(now) {
					break
				}
				p := l.Propose()
				for _, offset := range log {
					if offset < p.Offset && !taken[offset] {
						t.Fatalf("offset %d is committed and event %d is not done", p.Offset, offset)
					}
				}
				switch rapid.IntRange(0, 9).Draw(t, "outcome") {
				case 0:
					l.Refused(now)
				case 1: // crash after it was applied
					held = p
					l, underway = NewLane(cfg, held, false, false, now), nil
				case 2: // crash before
					l, underway = NewLane(cfg, held, false, false, now), nil
				default:
					held = p
					l.Committed()
				}
			case 4: // begin to send
				if b := l.Next(); b != nil {
					underway = b
					send(b)
				}
			case 5: // the answer
				if underway != nil {
					l.Done(underway, now)
					underway = nil
				}
			case 6: // crash, perhaps with a request under way
				if rapid.IntRange(0, 4).Draw(t, "crash") == 0 {
					l, underway = NewLane(cfg, held, false, false, now), nil
				}
			}
			l.Cut(now)
		}
		for range rapid.IntRange(0, 400).Draw(t, "steps") {
			step(rapid.IntRange(0, 6).Draw(t, "step"))
		}
		for range 3000 { // and then everything goes well
			now = now.Add(time.Second)
			for _, choice := range []int{0, 4, 5} {
				step(choice)
			}
			settle(l, &held, now)
		}
		if len(order) != len(log) {
			t.Fatalf("%d of %d events arrived", len(order), len(log))
		}
		for i := range order {
			if order[i] != log[i] {
				t.Fatalf("event %d arrived in the place of %d", order[i], log[i])
			}
		}
		if held.Offset != end || len(held.Batches) != 0 {
			t.Fatalf("at the end %+v is committed, want the empty plan of %d", held, end)
		}
	})
}
