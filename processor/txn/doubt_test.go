package txn

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/offhook/offhook/internal/ops"
)

// TestForgottenMemberCommitsNothing: a member that was forgotten while it rejoined comes back under another id with its
// old partitions and an open transaction. Others may have owned them meanwhile, so nothing of it may be committed.
func TestForgottenMemberCommitsNothing(t *testing.T) {
	w := newWorld(t)
	w.send(8)
	held, release := make(chan struct{}), make(chan struct{})
	var armed atomic.Bool
	m := w.run(w.config(), func(c *counter) {
		c.onRecord = func(Input) {
			if armed.CompareAndSwap(true, false) {
				close(held)
				<-release
			}
		}
	})
	w.all()
	// By a new session, or partition by partition where a heartbeat has told of the loss before the join.
	thrown := func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.resets > 0 || m.restores > parts }
	var old atomic.Value // the member id of the commits before
	var wrong atomic.Int32
	w.fake.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		member := req.(*kmsg.TxnOffsetCommitRequest).MemberID
		if before, ok := old.Load().(string); ok && before != member && !thrown() {
			wrong.Add(1)
		}
		old.CompareAndSwap(nil, member)
		return nil, nil, false
	})
	w.send(4)
	w.all()

	armed.Store(true)
	w.send(1)
	<-held
	w.answer(kmsg.Heartbeat, 1, func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = kerr.RebalanceInProgress.Code
		return resp
	})
	// The coordinator forgets it between that heartbeat and the join.
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group, leave.MemberID = "p.test", old.Load().(string)
	gone := kmsg.NewLeaveGroupRequestMember()
	gone.MemberID = leave.MemberID
	leave.Members = append(leave.Members, gone)
	if _, err := leave.RequestWith(t.Context(), w.cl); err != nil {
		t.Fatal(err)
	}
	// Whether it has joined anew when the loop goes on or not: it must not commit.
	time.AfterFunc(500*time.Millisecond, func() { close(release) })
	w.all()
	w.send(8)
	w.all()
	if wrong.Load() > 0 {
		t.Errorf("%d commits under the new member id before the state was thrown away", wrong.Load())
	}
	w.wait("the state to be restored", thrown)
}

// TestLossIsHeardOfLate: a loop that is busy while its member is forgotten and joins again learns of the loss when it owns all anew.
func TestLossIsHeardOfLate(t *testing.T) {
	w := newWorld(t)
	w.send(8)
	held, release := make(chan struct{}), make(chan struct{})
	var armed atomic.Bool
	m := w.run(w.config(), func(c *counter) {
		c.onRecord = func(Input) {
			if armed.CompareAndSwap(true, false) {
				close(held)
				<-release
			}
		}
	})
	w.all()
	var syncs atomic.Int32
	w.fake.ControlKey(int16(kmsg.SyncGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		syncs.Add(1)
		return nil, nil, false
	})
	armed.Store(true)
	w.send(1)
	<-held
	w.answer(kmsg.Heartbeat, 1, func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp
	})
	w.wait("it to join again", func() bool { return syncs.Load() > 0 })
	time.AfterFunc(100*time.Millisecond, func() { close(release) }) // when it has its partitions
	w.all()
	w.send(8)
	w.all()
	w.wait("all partitions", func() bool { return m.partitions() == parts })
}

// TestPartitionWithoutLeader: a partition that nobody can look up holds up no other.
func TestPartitionWithoutLeader(t *testing.T) {
	w := newWorld(t)
	w.send(40)
	var healed atomic.Bool
	w.fake.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		r := req.(*kmsg.ListOffsetsRequest)
		hit := false
		for _, topic := range r.Topics {
			for _, p := range topic.Partitions {
				hit = hit || topic.Topic == "in" && p.Partition == 3
			}
		}
		if !hit || healed.Load() {
			return nil, nil, false
		}
		resp := r.ResponseKind().(*kmsg.ListOffsetsResponse)
		for _, topic := range r.Topics {
			answer := kmsg.NewListOffsetsResponseTopic()
			answer.Topic = topic.Topic
			for _, p := range topic.Partitions {
				listed := kmsg.NewListOffsetsResponseTopicPartition()
				listed.Partition, listed.Offset = p.Partition, 0
				if p.Timestamp == -1 {
					listed.Offset = 10
				}
				if p.Partition == 3 {
					listed.ErrorCode = kerr.LeaderNotAvailable.Code
				}
				answer.Partitions = append(answer.Partitions, listed)
			}
			resp.Topics = append(resp.Topics, answer)
		}
		return resp, nil, true
	})
	m := w.run(w.config())
	w.wait("the other partitions", func() bool { return m.metric("offhook_records_consumed_total") == 30 })
	healed.Store(true)
	w.all()
	if m.resets > 0 {
		t.Errorf("%d sessions failed", m.resets)
	}
}

// TestLeftIsNotReady: a member that the group has lost is not ready, though it owns nothing that is not restored.
func TestLeftIsNotReady(t *testing.T) {
	w := newWorld(t)
	w.send(8)
	health := ops.NewHealth()
	m := w.run(w.config(), func(c *counter) { c.deps.Stage = health.Stage("test") })
	w.all()
	w.wait("ready", func() bool { return len(health.Unready()) == 0 })
	lose := func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.HeartbeatResponse)
		resp.ErrorCode = kerr.UnknownMemberID.Code
		return resp
	}
	w.answer(kmsg.Heartbeat, 1000, lose)
	refused := w.answer(kmsg.JoinGroup, 40, func(req kmsg.Request) kmsg.Response {
		resp := req.ResponseKind().(*kmsg.JoinGroupResponse)
		resp.ErrorCode = kerr.GroupAuthorizationFailed.Code
		return resp
	})
	w.wait("refused joins", func() bool { return refused.Load() > 0 })
	w.wait("not ready", func() bool { return len(health.Unready()) == 1 })
	_ = m
}

// TestTopicThatTakesTooLittle: a topic that refuses what an accepted record makes ends the process with what to do; the same
// transaction would be aborted for ever.
func TestTopicThatTakesTooLittle(t *testing.T) {
	w := newWorld(t)
	w.send(4)
	m := w.run(w.config())
	w.all()
	w.answer(kmsg.Produce, 1000, func(req kmsg.Request) kmsg.Response {
		if topics := req.(*kmsg.ProduceRequest).Topics; len(topics) == 0 || req.(*kmsg.ProduceRequest).TransactionID == nil {
			return nil // the test's own
		}
		return refuse(kerr.MessageTooLarge.Code)(req)
	})
	w.send(1)
	select {
	case <-m.done:
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	if !IsFatal(m.err) || !strings.Contains(m.err.Error(), "max.message.bytes") {
		t.Errorf("it ended with %v", m.err)
	}
}

// TestFailedRecordThatWasWritten: a broker before 4.0 writes records and says that it did not. The next transaction must not give others
// their sequence numbers under the same epoch, or the broker drops those as copies.
func TestFailedRecordThatWasWritten(t *testing.T) {
	w := newWorld(t, kfake.MaxVersions(kversion.V3_3_0()))
	w.send(parts)
	m := w.run(w.config())
	w.all()
	var once atomic.Bool
	w.fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.fake.KeepControl()
		resp := refuse(kerr.UnknownServerError.Code)(req)
		if resp == nil || once.Swap(true) {
			return nil, nil, false
		}
		node, again := w.fake.CurrentNode(), *(req.(*kmsg.ProduceRequest))
		w.fake.SleepControl(func() { // once is true, so it passes
			if _, err := w.cl.Broker(int(node)).Request(context.Background(), &again); err != nil {
				t.Errorf("pass Produce on: %v", err)
			}
		})
		return resp, nil, true
	})
	w.send(parts)
	w.all()
	w.send(parts)
	w.all()
	if got := m.metric("offhook_sessions_total"); got != 2 {
		t.Errorf("%v sessions, want 2: the next epoch", got)
	}
}
