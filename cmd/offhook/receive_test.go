package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/offhook/offhook/internal/journal"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/internal/receiver"
)

func TestReceiveRefusesScenarios(t *testing.T) {
	for args, want := range map[string]string{
		"--scenario bogus":                         `offhook: --scenario "bogus" is none of slow:D[:D2], down:AFTER:FOR`,
		"--scenario slow:1s --scenario slow:x":     `offhook: --scenario "slow:x" has D "x", no duration such as 50ms, 10s, 1m (slow:D[:D2]); a value that works: --scenario slow:50ms`,
		"--scenario slow:1s,bogus":                 `"slow:1s,bogus"`, // a comma separates nothing: a TEXT may hold it
		"--order-by sender":                        "--order-by",
		"--scenario":                               "--scenario",
		"--scenario status:404:1m --seed unseeded": "--seed",
	} {
		code, stdout, stderr := command(t, nil, append([]string{"receive", "--addr", "127.0.0.1:0"}, strings.Fields(args)...)...)
		if code != exitSettings || stdout != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("receive %s: exit code %d, stdout %q, stderr %q; want 2 and one line with %q", args, code, stdout, stderr, want)
		}
	}
}

// say posts a body under an id until the answer has a status of those that are wanted, and returns it.
func say(t *testing.T, addr, event, id, body string, wanted ...int) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var got int
	kafkatest.Wait(t, 10*time.Second, "an answer", func() bool {
		request, err := http.NewRequest(http.MethodPost, "http://"+addr+"/?event="+event, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("webhook-id", id)
		response, err := client.Do(request)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		got = response.StatusCode
		return len(wanted) == 0 || slices.Contains(wanted, got)
	})
	return got
}

func TestReceivePlaysScenarios(t *testing.T) {
	addr := freeAddress(t)
	begun := time.Now()
	// Its 503 lasts until it is up again: a request that slips in before the listener closes is not taken.
	p := start(t, nil, "receive", "--addr", addr, "--scenario", "slow:1ms", "--scenario", "refuse:u1:422", "--scenario", "status:503:1300ms", "--scenario", "down:300ms:1s")
	if got := say(t, addr, "user.onlinestatus", "1", `["u1-0-1-5-1-1"]`, http.StatusUnprocessableEntity, http.StatusServiceUnavailable); got != http.StatusUnprocessableEntity {
		t.Errorf("the refused user is answered %d, want 422", got)
	}
	kafkatest.Wait(t, 10*time.Second, "a connection to be refused", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	say(t, addr, "user.onlinestatus", "2", `["u2-0-1-5-1-1"]`, http.StatusOK)
	if since := time.Since(begun); since < 1300*time.Millisecond {
		t.Errorf("it takes requests after %s, want 1.3s", since)
	}
	p.stop()
	p.exit(t, exitOK)
	got := lastLine(t, p.stdout.String())
	want := receiver.Summary{Requests: 1, Events: receiver.Events{OnlineStatus: 1}, RefusedByScenario: got.RefusedByScenario}
	if got != want || got.RefusedByScenario < 1 {
		t.Errorf("summary %+v, want %+v with a refusal", got, want)
	}
}

func TestReceiveJournal(t *testing.T) {
	name := filepath.Join(t.TempDir(), "journal")
	var want []journal.Entry
	for i, args := range [][]string{{}, {"--no-check"}} {
		addr := freeAddress(t)
		p := start(t, nil, append([]string{"receive", "--addr", addr, "--journal", name, "--scenario", "refuse:u1"}, args...)...)
		say(t, addr, "user.onlinestatus", "1", `["u1-0-1-5-1-1"]`, http.StatusBadRequest)
		for range 2 {
			say(t, addr, "user.onlinestatus", "2", `["u2-0-1-5-1-1"]`, http.StatusOK)
		}
		p.stop()
		p.exit(t, exitOK)
		want = append(want, journal.Entry{Event: "user.onlinestatus", ID: "1", Body: []byte(`["u1-0-1-5-1-1"]`)})
		for range 2 {
			want = append(want, journal.Entry{Event: "user.onlinestatus", ID: "2", Taken: true, Body: []byte(`["u2-0-1-5-1-1"]`)})
		}
		stdout := p.stdout.String()
		if checked := strings.Contains(stdout, `"repeated_ids":1`); checked != (i == 0) || !strings.Contains(stdout, `"requests":2`) {
			t.Errorf("%v: summary %s", args, stdout)
		}
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var got []journal.Entry
	for r := journal.NewReader(file); ; {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		e.Body = bytes.Clone(e.Body)
		got = append(got, e)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(journal.Entry{}, "Time")); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

func TestReceiveRefusesFlagsThatDoNotGoTogether(t *testing.T) {
	noJournal := filepath.Join(t.TempDir(), "readme")
	if err := os.WriteFile(noJournal, []byte("hello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, exit := range map[string]int{"--no-check --truth t": exitSettings, "--journal " + noJournal: exitFatal} {
		code, stdout, stderr := command(t, nil, append([]string{"receive", "--addr", "127.0.0.1:0"}, strings.Fields(args)...)...)
		flag, _, _ := strings.Cut(args, " ")
		if code != exit || stdout != "" || !strings.Contains(stderr, flag) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("receive %s: exit code %d, stdout %q, stderr %q; want %d and one line", args, code, stdout, stderr, exit)
		}
	}
}

func TestReceiveOrderBy(t *testing.T) {
	item := func(channel, n string) string {
		return `[{"header":{},"setting":0,"message_id":1,"message_idstr":"1","client_msg_no":"r-u1-` + n + `","message_seq":0,"from_uid":"u1","channel_id":"` +
			channel + `","channel_type":2,"timestamp":1,"payload":""}]`
	}
	for by, code := range map[string]int{"from_uid": exitFatal, "channel_id": exitOK} {
		addr := freeAddress(t)
		p := start(t, nil, "receive", "--addr", addr, "--order-by", by)
		say(t, addr, "msg.notify", "1", item("g", "2"), http.StatusOK)
		say(t, addr, "msg.notify", "2", item("h", "1"), http.StatusOK)
		p.stop()
		p.exit(t, code)
	}
}

func TestReceiveHelpListsTheScenarios(t *testing.T) {
	code, stdout, _ := command(t, nil, "receive", "--help")
	for _, s := range receiver.Scenarios() {
		if code != exitOK || !strings.Contains(stdout, s.Form) {
			t.Errorf("exit code %d, and no %s in\n%s", code, s.Form, stdout)
		}
	}
}

func TestREADMEHasTheScenarios(t *testing.T) {
	const readme = "../../README.md"
	content, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile(`(?s)(<!-- scenarios -->\n).*?(<!-- /scenarios -->)`)
	if !section.Match(content) {
		t.Fatal("the README has no <!-- scenarios --> and <!-- /scenarios -->")
	}
	want := section.ReplaceAllFunc(content, func([]byte) []byte {
		return []byte("<!-- scenarios -->\n" + scenarioTable() + "<!-- /scenarios -->")
	})
	if bytes.Equal(content, want) {
		return
	}
	if !*update {
		t.Fatal("the README's table of scenarios is not that of the code; run go test ./cmd/offhook -run TestREADMEHasTheScenarios -update")
	}
	if err := os.WriteFile(readme, want, 0o644); err != nil {
		t.Fatal(err)
	}
}
