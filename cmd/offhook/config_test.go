package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/offhook/offhook/schemas"
)

var update = flag.Bool("update", false, "write what is generated: the README's table of settings")

var allParts = []part{partProcessor, partSink, partProcess}

// good is the least that run needs.
func good() environment {
	return environment{"OFFHOOK_KAFKA_BROKERS": "localhost:9092", "OFFHOOK_WEBHOOK_URL": "https://backend.example/hook"}
}

func with(assignments ...string) environment {
	environ := good()
	for _, assignment := range assignments {
		name, value, _ := strings.Cut(assignment, "=")
		environ[name] = value
	}
	return environ
}

func (e environment) list() []string {
	var list []string
	for name, value := range e {
		list = append(list, name+"="+value)
	}
	return list
}

func TestBadSettings(t *testing.T) {
	content, err := os.ReadFile("testdata/bad-settings.txt")
	if err != nil {
		t.Fatal(err)
	}
	tried := make(map[string]bool)
	for number, text := range strings.Split(string(content), "\n") {
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		assignments := strings.Split(strings.ReplaceAll(text, `\n`, "\n"), "\t")
		name, _, _ := strings.Cut(assignments[0], "=")
		tried[strings.TrimSuffix(name, fileSuffix)], tried[name] = true, true
		t.Run(fmt.Sprintf("line %d %s", number+1, name), func(t *testing.T) {
			// Should the setting be taken, the process stops at once.
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			var stdout, stderr bytes.Buffer
			code := run(ctx, []string{"run"}, with(assignments...).list(), &stdout, &stderr)
			got := stderr.String()
			if code != exitSettings {
				t.Errorf("%s: exit code %d, want %d: %s", text, code, exitSettings, got)
			}
			if strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") || stdout.Len() > 0 {
				t.Errorf("%s: want one line on stderr and nothing on stdout, got %q and %q", text, got, stdout.String())
			}
			if !strings.HasPrefix(got, "offhook: "+name+" ") {
				t.Errorf("%s: the line does not begin with the variable: %s", text, got)
			}
			if !strings.Contains(got, "; a value that works: ") {
				t.Errorf("%s: the line names no value that works: %s", text, got)
			}
			if strings.Contains(got, "hunter2") {
				t.Errorf("%s: the line shows a secret: %s", text, got)
			}
		})
	}
	for _, v := range variables {
		if !tried[v.name] {
			t.Errorf("no line of testdata/bad-settings.txt is about %s", v.name)
		}
	}
}

// TestExamplesWork: what an error calls a value that works must work.
func TestExamplesWork(t *testing.T) {
	sasl := []string{"OFFHOOK_KAFKA_SASL_MECHANISM=PLAIN", "OFFHOOK_KAFKA_SASL_USERNAME=u", "OFFHOOK_KAFKA_SASL_PASSWORD=p"}
	for _, v := range variables {
		if v.doc == "" || v.example == "" {
			t.Errorf("%s has no doc or no example", v.name)
		}
		if strings.HasSuffix(v.name, fileSuffix) {
			continue // a file's name works where the file is there
		}
		var assignments []string
		if strings.Contains(v.name, "_SASL_") {
			assignments = append(assignments, sasl...)
		}
		if _, warnings, err := load(with(append(assignments, v.name+"="+v.example)...), allParts...); err != nil || len(warnings) > 0 {
			t.Errorf("the example of %s: %v, warnings %q", v.name, err, warnings)
		}
	}
}

func TestDefaults(t *testing.T) {
	got, warnings, err := load(good(), allParts...)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	want := settings{
		KafkaBrokers: addresses{"localhost:9092"}, ConnectionsTopic: topics{"im.connections"}, MessagesTopic: topics{"im.messages"},
		ConnectionsStart: "earliest", MessagesStart: "latest", TopicPrefix: "offhook", Partitions: 12, ReplicationFactor: -1, CreateTopics: true,
		EventRetention: duration(168 * time.Hour), MaxRecordBytes: 1 << 20, CommitInterval: duration(100 * time.Millisecond),
		CloseMemory: duration(10 * time.Minute), NotifyOrderBy: "from_uid", SinkName: "default", WebhookURL: "https://backend.example/hook",
		WebhookFlushInterval: duration(500 * time.Millisecond), WebhookBatchMax: 100, WebhookBatchBytes: 1 << 20,
		WebhookTimeout: duration(10 * time.Second), WebhookMaxInFlight: 64, WebhookLaneInFlight: 8,
		WebhookOfflineBody: "array", ShutdownTimeout: duration(25 * time.Second), OpsAddr: ":8080",
		LogLevel: "info", LogFormat: "json",
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(settings{})); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	empty := good()
	for _, v := range variables {
		if _, ok := empty[v.name]; !ok {
			empty[v.name] = ""
		}
	}
	if got, _, err = load(empty, allParts...); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(settings{})); diff != "" {
		t.Errorf("an empty variable is not as an unset one (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(schemas.Events(), got.webhookEvents()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestValues(t *testing.T) {
	got, _, err := load(with(
		"OFFHOOK_KAFKA_BROKERS= one:9092 , two:9093,, [::1]:9094 ",
		"OFFHOOK_CONNECTIONS_TOPIC=a, b",
		"OFFHOOK_CREATE_TOPICS=False",
		"OFFHOOK_MAX_RECORD_BYTES=2MiB",
		"OFFHOOK_WEBHOOK_BATCH_BYTES=4096B",
		"OFFHOOK_INBOX_KEEP=1h30m",
		"OFFHOOK_ONLINE_DEVICE_FLAGS=0, 2",
		"OFFHOOK_SYSTEM_UIDS=system, üser ",
		"OFFHOOK_WEBHOOK_EVENTS=msg.offline,msg.offline, msg.notify",
		"OFFHOOK_WEBHOOK_SECRETS=whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3, whsec_YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYQ==",
		"OFFHOOK_WEBHOOK_HEADERS=Authorization: Bearer a:b\n\n x-two:1\nX-Two: 2\n",
		"OFFHOOK_SINK_START=1767225600",
		"OFFHOOK_OPS_ADDR=off",
	), allParts...)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ got, want any }{
		{got.KafkaBrokers, addresses{"one:9092", "two:9093", "[::1]:9094"}},
		{got.ConnectionsTopic, topics{"a", "b"}},
		{got.CreateTopics, boolean(false)},
		{got.MaxRecordBytes, size(2 << 20)},
		{got.WebhookBatchBytes, size(4096)},
		{got.InboxKeep, duration(90 * time.Minute)},
		{got.OnlineDeviceFlags, deviceFlags{0, 2}},
		{got.SystemUIDs, uids{"system", "üser"}},
		{got.WebhookEvents, events{schemas.EventOffline, schemas.EventNotify}},
		{got.WebhookSecrets, secrets{[]byte("0123456789abcdef01234567"), []byte(strings.Repeat("a", 25))}},
		{got.WebhookHeaders, headers{"Authorization": {"Bearer a:b"}, "X-Two": {"1", "2"}}},
		{got.SinkStart, startPosition("1767225600")},
		{got.OpsAddr, opsAddress("off")},
	} {
		if diff := cmp.Diff(test.want, test.got); diff != "" {
			t.Errorf("%T (-want +got):\n%s", test.want, diff)
		}
	}
}

func TestSecretsFromFiles(t *testing.T) {
	dir := t.TempDir()
	environ := with("OFFHOOK_WEBHOOK_URL=", "OFFHOOK_KAFKA_SASL_MECHANISM=PLAIN", "OFFHOOK_KAFKA_SASL_USERNAME=u")
	for name, content := range map[string]string{
		"OFFHOOK_WEBHOOK_URL":         "https://u:p@x/\n",
		"OFFHOOK_KAFKA_SASL_PASSWORD": " pass word \n\r\n",
		"OFFHOOK_WEBHOOK_SECRETS":     "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\r\n",
		"OFFHOOK_WEBHOOK_HEADERS":     "A: 1\nB: 2",
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		environ[name+"_FILE"] = file
	}
	got, warnings, err := load(environ, allParts...)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %q", err, warnings)
	}
	if got.WebhookURL != "https://u:p@x/" || got.KafkaSASLPassword != " pass word \n" || string(got.WebhookSecrets[0]) != "0123456789abcdef01234567" || len(got.WebhookHeaders) != 2 {
		t.Errorf("got %#v", []any{string(got.WebhookURL), string(got.KafkaSASLPassword), len(got.WebhookSecrets), len(got.WebhookHeaders)})
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		text := fmt.Sprintf(format, got)
		for _, value := range []string{"u:p@x", "pass word", "0123456789", "[48 49 50 51", "0x30, 0x31, 0x32", "map[A:"} {
			if strings.Contains(text, value) {
				t.Errorf("formatted with %s the settings show %q", format, value)
			}
		}
	}
}

func TestCommandsNeedTheirPartOnly(t *testing.T) {
	for _, test := range []struct {
		part     part
		environ  environment
		wantName string // in the error; empty: none
	}{
		{partProcessor, environment{"OFFHOOK_KAFKA_BROKERS": "b:1"}, ""},
		{partProcessor, environment{"OFFHOOK_KAFKA_BROKERS": "b:1", "OFFHOOK_WEBHOOK_URL": "ftp://x", "OFFHOOK_WEBHOOK_SECRETS_FILE": "/nowhere"}, ""},
		{partProcessor, environment{}, "OFFHOOK_KAFKA_BROKERS"},
		{partProcessor, environment{"OFFHOOK_KAFKA_BROKERS": "b:1", "OFFHOOK_COMMIT_INTERVAL": "x"}, "OFFHOOK_COMMIT_INTERVAL"},
		{partSink, environment{"OFFHOOK_KAFKA_BROKERS": "b:1"}, "OFFHOOK_WEBHOOK_URL"},
		{partSink, environment{"OFFHOOK_KAFKA_BROKERS": "b:1", "OFFHOOK_WEBHOOK_URL": "http://x", "OFFHOOK_COMMIT_INTERVAL": "x"}, ""},
		{partCommon, environment{"OFFHOOK_KAFKA_BROKERS": "b:1", "OFFHOOK_OPS_ADDR": "x"}, ""},
	} {
		_, warnings, err := load(test.environ, test.part)
		if len(warnings) > 0 {
			t.Errorf("%s: warnings %q of variables that another part has", test.part, warnings)
		}
		switch {
		case test.wantName == "" && err != nil:
			t.Errorf("%s with %v: %v", test.part, test.environ, err)
		case test.wantName != "" && (err == nil || !strings.HasPrefix(err.Error(), test.wantName+" ")):
			t.Errorf("%s with %v: error %v, want one of %s", test.part, test.environ, err, test.wantName)
		}
	}
}

func TestWarnings(t *testing.T) {
	_, warnings, err := load(with("OFFHOOK_SERVICE_HOST=hunter2", "OFFHOOK_PARTITION=3", "OTHER=1", "OFFHOOK_LOG_LEVEL_FILE=x",
		"OFFHOOK_WEBHOOK_SECRETS=whsec_aHVudGVyMg=="), allParts...)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(warnings, "\n")
	for _, want := range []string{"OFFHOOK_SERVICE_HOST", "OFFHOOK_PARTITION ", "OFFHOOK_LOG_LEVEL_FILE", "OFFHOOK_WEBHOOK_SECRETS holds a secret of fewer than 24 bytes"} {
		if !strings.Contains(text, want) {
			t.Errorf("no warning of %s in:\n%s", want, text)
		}
	}
	if len(warnings) != 4 || strings.Contains(text, "hunter2") {
		t.Errorf("warnings:\n%s", text)
	}
}

func TestSizeFormat(t *testing.T) {
	for size, want := range map[size]string{0: "0B", 1: "1B", 1024: "1KiB", 3 << 20: "3MiB", 1 << 30: "1GiB", 1<<20 + 1: "1048577B"} {
		if got := size.String(); got != want {
			t.Errorf("%d bytes are %s, want %s", int64(size), got, want)
		}
	}
}

func TestHelpSettings(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"help", "settings"}, nil, &stdout, &stderr); code != exitOK || stderr.Len() > 0 {
		t.Fatalf("exit code %d, stderr %s", code, stderr.String())
	}
	for _, v := range variables {
		if !strings.Contains(stdout.String(), v.name+" (") || !strings.Contains(stdout.String(), v.doc) {
			t.Errorf("%s is not in the help", v.name)
		}
	}
}

func TestREADMEHasTheSettings(t *testing.T) {
	const readme = "../../README.md"
	content, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile(`(?s)(<!-- settings -->\n).*?(<!-- /settings -->)`)
	if !section.Match(content) {
		t.Fatal("the README has no <!-- settings --> and <!-- /settings -->")
	}
	want := section.ReplaceAllFunc(content, func([]byte) []byte {
		return []byte("<!-- settings -->\n" + settingsTable() + "<!-- /settings -->")
	})
	if bytes.Equal(content, want) {
		return
	}
	if !*update {
		t.Fatal("the README's table of settings is not that of the code; run go test ./cmd/offhook -run TestREADMEHasTheSettings -update")
	}
	if err := os.WriteFile(readme, want, 0o644); err != nil {
		t.Fatal(err)
	}
}
