package deadletter

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/offhook/offhook/schemas"
	"github.com/offhook/offhook/sink"
)

// endpoint replays letters of a sink: by requests of its own.
type endpoint struct {
	cfg       *Config
	topic     *Topic
	transport *sink.Transport
	pace      *pace
	events    map[string]schemas.Event // by topic
	host      string                   // scheme and host; the rest of a URL may hold credentials
}

func newEndpoint(topic *Topic, cfg *Config) *endpoint {
	e := &endpoint{
		cfg: cfg, topic: topic, transport: sink.NewTransport(cfg.Sink), pace: newPace(cfg.Sink.Rate),
		events: make(map[string]schemas.Event), host: cfg.Sink.URL.Scheme + "://" + cfg.Sink.URL.Host,
	}
	for _, event := range schemas.Events() {
		e.events[cfg.Topics.Of(event)] = event
	}
	return e
}

func (e *endpoint) close() { e.transport.Close() }

func (e *endpoint) plan(_ context.Context, l *Letter) (Outcome, error) {
	event, ok := e.events[l.Source.Topic]
	o := Outcome{Position: l.Position, What: NotReplayable}
	switch {
	case !ok:
		o.Why = fmt.Sprintf("its source, %q, is none of the event topics of OFFHOOK_TOPIC_PREFIX", l.Source.Topic)
	case !slices.Contains(e.cfg.Sink.Events, event):
		o.Why = string(event) + " is none of OFFHOOK_WEBHOOK_EVENTS"
	case l.Truncated:
		o.Why = whyTruncated
	default:
		o.What, o.To = Replayed, string(event)+" "+e.host
		o.ID = hex.EncodeToString(e.topic.id[:]) + "-" + l.Position.String() + "-r" + strconv.FormatInt(e.cfg.Run, 10)
	}
	return o, nil
}

func (e *endpoint) carry(halt context.Context, l *Letter, o Outcome) (Outcome, error) {
	event := e.events[l.Source.Topic]
	request := &sink.Request{Event: event, ID: o.ID, Body: e.cfg.Sink.Body(event, [][]byte{l.Value})}
	if schemas.ValidTraceparent(l.Traceparent) {
		request.Traceparent = l.Traceparent
	}
	began := time.Now()
	for attempts := 1; ; attempts++ {
		if !e.pace.wait(halt) {
			return o, context.Cause(halt)
		}
		// A request under way is not cut off: nobody would know then whether the endpoint has it. The timeout bounds it.
		answer, err := e.transport.Send(context.WithoutCancel(halt), request)
		if err != nil {
			return o, err
		}
		switch answer.Verdict {
		case sink.VerdictDelivered:
			return o, nil
		case sink.VerdictRefused:
			o.What, o.Status = Refused, answer.Status
			return o, nil
		case sink.VerdictRetry, sink.VerdictEndpoint:
		}
		delay, again := retryAt(attempts, rand.Float64(), answer.RetryAfter, time.Since(began), e.cfg.Patience)
		if !again {
			return o, fmt.Errorf("not delivered in %d attempts: %s", attempts, answer)
		}
		if attempts&(attempts-1) == 0 { // at 1, 2, 4, …
			e.topic.log.Warn("a letter was not delivered; trying again", "position", l.Position.String(), "id", o.ID,
				"attempts", attempts, "delay", delay, "answer", answer.String())
		}
		if !pause(halt, delay) {
			return o, context.Cause(halt)
		}
	}
}
