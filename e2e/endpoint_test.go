package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/receiver"
	"github.com/offhook/offhook/internal/truth"
	"github.com/offhook/offhook/schemas"
)

// endpoint is a receiver on a port of its own. It keeps all that it took.
type endpoint struct {
	t        *testing.T
	addr     string
	receiver *receiver.Receiver

	mu       sync.Mutex
	server   *http.Server
	served   chan struct{}
	answer   func(event schemas.Event) int // 0: takes the request
	held     map[schemas.Event]*hold
	requests []taken
	refused  int
	screened func(r taken) int // see screen

	player atomic.Pointer[receiver.Player] // plays scenarios before all else; nil: none
	played []*receiver.Player              // those before it; the test's own goroutine alone knows them
	down   bool                            // the scenario of that name is played; known to the same
}

// taken is a request that was taken.
type taken struct {
	event  schemas.Event
	id     string
	query  string
	header http.Header
	body   []byte
}

// hold keeps one request from its answer, though it is taken.
type hold struct {
	event   schemas.Event
	reached chan struct{} // closed when the request is there
	release chan struct{}
}

// newEndpoint listens on loopback.
func newEndpoint(t *testing.T, secrets ...[]byte) *endpoint {
	t.Helper()
	e := &endpoint{t: t, addr: "127.0.0.1:0", held: make(map[schemas.Event]*hold)}
	e.receiver = receiver.New(receiver.Config{Secrets: secrets})
	e.open()
	t.Cleanup(func() {
		e.mu.Lock()
		for event, h := range e.held {
			close(h.release)
			delete(e.held, event)
		}
		e.mu.Unlock()
		e.close()
	})
	return e
}

// open listens, after the first time on the same port as before, and is down as the scenarios of that name say.
func (e *endpoint) open(scenarios ...receiver.Scenario) {
	e.t.Helper()
	var listener net.Listener
	kafkatest.Wait(e.t, 10*time.Second, "port "+e.addr, func() (ok bool) {
		var err error
		listener, err = receiver.Listen(context.Background(), e.addr, scenarios...)
		return err == nil
	})
	e.addr = listener.Addr().String()
	// The player is outermost: it cuts a connection by a panic, and no lock may be held around that.
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := e.player.Load(); p != nil {
			p.ServeHTTP(w, r)
			return
		}
		e.ServeHTTP(w, r)
	})
	server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			e.t.Errorf("serve the endpoint: %v", err)
		}
	}()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.server, e.served = server, served
}

// close ends all connections and refuses new ones until open.
func (e *endpoint) close() {
	e.mu.Lock()
	server, served := e.server, e.served
	e.mu.Unlock()
	_ = server.Close() // listener and connections are gone either way
	<-served
}

func (e *endpoint) url() string { return "http://" + e.addr + "/hook" }

// play has the endpoint misbehave from now on as the scenarios say; none: it does no more.
func (e *endpoint) play(scenarios ...string) {
	e.t.Helper()
	parsed := make([]receiver.Scenario, len(scenarios))
	down := false
	for i, text := range scenarios {
		var err error
		if parsed[i], err = receiver.ParseScenario(text); err != nil {
			e.t.Fatal(err)
		}
		down = down || strings.HasPrefix(text, "down:")
	}
	if player := e.player.Swap(receiver.Play(e, 1, parsed...)); player != nil {
		e.played = append(e.played, player)
	}
	if down || e.down { // the listener plays that one
		e.close()
		e.open(parsed...)
	}
	e.down = down
}

// answers makes the endpoint answer as f says; 0 takes the request, nil takes all.
func (e *endpoint) answers(f func(event schemas.Event) int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = f
}

// screen has f see each request before it is taken. It may wait, and is called by several goroutines at once; 0 lets the request
// through, another status refuses it. nil: no screen.
func (e *endpoint) screen(f func(r taken) int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.screened = f
}

// hold keeps the next request of an event from its answer until release is closed; it is taken all the same.
func (e *endpoint) hold(event schemas.Event) *hold {
	h := &hold{event: event, reached: make(chan struct{}), release: make(chan struct{})}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.held[event] = h
	return h
}

// ServeHTTP takes, refuses or holds one request.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the sender is gone
	}
	event := schemas.Event(r.URL.Query().Get("event"))
	request := taken{event: event, id: r.Header.Get("webhook-id"), query: r.URL.RawQuery, header: r.Header.Clone(), body: body}
	e.mu.Lock()
	if screen := e.screened; screen != nil {
		e.mu.Unlock()
		status := screen(request)
		e.mu.Lock()
		if status != 0 {
			e.refused++
			e.mu.Unlock()
			w.WriteHeader(status)
			return
		}
	}
	if e.answer != nil {
		if status := e.answer(event); status != 0 && status/100 != 2 {
			e.refused++
			e.mu.Unlock()
			w.WriteHeader(status)
			return
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	buffered := &answer{header: make(http.Header), status: http.StatusOK}
	// Under the lock, so that both keep the requests in one order.
	e.receiver.ServeHTTP(buffered, r)
	e.requests = append(e.requests, request)
	h := e.held[event]
	delete(e.held, event)
	e.mu.Unlock()
	if h != nil {
		close(h.reached)
		<-h.release
	}
	w.WriteHeader(buffered.status)
	_, _ = w.Write(buffered.body.Bytes()) // the sender may be gone
}

// answer is what the receiver answers.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// all are the requests taken so far.
func (e *endpoint) all() []taken {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.requests)
}

func (e *endpoint) refusals() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.refused
}

// items are the items of an event as they came, raw; repeated requests are left out.
func (e *endpoint) items(event schemas.Event) []string {
	e.t.Helper()
	var items []string
	known := make(map[string]bool)
	for _, r := range e.all() {
		if r.event != event || known[r.id] {
			continue
		}
		known[r.id] = true
		var raw []json.RawMessage
		if err := json.Unmarshal(r.body, &raw); err != nil {
			e.t.Fatalf("decode the body of a %s request: %v: %s", event, err, r.body)
		}
		for _, item := range raw {
			items = append(items, string(item))
		}
	}
	return items
}

// statuses are the user.onlinestatus items, without their quotes.
func (e *endpoint) statuses() []string {
	e.t.Helper()
	var statuses []string
	for _, item := range e.items(schemas.EventOnlineStatus) {
		var text string
		if err := json.Unmarshal([]byte(item), &text); err != nil {
			e.t.Fatalf("decode a user.onlinestatus item: %v: %s", err, item)
		}
		statuses = append(statuses, text)
	}
	return statuses
}

// waitItems waits until n items of an event are there and returns them.
func (e *endpoint) waitItems(event schemas.Event, n int, timeout time.Duration) []string {
	e.t.Helper()
	var items []string
	deadline := time.Now().Add(timeout)
	for {
		if items = e.items(event); len(items) >= n {
			return items
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("after %v %d items of %s are there, want %d:\n%v", timeout, len(items), event, n, items)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// settle waits until all that the truth demands is there and nothing has come for quiet, and fails the test where
// anything is wrong.
func (e *endpoint) settle(t *truth.Truth, timeout, quiet time.Duration) receiver.Summary {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := e.receiver.WaitFor(ctx, t); err != nil {
		e.t.Errorf("after %v: %v", timeout, err)
	}
	for n, since := len(e.all()), time.Now(); time.Since(since) < quiet; time.Sleep(10 * time.Millisecond) {
		if m := len(e.all()); m != n {
			n, since = m, time.Now()
		}
	}
	s := e.receiver.Summary(t)
	for _, p := range append(e.played, e.player.Load()) {
		if p != nil {
			s = p.Add(s)
		}
	}
	if raw, err := json.Marshal(s); err != nil {
		e.t.Errorf("encode the summary: %v", err)
	} else if s.Wrong() {
		e.t.Errorf("the summary shows something wrong: %s", raw)
	} else {
		e.t.Logf("summary: %s", raw)
	}
	return s
}
