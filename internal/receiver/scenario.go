package receiver

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Scenario is one way in which an endpoint misbehaves. Its zero value does nothing. [Player] plays all of them but
// down, which is [Listen]'s.
type Scenario struct {
	text  string
	down  window      // of the scenario down
	slow  *delay      // of the scenario slow
	rule  func() rule // of the others: a rule with a state of its own
	reads bool        // the rule wants the names of a request's items
}

// String returns the text that the scenario was parsed from.
func (s Scenario) String() string { return s.text }

// window is a time from the start on.
type window struct{ after, length time.Duration }

// contains reports whether a time is within; a window of no length has no bounds.
func (w window) contains(elapsed time.Duration) bool {
	return w.length == 0 || elapsed >= w.after && elapsed-w.after < w.length
}

// within is what of w, whose times count from the beginning of the other, is within it.
func (w window) within(outer window) window {
	return window{outer.after + w.after, max(0, min(w.length, outer.length-w.after))}
}

// delay is uniformly between the two.
type delay struct {
	min, max time.Duration
	during   window
}

// within plays s from after on, and for length, alone.
func (s Scenario) within(during window) Scenario {
	if s.down.length > 0 {
		s.down = s.down.within(during)
	}
	if s.slow != nil {
		inner := *s.slow
		if inner.during.length == 0 {
			inner.during = window{length: during.length}
		}
		if inner.during = inner.during.within(during); inner.during.length == 0 {
			s.slow = nil // it would begin when it is over
		} else {
			s.slow = &inner
		}
	}
	if made := s.rule; made != nil {
		s.rule = func() rule {
			inner := made()
			return func(a *asked) act {
				if !during.contains(a.elapsed) {
					return nil
				}
				shifted := *a
				shifted.elapsed -= during.after
				return inner(&shifted)
			}
		}
	}
	return s
}

// ScenarioError says why a text is no scenario.
type ScenarioError struct {
	Text    string // as it was given
	Problem string // a clause that follows on the text
	Example string // a scenario that works
}

// Error is one line.
func (e *ScenarioError) Error() string {
	return fmt.Sprintf("scenario %q %s; one that works: %s", e.Text, e.Problem, e.Example)
}

// ScenarioUsage describes one kind of scenario.
type ScenarioUsage struct {
	Form    string // NAME:ARG[:ARG]
	Example string // a text that [ParseScenario] takes
	Doc     string // what it does
}

type scenarioKind struct {
	ScenarioUsage
	// parse fills s from the text behind the name, "" where there is none. The error is a clause. nil: it is during, whose
	// parse needs the others.
	parse func(s *Scenario, rest string) error
}

func (k *scenarioKind) name() string {
	name, _, _ := strings.Cut(strings.ReplaceAll(k.Form, "[", ""), ":")
	return name
}

// moved is where a 3xx of the scenario status leads to: nobody must ever ask for it.
const moved = "/moved-and-not-to-be-followed"

// The bodies of endless and flood.
const (
	drip        = 100 * time.Millisecond // between two bytes
	floodHeader = 16 << 20               // bytes
	floodBody   = 64 << 20
)

var scenarioKinds = []scenarioKind{
	{ScenarioUsage{"slow:D[:D2]", "slow:50ms", "waits for D, or uniformly between D and D2, before anything else; a request whose sender is gone by then is not taken"},
		func(s *Scenario, rest string) error {
			args, err := split(rest, 1, 2)
			if err != nil {
				return err
			}
			s.slow = new(delay)
			if s.slow.min, err = parseDuration("D", args[0], 0); err != nil {
				return err
			}
			s.slow.max = s.slow.min
			if len(args) == 2 {
				s.slow.max, err = parseDuration("D2", args[1], s.slow.min)
			}
			return err
		}},
	{ScenarioUsage{"down:AFTER:FOR", "down:10s:1m", "from AFTER after the start, for FOR, refuses connections and has none open"},
		func(s *Scenario, rest string) error {
			args, err := split(rest, 2, 2)
			if err != nil {
				return err
			}
			if s.down.after, err = parseDuration("AFTER", args[0], 0); err != nil {
				return err
			}
			s.down.length, err = parseDuration("FOR", args[1], 1)
			return err
		}},
	{ScenarioUsage{"status:CODE:FOR[:AFTER]", "status:404:1m", "answers CODE to everything for FOR, from the start or from AFTER after it; with a 2xx it takes the requests, with a 3xx it sends them to a place that must not be asked"},
		func(s *Scenario, rest string) error {
			args, err := split(rest, 2, 3)
			if err != nil {
				return err
			}
			code, err := parseStatus(args[0], 200)
			if err != nil {
				return err
			}
			var during window
			if during.length, err = parseDuration("FOR", args[1], 1); err != nil {
				return err
			}
			if len(args) == 3 {
				if during.after, err = parseDuration("AFTER", args[2], 0); err != nil {
					return err
				}
			}
			s.rule = func() rule { return answering(code, during) }
			return nil
		}},
	{ScenarioUsage{"errors:PERCENT[:CODE[:SECONDS]]", "errors:10", "answers 500, or CODE, with Retry-After: SECONDS where that is given, to PERCENT of the requests: which ones, seed, webhook-id and attempt decide"},
		func(s *Scenario, rest string) error {
			args, err := split(rest, 1, 3)
			if err != nil {
				return err
			}
			percent, err := parsePercent(args[0])
			if err != nil {
				return err
			}
			code := http.StatusInternalServerError
			if len(args) > 1 {
				if code, err = parseStatus(args[1], 300); err != nil {
					return err
				}
			}
			var pause int
			if len(args) == 3 {
				if pause, err = parseCount("SECONDS", args[2]); err != nil {
					return err
				}
			}
			s.rule = func() rule { return failures(percent, code, pause) }
			return nil
		}},
	{ScenarioUsage{"fail:TEXT[:CODE]", "fail:run-u1-7", "answers 500, or CODE, always to a request with an item of which message_id, message_idstr or client_msg_no (in user.onlinestatus: the uid) is TEXT"},
		func(s *Scenario, rest string) error { return s.named(rest, http.StatusInternalServerError) }},
	{ScenarioUsage{"refuse:TEXT[:CODE]", "refuse:run-u1-7", "the same with 400"},
		func(s *Scenario, rest string) error { return s.named(rest, http.StatusBadRequest) }},
	{ScenarioUsage{"too-large:BYTES", "too-large:64KiB", "answers 413 to bodies above BYTES"},
		func(s *Scenario, rest string) error {
			limit, err := parseSize(rest)
			if err != nil {
				return err
			}
			s.rule = func() rule { return tooLarge(limit) }
			return nil
		}},
	{ScenarioUsage{"busy:EVERY:SECONDS", "busy:10:2", "answers 429 with Retry-After: SECONDS to every EVERY-th request, and again, counting it as too early, while the same webhook-id comes before that; later it is let through"},
		func(s *Scenario, rest string) error {
			args, err := split(rest, 2, 2)
			if err != nil {
				return err
			}
			every, err := parseCount("EVERY", args[0])
			if err != nil {
				return err
			}
			seconds, err := parseCount("SECONDS", args[1])
			if err != nil {
				return err
			}
			s.rule = func() rule { return busy(every, time.Duration(seconds)*time.Second) }
			return nil
		}},
	{ScenarioUsage{"cut:EVERY[:answer]", "cut:10", "closes the connection of every EVERY-th request without having taken it; with answer it takes the request and cuts the answer's header and body by turns. With a percentage for EVERY, such as 10%, seed, webhook-id and attempt decide which ones"},
		func(s *Scenario, rest string) error {
			args, err := split(rest, 1, 2)
			if err != nil {
				return err
			}
			every, err := parseShare(args[0])
			if err != nil {
				return err
			}
			if len(args) == 1 {
				s.rule = func() rule { return cut(every) }
				return nil
			}
			if args[1] != "answer" {
				return errors.New("has a second argument other than answer")
			}
			s.rule = func() rule { return cutAnswer(every) }
			return nil
		}},
	{ScenarioUsage{"late:EVERY:D", "late:10:15s", "takes the request of every EVERY-th webhook-id, when it comes first, but answers after D: longer than the sender waits. With a percentage for EVERY, such as 10%, seed, webhook-id and attempt decide which ones, whether they come first or again"},
		func(s *Scenario, rest string) error {
			args, err := split(rest, 2, 2)
			if err != nil {
				return err
			}
			every, err := parseShare(args[0])
			if err != nil {
				return err
			}
			after, err := parseDuration("D", args[1], 1)
			if err != nil {
				return err
			}
			s.rule = func() rule { return late(every, after) }
			return nil
		}},
	{ScenarioUsage{"fickle:EVERY", "fickle:10", "refuses the request of every EVERY-th webhook-id once, with 400, and takes it if it comes again, though parts of it may have come under other ids: these are duplicates that no sender can avoid"},
		func(s *Scenario, rest string) error {
			every, err := parseCount("EVERY", rest)
			if err != nil {
				return err
			}
			s.rule = func() rule { return fickle(every) }
			return nil
		}},
	{ScenarioUsage{"endless[:EVERY]", "endless:10", "takes every EVERY-th request, or each, and answers 200 with a body that drips and never ends"},
		func(s *Scenario, rest string) error { return s.repeated(rest, endless) }},
	{ScenarioUsage{"flood[:EVERY]", "flood:10", "takes every EVERY-th request, or each, and answers 200 with a body of 64 MiB; of every second webhook-id the first time with a header of 16 MiB"},
		func(s *Scenario, rest string) error { return s.repeated(rest, flood) }},
	{ScenarioUsage{"during:AFTER:FOR:SCENARIO", "during:10s:1m:slow:300ms", "plays another scenario from AFTER after the start, for FOR: that one's times count from then on"}, nil},
}

// Scenarios describes what [ParseScenario] takes.
func Scenarios() []ScenarioUsage {
	all := make([]ScenarioUsage, len(scenarioKinds))
	for i, k := range scenarioKinds {
		all[i] = k.ScenarioUsage
	}
	return all
}

// ParseScenario reads NAME[:ARG…], one of [Scenarios]. Durations are as in Go, a CODE is an HTTP status, BYTES may end in
// KiB or MiB, a TEXT may hold colons. The error is a *[ScenarioError].
func ParseScenario(text string) (Scenario, error) {
	name, rest, _ := strings.Cut(text, ":")
	for _, kind := range scenarioKinds {
		if kind.name() != name {
			continue
		}
		s := Scenario{text: text}
		parse := kind.parse
		if parse == nil {
			parse = (*Scenario).during
		}
		if err := parse(&s, rest); err != nil {
			return Scenario{}, &ScenarioError{Text: text, Problem: err.Error() + " (" + kind.Form + ")", Example: kind.Example}
		}
		return s, nil
	}
	forms := make([]string, len(scenarioKinds))
	for i, kind := range scenarioKinds {
		forms[i] = kind.Form
	}
	return Scenario{}, &ScenarioError{Text: text, Problem: "is none of " + strings.Join(forms, ", "), Example: scenarioKinds[0].Example}
}

func (s *Scenario) during(rest string) error {
	args := strings.SplitN(rest, ":", 3)
	if len(args) < 3 {
		return errors.New("has too few arguments")
	}
	var during window
	var err error
	if during.after, err = parseDuration("AFTER", args[0], 0); err != nil {
		return err
	}
	if during.length, err = parseDuration("FOR", args[1], 1); err != nil {
		return err
	}
	played, err := ParseScenario(args[2])
	if wrong, ok := errors.AsType[*ScenarioError](err); ok {
		return fmt.Errorf("plays %q, which %s", wrong.Text, wrong.Problem)
	} else if err != nil {
		return err
	}
	played.text = s.text
	*s = played.within(during)
	return nil
}

func (s *Scenario) named(rest string, code int) error {
	text := rest
	if head, last, ok := cutLast(rest); ok {
		if given, err := parseStatus(last, 300); err == nil {
			text, code = head, given
		}
	}
	if text == "" {
		return errors.New("has no TEXT")
	}
	s.reads, s.rule = true, func() rule { return named(text, code) }
	return nil
}

func (s *Scenario) repeated(rest string, f func(every int) rule) error {
	every := 1
	if rest != "" {
		var err error
		if every, err = parseCount("EVERY", rest); err != nil {
			return err
		}
	}
	s.rule = func() rule { return f(every) }
	return nil
}

// cutLast cuts around the last colon.
func cutLast(text string) (head, last string, ok bool) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return text, "", false
	}
	return text[:i], text[i+1:], true
}

func split(rest string, least, most int) ([]string, error) {
	args := strings.Split(rest, ":")
	if rest == "" {
		args = nil
	}
	switch {
	case len(args) < least:
		return nil, errors.New("has too few arguments")
	case len(args) > most:
		return nil, errors.New("has too many arguments")
	}
	return args, nil
}

func parseDuration(arg, text string, least time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, fmt.Errorf("has %s %q, no duration such as 50ms, 10s, 1m", arg, text)
	case d < least:
		return 0, fmt.Errorf("has %s %s, less than %s", arg, d, least)
	}
	return d, nil
}

func parseStatus(text string, least int) (int, error) {
	code, err := strconv.Atoi(text)
	if err != nil || code < least || code > 599 {
		return 0, fmt.Errorf("has CODE %q, no status from %d to 599", text, least)
	}
	return code, nil
}

// parsePercent reads a number above 0 up to 100.
func parsePercent(text string) (float64, error) {
	percent, err := strconv.ParseFloat(text, 64)
	if err != nil || !(percent > 0 && percent <= 100) {
		return 0, errors.New("has a PERCENT that is no number above 0 up to 100")
	}
	return percent, nil
}

// share is which requests a scenario is for: every so many, or where that is 0 a percentage.
type share struct {
	every   int
	percent float64
}

func parseShare(text string) (s share, err error) {
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		s.percent, err = parsePercent(percent)
	} else {
		s.every, err = parseCount("EVERY", text)
	}
	return s, err
}

// mostCount keeps a count of seconds within a duration.
const mostCount = math.MaxInt32

func parseCount(arg, text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > mostCount {
		return 0, fmt.Errorf("has %s %q, no whole number of 1 or more", arg, text)
	}
	return n, nil
}

func parseSize(text string) (int, error) {
	unit := 1
	digits := text
	for _, u := range []struct {
		suffix string
		bytes  int
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"B", 1}} {
		if rest, ok := strings.CutSuffix(text, u.suffix); ok {
			digits, unit = rest, u.bytes
			break
		}
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || n > mostCount/unit {
		return 0, fmt.Errorf("has BYTES %q, no size such as 1000 or 64KiB", text)
	}
	return n * unit, nil
}

// A rule says what becomes of a request; nil: it has nothing to say. The player's lock is held, so it must not wait.
type rule func(a *asked) act

// asked is a request as rules see it.
type asked struct {
	now     time.Time
	elapsed time.Duration // since the start
	id      string        // webhook-id; "": none
	size    int           // of the body, in bytes
	names   []string      // of its items
	seed    uint64        // of the rule that is asked: no two decide alike
	player  *Player
}

// draw returns a number from 0 up to 1 that seed, webhook-id and attempt decide, and so not how requests interleave.
func draw(seed uint64, id string, attempt int) float64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // it never fails
	return rand.New(rand.NewPCG(seed, h.Sum64()+uint64(attempt))).Float64()
}

func (d *delay) draw(seed uint64, id string, attempt int) time.Duration {
	return d.min + time.Duration(draw(seed, id, attempt)*float64(d.max-d.min))
}

func answering(code int, during window) rule {
	return func(a *asked) act {
		switch {
		case !during.contains(a.elapsed):
			return nil
		case code/100 == 2:
			return func(s *scene) {
				if s.take() {
					s.taken.status = code
					s.answer()
				}
			}
		case code/100 == 3:
			return refuseWith(code, "Location", moved)
		}
		return refuse(code)
	}
}

// lots draws, and counts the attempts of a webhook-id for it.
type lots map[string]int

// hit reports whether this attempt is one of the percentage.
func (l lots) hit(a *asked, percent float64) bool {
	l[a.id]++
	return draw(a.seed, a.id, l[a.id])*100 < percent
}

// failures refuses; pause is that of a Retry-After in seconds, 0: there is none.
func failures(percent float64, code, pause int) rule {
	attempts := make(lots)
	return func(a *asked) act {
		switch {
		case !attempts.hit(a, percent):
			return nil
		case pause > 0:
			return refuseWith(code, "Retry-After", strconv.Itoa(pause))
		}
		return refuse(code)
	}
}

func named(text string, code int) rule {
	return func(a *asked) act {
		if slices.Contains(a.names, text) {
			return refuse(code)
		}
		return nil
	}
}

func tooLarge(limit int) rule {
	return func(a *asked) act {
		if a.size > limit {
			return refuse(http.StatusRequestEntityTooLarge)
		}
		return nil
	}
}

func busy(every int, pause time.Duration) rule {
	requests := 0
	until := make(map[string]time.Time) // by webhook-id
	return func(a *asked) act {
		if due, waits := until[a.id]; waits && a.id != "" {
			left := due.Sub(a.now)
			if left <= 0 {
				delete(until, a.id)
				return nil
			}
			a.player.tooEarly++
			return retryAfter(left)
		}
		if requests++; requests%every != 0 {
			return nil
		}
		until[a.id] = a.now.Add(pause)
		return retryAfter(pause)
	}
}

func retryAfter(d time.Duration) act {
	seconds := (d + time.Second - 1) / time.Second
	return refuseWith(http.StatusTooManyRequests, "Retry-After", strconv.Itoa(int(seconds)))
}

// requests picks a share of the requests: what it returns gives the number of one that is picked, from 1 on, and 0 for others.
func (s share) requests() func(a *asked) int {
	attempts := make(lots)
	requests, picked := 0, 0
	return func(a *asked) int {
		requests++
		if s.every > 0 && requests%s.every != 0 || s.every == 0 && !attempts.hit(a, s.percent) {
			return 0
		}
		picked++
		return picked
	}
}

func cut(of share) rule {
	pick := of.requests()
	return func(a *asked) act {
		if pick(a) == 0 {
			return nil
		}
		return func(s *scene) {
			if s.refuse() {
				panic(http.ErrAbortHandler)
			}
		}
	}
}

func cutAnswer(of share) rule {
	pick := of.requests()
	return func(a *asked) act {
		switch n := pick(a); {
		case n == 0:
			return nil
		case n%2 == 1:
			return (*scene).cutHeader
		}
		return (*scene).cutBody
	}
}

// firsts counts webhook-ids when they come first. A request without one counts as the first of its own.
type firsts struct {
	seen map[string]struct{}
	n    int
}

// nth returns how many have come, this one included; 0 where it has come before.
func (f *firsts) nth(id string) int {
	if _, known := f.seen[id]; known && id != "" {
		return 0
	}
	if f.seen == nil {
		f.seen = make(map[string]struct{})
	}
	f.seen[id] = struct{}{}
	f.n++
	return f.n
}

func late(of share, after time.Duration) rule {
	var ids firsts
	attempts := make(lots)
	return func(a *asked) act {
		if of.every == 0 {
			if !attempts.hit(a, of.percent) {
				return nil
			}
		} else if n := ids.nth(a.id); n == 0 || n%of.every != 0 {
			return nil
		}
		return func(s *scene) {
			if s.take() {
				s.wait(after)
				s.answer()
			}
		}
	}
}

func fickle(every int) rule {
	var ids firsts
	return func(a *asked) act {
		if n := ids.nth(a.id); n == 0 || n%every != 0 {
			return nil
		}
		return refuse(http.StatusBadRequest)
	}
}

func endless(every int) rule {
	requests := 0
	return func(*asked) act {
		if requests++; requests%every != 0 {
			return nil
		}
		return (*scene).drip
	}
}

func flood(every int) rule {
	requests := 0
	var ids firsts
	return func(a *asked) act {
		if requests++; requests%every != 0 {
			return nil
		}
		if ids.nth(a.id)%2 == 1 {
			return (*scene).floodHeader
		}
		return (*scene).floodBody
	}
}

// outages are the times of the scenarios down, in order and apart from each other.
func outages(scenarios []Scenario) []window {
	var all []window
	for _, s := range scenarios {
		if s.down.length > 0 {
			all = append(all, s.down)
		}
	}
	slices.SortFunc(all, func(a, b window) int { return cmp.Compare(a.after, b.after) })
	var apart []window
	for _, w := range all {
		if n := len(apart); n > 0 && w.after <= apart[n-1].after+apart[n-1].length {
			last := &apart[n-1]
			last.length = max(last.length, w.after+w.length-last.after)
			continue
		}
		apart = append(apart, w)
	}
	return apart
}
