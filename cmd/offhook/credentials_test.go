package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/offhook/offhook/schemas"
	"github.com/offhook/offhook/sink"
)

// mount is a mounted Kubernetes secret: files are links to ..data/<name>, and ..data is a link that a change swaps.
type mount struct {
	dir      string
	versions int
}

func newMount(t *testing.T, files map[string]string) *mount {
	t.Helper()
	m := &mount{dir: t.TempDir()}
	m.swap(t, files)
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), m.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *mount) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mount) swap(t *testing.T, files map[string]string) {
	t.Helper()
	m.versions++
	version := fmt.Sprint("..", m.versions)
	if err := os.Mkdir(m.path(version), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(m.path(version), name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(version, m.path("new")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(m.path("new"), m.path("..data")); err != nil {
		t.Fatal(err)
	}
}

func whsec(key string) string { return secretPrefix + base64.StdEncoding.EncodeToString([]byte(key)) }

var (
	olderKey = strings.Repeat("o", 32)
	newerKey = strings.Repeat("n", 32)
)

// TestCredentialsFollowTheirFiles: a change is taken within seconds; what cannot be used is told of once, without its value,
// and changes nothing.
func TestCredentialsFollowTheirFiles(t *testing.T) {
	one, two := newPair(t, "one"), newPair(t, "two")
	files := map[string]string{"secrets": whsec(olderKey) + "\n", "headers": "Authorization: Bearer older", "ca": one.certificate, "cert": one.certificate, "key": one.key}
	m := newMount(t, files)
	s, _, err := load(with("OFFHOOK_WEBHOOK_SECRETS_FILE="+m.path("secrets"), "OFFHOOK_WEBHOOK_HEADERS_FILE="+m.path("headers"),
		"OFFHOOK_WEBHOOK_TLS_CA_FILE="+m.path("ca"), "OFFHOOK_WEBHOOK_TLS_CERT_FILE="+m.path("cert"), "OFFHOOK_WEBHOOK_TLS_KEY_FILE="+m.path("key")), allParts...)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var lines buffer
		c, err := s.credentials(slog.New(slog.NewTextHandler(&lines, nil)))
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go c.poll(ctx)
		logged := func(want string) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			text := lines.String()
			lines.reset()
			if strings.Count(text, "\n") != strings.Count(want, "\n")+min(len(want), 1) || !strings.Contains(text, strings.Split(want, "\n")[0]) {
				t.Errorf("want lines with\n%s\ngot\n%s", want, text)
			}
			for _, value := range []string{olderKey, newerKey, whsec(olderKey), whsec(newerKey), "Bearer", "hunter2", "PRIVATE"} {
				if strings.Contains(text, value) {
					t.Errorf("the log shows a value:\n%s", text)
				}
			}
		}
		change := func(name, content string) {
			t.Helper()
			files[name] = content
			m.swap(t, files)
		}
		first := c.current.Load()
		m.swap(t, files)
		logged("")
		if c.current.Load() != first {
			t.Error("files that were swapped for equal ones changed the credentials")
		}

		change("secrets", whsec(newerKey)+","+whsec(olderKey))
		logged("new credentials for the endpoint are in use")
		rotating := c.current.Load()
		if len(rotating.Secrets) != 2 || string(rotating.Secrets[0]) != newerKey || rotating.Certificate != first.Certificate || rotating.Roots != first.Roots {
			t.Error("a new secret is not all that changed")
		}

		change("secrets", "whsec_hunter2!")
		logged("those from before stay in use")
		logged("")
		change("secrets", "whsec_hunter2?") // as bad, and no news
		logged("")
		change("secrets", "")
		logged("the file is empty")
		if err := os.Remove(m.path("secrets")); err != nil {
			t.Fatal(err)
		}
		logged("no such file")
		if err := os.Symlink("..data/secrets", m.path("secrets")); err != nil {
			t.Fatal(err)
		}
		if c.current.Load() != rotating {
			t.Error("what cannot be used changed the credentials")
		}
		change("secrets", whsec(newerKey)+","+whsec(olderKey))
		logged("again as they were")

		change("headers", "Authorization: Bearer newer\nX-Api-Key: hunter2")
		logged("new credentials for the endpoint are in use")
		if got := c.current.Load(); got.Headers.Get("Authorization") != "Bearer newer" || len(got.Secrets) != 2 {
			t.Error("the headers did not change alone")
		}
		change("headers", "Authorization hunter2")
		logged("line 1 is not Name: value")
		change("headers", "A: 1")
		logged("new credentials for the endpoint are in use")

		change("cert", two.certificate)
		logged("private key does not match public key")
		change("key", two.key)
		logged("new credentials for the endpoint are in use")
		if got := c.current.Load(); bytes.Equal(got.Certificate.Certificate[0], first.Certificate.Certificate[0]) || got.Roots != first.Roots {
			t.Error("the certificate did not change alone")
		}
		change("ca", "hunter2")
		logged("the file holds no PEM certificate")
		change("ca", two.certificate)
		logged("new credentials for the endpoint are in use")
		if c.current.Load().Roots == first.Roots {
			t.Error("the authorities did not change")
		}
		change("secrets", "whsec_"+base64.StdEncoding.EncodeToString([]byte("short")))
		logged("new credentials for the endpoint are in use\nfewer than 24 bytes")
	})
}

// TestHalfWrittenFiles: a file that is still being written is not taken, though what there is of it could be used.
func TestHalfWrittenFiles(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secrets")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(whsec(olderKey))
	s, _, err := load(with("OFFHOOK_WEBHOOK_SECRETS_FILE="+file), allParts...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.credentials(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	look := func() string {
		for _, f := range c.files {
			c.check(f)
		}
		return string(c.current.Load().Secrets[0])
	}
	look()
	write(whsec(newerKey)[:20])
	if got := look(); got != olderKey {
		t.Errorf("half a secret is in use: %q", got)
	}
	write(whsec(newerKey))
	if got := look(); got != olderKey {
		t.Errorf("%q is in use after one look", got)
	}
	if got := look(); got != newerKey {
		t.Errorf("%q is in use, want the new secret", got)
	}
}

// TestRotationUnderTraffic: a verifier that is not ours takes each request while the file of the secrets is swapped.
func TestRotationUnderTraffic(t *testing.T) {
	older, err := standardwebhooks.NewWebhookRaw([]byte(olderKey))
	if err != nil {
		t.Fatal(err)
	}
	newer, err := standardwebhooks.NewWebhookRaw([]byte(newerKey))
	if err != nil {
		t.Fatal(err)
	}
	var byOlder, byBoth, byNewer atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch first, second := older.Verify(body, r.Header) == nil, newer.Verify(body, r.Header) == nil; {
		case first && second:
			byBoth.Add(1)
		case first:
			byOlder.Add(1)
		case second:
			byNewer.Add(1)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer server.Close()
	m := newMount(t, map[string]string{"secrets": whsec(olderKey)})
	s, _, err := load(with("OFFHOOK_WEBHOOK_URL="+server.URL, "OFFHOOK_WEBHOOK_SECRETS_FILE="+m.path("secrets")), allParts...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.credentials(slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	c.every = time.Millisecond
	cfg, err := s.sinkConfig()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Current = c.current.Load
	transport := sink.NewTransport(cfg)
	defer transport.Close()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { c.poll(ctx) })
	for range 2 {
		wg.Go(func() {
			for {
				answer, err := transport.Send(ctx, &sink.Request{Event: schemas.EventNotify, ID: "id", Body: []byte(`[]`)})
				if err != nil {
					return
				}
				if answer.Status != http.StatusOK {
					t.Errorf("%v", answer)
				}
			}
		})
	}
	await := func(what string, n *atomic.Int64) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for before := n.Load(); n.Load() < before+5; {
			if time.Now().After(deadline) {
				t.Fatalf("no requests that %s verifies", what)
			}
			time.Sleep(time.Millisecond)
		}
	}
	await("the old secret", &byOlder)
	m.swap(t, map[string]string{"secrets": whsec(newerKey) + "," + whsec(olderKey)})
	await("each secret", &byBoth)
	m.swap(t, map[string]string{"secrets": whsec(newerKey)})
	await("the new secret", &byNewer)
}

func TestProxyOfTheEnvironment(t *testing.T) {
	for _, test := range []struct {
		environ environment
		url     string
		want    string // the proxy; empty: none
	}{
		{environment{}, "https://backend.example/", ""},
		{environment{"HTTPS_PROXY": "http://proxy:3128"}, "https://backend.example/", "http://proxy:3128"},
		{environment{"HTTPS_PROXY": "http://user:pass@proxy:3128"}, "https://backend.example/", "http://user:pass@proxy:3128"},
		{environment{"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:2"}, "https://backend.example/", "http://lower:2"},
		{environment{"HTTPS_PROXY": "proxy:3128"}, "https://backend.example/", "http://proxy:3128"},
		{environment{"HTTPS_PROXY": "socks5://proxy:1080"}, "https://backend.example/", "socks5://proxy:1080"},
		{environment{"HTTPS_PROXY": "http://proxy:3128"}, "http://backend.example/", ""},
		{environment{"HTTP_PROXY": "http://proxy:3128"}, "http://backend.example/", "http://proxy:3128"},
		{environment{"HTTP_PROXY": "http://proxy:3128", "HTTPS_PROXY": "::no proxy::"}, "http://backend.example/", "http://proxy:3128"},
		{environment{"HTTP_PROXY": "http://proxy:3128"}, "http://127.0.0.1:9/", ""},
		{environment{"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other,.example"}, "https://backend.example/", ""},
		{environment{"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "other"}, "https://backend.example/", "http://proxy:3128"},
	} {
		test.environ["OFFHOOK_KAFKA_BROKERS"], test.environ["OFFHOOK_WEBHOOK_URL"] = "b:1", test.url
		s, _, err := load(test.environ, partSink)
		if err != nil {
			t.Errorf("%v: %v", test.environ, err)
			continue
		}
		cfg, err := s.sinkConfig()
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if cfg.Proxy != nil {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, test.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			u, err := cfg.Proxy(r)
			if err != nil {
				t.Errorf("%v: %v", test.environ, err)
			}
			if u != nil {
				got = u.String()
			}
		}
		if got != test.want {
			t.Errorf("%v: proxy %q, want %q", test.environ, got, test.want)
		}
	}
	if _, _, err := load(environment{"OFFHOOK_KAFKA_BROKERS": "b:1", "HTTPS_PROXY": "::"}, partProcessor); err != nil {
		t.Errorf("a processor cares for proxies: %v", err)
	}
}

func (b *buffer) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Reset()
}

// pair is a certificate, which signs itself, and its key, in PEM.
type pair struct{ certificate, key string }

func newPair(t *testing.T, name string) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{
		certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		key:         string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})),
	}
}

// TestWebhookTLSFiles: what the variables name is what requests are made with.
func TestWebhookTLSFiles(t *testing.T) {
	serverPair, clientPair := newPair(t, "server"), newPair(t, "client")
	certificate, err := tls.X509KeyPair([]byte(serverPair.certificate), []byte(serverPair.key))
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM([]byte(clientPair.certificate))
	var client atomic.Value
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		client.Store(r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	server.StartTLS()
	defer server.Close()
	m := newMount(t, map[string]string{"ca": serverPair.certificate, "cert": clientPair.certificate, "key": clientPair.key})
	s, _, err := load(with("OFFHOOK_WEBHOOK_URL="+server.URL, "OFFHOOK_WEBHOOK_TLS_CA_FILE="+m.path("ca"),
		"OFFHOOK_WEBHOOK_TLS_CERT_FILE="+m.path("cert"), "OFFHOOK_WEBHOOK_TLS_KEY_FILE="+m.path("key")), partSink)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := s.sinkConfig()
	if err != nil {
		t.Fatal(err)
	}
	transport := sink.NewTransport(cfg)
	defer transport.Close()
	answer, err := transport.Send(t.Context(), &sink.Request{Event: schemas.EventNotify, ID: "id", Body: []byte(`[]`)})
	if err != nil || answer.Status != http.StatusOK || client.Load() != "client" {
		t.Errorf("%v, error %v, the client was %v", answer, err, client.Load())
	}
}

// TestStandardLogIsMute: what net/http says of peers goes nowhere, since it quotes them.
func TestStandardLogIsMute(t *testing.T) {
	var said buffer
	stdlog.SetOutput(&said)
	if code, _, stderr := command(t, nil, "version"); code != exitOK {
		t.Fatal(stderr)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Read(make([]byte, 4096))
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nhunter2")
		_, _ = io.Copy(io.Discard, conn) // until net/http closes it
	}()
	s, _, err := load(with("OFFHOOK_WEBHOOK_URL=http://"+l.Addr().String()), partSink)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := s.sinkConfig()
	if err != nil {
		t.Fatal(err)
	}
	transport := sink.NewTransport(cfg)
	defer transport.Close()
	if answer, err := transport.Send(t.Context(), &sink.Request{Event: schemas.EventNotify, ID: "id", Body: []byte(`[]`)}); err != nil || answer.Status != http.StatusOK {
		t.Errorf("%v, error %v", answer, err)
	}
	<-closed
	if text := said.String(); text != "" {
		t.Errorf("the standard log says %q", text)
	}
}
