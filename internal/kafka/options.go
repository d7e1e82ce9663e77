package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// clientID is what brokers see in their logs and quotas.
const clientID = "offhook"

// The SASL mechanisms that a [Config] may name.
const (
	MechanismPlain       = "PLAIN"
	MechanismScramSHA256 = "SCRAM-SHA-256"
	MechanismScramSHA512 = "SCRAM-SHA-512"
)

// Options are the client options that every client of offhook has: seeds, TLS, SASL, logger (client id "offhook"),
// read committed, no automatic topic creation. A file that cannot be read is an error that names its variable.
func (c Config) Options(log *slog.Logger) ([]kgo.Opt, error) {
	options := []kgo.Opt{
		kgo.ClientID(clientID),
		kgo.SeedBrokers(c.Brokers...),
		kgo.WithLogger(newClientLog(log)),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// After NOT_LEADER_OR_FOLLOWER a client waits this long before it asks who leads; the default is 5 s.
		kgo.MetadataMinAge(500 * time.Millisecond),
	}
	tlsConfig, err := c.TLSConfig()
	if err != nil {
		return nil, err
	}
	switch {
	case c.Dialer != nil && tlsConfig != nil:
		options = append(options, kgo.Dialer(tlsDialer(c.Dialer, tlsConfig)))
	case c.Dialer != nil:
		options = append(options, kgo.Dialer(c.Dialer))
	case tlsConfig != nil:
		options = append(options, kgo.DialTLSConfig(tlsConfig))
	}
	mechanism, err := c.mechanism()
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		options = append(options, kgo.SASL(mechanism))
	}
	return options, nil
}

// NewClient is a client with [Config.Options], and more after them.
func (c Config) NewClient(log *slog.Logger, more ...kgo.Opt) (*kgo.Client, error) {
	options, err := c.Options(log)
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(options, more...)...)
	if err != nil {
		return nil, fmt.Errorf("new Kafka client: %w", err)
	}
	return client, nil
}

// TLSConfig is how to speak TLS to the brokers; nil where Config.TLS is false. A file that cannot be read is an error that
// names its variable.
func (c Config) TLSConfig() (*tls.Config, error) {
	if !c.TLS {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read OFFHOOK_KAFKA_TLS_CA_FILE: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("read OFFHOOK_KAFKA_TLS_CA_FILE: the file holds no PEM certificate")
		}
	}
	if c.CertFile != "" || c.KeyFile != "" {
		certificate, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read OFFHOOK_KAFKA_TLS_CERT_FILE and OFFHOOK_KAFKA_TLS_KEY_FILE: %w", err)
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config, nil
}

// tlsDialer runs TLS over the connections of dial, as kgo.DialTLSConfig does over those of the network.
func tlsDialer(dial func(context.Context, string, string) (net.Conn, error), config *tls.Config) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, host string) (net.Conn, error) {
		name, _, err := net.SplitHostPort(host)
		if err != nil {
			return nil, fmt.Errorf("split broker address %s: %w", host, err)
		}
		conn, err := dial(ctx, network, host)
		if err != nil {
			return nil, err
		}
		own := config.Clone()
		own.ServerName = name
		secure := tls.Client(conn, own)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return secure, nil
	}
}

func (c Config) mechanism() (sasl.Mechanism, error) {
	scramAuth := scram.Auth{User: c.SASLUsername, Pass: c.SASLPassword}
	switch c.SASLMechanism {
	case "":
		return nil, nil
	case MechanismPlain:
		return plain.Auth{User: c.SASLUsername, Pass: c.SASLPassword}.AsMechanism(), nil
	case MechanismScramSHA256:
		return scramAuth.AsSha256Mechanism(), nil
	case MechanismScramSHA512:
		return scramAuth.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("SASL mechanism %q is unknown: OFFHOOK_KAFKA_SASL_MECHANISM is one of %s, %s, %s",
		c.SASLMechanism, MechanismPlain, MechanismScramSHA256, MechanismScramSHA512)
}
