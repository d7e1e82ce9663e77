package sink

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/offhook/offhook/schemas"
)

const (
	// answerMax is how much of an answer's body is read, in bytes. A connection whose answer is longer serves no second
	// request.
	answerMax = 64 << 10

	// answerHeadMax bounds the status line and the headers of an answer, in bytes.
	answerHeadMax = 64 << 10

	// idleTimeout is how long a connection without a request is kept. Endpoints that keep theirs for less close them.
	idleTimeout = 90 * time.Second

	// After pingAfter without a frame an HTTP/2 connection is asked for a sign of life, and is given up pingTimeout later. An
	// HTTP/1.1 connection is given up by the first request on it that times out; here all would go on failing.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// A Request is one batch on its way: the same bytes at each attempt.
type Request struct {
	Event       schemas.Event
	ID          string // the webhook-id
	Body        []byte
	Traceparent []byte // nil: none
}

// A Transport POSTs requests to one endpoint. It may be used from many goroutines.
//
// net/http sends a request a second time by itself, within one attempt and its deadline, where it knows that the endpoint
// has not begun on it: a kept connection turned out to be closed before a byte was written, or an HTTP/2 endpoint refused
// the stream or went away before it. It is the same request, id and time included, so nothing here tells them apart.
type Transport struct {
	urls        map[schemas.Event]string // without credentials
	basic       string                   // the Authorization that the URL's credentials make; empty: none
	credentials func() *Credentials
	timeout     time.Duration
	maxInFlight int
	proxy       func(*http.Request) (*url.URL, error)

	mu   sync.Mutex // for changing link
	link atomic.Pointer[link]
}

// A link is the connections that were made with one client certificate and one set of authorities.
type link struct {
	http        *http.Transport
	certificate *tls.Certificate
	roots       *x509.CertPool
}

// NewTransport returns the transport of the endpoint in cfg, with connections for cfg.MaxInFlight requests kept open.
func NewTransport(cfg Config) *Transport {
	t := &Transport{
		urls: make(map[schemas.Event]string), credentials: cfg.Current, timeout: cfg.Timeout, maxInFlight: cfg.MaxInFlight, proxy: cfg.Proxy,
	}
	if t.credentials == nil {
		t.credentials = func() *Credentials { return &cfg.Credentials }
	}
	base := *cfg.URL
	if user := base.User; user != nil {
		password, _ := user.Password()
		t.basic = "Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password))
		base.User = nil
	}
	for _, event := range schemas.Events() {
		u := base
		if u.RawQuery != "" {
			u.RawQuery += "&"
		}
		u.RawQuery += "event=" + url.QueryEscape(string(event))
		t.urls[event] = u.String()
	}
	t.link.Store(t.newLink(t.credentials()))
	return t
}

func (t *Transport) newLink(c *Credentials) *link {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.Roots}
	if c.Certificate != nil {
		// Not Certificates, of which crypto/tls sends none where the endpoint asks for authorities other than its issuer: what is
		// set is sent, and an endpoint that does not want it says so.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate, nil }
	}
	return &link{
		certificate: c.Certificate, roots: c.Roots,
		http: &http.Transport{
			Proxy:                  t.proxy,
			OnProxyConnectResponse: refusedByProxy,
			DialContext:            (&net.Dialer{Timeout: t.timeout, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        config,
			TLSHandshakeTimeout:    t.timeout,
			ForceAttemptHTTP2:      true, // net/http would not, with a dialer and a TLS configuration of ours
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
			MaxConnsPerHost:        t.maxInFlight,
			MaxIdleConns:           t.maxInFlight,
			MaxIdleConnsPerHost:    t.maxInFlight,
			IdleConnTimeout:        idleTimeout,
			MaxResponseHeaderBytes: answerHeadMax,
			DisableCompression:     true,
		},
	}
}

// current is the link for c. Where certificate or authorities have changed it is a new one, and the connections of the old one
// end with the requests under way on them.
func (t *Transport) current(c *Credentials) *link {
	if l := t.link.Load(); l.suits(c) {
		return l
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	// c may be the older one by now, of two that came to wait here.
	c = t.credentials()
	old := t.link.Load()
	if old.suits(c) {
		return old
	}
	l := t.newLink(c)
	t.link.Store(l)
	old.http.CloseIdleConnections()
	return l
}

func (l *link) suits(c *Credentials) bool {
	return l.certificate == c.Certificate && l.roots == c.Roots
}

// Send makes one attempt. An error is ctx's cause, and nobody knows then whether the endpoint took the request.
func (t *Transport) Send(ctx context.Context, r *Request) (Answer, error) {
	// One deadline over the connection, the request, and the answer with its body.
	attempt, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	phase := new(phase)
	attempt = httptrace.WithClientTrace(attempt, phase.trace())
	post, err := http.NewRequestWithContext(attempt, http.MethodPost, t.urls[r.Event], bytes.NewReader(r.Body))
	if err != nil {
		return Answer{Verdict: VerdictRetry, Failure: FailureConnection, Err: errNoRequest}, nil
	}
	now := time.Now()
	c := t.credentials()
	if c.Headers != nil {
		post.Header = c.Headers.Clone()
	}
	post.Header.Set("Content-Type", "application/json")
	if post.Header.Get("User-Agent") == "" {
		post.Header.Set("User-Agent", "offhook")
	}
	if t.basic != "" && post.Header.Get("Authorization") == "" {
		post.Header.Set("Authorization", t.basic)
	}
	// The specification's names are lower case, and Go would write Webhook-Id; HTTP does not tell them apart.
	post.Header.Set("webhook-id", r.ID)
	post.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	if len(c.Secrets) > 0 {
		post.Header.Set("webhook-signature", Signatures(c.Secrets, r.ID, now, r.Body))
	}
	if r.Traceparent != nil {
		post.Header.Set(schemas.HeaderTraceparent, string(r.Traceparent))
	}
	// A round trip follows no redirect: a 301 to 303 would turn the POST into a GET without body.
	answer, err := t.current(c).http.RoundTrip(post)
	if err != nil {
		if ctx.Err() != nil {
			return Answer{}, context.Cause(ctx)
		}
		failure, err := describe(err, phase.load(), t.timeout)
		return Answer{Verdict: VerdictRetry, Failure: failure, Err: err}, nil
	}
	discard(answer)
	if answer.StatusCode < 100 || answer.StatusCode > 599 { // net/http takes any number, over HTTP/2 even a negative one
		return Answer{Verdict: VerdictRetry, Failure: FailureConnection, Err: errStatus}, nil
	}
	return Answer{
		Verdict: JudgeStatus(answer.StatusCode), Status: answer.StatusCode,
		RetryAfter: RetryAfter(answer.Header.Get("Retry-After"), time.Now()),
	}, nil
}

// discard reads the answer's body, as far as it goes within answerMax and the deadline, so that the connection can serve
// again. It means nothing.
func discard(answer *http.Response) {
	// After a 101 the body is the connection itself, and no deadline of net/http's ends the reading of it.
	if answer.StatusCode != http.StatusSwitchingProtocols {
		// One byte more, to see the end behind the last one that is allowed.
		_, _ = io.CopyN(io.Discard, answer.Body, answerMax+1)
	}
	_ = answer.Body.Close()
}

// Close lets go of the connections that are kept open.
func (t *Transport) Close() { t.link.Load().http.CloseIdleConnections() }

var errStatus = errors.New("the answer has a status that HTTP does not have")

var errNoRequest = errors.New("no request can be made of the URL")
