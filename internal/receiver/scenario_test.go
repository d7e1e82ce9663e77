package receiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// parsed are the scenarios of texts.
func parsed(t *testing.T, texts ...string) (all []Scenario) {
	t.Helper()
	for _, text := range texts {
		s, err := ParseScenario(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

// play parses scenarios and plays them, with seed 1, before a receiver.
func play(t *testing.T, texts ...string) (*Player, *Receiver) {
	t.Helper()
	r := New(Config{})
	return Play(r, 1, parsed(t, texts...)...), r
}

// knock posts one request with the item of client_msg_no r-c-<n>. code is 0 where the connection is cut, and where there
// is no answer.
func knock(t *testing.T, h http.Handler, id string, n int) (code int, header http.Header) {
	t.Helper()
	return knockFor(t, h, id, n, time.Hour)
}

// knockFor does not wait longer than the timeout.
func knockFor(t *testing.T, h http.Handler, id string, n int, timeout time.Duration) (code int, header http.Header) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	req := httptest.NewRequestWithContext(ctx, http.MethodPost, "/?event=msg.notify", strings.NewReader(array(message("c", n))))
	req.Header.Set("webhook-id", id)
	w := httptest.NewRecorder()
	defer func() {
		if r := recover(); r != nil {
			if err, ok := r.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(r)
			}
			code = 0
		}
	}()
	h.ServeHTTP(w, req)
	if ctx.Err() != nil {
		return 0, nil
	}
	return w.Code, w.Header()
}

func TestEachScenario(t *testing.T) {
	type step struct {
		wait    time.Duration // before the request
		id      string
		n       int
		code    int           // 0: none
		took    time.Duration // until the answer
		header  string        // name: value
		timeout time.Duration // 0: an hour
	}
	tests := []struct {
		scenarios []string
		steps     []step
		want      Summary
	}{
		{
			[]string{"slow:50ms"},
			[]step{{id: "1", n: 1, code: 200, took: 50 * time.Millisecond}, {id: "2", n: 2, took: 20 * time.Millisecond, timeout: 20 * time.Millisecond}},
			Summary{Requests: 1, Events: Events{Notify: 1}},
		},
		{ // one is a delay, the other an answer: both apply, and so does a second delay
			[]string{"slow:50ms", "status:503:1m", "slow:1s"},
			[]step{{id: "1", n: 1, code: 503, took: 1050 * time.Millisecond}},
			Summary{RefusedByScenario: 1},
		},
		{
			[]string{"status:404:1m"},
			[]step{{id: "1", n: 1, code: 404}, {wait: time.Minute - 1, id: "1", n: 1, code: 404}, {wait: 1, id: "1", n: 1, code: 200}},
			Summary{Requests: 1, Events: Events{Notify: 1}, RefusedByScenario: 2},
		},
		{
			[]string{"status:302:1m:1s"},
			[]step{
				{id: "1", n: 1, code: 200}, {wait: time.Second, id: "2", n: 2, code: 302, header: "Location: " + moved},
				{wait: time.Minute - 1, id: "2", n: 2, code: 302}, {wait: 1, id: "2", n: 2, code: 200},
			},
			Summary{Requests: 2, Events: Events{Notify: 2}, RefusedByScenario: 2},
		},
		{
			[]string{"status:204:1m"},
			[]step{{id: "1", n: 1, code: 204}},
			Summary{Requests: 1, Events: Events{Notify: 1}},
		},
		{
			[]string{"errors:100:502"},
			[]step{{id: "1", n: 1, code: 502}, {id: "1", n: 1, code: 502}},
			Summary{RefusedByScenario: 2},
		},
		{
			[]string{"fail:r-c-2"},
			[]step{{id: "1", n: 1, code: 200}, {id: "2", n: 2, code: 500}, {id: "2", n: 2, code: 500}},
			Summary{Requests: 1, Events: Events{Notify: 1}, RefusedByScenario: 2},
		},
		{
			[]string{"refuse:9007199254740993:422"},
			[]step{{id: "1", n: 1, code: 422}},
			Summary{RefusedByScenario: 1},
		},
		{
			[]string{"refuse:r-c-2"},
			[]step{{id: "1", n: 1, code: 200}, {id: "2", n: 2, code: 400}},
			Summary{Requests: 1, Events: Events{Notify: 1}, RefusedByScenario: 1},
		},
		{
			[]string{fmt.Sprintf("too-large:%d", len(array(message("c", 1))))},
			[]step{{id: "1", n: 1, code: 200}, {id: "2", n: 10, code: 413}},
			Summary{Requests: 1, Events: Events{Notify: 1}, RefusedByScenario: 1},
		},
		{
			[]string{"busy:2:3"},
			[]step{
				{id: "1", n: 1, code: 200}, {id: "2", n: 2, code: 429, header: "Retry-After: 3"},
				{wait: 1500 * time.Millisecond, id: "2", n: 2, code: 429, header: "Retry-After: 2"},
				{wait: 1500 * time.Millisecond, id: "2", n: 2, code: 200}, {id: "3", n: 3, code: 200}, {id: "4", n: 4, code: 429},
			},
			Summary{Requests: 3, Events: Events{Notify: 3}, RefusedByScenario: 3, TooEarly: 1},
		},
		{
			[]string{"cut:2"},
			[]step{{id: "1", n: 1, code: 200}, {id: "2", n: 2, code: 0}, {id: "2", n: 2, code: 200}},
			Summary{Requests: 2, Events: Events{Notify: 2}, RefusedByScenario: 1},
		},
		{
			[]string{"cut:2:answer"},
			[]step{{id: "1", n: 1, code: 200}, {id: "2", n: 2, code: 0}, {id: "2", n: 2, code: 200}, {id: "3", n: 3, code: 0}, {id: "3", n: 3, code: 200}},
			Summary{Requests: 5, Events: Events{Notify: 3}, RepeatedIDs: 2},
		},
		{
			[]string{"late:2:15s"},
			[]step{
				{id: "1", n: 1, code: 200}, {id: "2", n: 2, took: 10 * time.Second, timeout: 10 * time.Second}, {id: "2", n: 2, code: 200},
				{id: "3", n: 3, code: 200}, {id: "4", n: 4, code: 200, took: 15 * time.Second},
			},
			Summary{Requests: 5, Events: Events{Notify: 4}, RepeatedIDs: 1},
		},
		{
			[]string{"fickle:2"},
			[]step{{id: "1", n: 1, code: 200}, {id: "1", n: 1, code: 200}, {id: "2", n: 2, code: 400}, {id: "2", n: 2, code: 200}},
			Summary{Requests: 3, Events: Events{Notify: 2}, RepeatedIDs: 1, RefusedByScenario: 1},
		},
		{
			[]string{"endless:2"},
			[]step{{id: "1", n: 1, code: 200}, {id: "2", n: 2, took: time.Minute, timeout: time.Minute}},
			Summary{Requests: 2, Events: Events{Notify: 2}},
		},
		{
			[]string{"flood"},
			[]step{{id: "1", n: 1, code: 200, header: "X-Flood-0: " + strings.Repeat("x", 1<<10)}, {id: "1", n: 1, code: 200}},
			Summary{Requests: 2, Events: Events{Notify: 1}, RepeatedIDs: 1},
		},
		{ // the first wins, and the other does not count what it has answered
			[]string{"refuse:r-c-1", "cut:2"},
			[]step{{id: "1", n: 1, code: 400}, {id: "2", n: 2, code: 200}, {id: "1", n: 1, code: 400}, {id: "3", n: 3, code: 0}},
			Summary{Requests: 1, Events: Events{Notify: 1}, RefusedByScenario: 3},
		},
		{
			[]string{"errors:100:503:7"},
			[]step{{id: "1", n: 1, code: 503, header: "Retry-After: 7"}},
			Summary{RefusedByScenario: 1},
		},
		{
			[]string{"cut:100%"},
			[]step{{id: "1", n: 1, code: 0}, {id: "1", n: 1, code: 0}},
			Summary{RefusedByScenario: 2},
		},
		{
			[]string{"cut:100%:answer"},
			[]step{{id: "1", n: 1, code: 0}, {id: "1", n: 1, code: 0}},
			Summary{Requests: 2, Events: Events{Notify: 1}, RepeatedIDs: 1},
		},
		{ // again and again, and not only when it comes first
			[]string{"late:100%:15s"},
			[]step{{id: "1", n: 1, code: 200, took: 15 * time.Second}, {id: "1", n: 1, code: 200, took: 15 * time.Second}},
			Summary{Requests: 2, Events: Events{Notify: 1}, RepeatedIDs: 1},
		},
		{ // phases, one after the other and two at once
			[]string{"during:10s:10s:slow:1s", "during:15s:10s:errors:100:429:2", "during:30s:5s:cut:1", "during:40s:10s:late:100%:3s"},
			[]step{
				{id: "1", n: 1, code: 200},
				{wait: 10 * time.Second, id: "2", n: 2, code: 200, took: time.Second},
				{wait: 5 * time.Second, id: "3", n: 3, code: 429, took: time.Second, header: "Retry-After: 2"},
				{wait: 5 * time.Second, id: "3", n: 3, code: 429},
				{wait: 5 * time.Second, id: "3", n: 3, code: 200},
				{wait: 5 * time.Second, id: "4", n: 4, code: 0},
				{wait: 5 * time.Second, id: "4", n: 4, code: 200},
				{wait: 5 * time.Second, id: "5", n: 5, code: 200, took: 3 * time.Second},
				{wait: 6 * time.Second, id: "5", n: 5, code: 200},
			},
			Summary{Requests: 6, Events: Events{Notify: 5}, RepeatedIDs: 1, RefusedByScenario: 3},
		},
		{ // what has times of its own has them from then on, and not for longer
			[]string{"during:10s:10s:status:503:4s:8s", "during:30s:10s:during:5s:2s:slow:1s", "during:50s:1s:during:1s:1s:slow:1s"},
			[]step{
				{wait: 17 * time.Second, id: "1", n: 1, code: 200},
				{wait: time.Second, id: "2", n: 2, code: 503},
				{wait: 2 * time.Second, id: "2", n: 2, code: 200},
				{wait: 15 * time.Second, id: "3", n: 3, code: 200, took: time.Second},
				{wait: 1 * time.Second, id: "4", n: 4, code: 200},
				{wait: 14 * time.Second, id: "5", n: 5, code: 200},
			},
			Summary{Requests: 5, Events: Events{Notify: 5}, RefusedByScenario: 1},
		},
		{ // down is the listener's
			[]string{"down:0s:1m"},
			[]step{{id: "1", n: 1, code: 200}},
			Summary{Requests: 1, Events: Events{Notify: 1}},
		},
	}
	played := make(map[string]bool)
	for _, tt := range tests {
		for _, text := range tt.scenarios {
			name, _, _ := strings.Cut(text, ":")
			played[name] = true
		}
		t.Run(strings.Join(tt.scenarios, " "), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, r := play(t, tt.scenarios...)
				for i, step := range tt.steps {
					time.Sleep(step.wait)
					if step.timeout == 0 {
						step.timeout = time.Hour
					}
					begun := time.Now()
					code, header := knockFor(t, p, step.id, step.n, step.timeout)
					if took := time.Since(begun); code != step.code || took != step.took {
						t.Errorf("step %d is answered %d after %s, want %d after %s", i, code, took, step.code, step.took)
					}
					if name, value, _ := strings.Cut(step.header, ": "); header.Get(name) != value {
						t.Errorf("step %d has the header %s: %q, want %q", i, name, header.Get(name), value)
					}
				}
				if diff := cmp.Diff(tt.want, p.Add(r.Summary(nil))); diff != "" {
					t.Errorf("summary (-want +got):\n%s", diff)
				}
			})
		})
	}
	for _, s := range Scenarios() {
		if name, _, _ := strings.Cut(s.Example, ":"); !played[name] {
			t.Errorf("no test plays %s", name)
		}
	}
}

func TestSlowIsUniformBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := play(t, "slow:1s:3s")
		const all = 200
		var sum time.Duration
		for i := range all {
			begun := time.Now()
			knock(t, p, fmt.Sprint(i), i+1)
			took := time.Since(begun)
			if took < time.Second || took > 3*time.Second {
				t.Fatalf("the answer takes %s, want 1s to 3s", took)
			}
			sum += took
		}
		if mean := sum / all; mean < 1850*time.Millisecond || mean > 2150*time.Millisecond {
			t.Errorf("the mean is %s, want about 2s", mean)
		}
	})
}

func TestSlowSpoilsNoOtherAnswer(t *testing.T) {
	// What next refuses is answered as it refuses it, also where a scenario would have spoilt the answer.
	for _, scenario := range []string{"slow:1ms", "cut:1:answer", "late:1:1h", "endless", "flood", "status:202:1m"} {
		synctest.Test(t, func(t *testing.T) {
			p, r := play(t, scenario)
			if code := post(t, p, "msg.other", "1", "[]"); code != http.StatusBadRequest {
				t.Errorf("%s: a bad request is answered %d, want 400", scenario, code)
			}
			if got := p.Add(r.Summary(nil)); got != (Summary{Requests: 1, BadRequests: 1}) {
				t.Errorf("%s: summary = %+v", scenario, got)
			}
		})
	}
}

func TestErrorsAreDecidedBySeedIDAndAttempt(t *testing.T) {
	s, err := ParseScenario("errors:25")
	if err != nil {
		t.Fatal(err)
	}
	const ids, attempts = 400, 5
	// answers are those of each id, in its order, whatever the order of ids.
	answers := func(seed uint64, order []int) (all [ids][attempts]bool, failed int) {
		p := Play(New(Config{}), seed, s)
		for a := range attempts {
			for _, i := range order {
				code, _ := knock(t, p, fmt.Sprint(i), i+1)
				if all[i][a] = code == http.StatusInternalServerError; all[i][a] {
					failed++
				}
			}
		}
		return all, failed
	}
	forward := make([]int, ids)
	for i := range forward {
		forward[i] = i
	}
	backward := slices.Clone(forward)
	slices.Reverse(backward)
	one, failed := answers(7, forward)
	if failed < ids*attempts*22/100 || failed > ids*attempts*28/100 {
		t.Errorf("%d of %d requests fail, want about a quarter", failed, ids*attempts)
	}
	if same, _ := answers(7, backward); same != one {
		t.Error("the order of the ids changes what fails")
	}
	if other, _ := answers(8, forward); other == one {
		t.Error("another seed changes nothing")
	}
}

func TestTwoScenariosOfChanceDecideApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := play(t, "slow:0s:1s", "errors:50:500", "errors:50:501")
		const all = 1000
		codes := make(map[int]int)
		early := 0 // answers of 500 within 0.5 s
		for i := range all {
			begun := time.Now()
			code, _ := knock(t, p, fmt.Sprint(i), i+1)
			codes[code]++
			if code == 500 && time.Since(begun) < 500*time.Millisecond {
				early++
			}
		}
		if c := codes[500]; c < 450 || c > 550 {
			t.Errorf("%d are answered 500, want about 500", c)
		}
		if c := codes[501]; c < 200 || c > 300 {
			t.Errorf("%d are answered 501, want about 250", c)
		}
		if early < 200 || early > 300 {
			t.Errorf("%d of the 500s are early, want about 250", early)
		}
	})
}

func TestAttemptsOfAnIDDecideApart(t *testing.T) {
	p, _ := play(t, "errors:50")
	const ids = 1000
	both := 0
	for i := range ids {
		first, _ := knock(t, p, fmt.Sprint(i), i+1)
		second, _ := knock(t, p, fmt.Sprint(i), i+1)
		if first == 500 && second == 500 {
			both++
		}
	}
	if both < 200 || both > 300 {
		t.Errorf("both attempts fail for %d ids, want about 250", both)
	}
}

func TestNamesOfItems(t *testing.T) {
	item := strings.NewReplacer(`"message_idstr":"9007199254740993"`, `"message_idstr":"m:1"`).Replace(message("c", 1))
	for _, tt := range []struct {
		scenario, event, body string
		want                  int
	}{
		{"fail:m:1", "msg.notify", array(message("c", 2), item), 500},
		{"fail:m:1:503", "msg.offline", array(item), 503},
		{"fail:9007199254740993", "msg.offline", item, 500}, // one object
		{"refuse:m", "msg.notify", array(item), 200},
		{"refuse:g", "msg.notify", array(item), 200}, // the channel is no name
		{"refuse:u-1", "user.onlinestatus", texts("u-0-1-5-1-1", "u-1-0-1-5-1-1"), 400},
		{"refuse:u-1", "user.onlinestatus", texts("u-0-1-5-1-1"), 200},
		{"refuse:u", "user.onlinestatus", "no body", 400}, // the receiver's
		{"fail:503", "user.onlinestatus", texts("503-0-1-5-1-1"), 500},
	} {
		p, _ := play(t, tt.scenario)
		if code := post(t, p, tt.event, "1", tt.body); code != tt.want {
			t.Errorf("%s answers %d to %s, want %d", tt.scenario, code, tt.body, tt.want)
		}
	}
}

func TestRedirectsMustNotBeFollowed(t *testing.T) {
	p, r := play(t, "status:307:1h")
	server := httptest.NewServer(p)
	defer server.Close()
	resp, err := server.Client().Post(server.URL+"/?event=msg.notify", "", strings.NewReader(array(message("c", 1)))) // it follows
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	got := p.Add(r.Summary(nil))
	if want := (Summary{RefusedByScenario: 1, FollowedRedirects: 1}); got != want || !got.Wrong() {
		t.Errorf("summary = %+v, wrong %t, want %+v, wrong", got, got.Wrong(), want)
	}
}

func TestParseScenarioRefuses(t *testing.T) {
	for _, tt := range []struct{ text, problem string }{
		{"", "is none of slow:D[:D2], down:AFTER:FOR, "},
		{"bogus", "endless[:EVERY]"},
		{"Slow:1s", "is none of"},
		{"slow", "too few arguments (slow:D[:D2]); one that works: slow:50ms"},
		{"slow:50", `has D "50", no duration`},
		{"slow:-1s", "less than 0s"},
		{"slow:2s:1s", "has D2 1s, less than 2s"},
		{"slow:1s:2s:3s", "too many arguments"},
		{"down:1s", "too few"},
		{"down:1s:0s", "FOR"},
		{"down:x:1s", "AFTER"},
		{"status:404", "too few"},
		{"status:199:1s", "CODE"},
		{"status:600:1s", "CODE"},
		{"status:404:0s", "FOR"},
		{"status:404:1s:x", "AFTER"},
		{"errors:0", "PERCENT"},
		{"errors:101", "PERCENT"},
		{"errors:NaN", "PERCENT"},
		{"errors:1:200", "CODE"},
		{"fail", "TEXT"},
		{"fail::500", "TEXT"},
		{"refuse:", "TEXT"},
		{"too-large", "BYTES"},
		{"too-large:1GiB", "BYTES"},
		{"too-large:-1", "BYTES"},
		{"too-large:2048MiB", "BYTES"},
		{"busy:2", "too few"},
		{"busy:0:1", "EVERY"},
		{"busy:1:x", "SECONDS"},
		{"cut:1.5", "EVERY"},
		{"cut:1:body", "answer"},
		{"late:1", "too few"},
		{"late:1:0s", "less than 1ns"},
		{"fickle", "EVERY"},
		{"endless:0", "EVERY"},
		{"flood:x", "EVERY"},
		{"cut:0%", "PERCENT"},
		{"late:101%:1s", "PERCENT"},
		{"late:x%:1s", "PERCENT"},
		{"errors:1:503:0", "SECONDS"},
		{"errors:1:503:1:1", "too many"},
		{"during:1s:1s", "too few"},
		{"during:x:1s:cut:1", "AFTER"},
		{"during:1s:0s:cut:1", "FOR"},
		{"during:1s:1s:cut:0", `plays "cut:0", which has EVERY "0"`},
		{"during:1s:1s:bogus", `plays "bogus", which is none of`},
	} {
		_, err := ParseScenario(tt.text)
		scenarioErr, ok := errors.AsType[*ScenarioError](err)
		if !ok || !strings.Contains(err.Error(), tt.problem) || strings.Contains(err.Error(), "\n") {
			t.Errorf("ParseScenario(%q) = %v, want a line with %q", tt.text, err, tt.problem)
			continue
		}
		if _, err := ParseScenario(scenarioErr.Example); err != nil {
			t.Errorf("the example of %q does not work: %v", tt.text, err)
		}
	}
}

func TestParseScenarioTakes(t *testing.T) {
	for _, s := range Scenarios() {
		name, _, _ := strings.Cut(strings.ReplaceAll(s.Form, "[", ""), ":")
		parsed, err := ParseScenario(s.Example)
		if err != nil || parsed.String() != s.Example || !strings.HasPrefix(s.Example, name) || s.Doc == "" {
			t.Errorf("%+v is parsed to %v, %v", s, parsed, err)
		}
	}
	for text, want := range map[string]int{"0": 0, "7": 7, "7B": 7, "3KiB": 3 << 10, "2MiB": 2 << 20} {
		if got, err := parseSize(text); got != want || err != nil {
			t.Errorf("parseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
}

func TestOutagesAreKeptApart(t *testing.T) {
	var all []Scenario
	for _, text := range []string{"down:10s:5s", "down:1s:2s", "slow:1s", "down:12s:1s", "down:15s:1s", "down:2s:3s"} {
		s, err := ParseScenario(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	want := []window{{time.Second, 4 * time.Second}, {10 * time.Second, 6 * time.Second}}
	if got := outages(all); !slices.Equal(got, want) {
		t.Errorf("outages = %v, want %v", got, want)
	}
}

// TestDuringDown reads when the port is closed; TestDownClosesThePort closes one.
func TestDuringDown(t *testing.T) {
	var scenarios []Scenario
	for _, text := range []string{"during:10s:10s:down:2s:3s", "during:30s:10s:down:8s:1m", "during:50s:1s:down:2s:1s"} {
		s, err := ParseScenario(text)
		if err != nil {
			t.Fatal(err)
		}
		scenarios = append(scenarios, s)
	}
	want := []window{{12 * time.Second, 3 * time.Second}, {38 * time.Second, 2 * time.Second}}
	if diff := cmp.Diff(want, outages(scenarios), cmp.AllowUnexported(window{})); diff != "" {
		t.Errorf("outages (-want +got):\n%s", diff)
	}
}

func TestPercentagesAreDecidedBySeedIDAndAttempt(t *testing.T) {
	for _, text := range []string{"cut:30%", "late:30%:1s"} {
		synctest.Test(t, func(t *testing.T) {
			spoiled := func(ids []string) map[string]bool {
				p, _ := play(t, text)
				got := make(map[string]bool)
				for _, id := range ids {
					for attempt := range 4 {
						begun := time.Now()
						code, _ := knock(t, p, id, 1)
						got[fmt.Sprint(id, attempt)] = code == 0 || time.Since(begun) > 0
					}
				}
				return got
			}
			var ids []string
			for i := range 500 {
				ids = append(ids, fmt.Sprint("id", i))
			}
			first := spoiled(ids)
			slices.Reverse(ids)
			if diff := cmp.Diff(first, spoiled(ids)); diff != "" {
				t.Errorf("%s: in another order (-first +second):\n%s", text, diff)
			}
			n := 0
			for _, hit := range first {
				if hit {
					n++
				}
			}
			if n < 500 || n > 700 {
				t.Errorf("%s spoils %d of 2000", text, n)
			}
		})
	}
}

func TestDownClosesThePort(t *testing.T) {
	s, err := ParseScenario("down:150ms:1s")
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	l, err := Listen(t.Context(), "127.0.0.1:0", s)
	if err != nil {
		t.Fatal(err)
	}
	p, r := play(t)
	server := &http.Server{Handler: p}
	var served sync.WaitGroup
	served.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve = %v", err)
		}
	})
	addr := l.Addr().String()
	silent, err := net.Dial("tcp", addr) // open before the outage
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	_ = silent.SetReadDeadline(begun.Add(20 * time.Second))
	if n, err := silent.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) || time.Since(begun) < 150*time.Millisecond {
		t.Errorf("an open connection reads %d, %v after %s, want its end after 150ms", n, err, time.Since(begun))
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	refused := 0
	for deadline := begun.Add(20 * time.Second); ; {
		resp, err := client.Post("http://"+addr+"/?event=msg.notify", "", strings.NewReader(array(message("c", 1))))
		if err == nil {
			_ = resp.Body.Close()
			break
		}
		refused++
		if time.Now().After(deadline) {
			t.Fatalf("it does not come back: %v", err)
		}
		time.Sleep(time.Millisecond)
	}
	if since := time.Since(begun); since < 1150*time.Millisecond || refused == 0 {
		t.Errorf("it is back after %s and %d refused connections, want 1.15s and some", since, refused)
	}
	if got := r.Summary(nil).Requests; got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
	_ = server.Close()
	served.Wait()
	if err := l.Close(); err != nil {
		t.Errorf("a second Close = %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close = %v", err)
	}
}

func TestCloseWhileDown(t *testing.T) {
	s, err := ParseScenario("down:0s:1h")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), "127.0.0.1:0", s)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		_ = conn.Close()
		if time.Now().After(deadline) {
			t.Fatal("it does not go down")
		}
	}
	_ = l.Close()
	select {
	case err := <-accepted:
		if err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept = %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("Accept does not end")
	}
}

// TestOverTheWire sees what a sender sees of the scenarios that break HTTP itself.
func TestOverTheWire(t *testing.T) {
	send := func(t *testing.T, server *httptest.Server, id string, n int, timeout time.Duration) (*http.Response, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		t.Cleanup(cancel)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+"/?event=msg.notify", strings.NewReader(array(message("c", n))))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("webhook-id", id)
		resp, err := server.Client().Do(req)
		if err == nil {
			t.Cleanup(func() { _ = resp.Body.Close() })
		}
		return resp, err
	}
	// served has each test over both versions of HTTP.
	served := func(t *testing.T, test func(t *testing.T, server *httptest.Server, sum func() Summary), scenarios ...string) {
		for _, version := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s HTTP %d", scenarios[0], version), func(t *testing.T) {
				p, r := play(t, scenarios...)
				server := httptest.NewUnstartedServer(p)
				server.EnableHTTP2 = version == 2
				server.StartTLS()
				t.Cleanup(server.Close)
				test(t, server, func() Summary { return p.Add(r.Summary(nil)) })
			})
		}
	}
	served(t, func(t *testing.T, server *httptest.Server, sum func() Summary) {
		if resp, err := send(t, server, "1", 1, 20*time.Second); err == nil {
			t.Errorf("answered %s", resp.Status)
		}
		if got := sum(); got != (Summary{RefusedByScenario: 1}) {
			t.Errorf("summary = %+v", got)
		}
	}, "cut:1")
	served(t, func(t *testing.T, server *httptest.Server, sum func() Summary) {
		if resp, err := send(t, server, "1", 1, 20*time.Second); err == nil {
			t.Errorf("answered %s within its header", resp.Status)
		}
		resp, err := send(t, server, "2", 2, 20*time.Second)
		if err != nil {
			t.Fatalf("no header: %v", err)
		}
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("the whole body %q", body)
		}
		if got := sum(); got != (Summary{Requests: 2, Events: Events{Notify: 2}}) {
			t.Errorf("summary = %+v", got)
		}
	}, "cut:1:answer")
	served(t, func(t *testing.T, server *httptest.Server, sum func() Summary) {
		resp, err := send(t, server, "1", 1, 500*time.Millisecond)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("answered %v, %v", resp, err)
		}
		if body, err := io.ReadAll(resp.Body); !errors.Is(err, context.DeadlineExceeded) || len(body) == 0 {
			t.Errorf("%d bytes of the body, %v", len(body), err)
		}
		if got := sum(); got.Events.Notify != 1 {
			t.Errorf("summary = %+v", got)
		}
	}, "endless")
	served(t, func(t *testing.T, server *httptest.Server, sum func() Summary) {
		if resp, err := send(t, server, "1", 1, 20*time.Second); err == nil {
			t.Errorf("answered %s with a header of %d MiB, want more than Go's client takes", resp.Status, floodHeader>>20)
		}
		resp, err := send(t, server, "2", 2, 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != floodBody || err != nil {
			t.Errorf("a body of %d bytes, %v, want %d", n, err, floodBody)
		}
		if got := sum(); got.Events.Notify != 2 {
			t.Errorf("summary = %+v", got)
		}
	}, "flood")
	served(t, func(t *testing.T, server *httptest.Server, sum func() Summary) {
		if _, err := send(t, server, "1", 1, 100*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the answer is %v, want none", err)
		}
		if resp, err := send(t, server, "1", 1, 20*time.Second); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("the second time it is answered %v, %v", resp, err)
		}
		if got := sum(); got != (Summary{Requests: 2, Events: Events{Notify: 1}, RepeatedIDs: 1}) {
			t.Errorf("summary = %+v", got)
		}
	}, "late:1:1h") // and server.Close does not wait for an hour
}

func TestScenariosFromManySenders(t *testing.T) {
	synctest.Test(t, manySenders)
}

func manySenders(t *testing.T) {
	p, r := play(t, "slow:0s:1ms", "errors:20", "busy:50:1", "refuse:r-c-3", "cut:10", "cut:11:answer", "fickle:9", "late:13:5ms")
	var all sync.WaitGroup
	const senders, each = 8, 25
	for s := range senders {
		all.Go(func() {
			for i := range each {
				n := 10 + s*each + i
				for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
					if code, _ := knock(t, p, fmt.Sprint(n), n); code == http.StatusOK {
						break
					}
					if time.Now().After(deadline) {
						t.Errorf("request %d is never taken", n)
						return
					}
				}
			}
		})
	}
	all.Wait()
	got := p.Add(r.Summary(nil))
	if got.Events.Notify != senders*each || got.DuplicatesAfterDedupe != 0 || got.RefusedByScenario == 0 || got.TooEarly == 0 {
		t.Errorf("summary = %+v", got)
	}
}

func TestOrderByChannel(t *testing.T) {
	in := func(channel string, n int) string {
		return strings.Replace(message("c", n), `"channel_id":"g"`, fmt.Sprintf(`"channel_id":%q`, channel), 1)
	}
	for _, tt := range []struct {
		byChannel bool
		want      int64
	}{{false, 2}, {true, 1}} {
		r := New(Config{OrderByChannel: tt.byChannel})
		post(t, r, "msg.notify", "1", array(in("g", 2), in("h", 1)))            // a fall for the sender alone
		post(t, r, "msg.notify", "2", array(in("g", 5)))                        //
		post(t, r, "msg.notify", "3", array(in("g", 4)))                        // a fall for both
		post(t, r, "msg.offline", "4", array(message("c", 2, "a"), in("h", 3))) //
		if got := r.Summary(nil).OutOfOrder; got != tt.want {
			t.Errorf("by channel %t: %d out of order, want %d", tt.byChannel, got, tt.want)
		}
	}
	r := New(Config{OrderByChannel: true})
	post(t, r, "msg.offline", "1", array(message("c", 2, "a"), strings.Replace(message("c", 1, "a"), `"channel_id":"g"`, `"channel_id":"h"`, 1)))
	if got := r.Summary(nil).OutOfOrder; got != 1 {
		t.Errorf("msg.offline in any channel: %d out of order, want 1", got)
	}
}

func TestPlayerHandsOnTheWholeBody(t *testing.T) {
	var got []byte
	p := Play(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { got, _ = io.ReadAll(req.Body) }), 1, Scenario{slow: new(delay)})
	body := bytes.Repeat([]byte("x"), defaultMaxBody+5)
	p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body)))
	if len(got) != len(body) {
		t.Errorf("next reads %d bytes, want %d", len(got), len(body))
	}
}

// TestAcceptedAsItGoesDown has the listener go down between the acceptance of a connection and its entry.
func TestAcceptedAsItGoesDown(t *testing.T) {
	s, err := ParseScenario("down:1h:1h")
	if err != nil {
		t.Fatal(err)
	}
	open, err := Listen(t.Context(), "127.0.0.1:0", s)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	l := open.(*listener)
	accepted, far := net.Pipe()
	defer far.Close()
	before := l.open
	l.down()
	if conn := l.keep(before, accepted); conn != nil {
		t.Error("the connection is kept")
	}
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection reads %v, want its end", err)
	}
}
