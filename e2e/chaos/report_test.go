package chaos

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/offhook/offhook/internal/oracle"
)

func TestReport(t *testing.T) {
	var good Report
	if good.Wrong() {
		t.Error("nothing is wrong with nothing")
	}
	ended := Report{Ended: []string{"sink-1 ended by itself"}}
	found := Report{Seed: 3, Verdict: Verdict{Stall: 1.5, Report: oracle.Report{
		Inputs: 9, Requests: 4, Repeated: 1, OfflineItems: 2, Events: map[string]int64{"msg.notify": 3, "user.onlinestatus": 4, "msg.offline": 100},
		Counts:   map[oracle.Kind]int64{oracle.Lost: 1, oracle.LostInput: 2, oracle.BadID: 5},
		Findings: []oracle.Finding{{Kind: oracle.Lost, Text: "it is gone"}},
	}}}
	for _, r := range []Report{ended, found} {
		if !r.Wrong() {
			t.Errorf("nothing is wrong with %+v", r)
		}
	}
	var out strings.Builder
	found.Print(&out)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || lines[0] != "lost: it is gone" || !strings.HasPrefix(lines[1], "9 items in 4 requests (1 repeated) of 9 records: 3 lost, 0 duplicates after dedupe, 0 out of order, 0 wrong counts, 5 other findings;") {
		t.Errorf("printed\n%s", out.String())
	}
	var read Report
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &read); err != nil || read.Seed != 3 || read.Verdict.Counts[oracle.BadID] != 5 || read.Verdict.Stall != 1.5 {
		t.Errorf("the last line is read as %+v, %v", read, err)
	}
	out.Reset()
	ended.Print(&out)
	if !strings.HasPrefix(out.String(), "sink-1 ended by itself\n") {
		t.Errorf("printed\n%s", out.String())
	}
}

func TestByTrack(t *testing.T) {
	cfg := Default()
	series := byTrack([]Fault{{Kind: KillSink}, {Kind: KillBroker}, {Kind: GrowInputs}, {Kind: StopProcessor}, {Kind: CutEndpoint}}, cfg)
	var got []string
	for _, s := range series {
		var kinds []string
		for _, f := range s {
			kinds = append(kinds, string(f.Kind))
		}
		got = append(got, strings.Join(kinds, ", "))
	}
	want := "input topics given more partitions; kill -9 of a sink, SIGTERM of a processor; kill -9 of a broker; connections to the receiver cut"
	if strings.Join(got, "; ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, "; "), want)
	}
}
