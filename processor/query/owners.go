package query

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
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

	asking chan struct{} // one asks, and the others take its answer
	asked  time.Time     // when owners was asked for
	owners map[int32]Owner
	err    error // of that asking
}

// NewGroup returns the owners by the consumer group of presence; topic is the inbox.
func NewGroup(cl *kgo.Client, group, topic string) *Group {
	return &Group{client: kadm.NewClient(cl), group: group, inbox: topic, asking: make(chan struct{}, 1)}
}

// Owner is for [Owners].
func (g *Group) Owner(ctx context.Context, partition int32, asked time.Time) (Owner, error) {
	select {
	case g.asking <- struct{}{}:
		defer func() { <-g.asking }()
	case <-ctx.Done():
		return Owner{}, errMoving
	}
	if asked.Sub(g.asked) > knownFor {
		now := time.Now()
		owners, err := g.describe(ctx)
		if ctx.Err() != nil {
			return Owner{}, errMoving // who asks has gone: the next one asks
		}
		if owners != nil { // while members join, nothing is told: who owned what still does, or says that it does not
			g.owners = owners
		}
		g.asked, g.err = now, err
	}
	if g.err != nil {
		return Owner{}, g.err
	}
	owner, ok := g.owners[partition]
	if !ok {
		return Owner{}, errMoving
	}
	return owner, nil
}

// describe asks the group who owns what; nil: it is rebalancing.
func (g *Group) describe(ctx context.Context) (map[int32]Owner, error) {
	groups, err := g.client.DescribeGroups(ctx, g.group)
	if err == nil {
		err = groups[g.group].Err
	}
	switch {
	case errors.Is(err, kerr.GroupIDNotFound):
		return map[int32]Owner{}, nil // nobody has joined yet
	case errors.Is(err, kerr.GroupAuthorizationFailed):
		return nil, fmt.Errorf("the brokers refuse to describe the group; allow Describe on the group %s: %w", g.group, err)
	case err != nil:
		return nil, errMoving // the brokers are away
	}
	described := groups[g.group]
	if described.State != "Stable" {
		return nil, nil
	}
	owners := make(map[int32]Owner)
	for _, m := range described.Members {
		owner := Owner{Member: m.MemberID}
		if joined, ok := m.Join.AsConsumer(); ok {
			owner.URL = strings.TrimSuffix(txn.AdvertisedURL(joined.UserData), "/")
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
				owners[p] = owner
			}
		}
	}
	return owners, nil
}
