package main

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/offhook/offhook/schemas"
)

// queryAPI is one that says what a test has it say.
type queryAPI struct {
	*httptest.Server
	mu     sync.Mutex
	paths  []string
	tokens map[string]bool
}

// newQueryAPI serves answer for the nth request, from 1.
func newQueryAPI(t *testing.T, answer func(n int, w http.ResponseWriter)) *queryAPI {
	t.Helper()
	a := &queryAPI{tokens: make(map[string]bool)}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.paths = append(a.paths, r.Method+" "+r.URL.EscapedPath())
		a.tokens[r.Header.Get("Authorization")] = true
		n := len(a.paths)
		a.mu.Unlock()
		answer(n, w)
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *queryAPI) asked() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.paths)
}

func answerUser(w http.ResponseWriter, u schemas.User) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(schemas.AppendQueryJSON(nil, &u))
}

func answerProblem(w http.ResponseWriter, status int, after, detail string) {
	if after != "" {
		w.Header().Set("Retry-After", after)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = w.Write(schemas.AppendQueryJSON(nil, &schemas.Problem{Title: http.StatusText(status), Status: status, Detail: detail}))
}

var (
	somebody = schemas.User{
		UID: "a b/c", Online: true, Total: 3, Devices: []schemas.Device{{DeviceFlag: 0, Count: 1}, {DeviceFlag: 1, Count: 2}}, ConnectionsCut: true,
		Connections: []schemas.UserConnection{
			{NodeID: "1", ConnID: "7", DeviceFlag: 1, Background: true, Since: 1_767_225_600_000},
			{NodeID: "gate\x1b[2J", ConnID: "8", Since: 1_767_225_601_000},
		},
	}
	nobody = schemas.User{UID: "nobody", OfflinePush: true, Devices: []schemas.Device{}, Connections: []schemas.UserConnection{}}
)

// TestUsers: a user a request, with the token, as a table for people or as JSON, one object a line.
func TestUsers(t *testing.T) {
	serve := func() *queryAPI {
		return newQueryAPI(t, func(n int, w http.ResponseWriter) { answerUser(w, []schemas.User{somebody, nobody}[(n-1)%2]) })
	}
	a := serve()
	code, stdout, stderr := command(t, environment{"OFFHOOK_QUERY_TOKEN": "0123456789abcdef"}, "users", "--json", "--url", a.URL+"/", somebody.UID, nobody.UID)
	want := string(schemas.AppendQueryJSON(nil, &somebody)) + "\n" + string(schemas.AppendQueryJSON(nil, &nobody)) + "\n"
	if code != exitOK || stdout != want || stderr != "" {
		t.Errorf("exit code %d, stderr %q, stdout\n%s\nwant\n%s", code, stderr, stdout, want)
	}
	if diff := cmp.Diff([]string{"GET /v1/users/a%20b%2Fc", "GET /v1/users/nobody"}, a.asked()); diff != "" {
		t.Error(diff)
	}
	if want := map[string]bool{"Bearer 0123456789abcdef": true}; !cmp.Equal(a.tokens, want) {
		t.Errorf("it sends %v", a.tokens)
	}

	a = serve()
	code, stdout, _ = command(t, nil, "users", "--url", a.URL, somebody.UID, nobody.UID)
	var lines [][]string
	for line := range strings.Lines(stdout) {
		lines = append(lines, strings.Fields(line))
	}
	wantLines := [][]string{
		{"UID", "ONLINE", "CONNECTIONS", "NODE", "CONN", "FLAG", "SINCE", "BACKGROUND"},
		{"a", "b/c", "true", "3", "1", "7", "1", "2026-01-01T00:00:00Z", "true"},
		{`"gate\x1b[2J"`, "8", "0", "2026-01-01T00:00:01Z", "false"},
		{"…"},
		{"nobody", "false", "0"},
	}
	if diff := cmp.Diff(wantLines, lines); code != exitOK || diff != "" {
		t.Errorf("exit code %d %s", code, diff)
	}
	if want := map[string]bool{"": true}; !cmp.Equal(a.tokens, want) {
		t.Errorf("without a token it sends %v", a.tokens)
	}
}

// TestUsersTryAgain: what the API asks to be asked again is, after the time that it names, for as long as --patience says; nothing else
// is, and what is wrong is said in one line.
func TestUsersTryAgain(t *testing.T) {
	for _, tt := range []struct {
		name     string
		args     string
		answers  []func(http.ResponseWriter) // the last one again and again
		code     int
		requests int
		least    time.Duration
		says     string
	}{
		{
			"moving for a while", "", []func(http.ResponseWriter){
				func(w http.ResponseWriter) { answerProblem(w, 503, "1", "the users' partition is moving") },
				func(w http.ResponseWriter) { answerUser(w, nobody) },
			}, exitOK, 2, time.Second, "",
		},
		{
			"moving for good", "--patience 1500ms", []func(http.ResponseWriter){
				func(w http.ResponseWriter) { answerProblem(w, 503, "1", "the users' partition is moving") },
			}, exitFatal, 2, time.Second, "service unavailable: the users' partition is moving",
		},
		{
			"no patience", "--patience 0s", []func(http.ResponseWriter){
				func(w http.ResponseWriter) { answerProblem(w, 503, "1", "moving") },
			}, exitFatal, 1, 0, "moving",
		},
		{
			"a time that no one waits for", "", []func(http.ResponseWriter){
				func(w http.ResponseWriter) { answerProblem(w, 503, "3600", "moving") },
			}, exitFatal, 1, 0, "moving",
		},
		{
			"unavailable without a time", "", []func(http.ResponseWriter){
				func(w http.ResponseWriter) { answerProblem(w, 503, "", "not here") },
			}, exitFatal, 1, 0, "not here",
		},
		{
			"a wrong token", "", []func(http.ResponseWriter){
				func(w http.ResponseWriter) { answerProblem(w, 401, "1", "send Authorization: Bearer") },
			}, exitFatal, 1, 0, "unauthorized: send Authorization: Bearer",
		},
		{
			"another server", "", []func(http.ResponseWriter){
				func(w http.ResponseWriter) { http.Error(w, "page not found", http.StatusNotFound) },
			}, exitFatal, 1, 0, "is --url the OFFHOOK_OPS_ADDR of offhook",
		},
		{
			"a redirect", "", []func(http.ResponseWriter){
				func(w http.ResponseWriter) {
					w.Header().Set("Location", "http://127.0.0.1:1/")
					w.WriteHeader(http.StatusFound)
				},
			}, exitFatal, 1, 0, "is --url the OFFHOOK_OPS_ADDR of offhook",
		},
		{
			"what is no answer", "", []func(http.ResponseWriter){
				func(w http.ResponseWriter) { _, _ = w.Write([]byte("hello")) },
			}, exitFatal, 1, 0, "the answer is not what the query API gives",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newQueryAPI(t, func(n int, w http.ResponseWriter) { tt.answers[min(n, len(tt.answers))-1](w) })
			began := time.Now()
			code, stdout, stderr := command(t, nil, append(append([]string{"users", "--json", "--url", a.URL}, strings.Fields(tt.args)...), "nobody")...)
			took := time.Since(began)
			if code != tt.code || !strings.Contains(stderr, tt.says) || code != exitOK && (stdout != "" || strings.Count(stderr, "\n") != 1) {
				t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			if n := len(a.asked()); n != tt.requests || took < tt.least {
				t.Errorf("%d requests in %v, want %d in %v or more", n, took, tt.requests, tt.least)
			}
		})
	}
}
