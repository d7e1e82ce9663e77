package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var entries = []Entry{
	{Time: 1_700_000_000_123, Event: "msg.notify", ID: "0a1b-3-17-20-r1700000000", Taken: true, Body: []byte("[1]")},
	{Time: 1_700_000_000_124, Event: "user.onlinestatus", ID: "0a1b-3-21-21", Body: []byte("two\nlines\n")},
	{Time: 0, Body: []byte{}},
	{Time: 1_700_000_000_125, Event: "-", ID: "a b\nc%20", Taken: true, Body: bytes.Repeat([]byte("x"), 300<<10)},
}

func write(t *testing.T, w *Writer, entries ...Entry) {
	t.Helper()
	for _, e := range entries {
		if err := w.Write(e); err != nil {
			t.Fatal(err)
		}
	}
}

// read returns all entries and whether the last was torn.
func read(t *testing.T, r io.Reader) ([]Entry, bool) {
	t.Helper()
	journal := NewReader(r)
	var all []Entry
	for {
		e, err := journal.Next()
		if errors.Is(err, io.EOF) {
			return all, journal.Torn()
		} else if err != nil {
			t.Fatal(err)
		}
		e.Body = bytes.Clone(e.Body)
		all = append(all, e)
	}
}

func TestFormat(t *testing.T) {
	var buf bytes.Buffer
	write(t, NewWriter(&buf), entries[:3]...)
	const want = "1700000000123 msg.notify 0a1b-3-17-20-r1700000000 1 3\n[1]\n" +
		"1700000000124 user.onlinestatus 0a1b-3-21-21 0 10\ntwo\nlines\n\n" +
		"0 - - 0 0\n\n"
	if diff := cmp.Diff(want, buf.String()); diff != "" {
		t.Errorf("the file (-want +got):\n%s", diff)
	}
}

func TestReaderReturnsWhatWasWritten(t *testing.T) {
	var buf bytes.Buffer
	write(t, NewWriter(&buf), entries...)
	got, torn := read(t, &buf)
	if torn {
		t.Error("a whole journal is torn")
	}
	if diff := cmp.Diff(entries, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// TestTornEntry cuts a journal at each byte: what stands before is read, and what Open appends afterwards too.
func TestTornEntry(t *testing.T) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	ends := []int{0}
	for _, e := range entries[:3] {
		write(t, w, e)
		ends = append(ends, buf.Len())
	}
	name := filepath.Join(t.TempDir(), "journal")
	whole := 0
	for cut := range buf.Len() + 1 {
		for whole+1 < len(ends) && ends[whole+1] <= cut {
			whole++
		}
		got, torn := read(t, bytes.NewReader(buf.Bytes()[:cut]))
		if diff := cmp.Diff(entries[:whole], got); diff != "" && whole+len(got) > 0 || torn != (cut != ends[whole]) {
			t.Fatalf("cut at %d of %d: torn %t, entries (-want +got):\n%s", cut, buf.Len(), torn, diff)
		}
		if err := os.WriteFile(name, buf.Bytes()[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := Open(name)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		write(t, again, entries[0])
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got, torn = read(t, bytes.NewReader(content))
		if diff := cmp.Diff(append(entries[:whole:whole], entries[0]), got); diff != "" || torn {
			t.Fatalf("cut at %d and opened again: torn %t, entries (-want +got):\n%s", cut, torn, diff)
		}
	}
}

func TestWhatIsNoJournal(t *testing.T) {
	for _, content := range []string{
		"hello\n",
		"1 e i 1\n\n",
		"1 e i 2 0\n\n",
		"1 e i 1 -1\n\n",
		"1 e i 1 x\n\n",
		"x e i 1 0\n\n",
		"1  i 1 0\n\n",
		"1 e%zz i 1 0\n\n",
		"1 e i 1 99999999999999\n\n",
		"1 e i 1 1\nab\n1 e i 1 0\n\n", // a body longer than it says
		"1 e i 1 1\nab1 e i 1 0\n\n",   // the same, and what follows could be an entry
		"1 e i 1 0\n\n\n",              // whole, and then a line that is none
	} {
		r := NewReader(strings.NewReader(content))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if errors.Is(err, io.EOF) || r.Torn() {
			t.Errorf("%q is read as a journal", content)
		}
		name := filepath.Join(t.TempDir(), "journal")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if w, err := Open(name); err == nil {
			t.Errorf("%q is opened as a journal: %v", content, w.Close())
		}
		if after, err := os.ReadFile(name); err != nil || string(after) != content {
			t.Errorf("Open changed %q to %q, %v", content, after, err)
		}
	}
}

// fails takes so many bytes and then no more, as a full disk does.
type fails struct {
	buf  bytes.Buffer
	left int
}

func (f *fails) Write(p []byte) (int, error) {
	n := min(len(p), f.left)
	f.left -= n
	f.buf.Write(p[:n])
	if n < len(p) {
		return n, errors.New("full")
	}
	return n, nil
}

func TestWriterStopsAtItsFirstError(t *testing.T) {
	disk := &fails{left: 60}
	w := NewWriter(disk)
	write(t, w, entries[0])
	first := w.Write(entries[1])
	disk.left = 1 << 20
	second := w.Write(entries[0])
	if first == nil || !errors.Is(second, first) || !errors.Is(w.Close(), first) {
		t.Errorf("errors %v, then %v", first, second)
	}
	if got, torn := read(t, &disk.buf); len(got) != 1 || !torn {
		t.Errorf("%d entries, torn %t; want one and a torn one", len(got), torn)
	}
}

func TestWriterIsOneCallAnEntry(t *testing.T) {
	var calls int
	w := NewWriter(writeFunc(func(p []byte) (int, error) { calls++; return len(p), nil }))
	write(t, w, entries...)
	if calls != len(entries) {
		t.Errorf("%d calls for %d entries", calls, len(entries))
	}
}

type writeFunc func(p []byte) (int, error)

func (f writeFunc) Write(p []byte) (int, error) { return f(p) }

func TestConcurrentWriters(t *testing.T) {
	name := filepath.Join(t.TempDir(), "journal")
	w, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	const writers, each = 8, 50
	var running sync.WaitGroup
	for n := range writers {
		running.Go(func() {
			for i := range each {
				if err := w.Write(Entry{Time: int64(i), ID: fmt.Sprint(n), Body: bytes.Repeat([]byte{'a' + byte(n)}, 1+i*100)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(entries[0]); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close = %v, want %v", err, os.ErrClosed)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	next := make(map[string]int64)
	all, torn := read(t, file)
	for _, e := range all {
		if e.Time != next[e.ID] || len(e.Body) != 1+int(e.Time)*100 || strings.Trim(string(e.Body), string(e.Body[:1])) != "" {
			t.Fatalf("entry %d of writer %s is %d bytes, want entry %d", e.Time, e.ID, len(e.Body), next[e.ID])
		}
		next[e.ID]++
	}
	if len(all) != writers*each || torn {
		t.Errorf("%d entries, torn %t; want %d", len(all), torn, writers*each)
	}
}

func FuzzReader(f *testing.F) {
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for _, e := range entries[:3] {
		if err := w.Write(e); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(buf.Bytes())
	f.Add(buf.Bytes()[:buf.Len()-5])
	f.Fuzz(func(t *testing.T, content []byte) {
		r := NewReader(bytes.NewReader(content))
		var again bytes.Buffer
		w := NewWriter(&again)
		for {
			e, err := r.Next()
			if err != nil {
				break
			}
			if err := w.Write(e); err != nil {
				t.Fatal(err)
			}
		}
		// What is read is read again when it is written.
		first, _ := read(t, bytes.NewReader(again.Bytes()))
		var third bytes.Buffer
		for _, e := range first {
			if err := NewWriter(&third).Write(e); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(again.Bytes(), third.Bytes()) {
			t.Errorf("%q became %q", again.Bytes(), third.Bytes())
		}
	})
}

// BenchmarkWrite measures entries of about 100 items.
func BenchmarkWrite(b *testing.B) {
	w, err := Open(filepath.Join(b.TempDir(), "journal"))
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	e := Entry{Time: 1_700_000_000_123, Event: "msg.notify", ID: "0a1b-3-17-20", Taken: true, Body: bytes.Repeat([]byte("x"), 32<<10)}
	b.SetBytes(int64(len(e.Body)))
	for b.Loop() {
		if err := w.Write(e); err != nil {
			b.Fatal(err)
		}
	}
}
