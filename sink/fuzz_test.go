package sink

import (
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/offhook/offhook/schemas"
)

// FuzzRetryAfter: whatever an endpoint sends asks for at most five minutes, and never for less than none.
func FuzzRetryAfter(f *testing.F) {
	for _, header := range []string{"", "0", "7", " 120 ", "99999999999999999999", "-1", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", "Wednesday, 21-Oct-26 07:28:00 GMT"} {
		f.Add(header, int64(1_792_567_000))
	}
	f.Fuzz(func(t *testing.T, header string, unix int64) {
		now := time.Unix(unix, 0)
		got := RetryAfter(header, now)
		if got < 0 || got > retryAfterMax {
			t.Errorf("%q asks for %v", header, got)
		}
		if seconds, err := strconv.ParseUint(header, 10, 8); err == nil && got != time.Duration(seconds)*time.Second {
			t.Errorf("%q asks for %v", header, got)
		}
		if later := RetryAfter(header, now.Add(time.Second)); later > got {
			if _, err := http.ParseTime(header); err == nil {
				t.Errorf("%q asks for %v, and a second later for %v", header, got, later)
			}
		}
	})
}

func FuzzParseStart(f *testing.F) {
	for _, text := range []string{"", "earliest", "latest", "0", "1767225600", "-1", "2026-01-31T12:00:00Z", "0000-01-01T00:00:00+23:59", "99999999999"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseStart(text)
		if set := err == nil && text != ""; s.IsSet() != set {
			t.Errorf("%q is set: %t, error %v", text, s.IsSet(), err)
		}
	})
}

// FuzzResume: where a lane goes on is within the log, whatever the coordinator holds; what is planned stays planned, and can be
// committed again.
func FuzzResume(f *testing.F) {
	plan := Plan{TopicID: testTopic, Rewind: 7, Offset: 100, Batches: []Planned{{Last: 109}, {119, Dead{schemas.ReasonRefused, 413}}, {Last: 129}}}
	plan.Trouble = Trouble{Since: 5, Last: 6, Attempts: 2, Answer: "404"}
	for _, log := range [][2]int64{{0, 200}, {105, 200}, {115, 200}, {150, 200}, {0, 110}, {0, 50}} {
		f.Add(int64(100), plan.Metadata(), log[0], log[1])
	}
	f.Add(int64(100), "", int64(0), int64(200))
	f.Add(int64(100), "set by a tool", int64(150), int64(200))
	f.Fuzz(func(t *testing.T, offset int64, metadata string, logStart, logEnd int64) {
		if offset < 0 || logStart < 0 || logEnd < logStart {
			return
		}
		r, err := resume(&committedOffset{offset, metadata}, testTopic, logStart, logEnd, logStart, 99)
		if err != nil {
			return
		}
		p := r.plan
		if p.Offset < logStart || p.End() > logEnd || p.TopicID != testTopic {
			t.Fatalf("%q at %d of a log from %d to %d goes on with %+v", metadata, offset, logStart, logEnd, p)
		}
		end := p.Offset - 1
		for _, b := range p.Batches {
			if b.Last <= end {
				t.Fatalf("%q at %d: a batch ends at %d, the one before at %d", metadata, offset, b.Last, end)
			}
			end = b.Last
		}
		_ = p.Trouble.verdict()
		again, ours, err := ParsePlan(p.Offset, p.Metadata())
		if err != nil || !ours || !again.Equal(p) {
			t.Errorf("%+v reads back as %+v, %v", p, again, err)
		}
	})
}
