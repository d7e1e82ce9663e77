package query

import (
	"bufio"
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/offhook/offhook/schemas"
)

// FuzzAPI: any request that net/http reads is answered, by JSON and with a status of the API's document.
func FuzzAPI(f *testing.F) {
	local := &table{owns: map[int32]bool{0: true, 1: true}, member: "m"}
	api, err := New(Config{Group: "g"}, Deps{Local: local, Owners: &place{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(api.Close)
	api.Begin(testPartitions)
	for _, request := range []string{
		"GET /v1/users/u1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /v1/users/%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /v1/users/a%2Fb/../c HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
		"GET /v1/users/u1 HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
		"HEAD /v1/users/u1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"POST /v1/users/online HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20\r\n\r\n{\"uids\":[\"u1\",\"u2\"]}",
		"POST /v1/users/online HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"u\r\n0\r\n\r\n",
		"POST /v1/users/online HTTP/1.1\r\nHost: 127.0.0.1\r\n" + forwarded + ": g\r\nContent-Length: 13\r\n\r\n{\"uids\":[\"u\"]}",
	} {
		f.Add([]byte(request))
	}
	known := map[int]bool{
		http.StatusOK: true, http.StatusBadRequest: true, http.StatusForbidden: true, http.StatusNotFound: true, http.StatusMethodNotAllowed: true,
		http.StatusRequestEntityTooLarge: true, http.StatusBadGateway: true, http.StatusServiceUnavailable: true,
		http.StatusMovedPermanently: true, http.StatusTemporaryRedirect: true, // of ServeMux, to a path without dots
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, request)
		answer := w.Result()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		if !known[answer.StatusCode] {
			t.Fatalf("%q is answered with %d: %s", raw, answer.StatusCode, body)
		}
		switch answer.Header.Get("Content-Type") {
		case "application/json":
			_, one := schemas.DecodeAnswer[schemas.User](body)
			_, many := schemas.DecodeAnswer[schemas.Users](body)
			if answer.StatusCode != http.StatusOK || one != nil && many != nil {
				t.Errorf("%q is answered with %d and %s", raw, answer.StatusCode, body)
			}
		case "application/problem+json":
			if p, err := schemas.DecodeAnswer[schemas.Problem](body); err != nil || p.Status != answer.StatusCode {
				t.Errorf("%q is answered with %d and %s", raw, answer.StatusCode, body)
			}
		}
	})
}
