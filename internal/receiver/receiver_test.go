package receiver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/truth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// message is a webhook item with all the contract's fields.
func message(from string, n int, to ...string) string {
	toUIDs := ""
	if len(to) > 0 {
		toUIDs = `,"to_uids":["` + strings.Join(to, `","`) + `"]`
	}
	return fmt.Sprintf(`{"header":{"no_persist":0,"red_dot":1,"sync_once":0},"setting":0,"message_id":9007199254740993,`+
		`"message_idstr":"9007199254740993","client_msg_no":"r-%s-%d","message_seq":%d,"from_uid":%q,"channel_id":"g","channel_type":2,`+
		`"timestamp":1700000000,"payload":"aGk="%s,"more":1}`, from, n, n, from, toUIDs)
}

func array(items ...string) string { return "[" + strings.Join(items, ",") + "]" }

func texts(items ...string) string {
	b, _ := json.Marshal(items)
	return string(b)
}

// post sends one request; id "" is none.
func post(t *testing.T, h http.Handler, event, id, body string) int {
	t.Helper()
	req := httptest.NewRequest(http.MethodPost, "/?event="+event, strings.NewReader(body))
	if id != "" {
		req.Header.Set("webhook-id", id)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w.Code
}

// known is a truth: a sleeps, b stays, c and d come and go.
func known(t *testing.T, lines ...truth.Line) *truth.Truth {
	t.Helper()
	k := new(truth.Truth)
	lines = append([]truth.Line{
		{Kind: truth.KindRun, Run: "r", Settled: true},
		{Kind: truth.KindUser, UID: "a", Presence: truth.Sleeper},
		{Kind: truth.KindUser, UID: "b", Presence: truth.Resident},
		{Kind: truth.KindUser, UID: "c", Presence: truth.Churner},
		{Kind: truth.KindUser, UID: "d", Presence: truth.Churner},
		{Kind: truth.KindGroup, ChannelID: "g", Members: []string{"a", "b", "c", "d"}},
	}, lines...)
	for _, line := range lines {
		if err := k.Record(line); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func sent(from string, n uint32, push, doubt bool) truth.Line {
	return truth.Line{Kind: truth.KindMessage, ClientMsgNo: truth.ClientMsgNo("r", from, n), FromUID: from, N: n,
		ChannelID: "g", ChannelType: 2, Push: push, Doubt: doubt}
}

func status(item string) truth.Line {
	s, _ := truth.ParseStatus(item)
	return truth.Line{Kind: truth.KindStatus, UID: s.UID, Item: item}
}

func none() *int64 { return new(int64) }

func TestSummaryFindsEachMistake(t *testing.T) {
	type request struct{ event, id, body string }
	notify := func(id string, items ...string) request { return request{"msg.notify", id, array(items...)} }
	offline := func(id string, items ...string) request { return request{"msg.offline", id, array(items...)} }
	online := func(id string, items ...string) request { return request{"user.onlinestatus", id, texts(items...)} }
	statuses := []truth.Line{status("c-0-1-5-1-1"), status("c-1-1-6-1-2"), status("c-0-0-5-0-1")}

	tests := []struct {
		name     string
		requests []request
		truth    []truth.Line // nil: none
		want     Summary
		wrong    bool
	}{
		{
			name: "all as it should be",
			requests: []request{
				notify("1", message("c", 1), message("d", 1), message("c", 2)),
				offline("2", message("c", 1, "a", "d")), offline("3", message("d", 1, "a"), message("c", 2, "a")),
				online("4", "c-0-1-5-1-1", "c-1-1-6-1-2"), online("5", "c-0-0-5-0-1"),
			},
			truth: append(statuses, sent("c", 1, true, false), sent("d", 1, true, false), sent("c", 2, true, false)),
			want:  Summary{Requests: 5, Events: Events{3, 3, 3}, Lost: none()},
		},
		{
			name:     "without a truth nothing is known to be lost",
			requests: []request{notify("1", message("c", 1), message("c", 3)), online("2", "x-0-1-9-2-7", "x-1-0-3-4-6")},
			want:     Summary{Requests: 2, Events: Events{2, 0, 2}},
		},
		{
			name:     "loss of each kind",
			requests: []request{notify("1", message("c", 1)), offline("2", message("c", 1, "d")), online("3", "c-0-1-5-1-1")},
			truth:    append(statuses, sent("c", 1, true, false), sent("c", 2, true, false)),
			want:     Summary{Requests: 3, Events: Events{1, 1, 1}, Lost: new(int64(5))},
			wrong:    true,
		},
		{
			name:     "a repeated request is no fault",
			requests: []request{notify("1", message("c", 1)), notify("1", message("c", 1))},
			want:     Summary{Requests: 2, Events: Events{Notify: 1}, RepeatedIDs: 1},
		},
		{
			name:     "a repeated id with another body",
			requests: []request{notify("1", message("c", 1)), notify("1", message("c", 2))},
			want:     Summary{Requests: 2, Events: Events{Notify: 1}, RepeatedIDs: 1, ChangedBodies: 1},
			wrong:    true,
		},
		{
			name:     "a repeated id with another event",
			requests: []request{notify("1", message("c", 1)), offline("1", message("c", 1))},
			want:     Summary{Requests: 2, Events: Events{Notify: 1}, RepeatedIDs: 1, ChangedBodies: 1},
			wrong:    true,
		},
		{
			name:     "a message under two ids",
			requests: []request{notify("1", message("c", 1)), notify("2", message("c", 2), message("c", 1))},
			want:     Summary{Requests: 2, Events: Events{Notify: 3}, DuplicatesAfterDedupe: 1},
			wrong:    true,
		},
		{
			name:     "a recipient under two ids",
			requests: []request{offline("1", message("c", 1, "a", "b")), offline("2", message("c", 1, "d", "b"))},
			want:     Summary{Requests: 2, Events: Events{Offline: 2}, DuplicatesAfterDedupe: 1},
			wrong:    true,
		},
		{
			name:     "requests without an id are none that repeat",
			requests: []request{notify("", message("c", 1)), notify("", message("c", 1))},
			want:     Summary{Requests: 2, Events: Events{Notify: 2}, DuplicatesAfterDedupe: 1},
			wrong:    true,
		},
		{
			name:     "a swap in msg.notify",
			requests: []request{notify("1", message("c", 1), message("c", 3), message("d", 1)), notify("2", message("c", 2), message("c", 4))},
			want:     Summary{Requests: 2, Events: Events{Notify: 5}, OutOfOrder: 1},
			wrong:    true,
		},
		{
			name: "in msg.offline order is each recipient's",
			requests: []request{
				offline("1", message("c", 2, "a")), offline("2", message("c", 1, "d")), // two partitions
				offline("3", message("c", 3, "d")), offline("4", message("c", 1, "a")),
			},
			want:  Summary{Requests: 4, Events: Events{Offline: 4}, OutOfOrder: 1},
			wrong: true,
		},
		{
			name:     "a swap in user.onlinestatus",
			requests: []request{online("1", "c-0-1-5-1-1"), online("2", "c-0-0-5-0-1"), online("3", "c-1-1-6-1-2")},
			truth:    statuses,
			want:     Summary{Requests: 3, Events: Events{OnlineStatus: 3}, Lost: none(), OutOfOrder: 1},
			wrong:    true,
		},
		{
			name: "a swap that the counts do not show",
			requests: []request{
				online("1", "c-0-1-7-1-1", "c-0-0-7-0-0", "c-0-1-5-1-1", "c-0-0-5-0-0"),
			},
			truth: []truth.Line{status("c-0-1-5-1-1"), status("c-0-0-5-0-0"), status("c-0-1-7-1-1"), status("c-0-0-7-0-0")},
			want:  Summary{Requests: 1, Events: Events{OnlineStatus: 4}, Lost: none(), OutOfOrder: 1},
			wrong: true,
		},
		{
			name:     "a total that jumps",
			requests: []request{online("1", "c-0-1-5-1-1", "c-0-1-6-2-3", "c-0-0-5-1-2")},
			want:     Summary{Requests: 1, Events: Events{OnlineStatus: 3}, OutOfOrder: 1},
			wrong:    true,
		},
		{
			name:     "what is lost breaks the counts once",
			requests: []request{online("1", "c-0-1-5-1-1", "c-1-1-6-1-2", "c-0-1-8-2-4", "c-1-0-6-1-3")},
			want:     Summary{Requests: 1, Events: Events{OnlineStatus: 4}, OutOfOrder: 1},
			wrong:    true,
		},
		{
			name:     "a device count that jumps",
			requests: []request{online("1", "c-0-1-5-1-1", "c-0-1-6-1-2")},
			want:     Summary{Requests: 1, Events: Events{OnlineStatus: 2}, OutOfOrder: 1},
			wrong:    true,
		},
		{
			name:     "a first device of a flag that is counted as the second",
			requests: []request{online("1", "c-0-1-5-1-1", "c-1-1-6-2-2")},
			want:     Summary{Requests: 1, Events: Events{OnlineStatus: 2}, OutOfOrder: 1},
			wrong:    true,
		},
		{
			name:     "a first item that makes no sense",
			requests: []request{online("1", "c-0-1-5-0-0", "d-0-0-5-3-2")},
			want:     Summary{Requests: 1, Events: Events{OnlineStatus: 2}, OutOfOrder: 2},
			wrong:    true,
		},
		{
			name:     "an item twice in a row",
			requests: []request{online("1", "c-0-1-5-1-1"), online("2", "c-0-1-5-1-1", "c-1-1-6-1-2", "c-0-0-5-0-1")},
			truth:    statuses,
			want:     Summary{Requests: 2, Events: Events{OnlineStatus: 4}, Lost: none(), DuplicatesAfterDedupe: 1},
			wrong:    true,
		},
		{
			name:     "more of an item than the truth has",
			requests: []request{online("1", "c-0-1-5-1-1", "c-1-1-6-1-2", "c-0-0-5-0-1"), online("2", "c-1-1-6-1-2")},
			truth:    statuses,
			want:     Summary{Requests: 2, Events: Events{OnlineStatus: 4}, Lost: none(), DuplicatesAfterDedupe: 1, OutOfOrder: 1},
			wrong:    true,
		},
		{
			name:     "an item that the truth does not have",
			requests: []request{online("1", "c-0-1-5-1-1", "c-1-1-6-1-2", "c-0-0-5-0-1", "c-1-0-6-0-0"), online("2", "a-0-1-9-1-1")},
			truth:    statuses,
			want:     Summary{Requests: 2, Events: Events{OnlineStatus: 5}, Lost: none(), Unexpected: 2},
			wrong:    true,
		},
		{
			name:     "another connection than the truth has",
			requests: []request{online("1", "c-0-1-5-1-1", "c-1-1-66-1-2", "c-0-0-5-0-1")},
			truth:    statuses,
			want:     Summary{Requests: 1, Events: Events{OnlineStatus: 3}, Lost: new(int64(1)), Unexpected: 1},
			wrong:    true,
		},
		{
			name:     "somebody online, the sender and a stranger are pushed to",
			requests: []request{notify("1", message("c", 1)), offline("2", message("c", 1, "a", "b", "c", "zz"))},
			truth:    []truth.Line{sent("c", 1, true, false)},
			want:     Summary{Requests: 2, Events: Events{0, 1, 1}, Lost: none(), Unexpected: 3},
			wrong:    true,
		},
		{
			name:     "a message that is not to be pushed is",
			requests: []request{notify("1", message("c", 1)), offline("2", message("c", 1, "a"))},
			truth:    []truth.Line{sent("c", 1, false, false)},
			want:     Summary{Requests: 2, Events: Events{0, 1, 1}, Lost: none(), Unexpected: 1},
			wrong:    true,
		},
		{
			name:     "what is in doubt may arrive",
			requests: []request{notify("1", message("c", 1)), offline("2", message("c", 1, "a")), online("3", "c-0-1-5-1-1", "c-1-1-6-1-2")},
			truth: []truth.Line{
				sent("c", 1, true, true), sent("c", 2, true, true),
				status("c-0-1-5-1-1"), {Kind: truth.KindDoubt, UID: "c"},
			},
			want: Summary{Requests: 3, Events: Events{2, 1, 1}, Lost: none()},
		},
		{
			name:     "strangers to the truth are not judged by it",
			requests: []request{notify("1", message("x", 1)), offline("2", message("x", 1, "a", "y")), online("3", "x-0-1-5-1-1")},
			truth:    statuses[:0:0],
			want:     Summary{Requests: 3, Events: Events{1, 1, 1}},
		},
		{
			name: "bad requests",
			requests: []request{
				{"msg.notify", "1", "{"}, {"user.onlinestatus", "2", `["no status"]`}, {"msg.other", "3", "[]"}, {"", "4", "[]"},
			},
			want:  Summary{Requests: 4, BadRequests: 4},
			wrong: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := New(Config{})
			for _, req := range tt.requests {
				want := http.StatusOK
				if tt.want.BadRequests > 0 {
					want = http.StatusBadRequest
				}
				if code := post(t, r, req.event, req.id, req.body); code != want {
					t.Fatalf("%s %s is answered %d, want %d", req.event, req.id, code, want)
				}
			}
			var k *truth.Truth
			if len(tt.truth) > 0 {
				k = known(t, tt.truth...)
			}
			got := r.Summary(k)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
			if got.Wrong() != tt.wrong {
				t.Errorf("Wrong = %t, want %t", got.Wrong(), tt.wrong)
			}
		})
	}
}

func TestSummaryIsTheDesignsObject(t *testing.T) {
	r := New(Config{})
	post(t, r, "msg.notify", "1", array(message("c", 1)))
	for _, tt := range []struct {
		truth *truth.Truth
		want  string
	}{
		{nil, `{"requests":1,"events":{"user.onlinestatus":0,"msg.offline":0,"msg.notify":1},"lost":null,"duplicates_after_dedupe":0,"repeated_ids":0,"changed_bodies":0,"out_of_order":0,"bad_signatures":0}`},
		{known(t), `{"requests":1,"events":{"user.onlinestatus":0,"msg.offline":0,"msg.notify":1},"lost":0,"duplicates_after_dedupe":0,"repeated_ids":0,"changed_bodies":0,"out_of_order":0,"bad_signatures":0}`},
	} {
		got, err := json.Marshal(r.Summary(tt.truth))
		if err != nil || string(got) != tt.want {
			t.Errorf("summary = %s, %v\nwant      %s", got, err, tt.want)
		}
	}
}

func TestMessagesWithoutClientMsgNo(t *testing.T) {
	r := New(Config{})
	item := func(idStr string) string {
		return strings.Replace(strings.Replace(message("c", 1), `"r-c-1"`, `""`, 1), `"message_idstr":"9007199254740993"`, `"message_idstr":"`+idStr+`"`, 1)
	}
	post(t, r, "msg.notify", "1", array(item("x"), item("y"), item("x")))
	if got, want := r.Summary(nil), (Summary{Requests: 1, Events: Events{Notify: 3}, DuplicatesAfterDedupe: 1}); got != want {
		t.Errorf("summary = %+v, want %+v", got, want)
	}
}

func TestOneObjectIsABodyToo(t *testing.T) {
	r := New(Config{})
	if code := post(t, r, "msg.offline", "1", message("c", 1, "a")); code != http.StatusOK {
		t.Fatalf("answered %d, want 200", code)
	}
	if got := r.Summary(nil).Events.Offline; got != 1 {
		t.Errorf("%d msg.offline, want 1", got)
	}
}

func TestSignatures(t *testing.T) {
	key := []byte("a key of two dozen bytes")
	old := []byte("another, about to retire")
	sign := func(key []byte, id string, at time.Time, body string) string {
		hook, err := standardwebhooks.NewWebhookRaw(key)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := hook.Sign(id, at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	now := time.Now()
	body := array(message("c", 1))
	tests := []struct {
		name, signature string
		at              time.Time
		id              string
		want            int
	}{
		{"right", sign(key, "1", now, body), now, "1", http.StatusOK},
		{"right by the other secret", sign(old, "1", now, body), now, "1", http.StatusOK},
		{"right beside others", "v1a,xx v1,!! " + sign([]byte("k"), "1", now, body) + " " + sign(key, "1", now, body), now, "1", http.StatusOK},
		{"missing", "", now, "1", http.StatusUnauthorized},
		{"of another secret", sign([]byte("k"), "1", now, body), now, "1", http.StatusUnauthorized},
		{"of another body", sign(key, "1", now, body+" "), now, "1", http.StatusUnauthorized},
		{"of another id", sign(key, "2", now, body), now, "1", http.StatusUnauthorized},
		{"of another time", sign(key, "1", now.Add(-time.Second), body), now, "1", http.StatusUnauthorized},
		{"of another version", "v2," + strings.TrimPrefix(sign(key, "1", now, body), "v1,"), now, "1", http.StatusUnauthorized},
		{"old", sign(key, "1", now.Add(-6*time.Minute), body), now.Add(-6 * time.Minute), "1", http.StatusUnauthorized},
		{"from the future", sign(key, "1", now.Add(6*time.Minute), body), now.Add(6 * time.Minute), "1", http.StatusUnauthorized},
		{"without an id", sign(key, "", now, body), now, "", http.StatusUnauthorized},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := New(Config{Secrets: [][]byte{key, old}})
			req := httptest.NewRequest(http.MethodPost, "/hook?x=1&event=msg.notify", strings.NewReader(body))
			req.Header.Set("webhook-id", tt.id)
			req.Header.Set("webhook-timestamp", fmt.Sprint(tt.at.Unix()))
			req.Header.Set("webhook-signature", tt.signature)
			w := httptest.NewRecorder()
			r.ServeHTTP(w, req)
			want := Summary{Requests: 1, Events: Events{Notify: 1}}
			if tt.want != http.StatusOK {
				want = Summary{Requests: 1, BadSignatures: 1}
			}
			if got := r.Summary(nil); w.Code != tt.want || got != want {
				t.Errorf("answer %d, summary %+v, want %d, %+v", w.Code, got, tt.want, want)
			}
		})
	}
	if !(Summary{BadSignatures: 1}).Wrong() {
		t.Error("a bad signature is not wrong")
	}
}

func TestAnswerRefusesBeforeAnythingIsRemembered(t *testing.T) {
	answers := []int{503, 0, 204}
	r := New(Config{Answer: func(_ *http.Request, body []byte) int {
		if !bytes.Contains(body, []byte("r-c-1")) {
			t.Error("Answer does not get the body")
		}
		status := answers[0]
		answers = answers[1:]
		return status
	}})
	body := array(message("c", 1))
	for i, want := range []int{503, 200, 204} {
		if code := post(t, r, "msg.notify", "1", body); code != want {
			t.Errorf("answer %d is %d, want %d", i, code, want)
		}
	}
	if got, want := r.Summary(nil), (Summary{Requests: 2, Events: Events{Notify: 1}, RepeatedIDs: 1}); got != want {
		t.Errorf("summary = %+v, want %+v", got, want)
	}
}

func TestLimitsOfARequest(t *testing.T) {
	r := New(Config{MaxBody: 10})
	if code := post(t, r, "msg.notify", "1", "[          ]"); code != http.StatusRequestEntityTooLarge {
		t.Errorf("a body too large is answered %d, want 413", code)
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?event=msg.notify", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET is answered %d, want 405", w.Code)
	}
	if got := r.Summary(nil).BadRequests; got != 2 {
		t.Errorf("%d bad requests, want 2", got)
	}
}

func TestOverHTTPFromManySenders(t *testing.T) {
	r := New(Config{})
	server := httptest.NewServer(r)
	defer server.Close()
	const senders, each = 8, 50
	lines := []truth.Line{}
	var all sync.WaitGroup
	for s := range senders {
		uid := fmt.Sprintf("s%d", s)
		lines = append(lines, truth.Line{Kind: truth.KindUser, UID: uid, Presence: truth.Churner})
		for n := range uint32(each) {
			lines = append(lines, sent(uid, n+1, true, false))
		}
		all.Go(func() {
			for n := 1; n <= each; n++ {
				for range 2 { // each request comes twice, as after an answer that was lost
					for event, body := range map[string]string{"msg.notify": array(message(uid, n)), "msg.offline": array(message(uid, n, "a"))} {
						req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/?event="+event, strings.NewReader(body))
						if err != nil {
							t.Error(err)
							return
						}
						req.Header.Set("webhook-id", fmt.Sprintf("%s-%s-%d", event, uid, n))
						resp, err := server.Client().Do(req)
						if err != nil {
							t.Error(err)
							return
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
				}
			}
		})
	}
	k := known(t, lines...)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := r.WaitFor(ctx, k); err != nil {
		t.Error(err)
	}
	all.Wait()
	want := Summary{
		Requests: 4 * senders * each, Events: Events{Offline: senders * each, Notify: senders * each},
		Lost: none(), RepeatedIDs: 2 * senders * each,
	}
	if diff := cmp.Diff(want, r.Summary(k)); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
}

func TestWaitForSaysWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := known(t, sent("c", 1, true, false), sent("c", 2, true, true), status("c-0-1-5-1-1"), status("c-0-0-5-0-0"))
		r := New(Config{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := r.WaitFor(ctx, k)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "4 events") {
			t.Errorf("WaitFor = %v, want a deadline and 4 events", err)
		}
		post(t, r, "msg.notify", "1", array(message("c", 1)))
		post(t, r, "msg.offline", "2", array(message("c", 1, "a")))
		post(t, r, "user.onlinestatus", "3", texts("c-0-1-5-1-1"))
		if err := r.WaitFor(ctx, k); err == nil || !strings.Contains(err.Error(), "1 events") {
			t.Errorf("WaitFor = %v, want 1 events", err)
		}
		done := make(chan error)
		go func() { done <- r.WaitFor(context.WithoutCancel(ctx), k) }()
		time.Sleep(time.Second)
		post(t, r, "user.onlinestatus", "4", texts("c-0-0-5-0-0"))
		if err := <-done; err != nil {
			t.Errorf("WaitFor = %v, want none", err)
		}
	})
}

func TestLiveSaysWhatArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{})
		ctx, cancel := context.WithCancel(t.Context())
		var out bytes.Buffer
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Live(ctx, &out)
		}()
		time.Sleep(1500 * time.Millisecond)
		post(t, r, "msg.notify", "1", array(message("c", 1), message("c", 2)))
		time.Sleep(time.Second)
		post(t, r, "user.onlinestatus", "2", "no body")
		time.Sleep(time.Second)
		cancel()
		<-done
		want := "receive  0 requests/s  user.onlinestatus 0/s (0)  msg.offline 0/s (0)  msg.notify 0/s (0)\n" +
			"receive  1 requests/s  user.onlinestatus 0/s (0)  msg.offline 0/s (0)  msg.notify 2/s (2)\n" +
			"receive  1 requests/s  user.onlinestatus 0/s (0)  msg.offline 0/s (0)  msg.notify 0/s (2)  WRONG: see the summary\n"
		if out.String() != want {
			t.Errorf("live lines:\n%swant:\n%s", out.String(), want)
		}
	})
}

// BenchmarkTake measures what is under the lock, for batches of 100 messages: it bounds what a receiver can take.
func BenchmarkTake(b *testing.B) {
	books := newBooks()
	n := 0
	for b.Loop() {
		entry := request{event: "msg.notify", id: uint64(n), hasID: true, messages: make([]messageEntry, 100)}
		for i := range entry.messages {
			n++
			entry.messages[i] = messageEntry{key: join(0, uint64(n)), ordered: uint64(n % 10_000), n: uint64(n)}
		}
		books.take(&entry)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkServe measures a whole request of 100 messages, but for the network.
func BenchmarkServe(b *testing.B) {
	r := New(Config{Secrets: [][]byte{[]byte("k")}})
	n := 0
	for b.Loop() {
		b.StopTimer()
		items := make([]string, 100)
		for i := range items {
			n++
			items[i] = message(fmt.Sprintf("u%d", n%1000), n)
		}
		body := array(items...)
		hook, _ := standardwebhooks.NewWebhookRaw([]byte("k"))
		id := fmt.Sprint(n)
		now := time.Now()
		signature, _ := hook.Sign(id, now, []byte(body))
		req := httptest.NewRequest(http.MethodPost, "/?event=msg.notify", strings.NewReader(body))
		req.Header.Set("webhook-id", id)
		req.Header.Set("webhook-timestamp", fmt.Sprint(now.Unix()))
		req.Header.Set("webhook-signature", signature)
		w := httptest.NewRecorder()
		b.StartTimer()
		r.ServeHTTP(w, req)
		if w.Code != http.StatusOK {
			b.Fatalf("answered %d", w.Code)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}
