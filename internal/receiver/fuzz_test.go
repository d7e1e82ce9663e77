package receiver

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/offhook/offhook/schemas"
)

func FuzzParseScenario(f *testing.F) {
	for _, kind := range scenarioKinds {
		f.Add(kind.Example)
	}
	f.Add("during:1s:2s:during:1s:2s:")
	f.Add("named::::404")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseScenario(text)
		if err != nil {
			if _, ok := errors.AsType[*ScenarioError](err); !ok {
				t.Errorf("%q gives %v, which is no ScenarioError", text, err)
			}
			return
		}
		if s.text != text {
			t.Errorf("%q calls itself %q", text, s.text)
		}
	})
}

// FuzzServeHTTP: whatever a request holds, it is taken once or refused, and counted.
func FuzzServeHTTP(f *testing.F) {
	for _, event := range schemas.Events() {
		f.Add(string(event), "0a-1-2-3", "1767225600", []byte(`["u-1-1-1-1-1"]`))
		f.Add(string(event), "", "", []byte(`[{"header":{},"setting":0,"message_id":1,"message_idstr":"1","client_msg_no":"r-a-1","message_seq":0,"from_uid":"a","channel_id":"g","channel_type":2,"timestamp":1,"payload":"","to_uids":["b"]}]`))
	}
	f.Add("other", "-", "x", []byte{})
	f.Fuzz(func(t *testing.T, event, id, timestamp string, body []byte) {
		r := New(Config{})
		for n := int64(1); n <= 2; n++ {
			request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
			request.URL.RawQuery = "event=" + event
			request.Header.Set(headerID, id)
			request.Header.Set(headerTimestamp, timestamp)
			w := httptest.NewRecorder()
			r.ServeHTTP(w, request)
			s := r.Summary(nil)
			if s.Requests != n {
				t.Fatalf("%d requests are counted, want %d", s.Requests, n)
			}
			if (w.Code == http.StatusBadRequest) != (s.BadRequests == n) || w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
				t.Fatalf("answered %d, with %d bad requests of %d", w.Code, s.BadRequests, n)
			}
		}
	})
}

// FuzzSigned: a signature is right only over what it was made for, and near its time.
func FuzzSigned(f *testing.F) {
	f.Add("0a-1-2-3", "1767225600", "", []byte("[]"))
	f.Add("0a-1-2-3", "9223372036854775807", "v1, v1,AA== v1", []byte{})
	f.Add("", "+1767225601", "v2,", []byte("x"))
	f.Add("-62135596800", "-9223372036854775808", ",", []byte("x"))
	now := time.Unix(1_767_225_600, 0)
	secrets := [][]byte{[]byte("the first"), []byte("the second")}
	f.Fuzz(func(t *testing.T, id, timestamp, others string, body []byte) {
		mac := hmac.New(sha256.New, secrets[1])
		mac.Write([]byte(id + "." + timestamp + "."))
		mac.Write(body)
		right := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
		header := http.Header{}
		header.Set(headerID, id)
		header.Set(headerTimestamp, timestamp)
		header.Set(headerSignature, others)
		if signed(secrets, header, body, now) {
			t.Errorf("%q signs id %q and time %q", others, id, timestamp)
		}
		header.Set(headerSignature, others+" "+right)
		seconds, err := strconv.ParseInt(timestamp, 10, 64)
		near := err == nil && id != "" && seconds >= now.Unix()-300 && seconds <= now.Unix()+300
		if got := signed(secrets, header, body, now); got != near {
			t.Errorf("the right signature of id %q and time %q: %t, want %t", id, timestamp, got, near)
		}
	})
}
