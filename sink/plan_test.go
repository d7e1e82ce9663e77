package sink

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/offhook/offhook/schemas"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files")

var testTopic = [16]byte{0xde, 0xad, 0xbe, 0xef, 15: 1}

// TestPlanGolden holds the text of plans against testdata: what a release writes, the next one reads.
func TestPlanGolden(t *testing.T) {
	plans := []Plan{
		{TopicID: testTopic},
		{TopicID: testTopic, Offset: 1000},
		{TopicID: testTopic, Offset: 1000, Batches: []Planned{{Last: 1000}}},
		{TopicID: testTopic, Offset: 1000, Batches: []Planned{{Last: 1099}, {Last: 1199}, {Last: 1256, Dead: Dead{Reason: schemas.ReasonCut}}, {Last: 1300}}},
		{TopicID: testTopic, Rewind: 1767225600, Offset: 7, Batches: []Planned{{Last: 7, Dead: Dead{Reason: schemas.ReasonCut}}}},
		{TopicID: testTopic, Offset: 1000, Batches: []Planned{
			{Last: 1049}, {1050, Dead{schemas.ReasonRefused, 413}}, {1099, Dead{Reason: schemas.ReasonSkipped}}, {1199, Dead{schemas.ReasonGaveUp, 503}},
			{1200, Dead{Reason: schemas.ReasonGaveUp}}, {Last: 1210, Dead: Dead{Reason: schemas.ReasonCut}},
		}},
		{TopicID: testTopic, Offset: 1000, Batches: []Planned{{Last: 1099}}, Trouble: Trouble{1767225600, 1767225660, 7, "404"}},
		{TopicID: testTopic, Offset: 1000, Batches: []Planned{{Last: 1000}}, Trouble: Trouble{1767225600, 1767225600, 1, "timeout"}},
	}
	var b strings.Builder
	for _, p := range plans {
		fmt.Fprintf(&b, "%d %s\n", p.Offset, p.Metadata())
	}
	const file = "testdata/plans.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(golden), b.String()); diff != "" {
		t.Fatalf("plans have another text (-want +got):\n%s", diff)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(golden)), "\n") {
		offset, metadata, _ := strings.Cut(line, " ")
		if offset != fmt.Sprint(plans[i].Offset) {
			t.Fatalf("line %d has offset %s", i+1, offset)
		}
		got, ours, err := ParsePlan(plans[i].Offset, metadata)
		if err != nil || !ours || !got.Equal(plans[i]) {
			t.Errorf("ParsePlan(%q) = %+v, %v, %v, want %+v", metadata, got, ours, err, plans[i])
		}
	}
}

func TestParsePlanRefuses(t *testing.T) {
	for _, metadata := range []string{"", "x", "offhoo", "some tool was here"} {
		if _, ours, err := ParsePlan(1, metadata); ours || err != nil {
			t.Errorf("ParsePlan(%q): ours %v, error %v, want neither", metadata, ours, err)
		}
	}
	id := "deadbeef000000000000000000000001"
	for _, metadata := range []string{
		"offhook/", "offhook/x", "offhook/1", "offhook/0 " + id + " 0", "offhook/1 " + id, "offhook/1 dead 0", "offhook/1 " + id + " -1",
		"offhook/1 " + id + " 0 ", "offhook/1 " + id + " 0 1,", "offhook/1 " + id + " 0 0", "offhook/1 " + id + " 0 -5", "offhook/1 " + id + " 0 xx",
		"offhook/1 " + id + " 0 1 2", "offhook/1 " + id + " 0 1r", "offhook/1 " + id + " 0 1x400", "offhook/2 " + id + " 0 1y", "offhook/2 " + id + " 0 r400",
		"offhook/2 " + id + " 0 1r40", "offhook/2 " + id + " 0 1 1/2/3/404 5", "offhook/1 " + id + " 0 9223372036854775807,9223372036854775807",
	} {
		if _, ours, err := ParsePlan(1, metadata); !ours || err == nil {
			t.Errorf("ParsePlan(%q): ours %v, error %v, want ours and an error", metadata, ours, err)
		}
	}
	_, ours, err := ParsePlan(1, "offhook/3 anything at all")
	if version, ok := errors.AsType[*PlanVersionError](err); !ours || !ok || version.Version != 3 {
		t.Errorf("a newer plan gives %v, want a PlanVersionError", err)
	}
}

// TestParsePlanOddTrouble: a trouble that cannot be read does not keep the plan from being read.
func TestParsePlanOddTrouble(t *testing.T) {
	for _, trouble := range []string{"2", "1/2/0/404", "1/2/3/", "a/b/c/d", "1/2/3/4/5"} {
		p, ours, err := ParsePlan(10, "offhook/2 deadbeef000000000000000000000001 0 1 "+trouble)
		if want := (Plan{TopicID: testTopic, Offset: 10, Batches: []Planned{{Last: 10}}}); err != nil || !ours || !p.Equal(want) {
			t.Errorf("%q: %+v, %v", trouble, p, err)
		}
	}
}

func FuzzParsePlan(f *testing.F) {
	f.Add(int64(5), "offhook/1 deadbeef000000000000000000000001 0 100,57x")
	f.Add(int64(5), "offhook/2 deadbeef000000000000000000000001 0 100,57g503 1767225600/1767225660/7/404")
	f.Add(int64(0), "")
	f.Fuzz(func(t *testing.T, offset int64, metadata string) {
		if offset < 0 {
			return
		}
		p, ours, err := ParsePlan(offset, metadata)
		if err != nil || !ours {
			return
		}
		again, ours, err := ParsePlan(offset, p.Metadata())
		if err != nil || !ours || !again.Equal(p) {
			t.Errorf("%q reads back as %+v, %v", metadata, again, err)
		}
	})
}

func TestPlanCutTo(t *testing.T) {
	p := Plan{TopicID: testTopic, Rewind: 5, Offset: 100, Batches: []Planned{{Last: 109}, {Last: 119}, {Last: 129}}}
	for _, tt := range []struct {
		start   int64
		want    Plan
		dropped int
	}{
		{100, p, 0},
		{50, p, 0},
		{105, Plan{TopicID: testTopic, Rewind: 5, Offset: 105, Batches: []Planned{{109, Dead{Reason: schemas.ReasonCut}}, {Last: 119}, {Last: 129}}}, 0},
		{110, Plan{TopicID: testTopic, Rewind: 5, Offset: 110, Batches: []Planned{{Last: 119}, {Last: 129}}}, 1},
		{129, Plan{TopicID: testTopic, Rewind: 5, Offset: 129, Batches: []Planned{{129, Dead{Reason: schemas.ReasonCut}}}}, 2},
		{200, Plan{TopicID: testTopic, Rewind: 5, Offset: 200, Batches: nil}, 3},
	} {
		got, dropped := p.CutTo(tt.start)
		if !got.Equal(tt.want) || dropped != tt.dropped {
			t.Errorf("CutTo(%d) = %+v, %d, want %+v, %d", tt.start, got, dropped, tt.want, tt.dropped)
		}
	}
}

// TestPlanRoundTrip: any plan reads back as it was, and its text is ASCII.
func TestPlanRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Plan{TopicID: testTopic, Rewind: rapid.Int64Range(0, 1<<40).Draw(t, "rewind"), Offset: rapid.Int64Range(0, 1<<50).Draw(t, "offset")}
		end := p.Offset - 1
		for range rapid.IntRange(0, 20).Draw(t, "batches") {
			end += rapid.Int64Range(1, 1<<30).Draw(t, "length")
			b := Planned{Last: end}
			if b.Dead.Reason = rapid.SampledFrom([]schemas.Reason{"", schemas.ReasonCut, schemas.ReasonRefused, schemas.ReasonGaveUp, schemas.ReasonSkipped}).Draw(t, "dead"); b.Dead.Is() {
				b.Dead.Status = rapid.SampledFrom([]int{0, 100, 400, 503, 999}).Draw(t, "status")
			}
			p.Batches = append(p.Batches, b)
		}
		if len(p.Batches) > 0 && rapid.Bool().Draw(t, "trouble") {
			p.Trouble = Trouble{
				rapid.Int64Range(0, 1<<40).Draw(t, "since"), rapid.Int64Range(0, 1<<40).Draw(t, "last"), rapid.IntRange(1, 1<<30).Draw(t, "attempts"),
				rapid.SampledFrom([]string{"404", "timeout", "connection"}).Draw(t, "answer"),
			}
		}
		metadata := p.Metadata()
		got, ours, err := ParsePlan(p.Offset, metadata)
		if err != nil || !ours || !got.Equal(p) {
			t.Fatalf("%q reads back as %+v, %v", metadata, got, err)
		}
		if strings.ContainsFunc(metadata, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q is not ASCII", metadata)
		}
	})
}

func TestBatchID(t *testing.T) {
	if got, want := BatchID(testTopic, 3, 100, 199, 0), "deadbeef000000000000000000000001-3-100-199"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := BatchID(testTopic, 3, 100, 199, 1767225600), "deadbeef000000000000000000000001-3-100-199-r1767225600"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestResume(t *testing.T) {
	other := [16]byte{1}
	ours := Plan{TopicID: testTopic, Offset: 100, Batches: []Planned{{Last: 109}, {Last: 119}}}
	for _, tt := range []struct {
		name               string
		committed          *committedOffset
		start, end, starAt int64
		want               resumption
	}{
		{"no offset", nil, 10, 200, 150, resumption{plan: Plan{TopicID: testTopic, Offset: 150}, fresh: true, note: resumeStart}},
		{"no offset, start before the log", nil, 10, 200, 0, resumption{plan: Plan{TopicID: testTopic, Offset: 10}, fresh: true, note: resumeStart}},
		{"no offset, time after the log's end", nil, 10, 200, 1 << 60, resumption{plan: Plan{TopicID: testTopic, Offset: 200}, fresh: true, note: resumeStart}},
		{"plan", &committedOffset{100, ours.Metadata()}, 10, 200, 0, resumption{plan: ours, note: resumePlan}},
		{"not ours", &committedOffset{100, ""}, 10, 200, 0, resumption{plan: Plan{TopicID: testTopic, Offset: 100, Rewind: 99}, changed: true, note: resumeRewind}},
		{"topic made anew", &committedOffset{100, Plan{TopicID: other, Offset: 100}.Metadata()}, 3, 200, 0, resumption{plan: Plan{TopicID: testTopic, Offset: 3}, changed: true, note: resumeRecreated}},
		{"cut", &committedOffset{100, ours.Metadata()}, 112, 200, 0, resumption{plan: Plan{TopicID: testTopic, Offset: 112, Batches: []Planned{{119, Dead{Reason: schemas.ReasonCut}}}}, changed: true, note: resumeCut, dropped: 1}},
		{"truncated", &committedOffset{100, ours.Metadata()}, 10, 115, 0, resumption{plan: Plan{TopicID: testTopic, Offset: 100, Rewind: 99}, changed: true, note: resumeTruncated}},
	} {
		got, err := resume(tt.committed, testTopic, tt.start, tt.end, tt.starAt, 99)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		} else if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(resumption{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
	if _, err := resume(&committedOffset{1, "offhook/9 "}, testTopic, 0, 10, 0, 99); err == nil {
		t.Error("a newer plan is guessed")
	}
}
