package main

import (
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSimulateAcks(t *testing.T) {
	kafka, environ := cluster(t)
	file := filepath.Join(t.TempDir(), "acks")
	connections, messages := environ["OFFHOOK_CONNECTIONS_TOPIC"], environ["OFFHOOK_MESSAGES_TOPIC"]
	code, stdout, stderr := command(t, nil, "simulate", "--brokers", environ["OFFHOOK_KAFKA_BROKERS"], "--connections-topic", connections,
		"--messages-topic", messages, "--messages", "500", "--connections", "500", "--rate", "2000", "--churn", "2000", "--settle", "0s",
		"--run", "r1", "--acks", file, "--zipf", "1.5", "--crashes", "600", "--late", "0.1", "--doubled", "0.1", "--skew", "1m", "--heartbeat", "1s")
	if code != exitOK || !strings.Contains(stdout, "crashes") || strings.Contains(stdout, "to arrive") {
		t.Fatalf("simulate: exit code %d, stdout %s, stderr %s", code, stdout, stderr)
	}
	var want []string
	clocks := make(map[string]bool) // the tens of seconds of connections' times
	for _, topic := range []string{connections, messages} {
		records := kafka.ReadAll(t, topic)
		if len(records) < 510 {
			t.Errorf("topic %s has %d records, want 500 and copies", topic, len(records))
		}
		for _, r := range records {
			h := fnv.New64a()
			h.Write(r.Value)
			want = append(want, fmt.Sprintf("%s %d %d %016x", r.Topic, r.Partition, r.Offset, h.Sum64()))
			if _, at, ok := strings.Cut(string(r.Value), `"timestamp":`); ok && topic == connections {
				clocks[at[:9]] = true
			}
		}
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-Kafka +acknowledged):\n%s", diff)
	}
	if len(clocks) < 2 {
		t.Errorf("all nodes have one clock: %v", clocks)
	}
}

func TestSimulateRefusesATruthThatIsNone(t *testing.T) {
	for _, flags := range []string{"--acks acks", "--crashes 1", "--late 0.1", "--doubled 0.1", "--skew 1s", "--heartbeat 1s"} {
		dir := t.TempDir()
		args := append([]string{"simulate", "--brokers", "localhost:1", "--truth", filepath.Join(dir, "truth")}, strings.Fields(flags)...)
		code, stdout, stderr := command(t, nil, args...)
		flag, _, _ := strings.Cut(flags, " ")
		if code != exitSettings || stdout != "" || !strings.Contains(stderr, "--truth cannot be true with "+flag) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("simulate %s: exit code %d, stdout %q, stderr %q", flags, code, stdout, stderr)
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
			t.Errorf("simulate %s made %v, %v", flags, files, err)
		}
	}
}
