package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// toxiproxy is the HTTP API of a toxiproxy server; see https://github.com/Shopify/toxiproxy#http-api.
type toxiproxy struct {
	addr string // host:port
}

// toxic is one thing that a proxy does to what passes.
type toxic struct {
	Type       string         `json:"type"`
	Stream     string         `json:"stream,omitempty"` // "upstream" or "downstream", the default
	Toxicity   float32        `json:"toxicity"`         // share of the connections
	Attributes map[string]any `json:"attributes"`
}

func (t toxiproxy) call(ctx context.Context, method, path string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode a request to toxiproxy: %w", err)
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+t.addr+path, content)
	if err != nil {
		return fmt.Errorf("make a request to toxiproxy: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask toxiproxy: %w", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("read toxiproxy's answer: %w", err)
	}
	if answer.StatusCode >= 300 {
		return fmt.Errorf("toxiproxy answers %s %s with %s: %s", method, path, answer.Status, text)
	}
	return nil
}

// proxy makes a proxy of a name.
func (t toxiproxy) proxy(ctx context.Context, name, listen, upstream string) error {
	return t.call(ctx, http.MethodPost, "/proxies", map[string]any{"name": name, "listen": listen, "upstream": upstream, "enabled": true})
}

// enable lets connections through or, cutting those that are, none.
func (t toxiproxy) enable(ctx context.Context, name string, enabled bool) error {
	return t.call(ctx, http.MethodPost, "/proxies/"+name, map[string]any{"enabled": enabled})
}

// add adds a toxic; remove takes it away under its name, <type>_<stream>.
func (t toxiproxy) add(ctx context.Context, name string, tx toxic) error {
	return t.call(ctx, http.MethodPost, "/proxies/"+name+"/toxics", tx)
}

func (t toxiproxy) remove(ctx context.Context, name string, tx toxic) error {
	return t.call(ctx, http.MethodDelete, "/proxies/"+name+"/toxics/"+tx.Type+"_"+tx.Stream, nil)
}

// answers waits until something listens.
func answers(ctx context.Context, addr string) error {
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		if err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing listens at %s: %w", addr, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// freePorts returns n ports of 127.0.0.1 that nobody listens at. They lie below those that systems give to outgoing
// connections: a port of these could be taken while a listener is away.
func freePorts(n int) ([]int, error) {
	var ports []int
	for port := 24100; port < 29000 && len(ports) < n; port++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)) //nolint:noctx // a local listener has nothing to wait for
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("close a listener: %w", err)
		}
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, fmt.Errorf("find %d free ports from 24100 to 28999: there are %d", n, len(ports))
	}
	return ports, nil
}
