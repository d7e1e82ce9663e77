package receiver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/offhook/offhook/internal/journal"
)

// journaled plays scenarios before a receiver, both with one journal.
func journaled(t *testing.T, w io.Writer, cfg Config, texts ...string) (*Player, *Receiver) {
	t.Helper()
	cfg.Journal = journal.NewWriter(w)
	r := New(cfg)
	return Play(r, 1, parsed(t, texts...)...).Journal(cfg.Journal), r
}

func entriesOf(t *testing.T, r io.Reader) (all []journal.Entry) {
	t.Helper()
	for reader := journal.NewReader(r); ; {
		e, err := reader.Next()
		if errors.Is(err, io.EOF) {
			if reader.Torn() {
				t.Error("the journal is torn")
			}
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		e.Body = bytes.Clone(e.Body)
		all = append(all, e)
	}
}

func TestJournalHasWhatWasReadWhole(t *testing.T) {
	entry := func(id string, n int, taken bool) journal.Entry {
		return journal.Entry{Event: "msg.notify", ID: id, Taken: taken, Body: []byte(array(message("c", n)))}
	}
	for _, tt := range []struct {
		scenario string
		cfg      Config
		want     []journal.Entry // of the ids 1, 2, 2 and 3, one after the other
	}{
		{scenario: "fickle:1000", want: []journal.Entry{entry("1", 1, true), entry("2", 2, true), entry("2", 2, true), entry("3", 3, true)}},
		{scenario: "cut:2", want: []journal.Entry{entry("1", 1, true), entry("2", 2, false), entry("2", 2, true), entry("3", 3, false)}},
		{scenario: "cut:2:answer", want: []journal.Entry{entry("1", 1, true), entry("2", 2, true), entry("2", 2, true), entry("3", 3, true)}},
		{scenario: "fickle:2", want: []journal.Entry{entry("1", 1, true), entry("2", 2, false), entry("2", 2, true), entry("3", 3, true)}},
		{scenario: "busy:2:1", want: []journal.Entry{entry("1", 1, true), entry("2", 2, false), entry("2", 2, false), entry("3", 3, true)}},
		{scenario: "slow:2h", want: []journal.Entry{entry("1", 1, false), entry("2", 2, false), entry("2", 2, false), entry("3", 3, false)}},
		{scenario: "late:1:2h", want: []journal.Entry{entry("1", 1, true), entry("2", 2, true), entry("2", 2, true), entry("3", 3, true)}},
		{scenario: "status:302:1m", want: []journal.Entry{entry("1", 1, false), entry("2", 2, false), entry("2", 2, false), entry("3", 3, false)}},
		{scenario: "status:204:1m", want: []journal.Entry{entry("1", 1, true), entry("2", 2, true), entry("2", 2, true), entry("3", 3, true)}},
		{ // refused by the receiver, not by a scenario
			scenario: "slow:1s", cfg: Config{Secrets: [][]byte{[]byte("key")}},
			want: []journal.Entry{entry("1", 1, false), entry("2", 2, false), entry("2", 2, false), entry("3", 3, false)},
		},
		{scenario: "slow:1s", cfg: Config{Answer: func(*http.Request, []byte) int { return 418 }},
			want: []journal.Entry{entry("1", 1, false), entry("2", 2, false), entry("2", 2, false), entry("3", 3, false)}},
		{scenario: "slow:1s", cfg: Config{Unchecked: true},
			want: []journal.Entry{entry("1", 1, true), entry("2", 2, true), entry("2", 2, true), entry("3", 3, true)}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var file bytes.Buffer
			p, _ := journaled(t, &file, tt.cfg, tt.scenario)
			for n, id := range []string{"1", "2", "2", "3"} {
				knock(t, p, id, []int{1, 2, 2, 3}[n])
			}
			got := entriesOf(t, &file)
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(journal.Entry{}, "Time")); diff != "" {
				t.Errorf("%s: entries (-want +got):\n%s", tt.scenario, diff)
			}
			for i, e := range got {
				if now := time.Now(); time.UnixMilli(e.Time).After(now) || now.Sub(time.UnixMilli(e.Time)) > 12*time.Hour {
					t.Errorf("%s: entry %d has time %d", tt.scenario, i, e.Time)
				}
			}
		})
	}
}

func TestJournalHasBadRequestsToo(t *testing.T) {
	var file bytes.Buffer
	p, _ := journaled(t, &file, Config{MaxBody: 10})
	post(t, p, "msg.notify", "1", "no json")
	post(t, p, "msg.other", "2", "[]")
	post(t, p, "msg.notify", "3", strings.Repeat("x", 11)) // is not read whole
	req := httptest.NewRequest(http.MethodPut, "/?event=msg.notify", strings.NewReader("[]"))
	p.ServeHTTP(httptest.NewRecorder(), req)
	want := []journal.Entry{{Event: "msg.notify", ID: "1", Body: []byte("no json")}, {Event: "msg.other", ID: "2", Body: []byte("[]")}, {Event: "msg.notify", Body: []byte("[]")}}
	if diff := cmp.Diff(want, entriesOf(t, &file), cmpopts.IgnoreFields(journal.Entry{}, "Time")); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// TestJournalIsWrittenBeforeTheAnswer looks into the journal when the answer's header is written.
func TestJournalIsWrittenBeforeTheAnswer(t *testing.T) {
	for _, scenario := range []string{"during:1h:1h:cut:1", "status:503:1h", "late:1:1s", "cut:1:answer"} {
		synctest.Test(t, func(t *testing.T) {
			var file bytes.Buffer
			p, _ := journaled(t, &file, Config{}, scenario)
			w := &answerSpy{ResponseRecorder: httptest.NewRecorder(), file: &file}
			req := httptest.NewRequest(http.MethodPost, "/?event=msg.notify", strings.NewReader(array(message("c", 1))))
			func() {
				defer func() { _ = recover() }() // a cut connection
				p.ServeHTTP(w, req)
			}()
			if file.Len() == 0 || w.early {
				t.Errorf("%s: answered before the journal was written, or never written", scenario)
			}
		})
	}
}

type answerSpy struct {
	*httptest.ResponseRecorder
	file  *bytes.Buffer
	early bool
}

func (w *answerSpy) WriteHeader(status int) {
	w.early = w.early || w.file.Len() == 0
	w.ResponseRecorder.WriteHeader(status)
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestRequestThatCannotBeNotedIsNotTaken(t *testing.T) {
	for _, scenario := range []string{"slow:1ms", "refuse:r-c-1", "cut:1", "late:1:1ms"} {
		synctest.Test(t, func(t *testing.T) {
			p, r := journaled(t, fullDisk{}, Config{}, scenario)
			if code, _ := knock(t, p, "1", 1); code != http.StatusInternalServerError {
				t.Errorf("%s: answered %d, want 500", scenario, code)
			}
			if s := r.Summary(nil); s.Requests != 0 {
				t.Errorf("%s: summary %+v, want nothing", scenario, s)
			}
		})
	}
}

// TestJournalOfManySenders has requests come at once: each sender's are in its order, taken once, and read back whole.
func TestJournalOfManySenders(t *testing.T) {
	var file bytes.Buffer
	p, r := journaled(t, &file, Config{}, "errors:30")
	const senders, each = 8, 100
	var running sync.WaitGroup
	for s := range senders {
		running.Go(func() {
			uid := fmt.Sprint("u", s)
			for n := 1; n <= each; n++ {
				for post(t, p, "msg.notify", fmt.Sprint(uid, "-", n), array(message(uid, n))) != http.StatusOK {
				}
			}
		})
	}
	running.Wait()
	next := make(map[string]int)
	var taken, refused int64
	for _, e := range entriesOf(t, &file) {
		uid, _, _ := strings.Cut(e.ID, "-")
		if want := fmt.Sprint(uid, "-", next[uid]+1); e.ID != want || string(e.Body) != array(message(uid, next[uid]+1)) {
			t.Fatalf("the journal has %s where %s comes next", e.ID, want)
		}
		if e.Taken {
			next[uid]++
			taken++
		} else {
			refused++
		}
	}
	if s := p.Add(r.Summary(nil)); taken != senders*each || refused == 0 || s.RefusedByScenario != refused || s.Wrong() {
		t.Errorf("%d taken and %d refused, the summary is %+v", taken, refused, s)
	}
}

func TestUncheckedCountsAlone(t *testing.T) {
	r := New(Config{Unchecked: true})
	for _, id := range []string{"1", "1", "2"} {
		post(t, r, "msg.notify", id, array(message("c", 2), message("c", 1)))
	}
	post(t, r, "user.onlinestatus", "3", texts("u-0-1-5-1-1"))
	post(t, r, "msg.offline", "4", array(message("c", 1, "a", "b")))
	post(t, r, "msg.offline", "5", "no json")
	want := Summary{Requests: 6, Events: Events{Notify: 6, OnlineStatus: 1, Offline: 1}, BadRequests: 1, Unchecked: true}
	got := r.Summary(known(t, sent("c", 9, true, false)))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	if n := len(r.books.bodies) + len(r.books.notified) + len(r.books.pushed) + len(r.books.users) + len(r.books.lastNotify); n > 0 {
		t.Errorf("it remembers %d things", n)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"requests":6,"events":{"user.onlinestatus":1,"msg.offline":1,"msg.notify":6},"bad_signatures":0,"bad_requests":1}`; string(text) != want {
		t.Errorf("JSON %s, want %s", text, want)
	}
}

// BenchmarkJournal measures requests of 100 items over HTTP, from eight senders.
func BenchmarkJournal(b *testing.B) {
	for _, unchecked := range []bool{false, true} {
		b.Run(map[bool]string{false: "checked", true: "unchecked"}[unchecked], func(b *testing.B) {
			w, err := journal.Open(filepath.Join(b.TempDir(), "journal"))
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			server := httptest.NewServer(Play(New(Config{Journal: w, Unchecked: unchecked}), 1).Journal(w))
			defer server.Close()
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
			defer client.CloseIdleConnections()
			items := make([]string, 100)
			for i := range items {
				items[i] = message("c", i+1)
			}
			body := array(items...)
			b.SetBytes(int64(len(body)))
			var sending sync.WaitGroup
			work := make(chan int)
			for range 8 {
				sending.Go(func() {
					for n := range work {
						req, err := http.NewRequest(http.MethodPost, server.URL+"?event=msg.notify", strings.NewReader(body))
						if err != nil {
							b.Error(err)
							return
						}
						req.Header.Set("webhook-id", fmt.Sprint("0a1b-", n))
						resp, err := client.Do(req)
						if err != nil {
							b.Error(err)
							return
						}
						resp.Body.Close()
					}
				})
			}
			n := 0
			for b.Loop() {
				work <- n
				n++
			}
			close(work)
			sending.Wait()
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}
