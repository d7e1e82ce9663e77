package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// TestRecipients: who counts as online for msg.offline, and who is never a recipient, by the settings.
func TestRecipients(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		settings []string
		pushed   []string
	}{
		// web has flag 1, app flag 0, hidden flag 0 in the background.
		{"default", nil, []string{"hidden", "nobody", "system"}},
		{"the app alone", []string{"OFFHOOK_ONLINE_DEVICE_FLAGS=0"}, []string{"hidden", "nobody", "system", "web"}},
		{"background is online", []string{"OFFHOOK_BACKGROUND_IS_ONLINE=true"}, []string{"nobody", "system"}},
		{"system uids", []string{"OFFHOOK_SYSTEM_UIDS=system, other"}, []string{"hidden", "nobody"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
				parallel(t, c)
				e := newEndpoint(t)
				s := newSystem(t, c, e, 1)
				p := s.run(tt.settings...).ready()
				for _, event := range []string{
					`{"type":"online","uid":"web","conn_id":1,"device_flag":1}`,
					`{"type":"online","uid":"app","conn_id":1,"device_flag":0}`,
					`{"type":"online","uid":"hidden","conn_id":1,"device_flag":0}`,
					`{"type":"heartbeat","uid":"hidden","conn_id":1,"background":true}`,
					`{"type":"online","uid":"last","conn_id":1}`,
				} {
					c.Produce(t, &kgo.Record{Topic: s.connections, Value: []byte(event)})
				}
				// The heartbeat makes no event: it has arrived when what comes behind it in its input, to every inbox partition, has.
				e.waitItems(schemas.EventOnlineStatus, 4, effectTimeout)
				c.Produce(t, &kgo.Record{Topic: s.connections, Value: []byte(`{"type":"online","uid":"hidden","conn_id":2,"background":true}`)})
				e.waitItems(schemas.EventOnlineStatus, 5, effectTimeout)
				s.message(`{"channel_id":"c","channel_type":2,"from_uid":"u","payload":"","to_uids":["web","app","hidden","nobody","system"]}`)
				pushed := func() (uids []string) {
					for _, item := range e.items(schemas.EventOffline) {
						_, list, _ := strings.Cut(item, `"to_uids":["`)
						list, _, _ = strings.Cut(list, `"]`)
						uids = append(uids, strings.Split(list, `","`)...)
					}
					slices.Sort(uids)
					return uids
				}
				// One event comes from each inbox partition that has some of them.
				kafkatest.Wait(t, effectTimeout, "the recipients", func() bool { return len(pushed()) >= len(tt.pushed) })
				time.Sleep(s.quiet())
				if got := pushed(); !slices.Equal(got, tt.pushed) {
					t.Errorf("pushed to %v, want %v", got, tt.pushed)
				}
				p.terminate()
			})
		})
	}
}

// TestOrderByChannel: with OFFHOOK_NOTIFY_ORDER_BY=channel_id the messages of a channel are in order, whoever sends them.
func TestOrderByChannel(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 1)
		p := s.run("OFFHOOK_NOTIFY_ORDER_BY=channel_id", "OFFHOOK_WEBHOOK_BATCH_MAX=3").ready()
		const messages, channels = 200, 5
		records := make([]*kgo.Record, messages)
		for i := range records {
			records[i] = &kgo.Record{Topic: s.messages, Value: fmt.Appendf(nil, `{"channel_id":"c%d","channel_type":2,"from_uid":"u%d","client_msg_no":"m%d","payload":""}`, i%channels, i%17, i)}
		}
		c.Produce(t, records...)
		next := make(map[int]int)
		for _, item := range e.waitItems(schemas.EventNotify, messages, effectTimeout) {
			_, no, _ := strings.Cut(item, `"client_msg_no":"m`)
			var i int
			if _, err := fmt.Sscanf(no, "%d", &i); err != nil {
				t.Fatal(err)
			}
			if want := i%channels + channels*next[i%channels]; i != want {
				t.Fatalf("message %d of channel %d arrived, want %d", i, i%channels, want)
			}
			next[i%channels]++
		}
		p.terminate()
	})
}
