package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// TestBadSetting is one bad value through the binary; the list of all is in cmd/offhook/testdata.
func TestBadSetting(t *testing.T) {
	t.Parallel()
	code, stdout, stderr := command(t, []string{"OFFHOOK_KAFKA_BROKERS=127.0.0.1:1", "OFFHOOK_WEBHOOK_URL=ftp://x"}, "run")
	if code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	if stdout != "" {
		t.Errorf("stdout is %q, want nothing", stdout)
	}
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	if len(lines) != 1 || !strings.Contains(lines[0], "OFFHOOK_WEBHOOK_URL") || !strings.Contains(lines[0], "http") {
		t.Errorf("stderr is %q, want one line with OFFHOOK_WEBHOOK_URL and a value that works", stderr)
	}
}

// TestBrokerNotThere starts before Kafka does: offhook waits and says so, is live and not ready, and can be stopped.
func TestBrokerNotThere(t *testing.T) {
	t.Parallel()
	// A listener that is bound and closed: nobody answers there.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{"OFFHOOK_KAFKA_BROKERS=" + addr, "OFFHOOK_WEBHOOK_URL=http://127.0.0.1:1/", "OFFHOOK_OPS_ADDR=127.0.0.1:0"}, "run")
	p.opsAddr()
	kafkatest.Wait(t, effectTimeout, "the log to say that Kafka is waited for", func() bool {
		return strings.Contains(p.stderr.String(), "waiting for the Kafka brokers")
	})
	for range 3 {
		if status, body := p.get("/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "Kafka") {
			t.Errorf("GET /readyz: %d %q, want 503 and why", status, body)
		}
		if status, body := p.get("/livez"); status != http.StatusOK {
			t.Errorf("GET /livez: %d %q, want 200", status, body)
		}
		time.Sleep(500 * time.Millisecond)
	}
	if n := strings.Count(p.stderr.String(), "waiting for the Kafka brokers"); n > 3 {
		t.Errorf("the log says %d times within seconds that Kafka is waited for", n)
	}
	p.terminate()
}

// TestOldRecords starts offhook for the first time on topics with a past: old connections count, old messages reach
// nobody, the first new one does.
func TestOldRecords(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3)
		write := newFranz(t, c)
		hourAgo := time.Now().Add(-time.Hour).UnixMilli()
		for i := range 10 {
			write(t, s.connections, fmt.Sprint("old", i),
				fmt.Sprintf(`{"type":"online","uid":"old%d","conn_id":%d,"node_id":1,"timestamp":%d}`, i, 100+i, hourAgo))
			write(t, s.messages, fmt.Sprint("old", i), fmt.Sprintf(`{"from_uid":"old%d","channel_id":"asleep","payload":"aGk="}`, i))
		}
		p := s.run().ready()
		e.waitItems(schemas.EventOnlineStatus, 10, effectTimeout)
		time.Sleep(s.quiet())
		if items := append(e.items(schemas.EventNotify), e.items(schemas.EventOffline)...); len(items) > 0 {
			t.Errorf("old messages reached the receiver: %v", items)
		}

		write(t, s.messages, "new", `{"from_uid":"new","channel_id":"g","channel_type":2,"client_msg_no":"first","to_uids":["old3","asleep"]}`)
		checkMessage(t, e.waitItems(schemas.EventNotify, 1, effectTimeout), "first", nil)
		checkMessage(t, e.waitItems(schemas.EventOffline, 1, effectTimeout), "first", []string{"asleep"})
		p.terminate()

		// What comes while offhook is down is not old: it began before.
		write(t, s.messages, "new", `{"from_uid":"new","channel_id":"g","channel_type":2,"client_msg_no":"second","to_uids":["old3","asleep"]}`)
		p = s.run().ready()
		checkMessage(t, e.waitItems(schemas.EventNotify, 2, effectTimeout)[1:], "second", nil)
		checkMessage(t, e.waitItems(schemas.EventOffline, 2, effectTimeout)[1:], "second", []string{"asleep"})
		time.Sleep(s.quiet())
		if n := len(e.items(schemas.EventOnlineStatus)); n != 10 {
			t.Errorf("%d user.onlinestatus items after the restart, want the 10 from before", n)
		}
		p.terminate()
	})
}

// checkMessage holds the one item against client_msg_no and recipients.
func checkMessage(t *testing.T, items []string, clientMsgNo string, recipients []string) {
	t.Helper()
	if len(items) != 1 {
		t.Fatalf("%d items, want 1: %v", len(items), items)
	}
	var got struct {
		ClientMsgNo string   `json:"client_msg_no"`
		ToUIDs      []string `json:"to_uids"`
	}
	if err := json.Unmarshal([]byte(items[0]), &got); err != nil {
		t.Fatalf("decode an item: %v: %s", err, items[0])
	}
	if got.ClientMsgNo != clientMsgNo {
		t.Errorf("client_msg_no is %q, want %q", got.ClientMsgNo, clientMsgNo)
	}
	if diff := cmp.Diff(recipients, got.ToUIDs); diff != "" {
		t.Errorf("to_uids (-want +got):\n%s", diff)
	}
}
