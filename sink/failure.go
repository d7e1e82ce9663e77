package sink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// The errors of net/http quote what the other side has sent, and that may be our own request, with its secrets and its
// payload: a malformed status line, a header, a proxy's status, the last words of an HTTP/2 connection. So what is said of a
// failed attempt is made here: the addresses, the words of the system, and texts of our own. An error that is not known is
// not shown.

// phase is how far an attempt has come. It never goes back, though net/http may go on with a connection that another request
// has overtaken.
type phase struct{ reached atomic.Int32 }

const (
	phaseConnect int32 = iota
	phaseTLS
	phaseWrite
	phaseWait
	phaseRead
)

// phaseTimeouts say what has not happened when the deadline ends an attempt.
var phaseTimeouts = [...]string{
	phaseConnect: "no connection", phaseTLS: "no TLS handshake", phaseWrite: "the request could not be written",
	phaseWait: "no answer", phaseRead: "the answer's headers did not end",
}

func (p *phase) reach(n int32) {
	for {
		reached := p.reached.Load()
		if n <= reached || p.reached.CompareAndSwap(reached, n) {
			return
		}
	}
}

func (p *phase) load() int32 { return p.reached.Load() }

func (p *phase) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		TLSHandshakeStart: func() { p.reach(phaseTLS) },
		GotConn:           func(httptrace.GotConnInfo) { p.reach(phaseWrite) },
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err == nil {
				p.reach(phaseWait)
			}
		},
		GotFirstResponseByte: func() { p.reach(phaseRead) },
	}
}

// describe says why an attempt has no answer, and never in the other side's words.
func describe(err error, reached int32, timeout time.Duration) (Failure, error) {
	if isTimeout(err) {
		return FailureTimeout, fmt.Errorf("%s within %v", phaseTimeouts[reached], timeout)
	}
	return FailureConnection, errors.New(failureText(err))
}

func isTimeout(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	if _, ok := errors.AsType[syscall.Errno](err); ok { // the kernel's ETIMEDOUT is of a connection that died
		return false
	}
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// knownFailures are texts with which errors of net/http begin, where their types are not exported, and what is said instead.
var knownFailures = []struct{ prefix, text string }{
	{"malformed HTTP response", "the answer is no HTTP"},
	{"malformed HTTP status code", "the answer has a malformed status"},
	{"malformed HTTP version", "the answer has a malformed HTTP version"},
	{"net/http: server response headers exceeded", "the answer's headers are too large"},
	{"http2: response header list larger", "the answer's headers are too large"},
	{"message too large", "the answer's headers are too large"},
	{"bad Content-Length", "the answer has a malformed Content-Length"},
	{"invalid empty Content-Length", "the answer has a malformed Content-Length"},
	{"http: message cannot contain multiple Content-Length", "the answer has several Content-Lengths"},
	{"unsupported transfer encoding", "the answer has an unknown Transfer-Encoding"},
	{"too many transfer encodings", "the answer has an unknown Transfer-Encoding"},
	{"http: server closed idle connection", "the connection was closed as the request was sent"},
	{"http2: server sent GOAWAY", "the HTTP/2 connection was closed before the answer (GOAWAY)"},
	{"http2: Transport received GOAWAY", "the HTTP/2 connection was closed before the answer (GOAWAY)"},
	{"http2: Transport received Server's graceful shutdown", "the HTTP/2 connection was closed before the answer (GOAWAY)"},
	{"http2: client connection lost", "the HTTP/2 connection is dead: no answer to a ping"},
	{"stream error:", "the HTTP/2 stream was reset before the answer"},
	{"connection error:", "the HTTP/2 connection broke: the answer violates the protocol, or its headers are too large"},
	{"http2: ", "the HTTP/2 connection broke"},
	{"tls: ", "the TLS handshake failed"},
	{"x509: ", "the endpoint's certificate cannot be used"},
	{"socks connect", "the proxy refuses the connection"},
	{"net/http: invalid header", "a header of the request cannot be sent"},
}

const unknownFailure = "the exchange broke, in a way that may not be shown"

func failureText(err error) string {
	if e, ok := errors.AsType[*proxyRefusal](err); ok {
		return e.Error()
	}
	if text := tlsText(err); text != "" {
		return text
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		switch e.Op {
		case "proxyconnect":
			return "proxy: " + failureText(e.Err)
		case "dial":
			return dialText(e)
		}
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return "the connection broke before an answer: " + e.Error()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return "the connection was closed before an answer"
	}
	if _, ok := errors.AsType[textproto.ProtocolError](err); ok {
		return "the answer has a malformed header"
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		text := e.Error()
		for _, known := range knownFailures {
			if strings.HasPrefix(text, known.prefix) {
				return known.text
			}
		}
	}
	return unknownFailure
}

// dialText is the error of a connection that was not made: the address, and what the system or the resolver says.
func dialText(e *net.OpError) string {
	text := "dial " + e.Net
	if e.Addr != nil {
		text += " " + e.Addr.String()
	}
	if dns, ok := errors.AsType[*net.DNSError](e.Err); ok {
		return text + ": " + dns.Error()
	}
	if errno, ok := errors.AsType[syscall.Errno](e.Err); ok {
		return text + ": connect: " + errno.Error()
	}
	return text + ": no connection"
}

// tlsText is the error of a TLS handshake; empty: it is none, or one that is not known by its type. A certificate's names and
// those of its issuer are the other side's words too.
func tlsText(err error) string {
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the endpoint's certificate is not valid for " + e.Host
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		reason := x509.CertificateInvalidError{Reason: e.Reason}.Error()
		return "the endpoint's certificate is not valid: " + strings.TrimRight(strings.TrimPrefix(reason, "x509: "), ": ")
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "the endpoint's certificate is signed by nobody that is trusted here (its authority can be named in OFFHOOK_WEBHOOK_TLS_CA_FILE)"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "no TLS is spoken on the endpoint's port"
	}
	e, ok := errors.AsType[*net.OpError](err)
	switch {
	case ok && e.Op == "remote error": // an alert: crypto/tls has a text for each, by its number
		return "the endpoint refuses the TLS handshake (" + e.Err.Error() + "; check OFFHOOK_WEBHOOK_TLS_CERT_FILE)"
	case ok && e.Op == "local error":
		return "the TLS handshake failed (" + e.Err.Error() + ")"
	}
	return ""
}

// proxyRefusal is a proxy's answer to CONNECT, other than 200.
type proxyRefusal struct{ status int }

func (e *proxyRefusal) Error() string {
	return fmt.Sprintf("the proxy answered %d to CONNECT", e.status)
}

// refusedByProxy is for http.Transport, whose own error is the proxy's status line.
func refusedByProxy(_ context.Context, _ *url.URL, _ *http.Request, answer *http.Response) error {
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	return &proxyRefusal{answer.StatusCode}
}
