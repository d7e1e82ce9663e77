package chaos

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/journal"
	"github.com/offhook/offhook/internal/oracle"
)

// Verdict is what the oracle says, and what else the receiver's journal shows.
type Verdict struct {
	oracle.Report
	// Stall is the longest time, in seconds, in which the receiver took nothing, from the first request to the end of the traffic.
	Stall float64 `json:"longest_stall_seconds"`
	// Refused are requests that the receiver read and did not take.
	Refused int64 `json:"refused_requests"`
}

const (
	inboxTopic       = "offhook.inbox"
	deadLettersTopic = "offhook.dead-letters"
)

// judge gives everything to the oracle. stopped is when the traffic ended.
func (w *world) judge(ctx context.Context, stopped time.Time) (Verdict, error) {
	o := oracle.New(oracle.Config{
		Partitions: int32(w.cfg.Partitions), Connections: []string{connectionsTopic}, Messages: []string{messagesTopic}, Inbox: inboxTopic,
		CloseMemory: closeMemory, TTL: connectionTTL, MaxRecordBytes: 1 << 20,
	})
	if err := w.readAcks(o.Ack); err != nil {
		return Verdict{}, err
	}
	record := func(take func(oracle.Record) error) func(*kgo.Record) error {
		return func(r *kgo.Record) error {
			judged := oracle.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value}
			for _, h := range r.Headers {
				judged.Headers = append(judged.Headers, oracle.Header{Key: h.Key, Value: h.Value})
			}
			return take(judged)
		}
	}
	if err := w.read(ctx, record(o.Input), connectionsTopic, messagesTopic); err != nil {
		return Verdict{}, err
	}
	// What presence wrote to itself when it was stopped is nobody's loss.
	committed, err := w.committedInbox(ctx)
	if err != nil {
		return Verdict{}, err
	}
	inbox := record(o.Inbox)
	if err := w.read(ctx, func(r *kgo.Record) error {
		if r.Offset >= committed[r.Partition] {
			return nil
		}
		return inbox(r)
	}, inboxTopic); err != nil {
		return Verdict{}, err
	}
	if err := w.read(ctx, record(o.DeadLetter), deadLettersTopic); err != nil {
		return Verdict{}, err
	}
	v := Verdict{}
	var last int64
	if err := w.readJournal(func(e journal.Entry) error {
		if !e.Taken {
			v.Refused++
		} else {
			if last != 0 && e.Time <= stopped.UnixMilli() {
				v.Stall = max(v.Stall, float64(e.Time-last)/1000)
			}
			last = e.Time
		}
		return o.Request(oracle.Request{Time: e.Time, Event: e.Event, ID: e.ID, Taken: e.Taken, Body: e.Body})
	}); err != nil {
		return Verdict{}, err
	}
	v.Report = o.Judge()
	if v.Wrong() {
		return v, w.dump(ctx)
	}
	return v, nil
}

// readAcks reads what the simulators noted: `topic partition offset hash` a line, the hash in hexadecimal digits.
func (w *world) readAcks(take func(oracle.Ack)) error {
	files, err := filepath.Glob(w.acks("*"))
	if err != nil {
		return fmt.Errorf("find acknowledgements: %w", err)
	}
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("read acknowledgements: %w", err)
		}
		defer file.Close()
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) != 4 {
				return fmt.Errorf("read %s: no acknowledgement: %s", name, lines.Text())
			}
			partition, err1 := strconv.ParseInt(fields[1], 10, 32)
			offset, err2 := strconv.ParseInt(fields[2], 10, 64)
			sum, err3 := strconv.ParseUint(fields[3], 16, 64)
			if err := errors.Join(err1, err2, err3); err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			take(oracle.Ack{Topic: fields[0], Partition: int32(partition), Offset: offset, Sum: sum})
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return nil
}

func (w *world) readJournal(take func(journal.Entry) error) error {
	file, err := os.Open(w.journal())
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	defer file.Close()
	reader := journal.NewReader(bufio.NewReaderSize(file, 1<<20))
	for {
		entry, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the journal: %w", err)
		}
		if err := take(entry); err != nil {
			return fmt.Errorf("judge a request: %w", err)
		}
	}
}

// read reads topics whole, what is committed of them, each partition in its order.
func (w *world) read(ctx context.Context, take func(*kgo.Record) error, topics ...string) error {
	const patience = time.Minute // without a record
	ends, err := whole(w.admin.ListCommittedOffsets(ctx, topics...))
	if err != nil {
		return fmt.Errorf("list the ends of %v: %w", topics, err)
	}
	starts, err := whole(w.admin.ListStartOffsets(ctx, topics...))
	if err != nil {
		return fmt.Errorf("list the starts of %v: %w", topics, err)
	}
	from := make(map[string]map[int32]kgo.Offset)
	left := make(map[string]map[int32]int64)
	open := 0
	for topic, partitions := range ends {
		from[topic], left[topic] = make(map[int32]kgo.Offset), make(map[int32]int64)
		for p, end := range partitions {
			if s, _ := starts.Lookup(topic, p); s.Offset != 0 {
				return fmt.Errorf("read %s-%d: its first records are gone, it begins at %d", topic, p, s.Offset)
			}
			if end.Offset > 0 {
				from[topic][p], left[topic][p] = kgo.NewOffset().AtStart(), end.Offset
				open++
			}
		}
	}
	if open == 0 {
		return nil
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(w.direct...), kgo.ConsumePartitions(from), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return fmt.Errorf("make a Kafka client: %w", err)
	}
	defer client.Close()
	for open > 0 {
		polled, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("nothing came within %v, with %d partitions to read", patience, open))
		fetches := client.PollFetches(polled)
		err := context.Cause(polled)
		cancel()
		if err != nil {
			return fmt.Errorf("read %v: %w", topics, err)
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read %v: %w", topics, err)
		}
		for r := range fetches.RecordsAll() {
			end, ok := left[r.Topic][r.Partition]
			if !ok {
				continue // written behind the end that we saw
			}
			if !r.Attrs.IsControl() {
				if err := take(r); err != nil {
					return fmt.Errorf("judge %s-%d@%d: %w", r.Topic, r.Partition, r.Offset, err)
				}
			}
			if r.Offset >= end-1 {
				delete(left[r.Topic], r.Partition)
				open--
			}
		}
	}
	return nil
}

// dump keeps the logs as evidence, a line a record: topic, partition, offset, time, key and value as Go strings.
func (w *world) dump(ctx context.Context) error {
	file, err := os.Create(filepath.Join(w.dir, "topics.gz"))
	if err != nil {
		return fmt.Errorf("keep the topics: %w", err)
	}
	zip := gzip.NewWriter(file)
	out := bufio.NewWriter(zip)
	err = w.read(ctx, func(r *kgo.Record) error {
		_, err := fmt.Fprintf(out, "%s %d %d %d %q %q\n", r.Topic, r.Partition, r.Offset, r.Timestamp.UnixMilli(), r.Key, r.Value)
		return err
	}, connectionsTopic, messagesTopic, inboxTopic, deadLettersTopic, "offhook.user.onlinestatus", "offhook.msg.offline", "offhook.msg.notify")
	return errors.Join(err, out.Flush(), zip.Close(), file.Close())
}
