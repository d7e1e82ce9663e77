package main

import (
	"strings"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// drainTimeout is how long all that is under way may take to arrive once the traffic has stopped: a group that has to
// miss a member and a transaction that has to time out among it.
const drainTimeout = 90 * time.Second

// TestKill kills `offhook run` in the middle of traffic, each time while the endpoint has taken a request that offhook
// has no answer to, and once more while it starts. Nothing is lost, and what comes again has a known id and body.
func TestKill(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3)
		settings := []string{"OFFHOOK_INSTANCE_ID=one"}
		p := s.run(settings...).ready()
		traffic := s.simulate(100, 50)
		e.waitItems(schemas.EventNotify, 20, effectTimeout)

		for i, event := range []schemas.Event{schemas.EventNotify, schemas.EventOnlineStatus} {
			h := e.hold(event)
			select {
			case <-h.reached:
			case <-time.After(effectTimeout):
				t.Fatalf("no request of %s within %v", event, effectTimeout)
			}
			p.kill()
			close(h.release)
			if i == 1 {
				p = s.run(settings...)
				p.opsAddr()
				p.kill()
			}
			p = s.run(settings...).ready()
			kafkatest.Wait(t, drainTimeout, "the request without an answer to come again", func() bool {
				return e.receiver.Summary(nil).RepeatedIDs > int64(i)
			})
		}
		e.settle(traffic.stop(), drainTimeout, s.quiet())
		p.terminate()
	})
}

// TestEndpointDown has the endpoint refuse connections and then answer 503 for a while, under traffic: everything
// arrives afterwards, in order, and nothing was given up.
func TestEndpointDown(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3)
		p := s.run("OFFHOOK_WEBHOOK_URL=" + e.url() + "?token=planted").ready()
		traffic := s.simulate(100, 50)
		e.waitItems(schemas.EventNotify, 20, effectTimeout)
		down := 3 * time.Second
		if long() {
			down = time.Minute
		}

		e.close()
		time.Sleep(down)
		e.open()
		n := len(e.items(schemas.EventNotify))
		e.waitItems(schemas.EventNotify, n+50, drainTimeout)

		e.answers(func(schemas.Event) int { return 503 })
		time.Sleep(down)
		if e.refusals() == 0 {
			t.Error("the endpoint was not asked while it answered 503")
		}
		for _, path := range []string{"/readyz", "/livez"} {
			if status, body := p.get(path); status != 200 {
				t.Errorf("GET %s answers %d while the endpoint is down: %s", path, status, body)
			}
		}
		e.answers(nil)
		e.settle(traffic.stop(), drainTimeout, s.quiet())
		if letters := c.ReadAll(t, s.topics.DeadLetters); len(letters) > 0 {
			t.Errorf("%d dead letters, want none", len(letters))
		}
		p.terminate()
		log := p.stderr.String()
		for _, cause := range []string{"connection", "503"} {
			if !strings.Contains(log, cause) {
				t.Errorf("the log does not say why requests failed: no %q in it", cause)
			}
		}
		if strings.Contains(log, "planted") {
			t.Error("the log holds the URL's query")
		}
	})
}

// TestTwoProcesses has two processes share the partitions, ends one by SIGTERM and then one by kill -9 under traffic.
// The partitions move; nothing is lost or out of order.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3)
		first := s.run().ready()
		traffic := s.simulate(100, 50)
		second := s.run().ready()
		shares(t, first, second)

		first.terminate()
		owns(t, second)

		third := s.run().ready()
		shares(t, second, third)
		second.kill()
		owns(t, third)
		n := len(e.items(schemas.EventNotify))
		e.waitItems(schemas.EventNotify, n+50, effectTimeout)
		e.settle(traffic.stop(), drainTimeout, s.quiet())
		third.terminate()
	})
}

// all partitions: of the two input topics and the inbox, and the sink's lanes of three event topics.
const (
	allStages = 3 + 3 + 4
	allLanes  = 3 * 4
)

// holdings are the partitions that a process holds: of route and presence, and lanes of the sink.
func holdings(t *testing.T, p *process) (stages, lanes float64) {
	t.Helper()
	f := scrape(t, p)
	stages, _ = f.sum("offhook_partitions_assigned")
	lanes, _ = f.sum("offhook_sink_lanes")
	return stages, lanes
}

// shares waits until two processes hold some partitions each, and all together.
func shares(t *testing.T, a, b *process) {
	t.Helper()
	kafkatest.Wait(t, startTimeout, "two processes to share the partitions", func() bool {
		stagesA, lanesA := holdings(t, a)
		stagesB, lanesB := holdings(t, b)
		return stagesA > 0 && lanesA > 0 && stagesB > 0 && lanesB > 0 && lanesA+lanesB == allLanes && stagesA+stagesB == allStages
	})
}

// owns waits until one process holds all partitions.
func owns(t *testing.T, p *process) {
	t.Helper()
	// A member that is killed amid a rebalance can hold it up for the rebalance timeout.
	kafkatest.Wait(t, drainTimeout, "one process to hold all partitions", func() bool {
		stages, lanes := holdings(t, p)
		return stages == allStages && lanes == allLanes
	})
}
