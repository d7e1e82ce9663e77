// Command offhook turns Kafka topics of an instant-messaging system into ordered, durable webhooks.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/alecthomas/kong"

	"github.com/offhook/offhook/sink"
)

// What a process exits with.
const (
	exitOK       = 0
	exitFatal    = 1
	exitSettings = 2 // a setting or the command line is wrong
)

func main() {
	ctx, stop := withSignals(context.Background())
	code := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// commandLine is all that offhook can be told to do.
type commandLine struct {
	Run         runCommand         `cmd:"" help:"Run processor and sink in one process."`
	Processor   processorCommand   `cmd:"" help:"Run the processor: input topics to event topics."`
	Sink        sinkCommand        `cmd:"" help:"Run a sink: event topics to one endpoint."`
	Demo        demoCommand        `cmd:"" help:"Run everything in one process, with an embedded broker, simulated traffic and a receiver. Ignores the environment."`
	Simulate    simulateCommand    `cmd:"" help:"Write the traffic of an invented messaging system into the input topics."`
	Receive     receiveCommand     `cmd:"" help:"Receive webhooks and check signatures, order, repeats and, with a truth, what was lost."`
	Topics      topicsCommand      `cmd:"" help:"Create or check the topics that offhook owns."`
	DeadLetters deadLettersCommand `cmd:"" help:"List, show and replay what could not be used or delivered."`
	Users       usersCommand       `cmd:"" help:"Ask a running process which devices of users are connected."`
	Schemas     schemasCommand     `cmd:"" help:"Print the JSON Schema of an input record, a webhook body or a dead letter, or the OpenAPI document of the query API."`
	Version     versionCommand     `cmd:"" help:"Print the version."`
	Help        helpCommand        `cmd:"" help:"Print help on the settings."`
}

// call is one invocation.
type call struct {
	ctx            context.Context
	environ        environment
	stdout, stderr io.Writer
}

// errWrong says that a command has run to its end and found something wrong, and has said so.
var errWrong = errors.New("something is wrong; see the summary")

// exitCode carries the code with which kong wants to end the process.
type exitCode int

// run is the whole of the program: args without the program's name, environ as os.Environ has it. It returns the exit
// code. The context's end stops it cleanly.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) (code int) {
	defer func() {
		if r := recover(); r != nil {
			c, ok := r.(exitCode)
			if !ok {
				panic(r)
			}
			code = int(c)
		}
	}()
	muteStandardLog()
	var line commandLine
	parser, err := kong.New(&line,
		kong.Name("offhook"),
		kong.Description("Ordered, durable webhooks from the Kafka topics of an instant-messaging system. `offhook help settings` lists the environment variables; --help after a command, its flags."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(c int) { panic(exitCode(c)) }), // kong expects no return from it
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
	if err != nil {
		panic(fmt.Sprintf("the command line is declared wrongly: %v", err))
	}
	command, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintf(stderr, "offhook: %v (offhook --help lists the commands)\n", err)
		return exitSettings
	}
	err = command.Run(&call{ctx: ctx, environ: newEnvironment(environ), stdout: stdout, stderr: stderr})
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errWrong):
		return exitFatal
	}
	fmt.Fprintf(stderr, "offhook: %v\n", err)
	if _, ok := errors.AsType[*settingsError](err); ok || errors.Is(err, sink.ErrStartRequired) {
		return exitSettings
	}
	return exitFatal
}

// settings reads and validates what the parts need, and makes the log.
func (c *call) settings(parts ...part) (settings, *slog.Logger, error) {
	s, warnings, err := load(c.environ, parts...)
	if err != nil {
		return settings{}, nil, err
	}
	log := newLog(c.stderr, s.LogFormat, s.level())
	for _, warning := range warnings {
		log.Warn("a setting is odd", "problem", warning)
	}
	return s, log, nil
}

func newLog(w io.Writer, format string, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration { // in JSON they would be nanoseconds
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}}
	if format == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}
