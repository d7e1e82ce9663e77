package route

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/offhook/offhook/schemas"
)

func TestDecide(t *testing.T) {
	id := func(b byte) (id [16]byte) { id[0] = b; return id }
	marked := func(pairs ...any) (m schemas.StartMarker) {
		for i := 0; i < len(pairs); i += 2 {
			m.Topics = append(m.Topics, schemas.MarkedTopic{Name: pairs[i].(string), ID: pairs[i+1].([16]byte)})
		}
		return m
	}
	here := func(name string, b byte) topicState { return topicState{name: name, exists: true, id: id(b)} }
	read := func(name string, b byte) topicState {
		return topicState{name: name, exists: true, id: id(b), committed: true}
	}
	for _, tt := range []struct {
		name    string
		topics  []topicState
		marker  schemas.StartMarker
		resolve []string
		write   bool
		want    schemas.StartMarker
		err     string // in the error
	}{
		{name: "never read: resolved and marked", topics: []topicState{here("a", 1), here("b", 2)},
			resolve: []string{"a", "b"}, write: true, want: marked("a", id(1), "b", id(2))},
		{name: "read and marked: nothing", topics: []topicState{read("a", 1)}, marker: marked("a", id(1)), want: marked("a", id(1))},
		{name: "read and not marked: the marker alone", topics: []topicState{read("a", 1)}, write: true, want: marked("a", id(1))},
		{name: "marked, and the offsets are gone: refused", topics: []topicState{here("a", 1), read("b", 2)}, marker: marked("a", id(1), "b", id(2)),
			err: "g has no committed offsets for a, which route has read before"},
		{name: "not there: marked as that", topics: []topicState{{name: "a"}}, write: true, want: marked("a", id(0))},
		{name: "not there, and marked: nothing", topics: []topicState{{name: "a"}}, marker: marked("a", id(0)), want: marked("a", id(0))},
		{name: "appeared since: its beginning", topics: []topicState{here("a", 1)}, marker: marked("a", id(0)), want: marked("a", id(0))},
		{name: "made anew since: its beginning", topics: []topicState{here("a", 2)}, marker: marked("a", id(1)), want: marked("a", id(1))},
		{name: "appeared and read since: marked under its id", topics: []topicState{read("a", 1)}, marker: marked("a", id(0)), write: true, want: marked("a", id(1))},
		{name: "new beside one that is read", topics: []topicState{read("a", 1), here("b", 2)}, marker: marked("a", id(1)),
			resolve: []string{"b"}, write: true, want: marked("a", id(1), "b", id(2))},
		{name: "no longer configured: stays marked", topics: []topicState{here("b", 2)}, marker: marked("a", id(1)),
			resolve: []string{"b"}, write: true, want: marked("a", id(1), "b", id(2))},
		{name: "deleted with offsets left: not refused", topics: []topicState{{name: "a", committed: true}}, marker: marked("a", id(1)), want: marked("a", id(1))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := decide(tt.topics, tt.marker, "g")
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), "--reset-offsets") {
					t.Fatalf("got error %v, want one with %q that names the tool", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var resolve []string
			for _, r := range d.resolve {
				resolve = append(resolve, r.name)
			}
			if diff := cmp.Diff(tt.resolve, resolve); diff != "" {
				t.Errorf("resolved (-want +got):\n%s", diff)
			}
			if d.write != tt.write {
				t.Errorf("write is %v, want %v", d.write, tt.write)
			}
			if diff := cmp.Diff(tt.want, d.marker); diff != "" {
				t.Errorf("marker (-want +got):\n%s", diff)
			}
		})
	}
}
