package query

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/processor/txn"
)

// knownFor is how long the group's assignment is taken as it was told. One that is out of date costs a query an owner that says
// that it is none.
const knownFor = time.Second

// UserURL is where a user is asked for at a base URL.
func UserURL(base, uid string) string {
	return strings.TrimSuffix(base, "/") + "/v1/users/" + url.PathEscape(uid)
}

// Group finds owners in the assignment of presence's consumer group, and where they are in what they said of themselves when they
// joined it. It needs Describe on the group.
type Group struct {
	client       *kadm.Client
	group, inbox string

	mu     sync.Mutex // held while the group is asked: one asks, and the others take its answer
	asked  time.Time  // when owners was asked for
	owners map[int32]string
}

// NewGroup returns the owners by the consumer group of presence; topic is the inbox.
func NewGroup(cl *kgo.Client, group, topic string) *Group {
	return &Group{client: kadm.NewClient(cl), group: group, inbox: topic}
}

// URL is for [Owners].
func (g *Group) URL(ctx context.Context, partition int32, asked time.Time) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if asked.Sub(g.asked) > knownFor {
		now := time.Now()
		owners, err := g.describe(ctx)
		if err != nil {
			return "", err
		}
		if owners != nil { // while members join, nothing is told: who owned what still does, or says that it does not
			g.owners = owners
		}
		g.asked = now
	}
	base, ok := g.owners[partition]
	switch {
	case !ok:
		return "", errMoving
	case base == "":
		return "", errors.New("the owner's URL is not known: set OFFHOOK_ADVERTISED_URL of every processor")
	}
	if u, err := url.Parse(base); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", errors.New("the owner's OFFHOOK_ADVERTISED_URL is no URL")
	}
	return base, nil
}

// describe asks the group who owns what; nil: it is rebalancing.
func (g *Group) describe(ctx context.Context) (map[int32]string, error) {
	groups, err := g.client.DescribeGroups(ctx, g.group)
	if err == nil {
		err = groups[g.group].Err
	}
	if ctx.Err() != nil {
		return nil, errMoving
	}
	if err != nil {
		return nil, fmt.Errorf("describe the group %s: %w", g.group, err)
	}
	described := groups[g.group]
	if described.State != "Stable" {
		return nil, nil
	}
	owners := make(map[int32]string)
	for _, m := range described.Members {
		var base string
		if joined, ok := m.Join.AsConsumer(); ok {
			base = strings.TrimSuffix(txn.AdvertisedURL(joined.UserData), "/")
		}
		assigned, ok := m.Assigned.AsConsumer()
		if !ok {
			continue
		}
		for _, t := range assigned.Topics {
			if t.Topic != g.inbox {
				continue
			}
			for _, p := range t.Partitions {
				owners[p] = base
			}
		}
	}
	return owners, nil
}
