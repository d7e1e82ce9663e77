package receiver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/offhook/offhook/internal/journal"
	"github.com/offhook/offhook/schemas"
)

// A Player is an http.Handler that plays scenarios before another, which takes what they let through. It is for tests:
// what it knows of webhook-ids grows as long as it runs. All methods may be called by several goroutines at once.
//
// Delays of the scenario slow come first. Of the other scenarios the first that has something to say about a request wins,
// in the order in which they were given, and those behind do not see, nor count, that request.
//
// A connection is cut by a panic with http.ErrAbortHandler, which net/http expects; so ends also a wait when the request's
// context ends, as it does with the server's Close.
type Player struct {
	next  http.Handler
	seed  uint64
	start time.Time
	reads bool // a rule wants the names of items
	slow  []*delay
	// journal gets what a scenario refuses; what is taken is for next to note. nil: none.
	journal *journal.Writer

	mu       sync.Mutex
	rules    []rule
	attempts map[string]int // of a webhook-id; kept for slow alone
	refused  int64
	tooEarly int64
	followed int64
}

// Play returns a handler that plays the scenarios before next. Times count from now on. The same seed makes the same
// choices where there is chance.
func Play(next http.Handler, seed uint64, scenarios ...Scenario) *Player {
	p := &Player{next: next, seed: seed, start: time.Now(), attempts: make(map[string]int)}
	for _, s := range scenarios {
		if s.slow != nil {
			p.slow = append(p.slow, s.slow)
		}
		if s.rule != nil {
			p.rules = append(p.rules, s.rule())
			p.reads = p.reads || s.reads
		}
	}
	return p
}

// Journal has all requests noted that do not reach the handler behind, as [Config.Journal] notes those that do: the two are to
// have the same. It must be called before the first request. It returns the player.
func (p *Player) Journal(w *journal.Writer) *Player {
	p.journal = w
	return p
}

// ServeHTTP plays one request.
func (p *Player) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if len(p.rules) == 0 && len(p.slow) == 0 {
		p.next.ServeHTTP(w, req)
		return
	}
	if req.URL.Path == moved {
		p.mu.Lock()
		p.followed++
		p.mu.Unlock()
		http.Error(w, "the redirect was not to be followed", http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, defaultMaxBody)) // of what is longer next sees the rest
	if err != nil {
		return // the sender is gone
	}
	s := &scene{player: p, w: w, req: req, body: body}
	if d := p.delay(req.Header.Get(headerID)); d > 0 && !sleep(req.Context(), d) {
		s.note() // that the sender is gone is no reason to forget what it sent
		panic(http.ErrAbortHandler)
	}
	if act := p.decide(s); act != nil {
		act(s)
		return
	}
	p.next.ServeHTTP(w, s.request())
}

// delay is what the scenarios slow add up to.
func (p *Player) delay(id string) (sum time.Duration) {
	if len(p.slow) == 0 {
		return 0
	}
	p.mu.Lock()
	p.attempts[id]++
	attempt := p.attempts[id]
	p.mu.Unlock()
	elapsed := time.Since(p.start)
	for i, d := range p.slow {
		if !d.during.contains(elapsed) {
			continue
		}
		sum += d.draw(^p.seed-uint64(i), id, attempt) // no seed of a rule's
	}
	return sum
}

// decide asks the rules; nil: none has anything to say.
func (p *Player) decide(s *scene) act {
	a := &asked{id: s.req.Header.Get(headerID), size: len(s.body), player: p}
	if p.reads {
		a.names = names(schemas.Event(s.req.URL.Query().Get("event")), s.body)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a.now = time.Now()
	a.elapsed = a.now.Sub(p.start)
	for i, rule := range p.rules {
		a.seed = p.seed + uint64(i)
		if act := rule(a); act != nil {
			return act
		}
	}
	return nil
}

// names are those that the scenarios fail and refuse know items by; none where the body cannot be read.
func names(event schemas.Event, body []byte) (all []string) {
	if event == schemas.EventOnlineStatus {
		items, _ := schemas.DecodeOnlineStatusBody(body)
		for _, item := range items {
			all = append(all, item.UID)
		}
		return all
	}
	items, _ := schemas.DecodeMessagesBody(body)
	for _, item := range items {
		all = append(all, item.MessageID, item.MessageIDStr, item.ClientMsgNo)
	}
	return all
}

// refuse notes and counts a request that does not reach the handler behind. False: it cannot be noted, and was answered.
func (s *scene) refuse() bool {
	s.player.mu.Lock()
	s.player.refused++
	s.player.mu.Unlock()
	if s.note() {
		return true
	}
	noJournal(s.w)
	return false
}

// note enters a request that is not taken in the journal; false: that cannot be.
func (s *scene) note() bool {
	return s.player.journal == nil || s.player.journal.Write(entryOf(s.req, s.body, false)) == nil
}

// Add enters what the player has seen into a receiver's summary.
func (p *Player) Add(s Summary) Summary {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.RefusedByScenario += p.refused
	s.TooEarly += p.tooEarly
	s.FollowedRedirects += p.followed
	return s
}

// A scene is one request that is played.
type scene struct {
	player *Player
	w      http.ResponseWriter
	req    *http.Request
	body   []byte
	taken  answer // of take
}

// An act plays a scene. The player's lock is not held.
type act func(s *scene)

// answer is an answer that waits to be sent.
type answer struct {
	header http.Header
	status int // 0: 200
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(b)
}

// request is the request with its body still to be read.
func (s *scene) request() *http.Request {
	r := s.req.WithContext(s.req.Context())
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(s.body), s.req.Body), s.req.Body}
	return r
}

// take has next take the request and keeps its answer. Where next did not take it, that is answered at once, and the
// scene is over: false.
func (s *scene) take() bool {
	s.taken.header = make(http.Header)
	s.player.next.ServeHTTP(&s.taken, s.request())
	s.taken.WriteHeader(http.StatusOK)
	if s.taken.status/100 == 2 {
		return true
	}
	s.answer()
	return false
}

// answer sends what take has kept.
func (s *scene) answer() {
	maps.Copy(s.w.Header(), s.taken.header)
	s.w.WriteHeader(s.taken.status)
	_, _ = s.w.Write(s.taken.body.Bytes()) // the sender may be gone
}

// wait ends the scene where the sender, or the server, is gone before: a handler that returned would answer 200.
func (s *scene) wait(d time.Duration) {
	if !sleep(s.req.Context(), d) {
		panic(http.ErrAbortHandler)
	}
}

// sleep reports whether the time has passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func refuse(status int) act { return refuseWith(status, "", "") }

// refuseWith answers with one header more; name "": with none.
func refuseWith(status int, name, value string) act {
	return func(s *scene) {
		if !s.refuse() {
			return
		}
		if name != "" {
			s.w.Header().Set(name, value)
		}
		if status == http.StatusNotModified { // it has no body
			s.w.WriteHeader(status)
			return
		}
		http.Error(s.w, "refused by a scenario", status)
	}
}

// cutHeader takes the request and cuts the connection within the answer's header.
func (s *scene) cutHeader() {
	if !s.take() {
		return
	}
	conn, _, err := http.NewResponseController(s.w).Hijack()
	if err != nil { // HTTP/2 has no header that is half sent: it ends the stream
		panic(http.ErrAbortHandler)
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Le") // the sender may be gone
	_ = conn.Close()                                             // as above
}

// cutBody takes the request and cuts the connection within the answer's body.
func (s *scene) cutBody() {
	if !s.take() {
		return
	}
	s.w.Header().Set("Content-Length", "1000")
	s.w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(s.w, "half of an ans") // the sender may be gone
	_ = http.NewResponseController(s.w).Flush()  // as above
	panic(http.ErrAbortHandler)
}

// drip takes the request and answers without end.
func (s *scene) drip() {
	if !s.take() {
		return
	}
	s.w.WriteHeader(http.StatusOK)
	for {
		if _, err := io.WriteString(s.w, "."); err != nil {
			return
		}
		if err := http.NewResponseController(s.w).Flush(); err != nil {
			return
		}
		s.wait(drip)
	}
}

// floodHeader takes the request and answers with a header that no sender should read whole.
func (s *scene) floodHeader() {
	if !s.take() {
		return
	}
	const size = 1 << 10
	value := strings.Repeat("x", size)
	for i := range floodHeader / size {
		s.w.Header().Set(fmt.Sprintf("X-Flood-%d", i), value)
	}
	s.w.WriteHeader(http.StatusOK)
}

// floodBody takes the request and answers with a body that no sender should read whole.
func (s *scene) floodBody() {
	if !s.take() {
		return
	}
	s.w.WriteHeader(http.StatusOK)
	chunk := bytes.Repeat([]byte("x"), 64<<10)
	for range floodBody / len(chunk) {
		if _, err := s.w.Write(chunk); err != nil {
			return // it did not read it whole
		}
	}
}
