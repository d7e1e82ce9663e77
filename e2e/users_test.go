package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

const usersToken = "a-token-of-the-tests"

// opsAddress is an address that is free a moment before it is used: an owner has to know its own before it starts.
func opsAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// askUser asks a process for a user.
func askUser(address, uid string) (status int, retryAfter string, user schemas.User) {
	req, err := http.NewRequest(http.MethodGet, "http://"+address+"/v1/users/"+uid, http.NoBody)
	if err != nil {
		panic(err)
	}
	req.Header.Set("Authorization", "Bearer "+usersToken)
	resp, err := (&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, "", user
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&user); err != nil {
		return 0, "", user
	}
	return resp.StatusCode, resp.Header.Get("Retry-After"), user
}

// TestUsers: two processors and a process of a sink alone each answer for any user, and `offhook users` prints it; a processor that is
// restarted, and one that was stopped for longer than its session and woken, never answer with what is older than what was delivered
// before they were asked, but with 503 and Retry-After where they cannot be sure.
func TestUsers(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 2)
		var addresses []string
		processor := func(i int) *process {
			address := addresses[i]
			return start(t, s.env("OFFHOOK_OPS_ADDR="+address, "OFFHOOK_ADVERTISED_URL=http://"+address+"/", "OFFHOOK_QUERY_TOKEN="+usersToken), "processor")
		}
		addresses = append(addresses, opsAddress(t), opsAddress(t), opsAddress(t))
		first, second := processor(0).ready(), processor(1).ready()
		sink := start(t, s.env("OFFHOOK_OPS_ADDR="+addresses[2], "OFFHOOK_QUERY_TOKEN="+usersToken), "sink").ready()

		// The n-th connection of each user takes the place of the one before.
		const users = 8
		uid := func(u int) string { return fmt.Sprintf("user%d", u) }
		client := c.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
		n := 0
		next := func() {
			t.Helper()
			n++
			var records []*kgo.Record
			for u := range users {
				p := kafka.Partition(uid(u), 2)
				records = append(records, &kgo.Record{Topic: s.connections, Partition: p, Value: fmt.Appendf(nil, `{"type":"online","uid":%q,"conn_id":%d,"node_id":"gw","device_flag":1}`, uid(u), n)})
				if n > 1 {
					records = append(records, &kgo.Record{Topic: s.connections, Partition: p, Value: fmt.Appendf(nil, `{"type":"offline","uid":%q,"conn_id":%d,"node_id":"gw"}`, uid(u), n-1)})
				}
			}
			if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		newest := func(user schemas.User) (n int) {
			for _, conn := range user.Connections {
				id, _ := strconv.Atoi(string(conn.ConnID))
				n = max(n, id)
			}
			return n
		}
		delivered := func(n int) bool { return len(e.statuses()) >= users*(2*n-1) }
		next()
		kafkatest.Wait(t, effectTimeout, "all to be online", func() bool { return delivered(n) })
		for i, address := range addresses {
			for u := range users {
				var status int
				var user schemas.User
				kafkatest.Wait(t, effectTimeout, fmt.Sprintf("process %d to answer for %s", i, uid(u)), func() bool {
					status, _, user = askUser(address, uid(u))
					return status != http.StatusServiceUnavailable
				})
				if status != http.StatusOK || user.Total != 1 || newest(user) != n || user.OfflinePush {
					t.Errorf("process %d: %d %+v", i, status, user)
				}
			}
		}
		code, stdout, stderr := command(t, []string{"OFFHOOK_QUERY_TOKEN=" + usersToken}, "users", "--url", "http://"+addresses[2], uid(0), "nobody")
		if lines := strings.Split(strings.TrimSpace(stdout), "\n"); code != 0 || len(lines) != 3 ||
			!strings.HasPrefix(strings.Join(strings.Fields(lines[1]), " "), "user0 true 1 gw 1 1 ") || strings.Join(strings.Fields(lines[2]), " ") != "nobody false 0" {
			t.Errorf("users: exit code %d:\n%s%s", code, stdout, stderr)
		}
		if code, _, stderr := command(t, []string{"OFFHOOK_QUERY_TOKEN=another-token-of-tests"}, "users", "--url", "http://"+addresses[0], uid(0)); code != 1 || !strings.Contains(stderr, "OFFHOOK_QUERY_TOKEN") {
			t.Errorf("users with a wrong token: exit code %d: %s", code, stderr)
		}

		// From here on everybody is asked all the time, and never answers with what is older than what was delivered.
		var known, wrong, moving, answered atomic.Int64
		known.Store(int64(n))
		stop, asked := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(asked)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(3 * time.Millisecond):
				}
				least := known.Load()
				switch status, retryAfter, user := askUser(addresses[i%3], uid(i%users)); {
				case status == http.StatusOK && int64(newest(user)) < least:
					wrong.Add(1)
					t.Errorf("process %d answers for %s with connection %d, and %d was delivered", i%3, uid(i%users), newest(user), least)
				case status == http.StatusOK:
					answered.Add(1)
				case status == http.StatusServiceUnavailable && retryAfter != "":
					moving.Add(1)
				case status != 0: // one that is down answers nothing
					t.Errorf("process %d answers %d, Retry-After %q", i%3, status, retryAfter)
				}
			}
		}()
		defer func() { close(stop); <-asked }()
		progress := func(what string, rounds int) {
			t.Helper()
			for range rounds {
				next()
				kafkatest.Wait(t, 2*effectTimeout, what, func() bool { return delivered(n) })
				known.Store(int64(n))
			}
		}
		progress("events with both", 5)
		second.terminate()
		progress("events with one", 5)
		second = processor(1).ready()
		progress("events with both again", 5)

		// A zombie: its partitions go to the other, whose events it does not know when it wakes.
		if err := first.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		progress("events without the one that is stopped", 5)
		answered.Store(0)
		if err := first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		for u := range users {
			if status, _, user := askUser(addresses[0], uid(u)); status == http.StatusOK && newest(user) < n {
				t.Errorf("the one that woke answers for %s with connection %d, and %d was delivered", uid(u), newest(user), n)
			}
		}
		progress("events after it woke", 5)
		kafkatest.Wait(t, effectTimeout, "answers", func() bool { return answered.Load() > 100 })
		if moving.Load() == 0 {
			t.Error("nobody was seen to be unsure")
		}
		first.terminate()
		second.terminate()
		sink.terminate()
	})
}
