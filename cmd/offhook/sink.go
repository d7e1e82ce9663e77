package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/offhook/offhook/schemas"
	"github.com/offhook/offhook/sink"
)

type sinkCommand struct {
	Run    sinkRun    `cmd:"" default:"1" help:"Run a sink: what sink does without a command."`
	Status sinkStatus `cmd:"" help:"Print what each partition waits for, those in trouble first."`
	Skip   sinkSkip   `cmd:"" help:"Put the first planned batch of a partition into the dead letters, whole. The sink must not run."`
	Rewind sinkRewind `cmd:"" help:"Have all events since a time sent again, under new ids. The sink must not run."`
}

type sinkRun struct{}

// Run is for kong.
func (sinkRun) Run(c *call) error { return serveParts(c, partSink) }

// operatorFlags are those of the commands that look at a sink's group and change it.
type operatorFlags struct {
	Sink    sinkName      `help:"Name of the sink, if not that of OFFHOOK_SINK_NAME." placeholder:"NAME"`
	Timeout time.Duration `default:"30s" help:"How long it may take; 0: until a signal."`
	JSON    bool          `name:"json" help:"Print one JSON object."`
}

// operate has do look at the group or change it.
func (f *operatorFlags) operate(c *call, do func(context.Context, *sink.Operator) error) error {
	s, log, err := c.settings(partOperator)
	if err != nil {
		return err
	}
	if f.Sink != "" {
		s.SinkName = f.Sink
	}
	o, err := sink.NewOperator(
		sink.Config{Name: string(s.SinkName), Prefix: string(s.TopicPrefix), Events: s.webhookEvents()},
		sink.Deps{Kafka: s.kafka(), Topics: s.spec().Topics, Log: log},
	)
	if err != nil {
		return err
	}
	defer o.Close()
	ctx := c.ctx
	if f.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, f.Timeout, fmt.Errorf("it was not done within %v", f.Timeout))
		defer cancel()
	}
	return do(ctx, o)
}

// printObject prints one JSON object, for programs.
func printObject(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

type sinkStatus struct {
	operatorFlags
}

// Run is for kong.
func (f sinkStatus) Run(c *call) error {
	return f.operate(c, func(ctx context.Context, o *sink.Operator) error {
		s, err := o.Status(ctx)
		switch {
		case err != nil:
			return err
		case f.JSON:
			return printObject(c.stdout, s)
		}
		return printStatus(c.stdout, s)
	})
}

func printStatus(w io.Writer, s sink.Status) error {
	hosts := make([]string, len(s.Members))
	for i := range s.Members {
		hosts[i] = owner(&s.Members[i])
	}
	text := fmt.Sprintf("group %s: %s, %s", s.Group, s.State, amount(int64(len(hosts)), "member"))
	if len(hosts) > 0 {
		text += ": " + strings.Join(hosts, ", ")
	}
	_, err := fmt.Fprintln(w, text)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) {
		_, e := fmt.Fprintln(table, strings.Join(cells, "\t"))
		err = errors.Join(err, e)
	}
	row("EVENT", "PARTITION", "OWNER", "OFFSET", "BACKLOG (AT MOST)", "OLDEST", "PLANNED", "ANSWER", "ATTEMPTS", "SINCE", "FIRST BATCH", "NOTE")
	for _, l := range s.Lanes {
		oldest, planned, answer, attempts, since, first := "-", strconv.Itoa(l.Planned), "-", "-", "-", "-"
		if l.Oldest != nil {
			oldest = age(s.At, *l.Oldest)
		}
		if l.Dead > 0 {
			planned += fmt.Sprintf(" (%d dead)", l.Dead)
		}
		if b := l.FirstBatch; b != nil {
			first = b.ID
			if t := b.Trouble; t != nil {
				answer, attempts, since = t.Answer, strconv.Itoa(t.Attempts), age(s.At, t.Since)
			}
		}
		row(string(l.Event), strconv.Itoa(int(l.Partition)), owner(l.Owner), number(l.Committed), number(l.Backlog), oldest, planned, answer, attempts, since, first,
			strings.Join(l.Notes, "; "))
	}
	return errors.Join(err, table.Flush())
}

func owner(m *sink.Member) string {
	if m == nil {
		return "-"
	}
	return m.ClientID + "@" + m.Host
}

func number(n *int64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatInt(*n, 10)
}

// age is how long ago that was, in whole seconds.
func age(now, then time.Time) string { return max(now.Sub(then), 0).Round(time.Second).String() }

// amount is a number of things.
func amount(n int64, thing string) string {
	switch {
	case n == 1:
		return "1 " + thing
	case strings.HasSuffix(thing, "ch"):
		return fmt.Sprintf("%d %ses", n, thing)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

type sinkSkip struct {
	operatorFlags
	Event     eventFlag `required:"" help:"Event of the batch: user.onlinestatus, msg.offline or msg.notify." placeholder:"EVENT"`
	Partition int32     `required:"" help:"Partition of its topic." placeholder:"N"`
	Yes       bool      `help:"Do it. Without, only what would be done is printed."`
}

// Validate is for kong.
func (f sinkSkip) Validate() error { return checkPartition(f.Partition, 0) }

// Run is for kong.
func (f sinkSkip) Run(c *call) error {
	return f.operate(c, func(ctx context.Context, o *sink.Operator) error {
		s, err := o.Skip(ctx, schemas.Event(f.Event), f.Partition, f.Yes)
		switch {
		case err != nil:
			return err
		case f.JSON:
			return printObject(c.stdout, s)
		}
		_, err = fmt.Fprintln(c.stdout, skipLine(s))
		return err
	})
}

func skipLine(s sink.Skipped) string {
	text := fmt.Sprintf("%s %d: ", s.Event, s.Partition)
	if s.Nothing != "" {
		return text + s.Nothing
	}
	what := fmt.Sprintf("batch %s, at most %s, ", s.Batch.ID, amount(s.Batch.Events, "event"))
	if t := s.Batch.Trouble; t != nil {
		what += fmt.Sprintf("last answer %s after %s since %s", t.Answer, amount(int64(t.Attempts), "failed attempt"), t.Since.Format(time.RFC3339))
	} else {
		what += "not known to have failed"
	}
	if s.Committed {
		return text + "skipped " + what + ": the next owner writes it to the dead letters"
	}
	return text + "would skip " + what + dry(s.Obstacle)
}

// dry ends a line about what would be done.
func dry(obstacle string) string {
	if obstacle != "" {
		return "; but " + obstacle
	}
	return "; --yes does it"
}

type sinkRewind struct {
	operatorFlags
	To        momentFlag `required:"" help:"Send again what was written at this time or later: RFC 3339, Unix seconds, or how long ago, such as 2h." placeholder:"TIME"`
	Event     eventFlag  `help:"Only partitions of this event: user.onlinestatus, msg.offline or msg.notify." placeholder:"EVENT"`
	Partition int32      `default:"-1" help:"Only this partition of each event; -1: all." placeholder:"N"`
	Yes       bool       `help:"Do it. Without, only what would be done is printed."`
}

// Validate is for kong.
func (f sinkRewind) Validate() error {
	if time.Time(f.To).After(time.Now()) {
		return errors.New("--to is in the future: a rewind goes back")
	}
	return checkPartition(f.Partition, -1)
}

func checkPartition(n, least int32) error {
	if n < least {
		return fmt.Errorf("--partition is %d and must be %d or more", n, least)
	}
	return nil
}

// Run is for kong.
func (f sinkRewind) Run(c *call) error {
	return f.operate(c, func(ctx context.Context, o *sink.Operator) error {
		lanes, err := o.Rewind(ctx, time.Time(f.To), schemas.Event(f.Event), f.Partition, f.Yes)
		switch {
		case err != nil:
			return err
		case f.JSON:
			return printObject(c.stdout, struct {
				Lanes []sink.Rewound `json:"lanes"`
			}{lanes})
		}
		for _, w := range lanes {
			_, e := fmt.Fprintln(c.stdout, rewindLine(w))
			err = errors.Join(err, e)
		}
		return err
	})
}

func rewindLine(w sink.Rewound) string {
	text := fmt.Sprintf("%s %d: ", w.Event, w.Partition)
	switch {
	case w.Stays != "" && w.From != nil:
		return text + fmt.Sprintf("stays at %d: %s", *w.From, w.Stays)
	case w.Stays != "":
		return text + "stays: " + w.Stays
	}
	verb := "would rewind"
	if w.Committed {
		verb = "rewound"
	}
	text += fmt.Sprintf("%s from %d to %d, at most %s again under ids that end in -r%d", verb, *w.From, *w.To, amount(w.Events, "event"), w.Rewind)
	if w.DeadDropped > 0 {
		text += fmt.Sprintf("; among them %s marked dead", amount(int64(w.DeadDropped), "batch"))
	}
	if w.Committed {
		return text
	}
	return text + dry(w.Obstacle)
}
