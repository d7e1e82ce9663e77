package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// TestZombieProcessor stops a processor by SIGSTOP in the middle of traffic, for longer than its session and its transaction may last, and wakes it when
// another has all partitions: nothing is lost, doubled or out of order, and what it held changes nothing. On kfake it is stopped at
// a point of a transaction of presence: amid its records, and when its offsets wait for the commit, which it sends when it wakes.
func TestZombieProcessor(t *testing.T) {
	t.Parallel()
	for _, key := range []kmsg.Key{kmsg.Produce, kmsg.TxnOffsetCommit} {
		t.Run("kfake, "+key.Name(), func(t *testing.T) {
			c := kafkatest.New(t)
			parallel(t, c)
			zombie(t, c, func(p *process) bool { return freezeAt(t, c, p, key) })
		})
	}
	t.Run("kafka", func(t *testing.T) {
		c := kafkatest.Real(t)
		parallel(t, c)
		zombie(t, c, func(p *process) bool { p.signal(syscall.SIGSTOP); return false })
	})
}

// zombie is the test. freeze stops a process, and tells whether it is amid a transaction of presence.
func zombie(t *testing.T, c *kafkatest.Cluster, freeze func(*process) bool) {
	e := newEndpoint(t)
	s := newSystem(t, c, e, 3)
	sink := start(t, s.env(), "sink").ready()
	first := start(t, s.env(), "processor").ready()
	traffic := s.simulate(100, 50)
	e.waitItems(schemas.EventNotify, 20, effectTimeout)
	second := start(t, s.env(), "processor").ready()
	kafkatest.Wait(t, startTimeout, "both to own some", func() bool {
		a, _ := scrape(t, first).sum("offhook_partitions_assigned", "stage=presence")
		b, _ := scrape(t, second).sum("offhook_partitions_assigned", "stage=presence")
		return a > 0 && b > 0 && fmt.Sprint(a+b) == partitions
	})

	amid := freeze(first)
	stopped := time.Now()
	kafkatest.Wait(t, drainTimeout, "the other to own all", func() bool {
		all, _ := holdings(t, second)
		return all == allStages
	})
	n := len(e.items(schemas.EventNotify))
	e.waitItems(schemas.EventNotify, n+50, drainTimeout)
	t.Logf("woken after %v", time.Since(stopped).Round(time.Millisecond))
	first.signal(syscall.SIGCONT)
	// It is of use again, under traffic.
	kafkatest.Wait(t, startTimeout, "both to own some again", func() bool {
		a, _ := scrape(t, first).sum("offhook_partitions_assigned", "stage=presence")
		b, _ := scrape(t, second).sum("offhook_partitions_assigned", "stage=presence")
		return a > 0 && b > 0 && fmt.Sprint(a+b) == partitions
	})
	first.ready()
	n = len(e.items(schemas.EventNotify))
	e.waitItems(schemas.EventNotify, n+50, effectTimeout)
	e.settle(traffic.stop(), drainTimeout, s.quiet())
	s.checkTable(first, second)
	if amid {
		f := scrape(t, first)
		aborted, _ := f.sum("offhook_transactions_total", "stage=presence", "outcome=aborted")
		failed, _ := f.sum("offhook_transactions_total", "stage=presence", "outcome=failed")
		if aborted+failed == 0 {
			t.Error("the transaction that it was stopped in was committed")
		}
	}
	for _, p := range []*process{first, second, sink} {
		p.terminate()
	}
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Errorf("send %v to offhook %s: %v", sig, p.name, err)
	}
}

// freezeAt stops a process when a request of a presence transaction of its own has come in.
func freezeAt(t *testing.T, c *kafkatest.Cluster, p *process, key kmsg.Key) bool {
	t.Helper()
	frozen := make(chan struct{})
	done := false
	c.Fake.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		id := ""
		switch r := req.(type) {
		case *kmsg.ProduceRequest:
			if r.TransactionID != nil {
				id = *r.TransactionID
			}
		case *kmsg.TxnOffsetCommitRequest:
			id = r.TransactionalID
		}
		if !done && strings.HasPrefix(id, c.Prefix+"-presence-") {
			done = true
			p.signal(syscall.SIGSTOP)
			close(frozen)
		}
		return nil, nil, false
	})
	select {
	case <-frozen:
	case <-time.After(effectTimeout):
		t.Fatalf("no %s of presence within %v", key.Name(), effectTimeout)
	}
	return true
}

// checkTable holds the presence topic and the tables of the processes against the totals that the last user.onlinestatus of each uid tells.
func (s *system) checkTable(processes ...*process) {
	s.t.Helper()
	online := make(map[string]int)
	for _, r := range s.cluster.ReadAll(s.t, s.topics.OnlineStatus) {
		var text string
		if err := json.Unmarshal(r.Value, &text); err != nil {
			s.t.Fatal(err)
		}
		status, err := schemas.ParseOnlineStatus(text)
		if err != nil {
			s.t.Fatal(err)
		}
		online[status.UID] = status.TotalCount
	}
	table := make(map[string]int)
	open := make(map[schemas.PresenceKey]bool)
	for _, r := range s.cluster.ReadAll(s.t, s.topics.Presence) {
		key, err := schemas.DecodePresenceKey(r.Key)
		if err != nil {
			s.t.Fatal(err)
		}
		if key.Kind != schemas.PresenceConnection {
			continue
		}
		var state schemas.ConnectionState
		if r.Value != nil {
			if state, err = schemas.DecodeConnectionState(r.Value); err != nil {
				s.t.Fatal(err)
			}
		}
		open[key] = state.Open
	}
	total := 0
	for key, open := range open {
		if open {
			table[key.UID]++
			total++
		}
	}
	for uid, n := range online {
		if table[uid] != n {
			s.t.Errorf("%s has %d connections in the presence topic, and %d by its last user.onlinestatus", uid, table[uid], n)
		}
	}
	if total == 0 {
		s.t.Error("nobody is online, which proves nothing")
	}
	var live float64
	kafkatest.Wait(s.t, effectTimeout, fmt.Sprintf("%d connections in the tables of the processes", total), func() bool {
		live = 0
		for _, p := range processes {
			n, _ := scrape(s.t, p).sum("offhook_presence_connections")
			live += n
		}
		return live == float64(total)
	})
}
