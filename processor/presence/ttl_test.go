package presence

import (
	"fmt"
	"testing"

	"github.com/offhook/offhook/schemas"
)

// What an aborted transaction heard of a whole node is not heard before it is read again.
func TestRollbackTakesBackANodesSign(t *testing.T) {
	play := func(abort bool) string {
		table := NewTable(Rules{CloseMemory: 600_000})
		var e Effects
		table.Begin(0)
		on := schemas.Connection{Type: schemas.Online, UID: "u", ConnID: "1", NodeID: "gw", HasDeviceFlag: true, Time: 5, OpenedAt: -1}
		table.Apply(&on, Mark{Time: 100, Offset: 1}, &e)
		table.Commit()
		x := schemas.Expire{UID: "u", NodeID: "gw", ConnID: "1", Offset: 1}
		hb := schemas.Connection{Type: schemas.Heartbeat, NodeID: "gw", Time: 7, OpenedAt: -1}
		run := func() string {
			first := table.ExpireConnection(&x, 200, &e)
			second, _ := table.Apply(&hb, Mark{Time: 200, Offset: 3}, &e)
			return fmt.Sprint(first, " ", second)
		}
		if abort {
			run()
			table.Rollback()
		}
		return run()
	}
	if once, again := play(false), play(true); once != again {
		t.Errorf("read once: %s; after an abort: %s", once, again)
	}
}

// A group that has lost its offsets reads the inbox again: what was asked of a connection before its last online closes nothing.
func TestInboxReadAgainExpiresNobodyWhoLives(t *testing.T) {
	rules := Rules{CloseMemory: 600_000}
	on := schemas.Connection{Type: schemas.Online, UID: "u", ConnID: "1", NodeID: "gw", HasDeviceFlag: true, Time: 5, OpenedAt: -1}
	hb := schemas.Connection{Type: schemas.Heartbeat, UID: "u", ConnID: "1", NodeID: "gw", Time: 7, OpenedAt: -1}
	on2 := on
	on2.Time = 30
	x := schemas.Expire{UID: "u", NodeID: "gw", ConnID: "1", Offset: 2}
	play := func(table *Table, e *Effects, end int64) { // end is what the inbox holds when it is begun to be read
		table.Begin(end)
		table.Apply(&on, Mark{Time: 100, Offset: 1}, e)
		table.Apply(&hb, Mark{Time: 101, Offset: 2}, e)
		table.ExpireConnection(&x, 200, e)
		table.Apply(&on2, Mark{Time: 300, Offset: 4}, e)
		table.Commit()
	}
	var e Effects
	table := NewTable(rules)
	play(table, &e, 1)
	if table.Connections() != 1 {
		t.Fatal("the connection is not open to begin with")
	}
	table = restored(t, rules, e.Changes)
	play(table, &e, 4)
	if table.Connections() != 1 {
		t.Error("reading the inbox once more has closed a connection for good")
	}
}

// Silence is that of the gateways, not of route: what route may lag while it counts as being at the ends counts for nobody's silence.
func TestLagWithinTheGraceIsNoSilence(t *testing.T) {
	const second = int64(1000)
	l := Liveness{TTL: 90 * second}
	said := func(at, asOf, offset int64, read ...int32) {
		l.CaughtUp(&schemas.CaughtUp{AsOf: asOf, Topics: []schemas.CaughtUpTopic{{Name: "a", Partitions: 1, Read: read}}}, Mark{at, offset}, 0)
	}
	// A connection gives a sign every 85 s: at 98.5, and at 183.5, which route has not read before 189.5. What was there at
	// 183.4 it has read by 186.
	const sign = int64(985)
	for s := int64(90); s <= 183; s++ {
		said(s*second, (s-1)*second, s*10, 0)
	}
	said(184*second, 183*second, 1840)
	said(185*second, 183*second, 1850)
	said(186*second, 183*second+400, 1860, 0)
	for s := int64(187); s <= 189; s++ {
		said(s*second, (s-2)*second, s*10)
		if since, ok := l.Since(); ok && sign < since {
			t.Errorf("at %d a connection counts as silent for 90 s that was heard at 98.5 and speaks at 183.5", s)
		}
	}
}

// Where no topic exists there is nothing to be heard.
func TestNoTopicIsNoSilence(t *testing.T) {
	const second = int64(1000)
	l := Liveness{TTL: 90 * second}
	for s := int64(100); s < 300; s++ {
		l.CaughtUp(&schemas.CaughtUp{AsOf: (s - 1) * second, Topics: []schemas.CaughtUpTopic{{Name: "a"}}}, Mark{s * second, s * 10}, 0)
	}
	if _, ok := l.Since(); ok {
		t.Error("silence counts while no connections topic exists")
	}
}

// A topic that was read and is gone is an outage of the gateways' way, not their silence.
func TestTopicThatIsGoneIsNoSilence(t *testing.T) {
	const second = int64(1000)
	l := Liveness{TTL: 90 * second}
	for s := int64(100); s < 400; s++ {
		gone := schemas.CaughtUpTopic{Name: "a", Partitions: 1, Read: []int32{0}}
		if s >= 250 {
			gone = schemas.CaughtUpTopic{Name: "a"}
		}
		l.CaughtUp(&schemas.CaughtUp{AsOf: (s - 1) * second, Topics: []schemas.CaughtUpTopic{gone, {Name: "b", Partitions: 1, Read: []int32{0}}}}, Mark{s * second, s * 10}, 0)
		if _, ok := l.Since(); ok && s > 260 {
			t.Fatalf("silence counts at %d though a topic that was read is gone since 250", s)
		}
	}
}
