package presence

import (
	"testing"

	"github.com/offhook/offhook/schemas"
)

// A start that closes over several transactions is recorded in the first, before any close, so that a table that is restored
// after it goes on where the other was, and whoever reads the changelog meets no close of an unknown cause.
func TestStartIsRecordedFirst(t *testing.T) {
	rules := Rules{CloseMemory: 600_000, ClosesAtOnce: 2}
	table := NewTable(rules)
	var log Effects
	for i, uid := range []string{"a", "b", "c"} {
		c := schemas.Connection{Type: schemas.Online, UID: uid, ConnID: "1", NodeID: "g", HasDeviceFlag: true, Time: 5, OpenedAt: -1}
		table.Apply(&c, Mark{Time: 1, Offset: int64(i)}, &log)
	}
	opened := len(log.Changes)
	start, at := schemas.Connection{Type: schemas.NodeStarted, NodeID: "g", Time: 9, OpenedAt: -1}, Mark{Time: 2, Offset: 3}
	if o, more := table.Apply(&start, at, &log); o != OutcomeNodeStarted || !more {
		t.Fatalf("the first part: %s, more %v", o, more)
	}
	first, err := schemas.DecodePresenceKey(log.Changes[opened].Key)
	if err != nil || first.Kind != schemas.PresenceNodeStart || len(log.Changes) != opened+3 {
		t.Errorf("of %d changes the first is %+v, %v, want the start and two closes", len(log.Changes)-opened, first, err)
	}
	again := restored(t, rules, log.Changes)
	if o, more := again.Apply(&start, at, &Effects{}); o != OutcomeNodeClosing || more || again.Connections() != 0 {
		t.Errorf("restored, the second part: %s, more %v, and %d connections are left", o, more, again.Connections())
	}
}
