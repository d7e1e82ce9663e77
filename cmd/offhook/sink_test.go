package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
	"github.com/offhook/offhook/sink"
)

func TestPrintStatus(t *testing.T) {
	at := time.Unix(1_700_000_000, 0).UTC()
	member := &sink.Member{MemberID: "offhook-1", ClientID: "offhook", Host: "10.0.0.3"}
	var got strings.Builder
	err := printStatus(&got, sink.Status{
		At: at, Sink: "default", Group: "offhook.sink.default", State: "Stable", Members: []sink.Member{*member},
		Lanes: []sink.LaneStatus{
			{
				Event: schemas.EventOffline, Partition: 11, Owner: member, Committed: new(int64(120)), Backlog: new(int64(80)), Oldest: new(at.Add(-90 * time.Second)), Planned: 3, Dead: 1,
				FirstBatch: &sink.BatchStatus{ID: "an-id", Trouble: &sink.TroubleStatus{Answer: "404", Attempts: 37, Since: at.Add(-time.Hour), Last: at}},
				Notes:      []string{"the endpoint or its settings are wrong", "and more"},
			},
			{Event: schemas.EventNotify, Partition: 0, Notes: []string{"nothing is committed"}},
		},
	})
	want := "group offhook.sink.default: Stable, 1 member: offhook@10.0.0.3\n" +
		"EVENT|PARTITION|OWNER|OFFSET|BACKLOG (AT MOST)|OLDEST|PLANNED|ANSWER|ATTEMPTS|SINCE|FIRST BATCH|NOTE\n" +
		"msg.offline|11|offhook@10.0.0.3|120|80|1m30s|3 (1 dead)|404|37|1h0m0s|an-id|the endpoint or its settings are wrong; and more\n" +
		"msg.notify|0|-|-|-|-|0|-|-|-|-|nothing is committed\n"
	if diff := cmp.Diff(want, columns(got.String())); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

// columns writes one | where a table has two blanks or more.
func columns(table string) string {
	for strings.Contains(table, "   ") {
		table = strings.ReplaceAll(table, "   ", "  ")
	}
	return strings.ReplaceAll(table, "  ", "|")
}

func TestOperatorLines(t *testing.T) {
	batch := &sink.BatchStatus{ID: "an-id", Events: 10}
	failed := &sink.BatchStatus{ID: "an-id", Events: 1, Trouble: &sink.TroubleStatus{Answer: "500", Attempts: 1, Since: time.Unix(1_700_000_000, 0).UTC()}}
	for _, tt := range []struct{ got, want string }{
		{skipLine(sink.Skipped{Event: "e", Partition: 2, Nothing: "nothing is planned here: nothing to skip"}), "e 2: nothing is planned here: nothing to skip"},
		{skipLine(sink.Skipped{Event: "e", Partition: 2, Batch: batch}), "e 2: would skip batch an-id, at most 10 events, not known to have failed; --yes does it"},
		{skipLine(sink.Skipped{Event: "e", Partition: 2, Batch: batch, Obstacle: "the group has members"}), "e 2: would skip batch an-id, at most 10 events, not known to have failed; but the group has members"},
		{
			skipLine(sink.Skipped{Event: "e", Partition: 2, Batch: failed, Committed: true}),
			"e 2: skipped batch an-id, at most 1 event, last answer 500 after 1 failed attempt since 2023-11-14T22:13:20Z: the next owner writes it to the dead letters",
		},
		{rewindLine(sink.Rewound{Event: "e", Stays: "nothing is committed"}), "e 0: stays: nothing is committed"},
		{rewindLine(sink.Rewound{Event: "e", Stays: "it is not past that time", From: new(int64(7))}), "e 0: stays at 7: it is not past that time"},
		{rewindLine(sink.Rewound{Event: "e", From: new(int64(7)), To: new(int64(3)), Events: 4, Rewind: 9}), "e 0: would rewind from 7 to 3, at most 4 events again under ids that end in -r9; --yes does it"},
		{
			rewindLine(sink.Rewound{Event: "e", From: new(int64(7)), To: new(int64(3)), Events: 4, Rewind: 9, DeadDropped: 2, Committed: true}),
			"e 0: rewound from 7 to 3, at most 4 events again under ids that end in -r9; among them 2 batches marked dead",
		},
	} {
		if tt.got != tt.want {
			t.Errorf("got  %s\nwant %s", tt.got, tt.want)
		}
	}
}

func TestOperatorUsage(t *testing.T) {
	for _, args := range []string{
		"skip", "skip --event user.onlinestatus", "skip --partition 1", "skip --event x --partition 1", "skip --event msg.notify --partition=-1",
		"rewind", "rewind --to yesterday", "rewind --to 2999-01-01T00:00:00Z", "rewind --to 1h --partition=-2", "status --sink route", "status --sink a/b", "status more",
	} {
		code, stdout, stderr := command(t, good(), append([]string{"sink"}, strings.Fields(args)...)...)
		if code != exitSettings || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("sink %s: exit code %d, want %d; %q, %q", args, code, exitSettings, stdout, stderr)
		}
	}
}

// TestOperatorCommands: status, skip and rewind with what they need of the environment alone: no URL.
func TestOperatorCommands(t *testing.T) {
	c := kafkatest.New(t)
	environ := environment{"OFFHOOK_KAFKA_BROKERS": strings.Join(c.Brokers, ","), "OFFHOOK_TOPIC_PREFIX": c.Prefix, "OFFHOOK_WEBHOOK_EVENTS": "msg.notify", "OFFHOOK_PARTITIONS": "2"}
	names := kafka.NewTopics(c.Prefix)
	code, _, stderr := command(t, environ, "sink", "status")
	if code != exitFatal || !strings.Contains(stderr, c.Prefix+".sink.default: the group does not exist") {
		t.Errorf("status without a group: exit code %d, %s", code, stderr)
	}
	if code, _, stderr := command(t, environ, "topics", "create"); code != exitOK {
		t.Fatal(stderr)
	}
	start := time.Now().Add(-time.Hour)
	for i := range 20 {
		c.Produce(t, &kgo.Record{Topic: names.Notify, Partition: 1, Value: []byte("{}"), Timestamp: start.Add(time.Duration(i) * time.Minute)})
	}
	admin := kadm.NewClient(c.Client(t))
	details, err := admin.ListTopics(t.Context(), names.Notify)
	if err != nil {
		t.Fatal(err)
	}
	plan := func(group string, p sink.Plan) {
		t.Helper()
		p.TopicID = details[names.Notify].ID
		offsets := make(kadm.Offsets)
		offsets.Add(kadm.Offset{Topic: names.Notify, Partition: 1, At: p.Offset, LeaderEpoch: -1, Metadata: p.Metadata()})
		if err := admin.CommitAllOffsets(t.Context(), group, offsets); err != nil {
			t.Fatal(err)
		}
	}
	since := time.Now().Add(-time.Minute).Unix()
	plan(c.Prefix+".sink.default", sink.Plan{Offset: 10, Batches: []sink.Planned{{Last: 12}, {Last: 14}}, Trouble: sink.Trouble{Since: since, Last: since + 50, Attempts: 7, Answer: "500"}})
	plan(c.Prefix+".sink.audit", sink.Plan{Offset: 20})
	id := sink.BatchID(details[names.Notify].ID, 1, 10, 12, 0)

	ok := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := command(t, environ, append([]string{"sink"}, args...)...)
		if code != exitOK {
			t.Fatalf("sink %v: exit code %d, %s", args, code, stderr)
		}
		return stdout
	}
	lines := strings.Split(columns(ok("status")), "\n")
	if len(lines) != 5 || lines[0] != "group "+c.Prefix+".sink.default: Empty, 0 members" ||
		!strings.HasPrefix(lines[2], "msg.notify|1|-|10|10|5") || !strings.Contains(lines[2], "|2|500|7|1m") || !strings.HasSuffix(lines[2], id+"|stuck on one batch") ||
		!strings.HasPrefix(lines[3], "msg.notify|0|-|-|-|-|0|") {
		t.Errorf("status: %q", lines)
	}
	var s map[string]any
	if err := json.Unmarshal([]byte(ok("status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	first := s["lanes"].([]any)[0].(map[string]any)
	got := map[string]any{"state": s["state"], "members": s["members"], "trouble": first["first_batch"].(map[string]any)["trouble"].(map[string]any)["last_answer"]}
	maps.Copy(got, map[string]any{"id": first["first_batch"].(map[string]any)["id"], "backlog": first["backlog_at_most"], "owner": first["owner"]})
	want := map[string]any{"state": "Empty", "members": []any{}, "trouble": "500", "id": id, "backlog": 10.0, "owner": nil}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if text := ok("status", "--sink", "audit"); !strings.Contains(text, c.Prefix+".sink.audit: Empty") {
		t.Errorf("another sink: %s", text)
	}

	skip := []string{"skip", "--event", "msg.notify", "--partition", "1"}
	if text := ok(skip...); !strings.HasPrefix(text, "msg.notify 1: would skip batch "+id) || strings.Count(text, "\n") != 1 {
		t.Errorf("skip without --yes: %s", text)
	}
	if text := ok(append(skip, "--yes")...); !strings.HasPrefix(text, "msg.notify 1: skipped batch "+id) || strings.Count(text, "\n") != 1 {
		t.Errorf("skip: %s", text)
	}
	if text := ok(append(skip, "--yes", "--json")...); !strings.Contains(text, `"nothing": "the batch is dead already (skipped)`) {
		t.Errorf("skip again: %s", text)
	}
	if text := ok("status"); !strings.Contains(columns(text), "|2 (1 dead)|") {
		t.Errorf("status after a skip: %s", text)
	}

	rewind := []string{"rewind", "--to", fmt.Sprint(start.Add(4*time.Minute + time.Second).Unix())}
	if text := ok(rewind...); !strings.Contains(text, "msg.notify 1: would rewind from 10 to 5, at most 5 events again") || !strings.Contains(text, "msg.notify 0: stays: nothing is committed") {
		t.Errorf("rewind without --yes: %s", text)
	}
	if text := ok(append(rewind, "--yes", "--partition", "1")...); !strings.HasPrefix(text, "msg.notify 1: rewound from 10 to 5") || !strings.Contains(text, "1 batch marked dead") || strings.Count(text, "\n") != 1 {
		t.Errorf("rewind: %s", text)
	}
	if text := ok(append(rewind, "--yes", "--partition", "1", "--json")...); !strings.Contains(text, `"stays": "it is not past that time"`) {
		t.Errorf("rewind again: %s", text)
	}
	if text := ok("rewind", "--to", "2h", "--event", "msg.notify", "--partition", "1", "--sink", "audit", "--yes"); !strings.Contains(text, "rewound from 20 to 0") {
		t.Errorf("rewind of another sink: %s", text)
	}

	began := time.Now()
	environ["OFFHOOK_KAFKA_BROKERS"] = freeAddress(t)
	code, _, stderr = command(t, environ, "sink", "status", "--timeout", "200ms")
	if code != exitFatal || !strings.Contains(stderr, "it was not done within 200ms") || time.Since(began) > 20*time.Second {
		t.Errorf("status without brokers: exit code %d after %v, %s", code, time.Since(began), stderr)
	}
}
