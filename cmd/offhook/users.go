package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/offhook/offhook/processor/query"
	"github.com/offhook/offhook/schemas"
)

type usersCommand struct {
	UIDs     []string      `arg:"" name:"uid" help:"The users."`
	URL      string        `default:"http://127.0.0.1:8080" help:"Where any process of offhook has its OFFHOOK_OPS_ADDR. The token is OFFHOOK_QUERY_TOKEN, or in the file of OFFHOOK_QUERY_TOKEN_FILE."`
	JSON     bool          `name:"json" help:"Print a JSON object a user, one a line."`
	Patience time.Duration `default:"15s" help:"How long to try again while users move between processes."`
}

// Validate is for kong.
func (u usersCommand) Validate() error {
	if u.Patience < 0 {
		return errors.New("--patience must not be negative")
	}
	var base baseURL
	if err := base.UnmarshalText([]byte(u.URL)); err != nil {
		return fmt.Errorf("--url %w", err)
	}
	for _, uid := range u.UIDs {
		if !schemas.ValidUID(uid) {
			return fmt.Errorf("%s is no uid: a uid has 1 to 256 bytes of UTF-8 without control characters", quote(uid))
		}
		if uid == "." || uid == ".." {
			return fmt.Errorf("%q is no segment of a URL's path: ask for it by POST /v1/users/online", uid)
		}
	}
	return nil
}

// Run is for kong.
func (u usersCommand) Run(c *call) error {
	s, _, err := load(c.environ, partAsker)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	table := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	if !u.JSON {
		line(table, "UID\tONLINE\tCONNECTIONS\tNODE\tCONN\tFLAG\tSINCE\tBACKGROUND")
	}
	for _, uid := range u.UIDs {
		user, err := u.ask(c.ctx, client, string(s.QueryToken), uid)
		if err != nil {
			return errors.Join(table.Flush(), err)
		}
		if u.JSON {
			line(c.stdout, "%s", schemas.AppendQueryJSON(nil, &user))
			continue
		}
		printUser(table, &user)
	}
	return table.Flush()
}

func printUser(w io.Writer, u *schemas.User) {
	start := fmt.Sprintf("%s\t%t\t%d", u.UID, u.Online, u.Total)
	if len(u.Connections) == 0 {
		line(w, "%s\t\t\t\t\t", start)
	}
	for _, c := range u.Connections {
		line(w, "%s\t%s\t%s\t%d\t%s\t%t", start, shownID(c.NodeID), shownID(c.ConnID), c.DeviceFlag, time.UnixMilli(c.Since).UTC().Format(time.RFC3339), c.Background)
		start = "\t\t"
	}
	if u.ConnectionsCut {
		line(w, "\t\t…\t\t\t\t\t")
	}
}

// shownID keeps what a gateway calls a connection from being a terminal's commands.
func shownID(id schemas.ID) string {
	if strings.ContainsFunc(string(id), unicode.IsControl) {
		return strconv.Quote(string(id))
	}
	return string(id)
}

// ask asks for a user, again while it moves.
func (u usersCommand) ask(ctx context.Context, client *http.Client, token, uid string) (schemas.User, error) {
	deadline := time.Now().Add(u.Patience)
	for {
		user, retry, err := askOnce(ctx, client, query.UserURL(u.URL, uid), token)
		if err == nil || retry <= 0 || time.Now().Add(retry).After(deadline) {
			return user, err
		}
		select {
		case <-ctx.Done():
			return user, err
		case <-time.After(retry):
		}
	}
}

// askOnce asks once; a retry that is not 0 says when to ask again.
func askOnce(ctx context.Context, client *http.Client, address, token string) (user schemas.User, retry time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return user, 0, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			err = failed.Err // without the URL
		}
		return user, 0, fmt.Errorf("no answer from --url: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return user, 0, fmt.Errorf("the answer breaks off: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		user, err = schemas.DecodeAnswer[schemas.User](body)
		return user, 0, err
	}
	problem, decodeErr := schemas.DecodeAnswer[schemas.Problem](body)
	if decodeErr != nil || problem.Detail == "" {
		problem.Detail = "is --url the OFFHOOK_OPS_ADDR of offhook, and is OFFHOOK_QUERY_TOKEN set there?"
	}
	if seconds, e := strconv.Atoi(resp.Header.Get("Retry-After")); e == nil && resp.StatusCode == http.StatusServiceUnavailable {
		retry = max(1, time.Duration(seconds)) * time.Second
	}
	return user, retry, fmt.Errorf("%s: %s", strings.ToLower(http.StatusText(resp.StatusCode)), problem.Detail)
}
