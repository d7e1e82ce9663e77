package query

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testToken      = "0123456789abcdef"
	testPartitions = 4
)

// table is a Local that owns some partitions: a user has as many connections as its uid's last digit says.
type table struct {
	owns   map[int32]bool
	asked  atomic.Int64
	member string
}

func (l *table) Member() string { return l.member }

func (l *table) Users(_ context.Context, _ time.Time, partition int32, uids []string, connections bool) ([]schemas.User, error) {
	l.asked.Add(1)
	if !l.owns[partition] {
		return nil, errors.New("not held")
	}
	users := make([]schemas.User, len(uids))
	for i, uid := range uids {
		if kafka.Partition(uid, testPartitions) != partition {
			return nil, errors.New("a uid of another partition")
		}
		users[i] = testUser(uid, connections)
	}
	return users, nil
}

func testUser(uid string, connections bool) schemas.User {
	n := int(uid[len(uid)-1] - '0')
	u := schemas.User{UID: uid, Online: n > 0, OfflinePush: n == 0, Total: n, Devices: []schemas.Device{}}
	if n > 0 {
		u.Devices = append(u.Devices, schemas.Device{DeviceFlag: 1, Count: n})
	}
	if connections {
		u.Connections = []schemas.UserConnection{}
		for i := range n {
			at := int64(5)
			u.Connections = append(u.Connections, schemas.UserConnection{NodeID: "n", ConnID: schemas.ID(strconv.Itoa(i)), DeviceFlag: 1, Since: 9, OpenedAt: &at})
		}
	}
	return u
}

// place is an Owners that tells from a table.
type place struct {
	mu  sync.Mutex
	url map[int32]string
	err error
}

func (p *place) Owner(_ context.Context, partition int32, _ time.Time) (Owner, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return Owner{}, p.err
	}
	if url, ok := p.url[partition]; ok {
		return Owner{Member: "the member at " + url, URL: url}, nil
	}
	return Owner{}, errMoving
}

// process is one with the API.
type process struct {
	*httptest.Server
	api   *API
	table *table
	reg   *prometheus.Registry
	log   *bytes.Buffer
}

func start(t *testing.T, cfg Config, owners Owners, owns ...int32) *process {
	t.Helper()
	p := &process{table: &table{owns: map[int32]bool{}}, reg: prometheus.NewRegistry(), log: new(bytes.Buffer)}
	for _, partition := range owns {
		p.table.owns[partition] = true
	}
	deps := Deps{Owners: owners, Log: slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Registerer: p.reg}
	if owns != nil {
		deps.Local = p.table
	}
	var err error
	if p.api, err = New(cfg, deps); err != nil {
		t.Fatal(err)
	}
	p.api.Begin(testPartitions)
	p.Server = httptest.NewServer(p.api)
	t.Cleanup(func() { p.Close(); p.api.Close() })
	return p
}

// reply is an answer that fits the OpenAPI document.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// ask sends a request and holds its answer against the document.
func (p *process) ask(t *testing.T, method, path, body string, headers ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := p.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := reply{resp.StatusCode, resp.Header, text}
	r.check(t, method)
	return r
}

func (p *process) one(t *testing.T, uid string) reply {
	t.Helper()
	return p.ask(t, http.MethodGet, "/v1/users/"+url.PathEscape(uid), "", "Authorization", "Bearer "+testToken)
}

func (p *process) many(t *testing.T, uids ...string) reply {
	t.Helper()
	return p.ask(t, http.MethodPost, "/v1/users/online", string(schemas.AppendQueryJSON(nil, &schemas.UsersQuery{UIDs: uids})), "Authorization", "Bearer "+testToken)
}

var document = sync.OnceValues(func() (any, error) { return jsonschema.UnmarshalJSON(bytes.NewReader(schemas.QueryAPI())) })

// at follows a path of members, and references on it.
func at(t *testing.T, doc any, path ...string) any {
	t.Helper()
	here := doc
	for _, name := range path {
		here = here.(map[string]any)[name]
		if here == nil {
			t.Fatalf("the OpenAPI document has no %s", strings.Join(path, " › "))
		}
		if ref, ok := here.(map[string]any)["$ref"].(string); ok && name != "schema" {
			here = at(t, doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
		}
	}
	return here
}

// check holds an answer against the document: its status, type, headers and body.
func (r reply) check(t *testing.T, method string) {
	t.Helper()
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	path := "/v1/users/{uid}"
	if method == http.MethodPost {
		path = "/v1/users/online"
	}
	response := at(t, doc, "paths", path, strings.ToLower(method), "responses", strconv.Itoa(r.status))
	if headers, ok := response.(map[string]any)["headers"].(map[string]any); ok {
		for name := range headers {
			if r.header.Get(name) == "" {
				t.Errorf("%d without %s", r.status, name)
			}
		}
	}
	schema := at(t, response, "content", r.header.Get("Content-Type"), "schema")
	root := map[string]any{"components": at(t, doc, "components")}
	maps.Copy(root, schema.(map[string]any))
	c := jsonschema.NewCompiler()
	if err := c.AddResource("answer.json", root); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("answer.json")
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(r.body))
	if err == nil {
		err = compiled.Validate(value)
	}
	if err != nil {
		t.Errorf("%s %d: %s does not fit the document: %v", method, r.status, r.body, err)
	}
}

func (r reply) user(t *testing.T) schemas.User {
	t.Helper()
	u, err := schemas.DecodeAnswer[schemas.User](r.body)
	if err != nil || r.status != http.StatusOK {
		t.Fatalf("%d: %s", r.status, r.body)
	}
	return u
}

// cluster has two owners of two partitions each, and one process without presence.
func cluster(t *testing.T) (all []*process, where *place) {
	where = &place{url: map[int32]string{}}
	for i := range 3 {
		var owns []int32
		if i < 2 {
			owns = []int32{int32(2 * i), int32(2*i + 1)}
		}
		p := start(t, Config{Token: testToken, Group: "p.presence"}, where, owns...)
		for _, partition := range owns {
			where.url[partition] = p.URL
		}
		all = append(all, p)
	}
	return all, where
}

// TestAnyProcess: any process answers the same for any user, one or many, by asking each owner once.
func TestAnyProcess(t *testing.T) {
	all, _ := cluster(t)
	var uids []string
	var want schemas.Users
	for i := range 40 {
		uid := fmt.Sprintf("ü/%d %% user-%d", i, i%4)
		uids = append(uids, uid)
		want.Users = append(want.Users, testUser(uid, false))
	}
	uids, want.Users = append(uids, uids[3]), append(want.Users, want.Users[3])
	for _, p := range all {
		for _, uid := range uids {
			if diff := cmp.Diff(testUser(uid, true), p.one(t, uid).user(t)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", uid, diff)
			}
		}
		before := all[0].table.asked.Load()
		got, err := schemas.DecodeAnswer[schemas.Users](p.many(t, uids...).body)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("many (-want +got), %v:\n%s", err, diff)
		}
		if asked := all[0].table.asked.Load() - before; asked > testPartitions {
			t.Errorf("an owner of two partitions looked %d times into its tables for one query", asked)
		}
	}
	if n := testutil.ToFloat64(all[2].api.metrics.queries.WithLabelValues(outcomeAnswered)); n != float64(len(uids)+1) {
		t.Errorf("%v answered", n)
	}
	if problems, err := promlint.NewWithMetricFamilies(must(all[0].reg.Gather())).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestMoving: where nobody is sure to own a partition the answer is 503 with Retry-After, for many as soon as one moves, and nothing
// is asked in a circle.
func TestMoving(t *testing.T) {
	all, where := cluster(t)
	var moving, here string
	for i := 0; moving == "" || here == ""; i++ {
		uid := fmt.Sprintf("u%d", i*10+1)
		switch kafka.Partition(uid, testPartitions) {
		case 0:
			here = uid
		case 3:
			moving = uid
		}
	}
	check := func(what string) {
		t.Helper()
		for i, p := range all {
			for _, r := range []reply{p.one(t, moving), p.many(t, here, moving)} {
				if r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") != "1" {
					t.Errorf("%s: process %d answers %d: %s", what, i, r.status, r.body)
				}
			}
			if r := p.many(t, here); r.status != http.StatusOK {
				t.Errorf("%s: process %d answers %d for a user that stays", what, i, r.status)
			}
		}
	}
	all[1].table.owns[3] = false
	check("the owner has lost it")
	all[0].table.asked.Store(0)
	where.url[3] = all[0].URL
	check("the next owner does not have it yet")
	if n := all[0].table.asked.Load(); n > 20 {
		t.Errorf("the next owner was asked %d times", n)
	}
	where.url[3] = "http://127.0.0.1:1"
	check("the owner is gone")
	delete(where.url, 3)
	check("there is no owner")
	where.url[3] = ""
	all[1].table.member = "the member at "
	if r := all[1].one(t, moving); r.status != http.StatusServiceUnavailable {
		t.Errorf("the owner itself, which restores and has told no URL: %d", r.status)
	}
	where.url[3] = all[1].URL
	all[1].table.owns[3] = true
	all[1].api.cfg.Group = "another"
	if r := all[0].one(t, moving); r.status != http.StatusServiceUnavailable {
		t.Errorf("an owner of another installation: %d", r.status)
	}
	fresh := start(t, Config{Token: testToken}, where, 0)
	fresh.api.partitions.Store(0)
	if r := fresh.one(t, here); r.status != http.StatusServiceUnavailable {
		t.Errorf("before the partitions are known: %d", r.status)
	}
}

// TestWrongSettings: what keeps an owner from being asked is said, and the log does not name the user.
func TestWrongSettings(t *testing.T) {
	other := start(t, Config{Token: "another-token-than-ours"}, &place{}, 0, 1, 2, 3)
	strange := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"uid":"else"}`) }))
	defer strange.Close()
	leading := httptest.NewServer(http.RedirectHandler("http://127.0.0.1:1/", http.StatusFound))
	defer leading.Close()
	everywhere := func(url string) *place {
		return &place{url: map[int32]string{0: url, 1: url, 2: url, 3: url}}
	}
	for _, tt := range []struct {
		name   string
		owners *place
		want   string
	}{
		{"another token", everywhere(other.URL), "OFFHOOK_QUERY_TOKEN"},
		{"another server", everywhere(strange.URL), "OFFHOOK_ADVERTISED_URL"},
		{"a redirect", everywhere(leading.URL), "OFFHOOK_ADVERTISED_URL"},
		{"no URL", everywhere(""), "OFFHOOK_ADVERTISED_URL"},
		{"an odd URL", everywhere("ftp://10.0.0.7"), "OFFHOOK_ADVERTISED_URL"},
		{"refused by the brokers", &place{err: errors.New("allow Describe")}, "allow Describe"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := start(t, Config{Token: testToken}, tt.owners)
			for _, r := range []reply{p.one(t, "secret-user-1"), p.many(t, "secret-user-1", "secret-user-2")} {
				if r.status != http.StatusBadGateway || !strings.Contains(string(r.body), tt.want) {
					t.Errorf("%d: %s", r.status, r.body)
				}
			}
			p.Close()
			if text := p.log.String(); strings.Contains(text, "secret-user") || strings.Contains(text, testToken) || strings.Contains(text, "127.0.0.1") {
				t.Errorf("the log says %s", text)
			}
		})
	}
}

// TestAdmission: a token lets in, and without one a loopback host.
func TestAdmission(t *testing.T) {
	secured := start(t, Config{Token: testToken}, &place{}, 0, 1, 2, 3)
	open := start(t, Config{}, &place{}, 0, 1, 2, 3)
	for _, tt := range []struct {
		process *process
		headers []string
		want    int
	}{
		{secured, nil, http.StatusUnauthorized},
		{secured, []string{"Authorization", testToken}, http.StatusUnauthorized},
		{secured, []string{"Authorization", "Basic " + testToken}, http.StatusUnauthorized},
		{secured, []string{"Authorization", "Bearer " + testToken + "0"}, http.StatusUnauthorized},
		{secured, []string{"Authorization", "bearer " + testToken}, http.StatusOK},
		{secured, []string{"Authorization", "Bearer " + testToken, "Host", "offhook.example"}, http.StatusOK},
		{open, nil, http.StatusOK},
		{open, []string{"Host", "localhost:8080"}, http.StatusOK},
		{open, []string{"Host", "[::1]"}, http.StatusOK},
		{open, []string{"Host", "rebound.example:8080"}, http.StatusForbidden},
		{open, []string{"Host", "10.0.0.1:8080"}, http.StatusForbidden},
	} {
		for _, r := range []reply{
			tt.process.ask(t, http.MethodGet, "/v1/users/u1", "", tt.headers...),
			tt.process.ask(t, http.MethodPost, "/v1/users/online", `{"uids":["u1"]}`, tt.headers...),
		} {
			if r.status != tt.want {
				t.Errorf("%v: %d, want %d", tt.headers, r.status, tt.want)
			}
		}
	}
}

// TestBadRequests: what cannot be asked is refused with what to do.
func TestBadRequests(t *testing.T) {
	p := start(t, Config{}, &place{}, 0, 1, 2, 3)
	long := strings.Repeat("x", 257)
	for _, tt := range []struct {
		method, path, body string
		want               int
	}{
		{http.MethodGet, "/v1/users/a%0ab", "", http.StatusBadRequest},
		{http.MethodGet, "/v1/users/a%ff", "", http.StatusBadRequest},
		{http.MethodGet, "/v1/users/" + long, "", http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", ``, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{}`, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{"uids":[]}`, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{"uids":"u1"}`, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{"uids":[1]}`, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{"uids":["u1"],"more":1}`, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{"uids":["u1"]} x`, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{"uids":["u1",""]}`, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{"uids":["` + long + `"]}`, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{"uids":["u1"` + strings.Repeat(`,"u1"`, 1000) + `]}`, http.StatusBadRequest},
		{http.MethodPost, "/v1/users/online", `{"uids":["` + strings.Repeat("x", schemas.MaxUsersQueryBytes) + `"]}`, http.StatusRequestEntityTooLarge},
	} {
		if r := p.ask(t, tt.method, tt.path, tt.body); r.status != tt.want {
			t.Errorf("%s %.60s %.60s: %d, want %d: %s", tt.method, tt.path, tt.body, r.status, tt.want, r.body)
		}
	}
	if n := p.table.asked.Load(); n != 0 {
		t.Errorf("the table was asked %d times", n)
	}
	resp, err := p.Client().Get(p.URL + "/v1/else")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("an unknown path: %d", resp.StatusCode)
	}
}

// TestTooMany: more than can be answered at once are told to come again.
func TestTooMany(t *testing.T) {
	p := start(t, Config{}, &place{}, 0, 1, 2, 3)
	p.api.cfg.Group = "g"
	for range atOnce {
		p.api.slots <- struct{}{}
	}
	if r := p.ask(t, http.MethodGet, "/v1/users/u1", "", forwarded, "g"); r.status != http.StatusOK {
		t.Errorf("%d for another process, with all slots taken by who waits for others", r.status)
	}
	if r := p.ask(t, http.MethodGet, "/v1/users/u1", ""); r.status != http.StatusServiceUnavailable {
		t.Errorf("%d with all slots taken", r.status)
	}
	<-p.api.slots
	if r := p.ask(t, http.MethodGet, "/v1/users/u1", ""); r.status != http.StatusOK {
		t.Errorf("%d with a slot", r.status)
	}
}
