package sink

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/offhook/offhook/schemas"
	"pgregory.net/rapid"
)

var epoch = time.Unix(1_767_225_600, 0)

func testRecord(offset int64, size int, read time.Time) Record {
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

// oneUID has all records share a uid.
func oneUID(hashes []uint64, _ *Record) []uint64 { return append(hashes, 1) }

// byKey has records of one key share a uid.
func byKey(hashes []uint64, r *Record) []uint64 {
	for _, c := range r.Key {
		hashes = append(hashes, uint64(c))
	}
	return hashes
}

// answered is the answer with an HTTP status.
func answered(status int) Answer { return Answer{Verdict: JudgeStatus(status), Status: status} }

// next begins the batch that is next, if any.
func next(l *Lane) *Batch {
	b, _ := l.Next(epoch.Add(24 * time.Hour))
	if b != nil {
		l.Begin(b)
	}
	return b
}

func testLane(cfg LaneConfig) *Lane {
	return NewLane(cfg, Plan{TopicID: testTopic, Offset: 10}, false, false, epoch)
}

func TestLaneBatchEnds(t *testing.T) {
	cfg := LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 3, BatchBytes: 100, FlushInterval: time.Second, PlanAhead: 8}
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
				l.Read(testRecord(10+int64(i), size, epoch))
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
	l := testLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 100, PlanAhead: 8})
	l.Read(testRecord(10, 5, epoch))
	l.Cut(epoch)
	if b := next(l); b != nil {
		t.Fatal("a batch is sent before its plan is proposed")
	}
	if due := l.CommitDue(epoch); due.After(epoch) || due.IsZero() {
		t.Fatalf("the plan is due at %v, want at once", due)
	}
	p := l.Propose()
	if want := (Plan{TopicID: testTopic, Offset: 10, Batches: []Planned{{Last: 10}}}); !p.Equal(want) {
		t.Fatalf("proposed %+v, want %+v", p, want)
	}
	if b := next(l); b != nil {
		t.Fatal("a batch is sent before its plan is committed")
	}
	l.Read(testRecord(11, 5, epoch)) // comes while the commit is in flight
	l.Cut(epoch)
	l.Committed()
	b := next(l)
	if b == nil || b.First != 10 || b.Last != 10 {
		t.Fatalf("the planned batch is not sent: %+v", b)
	}
	l.Done(b, epoch)
	if b := next(l); b != nil {
		t.Fatal("what came after the proposal counts as planned")
	}
	l.Refused(epoch) // harmless: nothing is proposed
	p = l.Propose()
	if want := (Plan{TopicID: testTopic, Offset: 11, Batches: []Planned{{Last: 11}}}); !p.Equal(want) {
		t.Fatalf("proposed %+v, want %+v", p, want)
	}
	l.Refused(epoch)
	if b := next(l); b != nil {
		t.Fatal("a batch of a plan that was refused is sent")
	}
}

// TestLaneAcknowledges: with nothing after it an acknowledgement is committed within the flush interval, past the
// markers of transactions, so that lag reaches zero.
func TestLaneAcknowledges(t *testing.T) {
	l := testLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 100, FlushInterval: time.Second, PlanAhead: 8})
	l.Read(testRecord(10, 5, epoch))
	l.Skip(11, epoch)
	l.Cut(epoch)
	settle(l, nil, epoch)
	b := next(l)
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
	l.Read(testRecord(14, 5, epoch))
	l.Cut(epoch)
	settle(l, nil, epoch)
	if b := next(l); b == nil || b.First != 12 || b.Last != 14 {
		t.Errorf("the next batch is %+v, want [12, 14]", b)
	}
}

// TestLaneResumes: a new owner sends the planned batches again as they were, whatever its own settings are.
func TestLaneResumes(t *testing.T) {
	plan := Plan{TopicID: testTopic, Rewind: 7, Offset: 10, Batches: []Planned{{Last: 12}, {Last: 19}}}
	l := NewLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 1, PlanAhead: 1}, plan, false, false, epoch)
	for _, offset := range []int64{10, 12, 15, 19, 20} {
		if l.Full() && offset < 19 {
			t.Fatal("the lane pauses before its planned batches are read")
		}
		l.Read(testRecord(offset, 5, epoch))
		l.Cut(epoch)
	}
	b := next(l)
	if b == nil || l.ID(3, b) != "deadbeef000000000000000000000001-3-10-12-r7" || len(b.Records) != 2 {
		t.Fatalf("the first batch is %+v", b)
	}
	l.Done(b, epoch)
	if b = next(l); b == nil || b.First != 13 || b.Last != 19 || len(b.Records) != 2 {
		t.Fatalf("the second batch is %+v", b)
	}
}

// TestLaneFresh: a start that is not committed is not read from.
func TestLaneFresh(t *testing.T) {
	l := NewLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 1, PlanAhead: 1}, Plan{TopicID: testTopic, Offset: 5}, true, false, epoch)
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
	l := testLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 1 << 20})
	for i := range int64(10_000) {
		l.Read(testRecord(10+i*1_000_000, 5, epoch))
	}
	l.Cut(epoch)
	if n := len(l.Propose().Metadata()); n > metadataMax-metadataRoom || n < metadataMax/2 {
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
	l := NewLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 1, PlanAhead: 4}, plan, false, false, epoch)
	if missing := l.Read(testRecord(11, 5, epoch)); missing != 0 {
		t.Errorf("%d missing", missing)
	}
	if missing := l.Read(testRecord(25, 5, epoch)); missing != 2 {
		t.Errorf("%d missing, want 2", missing)
	}
	if b := next(l); b != nil {
		t.Fatalf("[%d, %d] is sent without its last record: another body under its id", b.First, b.Last)
	}
	l.Cut(epoch)
	if p := l.Propose(); !p.Equal(Plan{TopicID: testTopic, Offset: 10, Batches: []Planned{{12, Dead{Reason: schemas.ReasonCut}}, {Last: 19}, {Last: 25}}}) {
		t.Fatalf("proposed %+v", p)
	}
	l.Committed()
	b := next(l)
	if b == nil || !b.Dead.Is() || len(b.Records) != 1 {
		t.Fatalf("the first batch is %+v, want what is left of it, dead", b)
	}
	l.Done(b, epoch)
	if b := next(l); b == nil || b.First != 20 || b.Last != 25 {
		t.Errorf("the next batch is %+v, want [20, 25]", b)
	}
}

// TestLaneProperties drives lanes over a log through commits that are accepted, refused or end with a crash after
// they were applied, and requests that are taken by the endpoint whether or not the owner learns of it, fail, are refused for
// an event in them, or are given up. It checks that nothing is sent unplanned, that an id always has the same content, that
// nothing is lost, that each uid's events arrive in order for the first time, that no two requests with a uid in common are under way at
// once, nor more units than may be, and that the committed offset never passes what is not done.
func TestLaneProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type event struct {
			offset int64
			uids   string
			poison bool
		}
		var log []event // offsets with events; the others hold markers
		end := int64(10)
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			end += rapid.Int64Range(0, 2).Draw(t, "gap")
			log = append(log, event{end, rapid.StringOfN(rapid.RuneFrom([]rune("abcdef")), 1, 2, -1).Draw(t, "uids"), rapid.IntRange(0, 19).Draw(t, "poison") == 0})
			end++
		}
		at := make(map[int64]event)
		for _, e := range log {
			at[e.offset] = e
		}
		end += rapid.Int64Range(0, 2).Draw(t, "tail")
		cfg := LaneConfig{
			BatchMax: rapid.IntRange(1, 7).Draw(t, "max"), BatchBytes: rapid.IntRange(1, 200).Draw(t, "bytes"), FlushInterval: time.Second,
			InFlight: rapid.IntRange(1, 4).Draw(t, "inFlight"), UIDs: byKey,
		}
		cfg.PlanAhead = rapid.IntRange(1, 6).Draw(t, "ahead")
		now := epoch
		held := Plan{TopicID: testTopic, Offset: 10} // what the coordinator holds
		l := NewLane(cfg, held, false, false, now)
		var underway []*Batch
		bodies := make(map[string]string)
		taken, dead := make(map[int64]string), make(map[int64]bool) // taken: under which id
		order := make(map[rune][]int64)                             // of each uid, as its events arrived first
		crash := func() { l, underway = NewLane(cfg, held, false, false, now), nil }
		planned := func(b *Batch) bool {
			first := held.Offset
			for _, p := range held.Batches {
				if first == b.First && p.Last == b.Last && p.Dead == b.Dead {
					return true
				}
				first = p.Last + 1
			}
			return false
		}
		poisoned := func(b *Batch) bool {
			for _, r := range b.Records {
				if at[r.Offset].poison {
					return true
				}
			}
			return false
		}
		take := func(b *Batch) {
			if poisoned(b) {
				return
			}
			for _, r := range b.Records {
				if dead[r.Offset] {
					t.Fatalf("event %d is taken, and in the dead letters", r.Offset)
				}
				switch id := l.ID(0, b); taken[r.Offset] {
				case id:
				case "":
					taken[r.Offset] = id
					for _, uid := range at[r.Offset].uids {
						order[uid] = append(order[uid], r.Offset)
					}
				default:
					t.Fatalf("event %d is taken under %s and under %s", r.Offset, taken[r.Offset], id)
				}
			}
		}
		begin := func(b *Batch) {
			if !planned(b) {
				t.Fatalf("[%d, %d] %v is begun and the coordinator holds %+v", b.First, b.Last, b.Dead, held)
			}
			var uids strings.Builder
			units := map[*unit]bool{b.unit: true}
			for _, other := range underway {
				units[other.unit] = true
				for _, r := range other.Records {
					uids.WriteString(at[r.Offset].uids)
				}
			}
			for _, batch := range l.batches {
				if batch.state == batchDone {
					units[batch.unit] = true
				}
			}
			if len(units) > max(cfg.InFlight, 1) {
				t.Fatalf("%d units are under way, or done behind one that is not, with a limit of %d", len(units), cfg.InFlight)
			}
			var body strings.Builder
			for _, r := range b.Records {
				body.WriteString(string(r.Value))
				if strings.ContainsAny(at[r.Offset].uids, uids.String()) {
					t.Fatalf("event %d is begun while another with a uid of it is under way", r.Offset)
				}
			}
			l.Begin(b)
			underway = append(underway, b)
			if b.Dead.Is() {
				return
			}
			id := l.ID(0, b)
			if before, ok := bodies[id]; ok && before != body.String() {
				t.Fatalf("%s has another body", id)
			}
			bodies[id] = body.String()
			if rapid.Bool().Draw(t, "taken at once") { // though the answer may never come
				take(b)
			}
		}
		finish := func(choice int) {
			i := rapid.IntRange(0, len(underway)-1).Draw(t, "which")
			b := underway[i]
			underway = slices.Delete(underway, i, i+1)
			switch {
			case b.Dead.Is():
				for _, r := range b.Records {
					dead[r.Offset] = true
				}
				l.Done(b, now)
			case choice == 0:
				l.Retry(b, answered(503), time.Second, now)
			case choice == 1 && rapid.IntRange(0, 9).Draw(t, "give up") == 0 && !slices.ContainsFunc(b.Records, func(r Record) bool { return taken[r.Offset] != "" }):
				l.GiveUp(b, 503, now)
			case poisoned(b):
				l.Refuse(b, 400, now)
			default:
				take(b)
				l.Done(b, now)
			}
		}
		step := func(choice int) {
			now = now.Add(300 * time.Millisecond)
			switch choice {
			case 0, 1: // read
				if l.Full() || l.Position() >= end {
					break
				}
				if e, ok := at[l.Position()]; ok {
					r := testRecord(e.offset, 5, now)
					r.Key = []byte(e.uids)
					l.Read(r)
				} else {
					l.Skip(l.Position(), now)
				}
			case 2, 3: // commit
				if due := l.CommitDue(now); due.IsZero() || due.After(now) {
					break
				}
				p := l.Propose()
				for _, e := range log {
					if e.offset < p.Offset && taken[e.offset] == "" && !dead[e.offset] {
						t.Fatalf("offset %d is committed and event %d is not done", p.Offset, e.offset)
					}
				}
				if again, ours, err := ParsePlan(p.Offset, p.Metadata()); err != nil || !ours || !again.Equal(p) {
					t.Fatalf("%+v reads back as %+v, %v", p, again, err)
				}
				switch rapid.IntRange(0, 9).Draw(t, "outcome") {
				case 0:
					l.Refused(now)
				case 1: // crash after it was applied
					held = p
					crash()
				case 2: // crash before
					crash()
				case 3: // something happens while the commit is in flight
					if len(underway) > 0 {
						finish(rapid.IntRange(0, 3).Draw(t, "answer"))
					}
					fallthrough
				default:
					held = p
					l.Committed()
				}
			case 4, 5: // begin to send
				if b, _ := l.Next(now); b != nil {
					begin(b)
				}
			case 6, 7: // the answer
				if len(underway) > 0 {
					finish(rapid.IntRange(0, 3).Draw(t, "answer"))
				}
			case 8: // crash, perhaps with requests under way
				if rapid.IntRange(0, 4).Draw(t, "crash") == 0 {
					crash()
				}
			case 9:
				l.Shorten()
			}
			l.Cut(now)
		}
		for range rapid.IntRange(0, 400).Draw(t, "steps") {
			step(rapid.IntRange(0, 9).Draw(t, "step"))
		}
		for range 3000 { // and then everything goes well
			now = now.Add(time.Second)
			step(0)
			settle(l, &held, now)
			for b, _ := l.Next(now); b != nil; b, _ = l.Next(now) {
				begin(b)
			}
			for len(underway) > 0 {
				finish(3)
			}
			settle(l, &held, now)
			if l.Position() >= end && held.Offset == end {
				break
			}
		}
		want := make(map[rune][]int64)
		for _, e := range log {
			if taken[e.offset] == "" && !dead[e.offset] {
				t.Fatalf("event %d is lost", e.offset)
			}
			if e.poison && !dead[e.offset] {
				t.Fatalf("event %d is refused, and not in the dead letters", e.offset)
			}
			if taken[e.offset] != "" {
				for _, uid := range e.uids {
					want[uid] = append(want[uid], e.offset)
				}
			}
		}
		for uid := range want {
			if !slices.Equal(want[uid], order[uid]) {
				t.Fatalf("events of %c arrived in the order %v, want %v", uid, order[uid], want[uid])
			}
		}
		if held.Offset != end || len(held.Batches) != 0 {
			t.Fatalf("at the end %+v is committed, want the empty plan of %d", held, end)
		}
	})
}

// fill reads n records from the lane's position on, cuts them and has the plan committed.
func fill(l *Lane, n int, held *Plan) {
	for range n {
		l.Read(testRecord(l.Position(), 5, epoch))
	}
	l.Cut(epoch.Add(time.Hour))
	settle(l, held, epoch)
}

// TestLaneHalves: a batch that is refused is replaced by its halves, down to the single event, each after it was committed.
func TestLaneHalves(t *testing.T) {
	l := testLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 100, BatchBytes: 1 << 20, PlanAhead: 8})
	var held Plan
	fill(l, 100, &held)
	const poison = 10 + 37
	requests := 0
	delivered := 0
	for {
		b := next(l)
		if b == nil {
			break
		}
		if b.Dead.Is() {
			if b.First != poison || b.Last != poison || b.Dead != (Dead{schemas.ReasonRefused, 422}) || b.Attempts != 1 {
				t.Errorf("[%d, %d] is dead with %v after %d attempts", b.First, b.Last, b.Dead, b.Attempts)
			}
			l.Done(b, epoch)
			continue
		}
		requests++
		if b.First > poison || b.Last < poison {
			delivered += len(b.Records)
			l.Done(b, epoch)
			continue
		}
		l.Refuse(b, 422, epoch)
		if again := next(l); again != nil {
			t.Fatalf("[%d, %d] is begun before its plan is committed", again.First, again.Last)
		}
		settle(l, &held, epoch)
	}
	if delivered != 99 || requests > 1+14 {
		t.Errorf("%d events delivered with %d requests, want 99 with at most 15", delivered, requests)
	}
	settle(l, &held, epoch.Add(time.Hour))
	if held.Offset != 110 || len(held.Batches) != 0 {
		t.Errorf("committed %+v", held)
	}
}

// TestLaneChangesDuringCommit: the answer to a commit says nothing of what became of a batch since it was proposed, though the
// second half, or the dead batch, has the same end.
func TestLaneChangesDuringCommit(t *testing.T) {
	for name, change := range map[string]func(*Lane, *Batch){
		"halved":   func(l *Lane, b *Batch) { l.Refuse(b, 400, epoch) },
		"given up": func(l *Lane, b *Batch) { l.GiveUp(b, 503, epoch) },
	} {
		l := testLane(LaneConfig{InFlight: 8, UIDs: byKey, BatchMax: 2, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: time.Second})
		fill(l, 2, nil)
		b := next(l)
		l.Read(testRecord(12, 5, epoch))
		l.Read(testRecord(13, 5, epoch))
		l.Cut(epoch)
		l.Propose() // of [10, 11] and [12, 13]
		change(l, b)
		l.Committed()
		if b := next(l); b == nil || b.First != 12 {
			t.Errorf("%s: the batch that was planned is not begun: %+v", name, b)
		}
		if b := next(l); b != nil {
			t.Errorf("%s: [%d, %d] %v is begun before its plan is committed", name, b.First, b.Last, b.Dead)
		}
		settle(l, nil, epoch)
		if b := next(l); b == nil || b.First != 10 {
			t.Errorf("%s: %+v is begun when its plan is committed", name, b)
		}
	}
}

// TestLaneHalvesWithoutRoom: a plan without room for more is not made longer, but for the first batch.
func TestLaneHalvesWithoutRoom(t *testing.T) {
	l := testLane(LaneConfig{InFlight: 1000, UIDs: byKey, BatchMax: 2, BatchBytes: 1 << 20, PlanAhead: 1 << 20})
	var held Plan
	for i := range int64(4000) { // each distance has seven digits
		l.Read(testRecord(10+i*1_000_000, 5, epoch))
	}
	l.Cut(epoch.Add(time.Hour))
	settle(l, &held, epoch)
	first, second, third := next(l), next(l), next(l)
	l.Refuse(second, 400, epoch)
	l.Refuse(first, 400, epoch)
	for range 20 { // the first one can be halved all the way
		settle(l, &held, epoch)
		if b := next(l); b != nil && b.First == l.batches[0].First && len(b.Records) > 1 {
			l.Refuse(b, 400, epoch)
		}
	}
	if n := len(held.Metadata()); n > metadataMax {
		t.Fatalf("the plan has %d bytes", n)
	}
	if !slices.Contains(l.batches, second) {
		t.Error("the second batch is halved without room")
	}
	l.Done(third, epoch)
	for l.batches[0] != second && l.batches[0].unit != second.unit {
		b := l.batches[0]
		if b.state == batchWaiting {
			settle(l, &held, epoch)
			if now := next(l); now != b {
				t.Fatalf("[%d, %d] is begun, want the first", now.First, now.Last)
			}
		}
		l.Done(b, epoch)
	}
	if l.batches[0].unit != second.unit || l.batches[0] == second {
		t.Error("the second batch is not halved when it has become the first")
	}
}

// TestLaneInFlight: batches that share no uid are under way together, up to the limit, in which one counts that is done behind
// an unfinished one; one that shares a uid waits for that alone.
func TestLaneInFlight(t *testing.T) {
	l := testLane(LaneConfig{InFlight: 3, UIDs: byKey, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: time.Second})
	var held Plan
	for i, key := range []string{"a", "b", "ac", "d", "e", "f"} {
		r := testRecord(10+int64(i), 5, epoch)
		r.Key = []byte(key)
		l.Read(r)
	}
	l.Cut(epoch)
	settle(l, &held, epoch)
	begun := func() (firsts []int64) {
		for b := next(l); b != nil; b = next(l) {
			firsts = append(firsts, b.First)
		}
		return firsts
	}
	if got := begun(); !slices.Equal(got, []int64{10, 11, 13}) {
		t.Fatalf("begun %v, want 10, 11 and 13: 12 shares a uid with 10", got)
	}
	l.Done(l.batches[1], epoch)
	l.Done(l.batches[3], epoch)
	if got := begun(); got != nil {
		t.Fatalf("begun %v while what is done behind 10 counts", got)
	}
	settle(l, &held, epoch.Add(time.Second))
	if held.Offset != 10 || len(held.Batches) != 6 {
		t.Errorf("committed %+v, though 10 is not done", held)
	}
	l.Done(l.batches[0], epoch)
	if got := begun(); !slices.Equal(got, []int64{12, 14}) {
		t.Fatalf("begun %v, want 12 and 14: 13 is done and counts", got)
	}
}

// TestLaneBackoff: a batch that failed is tried again when its delay is over, or all delays end.
func TestLaneBackoff(t *testing.T) {
	l := testLane(LaneConfig{InFlight: 2, UIDs: byKey, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: 100 * time.Millisecond})
	fill(l, 1, nil)
	b := next(l)
	l.Retry(b, answered(503), time.Minute, epoch)
	if b, again := l.Next(epoch.Add(59 * time.Second)); b != nil || !again.Equal(epoch.Add(time.Minute)) {
		t.Fatalf("Next returned %+v and asks to come at %v", b, again)
	}
	if again, _ := l.Next(epoch.Add(time.Minute)); again != b {
		t.Fatal("it is not tried again after a minute")
	}
	l.EndBackoff()
	if again, _ := l.Next(epoch); again != b {
		t.Fatal("it is not tried again when backoffs end")
	}
}

// TestLaneTellsTrouble: the plan says what troubles the first batch, a new trouble at once and the same one now and then; the next owner
// goes on counting, and the end of it is told too.
func TestLaneTellsTrouble(t *testing.T) {
	cfg := LaneConfig{InFlight: 2, UIDs: byKey, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: 100 * time.Millisecond}
	l := testLane(cfg)
	var held Plan
	fill(l, 2, &held)
	fail := func(status int, at time.Duration) {
		b, _ := l.Next(epoch.Add(at))
		l.Begin(b)
		l.Retry(b, answered(status), 0, epoch.Add(at))
	}
	due := func(want time.Duration) {
		t.Helper()
		if got := l.CommitDue(epoch); got.Sub(epoch) != want {
			t.Fatalf("the next commit is due after %v, want %v", got.Sub(epoch), want)
		}
		settle(l, &held, epoch.Add(want))
	}
	fail(503, 0)
	due(100 * time.Millisecond)
	if want := (Trouble{epoch.Unix(), epoch.Unix(), 1, "503"}); held.Trouble != want {
		t.Fatalf("told %+v, want %+v", held.Trouble, want)
	}
	fail(503, time.Second)
	fail(503, 2*time.Second)
	due(6 * time.Second)
	fail(404, 7*time.Second)
	due(7*time.Second + 100*time.Millisecond)
	if want := (Trouble{epoch.Unix(), epoch.Unix() + 7, 4, "404"}); held.Trouble != want {
		t.Fatalf("told %+v, want %+v", held.Trouble, want)
	}
	l = NewLane(cfg, held, false, false, epoch)
	l.Read(testRecord(10, 5, epoch))
	l.Read(testRecord(11, 5, epoch))
	fail(404, 8*time.Second)
	settle(l, &held, epoch.Add(time.Hour))
	if want := (Trouble{epoch.Unix(), epoch.Unix() + 8, 5, "404"}); held.Trouble != want {
		t.Fatalf("told %+v, want %+v", held.Trouble, want)
	}
	l.Done(next(l), epoch)
	settle(l, &held, epoch.Add(time.Hour))
	if held.Trouble != (Trouble{}) || held.Offset != 11 {
		t.Fatalf("committed %+v after the trouble's end", held)
	}
}

// TestLaneAgesBesideStuck: events of other uids do not wait for a batch that is stuck, nor for those that wait for it.
func TestLaneAgesBesideStuck(t *testing.T) {
	l := testLane(LaneConfig{InFlight: 4, UIDs: byKey, BatchMax: 10, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: time.Second})
	for i, key := range []string{"a", "a", "b"} {
		r := testRecord(10+int64(i), 5, epoch)
		r.Key = []byte(key)
		l.Read(r)
		l.Cut(epoch.Add(time.Second))
		settle(l, nil, epoch)
		if i == 0 {
			l.Retry(next(l), answered(500), time.Hour*1000, epoch)
		}
	}
	if b := next(l); b == nil || b.First != 12 {
		t.Fatalf("%+v is begun, want the event of b", b)
	}
}

// TestLaneTrying: the time to give up does not count while the endpoint says that it is wrong itself, and goes on over a restart.
func TestLaneTrying(t *testing.T) {
	cfg := LaneConfig{InFlight: 1, UIDs: byKey, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: time.Second}
	l := testLane(cfg)
	var held Plan
	fill(l, 1, &held)
	for i, step := range []struct {
		status int
		want   time.Time
	}{{503, epoch}, {500, epoch}, {404, time.Time{}}, {503, epoch.Add(3 * time.Minute)}, {404, time.Time{}}, {429, epoch.Add(5 * time.Minute)}} {
		b := next(l)
		l.Retry(b, answered(step.status), 0, epoch.Add(time.Duration(i)*time.Minute))
		if !b.Trying().Equal(step.want) {
			t.Errorf("after %d it is tried since %v, want %v", step.status, b.Trying(), step.want)
		}
	}
	for answer, want := range map[string]bool{"503": true, "timeout": true, "404": false} {
		held := Plan{TopicID: testTopic, Offset: 10, Batches: []Planned{{Last: 10}}, Trouble: Trouble{epoch.Unix(), epoch.Unix() + 5, 3, answer}}
		l := NewLane(cfg, held, false, false, epoch)
		if since := l.batches[0].Trying(); since.Equal(epoch) != want || since.IsZero() == want {
			t.Errorf("after a restart with %s it is tried since %v", answer, since)
		}
	}
}

// TestLaneMarksFit: a plan has room for all its batches to be marked dead, and for its first to be halved down to single events that
// are.
func TestLaneMarksFit(t *testing.T) {
	for _, length := range []int64{1, 100, 1_000_000} {
		l := testLane(LaneConfig{InFlight: 2000, UIDs: func(hashes []uint64, _ *Record) []uint64 { return hashes }, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 4000})
		var held Plan
		for i := range int64(4000) {
			l.Read(testRecord(10+i*length, 5, epoch))
		}
		l.Cut(epoch.Add(time.Hour))
		settle(l, &held, epoch)
		var all []*Batch
		for b := next(l); b != nil; b = next(l) {
			all = append(all, b)
		}
		for _, b := range all {
			if len(b.Records) > 1 || b == all[0] {
				l.Retry(b, answered(503), 0, epoch)
				continue
			}
			l.GiveUp(b, 503, epoch)
		}
		settle(l, &held, epoch)
		if n := len(held.Metadata()); n > metadataMax || len(all) < 100 {
			t.Errorf("distance %d: the plan of %d dead batches has %d bytes", length, len(all), n)
		}
	}
}

// TestLaneRetryAfter: the end of backoffs does not end what the endpoint asked for.
func TestLaneRetryAfter(t *testing.T) {
	l := testLane(LaneConfig{InFlight: 1, UIDs: byKey, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: time.Second})
	fill(l, 1, nil)
	b := next(l)
	answer := answered(429)
	answer.RetryAfter = 30 * time.Second
	l.Retry(b, answer, time.Minute, epoch)
	l.EndBackoff()
	if b, again := l.Next(epoch.Add(29 * time.Second)); b != nil || !again.Equal(epoch.Add(30*time.Second)) {
		t.Errorf("Next returned %+v and asks to come at %v", b, again)
	}
	if again, _ := l.Next(epoch.Add(30 * time.Second)); again != b {
		t.Error("it is not tried again at the time that the endpoint named")
	}
}

// TestLaneChangedPlan: what a lane found, and changed, does not take effect before it is committed, and is committed by itself.
func TestLaneChangedPlan(t *testing.T) {
	plan := Plan{TopicID: testTopic, Offset: 10, Batches: []Planned{{Last: 10, Dead: Dead{Reason: schemas.ReasonCut}}}}
	l := NewLane(LaneConfig{InFlight: 1, UIDs: oneUID, BatchMax: 1, BatchBytes: 1 << 20, PlanAhead: 8, FlushInterval: time.Second}, plan, false, true, epoch)
	if due := l.CommitDue(epoch); !due.Equal(epoch.Add(time.Second)) {
		t.Errorf("the commit is due at %v, want within the flush interval", due)
	}
	l.Read(testRecord(10, 5, epoch))
	if b, _ := l.Next(epoch); b != nil {
		t.Fatal("a cut batch is executed before its plan is committed")
	}
	settle(l, nil, epoch)
	if b, _ := l.Next(epoch); b == nil || !b.Dead.Is() {
		t.Errorf("%+v is next, want the dead batch", b)
	}
}
