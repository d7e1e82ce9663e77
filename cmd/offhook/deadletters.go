package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/schemas"
	"github.com/offhook/offhook/sink/deadletter"
)

type deadLettersCommand struct {
	List   deadLettersList   `cmd:"" help:"List dead letters, partition after partition."`
	Show   deadLettersShow   `cmd:"" help:"Print dead letters whole: headers and value."`
	Replay deadLettersReplay `cmd:"" help:"Send a sink's dead letters to its endpoint, or put the processor's back into their topics."`
}

// letterFlags select letters.
type letterFlags struct {
	Sink      string     `help:"Only letters of this sink; route: of the processor." placeholder:"NAME"`
	Event     eventFlag  `help:"Only letters of this event: user.onlinestatus, msg.offline or msg.notify." placeholder:"EVENT" xor:"source"`
	Topic     string     `help:"Only letters from this topic." placeholder:"TOPIC" xor:"source"`
	Reason    reasonFlag `help:"Only letters that are dead for this reason: invalid, too_large, refused, gave_up, skipped or cut." placeholder:"REASON"`
	Since     momentFlag `help:"Only letters that were buried at this time or later: RFC 3339, Unix seconds, or how long ago, such as 2h." placeholder:"TIME"`
	Until     momentFlag `help:"Only letters that were buried before this time, likewise." placeholder:"TIME"`
	Partition []int32    `help:"Only letters of these partitions of the dead-letter topic, comma-separated." placeholder:"N"`
}

// filter is what the flags select; topics are those of the environment.
func (f *letterFlags) filter(topics kafka.Topics) deadletter.Filter {
	filter := deadletter.Filter{
		Sink: f.Sink, Topic: f.Topic, Reason: schemas.Reason(f.Reason), Since: time.Time(f.Since), Until: time.Time(f.Until), Partitions: f.Partition,
	}
	if f.Event != "" { // which does not go with --topic
		filter.Topic = topics.Of(schemas.Event(f.Event))
	}
	return filter
}

// given reports whether there is a filter.
func (f *letterFlags) given() bool {
	return f.Sink != "" || f.Event != "" || f.Topic != "" || f.Reason != "" || !time.Time(f.Since).IsZero() || !time.Time(f.Until).IsZero() ||
		len(f.Partition) > 0
}

type eventFlag schemas.Event

func (e *eventFlag) UnmarshalText(text []byte) error {
	if !slices.Contains(schemas.Events(), schemas.Event(text)) {
		return fmt.Errorf("%s is none of user.onlinestatus, msg.offline and msg.notify", quote(string(text)))
	}
	*e = eventFlag(text)
	return nil
}

type reasonFlag schemas.Reason

func (r *reasonFlag) UnmarshalText(text []byte) error {
	if !slices.Contains(schemas.Reasons(), schemas.Reason(text)) {
		return fmt.Errorf("%s is none of %v", quote(string(text)), schemas.Reasons())
	}
	*r = reasonFlag(text)
	return nil
}

// momentFlag is a time; zero: not given.
type momentFlag time.Time

func (m *momentFlag) UnmarshalText(text []byte) error {
	if seconds, err := strconv.ParseUint(string(text), 10, 36); err == nil {
		*m = momentFlag(time.Unix(int64(seconds), 0))
		return nil
	}
	if ago, err := time.ParseDuration(string(text)); err == nil && ago >= 0 {
		*m = momentFlag(time.Now().Add(-ago))
		return nil
	}
	at, err := time.Parse(time.RFC3339, string(text))
	if err != nil {
		return fmt.Errorf("%s is no time: give RFC 3339 (2026-01-31T12:00:00Z), Unix seconds, or how long ago (2h)", quote(string(text)))
	}
	*m = momentFlag(at)
	return nil
}

type positionFlag deadletter.Position

func (p *positionFlag) UnmarshalText(text []byte) error {
	at, err := deadletter.ParsePosition(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", quote(string(text)), err)
	}
	*p = positionFlag(at)
	return nil
}

func positions(flags []positionFlag) []deadletter.Position {
	var all []deadletter.Position
	for _, p := range flags {
		all = append(all, deadletter.Position(p))
	}
	return all
}

// openLetters reads the settings that the parts need, and opens the dead-letter topic.
func (c *call) openLetters(parts ...part) (settings, *deadletter.Topic, error) {
	s, log, err := c.settings(parts...)
	if err != nil {
		return settings{}, nil, err
	}
	topic, err := deadletter.Open(c.ctx, s.kafka(), s.spec().Topics.DeadLetters, log)
	return s, topic, err
}

type deadLettersList struct {
	letterFlags
	Limit int  `help:"Stop after so many letters; 0: list all." placeholder:"N"`
	JSON  bool `name:"json" help:"Print one JSON object a line, with all that the headers say."`
}

// Run is for kong.
func (f deadLettersList) Run(c *call) error {
	s, topic, err := c.openLetters()
	if err != nil {
		return err
	}
	defer topic.Close()
	filter := f.filter(s.spec().Topics)
	partitions, err := topic.Partitions(&filter)
	if err != nil {
		return err
	}
	var out letterPrinter = newLetterTable(c.stdout)
	if f.JSON {
		out = letterLines{json.NewEncoder(c.stdout)}
	}
	listed, tally, more := 0, deadletter.Tally{}, ""
all:
	for _, p := range partitions {
		for l, err := range topic.Letters(c.ctx, p, &filter) {
			if err != nil {
				return errors.Join(out.flush(), err)
			}
			unreadable := tally.Unreadable
			selected := filter.Select(l, &tally)
			if tally.Unreadable > unreadable {
				line(c.stderr, "%s cannot be read: %v", l.Position, l.Err)
			}
			if !selected {
				continue
			}
			if f.Limit > 0 && listed == f.Limit {
				more = " (there are more)"
				break all
			}
			if err := out.print(l); err != nil {
				return err
			}
			listed++
		}
	}
	err = out.flush()
	line(c.stderr, "letters: %d%s; copies left out: %d; records that cannot be read: %d", listed, more, tally.Copies, tally.Unreadable)
	return err
}

type letterPrinter interface {
	print(l *deadletter.Letter) error
	flush() error
}

// letterTable prints letters for people. Its columns are aligned a page at a time, because all of them may be too many to hold.
type letterTable struct {
	table *tabwriter.Writer
	rows  int
}

const tablePage = 500 // rows

func newLetterTable(w io.Writer) *letterTable {
	return &letterTable{table: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
}

func (t *letterTable) print(l *deadletter.Letter) error {
	if t.rows == 0 {
		if _, err := fmt.Fprintln(t.table, "POSITION\tTIME\tSINK\tSOURCE\tREASON\tSTATUS\tATTEMPTS\tDETAIL"); err != nil {
			return err
		}
	}
	if t.rows++; t.rows%tablePage == 0 {
		if err := t.table.Flush(); err != nil {
			return err
		}
	}
	none := func(n int) string {
		if n == 0 {
			return "-"
		}
		return strconv.Itoa(n)
	}
	_, err := fmt.Fprintf(t.table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Position, l.Time.UTC().Format(time.RFC3339), printable(l.Sink),
		printable(l.Source.Topic), l.Reason, none(l.Status), none(l.Attempts), printable(l.Detail))
	return err
}

func (t *letterTable) flush() error { return t.table.Flush() }

// printable shows a text of the topic so that it can do nothing to a terminal.
func printable(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

// letterLines prints letters for programs.
type letterLines struct{ encoder *json.Encoder }

func (w letterLines) flush() error { return nil }

func (w letterLines) print(l *deadletter.Letter) error {
	object := letterJSON{
		Position: l.Position.String(), Timestamp: l.Time.UTC().Format(time.RFC3339Nano), Sink: l.Sink, Reason: l.Reason, Detail: l.Detail,
		SourceTopic: l.Source.Topic, SourceTopicID: fmt.Sprintf("%x", l.TopicID), SourcePartition: l.Source.Partition,
		SourceOffset: l.Source.Offset, SourceTimestamp: l.Source.Time,
		Status: l.Status, Attempts: l.Attempts, Truncated: l.Truncated, Size: l.Size, Traceparent: string(l.Traceparent), Bytes: len(l.Value),
	}
	if l.SourceKey != nil {
		if key := string(l.SourceKey); utf8.ValidString(key) {
			object.SourceKey = &key
		} else {
			object.SourceKeyBase64 = l.SourceKey
		}
	}
	return w.encoder.Encode(object)
}

// letterJSON is a letter as dead-letters list --json prints it.
type letterJSON struct {
	Position        string         `json:"position"`  // PARTITION-OFFSET
	Timestamp       string         `json:"timestamp"` // RFC 3339: when it was buried
	Sink            string         `json:"sink"`
	Reason          schemas.Reason `json:"reason"`
	Detail          string         `json:"detail"`
	Status          int            `json:"status,omitempty"`
	Attempts        int            `json:"attempts,omitempty"`
	SourceTopic     string         `json:"source_topic"`
	SourceTopicID   string         `json:"source_topic_id"` // 32 hexadecimal digits
	SourcePartition int32          `json:"source_partition"`
	SourceOffset    int64          `json:"source_offset"`
	SourceTimestamp int64          `json:"source_timestamp"` // Unix milliseconds
	SourceKey       *string        `json:"source_key,omitempty"`
	SourceKeyBase64 []byte         `json:"source_key_base64,omitempty"` // one that is not UTF-8
	Truncated       bool           `json:"truncated,omitempty"`
	Size            int            `json:"size,omitempty"` // bytes of the source's record, where truncated
	Traceparent     string         `json:"traceparent,omitempty"`
	Bytes           int            `json:"bytes"` // of the value
}

type deadLettersShow struct {
	Positions []positionFlag `arg:"" optional:"" name:"position" help:"PARTITION-OFFSET, as dead-letters list has it; without one, a filter must be given."`
	letterFlags
	Raw bool `help:"Print the value's bytes alone."`
}

// Validate is for kong.
func (f deadLettersShow) Validate() error {
	switch {
	case len(f.Positions) == 0 && !f.given():
		return errors.New("it needs a position, such as 3-1042, or a filter")
	case len(f.Positions) > 0 && f.given():
		return errors.New("it takes positions or filters, not both")
	}
	return nil
}

// Run is for kong.
func (f deadLettersShow) Run(c *call) error {
	s, topic, err := c.openLetters()
	if err != nil {
		return err
	}
	defer topic.Close()
	shown := 0
	show := func(r *kgo.Record) error {
		if f.Raw {
			_, err := c.stdout.Write(r.Value)
			return err
		}
		if shown++; shown > 1 {
			line(c.stdout, "")
		}
		return showRecord(c.stdout, r)
	}
	for _, p := range f.Positions {
		record, err := topic.Record(c.ctx, deadletter.Position(p))
		if err == nil {
			err = show(record)
		}
		if err != nil {
			return err
		}
	}
	if len(f.Positions) > 0 {
		return nil
	}
	filter := f.filter(s.spec().Topics)
	partitions, err := topic.Partitions(&filter)
	if err != nil {
		return err
	}
	var tally deadletter.Tally
	for _, p := range partitions {
		for l, err := range topic.Letters(c.ctx, p, &filter) {
			if err != nil {
				return err
			}
			if !filter.Select(l, &tally) {
				continue
			}
			if err := show(l.Record); err != nil {
				return err
			}
		}
	}
	line(c.stderr, "copies left out: %d; records that cannot be read: %d", tally.Copies, tally.Unreadable)
	return nil
}

// showRecord prints a record for people: also one that is no letter.
func showRecord(w io.Writer, r *kgo.Record) error {
	var text strings.Builder
	field := func(name, value string) { fmt.Fprintf(&text, "%-18s %s\n", name+":", printable(value)) }
	field("position", deadletter.Position{Partition: r.Partition, Offset: r.Offset}.String())
	field("time", r.Timestamp.UTC().Format(time.RFC3339Nano))
	field("key", string(r.Key))
	for _, h := range r.Headers {
		field(printable(h.Key), string(h.Value))
	}
	fmt.Fprintf(&text, "%-18s %d bytes\n\n", "value:", len(r.Value))
	text.WriteString(showValue(r.Value))
	_, err := io.WriteString(w, text.String())
	return err
}

// showValue is JSON indented, other text as it is, and anything else quoted.
func showValue(value []byte) string {
	var indented bytes.Buffer
	if json.Indent(&indented, value, "", "  ") == nil {
		// JSON may hold any character in a string; there an escape says the same, and can do nothing to a terminal.
		var text strings.Builder
		for _, r := range indented.String() {
			if r == '\n' || r != utf8.RuneError && unicode.IsPrint(r) {
				text.WriteRune(r)
				continue
			}
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&text, "\\u%04x", unit)
			}
		}
		return text.String() + "\n"
	}
	text := string(value)
	if printable(strings.NewReplacer("\n", "", "\t", "").Replace(text)) == text || text == "" {
		return text + "\n"
	}
	return strconv.Quote(text) + "\n"
}

type deadLettersReplay struct {
	Positions []positionFlag `arg:"" optional:"" name:"position" help:"PARTITION-OFFSET, as dead-letters list has it; without one, all that the filters allow."`
	letterFlags
	Patience time.Duration  `default:"1m" help:"How long a letter that is not taken is tried again before the replay ends; 0s: not at all."`
	RunID    int64          `name:"run" help:"Go on with an earlier replay, under its ids: the run that its summary names." placeholder:"N"`
	After    []positionFlag `help:"Leave out a partition's letters up to this position, as a replay that ended early says it." placeholder:"PARTITION-OFFSET"`
	DryRun   bool           `help:"Say what would be done, and do nothing."`
}

// Help is for kong.
func (deadLettersReplay) Help() string {
	return "Letters of a sink (--sink, or else OFFHOOK_SINK_NAME) are sent with the sink's settings in the environment, one event a request, in the order of their " +
		"partitions, under ids of their own: <dead-letter topic id>-<partition>-<offset>-r<run>. Letters of route (--sink route) are put back into their source topics. " +
		"Nothing is removed from the dead-letter topic: a second replay without --run or filters sends all again, under new ids.\n\n" +
		"The last line of stdout is a summary in JSON. Exit codes: 0 all is replayed, 1 something is not, 2 settings."
}

// Validate is for kong.
func (f deadLettersReplay) Validate() error {
	switch {
	case f.Patience < 0:
		return errors.New("--patience must not be negative")
	case f.RunID < 0:
		return errors.New("--run must be the Unix second that an earlier replay's summary names")
	case f.RunID != 0 && f.Sink == deadletter.Route:
		return errors.New("--run does not go with --sink route: what is put back has no id; use --after to go on")
	}
	return nil
}

// Run is for kong.
func (f deadLettersReplay) Run(c *call) error {
	var parts []part
	if f.Sink != deadletter.Route {
		parts = append(parts, partSink)
	}
	s, topic, err := c.openLetters(parts...)
	if err != nil {
		return err
	}
	defer topic.Close()
	cfg := deadletter.Config{
		Filter: f.filter(s.spec().Topics), Topics: s.spec().Topics, Run: cmp.Or(f.RunID, time.Now().Unix()), Patience: f.Patience, DryRun: f.DryRun,
		Report: func(o deadletter.Outcome) { f.report(c, o) },
	}
	cfg.Filter.Positions, cfg.Filter.After = positions(f.Positions), make(map[int32]int64)
	for _, at := range f.After {
		cfg.Filter.After[at.Partition] = max(cfg.Filter.After[at.Partition], at.Offset)
	}
	if f.Sink == deadletter.Route {
		cfg.Sink.MaxInFlight, cfg.Sink.MaxRecordBytes = routeInFlight, int(s.MaxRecordBytes)
	} else {
		if cfg.Sink, err = s.sinkConfig(); err != nil {
			return err
		}
		cfg.Filter.Sink = cmp.Or(f.Sink, cfg.Sink.Name)
	}
	summary, err := deadletter.Replay(c.ctx, topic, cfg)
	stopped, early := errors.AsType[*deadletter.StoppedError](err)
	if err != nil && !early {
		return err
	}
	text, jsonErr := json.Marshal(summary)
	if jsonErr != nil {
		return errors.Join(err, fmt.Errorf("encode the summary: %w", jsonErr))
	}
	if early {
		line(c.stderr, "%s", f.goOn(summary, stopped))
	}
	if _, printErr := fmt.Fprintf(c.stdout, "%s\n", text); printErr != nil {
		return errors.Join(err, fmt.Errorf("print the summary: %w", printErr))
	}
	switch {
	case early:
		return err
	case summary.Refused > 0 || summary.NotReplayable > 0:
		return errWrong
	}
	return nil
}

// routeInFlight is how many partitions are put back side by side.
const routeInFlight = 64

// report says what became of a letter: in a dry run everything, else what was not replayed.
func (f *deadLettersReplay) report(c *call, o deadletter.Outcome) {
	switch o.What {
	case deadletter.Replayed:
		if f.DryRun {
			line(c.stdout, "%s would be sent: %s id %s", o.Position, o.To, o.ID)
		}
	case deadletter.PutBack:
		if f.DryRun {
			line(c.stdout, "%s would be put back: %s", o.Position, printable(o.To))
		}
	case deadletter.Refused:
		line(c.stderr, "%s is refused: the endpoint answered %d", o.Position, o.Status)
	case deadletter.NotReplayable:
		line(c.stderr, "%s cannot be replayed: %s", o.Position, o.Why)
	case deadletter.Unreadable:
		line(c.stderr, "%s cannot be read: %s", o.Position, o.Why)
	}
}

// goOn says how far a replay came, and how to go on with it.
func (f *deadLettersReplay) goOn(summary deadletter.Summary, stopped *deadletter.StoppedError) string {
	var flags strings.Builder
	// The times as they were: what was 2h ago is something else by then.
	for _, bound := range []struct {
		flag string
		at   time.Time
	}{{"since", time.Time(f.Since)}, {"until", time.Time(f.Until)}} {
		if !bound.at.IsZero() {
			fmt.Fprintf(&flags, " --%s %s", bound.flag, bound.at.UTC().Format(time.RFC3339Nano))
		}
	}
	if summary.Run != 0 {
		fmt.Fprintf(&flags, " --run %d", summary.Run)
	}
	for _, p := range slices.Sorted(maps.Keys(stopped.After)) {
		fmt.Fprintf(&flags, " --after %s", deadletter.Position{Partition: p, Offset: stopped.After[p]})
	}
	text := fmt.Sprintf("letters that are done: %d.", summary.Replayed+summary.PutBack+summary.Refused+summary.NotReplayable)
	if flags.Len() > 0 {
		text += " To go on, add to the same command:" + flags.String()
	}
	return text
}
