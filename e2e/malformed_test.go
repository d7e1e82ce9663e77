package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/malformed"
	"github.com/offhook/offhook/internal/oracle"
	"github.com/offhook/offhook/schemas"
)

const (
	malformedMaxBytes = 128 << 10       // OFFHOOK_MAX_RECORD_BYTES
	malformedTimeout  = 5 * time.Minute // for each of its parts: the brokers share the machine with other tests
	// keptOfTooLarge is how much of a record that is too large its dead letter keeps.
	keptOfTooLarge = 64 << 10
)

// TestMalformed writes 10,000 malformed records (100,000 with OFFHOOK_E2E_LONG=1) between good traffic. Each is
// in the dead letters with its reason, or is rightly accepted, which the oracle says; nothing ends, the endpoint refuses
// nothing of it, and of the good traffic nothing is lost or out of order. OFFHOOK_E2E_SEED=N makes the records of an earlier run again.
func TestMalformed(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		alone(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3, "max.message.bytes=4194304")
		n := 10_000
		if long() {
			n = 100_000
		}
		seed := uint64(time.Now().UnixNano())
		if text := os.Getenv("OFFHOOK_E2E_SEED"); text != "" {
			if _, err := fmt.Sscan(text, &seed); err != nil {
				t.Fatalf("OFFHOOK_E2E_SEED: %v", err)
			}
		}
		p := s.run("OFFHOOK_INBOX_KEEP=1h", fmt.Sprintf("OFFHOOK_MAX_RECORD_BYTES=%dKiB", malformedMaxBytes>>10)).ready()
		traffic := s.simulate(500, 200)
		notified := func() int64 { return e.receiver.Summary(nil).Events.Notify }
		kafkatest.Wait(t, startTimeout, "the first messages", func() bool { return notified() > 0 })
		acks := s.malform(seed, n)
		before := notified()
		kafkatest.Wait(t, malformedTimeout, "messages from behind the malformed records", func() bool { return notified() > before+100 })
		truth := traffic.stop()

		inputs := append(c.ReadAll(t, s.connections), c.ReadAll(t, s.messages)...)
		s.drain(p, len(inputs))
		ctx, cancel := context.WithTimeout(context.Background(), malformedTimeout)
		defer cancel()
		if err := e.receiver.WaitFor(ctx, truth); err != nil {
			t.Error(err)
		}
		summary := e.receiver.Summary(truth)
		// To the receiver two messages of one sender with one client_msg_no are one that came twice. The oracle knows better.
		summary.DuplicatesAfterDedupe = 0
		if summary.Wrong() {
			t.Errorf("the summary shows something wrong: %+v", summary)
		}

		letters := c.ReadAll(t, s.topics.DeadLetters)
		s.checkRejected(inputs, letters)
		s.judge(acks, inputs, letters)
		p.terminate()
		for _, line := range p.stderr.lines() {
			if strings.Contains(line, `"level":"ERROR"`) || strings.Contains(line, "bad-") {
				t.Errorf("the log has: %.500s", line)
			}
		}
	})
}

// malform writes n malformed records, and returns their acknowledgements.
func (s *system) malform(seed uint64, n int) []oracle.Ack {
	s.t.Helper()
	s.t.Logf("%d malformed records of seed %d", n, seed)
	client := s.cluster.Client(s.t, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(4<<20), kgo.ProducerLinger(5*time.Millisecond),
		kgo.MaxBufferedRecords(500))
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), malformedTimeout)
	defer cancel()
	g := malformed.New(seed, malformedMaxBytes)
	where := rand.New(rand.NewPCG(seed, 1))
	var mu sync.Mutex
	var acks []oracle.Ack
	var failed error
	for range n {
		bad := g.Next()
		r := &kgo.Record{Topic: s.connections, Partition: where.Int32N(3), Key: bad.Key, Value: bad.Value}
		if bad.Message {
			r.Topic = s.messages
		}
		for _, h := range bad.Headers {
			r.Headers = append(r.Headers, kgo.RecordHeader(h))
		}
		client.Produce(ctx, r, func(r *kgo.Record, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
				return
			}
			sum := fnv.New64a()
			sum.Write(r.Value)
			acks = append(acks, oracle.Ack{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Sum: sum.Sum64()})
		})
	}
	if err := client.Flush(ctx); err != nil {
		s.t.Fatalf("write malformed records: %v", err)
	}
	if failed != nil {
		s.t.Fatalf("write malformed records: %v", failed)
	}
	return acks
}

// drain waits until each stage has done all that is there for it; inputs is how many input records there are.
func (s *system) drain(p *process, inputs int) {
	s.t.Helper()
	wait := func(what, metric string, label []string, n int) {
		s.t.Helper()
		kafkatest.Wait(s.t, malformedTimeout, fmt.Sprintf("%d %s", n, what), func() bool {
			if p.ended() {
				s.t.Fatalf("offhook %s ended: %v", p.name, p.cmd.ProcessState)
			}
			sum, _ := scrape(s.t, p).sum(metric, label...)
			time.Sleep(50 * time.Millisecond) // a scrape costs the process something
			return int(sum) >= n
		})
	}
	wait("input records that route has done", "offhook_records_consumed_total", []string{"stage=route"}, inputs)
	wait("inbox records that presence has done", "offhook_records_consumed_total", []string{"stage=presence"}, len(s.cluster.ReadAll(s.t, s.topics.Inbox)))
	events := 0
	for _, topic := range []string{s.topics.OnlineStatus, s.topics.Offline, s.topics.Notify} {
		events += len(s.cluster.ReadAll(s.t, topic))
	}
	wait("events that the sink has done", "offhook_sink_events_total", nil, events)
}

// position is where an input record stands.
type position struct {
	topic     string
	partition int32
	offset    int64
}

// checkRejected holds the dead letters against what must be in them: what is too large, and what the oracle does not take.
func (s *system) checkRejected(inputs, letters []*kgo.Record) {
	s.t.Helper()
	dead := make(map[position]*schemas.DeadLetter)
	for _, r := range letters {
		letter, err := schemas.DecodeDeadLetter(r.Key, deadHeaders(r.Headers), r.Value)
		if err != nil {
			s.t.Fatalf("decode a dead letter: %v", err)
		}
		at := position{letter.Source.Topic, letter.Source.Partition, letter.Source.Offset}
		if dead[at] != nil {
			s.t.Errorf("%v has two dead letters", at)
		}
		dead[at] = &letter
	}
	counts := make(map[string]int)
	for _, r := range inputs {
		at := position{r.Topic, r.Partition, r.Offset}
		letter := dead[at]
		delete(dead, at)
		reason, why := s.refusal(r)
		if reason == "" {
			counts["accepted or null"]++
			if letter != nil {
				s.t.Errorf("%v is in the dead letters (%s: %s), and the oracle takes it: %.200q", at, letter.Reason, letter.Detail, r.Value)
			}
			continue
		}
		counts[string(reason)]++
		if letter == nil {
			s.t.Errorf("%v is not in the dead letters, and %v: %.200q", at, why, r.Value)
			continue
		}
		value, key := r.Value, r.Key
		if reason == schemas.ReasonTooLarge {
			value, key = value[:min(len(value), keptOfTooLarge)], key[:min(len(key), keptOfTooLarge)]
		}
		switch {
		case letter.Reason != reason, letter.Sink != "route", letter.Truncated != (reason == schemas.ReasonTooLarge), letter.Truncated && letter.Size != size(r):
			s.t.Errorf("%v has the letter %s of %s, truncated %t, size %d; want %s, and the size %d", at, letter.Reason, letter.Sink, letter.Truncated, letter.Size, reason, size(r))
		case letter.Detail == "" || strings.Contains(letter.Detail, "bad"):
			s.t.Errorf("%v: the detail says nothing, or a value: %q", at, letter.Detail)
		case !bytes.Equal(letter.Value, value) || !bytes.Equal(letter.SourceKey, key) || (letter.SourceKey == nil) != (key == nil):
			s.t.Errorf("%v: value or key in its dead letter are not its own", at)
		case letter.Source.Time != r.Timestamp.UnixMilli():
			s.t.Errorf("%v: its time is %d, and in its dead letter %d", at, r.Timestamp.UnixMilli(), letter.Source.Time)
		}
	}
	for at := range dead {
		s.t.Errorf("a dead letter of %v, which is no input record", at)
	}
	s.t.Logf("input records: %v", counts)
	for _, reason := range []string{"accepted or null", "invalid", "too_large"} {
		if counts[reason] == 0 {
			s.t.Errorf("no input record is %s", reason)
		}
	}
}

// refusal says why a record must be in the dead letters; empty: it must not.
func (s *system) refusal(r *kgo.Record) (schemas.Reason, error) {
	var err error
	switch {
	case r.Value == nil:
		return "", nil
	case size(r) > malformedMaxBytes:
		return schemas.ReasonTooLarge, fmt.Errorf("it has %d bytes", size(r))
	case r.Topic == s.connections:
		_, err = oracle.ParseConnection(r.Value, r.Timestamp.UnixMilli())
	default:
		_, err = oracle.ParseMessage(r.Topic, r.Partition, r.Offset, r.Value, r.Timestamp.UnixMilli())
	}
	if err != nil {
		return schemas.ReasonInvalid, err
	}
	return "", nil
}

// size is a record's size as OFFHOOK_MAX_RECORD_BYTES counts it.
func size(r *kgo.Record) int {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// judge has the oracle compare what came with what must have come.
func (s *system) judge(acks []oracle.Ack, inputs, letters []*kgo.Record) {
	s.t.Helper()
	const closeMemory = 10 * time.Minute // OFFHOOK_CLOSE_MEMORY's default
	o := oracle.New(oracle.Config{
		Partitions: s.partitions(), Connections: []string{s.connections}, Messages: []string{s.messages}, Inbox: s.topics.Inbox,
		CloseMemory: closeMemory, MaxRecordBytes: malformedMaxBytes,
	})
	for _, a := range acks {
		o.Ack(a)
	}
	give := func(take func(oracle.Record) error, records []*kgo.Record) {
		s.t.Helper()
		for _, r := range records {
			judged := oracle.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value}
			for _, h := range r.Headers {
				judged.Headers = append(judged.Headers, oracle.Header(h))
			}
			if err := take(judged); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	give(o.Input, inputs)
	give(o.Inbox, s.cluster.ReadAll(s.t, s.topics.Inbox))
	give(o.DeadLetter, letters)
	for _, r := range s.endpoint.all() {
		if err := o.Request(oracle.Request{Event: string(r.event), ID: r.id, Taken: true, Body: r.body}); err != nil {
			s.t.Fatal(err)
		}
	}
	report := o.Judge()
	if report.DeadLettered > 0 {
		s.t.Errorf("the endpoint has refused %d events of records that were accepted", report.DeadLettered)
	}
	for _, f := range report.Findings {
		s.t.Errorf("%s: %s", f.Kind, f.Text)
	}
	report.Findings = nil
	text, err := json.Marshal(report)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("the oracle: %s", text)
}

// partitions is the number of partitions that the owned topics have.
func (s *system) partitions() int32 {
	s.t.Helper()
	var n int32
	if _, err := fmt.Sscan(partitions, &n); err != nil {
		s.t.Fatal(err)
	}
	return n
}
