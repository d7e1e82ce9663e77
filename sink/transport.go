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

// A Request is one batch on its way: the same bytes at each attempt.
type Request struct {
	Event       schemas.Event
	ID          string // the webhook-id
	Body        []byte
	Traceparent []byte // nil: none
}

// A Transport POSTs requests to one endpoint. It may be used from many goroutines.
type Transport struct {
	client  *http.Client
	urls    map[schemas.Event]string
	headers http.Header
	secrets [][]byte
	timeout time.Duration
}

// NewTransport returns the transport of the endpoint in cfg, with connections for cfg.MaxInFlight requests kept open.
func NewTransport(cfg Config) *Transport {
	t := &Transport{
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

// Send makes one attempt. An error is ctx's cause, and nobody knows then whether the endpoint took the request.
func (t *Transport) Send(ctx context.Context, r *Request) (Answer, error) {
	attempt, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	post, err := http.NewRequestWithContext(attempt, http.MethodPost, t.urls[r.Event], bytes.NewReader(r.Body))
	if err != nil {
		return Answer{Verdict: VerdictRetry, Failure: FailureConnection, Err: withoutURL(err)}, nil
	}
	now := time.Now()
	post.Header = t.headers.Clone()
	// The specification's names are lower case, and Go would write Webhook-Id; HTTP does not tell them apart.
	post.Header.Set("webhook-id", r.ID)
	post.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	if len(t.secrets) > 0 {
		post.Header.Set("webhook-signature", Signatures(t.secrets, r.ID, now, r.Body))
	}
	if r.Traceparent != nil {
		post.Header.Set(schemas.HeaderTraceparent, string(r.Traceparent))
	}
	answer, err := t.client.Do(post)
	if err == nil {
		// The deadline covers the body too. It is read so that the connection can serve again, and means nothing.
		_, _ = io.CopyN(io.Discard, answer.Body, answerMax)
		_ = answer.Body.Close()
		return Answer{
			Verdict: JudgeStatus(answer.StatusCode), Status: answer.StatusCode,
			RetryAfter: RetryAfter(answer.Header.Get("Retry-After"), time.Now()),
		}, nil
	}
	if ctx.Err() != nil {
		return Answer{}, context.Cause(ctx)
	}
	failure := FailureConnection
	if errors.Is(err, context.DeadlineExceeded) {
		failure = FailureTimeout
	}
	return Answer{Verdict: VerdictRetry, Failure: failure, Err: withoutURL(err)}, nil
}

// withoutURL takes the URL, which may hold credentials, out of an error of net/http.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// Close lets go of the connections that are kept open.
func (t *Transport) Close() { t.client.CloseIdleConnections() }
