package txn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ErrNotHeld says that this process does not hold a partition, or cannot be sure of it.
var ErrNotHeld = errors.New("the partition is not held")

// verifyTimeout bounds the asking of the coordinator.
const verifyTimeout = 2 * time.Second

// Membership tells whether the process that runs a loop holds a partition, for those beside the loop who read its state. The zero
// value holds nothing until a loop runs with it.
//
// A process that was stopped, or cut off, or whose instance id another has taken over, does not know that it has lost its
// partitions. So the coordinator is asked, by a heartbeat that is sent after the question was put: if it takes that as one of the member
// that the partition was assigned to, nobody else can have been given the partition before that moment, and what is read then is as
// new as the question.
type Membership struct {
	mu      sync.Mutex
	session *session
	asking  chan struct{}
}

func (m *Membership) begin(s *session) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.session = s
	if m.asking == nil {
		m.asking = make(chan struct{}, 1)
	}
}

func (m *Membership) current() *session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session
}

// Member is the member id in the group; empty: there is none.
func (m *Membership) Member() string {
	s := m.current()
	if s == nil {
		return ""
	}
	member, _ := s.cl.GroupMetadata()
	return member
}

// Held calls read, and returns nil if the process held the partition, with its state, at a moment after asked and until after the
// call: what was read is the owner's, and as new as that. Otherwise the error is ErrNotHeld, or wraps it; read may have been called
// then.
func (m *Membership) Held(ctx context.Context, p Partition, asked time.Time, read func()) error {
	s := m.current()
	if s == nil {
		return ErrNotHeld
	}
	o := s.view.serves(p)
	if o == nil {
		return ErrNotHeld
	}
	if err := m.verify(ctx, s, o.member, asked); err != nil {
		return err
	}
	read()
	if s.view.serves(p) != o {
		return ErrNotHeld
	}
	return nil
}

// verified is the newest heartbeat that the coordinator has taken.
type verified struct {
	sent   time.Time
	member string
}

// verify returns nil if the coordinator has taken a heartbeat of the member that was sent after asked.
func (m *Membership) verify(ctx context.Context, s *session, member string, asked time.Time) error {
	select {
	case m.asking <- struct{}{}: // one asks, and those who waited take its answer
		defer func() { <-m.asking }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrNotHeld, ctx.Err())
	}
	if s.verified.member == member && !s.verified.sent.Before(asked) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group = s.cfg.Group()
	req.MemberID, req.Generation = s.cl.GroupMetadata()
	if s.cfg.InstanceID != "" {
		req.InstanceID = &s.cfg.InstanceID
	}
	if req.MemberID != member {
		return ErrNotHeld // the group has forgotten it, and kgo is about to say so
	}
	sent := time.Now()
	resp, err := req.RequestWith(ctx, s.cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil && !errors.Is(err, kerr.RebalanceInProgress) {
		return fmt.Errorf("%w: ask the coordinator: %w", ErrNotHeld, err)
	}
	s.verified = verified{sent, member}
	return nil
}

// serves returns the ownership of a partition that is owned and whose state is there; nil: none.
func (v *view) serves(p Partition) *ownership {
	v.mu.Lock()
	defer v.mu.Unlock()
	if o := v.owned[p]; o != nil && o.serving && !v.doubt {
		return o
	}
	return nil
}

// urlMark begins a member's URL in the user data of its subscription, behind what the cooperative-sticky balancer has there: that
// reads its own part, from the beginning, and nothing behind it.
var urlMark = []byte("\x00offhook-url\x00")

// advertise adds a URL to the subscription of a member.
func advertise(subscription []byte, url string) []byte {
	var m kmsg.ConsumerMemberMetadata
	if url == "" || m.ReadFrom(subscription) != nil {
		return subscription
	}
	m.UserData = append(append(bytes.Clone(m.UserData), urlMark...), url...)
	return m.AppendTo(nil)
}

// AdvertisedURL is the URL in the user data of a member's subscription; empty: there is none.
func AdvertisedURL(userData []byte) string {
	_, url, _ := bytes.Cut(userData, urlMark)
	return string(url)
}
