package truth

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
)

// Truth is a truth in memory: a message costs it 16 bytes, a status 32. Its zero value is empty and ready for use as a
// [Recorder]. It is not safe for use by several goroutines while lines are recorded.
type Truth struct {
	run      string
	settled  bool
	ended    bool
	users    []user
	userOf   map[string]uint32 // index in users
	groups   []group
	groupOf  map[string]uint32 // index in groups
	messages []message
	items    int64
}

type user struct {
	uid      string
	presence Presence
	doubt    bool
	statuses []status
}

type status struct {
	conn          uint64
	device, total int32
	flag          uint8
	online        bool
}

type group struct {
	id      string
	members []uint32
}

type message struct {
	from, n uint32
	channel uint32 // index in users where person, else in groups
	person  bool
	push    bool
	doubt   bool
}

// Record adds a line.
func (t *Truth) Record(line Line) error {
	if t.ended {
		return errors.New("a line stands after the end")
	}
	if (line.Kind == KindRun) != (t.userOf == nil) {
		return errors.New("the run's line must come first, and once")
	}
	switch line.Kind {
	case KindRun:
		t.run, t.settled = line.Run, line.Settled
		t.userOf, t.groupOf = make(map[string]uint32), make(map[string]uint32)
		return nil
	case KindUser:
		return t.addUser(line)
	case KindGroup:
		return t.addGroup(line)
	case KindMessage:
		return t.addMessage(line)
	case KindStatus:
		return t.addStatus(line)
	case KindDoubt:
		u, err := t.user(line.UID)
		if err != nil {
			return err
		}
		t.users[u].doubt = true
		return nil
	case KindEnd:
		if line.Messages != int64(len(t.messages)) || line.Items != t.items {
			return fmt.Errorf("the end counts %d messages and %d items, before it are %d and %d", line.Messages, line.Items, len(t.messages), t.items)
		}
		t.ended = true
		return nil
	default:
		return fmt.Errorf("kind %q is unknown", line.Kind)
	}
}

func (t *Truth) addUser(line Line) error {
	switch line.Presence {
	case Sleeper, Resident, Churner:
	default:
		return fmt.Errorf("presence %q is unknown", line.Presence)
	}
	if _, ok := t.userOf[line.UID]; ok || line.UID == "" {
		return errors.New("a user has no uid or one that another has")
	}
	t.userOf[line.UID] = uint32(len(t.users))
	t.users = append(t.users, user{uid: line.UID, presence: line.Presence})
	return nil
}

func (t *Truth) addGroup(line Line) error {
	if _, ok := t.groupOf[line.ChannelID]; ok || line.ChannelID == "" {
		return errors.New("a group has no channel_id or one that another has")
	}
	g := group{id: line.ChannelID, members: make([]uint32, len(line.Members))}
	for i, uid := range line.Members {
		m, err := t.user(uid)
		if err != nil {
			return err
		}
		if slices.Contains(g.members[:i], m) {
			return errors.New("a group names a member twice")
		}
		g.members[i] = m
	}
	t.groupOf[g.id] = uint32(len(t.groups))
	t.groups = append(t.groups, g)
	return nil
}

func (t *Truth) addMessage(line Line) error {
	from, err := t.user(line.FromUID)
	if err != nil {
		return err
	}
	m := message{from: from, n: line.N, person: line.ChannelType == 1, push: line.Push, doubt: line.Doubt}
	if m.person {
		if m.channel, err = t.user(line.ChannelID); err != nil {
			return err
		}
	} else {
		g, ok := t.groupOf[line.ChannelID]
		if !ok {
			return errors.New("a channel_id names no group that stands before it")
		}
		m.channel = g
	}
	if want := t.clientMsgNo(m); line.ClientMsgNo != want {
		return fmt.Errorf("client_msg_no is %q, run, from_uid and n make it %q", line.ClientMsgNo, want)
	}
	t.messages = append(t.messages, m)
	return nil
}

func (t *Truth) addStatus(line Line) error {
	u, err := t.user(line.UID)
	if err != nil {
		return err
	}
	s, err := ParseStatus(line.Item)
	if err != nil {
		return err
	}
	if s.UID != line.UID {
		return errors.New("an item is of another uid than its line")
	}
	t.users[u].statuses = append(t.users[u].statuses, status{
		conn: s.Conn, device: int32(s.Device), total: int32(s.Total), flag: s.DeviceFlag, online: s.Online,
	})
	t.items++
	return nil
}

func (t *Truth) user(uid string) (uint32, error) {
	u, ok := t.userOf[uid]
	if !ok {
		return 0, errors.New("a uid names no user that stands before it")
	}
	return u, nil
}

func (t *Truth) clientMsgNo(m message) string {
	return ClientMsgNo(t.run, t.users[m.from].uid, m.n)
}

// ClientMsgNo is the client_msg_no of a sender's nth message: <run>-<from_uid>-<n>.
func ClientMsgNo(run, fromUID string, n uint32) string {
	return run + "-" + fromUID + "-" + strconv.FormatUint(uint64(n), 10)
}

// Claim is what the truth says of one thing.
type Claim uint8

// The claims.
const (
	May     Claim = iota // nobody knows whether it arrives
	Must                 // it arrives
	MustNot              // it does not
)

// Message is one message of a truth.
type Message struct {
	ClientMsgNo, FromUID string
	Notify               Claim // Must or May
	m                    message
}

// Doubt says of a message that nobody knows whether it arrives, as of one that an endpoint refuses. It returns false where there
// is no such message.
func (t *Truth) Doubt(clientMsgNo string) bool {
	for i := range t.messages {
		if t.clientMsgNo(t.messages[i]) == clientMsgNo {
			t.messages[i].doubt = true
			return true
		}
	}
	return false
}

// Messages yields all messages, in the order of their acknowledgement.
func (t *Truth) Messages() iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for _, m := range t.messages {
			message := Message{ClientMsgNo: t.clientMsgNo(m), FromUID: t.users[m.from].uid, Notify: Must, m: m}
			if m.doubt {
				message.Notify = May
			}
			if !yield(message) {
				return
			}
		}
	}
}

// Recipients yields the uids of a message's channel, the sender too where it is among them, and what the truth says of
// a msg.offline to each. To whom it does not name, no msg.offline may go.
func (t *Truth) Recipients(message Message) iter.Seq2[string, Claim] {
	m := message.m
	return func(yield func(string, Claim) bool) {
		members := []uint32{m.channel}
		if !m.person {
			members = t.groups[m.channel].members
		}
		for _, u := range members {
			if !yield(t.users[u].uid, t.offline(m, u)) {
				return
			}
		}
	}
}

func (t *Truth) offline(m message, u uint32) Claim {
	if !m.push || u == m.from {
		return MustNot
	}
	switch t.users[u].presence {
	case Sleeper:
		if m.doubt {
			return May
		}
		return Must
	case Resident:
		if t.settled {
			return MustNot
		}
	}
	return May
}

// User is the statuses of one user.
type User struct {
	UID   string
	Doubt bool // any statuses may follow the last
	list  []status
}

// Len is the number of the user's statuses.
func (u User) Len() int { return len(u.list) }

// Statuses yields them in order.
func (u User) Statuses() iter.Seq[Status] {
	return func(yield func(Status) bool) {
		for _, s := range u.list {
			if !yield(Status{UID: u.UID, DeviceFlag: s.flag, Online: s.online, Conn: s.conn, Device: int(s.device), Total: int(s.total)}) {
				return
			}
		}
	}
}

// Users yields all users, those without statuses too.
func (t *Truth) Users() iter.Seq[User] {
	return func(yield func(User) bool) {
		for _, u := range t.users {
			if !yield(User{UID: u.uid, Doubt: u.doubt, list: u.statuses}) {
				return
			}
		}
	}
}
