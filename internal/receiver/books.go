package receiver

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"strconv"
	"strings"

	"github.com/offhook/offhook/internal/truth"
	"github.com/offhook/offhook/schemas"
)

// books is what has been taken, and what was wrong with it. It does no I/O; its user guards it.
type books struct {
	seed      maphash.Seed
	byChannel bool // msg.notify is in order within each channel alone

	bodies     map[uint64]uint64   // of a webhook-id: event and body
	notified   map[uint64]struct{} // messages
	pushed     map[uint64]struct{} // message and recipient
	pushes     map[uint64]uint32   // of a message: how many recipients it was pushed to
	lastNotify map[uint64]uint64   // of a sender, and with byChannel a channel: the latest n
	lastPush   map[uint64]uint64   // of sender and recipient: the latest n
	users      map[uint64]*userLog

	Summary // but for Lost and Unexpected, and what only a truth finds of the others
}

// userLog is what is known of one user's connections.
type userLog struct {
	total    int
	devices  []device // of the flags known
	statuses []uint64 // the items taken, in order
	breaks   int64    // items that did not follow from the one before
}

type device struct {
	flag  uint8
	count int
}

func newBooks() *books {
	return &books{
		seed:       maphash.MakeSeed(),
		bodies:     make(map[uint64]uint64),
		notified:   make(map[uint64]struct{}),
		pushed:     make(map[uint64]struct{}),
		pushes:     make(map[uint64]uint32),
		lastNotify: make(map[uint64]uint64),
		lastPush:   make(map[uint64]uint64),
		users:      make(map[uint64]*userLog),
	}
}

// request is a request in hashes, made without the books' guard.
type request struct {
	event    schemas.Event
	id, body uint64
	hasID    bool
	items    int
	statuses []statusEntry // none where nothing is checked
	messages []messageEntry
}

type statusEntry struct {
	user, item    uint64
	flag          uint8
	online        bool
	device, total int
}

type messageEntry struct {
	key        uint64
	sender     uint64   // what n rises for, run and uid
	ordered    uint64   // what n rises for in msg.notify
	n          uint64   // 0: the message has none
	recipients []uint64 // uids
}

// take enters a request.
func (b *books) take(r *request) {
	b.Requests++
	if r.hasID {
		body, known := b.bodies[r.id]
		if known {
			b.RepeatedIDs++
			if body != r.body {
				b.ChangedBodies++
			}
			return
		}
		b.bodies[r.id] = r.body
	}
	switch r.event {
	case schemas.EventOnlineStatus:
		b.Events.OnlineStatus += int64(r.items)
		for i := range r.statuses {
			b.status(&r.statuses[i])
		}
	case schemas.EventNotify:
		b.Events.Notify += int64(r.items)
		for i := range r.messages {
			b.notify(&r.messages[i])
		}
	case schemas.EventOffline:
		b.Events.Offline += int64(r.items)
		for i := range r.messages {
			b.offline(&r.messages[i])
		}
	}
}

func (b *books) notify(m *messageEntry) {
	if _, known := b.notified[m.key]; known {
		b.DuplicatesAfterDedupe++
		return
	}
	b.notified[m.key] = struct{}{}
	b.rises(b.lastNotify, m.ordered, m.n)
}

func (b *books) offline(m *messageEntry) {
	for _, uid := range m.recipients {
		pair := join(m.key, uid)
		if _, known := b.pushed[pair]; known {
			b.DuplicatesAfterDedupe++
			continue
		}
		b.pushed[pair] = struct{}{}
		b.pushes[m.key]++
		b.rises(b.lastPush, join(m.sender, uid), m.n)
	}
}

func (b *books) rises(last map[uint64]uint64, key, n uint64) {
	if n == 0 {
		return
	}
	if n < last[key] {
		b.OutOfOrder++
	}
	last[key] = n
}

func (b *books) status(s *statusEntry) {
	u := b.users[s.user]
	if u == nil {
		u = new(userLog)
		b.users[s.user] = u
	}
	if n := len(u.statuses); n > 0 && u.statuses[n-1] == s.item {
		b.DuplicatesAfterDedupe++
		return
	}
	if !u.follows(s) {
		u.breaks++
		b.OutOfOrder++
	}
	u.statuses = append(u.statuses, s.item)
}

// follows enters an item's counts and reports whether they follow from those before.
func (u *userLog) follows(s *statusEntry) bool {
	by := -1
	if s.online {
		by = 1
	}
	ok := s.device >= max(0, by) && s.total >= s.device
	if len(u.statuses) > 0 && s.total != u.total+by {
		ok = false
	}
	known := 0
	at := -1
	for i, d := range u.devices {
		known += d.count
		if d.flag == s.flag {
			at = i
		}
	}
	switch {
	case at >= 0:
		if s.device != u.devices[at].count+by {
			ok = false
		}
		u.devices[at].count = s.device
	default:
		// A flag not seen yet has none where those seen make up the total.
		if len(u.statuses) > 0 && known == u.total && s.device != by {
			ok = false
		}
		u.devices = append(u.devices, device{s.flag, s.device})
	}
	u.total = s.total
	if !ok {
		// Go on from here, and say it once: of other flags nothing is known any more.
		u.devices = append(u.devices[:0], device{s.flag, s.device})
	}
	return ok
}

func (b *books) hash(s string) uint64 { return maphash.String(b.seed, s) }

func (b *books) hashBody(event schemas.Event, body []byte) uint64 {
	return join(b.hash(string(event)), maphash.Bytes(b.seed, body))
}

// messageKey names a message: by sender and client_msg_no, or where it has none by message_idstr.
func (b *books) messageKey(fromUID, clientMsgNo, idStr string) uint64 {
	if clientMsgNo == "" {
		return join(1, b.hash(idStr))
	}
	return join(b.hash(fromUID), b.hash(clientMsgNo))
}

func (b *books) message(m *schemas.MessageItem) messageEntry {
	e := messageEntry{key: b.messageKey(m.FromUID, m.ClientMsgNo, m.MessageIDStr)}
	if prefix, n, ok := numbered(m.ClientMsgNo, m.FromUID); ok {
		e.sender, e.n = b.hash(prefix), n
		e.ordered = e.sender
		if b.byChannel {
			e.ordered = join(e.sender, b.hash(m.ChannelID))
		}
	}
	if len(m.ToUIDs) > 0 {
		e.recipients = make([]uint64, len(m.ToUIDs))
		for i, uid := range m.ToUIDs {
			e.recipients[i] = b.hash(uid)
		}
	}
	return e
}

// numbered splits <run>-<from_uid>-<n> into all before n, and n.
func numbered(clientMsgNo, fromUID string) (prefix string, n uint64, ok bool) {
	dash := strings.LastIndexByte(clientMsgNo, '-')
	if dash < 0 || fromUID == "" {
		return "", 0, false
	}
	run, ok := strings.CutSuffix(clientMsgNo[:dash], fromUID)
	if !ok || !strings.HasSuffix(run, "-") {
		return "", 0, false
	}
	n, err := strconv.ParseUint(clientMsgNo[dash+1:], 10, 64)
	return clientMsgNo[:dash], n, err == nil && n > 0
}

func (b *books) statusEntry(s *schemas.OnlineStatus) statusEntry {
	return statusEntry{
		user: b.hash(s.UID), flag: s.DeviceFlag, online: s.Online, device: s.DeviceCount, total: s.TotalCount,
		item: b.item(s.DeviceFlag, s.Online, s.ConnID, s.DeviceCount, s.TotalCount),
	}
}

func (b *books) expected(s *truth.Status) uint64 {
	return b.item(s.DeviceFlag, s.Online, s.Conn, s.Device, s.Total)
}

func (b *books) item(flag uint8, online bool, conn uint64, device, total int) uint64 {
	var raw [26]byte
	raw[0] = flag
	if online {
		raw[1] = 1
	}
	binary.LittleEndian.PutUint64(raw[2:], conn)
	binary.LittleEndian.PutUint64(raw[10:], uint64(device))
	binary.LittleEndian.PutUint64(raw[18:], uint64(total))
	return maphash.Bytes(b.seed, raw[:])
}

// join makes one hash of two, in their order.
func join(a, b uint64) uint64 {
	x := a*0x9e3779b97f4a7c15 + bits.RotateLeft64(b, 32)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
