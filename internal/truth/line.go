package truth

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Kind says what a line states.
type Kind string

// The kinds of lines; the package's comment shows one of each.
const (
	KindRun     Kind = "run"
	KindUser    Kind = "user"
	KindGroup   Kind = "group"
	KindMessage Kind = "message"
	KindStatus  Kind = "status"
	KindDoubt   Kind = "doubt"
	KindEnd     Kind = "end"
)

// Presence is what is known of a user's being online.
type Presence string

// The presences; the package's comment says what follows from each.
const (
	Sleeper  Presence = "sleeper"
	Resident Presence = "resident"
	Churner  Presence = "churner"
)

// Line is one line of a truth file. Which fields are set depends on the kind.
type Line struct {
	Kind Kind `json:"kind"`

	Run     string `json:"run,omitempty"`
	Seed    uint64 `json:"seed,omitempty"`
	Settled bool   `json:"settled,omitempty"` // residents are known to be online before the first message

	UID      string   `json:"uid,omitempty"`
	Presence Presence `json:"presence,omitempty"`
	Item     string   `json:"item,omitempty"` // a Status as text

	ClientMsgNo string   `json:"client_msg_no,omitempty"` // <run>-<from_uid>-<n>
	FromUID     string   `json:"from_uid,omitempty"`
	N           uint32   `json:"n,omitempty"` // rises from 1 for each sender
	ChannelID   string   `json:"channel_id,omitempty"`
	ChannelType uint8    `json:"channel_type,omitempty"` // 1 a person, else a group
	Members     []string `json:"members,omitempty"`      // each once
	Push        bool     `json:"push,omitempty"`
	Doubt       bool     `json:"doubt,omitempty"`

	Messages int64 `json:"messages,omitempty"` // of an end: the lines of that kind
	Items    int64 `json:"items,omitempty"`    // of an end: the status lines
}

// Recorder takes the lines of a truth as they become facts. It is called by one goroutine at a time.
type Recorder interface {
	Record(line Line) error
}

// Writer writes a truth file. Nothing is sure to be in it before Flush, which [Recorder] does not have: it is for the
// file's owner to call, at the end.
type Writer struct {
	buf *bufio.Writer
	enc *json.Encoder
}

// NewWriter returns a writer of lines to w.
func NewWriter(w io.Writer) *Writer {
	buf := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	return &Writer{buf: buf, enc: enc}
}

// Record writes one line.
func (w *Writer) Record(line Line) error {
	if err := w.enc.Encode(line); err != nil {
		return fmt.Errorf("write truth: %w", err)
	}
	return nil
}

// Flush writes what is buffered.
func (w *Writer) Flush() error {
	if err := w.buf.Flush(); err != nil {
		return fmt.Errorf("write truth: %w", err)
	}
	return nil
}

var errCut = errors.New("there is no end line: the file was cut short, so it does not say all that must arrive")

// Read reads a truth file. A file without an end line is an error.
func Read(r io.Reader) (*Truth, error) {
	dec := json.NewDecoder(bufio.NewReaderSize(r, 64<<10))
	dec.DisallowUnknownFields()
	t := new(Truth)
	for n := 1; ; n++ {
		var line Line
		if err := dec.Decode(&line); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read truth, line %d: %w", n, err)
		}
		if err := t.Record(line); err != nil {
			return nil, fmt.Errorf("read truth, line %d: %w", n, err)
		}
	}
	if !t.ended {
		return nil, fmt.Errorf("read truth: %w", errCut)
	}
	return t, nil
}
