package main

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
	"github.com/offhook/offhook/schemas"
)

// status is what `offhook sink status --json` prints, as far as tests look at it.
type status struct {
	Lanes []laneStatus `json:"lanes"`
}

type laneStatus struct {
	FirstBatch *struct {
		Trouble *struct {
			Answer   string `json:"last_answer"`
			Attempts int    `json:"attempts"`
		} `json:"trouble"`
	} `json:"first_batch"`
	Notes []string `json:"notes"`
}

// trouble is the last answer to the lane's first batch and how many attempts failed; "", 0 where it has no trouble.
func (l laneStatus) trouble() (answer string, attempts int) {
	if l.FirstBatch == nil || l.FirstBatch.Trouble == nil {
		return "", 0
	}
	return l.FirstBatch.Trouble.Answer, l.FirstBatch.Trouble.Attempts
}

// sinkStatus runs `offhook sink status`.
func (s *system) sinkStatus() status {
	s.t.Helper()
	code, stdout, stderr := command(s.t, s.kafkaEnv(), "sink", "status", "--json")
	if code != 0 {
		s.t.Fatalf("sink status: exit code %d: %s", code, stderr)
	}
	var st status
	if err := json.Unmarshal([]byte(stdout), &st); err != nil {
		s.t.Fatalf("decode what sink status prints: %v: %s", err, stdout)
	}
	return st
}

// TestWrongEndpoint has the endpoint answer 404 for a while, as where a path or a secret is wrong: nothing is given up, the log and
// `sink status` say why nothing goes on, and delivery does when it is mended.
func TestWrongEndpoint(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3)
		// That a time is set to give up after changes nothing: it is not the events' fault.
		p := s.run("OFFHOOK_WEBHOOK_GIVE_UP_AFTER=1s").ready()
		traffic := s.simulate(100, 50)
		e.waitItems(schemas.EventNotify, 20, effectTimeout)
		wrong := 3 * time.Second
		if long() {
			wrong = time.Minute
		}

		since := time.Now()
		e.answers(func(schemas.Event) int { return http.StatusNotFound })
		kafkatest.Wait(t, effectTimeout, "sink status to say why", func() bool {
			return slices.ContainsFunc(s.sinkStatus().Lanes, func(l laneStatus) bool {
				answer, attempts := l.trouble()
				return answer == "404" && attempts > 0 && strings.Contains(strings.Join(l.Notes, " "), "the endpoint or its settings are wrong")
			})
		})
		time.Sleep(wrong - time.Since(since))
		n := len(e.all())
		time.Sleep(s.quiet())
		if m := len(e.all()); m != n {
			t.Errorf("%d requests were taken while the endpoint answered 404", m-n)
		}
		if status, body := p.get("/readyz"); status != http.StatusOK {
			t.Errorf("GET /readyz answers %d while the endpoint is wrong: %s", status, body)
		}
		if log := p.stderr.String(); !strings.Contains(log, "the endpoint or its settings are wrong") || !strings.Contains(log, "the endpoint answered 404") {
			t.Error("the log does not say that the endpoint is wrong, and answered 404")
		}

		e.answers(nil)
		mended := len(e.items(schemas.EventNotify))
		e.waitItems(schemas.EventNotify, mended+50, drainTimeout)
		e.settle(traffic.stop(), drainTimeout, s.quiet())
		if letters := s.letters(); len(letters) > 0 {
			t.Errorf("%d dead letters, want none", len(letters))
		}
		kafkatest.Wait(t, effectTimeout, "sink status to know of no trouble any more", func() bool {
			return !slices.ContainsFunc(s.sinkStatus().Lanes, func(l laneStatus) bool { _, attempts := l.trouble(); return attempts > 0 })
		})
		p.terminate()
	})
}

// TestTwoSinks has two sinks beside one processor, the endpoint of one down for a while: the other gets everything meanwhile, and
// afterwards the first does too, each in order. A sink of another name that does not say where to begin ends with exit code 2.
func TestTwoSinks(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		up, down := newEndpoint(t), newEndpoint(t)
		s := newSystem(t, c, up, 3)
		processor := start(t, s.env(), "processor").ready()
		sink := func(name string, e *endpoint) *process {
			return start(t, s.env("OFFHOOK_WEBHOOK_URL="+e.url(), "OFFHOOK_SINK_NAME="+name, "OFFHOOK_SINK_START=earliest"), "sink").ready()
		}
		crm, audit := sink("crm", up), sink("audit", down)
		traffic := s.simulate(100, 50)
		up.waitItems(schemas.EventNotify, 20, effectTimeout)
		down.waitItems(schemas.EventNotify, 20, effectTimeout)

		down.close()
		time.Sleep(s.quiet()) // what it was taking is taken
		missed := len(down.all())
		for _, event := range schemas.Events() {
			up.waitItems(event, len(up.items(event))+60, effectTimeout)
		}
		if status, body := audit.get("/readyz"); status != http.StatusOK {
			t.Errorf("GET /readyz answers %d while the endpoint is down: %s", status, body)
		}
		if n := len(down.all()); n != missed {
			t.Errorf("%d requests were taken by an endpoint that is down", n-missed)
		}
		must := traffic.stop()
		up.settle(must, drainTimeout, s.quiet()) // while the other is still down
		down.open()
		down.settle(must, drainTimeout, s.quiet())
		for _, event := range schemas.Events() {
			a, b := up.items(event), down.items(event)
			slices.Sort(a)
			slices.Sort(b)
			if !slices.Equal(a, b) {
				t.Errorf("the two endpoints have %d and %d items of %s, which differ", len(a), len(b), event)
			}
		}
		if letters := s.letters(); len(letters) > 0 {
			t.Errorf("%d dead letters, want none", len(letters))
		}

		code, _, stderr := command(t, s.env("OFFHOOK_SINK_NAME=third"), "sink")
		if code != 2 || !strings.Contains(stderr, "OFFHOOK_SINK_START") {
			t.Errorf("a sink of another name without a start: exit code %d, want 2 and a line that names OFFHOOK_SINK_START: %s", code, stderr)
		}
		for _, p := range []*process{crm, audit, processor} {
			p.terminate()
		}
		// A sink that has begun needs no start.
		p := start(t, s.env("OFFHOOK_SINK_NAME=crm"), "sink").ready()
		p.terminate()
		if summary := up.receiver.Summary(nil); summary.RepeatedIDs > 0 {
			t.Errorf("%d requests came again to a sink that was stopped", summary.RepeatedIDs)
		}
	})
}

// TestOfflineObject has msg.offline come as one object a request; a batch that was planned while it came as an array, and holds
// several events, still does, under its id.
func TestOfflineObject(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		e := newEndpoint(t)
		s := newSystem(t, c, e, 3)
		p := s.run("OFFHOOK_WEBHOOK_FLUSH_INTERVAL=500ms").ready()
		// Those for one recipient are in one partition; written at once, they are in one batch.
		const planned = 3
		h := e.hold(schemas.EventOffline)
		var records []*kgo.Record
		for range planned {
			records = append(records, &kgo.Record{Topic: s.messages, Value: []byte(`{"from_uid":"u","channel_id":"asleep","payload":"aGk="}`)})
		}
		c.Produce(t, records...)
		select {
		case <-h.reached:
		case <-time.After(effectTimeout):
			t.Fatalf("no msg.offline within %v", effectTimeout)
		}
		e.waitItems(schemas.EventNotify, planned, effectTimeout)
		p.kill()
		close(h.release)
		first := e.of(schemas.EventOffline)[0]
		if n := len(e.items(schemas.EventOffline)); n != planned {
			t.Fatalf("the request that is held has %d events, want all %d", n, planned)
		}

		p = s.run("OFFHOOK_WEBHOOK_OFFLINE_BODY=object").ready()
		kafkatest.Wait(t, drainTimeout, "the batch that was planned to come again", func() bool { return len(e.of(schemas.EventOffline)) > 1 })
		if again := e.of(schemas.EventOffline)[1]; again.id != first.id || string(again.body) != string(first.body) {
			t.Errorf("the batch that was planned came again as %s\n%s\nwant %s\n%s", again.id, again.body, first.id, first.body)
		}
		traffic := s.simulate(100, 50)
		kafkatest.Wait(t, effectTimeout, "msg.offline", func() bool { return e.receiver.Summary(nil).Events.Offline > 100 })
		e.settle(traffic.stop(), drainTimeout, s.quiet())
		for _, r := range e.all() {
			want := byte('[')
			if r.event == schemas.EventOffline && r.id != first.id {
				want = '{'
			}
			if r.body[0] != want || !json.Valid(r.body) {
				t.Errorf("the body of a %s request is %.40s…, want it to begin with %c", r.event, r.body, want)
			}
		}
		p.terminate()
	})
}

// of are the requests of an event taken so far.
func (e *endpoint) of(event schemas.Event) []taken {
	return slices.DeleteFunc(e.all(), func(r taken) bool { return r.event != event })
}

// TestSecretsRotate rotates the secrets in OFFHOOK_WEBHOOK_SECRETS_FILE under traffic, as operators do: the new one is put before the
// old, and then the old is taken out. The process goes on; a receiver that knows both never sees a wrong signature, and one that
// knows only the old is served until that is taken out. The verifier is that of Standard Webhooks.
func TestSecretsRotate(t *testing.T) {
	t.Parallel()
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		parallel(t, c)
		oldKey, newKey := []byte("the-key-that-goes-of-32-bytes---"), []byte("the-key-that-comes-of-32-bytes--")
		oldSecret, newSecret := "whsec_"+base64.StdEncoding.EncodeToString(oldKey), "whsec_"+base64.StdEncoding.EncodeToString(newKey)
		signedBy := func(secret string) func(r taken) bool {
			verifier, err := standardwebhooks.NewWebhook(secret)
			if err != nil {
				t.Fatalf("new verifier: %v", err)
			}
			return func(r taken) bool { return verifier.Verify(r.body, r.header) == nil }
		}
		byOld, byNew := signedBy(oldSecret), signedBy(newSecret)
		file := filepath.Join(t.TempDir(), "secrets")
		write := func(secrets ...string) {
			t.Helper()
			// By renaming, as Kubernetes does: no look sees half a file.
			if err := os.WriteFile(file+".new", []byte(strings.Join(secrets, ",")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
		}
		write(oldSecret)
		e := newEndpoint(t, oldKey, newKey)
		s := newSystem(t, c, e, 3)
		p := s.run("OFFHOOK_WEBHOOK_SECRETS_FILE=" + file).ready()
		traffic := s.simulate(100, 50)
		e.waitItems(schemas.EventNotify, 20, effectTimeout)

		// phase waits for a request that is signed by those secrets and no others; it is the last of as many requests.
		phase := func(old, new bool) (reached int) {
			t.Helper()
			kafkatest.Wait(t, effectTimeout, "a request that is signed by what is in the file", func() bool {
				all := e.all()
				reached = len(all) - 1
				return byOld(all[reached]) == old && byNew(all[reached]) == new
			})
			return reached
		}
		phase(true, false)
		write(newSecret, oldSecret)
		both := phase(true, true)
		write(newSecret)
		after := phase(false, true)
		e.waitItems(schemas.EventNotify, len(e.items(schemas.EventNotify))+50, effectTimeout)
		summary := e.settle(traffic.stop(), drainTimeout, s.quiet())
		if summary.BadSignatures > 0 || summary.RepeatedIDs > 0 {
			t.Errorf("%d requests with a wrong signature, %d that came again; want none", summary.BadSignatures, summary.RepeatedIDs)
		}
		all := e.all()
		for i, r := range all {
			// One that was signed before a change may arrive behind one that was signed after it.
			if !byOld(r) && (i < both || !byNew(r)) {
				t.Errorf("request %d of %d has a wrong signature; both secrets were in use by %d, the new one alone by %d", i, len(all), both, after)
			}
		}
		if last := all[len(all)-1]; byOld(last) || !byNew(last) {
			t.Error("the last request is not signed by the new secret alone")
		}
		p.terminate()
		for _, private := range []string{oldSecret, newSecret, string(oldKey), string(newKey)} {
			if strings.Contains(p.stderr.String()+p.stdout.String(), private) {
				t.Error("the log holds a secret")
			}
		}
	})
}
