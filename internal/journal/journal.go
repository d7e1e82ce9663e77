package journal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
)

// Entry is one request.
type Entry struct {
	Time  int64  // when it was taken or refused, Unix ms
	Event string // of the URL's query; may be empty
	ID    string // webhook-id; may be empty
	Taken bool   // the events are the receiver's
	Body  []byte
}

// Writer appends entries. Its methods may be called by several goroutines at once; entries come into the file in the order
// in which the calls of Write got hold of it.
type Writer struct {
	mu   sync.Mutex
	w    io.Writer
	file io.Closer // nil: there is none to close
	buf  []byte
	err  error // of the first write that failed
}

// NewWriter returns a writer to w, which must be empty or end with a whole entry. Each entry is one call of w.Write.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Open opens a file to append to, and makes it where there is none. A torn entry at its end is cut off; a file that is no
// journal is an error, and is not changed.
func Open(name string) (*Writer, error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if err := mend(file); err != nil {
		_ = file.Close() // nothing was written
		return nil, fmt.Errorf("open journal %s: %w", name, err)
	}
	return &Writer{w: file, file: file}, nil
}

// mend cuts a torn entry off.
func mend(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	var whole int64 // bytes of the entries before
	for whole < info.Size() {
		next, err := skip(file, whole, info.Size())
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return file.Truncate(whole)
		} else if err != nil {
			return err
		}
		whole = next
	}
	return nil
}

// skip returns where the entry at an offset ends. It reads the body's last byte alone.
func skip(file io.ReaderAt, at, size int64) (int64, error) {
	line, err := bufio.NewReaderSize(io.NewSectionReader(file, at, size-at), 256).ReadString('\n')
	if err != nil {
		return 0, torn(err)
	}
	_, length, err := parseHeader(line)
	if err != nil {
		return 0, entryError(err, at)
	}
	end := at + int64(len(line)) + length
	if end >= size {
		return 0, io.ErrUnexpectedEOF
	}
	var last [1]byte
	if _, err := file.ReadAt(last[:], end); err != nil {
		return 0, err
	}
	if last[0] != '\n' {
		return 0, entryError(errLength, at)
	}
	return end + 1, nil
}

// Write appends an entry; it keeps nothing of it.
func (w *Writer) Write(e Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	w.buf = appendEntry(w.buf[:0], e)
	// One call an entry: this is what makes a crash tear one at most.
	if _, err := w.w.Write(w.buf); err != nil {
		w.err = fmt.Errorf("write journal: %w", err)
	}
	if cap(w.buf) > keepBuffer {
		w.buf = nil
	}
	return w.err
}

// keepBuffer is the largest buffer, in bytes, that is kept for the next entry.
const keepBuffer = 4 << 20

// Close closes the file that [Open] opened. It returns the first error of a write, too.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return w.err
	}
	err := w.file.Close()
	w.file = nil
	if w.err != nil {
		return w.err
	}
	if err != nil {
		w.err = fmt.Errorf("close journal: %w", err)
		return w.err
	}
	w.err = fmt.Errorf("write journal: %w", os.ErrClosed)
	return nil
}

func appendEntry(b []byte, e Entry) []byte {
	b = strconv.AppendInt(b, e.Time, 10)
	b = append(b, ' ')
	b = append(b, escape(e.Event)...)
	b = append(b, ' ')
	b = append(b, escape(e.ID)...)
	if e.Taken {
		b = append(b, " 1 "...)
	} else {
		b = append(b, " 0 "...)
	}
	b = strconv.AppendInt(b, int64(len(e.Body)), 10)
	b = append(b, '\n')
	b = append(b, e.Body...)
	return append(b, '\n')
}

// empty stands for an empty field.
const empty = "-"

func escape(field string) string {
	switch field {
	case "":
		return empty
	case empty:
		return "%2D"
	}
	return url.QueryEscape(field)
}

func unescape(field string) (string, error) {
	if field == empty {
		return "", nil
	}
	return url.QueryUnescape(field)
}

var (
	errHeader = errors.New("no line of time, event, webhook-id, taken and length stands where an entry begins")
	errLength = errors.New("a body has another length than its line says")
)

// parseHeader reads an entry's line, its line end included, and returns the length of the body.
func parseHeader(line string) (Entry, int64, error) {
	fields := strings.Split(strings.TrimSuffix(line, "\n"), " ")
	if len(fields) != 5 || fields[1] == "" || fields[2] == "" || fields[3] != "0" && fields[3] != "1" {
		return Entry{}, 0, errHeader
	}
	e := Entry{Taken: fields[3] == "1"}
	var err error
	if e.Time, err = strconv.ParseInt(fields[0], 10, 64); err != nil {
		return Entry{}, 0, errHeader
	}
	if e.Event, err = unescape(fields[1]); err != nil {
		return Entry{}, 0, errHeader
	}
	if e.ID, err = unescape(fields[2]); err != nil {
		return Entry{}, 0, errHeader
	}
	length, err := strconv.ParseInt(fields[4], 10, 64)
	if err != nil || length < 0 || length > math.MaxInt32 {
		return Entry{}, 0, errHeader
	}
	return e, length, nil
}

// Reader reads entries. It is for one goroutine.
type Reader struct {
	r    *bufio.Reader
	body bytes.Buffer
	at   int64 // bytes of the entries read
	torn bool
	err  error // the last, io.EOF included
}

// NewReader returns a reader of r from its first entry on.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 256<<10)} }

// Next returns the next entry, whose body is valid until the next call. The error is [io.EOF] after the last whole entry,
// and another one where something is no journal; it stays so.
func (r *Reader) Next() (Entry, error) {
	if r.err != nil {
		return Entry{}, r.err
	}
	e, length, err := r.next()
	if errors.Is(err, io.ErrUnexpectedEOF) {
		r.torn, err = true, io.EOF
	}
	if err != nil {
		r.err = err
		return Entry{}, err
	}
	r.at += length
	return e, nil
}

// next also returns the entry's length in bytes; io.ErrUnexpectedEOF: it is torn.
func (r *Reader) next() (Entry, int64, error) {
	line, err := r.r.ReadString('\n')
	switch {
	case errors.Is(err, io.EOF) && line == "":
		return Entry{}, 0, io.EOF
	case err != nil:
		return Entry{}, 0, torn(err)
	}
	e, length, err := parseHeader(line)
	if err != nil {
		return Entry{}, 0, entryError(err, r.at)
	}
	r.body.Reset()
	// The buffer grows with what is read, whatever the line says.
	if _, err := io.CopyN(&r.body, r.r, length); err != nil {
		return Entry{}, 0, torn(err)
	}
	last, err := r.r.ReadByte()
	if err != nil {
		return Entry{}, 0, torn(err)
	}
	if last != '\n' {
		return Entry{}, 0, entryError(errLength, r.at)
	}
	e.Body = r.body.Bytes()
	return e, int64(len(line)) + length + 1, nil
}

// Torn reports whether the entry behind the last one that Next returned was torn. It is known once Next has returned
// [io.EOF].
func (r *Reader) Torn() bool { return r.torn }

// torn is the error of an entry that cannot be read to its end.
func torn(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read journal: %w", err)
}

func entryError(err error, offset int64) error {
	return fmt.Errorf("read journal, entry at byte %d: %w", offset, err)
}
