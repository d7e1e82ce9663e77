package receiver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// reopen is how long to wait until a port that somebody else has taken meanwhile is tried again.
const reopen = 20 * time.Millisecond

// listener is a net.Listener that is down for a while: then its port is closed, and so are its connections.
type listener struct {
	addr net.Addr
	stop context.CancelFunc
	done chan struct{} // closed when the schedule has ended

	mu     sync.Mutex
	open   net.Listener  // nil while it is down, and after Close
	turned chan struct{} // closed when open changes
	closed bool
	conns  map[net.Conn]struct{}
}

// Listen listens on a TCP address as net.Listen does, and goes down and up as the scenarios named down say, from now on;
// of others it takes no notice. While it is down its port is closed, and its connections are cut; then it listens on the
// same port again. Close waits for the goroutine that keeps the schedule, and closes no connection.
func Listen(ctx context.Context, addr string, scenarios ...Scenario) (net.Listener, error) {
	var config net.ListenConfig
	open, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for webhooks: %w", err)
	}
	windows := outages(scenarios)
	if len(windows) == 0 {
		return open, nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &listener{
		addr: open.Addr(), stop: cancel, done: make(chan struct{}),
		open: open, turned: make(chan struct{}), conns: make(map[net.Conn]struct{}),
	}
	start := time.Now()
	go func() {
		defer close(l.done)
		for _, w := range windows {
			if !sleep(ctx, time.Until(start.Add(w.after))) {
				return
			}
			l.down()
			if !sleep(ctx, time.Until(start.Add(w.after+w.length))) {
				return
			}
			for {
				open, err := config.Listen(ctx, "tcp", l.addr.String())
				if err == nil {
					l.up(open)
					break
				}
				if !sleep(ctx, reopen) {
					return
				}
			}
		}
	}()
	return l, nil
}

func (l *listener) down() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn(nil)
	for conn := range l.conns {
		_ = conn.Close() // it is cut either way
	}
	clear(l.conns)
}

func (l *listener) up(open net.Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = open.Close() // nobody accepts from it
		return
	}
	l.turn(open)
}

// turn closes what is open and goes on with another. The lock is held.
func (l *listener) turn(open net.Listener) {
	if l.open != nil {
		_ = l.open.Close() // the port is free either way
	}
	l.open = open
	close(l.turned)
	l.turned = make(chan struct{})
}

// Accept waits while the listener is down.
func (l *listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		open, turned, closed := l.open, l.turned, l.closed
		l.mu.Unlock()
		switch {
		case closed:
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.addr, Err: net.ErrClosed}
		case open == nil:
			<-turned
			continue
		}
		conn, err := open.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			continue // it went down, or is closed
		case err != nil:
			return nil, err
		}
		if kept := l.keep(open, conn); kept != nil {
			return kept, nil
		}
	}
}

// keep remembers a connection; nil: the listener went down between its acceptance and now, and it is cut.
func (l *listener) keep(open net.Listener, conn net.Conn) net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != open {
		_ = conn.Close() // it is cut either way
		return nil
	}
	kept := &connection{Conn: conn, listener: l}
	l.conns[conn] = struct{}{}
	return kept
}

// Addr is the same before and after the listener was down.
func (l *listener) Addr() net.Addr { return l.addr }

// Close ends the schedule. It may be called again.
func (l *listener) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		l.turn(nil)
	}
	l.mu.Unlock()
	l.stop()
	<-l.done
	return nil
}

// connection forgets itself when it is closed.
type connection struct {
	net.Conn
	listener *listener
}

func (c *connection) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c.Conn)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
