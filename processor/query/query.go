// Package query answers over HTTP who is online: GET /v1/users/{uid} and POST /v1/users/online, on any process.
//
//	          ┌─ the uid's partition is here ─▶ the table
//	request ──┤
//	          └─ else: the group's assignment ─▶ the owner's OFFHOOK_ADVERTISED_URL, asked once, which asks nobody else
//
// An answer comes from the owner's table and is committed; where no process is sure to be the owner, because the partition is
// moving or being restored, it is 503 with Retry-After. Nothing is cached but where owners are: an owner that is none any more says
// so itself.
//
// The handler has no goroutine of its own but those of a request that asks several owners, which end with it.
package query

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/schemas"
)

const (
	// patience bounds one query, with all that it asks of others.
	patience = 5 * time.Second
	// atOnce bounds the queries that are answered beside each other, and as many of other processes: each may hold
	// [schemas.MaxUsersQueryBytes] and its answer.
	atOnce = 128
	// retryAfter is what a client is told to wait where an answer cannot be given yet.
	retryAfter = time.Second
)

// forwarded marks what a process asks of an owner, which asks nobody else then. Its value is the group that both are of: an address
// may have become another installation's.
const forwarded = "Offhook-Forwarded"

// errMoving says that no process is sure to own a partition at the moment.
var errMoving = errors.New("the users' partition is moving between processes; try again")

// Config is the query API's part of the settings.
type Config struct {
	// Token is OFFHOOK_QUERY_TOKEN. Empty: requests need none, and must name a loopback host.
	Token string
	// Group is the consumer group of presence, "<prefix>.presence".
	Group string
}

// Local is what this process can answer by itself: of uids of one partition, in their order, as new as asked, or an error where it
// is not sure to own that. Member is its member id in the group, empty where it has none.
type Local interface {
	Users(ctx context.Context, asked time.Time, partition int32, uids []string, connections bool) ([]schemas.User, error)
	Member() string
}

// Owner is who owns a partition: its member id in the group, and its base URL, empty where it has told none.
type Owner struct{ Member, URL string }

// Owners says who owns a partition. The error is errMoving where nobody does.
type Owners interface {
	Owner(ctx context.Context, partition int32, asked time.Time) (Owner, error)
}

// Deps are what the API works with. Local is nil in a process without presence; Registerer may be nil.
type Deps struct {
	Local      Local
	Owners     Owners
	Log        *slog.Logger
	Registerer prometheus.Registerer
}

// API is the handler of the query API.
type API struct {
	cfg        Config
	deps       Deps
	mux        *http.ServeMux
	client     *http.Client
	metrics    metrics
	slots      chan struct{}
	forwarded  chan struct{} // slots of what others ask: they hold theirs meanwhile
	partitions atomic.Int32  // of the inbox; 0: not known yet
}

// New returns the handler. It answers 503 until Begin.
func New(cfg Config, deps Deps) (*API, error) {
	a := &API{cfg: cfg, deps: deps, mux: http.NewServeMux(), slots: make(chan struct{}, atOnce), forwarded: make(chan struct{}, atOnce)}
	var err error
	if a.metrics, err = newMetrics(deps.Registerer); err != nil {
		return nil, fmt.Errorf("register the metrics of the query API: %w", err)
	}
	a.client = &http.Client{
		Timeout: patience,
		// An owner is asked where the group says that it is, and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
			TLSHandshakeTimeout: 2 * time.Second, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	a.mux.HandleFunc("GET /v1/users/{uid}", a.one)
	a.mux.HandleFunc("POST /v1/users/online", a.many)
	a.mux.HandleFunc("/v1/", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusNotFound, "there is GET /v1/users/{uid} and POST /v1/users/online")
	})
	return a, nil
}

// Begin says how many partitions the inbox has.
func (a *API) Begin(partitions int32) { a.partitions.Store(partitions) }

// Close lets go of idle connections to owners.
func (a *API) Close() { a.client.CloseIdleConnections() }

// ServeHTTP is for net/http.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if !a.admitted(r) {
		a.metrics.count(outcomeRefused)
		if a.cfg.Token != "" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="offhook"`)
			refuse(w, http.StatusUnauthorized, "send Authorization: Bearer with the token of OFFHOOK_QUERY_TOKEN")
			return
		}
		refuse(w, http.StatusForbidden, "without OFFHOOK_QUERY_TOKEN the host must be a loopback address or localhost")
		return
	}
	slots := a.slots
	if group := r.Header.Get(forwarded); group == a.cfg.Group {
		slots = a.forwarded
	} else if group != "" {
		a.fail(w, errMoving)
		return
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	default:
		a.fail(w, fmt.Errorf("%w: %d queries are being answered", errMoving, atOnce))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	a.mux.ServeHTTP(w, r.WithContext(ctx))
}

// admitted checks the token, or without one that a browser was not led here by another site's name for this address.
func (a *API) admitted(r *http.Request) bool {
	if a.cfg.Token == "" {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = strings.Trim(r.Host, "[]")
		}
		ip, err := netip.ParseAddr(host)
		return host == "localhost" || err == nil && ip.IsLoopback()
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got, want := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(a.cfg.Token))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], want[:]) == 1
}

func (a *API) one(w http.ResponseWriter, r *http.Request) {
	uid := r.PathValue("uid")
	if !schemas.ValidUID(uid) {
		a.metrics.count(outcomeRefused)
		refuse(w, http.StatusBadRequest, "a uid is a string of 1 to 256 bytes of UTF-8 without control characters, percent-encoded")
		return
	}
	users, err := a.lookup(r, []string{uid}, true)
	if err != nil {
		a.fail(w, err)
		return
	}
	a.metrics.count(outcomeAnswered)
	answer(w, http.StatusOK, "application/json", schemas.AppendQueryJSON(nil, &users[0]))
}

func (a *API) many(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience)) // a server that has none is bounded by its own
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, schemas.MaxUsersQueryBytes))
	if err != nil {
		a.metrics.count(outcomeRefused)
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body may have %d bytes", schemas.MaxUsersQueryBytes))
			return
		}
		refuse(w, http.StatusBadRequest, "the body cannot be read")
		return
	}
	q, err := schemas.DecodeUsersQuery(body)
	if err != nil {
		a.metrics.count(outcomeRefused)
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	users, err := a.lookup(r, q.UIDs, false)
	if err != nil {
		a.fail(w, err)
		return
	}
	a.metrics.count(outcomeAnswered)
	answer(w, http.StatusOK, "application/json", schemas.AppendQueryJSON(nil, &schemas.Users{Users: users}))
}

// lookup answers for uids of any partitions, in their order.
func (a *API) lookup(r *http.Request, uids []string, connections bool) ([]schemas.User, error) {
	partitions := a.partitions.Load()
	if partitions == 0 {
		return nil, errMoving
	}
	began := time.Now()
	defer func() { a.metrics.duration.Observe(time.Since(began).Seconds()) }()
	places := make(map[int32][]int) // in uids, by partition
	for i, uid := range uids {
		p := kafka.Partition(uid, partitions)
		places[p] = append(places[p], i)
	}
	users := make([]schemas.User, len(uids))
	elsewhere := make(map[string][]int) // in uids, by the owner's URL
	for p, at := range places {
		asked := make([]string, len(at))
		for i, place := range at {
			asked[i] = uids[place]
		}
		if a.deps.Local != nil {
			if got, err := a.deps.Local.Users(r.Context(), began, p, asked, connections); err == nil {
				for i, place := range at {
					users[place] = got[i]
				}
				continue
			}
		}
		if r.Header.Get(forwarded) != "" || r.Context().Err() != nil {
			return nil, errMoving
		}
		owner, err := a.deps.Owners.Owner(r.Context(), p, began)
		switch {
		case err != nil:
			return nil, err
		case a.deps.Local != nil && owner.Member == a.deps.Local.Member():
			return nil, errMoving // it would be asked again in vain
		case owner.URL == "":
			return nil, errors.New("the owner's URL is not known: set OFFHOOK_ADVERTISED_URL of every processor")
		}
		if u, err := url.Parse(owner.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, errors.New("the owner's OFFHOOK_ADVERTISED_URL is no URL")
		}
		elsewhere[owner.URL] = append(elsewhere[owner.URL], at...)
	}
	errs := make(chan error, len(elsewhere))
	var asking sync.WaitGroup
	for base, at := range elsewhere {
		asking.Go(func() { errs <- a.ask(r, base, uids, at, connections, users) })
	}
	asking.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return users, errors.Join(all...)
}

// maxAnswer bounds what is read of an owner's answer: [schemas.MaxUsersQuery] users, with as many devices as there are flags.
const maxAnswer = 16 << 20

// ask asks an owner for the uids at some places, and puts its answers there in users.
func (a *API) ask(r *http.Request, base string, uids []string, at []int, connections bool, users []schemas.User) error {
	var req *http.Request
	var err error
	if connections {
		req, err = http.NewRequestWithContext(r.Context(), http.MethodGet, UserURL(base, uids[at[0]]), http.NoBody)
	} else {
		q := schemas.UsersQuery{UIDs: make([]string, len(at))}
		for i, place := range at {
			q.UIDs[i] = uids[place]
		}
		req, err = http.NewRequestWithContext(r.Context(), http.MethodPost, base+"/v1/users/online", strings.NewReader(string(schemas.AppendQueryJSON(nil, &q))))
	}
	if err != nil {
		return errors.New("the owner's OFFHOOK_ADVERTISED_URL is no URL")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(forwarded, a.cfg.Group)
	if a.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+a.cfg.Token)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		// Most likely it has gone, and the group does not know yet.
		a.deps.Log.Debug("the owner of a partition does not answer", "cause", cause(err))
		return errMoving
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusServiceUnavailable:
		return errMoving
	default:
		return fmt.Errorf("the owner answers %d: all processes need one OFFHOOK_QUERY_TOKEN, and OFFHOOK_ADVERTISED_URL must lead to the owner's OFFHOOK_OPS_ADDR", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return errMoving
	}
	var got []schemas.User
	if connections {
		user, e := schemas.DecodeAnswer[schemas.User](body)
		got, err = []schemas.User{user}, e
	} else {
		answer, e := schemas.DecodeAnswer[schemas.Users](body)
		got, err = answer.Users, e
	}
	if err != nil || len(got) != len(at) {
		return errors.New("the owner's answer cannot be used; is its OFFHOOK_ADVERTISED_URL another server's?")
	}
	for i, place := range at {
		if got[i].UID != uids[place] {
			return errors.New("the owner's answer is of other users; is its OFFHOOK_ADVERTISED_URL another server's?")
		}
		users[place] = got[i]
	}
	return nil
}

// cause is why a request failed, in words of ours: the error holds the URL, with a uid and a host.
func cause(err error) string {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return "timeout"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "its host is not known"
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "connection refused"
	}
	return "the connection fails"
}

// fail answers a query that could not be.
func (a *API) fail(w http.ResponseWriter, err error) {
	if errors.Is(err, errMoving) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		a.metrics.count(outcomeMoving)
		w.Header().Set("Retry-After", strconv.Itoa(int(retryAfter.Seconds())))
		refuse(w, http.StatusServiceUnavailable, errMoving.Error())
		return
	}
	a.metrics.count(outcomeFailed)
	a.deps.Log.Warn("a query cannot be answered", "error", err)
	refuse(w, http.StatusBadGateway, err.Error())
}

func refuse(w http.ResponseWriter, status int, detail string) {
	answer(w, status, "application/problem+json", schemas.AppendQueryJSON(nil, &schemas.Problem{
		Title: http.StatusText(status), Status: status, Detail: detail,
	}))
}

func answer(w http.ResponseWriter, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(body) // who asked has gone
}
