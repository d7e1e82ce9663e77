package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// effectTimeout is how long the effect of one record may take to arrive.
const effectTimeout = time.Minute

// TestAcceptance walks the table of user.onlinestatus items, each row written when the last one's effect is seen, then
// two messages, and compares all that arrives to the letter.
func TestAcceptance(t *testing.T) {
	t.Parallel()
	for _, w := range writers {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
				parallel(t, c)
				acceptance(t, c, w.make(t, c))
			})
		})
	}
}

func acceptance(t *testing.T, c *kafkatest.Cluster, write writer) {
	t.Helper()
	key := []byte("acceptance-key-of-32-bytes------")
	secret := "whsec_" + base64.StdEncoding.EncodeToString(key)
	e := newEndpoint(t, key)
	s := newSystem(t, c, e, 1)
	p := s.run("OFFHOOK_WEBHOOK_SECRETS="+secret, "OFFHOOK_WEBHOOK_URL="+e.url()+"?tenant=seven").ready()

	late := func() string {
		return fmt.Sprintf(`{"type":"online","uid":"uid1","device_flag":1,"conn_id":1002,"node_id":1,"timestamp":%d}`,
			time.Now().Add(-5*time.Minute).UnixMilli())
	}
	connection := func(rest string) func() string {
		return func() string { return `{"type":` + rest + `}` }
	}
	rows := []struct {
		event string
		value func() string
		item  string // empty: nothing
	}{
		{"online web conn 1001 node 1", connection(`"online","uid":"uid1","device_flag":1,"conn_id":1001,"node_id":1`), "uid1-1-1-1001-1-1"},
		{"online web conn 1002 node 1", connection(`"online","uid":"uid1","device_flag":1,"conn_id":1002,"node_id":1`), "uid1-1-1-1002-2-2"},
		{"online app conn 1001 node 2", connection(`"online","uid":"uid1","device_flag":0,"conn_id":1001,"node_id":2`), "uid1-0-1-1001-1-3"},
		{"online app conn 1001 node 2 again", connection(`"online","uid":"uid1","device_flag":0,"conn_id":1001,"node_id":2`), ""},
		{"offline web conn 1001 node 1", connection(`"offline","uid":"uid1","device_flag":1,"conn_id":1001,"node_id":1`), "uid1-1-0-1001-1-2"},
		{"offline web conn 1001 node 1 again", connection(`"offline","uid":"uid1","device_flag":1,"conn_id":1001,"node_id":1`), ""},
		{"heartbeat conn 7 node 1", connection(`"heartbeat","uid":"uid1","conn_id":7,"node_id":1`), ""},
		{"node_started node 2", connection(`"node_started","node_id":2`), "uid1-0-0-1001-0-1"},
		{"offline web conn 1002 node 1", connection(`"offline","uid":"uid1","device_flag":1,"conn_id":1002,"node_id":1`), "uid1-1-0-1002-0-0"},
		{"online web conn 1002 node 1, 5 minutes before", late, ""},
		{"heartbeat web conn 1003 node 1", connection(`"heartbeat","uid":"uid1","device_flag":1,"conn_id":1003,"node_id":1`), "uid1-1-1-1003-1-1"},
		{"online of uid3", connection(`"online","uid":"uid3","device_flag":0,"conn_id":"2001","node_id":"1"`), "uid3-0-1-2001-1-1"},
	}
	var want []string
	for _, row := range rows {
		write(t, s.connections, "some key", row.value())
		if row.item == "" {
			time.Sleep(s.quiet())
		} else {
			want = append(want, row.item)
			e.waitItems(schemas.EventOnlineStatus, len(want), effectTimeout)
		}
		if diff := cmp.Diff(want, e.statuses()); diff != "" {
			t.Fatalf("user.onlinestatus items after %q (-want +got):\n%s", row.event, diff)
		}
	}

	const group = `{"header":{"red_dot":1},"message_id":9007199254740993,"client_msg_no":"c-1","message_seq":18446744073709551615,` +
		`"from_uid":"uid1","channel_id":"g1","channel_type":2,"timestamp":1767225600,"payload":"bm90IGZvciBsb2dz",` +
		`"to_uids":["uid1","uid2","uid2","uid3"],"x_trace":{"n":[1,2.50,12345678901234567890]},"x_nothing":null,"expire":3600}`
	const groupHead = `{"header":{"no_persist":0,"red_dot":1,"sync_once":0},"setting":0,"message_id":9007199254740993,"message_idstr":"9007199254740993",` +
		`"client_msg_no":"c-1","message_seq":18446744073709551615,"from_uid":"uid1","channel_id":"g1","channel_type":2,"timestamp":1767225600,"payload":"bm90IGZvciBsb2dz"`
	const groupTail = `,"x_trace":{"n":[1,2.50,12345678901234567890]},"expire":3600}`
	before := time.Now().Unix()
	write(t, s.messages, "uid1", group)
	notifies := e.waitItems(schemas.EventNotify, 1, effectTimeout)
	offlines := e.waitItems(schemas.EventOffline, 1, effectTimeout)
	if diff := cmp.Diff([]string{groupHead + groupTail}, notifies); diff != "" {
		t.Errorf("msg.notify of the group message (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{groupHead + `,"to_uids":["uid2"]` + groupTail}, offlines); diff != "" {
		t.Errorf("msg.offline of the group message (-want +got):\n%s", diff)
	}

	write(t, s.messages, "", `{"from_uid":"uid1","channel_id":"uid9","channel_type":1}`)
	notifies = e.waitItems(schemas.EventNotify, 2, effectTimeout)
	offlines = e.waitItems(schemas.EventOffline, 2, effectTimeout)
	checkDefaults(t, s, notifies[1], "", before)
	checkDefaults(t, s, offlines[1], `,"to_uids":["uid9"]`, before)

	time.Sleep(s.quiet())
	for event, n := range map[schemas.Event]int{schemas.EventNotify: 2, schemas.EventOffline: 2, schemas.EventOnlineStatus: len(want)} {
		if items := e.items(event); len(items) != n {
			t.Errorf("%d items of %s arrived over all, want %d: %v", len(items), event, n, items)
		}
	}
	checkRequests(t, e, secret)
	if summary := e.receiver.Summary(nil); summary.Wrong() || summary.RepeatedIDs > 0 {
		t.Errorf("the receiver finds something wrong: %+v", summary)
	}
	checkCounts(t, p, acceptanceCounts)
	checkLint(t, p)
	p.terminate()
	for _, private := range []string{secret, string(key), "bm90IGZvciBsb2dz", "uid1", "tenant=seven", e.url()} {
		if strings.Contains(p.stderr.String()+p.stdout.String(), private) {
			t.Errorf("the log holds %q", private)
		}
	}
}

// checkDefaults holds an item of the second message, which has from_uid, channel_id and channel_type alone, against
// what the defaults make of it.
func checkDefaults(t *testing.T, s *system, item, recipients string, after int64) {
	t.Helper()
	var got struct {
		MessageIDStr string `json:"message_idstr"`
		Timestamp    int64  `json:"timestamp"`
	}
	if err := json.Unmarshal([]byte(item), &got); err != nil {
		t.Fatalf("decode an item: %v: %s", err, item)
	}
	if !regexp.MustCompile(`^` + regexp.QuoteMeta(s.messages) + `-0-\d+$`).MatchString(got.MessageIDStr) {
		t.Errorf("message_idstr is %q, want <topic>-<partition>-<offset>", got.MessageIDStr)
	}
	if now := time.Now().Unix(); got.Timestamp < after-1 || got.Timestamp > now+1 {
		t.Errorf("timestamp is %d, want the record's own, %d to %d", got.Timestamp, after, now)
	}
	sum := sha256.Sum256([]byte(got.MessageIDStr))
	want := fmt.Sprintf(`{"header":{"no_persist":0,"red_dot":0,"sync_once":0},"setting":0,"message_id":%d,"message_idstr":%q,"client_msg_no":"",`+
		`"message_seq":0,"from_uid":"uid1","channel_id":"uid9","channel_type":1,"timestamp":%d,"payload":""%s}`,
		binary.BigEndian.Uint64(sum[:8])>>1, got.MessageIDStr, got.Timestamp, recipients)
	if diff := cmp.Diff(want, item); diff != "" {
		t.Errorf("item of a message of defaults (-want +got):\n%s", diff)
	}
}

// checkRequests looks at what each request must have: query, type, id, and a signature that the Standard Webhooks
// library accepts.
func checkRequests(t *testing.T, e *endpoint, secret string) {
	t.Helper()
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatalf("new verifier: %v", err)
	}
	id := regexp.MustCompile(`^[0-9a-f]{32}-\d+-\d+-\d+$`)
	for _, r := range e.all() {
		if want := "tenant=seven&event=" + url.QueryEscape(string(r.event)); r.query != want {
			t.Errorf("the query is %q, want %q", r.query, want)
		}
		if got := r.header.Get("Content-Type"); got != "application/json" {
			t.Errorf("the Content-Type is %q, want application/json", got)
		}
		if !id.MatchString(r.id) {
			t.Errorf("the webhook-id is %q, want <topic id>-<partition>-<first>-<last>", r.id)
		}
		if err := verifier.Verify(r.body, r.header); err != nil {
			t.Errorf("verify a request: %v", err)
		}
		if !bytes.HasPrefix(r.body, []byte{'['}) {
			t.Errorf("the body is no array: %s", r.body)
		}
	}
}
