package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// TestConnectionTTL: a gateway that is gone loses its connections, and none that heartbeats does: not one whose clock is two minutes slow,
// not one that heartbeats as a whole, and not after offhook was down for longer than the time to live.
func TestConnectionTTL(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		alone(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 2)
		const ttl = 4 * time.Second
		p := s.run("OFFHOOK_CONNECTION_TTL=" + ttl.String()).ready()
		client := c.Client(t)
		write := func(format string, args ...any) {
			r := &kgo.Record{Topic: s.connections, Value: fmt.Appendf(nil, format, args...)}
			if err := client.ProduceSync(context.Background(), r).FirstErr(); err != nil {
				t.Error(err)
			}
		}
		slow := func() int64 { return time.Now().Add(-2 * time.Minute).UnixMilli() }
		write(`{"type":"online","uid":"beats","conn_id":1,"node_id":"a"}`)
		write(`{"type":"online","uid":"slow","conn_id":1,"node_id":"slow","timestamp":%d}`, slow())
		for i := range 20 {
			write(`{"type":"online","uid":"whole%d","conn_id":%[1]d,"node_id":"whole"}`, i)
			write(`{"type":"online","uid":"gone%d","conn_id":%[1]d,"node_id":"gone"}`, i)
		}
		beating, stop := context.WithCancel(context.Background())
		beats := make(chan struct{})
		go func() {
			defer close(beats)
			for beating.Err() == nil {
				write(`{"type":"heartbeat","uid":"beats","conn_id":1,"node_id":"a"}`)
				write(`{"type":"heartbeat","uid":"slow","conn_id":1,"node_id":"slow","timestamp":%d}`, slow())
				write(`{"type":"heartbeat","node_id":"whole"}`)
				select {
				case <-time.After(300 * time.Millisecond):
				case <-beating.Done():
				}
			}
		}()
		defer func() { stop(); <-beats }()

		closed := func() (uids []string) {
			for _, status := range e.statuses() {
				if f := strings.Split(status, "-"); f[2] == "0" {
					uids = append(uids, f[0])
				}
			}
			return uids
		}
		check := func() {
			t.Helper()
			for _, uid := range closed() {
				if !strings.HasPrefix(uid, "gone") {
					t.Errorf("the connection of %s was closed, though it gives signs of life", uid)
				}
			}
		}
		e.waitItems(schemas.EventOnlineStatus, 42, effectTimeout)
		kafkatest.Wait(t, effectTimeout, "the gateway that is gone to lose all", func() bool { return len(closed()) >= 20 })
		check()

		p.terminate()
		time.Sleep(ttl + time.Second)
		p = s.run("OFFHOOK_CONNECTION_TTL=" + ttl.String()).ready()
		time.Sleep(2*ttl + s.quiet())
		check()
		if n := len(closed()); n != 20 {
			t.Errorf("%d connections were closed, want 20", n)
		}
		write(`{"type":"heartbeat","uid":"gone3","conn_id":3,"node_id":"gone","device_flag":0}`) // it was alive after all
		kafkatest.Wait(t, effectTimeout, "the one that is back", func() bool { return slices.Contains(e.statuses(), "gone3-0-1-3-1-1") && len(e.statuses()) == 63 })
		p.terminate()
	})
}
