package sink

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/offhook/offhook/schemas"
)

// answerMax is how much of an answer's body is read, in bytes.
const answerMax = 64 << 10

// A request is one batch on its way: the same bytes at each attempt.
type request struct {
	event       schemas.Event
	id          string
	body        []byte
	traceparent []byte // nil: none
}

// Failure is why an attempt failed: a closed list, the label of metrics and logs.
type Failure string

// Why an attempt failed.
const (
	FailureStatus     Failure = "status"     // an answer other than 2xx
	FailureTimeout    Failure = "timeout"    // OFFHOOK_WEBHOOK_TIMEOUT has passed
	FailureConnection Failure = "connection" // no connection, or it broke
)

// An attemptError says why an attempt failed. It holds neither URL nor body.
type attemptError struct {
	Failure Failure
	Status  int // FailureStatus: the HTTP status; else 0
	cause   error
}

func (e *attemptError) Error() string {
	if e.Failure == FailureStatus {
		return "the endpoint answered " + strconv.Itoa(e.Status)
	}
	return string(e.Failure) + ": " + e.cause.Error()
}

func (e *attemptError) Unwrap() error { return e.cause }

// A transport POSTs requests to one endpoint. It may be used from many goroutines.
type transport struct {
	client  *http.Client
	urls    map[schemas.Event]string
	headers http.Header
	secrets [][]byte
	timeout time.Duration
}

// newTransport returns the transport of the endpoint in cfg, with connections for cfg.MaxInFlight requests kept open.
func newTransport(cfg Config) *transport {
	t := &transport{
		client: &http.Client{
			Transport: &http.Transport{
				Proxy:                 http.ProxyFromEnvironment,
				DialContext:           (&net.Dialer{Timeout: cfg.Timeout, KeepAlive: 30 * time.Second}).DialContext,
				TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
				ForceAttemptHTTP2:     true,
				MaxIdleConns:          cfg.MaxInFlight,
				MaxIdleConnsPerHost:   cfg.MaxInFlight,
				IdleConnTimeout:       90 * time.Second,
				TLSHandshakeTimeout:   cfg.Timeout,
				ExpectContinueTimeout: time.Second,
				DisableCompression:    true,
			},
			// A 301 to 303 would turn the POST into a GET without body.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		urls:    make(map[schemas.Event]string),
		headers: cfg.Headers.Clone(),
		secrets: cfg.Secrets,
		timeout: cfg.Timeout,
	}
	if t.headers == nil {
		t.headers = make(http.Header)
	}
	t.headers.Set("Content-Type", "application/json")
	if t.headers.Get("User-Agent") == "" {
		t.headers.Set("User-Agent", "offhook")
	}
	for _, event := range schemas.Events() {
		u := *cfg.URL
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += "event=" + url.QueryEscape(string(event))
		t.urls[event] = u.String()
	}
	return t
}

// send makes one attempt. nil: the endpoint took the request (2xx). An *attemptError: it did not, or nobody knows.
// Any other error is ctx's cause.
func (t *transport) send(ctx context.Context, r *request) error {
	attempt, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	post, err := http.NewRequestWithContext(attempt, http.MethodPost, t.urls[r.event], bytes.NewReader(r.body))
	if err != nil {
		return &attemptError{Failure: FailureConnection, cause: withoutURL(err)}
	}
	now := time.Now()
	post.Header = t.headers.Clone()
	// The specification's names are lower case, and Go would write Webhook-Id; HTTP does not tell them apart.
	post.Header.Set("webhook-id", r.id)
	post.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	if len(t.secrets) > 0 {
		post.Header.Set("webhook-signature", Signatures(t.secrets, r.id, now, r.body))
	}
	if r.traceparent != nil {
		post.Header.Set(schemas.HeaderTraceparent, string(r.traceparent))
	}
	answer, err := t.client.Do(post)
	if err == nil {
		// The deadline covers the body too. It is read so that the connection can serve again, and means nothing.
		_, _ = io.CopyN(io.Discard, answer.Body, answerMax)
		_ = answer.Body.Close()
		if answer.StatusCode/100 == 2 {
			return nil
		}
		return &attemptError{Failure: FailureStatus, Status: answer.StatusCode}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	failure := FailureConnection
	if errors.Is(err, context.DeadlineExceeded) {
		failure = FailureTimeout
	}
	return &attemptError{Failure: failure, cause: withoutURL(err)}
}

// withoutURL takes the URL, which may hold credentials, out of an error of net/http.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// close lets go of the connections that are kept open.
func (t *transport) close() { t.client.CloseIdleConnections() }
