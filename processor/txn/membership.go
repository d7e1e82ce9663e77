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

const (
	// verifiedFor is how long the coordinator's word that this is a member is taken, in place of asking again.
	verifiedFor = 2 * time.Second
	// verifyTimeout bounds the asking.
	verifyTimeout = 2 * time.Second
	// leaseMargin is what is kept of the session's timeout for clocks that run at different rates.
	leaseMargin = time.Second
)

// Membership tells whether the process that runs a loop holds a partition, for those beside the loop who read its state. The zero
// value holds nothing until a loop runs with it.
//
// A process that was stopped, or cut off, does not know that it has lost its partitions. So the coordinator is asked, by a
// heartbeat of the member: who is a member when it arrives cannot be removed as silent for the session's timeout from when it was
// sent, by a clock that runs on while the process is stopped. (What ends a membership sooner is the member itself, which says so
// here first, and another that takes over its instance id, which counts from the next asking.)
type Membership struct {
	mu      sync.Mutex
	session *session
	asking  chan struct{}

	clock func() time.Time // nil: time.Now. Tests let it run on.
}

func (m *Membership) now() time.Time {
	if m.clock == nil {
		return time.Now()
	}
	return m.clock()
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

// Held calls read, and returns nil if the process held the partition, with its state, from before until after the call: what was
// read is the owner's. Otherwise the error is ErrNotHeld, or wraps it; read may have been called then.
func (m *Membership) Held(ctx context.Context, p Partition, read func()) error {
	m.mu.Lock()
	s := m.session
	m.mu.Unlock()
	if s == nil {
		return ErrNotHeld
	}
	o := s.view.serves(p)
	if o == nil {
		return ErrNotHeld
	}
	sent, err := m.verify(ctx, s)
	if err != nil {
		return err
	}
	read()
	if s.view.serves(p) != o || m.now().Sub(sent) > groupTimeout-leaseMargin {
		return ErrNotHeld
	}
	return nil
}

// verify returns when the newest heartbeat that the coordinator has taken was sent: a moment ago.
func (m *Membership) verify(ctx context.Context, s *session) (sent time.Time, err error) {
	select {
	case m.asking <- struct{}{}: // one asks, and the others take its answer
		defer func() { <-m.asking }()
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("%w: %w", ErrNotHeld, ctx.Err())
	}
	if m.now().Sub(s.verified) < verifiedFor {
		return s.verified, nil
	}
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group = s.cfg.Group()
	req.MemberID, req.Generation = s.cl.GroupMetadata()
	if s.cfg.InstanceID != "" {
		req.InstanceID = &s.cfg.InstanceID
	}
	sent = m.now()
	resp, err := req.RequestWith(ctx, s.cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil && !errors.Is(err, kerr.RebalanceInProgress) {
		return time.Time{}, fmt.Errorf("%w: ask the coordinator: %w", ErrNotHeld, err)
	}
	s.verified = sent
	return sent, nil
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
