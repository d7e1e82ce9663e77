package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/offhook/offhook/internal/receiver"
	"github.com/offhook/offhook/internal/truth"
)

type receiveCommand struct {
	Addr       string        `default:"127.0.0.1:8000" help:"Where to listen; any path is taken."`
	Secret     []string      `help:"whsec_… of which one must have signed each request; may be given several times." placeholder:"SECRET"`
	SecretFile string        `help:"File that holds secrets, comma-separated or one a line." placeholder:"FILE"`
	Truth      string        `help:"What must arrive, as offhook simulate has written it; it is read at the end." placeholder:"FILE"`
	Duration   time.Duration `help:"End after this time; 0: run until a signal."`
}

// Run is for kong.
func (f receiveCommand) Run(c *call) error {
	keys, err := f.keys()
	if err != nil {
		return err
	}
	r := receiver.New(receiver.Config{Secrets: keys})
	stderr := &synchronized{w: c.stderr}
	server, err := listen(c.ctx, f.Addr, r, newLog(stderr, "text", slog.LevelWarn))
	if err != nil {
		return err
	}
	line(stderr, "receiving on http://%s", server.addr)

	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	if f.Duration > 0 {
		ctx, cancel = context.WithTimeout(ctx, f.Duration)
		defer cancel()
	}
	r.Live(ctx, stderr)
	server.close()

	var all *truth.Truth
	if f.Truth != "" {
		file, err := os.Open(f.Truth)
		if err != nil {
			return fmt.Errorf("open --truth: %w", err)
		}
		defer file.Close()
		if all, err = truth.Read(file); err != nil {
			return fmt.Errorf("--truth %s: %w", f.Truth, err)
		}
	}
	return conclude(c.stdout, r.Summary(all))
}

func (f receiveCommand) keys() ([][]byte, error) {
	texts := f.Secret
	if f.SecretFile != "" {
		content, err := readSecret(f.SecretFile)
		if err != nil {
			return nil, fmt.Errorf("read --secret-file: %w", err)
		}
		texts = append(texts, split([]byte(strings.ReplaceAll(content, "\n", ",")))...)
	}
	var keys [][]byte
	for _, text := range texts {
		key, err := parseSecret(text)
		if err != nil {
			return nil, fmt.Errorf("a secret of --secret or --secret-file %w", err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// conclude prints the summary as one line of JSON, the last of a command; errWrong where it is not as it should be.
func conclude(w io.Writer, summary receiver.Summary) error {
	text, err := json.Marshal(summary)
	if err != nil {
		return fmt.Errorf("encode the summary: %w", err)
	}
	if _, err := fmt.Fprintf(w, "%s\n", text); err != nil {
		return fmt.Errorf("print the summary: %w", err)
	}
	if summary.Wrong() {
		return errWrong
	}
	return nil
}

// webhookServer is a receiver that listens.
type webhookServer struct {
	addr   string
	server *http.Server
	served sync.WaitGroup
}

func listen(ctx context.Context, addr string, handler http.Handler, log *slog.Logger) (*webhookServer, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for webhooks: %w", err)
	}
	s := &webhookServer{addr: listener.Addr().String(), server: &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}
	s.served.Go(func() {
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("receiving ended", "error", err)
		}
	})
	return s, nil
}

// close waits for the requests under way, 5 s at most.
func (s *webhookServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if s.server.Shutdown(ctx) != nil {
		_ = s.server.Close() // what is left is cut off; nothing else is to be done about it
	}
	s.served.Wait()
}
