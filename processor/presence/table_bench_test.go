package presence

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"testing"

	"github.com/offhook/offhook/schemas"
)

// benchEvent makes an event as it comes from the decoder: with strings of its own.
func benchEvent(typ schemas.ConnectionType, user, conn int, time int64) schemas.Connection {
	return schemas.Connection{
		Type: typ, UID: benchUID(user), ConnID: schemas.ID(strconv.Itoa(conn)), NodeID: schemas.ID(strconv.Itoa(conn % 16)),
		DeviceFlag: uint8(conn % 3), HasDeviceFlag: true, Time: time, OpenedAt: -1,
	}
}

func benchUID(user int) string { return fmt.Sprintf("user-%011d", user) } // 16 bytes

// benchTable has 1.5 connections a user: one, or two, in turns.
func benchTable(users int) (t *Table, conns int) {
	t = NewTable(Rules{CloseMemory: 600_000})
	var e Effects
	for u := range users {
		for range 1 + u%2 {
			c := benchEvent(schemas.Online, u, 1_000_000+conns, 1_700_000_000_000)
			t.Apply(&c, Mark{Time: 1_700_000_000_000}, &e)
			conns++
			e.Events, e.Changes = e.Events[:0], e.Changes[:0]
		}
		if u%1000 == 0 {
			t.Commit()
		}
	}
	t.Commit()
	return t, conns
}

// BenchmarkApply is an online and the offline of the same connection, in transactions of 1,000 events and with the
// table's own expiry, at a size of 100,000 users.
func BenchmarkApply(b *testing.B) {
	const users = 100_000
	table, _ := benchTable(users)
	events := make([]schemas.Connection, 0, 200_000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range cap(events) / 2 {
		u := r.IntN(users)
		events = append(events, benchEvent(schemas.Online, u, 10_000_000+i, 0), benchEvent(schemas.Offline, u, 10_000_000+i, 0))
	}
	var e Effects
	now, n := int64(1_700_000_001_000), 0
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		c := &events[n%len(events)]
		now += 3 // so that about 110,000 closes are remembered
		c.Time = now
		table.Apply(c, Mark{Time: now}, &e)
		if n++; n%1000 == 0 {
			table.Expire(now, 1000, &e)
			table.Commit()
			clear(e.Changes)
			e.Events, e.Changes = e.Events[:0], e.Changes[:0]
		}
	}
}

// BenchmarkApplyManyConnections is the same for one user: the cost of an event does not depend on the size.
func BenchmarkApplyManyConnections(b *testing.B) {
	for _, size := range []int{1, 15, 100, 10_000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			table := NewTable(Rules{CloseMemory: 600_000})
			var e Effects
			for i := range size {
				c := benchEvent(schemas.Online, 0, i, 1)
				table.Apply(&c, Mark{Time: 1}, &e)
			}
			table.Commit()
			on, off := benchEvent(schemas.Online, 0, size, 1), benchEvent(schemas.Offline, 0, size, 1)
			now := int64(1)
			for b.Loop() {
				now++
				on.Time, off.Time = now, now
				e.Events, e.Changes = e.Events[:0], e.Changes[:0]
				table.Apply(&on, Mark{Time: now}, &e)
				table.Apply(&off, Mark{Time: now}, &e)
				table.Commit()
			}
		})
	}
}

func BenchmarkAppendOffline(b *testing.B) {
	const users = 100_000
	table, _ := benchTable(users)
	uids := make([]string, 1000)
	for i := range uids {
		uids[i] = benchUID(i * 2 * users / len(uids)) // half of them offline
	}
	var dst []string
	for b.Loop() {
		dst = table.AppendOffline(dst[:0], uids)
	}
	if len(dst) != len(uids)/2 {
		b.Fatalf("%d are offline", len(dst))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(uids)), "ns/uid")
}

// BenchmarkNodeStarted walks a table of 100,000 users for a node that has one connection in 16.
func BenchmarkNodeStarted(b *testing.B) {
	table, _ := benchTable(100_000)
	c := schemas.Connection{Type: schemas.NodeStarted, NodeID: "3", Time: 1_700_000_000_000}
	for b.Loop() {
		var e Effects
		table.Apply(&c, Mark{Time: 1_700_000_001_000}, &e)
		table.Rollback()
	}
}

// BenchmarkMemory reports what a live connection takes at a million users with 1.5 connections each, and what a
// remembered close takes.
func BenchmarkMemory(b *testing.B) {
	for b.Loop() {
		before := heap()
		live, conns := benchTable(1_000_000)
		b.ReportMetric(float64(heap()-before)/float64(conns), "B/connection")
		runtime.KeepAlive(live)

		before = heap()
		table := NewTable(Rules{CloseMemory: 600_000})
		var e Effects
		const closes = 500_000
		for i := range closes {
			c := benchEvent(schemas.Offline, i, i, 1)
			table.Apply(&c, Mark{Time: int64(i)}, &e)
			e.Events, e.Changes = e.Events[:0], e.Changes[:0]
			if i%1000 == 0 {
				table.Commit()
			}
		}
		table.Commit()
		e = Effects{}
		b.ReportMetric(float64(heap()-before)/closes, "B/close")
		runtime.KeepAlive(table)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
