package kafka_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
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
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

func ensureError(t *testing.T, cfg kafka.Config) error {
	t.Helper()
	client, err := cfg.NewClient(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = kafka.Ensure(ctx, client, spec("p"), slog.New(slog.DiscardHandler))
	return err
}

func wantError(t *testing.T, err error, substring string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), substring) {
		t.Errorf("got error %v, want one that names %s", err, substring)
	}
}

func TestSASL(t *testing.T) {
	var refuse atomic.Bool
	c := kafkatest.New(t, kfake.NumBrokers(1), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "plain", "p1"), kfake.Superuser("SCRAM-SHA-256", "s256", "p2"), kfake.Superuser("SCRAM-SHA-512", "s512", "p3"))
	// Kafka answers a wrong password with an error code, where kfake closes the connection.
	c.Fake.ControlKey(int16(kmsg.SASLAuthenticate), func(request kmsg.Request) (kmsg.Response, error, bool) {
		c.Fake.KeepControl()
		if refuse.Load() {
			response := request.ResponseKind().(*kmsg.SASLAuthenticateResponse)
			response.ErrorCode = kerr.SaslAuthenticationFailed.Code
			return response, nil, true
		}
		return nil, nil, false
	})
	for _, test := range []struct{ mechanism, user, password, wantError string }{
		{"PLAIN", "plain", "p1", ""},
		{"SCRAM-SHA-256", "s256", "p2", ""},
		{"SCRAM-SHA-512", "s512", "p3", ""},
		{"PLAIN", "plain", "wrong-password", "OFFHOOK_KAFKA_SASL_PASSWORD"},
		{"SCRAM-SHA-256", "s256", "wrong-password", "OFFHOOK_KAFKA_SASL_PASSWORD"},
		{"SCRAM-SHA-512", "nobody", "wrong-password", "OFFHOOK_KAFKA_SASL_USERNAME"},
		{"GSSAPI", "", "", "OFFHOOK_KAFKA_SASL_MECHANISM"},
	} {
		t.Run(test.mechanism+" "+test.user+" "+test.password, func(t *testing.T) {
			refuse.Store(test.password == "wrong-password")
			cfg := c.Config()
			cfg.SASLMechanism, cfg.SASLUsername, cfg.SASLPassword = test.mechanism, test.user, test.password
			err := ensureError(t, cfg)
			if test.wantError == "" {
				if err != nil {
					t.Errorf("got error %v", err)
				}
				return
			}
			wantError(t, err, test.wantError)
			if err != nil && strings.Contains(err.Error(), "wrong-password") {
				t.Errorf("the error holds the password: %v", err)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	server := ca.issue(t, "server", net.IPv4(127, 0, 0, 1))
	c := kafkatest.New(t, kfake.NumBrokers(1), kfake.TLS(&tls.Config{
		Certificates: []tls.Certificate{server.pair}, ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}))
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	own := ca.issue(t, "client", nil)
	other := newAuthority(t)
	stranger := other.issue(t, "stranger", nil)
	var dialed atomic.Int32
	dialer := func(ctx context.Context, network, host string) (net.Conn, error) {
		dialed.Add(1)
		return new(net.Dialer).DialContext(ctx, network, host)
	}
	for _, test := range []struct {
		name      string
		config    kafka.Config
		wantError string
	}{
		{"both certificates", kafka.Config{TLS: true, CAFile: ca.file, CertFile: own.file, KeyFile: own.keyFile}, ""},
		{"over a dialer", kafka.Config{TLS: true, CAFile: ca.file, CertFile: own.file, KeyFile: own.keyFile, Dialer: dialer}, ""},
		{"unknown authority", kafka.Config{TLS: true, CertFile: own.file, KeyFile: own.keyFile}, "OFFHOOK_KAFKA_TLS_CA_FILE"},
		{"no client certificate", kafka.Config{TLS: true, CAFile: ca.file}, "OFFHOOK_KAFKA_TLS_CERT_FILE"},
		{"stranger", kafka.Config{TLS: true, CAFile: ca.file, CertFile: stranger.file, KeyFile: stranger.keyFile}, "OFFHOOK_KAFKA_TLS_CERT_FILE"},
		{"no such CA file", kafka.Config{TLS: true, CAFile: ca.file + "x"}, "OFFHOOK_KAFKA_TLS_CA_FILE"},
		{"CA file of a key", kafka.Config{TLS: true, CAFile: own.keyFile}, "OFFHOOK_KAFKA_TLS_CA_FILE"},
		{"no key file", kafka.Config{TLS: true, CertFile: own.file}, "OFFHOOK_KAFKA_TLS_KEY_FILE"},
		{"TLS to a plain port", kafka.Config{Brokers: []string{plain.Listener.Addr().String()}, TLS: true, CAFile: ca.file}, "OFFHOOK_KAFKA_TLS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.config.Brokers == nil {
				test.config.Brokers = c.Brokers
			}
			err := ensureError(t, test.config)
			if test.wantError != "" {
				wantError(t, err, test.wantError)
			} else if err != nil {
				t.Errorf("got error %v", err)
			}
		})
	}
	if dialed.Load() == 0 {
		t.Error("Config.Dialer was not used")
	}
}

// TestClosedConnections: a listener that wants TLS or SASL and does not get it closes the connection, as one that is
// starting may. It is waited for, and the log says what it may be.
func TestClosedConnections(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer listener.Close()
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 100))
			conn.Close()
		}
	})
	var log buffer
	client, err := kafka.Config{Brokers: []string{listener.Addr().String()}}.NewClient(log.log())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() { kafka.Ensure(ctx, client, spec("p"), log.log()) })
	defer cancel()
	kafkatest.Wait(t, 10*time.Second, "the variables to be named", func() bool {
		return strings.Contains(log.String(), "OFFHOOK_KAFKA_TLS") && strings.Contains(log.String(), "OFFHOOK_KAFKA_SASL_MECHANISM")
	})
}

// TestOptionsReadCommitted has a transaction under way whose records no client of offhook may see.
func TestOptionsReadCommitted(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		topic := c.Prefix + ".t"
		c.CreateTopic(t, topic, 1)
		producer := c.Client(t, kgo.TransactionalID(c.Prefix))
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := producer.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("aborted")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := producer.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
			t.Fatal(err)
		}
		c.Produce(t, &kgo.Record{Topic: topic, Value: []byte("plain")})
		reader, err := c.Config().NewClient(slog.New(slog.DiscardHandler), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		for _, record := range reader.PollFetches(t.Context()).Records() {
			if string(record.Value) != "plain" {
				t.Errorf("read %q", record.Value)
			}
		}
		if got := c.ReadAll(t, topic); len(got) != 1 || string(got[0].Value) != "plain" {
			t.Errorf("ReadAll gives %d records", len(got))
		}
	})
}

type issued struct {
	file, keyFile string
	pair          tls.Certificate
}

type authority struct {
	file        string
	pool        *x509.CertPool
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return &authority{file: writePEM(t, "CERTIFICATE", der), pool: pool, key: key, certificate: certificate}
}

func (a *authority) issue(t *testing.T, name string, ip net.IP) issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip != nil {
		template.IPAddresses = []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return issued{
		file: writePEM(t, "CERTIFICATE", der), keyFile: writePEM(t, "EC PRIVATE KEY", keyDER),
		pair: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
	}
}

func writePEM(t *testing.T, kind string, der []byte) string {
	t.Helper()
	var text bytes.Buffer
	if err := pem.Encode(&text, &pem.Block{Type: kind, Bytes: der}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
