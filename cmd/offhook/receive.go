package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/offhook/offhook/internal/journal"
	"github.com/offhook/offhook/internal/receiver"
	"github.com/offhook/offhook/internal/truth"
)

type receiveCommand struct {
	Addr       string        `default:"127.0.0.1:8000" help:"Where to listen; any path is taken."`
	Secret     []string      `help:"whsec_… of which one must have signed each request; may be given several times." placeholder:"SECRET"`
	SecretFile string        `help:"File that holds secrets, comma-separated or one a line." placeholder:"FILE"`
	Truth      string        `help:"What must arrive, as offhook simulate has written it; it is read at the end." placeholder:"FILE"`
	OrderBy    string        `default:"from_uid" enum:"from_uid,channel_id" help:"What msg.notify is in order for: the sender's OFFHOOK_NOTIFY_ORDER_BY."`
	Scenario   []string      `sep:"none" help:"Misbehave as said above; may be given several times." placeholder:"NAME[:ARG…]"`
	Seed       uint64        `default:"1" help:"The same seed makes the same choices in scenarios."`
	Duration   time.Duration `help:"End after this time; 0: run until a signal."`
	Journal    string        `help:"Append each request that was read whole to this file, taken or refused, before it is answered." placeholder:"FILE"`
	Check      bool          `default:"true" negatable:"" help:"Check order, repeats and bodies, for which all that was taken is remembered; without it the summary has counts alone, of what came repeatedly too."`
}

// Help is for kong.
func (receiveCommand) Help() string {
	var text strings.Builder
	text.WriteString("Scenarios. Delays of slow add up; of the others the first that has something to say about a request wins.\n")
	for _, s := range receiver.Scenarios() {
		fmt.Fprintf(&text, "\n%s, such as %s: %s.\n", s.Form, s.Example, s.Doc)
	}
	return text.String()
}

// scenarioTable is the README's.
func scenarioTable() string {
	var text strings.Builder
	text.WriteString("| `--scenario` | for example | the endpoint |\n|---|---|---|\n")
	for _, s := range receiver.Scenarios() {
		fmt.Fprintf(&text, "| `%s` | `%s` | %s |\n", s.Form, s.Example, s.Doc)
	}
	return text.String()
}

// Run is for kong.
func (f receiveCommand) Run(c *call) error {
	keys, err := f.keys()
	if err != nil {
		return err
	}
	scenarios, err := f.scenarios()
	if err != nil {
		return err
	}
	if !f.Check && f.Truth != "" {
		return &settingsError{name: "--no-check", problem: "leaves nothing to hold --truth against", example: "--no-check without --truth"}
	}
	cfg := receiver.Config{Secrets: keys, OrderByChannel: f.OrderBy == "channel_id", Unchecked: !f.Check}
	closeJournal := func() error { return nil }
	if f.Journal != "" {
		if cfg.Journal, err = journal.Open(f.Journal); err != nil {
			return fmt.Errorf("--journal: %w", err)
		}
		closeJournal = cfg.Journal.Close
	}
	r := receiver.New(cfg)
	player := receiver.Play(r, f.Seed, scenarios...).Journal(cfg.Journal)
	stderr := &synchronized{w: c.stderr}
	server, err := listen(c.ctx, f.Addr, player, newLog(stderr, "text", slog.LevelWarn), scenarios...)
	if err != nil {
		return errors.Join(err, closeJournal())
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
	if err := closeJournal(); err != nil {
		return err
	}

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
	return conclude(c.stdout, player.Add(r.Summary(all)))
}

func (f receiveCommand) scenarios() ([]receiver.Scenario, error) {
	var all []receiver.Scenario
	for _, text := range f.Scenario {
		s, err := receiver.ParseScenario(text)
		if wrong, ok := errors.AsType[*receiver.ScenarioError](err); ok {
			return nil, &settingsError{name: "--scenario " + quote(wrong.Text), problem: wrong.Problem, example: "--scenario " + wrong.Example}
		} else if err != nil {
			return nil, fmt.Errorf("parse --scenario: %w", err)
		}
		all = append(all, s)
	}
	return all, nil
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

// webhookServer is a handler of webhooks that listens.
type webhookServer struct {
	addr   string
	server *http.Server
	served sync.WaitGroup
}

// listen serves until close; of the scenarios it plays the outages.
func listen(ctx context.Context, addr string, handler http.Handler, log *slog.Logger, scenarios ...receiver.Scenario) (*webhookServer, error) {
	listener, err := receiver.Listen(ctx, addr, scenarios...)
	if err != nil {
		return nil, err
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
