package receiver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/offhook/offhook/internal/journal"
	"github.com/offhook/offhook/internal/truth"
	"github.com/offhook/offhook/schemas"
)

// defaultMaxBody is what a zero Config.MaxBody means: far more than a batch of webhooks has.
const defaultMaxBody = 64 << 20

// Config is how a receiver answers. Its zero value takes all requests and checks no signatures.
type Config struct {
	// Secrets are the keys, as bytes, of which one must have signed each request. None: signatures are not looked at.
	Secrets [][]byte
	// MaxBody is the largest body in bytes; 0: 64 MiB.
	MaxBody int64
	// Answer, where not nil, may refuse a request before anything else is done with it: 0 or a 2xx takes it (and is its
	// answer, 0 being 200), any other status is answered and the request forgotten. It may be called by several
	// goroutines at once and must not keep the body.
	Answer func(r *http.Request, body []byte) int
	// OrderByChannel is for a sender that orders msg.notify by channel_id, not by from_uid: then a sender's messages are
	// in order within each channel alone.
	OrderByChannel bool
	// Journal, where not nil, gets an entry for each request whose body was read whole, in the order in which they were
	// taken and before they are answered. A request that it does not take is answered 500.
	Journal *journal.Writer
	// Unchecked remembers nothing of what was taken: requests and events are counted, repeats among them, and order,
	// repeats and bodies are not looked at. For receivers that live long: a truth cannot be held against them.
	Unchecked bool
}

// Receiver is an http.Handler for webhook requests. All methods may be called by several goroutines at once.
type Receiver struct {
	cfg Config

	mu    sync.Mutex
	books *books
}

// New returns a receiver that has seen nothing.
func New(cfg Config) *Receiver {
	if cfg.MaxBody == 0 {
		cfg.MaxBody = defaultMaxBody
	}
	r := &Receiver{cfg: cfg, books: newBooks()}
	r.books.byChannel, r.books.Unchecked = cfg.OrderByChannel, cfg.Unchecked
	return r
}

// bodies are buffers for request bodies: nothing of a body outlives its request but hashes.
var bodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// keepBuffer is the largest buffer, in bytes, that is kept for the next request.
const keepBuffer = 4 << 20

// ServeHTTP takes one request.
func (r *Receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	buf := bodies.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= keepBuffer {
			buf.Reset()
			bodies.Put(buf)
		}
	}()
	_, err := buf.ReadFrom(http.MaxBytesReader(w, req.Body, r.cfg.MaxBody))
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		r.bad(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit))
		return
	} else if err != nil {
		return // the sender is gone: nothing was received and nobody hears an answer
	}
	body := buf.Bytes()

	answer := http.StatusOK
	if r.cfg.Answer != nil {
		if status := r.cfg.Answer(req, body); status != 0 {
			answer = status
		}
		if answer/100 != 2 {
			if r.noted(w, req, body) {
				w.WriteHeader(answer)
			}
			return
		}
	}
	if req.Method != http.MethodPost {
		if r.noted(w, req, body) {
			w.Header().Set("Allow", http.MethodPost)
			r.bad(w, http.StatusMethodNotAllowed, "only POST is taken")
		}
		return
	}
	if len(r.cfg.Secrets) > 0 && !signed(r.cfg.Secrets, req.Header, body, time.Now()) {
		if r.noted(w, req, body) {
			r.count(func(s *Summary) { s.BadSignatures++ })
			http.Error(w, "no signature is right", http.StatusUnauthorized)
		}
		return
	}
	entry, err := r.read(req, body)
	if err != nil {
		if r.noted(w, req, body) {
			r.bad(w, http.StatusBadRequest, err.Error())
		}
		return
	}
	if !r.take(entry, req, body) {
		noJournal(w)
		return
	}
	w.WriteHeader(answer)
}

// take enters a request in the journal and the books; false: the journal does not take it, and so neither do we.
func (r *Receiver) take(entry *request, req *http.Request, body []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The lock is held over the write, so that the journal has the order of the books. It writes to the page cache, and
	// nobody could be answered meanwhile.
	if r.cfg.Journal != nil && r.cfg.Journal.Write(entryOf(req, body, true)) != nil {
		return false
	}
	r.books.take(entry)
	return true
}

// noted enters a request that is refused in the journal. Where that does not take it, the request is answered, and it
// returns false.
func (r *Receiver) noted(w http.ResponseWriter, req *http.Request, body []byte) bool {
	if r.cfg.Journal == nil || r.cfg.Journal.Write(entryOf(req, body, false)) == nil {
		return true
	}
	noJournal(w)
	return false
}

// noJournal answers a request that could not be noted. The error is the journal's to keep: its Close returns it.
func noJournal(w http.ResponseWriter) {
	http.Error(w, "the journal cannot be written", http.StatusInternalServerError)
}

func entryOf(req *http.Request, body []byte, taken bool) journal.Entry {
	return journal.Entry{
		Time: time.Now().UnixMilli(), Event: req.URL.Query().Get("event"), ID: req.Header.Get(headerID), Taken: taken, Body: body,
	}
}

// read decodes a request and hashes what is to be remembered, all that can be done without the lock.
func (r *Receiver) read(req *http.Request, body []byte) (*request, error) {
	event := schemas.Event(req.URL.Query().Get("event"))
	entry := &request{event: event}
	if id := req.Header.Get(headerID); id != "" && !r.cfg.Unchecked {
		entry.id, entry.hasID, entry.body = r.books.hash(id), true, r.books.hashBody(event, body)
	}
	switch event {
	case schemas.EventOnlineStatus:
		items, err := schemas.DecodeOnlineStatusBody(body)
		if err != nil {
			return nil, fmt.Errorf("decode the body: %w", err)
		}
		entry.items = len(items)
		if r.cfg.Unchecked {
			break
		}
		entry.statuses = make([]statusEntry, len(items))
		for i := range items {
			entry.statuses[i] = r.books.statusEntry(&items[i])
		}
	case schemas.EventNotify, schemas.EventOffline:
		items, err := schemas.DecodeMessagesBody(body)
		if err != nil {
			return nil, fmt.Errorf("decode the body: %w", err)
		}
		entry.items = len(items)
		if r.cfg.Unchecked {
			break
		}
		entry.messages = make([]messageEntry, len(items))
		for i := range items {
			entry.messages[i] = r.books.message(&items[i])
		}
	default:
		return nil, fmt.Errorf("the event must be one of %v", schemas.Events())
	}
	return entry, nil
}

func (r *Receiver) bad(w http.ResponseWriter, status int, reason string) {
	r.count(func(s *Summary) { s.BadRequests++ })
	http.Error(w, reason, status)
}

// count counts a request that is not taken.
func (r *Receiver) count(what func(s *Summary)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.books.Requests++
	what(&r.books.Summary)
}

// Summary says what has been seen so far. With a truth it says also what was lost; t must not be written meanwhile, and
// requests wait while it is compared. nil is no truth.
func (r *Receiver) Summary(t *truth.Truth) Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.books.Summary
	if t != nil && !s.Unchecked {
		r.books.judge(&s, t)
	}
	return s
}

// WaitFor waits until all that the truth demands has arrived. Where ctx ends before, the error says how much is missing
// and wraps the context's cause. t must not be written meanwhile.
func (r *Receiver) WaitFor(ctx context.Context, t *truth.Truth) error {
	d := r.books.demandsOf(t)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		start := time.Now()
		r.mu.Lock()
		left := d.settle(r.books)
		r.mu.Unlock()
		if left == 0 {
			return nil
		}
		// Looking costs what is left: look the less often the more that is.
		timer.Reset(max(20*time.Millisecond, 10*time.Since(start)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d events: %w", left, context.Cause(ctx))
		}
	}
}

// Live writes a line a second to w until ctx ends: what arrives a second, and the totals.
func (r *Receiver) Live(ctx context.Context, w io.Writer) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	before := r.Summary(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		s := r.Summary(nil)
		var line strings.Builder
		line.WriteString(fmt.Sprintf("receive  %d requests/s", s.Requests-before.Requests))
		for _, e := range []struct {
			name          schemas.Event
			total, before int64
		}{
			{schemas.EventOnlineStatus, s.Events.OnlineStatus, before.Events.OnlineStatus},
			{schemas.EventOffline, s.Events.Offline, before.Events.Offline},
			{schemas.EventNotify, s.Events.Notify, before.Events.Notify},
		} {
			line.WriteString(fmt.Sprintf("  %s %d/s (%d)", e.name, e.total-e.before, e.total))
		}
		if s.Wrong() {
			line.WriteString("  WRONG: see the summary")
		}
		_, _ = fmt.Fprintln(w, line.String()) // a line that cannot be written is no reason to stop
		before = s
	}
}
