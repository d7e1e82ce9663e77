package deadletter

import (
	"errors"
	"testing"
	"time"

	"github.com/offhook/offhook/schemas"
)

func TestPosition(t *testing.T) {
	for text, want := range map[string]Position{"0-0": {0, 0}, "3-1042": {3, 1042}, "2147483647-9223372036854775807": {1<<31 - 1, 1<<63 - 1}} {
		if got, err := ParsePosition(text); err != nil || got != want || got.String() != text {
			t.Errorf("%s: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "3", "-3", "3-", "3--1", "-1-2", "3-x", "2147483648-0", "3-1-2", "3 - 1"} {
		if got, err := ParsePosition(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestFilter(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	letter := func(change func(*Letter)) *Letter {
		l := &Letter{Position: Position{1, 5}, Time: at}
		l.Sink, l.Source.Topic, l.Reason = "default", "events", schemas.ReasonRefused
		if change != nil {
			change(l)
		}
		return l
	}
	broken := func(l *Letter) { l.Err, l.DeadLetter = errors.New("broken"), schemas.DeadLetter{} }
	for _, test := range []struct {
		name   string
		filter Filter
		change func(*Letter)
		want   bool
		tally  Tally
	}{
		{name: "no filter", want: true},
		{name: "a copy", change: func(l *Letter) { l.Copy = true }, tally: Tally{Copies: 1}},
		{name: "a copy of another sink", filter: Filter{Sink: "other"}, change: func(l *Letter) { l.Copy = true }},
		{name: "unreadable", filter: Filter{Sink: "other"}, change: broken, tally: Tally{Unreadable: 1}},
		{name: "unreadable, elsewhere", filter: Filter{Partitions: []int32{2}}, change: broken},
		{name: "the sink", filter: Filter{Sink: "default"}, want: true},
		{name: "another sink", filter: Filter{Sink: "other"}},
		{name: "the topic", filter: Filter{Topic: "events"}, want: true},
		{name: "another topic", filter: Filter{Topic: "event"}},
		{name: "the reason", filter: Filter{Reason: schemas.ReasonRefused}, want: true},
		{name: "another reason", filter: Filter{Reason: schemas.ReasonCut}},
		{name: "since its time", filter: Filter{Since: at}, want: true},
		{name: "since later", filter: Filter{Since: at.Add(time.Millisecond)}},
		{name: "until its time", filter: Filter{Until: at}},
		{name: "until later", filter: Filter{Until: at.Add(time.Millisecond)}, want: true},
		{name: "the partition", filter: Filter{Partitions: []int32{0, 1}}, want: true},
		{name: "another partition", filter: Filter{Partitions: []int32{0}}},
		{name: "the position", filter: Filter{Positions: []Position{{1, 4}, {1, 5}}}, want: true},
		{name: "another position", filter: Filter{Positions: []Position{{1, 4}, {2, 5}}}},
		{name: "after the one before", filter: Filter{After: map[int32]int64{1: 4}}, want: true},
		{name: "after itself", filter: Filter{After: map[int32]int64{1: 5}}},
		{name: "after one of another partition", filter: Filter{After: map[int32]int64{0: 9}}, want: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var tally Tally
			if got := test.filter.Select(letter(test.change), &tally); got != test.want || tally != test.tally {
				t.Errorf("got %v and %+v, want %v and %+v", got, tally, test.want, test.tally)
			}
		})
	}
}

func TestRetryAt(t *testing.T) {
	for _, test := range []struct {
		name       string
		attempts   int
		retryAfter time.Duration
		elapsed    time.Duration
		want       time.Duration
		again      bool
	}{
		{name: "backoff", attempts: 3, elapsed: time.Second, want: time.Second, again: true},
		{name: "the last attempt is at the end", attempts: 10, elapsed: 55 * time.Second, want: 5 * time.Second, again: true},
		{name: "patience is over", attempts: 1, elapsed: time.Minute},
		{name: "Retry-After", attempts: 1, retryAfter: 30 * time.Second, elapsed: 10 * time.Second, want: 30 * time.Second, again: true},
		{name: "Retry-After is too long", attempts: 1, retryAfter: 55 * time.Second, elapsed: 10 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, again := retryAt(test.attempts, 1, test.retryAfter, test.elapsed, time.Minute)
			if got != test.want || again != test.again {
				t.Errorf("got %v, %v, want %v, %v", got, again, test.want, test.again)
			}
		})
	}
}
