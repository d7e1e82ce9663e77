package presence

import (
	"fmt"
	"testing"

	"github.com/offhook/offhook/schemas"
)

// TestLiveness: silence counts from where all partitions are read to their ends, without a gap, for all of a time to live.
func TestLiveness(t *testing.T) {
	said := func(asOf int64, read ...int32) *schemas.CaughtUp {
		return &schemas.CaughtUp{AsOf: asOf, Topics: []schemas.CaughtUpTopic{{Name: "a", Partitions: 2, Read: read}}}
	}
	const second = int64(1000)
	// listen hears a complete record a second, at offsets of ten a second.
	listen := func(l *Liveness, from, to int64) {
		for s := from; s < to; s++ {
			l.CaughtUp(said(s*second, 0, 1), Mark{s * second, s * 10}, 0)
		}
	}
	for _, tt := range []struct {
		name string
		play func(l *Liveness)
		want int64 // the offset before which silence is too long; -1: there is none
	}{
		{"nothing heard", func(*Liveness) {}, -1},
		{"not long enough", func(l *Liveness) { listen(l, 100, 190) }, -1},
		{"a time to live", func(l *Liveness) { listen(l, 100, 191) }, 1000},
		{"longer", func(l *Liveness) { listen(l, 100, 300) }, 2090},
		{"no time to live", func(l *Liveness) { l.TTL = 0; listen(l, 100, 300) }, -1},
		{"a gap", func(l *Liveness) { listen(l, 100, 190); listen(l, 196, 280) }, -1},
		{"a pause within the grace", func(l *Liveness) { listen(l, 100, 190); listen(l, 194, 200) }, 1090},
		{"a partition that nobody reads", func(l *Liveness) {
			listen(l, 100, 200)
			for s := int64(200); s < 210; s++ {
				l.CaughtUp(said(s*second, 0), Mark{s * second, s * 10}, 0)
			}
		}, -1},
		{"partitions of several processes", func(l *Liveness) {
			for s := int64(100); s < 200; s++ {
				l.CaughtUp(said(s*second, int32(s%2)), Mark{s * second, s * 10}, 0)
			}
		}, 1080},
		{"a new partition", func(l *Liveness) {
			listen(l, 100, 200)
			l.CaughtUp(&schemas.CaughtUp{AsOf: 200 * second, Topics: []schemas.CaughtUpTopic{{Name: "a", Partitions: 3, Read: []int32{0, 1}}}}, Mark{200 * second, 2000}, 0)
		}, -1},
		{"a topic more", func(l *Liveness) {
			listen(l, 100, 200)
			l.CaughtUp(&schemas.CaughtUp{AsOf: 200 * second, Topics: []schemas.CaughtUpTopic{{Name: "a", Partitions: 2, Read: []int32{0, 1}}, {Name: "b", Partitions: 1}}}, Mark{200 * second, 2000}, 0)
		}, -1},
		{"a topic without partitions", func(l *Liveness) {
			for s := int64(100); s < 200; s++ {
				c := said(s*second, 0, 1)
				c.Topics = append(c.Topics, schemas.CaughtUpTopic{Name: "later"})
				l.CaughtUp(c, Mark{s * second, s * 10}, 0)
			}
		}, 1090},
		{"presence lags", func(l *Liveness) {
			listen(l, 100, 200)
			l.CaughtUp(said(200*second, 0, 1), Mark{200 * second, 2000}, behindMax+1)
			listen(l, 201, 250)
		}, -1},
		{"a record that was held up", func(l *Liveness) {
			listen(l, 100, 200)
			l.CaughtUp(said(190*second, 0, 1), Mark{200 * second, 2000}, 0)
		}, -1},
	} {
		l := Liveness{TTL: 90 * second}
		tt.play(&l)
		offset, ok := l.Since()
		if ok != (tt.want >= 0) || ok && offset != tt.want {
			t.Errorf("%s: %d, %v, want %d", tt.name, offset, ok, tt.want)
		}
		if len(l.checks) > 100 {
			t.Errorf("%s: %d checks are kept", tt.name, len(l.checks))
		}
	}
}

// TestSweep: a sweep finds who is silent, however small its steps are; a sign of the connection, of its node or a restore counts.
func TestSweep(t *testing.T) {
	table := NewTable(Rules{CloseMemory: 1000})
	var e Effects
	offset := int64(0)
	apply := func(c schemas.Connection) {
		offset++
		table.Apply(&c, Mark{Time: offset, Offset: offset}, &e)
	}
	for i := range 50 {
		apply(schemas.Connection{Type: schemas.Online, UID: fmt.Sprint("u", i), ConnID: "1", NodeID: schemas.ID(fmt.Sprint(i % 5)), HasDeviceFlag: true, Time: 5, OpenedAt: -1})
	}
	apply(schemas.Connection{Type: schemas.Heartbeat, UID: "u7", ConnID: "1", NodeID: "2", Time: 6, OpenedAt: -1})
	apply(schemas.Connection{Type: schemas.Heartbeat, UID: "u8", ConnID: "1", NodeID: "3", Time: 4, OpenedAt: -1}) // older: no sign
	apply(schemas.Connection{Type: schemas.Heartbeat, NodeID: "1", Time: 6, OpenedAt: -1})
	sweep := func(since int64) map[string]schemas.Expire {
		found := make(map[string]schemas.Expire)
		for range 60 / 7 {
			table.Sweep(7, since, func(x schemas.Expire) { found[x.UID] = x })
		}
		table.swept = 0
		return found
	}
	found := sweep(51)
	if len(found) != 39 || found["u7"].UID != "" || found["u1"].UID != "" || found["u8"].UID == "" {
		t.Errorf("%d are silent, want 39: all but u7 and the ten of node 1: %v", len(found), found)
	}
	x := found["u8"]
	apply(schemas.Connection{Type: schemas.Heartbeat, UID: "u8", ConnID: "1", NodeID: "3", Time: 7, OpenedAt: -1})
	if o := table.ExpireConnection(&x, 100, &e); o != OutcomeHeard {
		t.Errorf("an expire after a sign of life: %s", o)
	}
	x = found["u9"]
	e = Effects{}
	if o := table.ExpireConnection(&x, 100, &e); o != OutcomeExpired || len(e.Events) != 1 || e.Events[0].Online {
		t.Errorf("an expire: %s, %+v", o, e.Events)
	}
	if o := table.ExpireConnection(&x, 100, &e); o != OutcomeNotOpen {
		t.Errorf("a second expire: %s", o)
	}
	// The close carries the connection's version, so that what is heard later opens it again, though its clock is slow.
	c := schemas.Connection{Type: schemas.Heartbeat, UID: "u9", ConnID: "1", NodeID: "4", HasDeviceFlag: true, Time: 6, OpenedAt: -1}
	if o, _ := table.Apply(&c, Mark{Time: 101, Offset: 101}, &e); o != OutcomeOpened {
		t.Errorf("a heartbeat after the expire: %s", o)
	}
	table.Begin(60)
	if found := sweep(60); len(found) != 0 {
		t.Errorf("%d are silent since before the table listened", len(found))
	}
}
