package txn

import (
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Offsets move with what was made of the records, in their transaction: no commit of another kind is ever sent, also where a
// transaction was aborted, or at the end.
func TestOffsetsMoveInTransactions(t *testing.T) {
	w := newWorld(t)
	var inside, beside atomic.Int32
	w.fake.ControlKey(int16(kmsg.OffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		beside.Add(1)
		return nil, nil, false
	})
	w.fake.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		if inside.Add(1) == 2 {
			return refuse(30)(req), nil, true // GROUP_AUTHORIZATION_FAILED
		}
		return nil, nil, false
	})
	m := w.run(w.config())
	for range 3 {
		w.send(40)
		w.all()
	}
	if err := m.stop(); err != nil {
		t.Error(err)
	}
	if beside.Load() != 0 || inside.Load() < 4 {
		t.Errorf("%d commits in transactions, %d beside them", inside.Load(), beside.Load())
	}
}
