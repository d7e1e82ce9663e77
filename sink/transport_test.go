package sink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/twmb/franz-go/pkg/kgo"
)

// testRequest is a request of one event.
func testRequest() *Request {
	return &Request{Event: schemas.EventNotify, ID: "AAAAAAAAAAAAAAAAAAAAAA-0-1-1", Body: []byte(`["one"]`)}
}

// newTestTransport returns a transport to address, which is a URL, that change may give further settings.
func newTestTransport(t *testing.T, address string, change ...func(*Config)) *Transport {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{URL: u, Timeout: 10 * time.Second, MaxInFlight: 4}
	for _, f := range change {
		f(&cfg)
	}
	transport := NewTransport(cfg)
	t.Cleanup(transport.Close)
	return transport
}

func send(t *testing.T, transport *Transport) Answer {
	t.Helper()
	answer, err := transport.Send(t.Context(), testRequest())
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// serveRaw is an endpoint below HTTP: serve has each connection, and the request that was read from it.
func serveRaw(t *testing.T, serve func(conn net.Conn, request []byte)) (address string) {
	t.Helper()
	return serveConns(t, func(conn net.Conn) {
		var request bytes.Buffer
		r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(conn, &request)))
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		serve(conn, request.Bytes())
	})
}

// serveConns gives each connection to serve and closes it when that returns.
func serveConns(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// wait blocks until the other side closes.
func wait(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// countConns counts the connections that a server is made. It is to be called before the server starts.
func countConns(s *httptest.Server) *atomic.Int64 {
	var n atomic.Int64
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			n.Add(1)
		}
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	return &n
}

// roots are the authorities that trust s.
func roots(s *httptest.Server) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

func TestConnectionsAreReused(t *testing.T) {
	const inFlight, rounds = 8, 30
	body := bytes.Repeat([]byte("a"), answerMax)
	answers := map[string]http.HandlerFunc{
		"no body": func(http.ResponseWriter, *http.Request) {},
		"a body of the largest size": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Write(body)
		},
		"a chunked body of the largest size": func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			w.Write(body)
		},
		"errors with bodies": func(w http.ResponseWriter, r *http.Request) {
			for i, status := range []int{500, 413, 302, 429} {
				if strings.HasSuffix(r.Header.Get("webhook-id"), fmt.Sprint(i)) {
					w.WriteHeader(status)
				}
			}
			w.Write(body[:1000])
		},
	}
	for name, answer := range answers {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, HTTP/2 %v", name, http2), func(t *testing.T) {
				var major atomic.Int64
				server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					io.Copy(io.Discard, r.Body)
					major.Store(int64(r.ProtoMajor))
					answer(w, r)
				}))
				conns := countConns(server)
				most := int64(inFlight)
				if server.EnableHTTP2 = http2; http2 {
					server.StartTLS()
					most = 1
				} else {
					server.Start()
				}
				defer server.Close()
				transport := newTestTransport(t, server.URL, func(cfg *Config) {
					cfg.MaxInFlight = inFlight
					if http2 {
						cfg.Roots = roots(server)
					}
				})
				if http2 {
					send(t, transport) // who comes before the protocol is known dials
				}
				var wg sync.WaitGroup
				for worker := range inFlight {
					wg.Go(func() {
						for range rounds {
							r := testRequest()
							r.ID += fmt.Sprint("-", worker)
							if answer, err := transport.Send(t.Context(), r); err != nil || answer.Status == 0 {
								t.Errorf("answer %v, error %v", answer, err)
							}
						}
					})
				}
				wg.Wait()
				if got := conns.Load(); got > most {
					t.Errorf("%d requests made %d connections, want at most %d", inFlight*rounds, got, most)
				}
				want := int64(1)
				if http2 {
					want = 2
				}
				if got := major.Load(); got != want {
					t.Errorf("HTTP/%d was spoken, want HTTP/%d", got, want)
				}
			})
		}
	}
}

// TestHTTP2ConnectionsEnd: an endpoint that closes its connections again and again is sent to all the same, though no more
// than Config.MaxInFlight connections may be open.
func TestHTTP2ConnectionsEnd(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	conns := countConns(server)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	transport := newTestTransport(t, server.URL, func(cfg *Config) { cfg.MaxInFlight, cfg.Roots = 2, roots(server) })
	for round := range 10 {
		deadline := time.Now().Add(5 * time.Second)
		for send(t, transport).Verdict != VerdictDelivered {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: nothing is delivered any more", round)
			}
		}
		server.CloseClientConnections()
	}
	if got := conns.Load(); got < 10 {
		t.Errorf("%d connections, want one a round", got)
	}
}

// TestDeadHTTP2Connection: of a connection that has gone silent only the requests under way fail.
func TestDeadHTTP2Connection(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	var silent atomic.Bool // the connections that there are lose everything
	address := serveConns(t, func(conn net.Conn) {
		behind, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		defer behind.Close()
		alive := !silent.Load()
		forward := func(to io.Writer, from io.Reader) {
			buffer := make([]byte, 4096)
			for {
				n, err := from.Read(buffer)
				if err != nil {
					return
				}
				if alive && silent.Load() {
					continue
				}
				if _, err := to.Write(buffer[:n]); err != nil {
					return
				}
			}
		}
		var back sync.WaitGroup
		back.Go(func() { forward(conn, behind) })
		forward(behind, conn)
		behind.Close()
		back.Wait()
	})
	transport := newTestTransport(t, "https://"+address, func(cfg *Config) { cfg.Roots, cfg.Timeout = roots(server), 300*time.Millisecond })
	settings := transport.link.Load().http.HTTP2
	if settings.SendPingTimeout <= 0 || settings.PingTimeout <= 0 {
		t.Fatal("a connection is never asked for a sign of life")
	}
	settings.SendPingTimeout, settings.PingTimeout = 200*time.Millisecond, 100*time.Millisecond
	if answer := send(t, transport); answer.Status != 200 {
		t.Fatal(answer)
	}
	silent.Store(true)
	if answer := send(t, transport); answer.Failure == "" {
		t.Fatalf("%v over a connection that is silent", answer)
	}
	deadline := time.Now().Add(10 * time.Second)
	for send(t, transport).Status != 200 {
		if time.Now().After(deadline) {
			t.Fatal("the dead connection stays in use")
		}
	}
}

// TestDeadline: one deadline is over all of an attempt, and the log is told what it has ended.
func TestDeadline(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
	endless := func(conn net.Conn, text string) {
		for {
			if _, err := io.WriteString(conn, text); err != nil {
				return
			}
		}
	}
	for _, test := range []struct {
		name   string
		tls    bool
		serve  func(conn net.Conn, request []byte)
		status int    // of the answer
		err    string // of the answer; empty: a status
	}{
		{name: "silence", serve: func(conn net.Conn, _ []byte) { wait(conn) }, err: "no answer within 300ms"},
		{name: "no TLS handshake", tls: true, err: "no TLS handshake within 300ms"},
		{name: "half a head", serve: func(conn net.Conn, _ []byte) { io.WriteString(conn, ok); wait(conn) }, err: "the answer's headers did not end within 300ms"},
		{name: "a slow body", status: 200, serve: func(conn net.Conn, _ []byte) {
			io.WriteString(conn, ok+"Content-Length: 100\r\n\r\nhalf of")
			wait(conn)
		}},
		{name: "a slow body of an error", status: 422, serve: func(conn net.Conn, _ []byte) {
			io.WriteString(conn, "HTTP/1.1 422 No\r\nContent-Length: 100\r\n\r\nhalf of")
			wait(conn)
		}},
		{name: "an endless body", status: 200, serve: func(conn net.Conn, _ []byte) {
			io.WriteString(conn, ok+"\r\n")
			endless(conn, strings.Repeat("a", 1000))
		}},
		{name: "an endless header", serve: func(conn net.Conn, _ []byte) {
			io.WriteString(conn, ok)
			endless(conn, "X: "+strings.Repeat("a", 1000)+"\r\n")
		}, err: "the answer's headers are too large"},
		{name: "endless interim answers", serve: func(conn net.Conn, _ []byte) {
			endless(conn, "HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("a", 1000)+"\r\n\r\n")
		}, err: "the answer's headers are too large"},
		{name: "another protocol", status: 101, serve: func(conn net.Conn, _ []byte) {
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			wait(conn)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var address string
			if test.serve == nil {
				address = serveConns(t, wait)
			} else {
				address = serveRaw(t, test.serve)
			}
			scheme := "http://"
			if test.tls {
				scheme = "https://"
			}
			transport := newTestTransport(t, scheme+address, func(cfg *Config) { cfg.Timeout = 300 * time.Millisecond })
			began := time.Now()
			answer := send(t, transport)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("the attempt took %v", took)
			}
			if answer.Status != test.status {
				t.Errorf("%v, want status %d", answer, test.status)
			}
			if test.err != "" && (answer.Err == nil || answer.Err.Error() != test.err) {
				t.Errorf("%v, want the error %q", answer, test.err)
			}
			if want := JudgeStatus(test.status); test.status != 0 && answer.Verdict != want || test.status == 0 && answer.Verdict != VerdictRetry {
				t.Errorf("verdict %s", answer.Verdict)
			}
			if timeout := strings.Contains(test.err, "within"); timeout != (answer.Failure == FailureTimeout) {
				t.Errorf("failure %q of %q", answer.Failure, test.err)
			}
		})
	}
}

func TestAnswerHeadIsBounded(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			size := answerHeadMax / 2
			if strings.HasSuffix(r.Header.Get("webhook-id"), "-large") {
				size = answerHeadMax * 3 / 2
			}
			w.Header().Set("X", strings.Repeat("a", size))
		}))
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.EnableHTTP2 = http2
		server.StartTLS()
		transport := newTestTransport(t, server.URL, func(cfg *Config) { cfg.Roots = roots(server) })
		if answer := send(t, transport); answer.Status != 200 {
			t.Errorf("HTTP/2 %v: %v", http2, answer)
		}
		r := testRequest()
		r.ID += "-large"
		answer, err := transport.Send(t.Context(), r)
		if err != nil || answer.Err == nil || !strings.Contains(answer.Err.Error(), "headers are too large") {
			t.Errorf("HTTP/2 %v: %v, error %v", http2, answer, err)
		}
		server.Close()
	}
}

// TestRequestTimesOut: an endpoint that does not read holds an attempt no longer than the deadline.
func TestRequestTimesOut(t *testing.T) {
	closed := make(chan struct{})
	defer close(closed)
	address := serveConns(t, func(net.Conn) { <-closed })
	transport := newTestTransport(t, "http://"+address, func(cfg *Config) { cfg.Timeout = 200 * time.Millisecond })
	r := testRequest()
	r.Body = bytes.Repeat([]byte("a"), 32<<20)
	answer, err := transport.Send(t.Context(), r)
	if err != nil || answer.Failure != FailureTimeout || answer.Err.Error() != "the request could not be written within 200ms" {
		t.Errorf("%v, error %v", answer, err)
	}
}

// TestSendIsCancelled: the context's end is no answer.
func TestSendIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the lane is dropped")
	address := serveRaw(t, func(conn net.Conn, _ []byte) { cancel(cause); wait(conn) })
	if answer, err := newTestTransport(t, "http://"+address).Send(ctx, testRequest()); !errors.Is(err, cause) {
		t.Errorf("%v, error %v, want %v", answer, err, cause)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var asked atomic.Int64
	target := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer target.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, location := range []string{target.URL + "/", "/elsewhere", ""} {
			var requests atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				if r.URL.Path != "/hook" {
					asked.Add(1)
				}
				if location != "" {
					w.Header().Set("Location", location)
				}
				w.WriteHeader(status)
			}))
			answer := send(t, newTestTransport(t, server.URL+"/hook"))
			server.Close()
			if answer.Status != status || answer.Verdict != VerdictEndpoint || requests.Load() != 1 {
				t.Errorf("%d to %q: %v after %d requests", status, location, answer, requests.Load())
			}
		}
	}
	if asked.Load() > 0 {
		t.Errorf("targets of redirects were asked %d times", asked.Load())
	}
}

// TestNoRequestIsRepeated: net/http does not by itself send a request again that the endpoint may have taken.
func TestNoRequestIsRepeated(t *testing.T) {
	var requests atomic.Int64
	address := serveConns(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for n := 0; ; n++ {
			request, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, request.Body); err != nil {
				return
			}
			requests.Add(1)
			if n == 1 {
				return // with no answer, on a connection that has served before
			}
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	transport := newTestTransport(t, "http://"+address)
	if answer := send(t, transport); answer.Status != 200 {
		t.Fatal(answer)
	}
	if answer := send(t, transport); answer.Failure != FailureConnection {
		t.Errorf("%v", answer)
	}
	if got := requests.Load(); got != 2 {
		t.Errorf("%d requests, want 2", got)
	}
}

func TestURLCredentials(t *testing.T) {
	var got atomic.Pointer[http.Request]
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got.Store(r) }))
	defer server.Close()
	address := strings.Replace(server.URL, "//", "//us%65r:p%40ss@", 1) + "/hook?key=k"
	send(t, newTestTransport(t, address))
	if user, password, _ := got.Load().BasicAuth(); user != "user" || password != "p@ss" {
		t.Errorf("user %q, password %q", user, password)
	}
	if uri := got.Load().RequestURI; uri != "/hook?key=k&event=msg.notify" {
		t.Errorf("asked for %s", uri)
	}
	send(t, newTestTransport(t, address, func(cfg *Config) { cfg.Headers = http.Header{"Authorization": {"Bearer token"}} }))
	if header := got.Load().Header["Authorization"]; !slices.Equal(header, []string{"Bearer token"}) {
		t.Errorf("Authorization %q", header)
	}
	send(t, newTestTransport(t, server.URL))
	if header := got.Load().Header["Authorization"]; len(header) > 0 {
		t.Errorf("Authorization %q", header)
	}
}

// An authority signs certificates.
type testAuthority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pool        *x509.CertPool
}

func newTestAuthority(t *testing.T, name string) *testAuthority {
	t.Helper()
	a := new(testAuthority)
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool = x509.NewCertPool()
	a.pool.AddCert(a.certificate)
	return a
}

func (a *testAuthority) issue(t *testing.T, name string, change ...func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	for _, f := range change {
		f(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestClientCertificates: a certificate and an authority that change are those of the next request, also where connections
// are never idle, and connections are kept until then.
func TestClientCertificates(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", http2), func(t *testing.T) {
			clients, servers := newTestAuthority(t, "clients"), []*testAuthority{newTestAuthority(t, "one"), newTestAuthority(t, "two")}
			certificates := []*tls.Certificate{servers[0].issue(t, "server"), servers[1].issue(t, "server")}
			var serving atomic.Pointer[tls.Certificate]
			serving.Store(certificates[0])
			var seen sync.Map // names of clients
			held, hold := make(chan struct{}), make(chan struct{})
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				seen.Store(r.TLS.PeerCertificates[0].Subject.CommonName, true)
				if strings.HasSuffix(r.Header.Get("webhook-id"), "-held") {
					close(held)
					<-hold
				}
			}))
			conns := countConns(server)
			server.EnableHTTP2 = http2
			server.TLS = &tls.Config{
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients.pool,
			}
			server.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				config := server.TLS.Clone()
				config.Certificates = []tls.Certificate{*serving.Load()}
				return config, nil
			}
			server.StartTLS()
			defer server.Close()

			var current atomic.Pointer[Credentials]
			first := &Credentials{Certificate: clients.issue(t, "first"), Roots: servers[0].pool}
			current.Store(first)
			transport := newTestTransport(t, server.URL, func(cfg *Config) { cfg.Current = current.Load })
			deliver := func() {
				t.Helper()
				if answer := send(t, transport); answer.Status != 200 {
					t.Fatal(answer)
				}
			}
			deliver()
			deliver()
			if got := conns.Load(); got != 1 {
				t.Errorf("%d connections, want 1", got)
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				r := testRequest()
				r.ID += "-held"
				if answer, err := transport.Send(t.Context(), r); err != nil || answer.Status != 200 {
					t.Errorf("a request under way ended with %v, error %v", answer, err)
				}
			})
			<-held

			second := &Credentials{Certificate: clients.issue(t, "second"), Roots: first.Roots}
			current.Store(second)
			deliver()
			deliver()
			if _, ok := seen.Load("second"); !ok {
				t.Error("the second certificate was not sent")
			}
			if got := conns.Load(); got > 3 {
				t.Errorf("%d connections, want one more", got)
			}
			close(hold)
			wg.Wait()

			serving.Store(certificates[1])
			current.Store(&Credentials{Certificate: second.Certificate, Roots: servers[1].pool})
			before := conns.Load()
			deliver()
			if conns.Load() == before {
				t.Error("a connection to an endpoint that the new authorities do not know stays in use")
			}

			current.Store(&Credentials{Roots: servers[1].pool})
			// In TLS 1.3 the endpoint's refusal comes after the handshake, and the broken connection may be seen before it.
			for tries := 0; ; tries++ {
				answer := send(t, transport)
				if answer.Failure != FailureConnection || tries == 100 {
					t.Fatalf("without a certificate: %v", answer)
				}
				if strings.Contains(answer.Err.Error(), "OFFHOOK_WEBHOOK_TLS_CERT_FILE") {
					break
				}
			}
		})
	}
}

// TestSecretRotation: a verifier that is not ours takes each request, with the secrets changing under traffic.
func TestSecretRotation(t *testing.T) {
	key := func(c string) []byte { return []byte(strings.Repeat(c, 32)) }
	verifier := func(secret []byte) *standardwebhooks.Webhook {
		w, err := standardwebhooks.NewWebhookRaw(secret)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	older, newer := verifier(key("o")), verifier(key("n"))
	var accepted [3]atomic.Int64 // by the older alone, by both, by the newer alone
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		byOlder, byNewer := older.Verify(body, r.Header) == nil, newer.Verify(body, r.Header) == nil
		switch {
		case byOlder && byNewer:
			accepted[1].Add(1)
		case byOlder:
			accepted[0].Add(1)
		case byNewer:
			accepted[2].Add(1)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer server.Close()
	var current atomic.Pointer[Credentials]
	current.Store(&Credentials{Secrets: [][]byte{key("o")}})
	transport := newTestTransport(t, server.URL, func(cfg *Config) { cfg.Current = current.Load })
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(t.Context())
	defer stop() // before it is waited
	for range 4 {
		wg.Go(func() {
			for {
				answer, err := transport.Send(ctx, testRequest())
				if err != nil {
					return
				}
				if answer.Status != 200 {
					t.Errorf("%v", answer)
				}
			}
		})
	}
	for step, next := range [][][]byte{{key("n"), key("o")}, {key("n")}, nil} {
		for before := accepted[step].Load(); accepted[step].Load() < before+10; {
			if t.Failed() || t.Context().Err() != nil {
				t.FailNow()
			}
			time.Sleep(time.Millisecond)
		}
		if next != nil {
			current.Store(&Credentials{Secrets: next})
		}
	}
	stop()
}

// A testProxy speaks HTTP and CONNECT, and asks for credentials.
type testProxy struct {
	*httptest.Server
	forwarded, tunnels atomic.Int64
	refuse             int // the status of all answers; 0: it serves
}

const proxyUser, proxyPassword = "proxy-user", "proxy-p4ssword"

func newTestProxy(t *testing.T, refuse int) *testProxy {
	t.Helper()
	p := &testProxy{refuse: refuse}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(proxyUser+":"+proxyPassword))
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := p.refuse
		if status == 0 && r.Header.Get("Proxy-Authorization") != want {
			status = http.StatusProxyAuthRequired
		}
		if status != 0 {
			// The status line says what the proxy has been told.
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(conn, "HTTP/1.1 %d no %s\r\nContent-Length: 0\r\n\r\n", status, r.Header.Get("Proxy-Authorization"))
			return
		}
		if r.Method != http.MethodConnect {
			p.forwarded.Add(1)
			w.WriteHeader(http.StatusAccepted)
			return
		}
		p.tunnels.Add(1)
		behind, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer behind.Close()
		conn, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 200 Established\r\n\r\n")
		var back sync.WaitGroup
		back.Go(func() { io.Copy(conn, behind); conn.Close() })
		io.Copy(behind, buffered)
		behind.Close()
		back.Wait()
	}))
	t.Cleanup(p.Close)
	return p
}

// use makes a sink use the proxy.
func (p *testProxy) use(password string) func(*Config) {
	u, err := url.Parse(p.URL)
	if err != nil {
		panic(err)
	}
	u.User = url.UserPassword(proxyUser, password)
	return func(cfg *Config) { cfg.Proxy = http.ProxyURL(u) }
}

func TestProxies(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" {
			t.Error("the endpoint was told the proxy's credentials")
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	proxy := newTestProxy(t, 0)
	trust := func(cfg *Config) { cfg.Roots = roots(server) }

	transport := newTestTransport(t, server.URL, trust, proxy.use(proxyPassword))
	for range 3 {
		if answer := send(t, transport); answer.Status != 200 {
			t.Fatal(answer)
		}
	}
	if got := proxy.tunnels.Load(); got != 1 {
		t.Errorf("%d tunnels, want 1", got)
	}
	if answer := send(t, newTestTransport(t, "http://endpoint.invalid/", proxy.use(proxyPassword))); answer.Status != http.StatusAccepted || proxy.forwarded.Load() != 1 {
		t.Errorf("over HTTP: %v", answer)
	}
	for _, test := range []struct{ address, want string }{
		{server.URL, "connection: the proxy answered 407 to CONNECT"},
		{"http://endpoint.invalid/", "the endpoint answered 407"},
	} {
		if answer := send(t, newTestTransport(t, test.address, trust, proxy.use("wrong"))); answer.String() != test.want {
			t.Errorf("%s with a wrong password: %v, want %s", test.address, answer, test.want)
		}
	}
	gone := newTestProxy(t, 0)
	gone.Close()
	want := "connection: proxy: dial tcp " + strings.TrimPrefix(gone.URL, "http://") + ": connect: connection refused"
	if answer := send(t, newTestTransport(t, server.URL, trust, gone.use("x"))); answer.String() != want {
		t.Errorf("%v, want %s", answer, want)
	}
}

// echoes make answers that hold the request, for those of net/http's errors and log lines that quote the other side.
var echoes = map[string]func(request string) string{
	"the status line":       func(request string) string { return request + "\r\n\r\n" },
	"the status":            func(request string) string { return "HTTP/1.1 2" + request + "\r\n\r\n" },
	"the reason":            func(request string) string { return "HTTP/1.1 500 " + request + "\r\nContent-Length: 0\r\n\r\n" },
	"the version":           func(request string) string { return "HTTP/" + request + " 200 OK\r\n\r\n" },
	"a header's name":       func(request string) string { return "HTTP/1.1 200 OK\r\n" + request + "\r\n\r\n" },
	"a header without name": func(request string) string { return "HTTP/1.1 200 OK\r\n: " + request + "\r\n\r\n" },
	"a header's value":      func(request string) string { return "HTTP/1.1 500 No\r\nX: " + request + "\x00\r\n\r\n" },
	"the first header":      func(request string) string { return "HTTP/1.1 200 OK\r\n  " + request + "\r\n\r\n" },
	"Content-Length":        func(request string) string { return "HTTP/1.1 200 OK\r\nContent-Length: " + request + "\r\n\r\n" },
	"two Content-Lengths": func(request string) string {
		return "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: " + request + "\r\n\r\n"
	},
	"Transfer-Encoding": func(request string) string {
		return "HTTP/1.1 200 OK\r\nTransfer-Encoding: " + request + "\r\n\r\n"
	},
	"Location": func(request string) string {
		return "HTTP/1.1 302 Found\r\nLocation: http://%zz/" + request + "\r\nContent-Length: 0\r\n\r\n"
	},
	"Retry-After": func(request string) string {
		return "HTTP/1.1 429 Slow\r\nRetry-After: " + request + "\r\nContent-Length: 0\r\n\r\n"
	},
	"a chunk": func(request string) string {
		return "HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n" + request + "\r\n"
	},
	"a trailer": func(request string) string {
		return "HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\nTrailer: " + request + "\r\n\r\n0\r\n" + request + "\r\n\r\n"
	},
	"an interim answer": func(request string) string { return "HTTP/1.1 103 " + request + "\r\n" + request + "\r\n\r\n" },
	"a second answer":   func(request string) string { return "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" + request },
	"the body":          func(request string) string { return "HTTP/1.1 500 No\r\n\r\n" + request },
}

// muteStandardLog is what cmd does.
func muteStandardLog(t *testing.T) {
	output := log.Writer()
	log.SetOutput(io.Discard)
	t.Cleanup(func() { log.SetOutput(output) })
}

// planted are secrets, in the places where a sink has them; echoed they may be as they are or in base64.
const (
	plantedPassword = "pl4nted-password"
	plantedQuery    = "pl4nted-query"
	plantedHeader   = "pl4nted-header"
	plantedUID      = "pl4nted-uid"
)

var plantedSecret = []byte("pl4nted-secret-of-24-bytes")

// planted reports what of the planted secrets is in text.
func planted(text string) string {
	basic := base64.StdEncoding.EncodeToString([]byte("pl4nted-user:" + plantedPassword))
	proxy := base64.StdEncoding.EncodeToString([]byte(proxyUser + ":" + proxyPassword))
	for _, secret := range []string{"pl4nted", basic, proxy, proxyPassword, base64.StdEncoding.EncodeToString(plantedSecret), "v1,", "&event="} {
		if strings.Contains(text, secret) {
			return secret
		}
	}
	return ""
}

func plant(cfg *Config) {
	cfg.URL.User = url.UserPassword("pl4nted-user", plantedPassword)
	cfg.URL.RawQuery = "key=" + plantedQuery
	cfg.Secrets = [][]byte{plantedSecret}
	cfg.Headers = http.Header{"X-Api-Key": {plantedHeader}}
	cfg.Timeout = 2 * time.Second
}

// TestAnswersQuoteNobody: whatever an endpoint makes of a request, what is said of its answer has none of it. net/http's own
// log lines, which have, are cmd's to keep away.
func TestAnswersQuoteNobody(t *testing.T) {
	muteStandardLog(t)
	for name, echo := range echoes {
		for _, part := range []string{"the first line", "the headers on one line", "the body"} {
			t.Run(name+" echoes "+part, func(t *testing.T) {
				t.Parallel()
				address := serveRaw(t, func(conn net.Conn, request []byte) {
					head, body, _ := strings.Cut(string(request), "\r\n\r\n")
					first, headers, _ := strings.Cut(head, "\r\n")
					text := map[string]string{"the first line": first, "the headers on one line": strings.ReplaceAll(headers, "\r\n", " "), "the body": body}[part]
					if planted(text) == "" {
						t.Errorf("nothing is planted in %q", text)
					}
					io.WriteString(conn, echo(text))
				})
				transport := newTestTransport(t, "http://"+address, plant)
				r := testRequest()
				r.Body = []byte(`["` + plantedUID + `"]`)
				for range 2 {
					answer, err := transport.Send(t.Context(), r)
					if err != nil {
						t.Fatal(err)
					}
					if answer.Status == 0 && answer.Err.Error() == unknownFailure {
						t.Errorf("a failure has no name: %v", answer)
					}
					var text bytes.Buffer
					slog.New(slog.NewJSONHandler(&text, nil)).Info("x", "answer", answer)
					for _, shown := range []string{text.String(), answer.String(), answer.Code(), fmt.Sprintf("%+v %#v", answer, answer)} {
						if secret := planted(shown); secret != "" {
							t.Errorf("%q is in %s", secret, shown)
						}
					}
				}
			})
		}
	}
}

// TestFailureTexts: what is left of an error helps, and has no words of the other side.
func TestFailureTexts(t *testing.T) {
	authority := newTestAuthority(t, "pl4nted authority")
	serveTLS := func(certificate *tls.Certificate) string {
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.TLS = &tls.Config{Certificates: []tls.Certificate{*certificate}}
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		t.Cleanup(server.Close)
		return server.URL
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, test := range map[string]struct{ address, want string }{
		"refused":      {closed.URL, "dial tcp " + strings.TrimPrefix(closed.URL, "http://") + ": connect: connection refused"},
		"no TLS there": {strings.Replace(plain.URL, "http:", "https:", 1), "no TLS is spoken on the endpoint's port"},
		"another name": {serveTLS(authority.issue(t, "pl4nted", func(c *x509.Certificate) {
			c.IPAddresses, c.DNSNames = nil, []string{"pl4nted.example"}
		})), "the endpoint's certificate is not valid for 127.0.0.1"},
		"expired": {serveTLS(authority.issue(t, "pl4nted", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })),
			"the endpoint's certificate is not valid: certificate has expired or is not yet valid"},
		"unknown authority": {serveTLS(newTestAuthority(t, "pl4nted authority").issue(t, "pl4nted")),
			"the endpoint's certificate is signed by nobody that is trusted here (its authority can be named in OFFHOOK_WEBHOOK_TLS_CA_FILE)"},
		"closed before an answer": {"http://" + serveRaw(t, func(net.Conn, []byte) {}), "the connection was closed before an answer"},
		"no HTTP":                 {"http://" + serveRaw(t, func(conn net.Conn, _ []byte) { io.WriteString(conn, "SSH-2.0-pl4nted\r\n") }), "the answer is no HTTP"},
	} {
		answer := send(t, newTestTransport(t, test.address, plant, func(cfg *Config) { cfg.Roots = authority.pool }))
		if answer.Failure != FailureConnection || answer.Verdict != VerdictRetry || answer.Err.Error() != test.want {
			t.Errorf("%s: %v, want %s", name, answer, test.want)
		}
	}
	for _, test := range []struct {
		err     error
		failure Failure
		want    string
	}{
		{&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "backend.example", Server: "10.0.0.53:53"}},
			FailureConnection, "dial tcp: lookup backend.example on 10.0.0.53:53: no such host"},
		{fmt.Errorf("write: %w", os.NewSyscallError("write", syscall.EPIPE)), FailureConnection, "the connection broke before an answer: broken pipe"},
		{os.NewSyscallError("read", syscall.ETIMEDOUT), FailureConnection, "the connection broke before an answer: connection timed out"},
		{context.DeadlineExceeded, FailureTimeout, "no answer within 1s"},
		{errors.New(`http2: server sent GOAWAY and closed the connection; LastStreamID=1, ErrCode=NO_ERROR, debug="pl4nted"`),
			FailureConnection, "the HTTP/2 connection was closed before the answer (GOAWAY)"},
		{errors.New("pl4nted"), FailureConnection, unknownFailure},
	} {
		failure, err := describe(test.err, phaseWait, time.Second)
		if failure != test.failure || err.Error() != test.want {
			t.Errorf("%v: %s, %v, want %s, %s", test.err, failure, err, test.failure, test.want)
		}
	}
}

// TestNothingLeaks runs whole sinks against hostile endpoints and looks for what was planted in logs, errors and metrics.
func TestNothingLeaks(t *testing.T) {
	muteStandardLog(t)
	refusing := newTestProxy(t, http.StatusForbidden)
	redirecting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "http://%zz/"+r.Header.Get("Authorization")+plantedQuery)
		w.WriteHeader(http.StatusFound)
	}))
	defer redirecting.Close()
	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	untrusted.StartTLS()
	defer untrusted.Close()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, test := range map[string]struct {
		address string
		want    string // in the log
		change  func(*Config)
	}{
		"malformed": {address: "http://" + serveRaw(t, func(conn net.Conn, request []byte) {
			io.WriteString(conn, strings.ReplaceAll(string(request), "\r\n", " ")+"\r\n\r\n")
		}), want: "the answer has a malformed status"},
		"redirect": {address: redirecting.URL, want: "the endpoint answered 302"},
		"refused":  {address: closed.URL, want: "connection refused"},
		"TLS":      {address: untrusted.URL, want: "signed by nobody that is trusted here"},
		"timeout": {address: "http://" + serveConns(t, wait), want: "no answer within 100ms",
			change: func(cfg *Config) { cfg.Timeout = 100 * time.Millisecond }},
		"proxy": {address: untrusted.URL, want: "the proxy answered 403 to CONNECT", change: refusing.use(proxyPassword)},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, kafkatest.New(t))
			f.producePlanted(t)
			u, err := url.Parse(test.address)
			if err != nil {
				t.Fatal(err)
			}
			cfg := f.config(&endpoint{Server: &httptest.Server{URL: test.address}})
			cfg.URL = u
			plant(&cfg)
			if test.change != nil {
				test.change(&cfg)
			}
			lines := new(lockedBuffer)
			reg := prometheus.NewRegistry()
			stop := f.startReg(t, cfg, slog.NewJSONHandler(lines, &slog.HandlerOptions{Level: slog.LevelDebug}), reg)
			metrics := func() string {
				families, err := reg.Gather()
				if err != nil {
					t.Fatal(err)
				}
				var text bytes.Buffer
				for _, family := range families {
					if _, err := expfmt.MetricFamilyToText(&text, family); err != nil {
						t.Fatal(err)
					}
				}
				return text.String()
			}
			for deadline := time.Now().Add(20 * time.Second); !strings.Contains(lines.String(), test.want); {
				if time.Now().After(deadline) {
					t.Fatalf("%q is not in the log:\n%s", test.want, lines.String())
				}
				time.Sleep(5 * time.Millisecond)
			}
			counted := metrics()
			stop()
			if !strings.Contains(counted, "offhook_sink_attempts_total{") {
				t.Errorf("no attempt was counted:\n%s", counted)
			}
			for _, text := range []string{lines.String(), counted} {
				if secret := planted(text); secret != "" {
					t.Errorf("%q is in\n%s", secret, text)
				}
			}
		})
	}
}

// producePlanted writes one event with planted texts to each partition of user.onlinestatus.
func (f *fixture) producePlanted(t *testing.T) {
	t.Helper()
	client := f.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for p := range int32(testPartitions) {
		if err := client.ProduceSync(t.Context(), &kgo.Record{
			Topic: f.topics.OnlineStatus, Partition: p, Key: []byte(plantedUID), Value: []byte(`"` + plantedUID + `-0-1-1-1-1"`),
			Headers: []kgo.RecordHeader{kgo.RecordHeader(schemas.VersionHeader())},
		}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// A lockedBuffer may be read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
