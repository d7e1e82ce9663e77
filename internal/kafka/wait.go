package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// attemptTimeout bounds one attempt at the brokers, so that what is waited for is said while it is waited for.
const attemptTimeout = 10 * time.Second

// Refused tells what waiting does not mend from what it does: refused authentication, TLS or authorization come back
// as an error that names the variable or the permission to change, wrapping err. For anything else it returns nil.
func Refused(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return fmt.Errorf("the brokers refuse the user or its password (check OFFHOOK_KAFKA_SASL_USERNAME and OFFHOOK_KAFKA_SASL_PASSWORD): %w", err)
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		return fmt.Errorf("the brokers do not offer this SASL mechanism (set OFFHOOK_KAFKA_SASL_MECHANISM to one that they do): %w", err)
	case errors.Is(err, kerr.IllegalSaslState):
		return fmt.Errorf("the brokers expect no SASL on this listener (unset OFFHOOK_KAFKA_SASL_MECHANISM, or name another port in OFFHOOK_KAFKA_BROKERS): %w", err)
	case is[x509.UnknownAuthorityError](err):
		return fmt.Errorf("the brokers' certificate is signed by nobody that is trusted here (name its authority in OFFHOOK_KAFKA_TLS_CA_FILE): %w", err)
	case is[x509.HostnameError](err):
		return fmt.Errorf("the brokers' certificate is for other hosts than OFFHOOK_KAFKA_BROKERS names: %w", err)
	case is[*tls.CertificateVerificationError](err):
		return fmt.Errorf("the brokers' certificate is not valid (check it, and OFFHOOK_KAFKA_TLS_CA_FILE): %w", err)
	case is[tls.RecordHeaderError](err):
		return fmt.Errorf("the brokers speak no TLS on this port (set OFFHOOK_KAFKA_TLS to false, or name another port in OFFHOOK_KAFKA_BROKERS): %w", err)
	case isAlert(err):
		return fmt.Errorf("the brokers refuse the TLS handshake (check OFFHOOK_KAFKA_TLS_CERT_FILE and OFFHOOK_KAFKA_TLS_KEY_FILE): %w", err)
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed),
		errors.Is(err, kerr.GroupAuthorizationFailed), errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
		return fmt.Errorf("the brokers refuse permission (grant it to the user of OFFHOOK_KAFKA_SASL_USERNAME): %w", err)
	}
	return nil
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// isAlert reports whether the other side ended the TLS handshake with an alert, whose type crypto/tls does not export.
func isAlert(err error) bool {
	operation, ok := errors.AsType[*net.OpError](err)
	return ok && operation.Op == "remote error"
}

// waitLog says what is waited for: at once, and again at intervals that double.
type waitLog struct {
	log      *slog.Logger
	next     time.Time
	interval time.Duration
	since    time.Time
}

func (w *waitLog) say(err error) {
	now := time.Now()
	if w.since.IsZero() {
		w.since = now
	}
	if now.Before(w.next) {
		return
	}
	w.interval = min(max(2*w.interval, repeatFirst), repeatMost)
	w.next = now.Add(w.interval)
	attributes := []any{"waited", now.Sub(w.since).Round(time.Second).String(), "error", err}
	if is[*kgo.ErrFirstReadEOF](err) || errors.Is(err, io.EOF) {
		attributes = append(attributes, "hint", "the broker closes the connection; should it not be starting, check OFFHOOK_KAFKA_TLS and OFFHOOK_KAFKA_SASL_MECHANISM")
	}
	w.log.Warn("waiting for the Kafka brokers", attributes...)
}

func (w *waitLog) over() {
	if !w.since.IsZero() {
		w.log.Info("the Kafka brokers answer", "waited", time.Since(w.since).Round(time.Second).String())
	}
}

// pause waits between two attempts, longer with each up to 2 s; false where ctx ends first.
func pause(ctx context.Context, attempt int) bool {
	timer := time.NewTimer(min(100*time.Millisecond<<min(attempt, 10), 2*time.Second))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Ping asks one broker after the other for nothing, and returns nil when one answers. kgo's own Ping sends one request
// value to all of them, which is a data race where one is still about to be written when the next is tried.
func Ping(ctx context.Context, client *kgo.Client) error {
	err := errors.New("no brokers are known")
	for _, broker := range append(client.SeedBrokers(), client.DiscoveredBrokers()...) {
		request := kmsg.NewPtrMetadataRequest()
		request.Topics = []kmsg.MetadataRequestTopic{}
		if _, err = broker.Request(ctx, request); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}
