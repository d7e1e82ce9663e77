package truth

import (
	"bytes"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var lines = []Line{
	{Kind: KindRun, Run: "r", Seed: 7, Settled: true},
	{Kind: KindUser, UID: "a", Presence: Sleeper},
	{Kind: KindUser, UID: "b", Presence: Resident},
	{Kind: KindUser, UID: "c-1", Presence: Churner},
	{Kind: KindGroup, ChannelID: "g", Members: []string{"a", "b", "c-1"}},
	{Kind: KindMessage, ClientMsgNo: "r-c-1-1", FromUID: "c-1", N: 1, ChannelID: "g", ChannelType: 2, Push: true},
	{Kind: KindMessage, ClientMsgNo: "r-b-1", FromUID: "b", N: 1, ChannelID: "a", ChannelType: 1, Push: true, Doubt: true},
	{Kind: KindMessage, ClientMsgNo: "r-b-2", FromUID: "b", N: 2, ChannelID: "g", ChannelType: 2},
	{Kind: KindStatus, UID: "c-1", Item: "c-1-2-1-18446744073709551615-1-1"},
	{Kind: KindDoubt, UID: "c-1"},
	{Kind: KindEnd, Messages: 3, Items: 1},
}

func write(t *testing.T, lines []Line) string {
	t.Helper()
	var file bytes.Buffer
	w := NewWriter(&file)
	for _, line := range lines {
		if err := w.Record(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return file.String()
}

func TestReadSaysWhatWasWritten(t *testing.T) {
	truth, err := Read(strings.NewReader(write(t, lines)))
	if err != nil {
		t.Fatal(err)
	}
	type message struct {
		ClientMsgNo, FromUID string
		Notify               Claim
		Offline              map[string]Claim
	}
	var messages []message
	for m := range truth.Messages() {
		offline := maps.Collect(truth.Recipients(m))
		messages = append(messages, message{m.ClientMsgNo, m.FromUID, m.Notify, offline})
	}
	wantMessages := []message{
		{"r-c-1-1", "c-1", Must, map[string]Claim{"a": Must, "b": MustNot, "c-1": MustNot}},
		{"r-b-1", "b", May, map[string]Claim{"a": May}},
		{"r-b-2", "b", Must, map[string]Claim{"a": MustNot, "b": MustNot, "c-1": MustNot}},
	}
	if diff := cmp.Diff(wantMessages, messages); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	type user struct {
		UID      string
		Doubt    bool
		Statuses []string
	}
	var users []user
	for u := range truth.Users() {
		var statuses []string
		for s := range u.Statuses() {
			statuses = append(statuses, s.String())
		}
		if u.Len() != len(statuses) {
			t.Errorf("Len of %s = %d, want %d", u.UID, u.Len(), len(statuses))
		}
		users = append(users, user{u.UID, u.Doubt, statuses})
	}
	wantUsers := []user{{"a", false, nil}, {"b", false, nil}, {"c-1", true, []string{"c-1-2-1-18446744073709551615-1-1"}}}
	if diff := cmp.Diff(wantUsers, users); diff != "" {
		t.Errorf("users (-want +got):\n%s", diff)
	}
}

func TestResidentsMayBePushedToWhereNobodyWaitedForThem(t *testing.T) {
	unsettled := append([]Line{{Kind: KindRun, Run: "r"}}, lines[1:]...)
	truth, err := Read(strings.NewReader(write(t, unsettled)))
	if err != nil {
		t.Fatal(err)
	}
	for m := range truth.Messages() {
		for uid, claim := range truth.Recipients(m) {
			if m.ClientMsgNo == "r-c-1-1" && uid == "b" && claim != May {
				t.Errorf("claim = %d, want %d", claim, May)
			}
		}
	}
}

func TestReadRefuses(t *testing.T) {
	file := write(t, lines)
	tests := []struct {
		name, file, want string
	}{
		{"a file that was cut short", file[:strings.Index(file, `{"kind":"end"`)], "no end line"},
		{"a line that was cut", file[:len(file)-5], "line 11"},
		{"an end that counts other lines", strings.Replace(file, `"messages":3`, `"messages":4`, 1), "counts 4 messages"},
		{"a line after the end", file + `{"kind":"user","uid":"z","presence":"sleeper"}`, "after the end"},
		{"an empty file", "", "no end line"},
		{"no run", `{"kind":"user","uid":"a","presence":"sleeper"}`, "must come first"},
		{"two runs", `{"kind":"run","run":"r"}{"kind":"run","run":"r"}`, "must come first"},
		{"an unknown kind", `{"kind":"run","run":"r"}{"kind":"x"}`, "is unknown"},
		{"an unknown field", `{"kind":"run","run":"r","speed":1}`, "unknown field"},
		{"an unknown user", `{"kind":"run","run":"r"}{"kind":"status","uid":"a","item":"a-0-1-1-1-1"}`, "names no user"},
		{"a client_msg_no that does not fit", strings.Replace(file, "r-b-2", "r-b-3", 1), "run, from_uid and n make it"},
		{"an item of somebody else", strings.Replace(file, `"item":"c-1`, `"item":"c-2`, 1), "another uid"},
		{"an item that is none", strings.Replace(file, `-1-1"}`, `-x-1"}`, 1), "status is not"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Read(strings.NewReader(tt.file))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Read = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestConnectionsCount(t *testing.T) {
	var c Connections
	text := func(statuses []Status) []string {
		var s []string
		for _, status := range statuses {
			s = append(s, status.String())
		}
		return s
	}
	steps := []struct {
		what string
		got  []Status
		want []string
	}{
		{"first", c.Open("u", Connection{1, 10, 1}), []string{"u-1-1-10-1-1"}},
		{"second of the flag", c.Open("u", Connection{1, 9, 1}), []string{"u-1-1-9-2-2"}},
		{"same id on another node", c.Open("u", Connection{2, 10, 0}), []string{"u-0-1-10-1-3"}},
		{"again", c.Open("u", Connection{2, 10, 0}), nil},
		{"another user", c.Open("a", Connection{1, 11, 1}), []string{"a-1-1-11-1-1"}},
		{"another flag", c.Open("u", Connection{2, 10, 1}), []string{"u-0-0-10-0-2", "u-1-1-10-3-3"}},
		{"restart", c.RestartNode(1), []string{"a-1-0-11-0-0", "u-1-0-9-2-2", "u-1-0-10-1-1"}},
		{"close what is gone", c.Close("u", 1, 10), nil},
		{"close", c.Close("u", 2, 10), []string{"u-1-0-10-0-0"}},
		{"restart of an empty node", c.RestartNode(1), nil},
	}
	for _, step := range steps {
		if diff := cmp.Diff(step.want, text(step.got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.what, diff)
		}
	}
	if n := len(c.Of("u")) + len(c.Of("a")); n != 0 {
		t.Errorf("%d connections are left, want none", n)
	}
}

func TestDoubt(t *testing.T) {
	truth, err := Read(strings.NewReader(write(t, lines)))
	if err != nil {
		t.Fatal(err)
	}
	if truth.Doubt("r-c-1-2") {
		t.Error("Doubt of a message that does not exist is true")
	}
	if !truth.Doubt("r-c-1-1") {
		t.Error("Doubt of a message is false")
	}
	for m := range truth.Messages() {
		want := May
		if m.ClientMsgNo == "r-b-2" {
			want = Must
		}
		if m.Notify != want {
			t.Errorf("the claim on msg.notify of %s is %d, want %d", m.ClientMsgNo, m.Notify, want)
		}
		for uid, claim := range truth.Recipients(m) {
			if claim == Must {
				t.Errorf("msg.offline of %s to %s must arrive, want doubt", m.ClientMsgNo, uid)
			}
		}
	}
}
