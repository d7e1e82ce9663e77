package schemas

import "errors"

var errStub = errors.New("not built yet")

// ID is a conn_id or node_id in canonical text: an integer in 0..2^63-1 is its decimal digits, anything else is
// the string itself. Canonical digits in a JSON string equal the integer, so the text alone identifies.
type ID string

// Number is the id as an integer: its value where it is one, else the first 63 bits of its SHA-256.
func (id ID) Number() uint64 { return 0 }

// Compare orders ids: integers by value first, then other strings bytewise.
func (id ID) Compare(other ID) int { return 0 }

// ConnectionType is the type of a connection event.
type ConnectionType uint8

const (
	Online ConnectionType = iota + 1
	Offline
	Heartbeat
	NodeStarted
)

// Connection is one input record of a connections topic.
type Connection struct {
	Type          ConnectionType
	UID           string // empty for a whole node's event: NodeStarted, and a Heartbeat without uid and conn_id
	ConnID        ID     // empty likewise
	NodeID        ID     // "0" where the record names none
	DeviceFlag    uint8
	HasDeviceFlag bool  // for Online always true (the default is 0)
	Time          int64 // Unix milliseconds
	OpenedAt      int64 // Unix milliseconds; -1: absent
	Background    bool
	HasBackground bool
}

// DecodeConnection decodes a JSON connection event; recordTime is the Kafka record's timestamp in Unix ms,
// the default of the field timestamp. A returned error is an *InvalidError. Strings are copies of value.
func DecodeConnection(value []byte, recordTime int64) (Connection, error) {
	return Connection{}, errStub
}

// Source is where a record stands in Kafka.
type Source struct {
	Topic     string
	Partition int32
	Offset    int64
	Time      int64 // the record's timestamp, Unix ms
}

// Message is one input record of a messages topic, with the webhook item that is made of it.
type Message struct {
	// Item is the msg.notify webhook item: a JSON object with all fields of the design in its order, then the
	// fields beyond them as the record had them.
	Item []byte
	// Splice is the offset in Item, just after the payload field, at which msg.offline has `,"to_uids":[…]`.
	Splice      int
	FromUID     string
	ChannelID   string
	ChannelType uint8
	// Recipients are the uids of to_uids as they stand there, what is no uid left out; or, without to_uids and for
	// channel_type 1, the channel_id (where it is a uid). Sender, duplicates and system uids are still in it.
	Recipients []string
	// HasRecipients is false where there is no to_uids and the channel is none of a person.
	HasRecipients bool
	Dropped       int  // how many elements of to_uids were no uid
	OfflinePush   bool // false: no msg.offline for it
}

// DecodeMessage decodes a JSON message. A returned error is an *InvalidError.
func DecodeMessage(value []byte, src Source) (Message, error) { return Message{}, errStub }

// ValidUID reports whether s may be a uid: 1 to 256 bytes of UTF-8 without control characters.
func ValidUID(s string) bool { return false }

// InboxKind says what an inbox record is.
type InboxKind uint8

const (
	InboxConnection InboxKind = iota + 1 // a connection event of one uid or of one node
	InboxRecipients                      // a message and those of its recipients whose inbox partition this is
)

// Inbox is a decoded inbox record. Its byte slices alias the decoded value; strings are copies.
type Inbox struct {
	Kind       InboxKind
	Connection Connection // InboxConnection
	Item       []byte     // InboxRecipients: the webhook item, see Message
	Splice     int        // InboxRecipients
	UIDs       []string   // InboxRecipients: at least one, no duplicates
}

// AppendInboxConnection appends the value of the inbox record of a connection event.
func AppendInboxConnection(dst []byte, c *Connection) []byte { return dst }

// AppendInboxRecipients appends the value of the inbox record of a message and its recipients.
func AppendInboxRecipients(dst, item []byte, splice int, uids []string) []byte { return dst }

// DecodeInbox decodes an inbox record; headers give its version (*VersionError if newer).
func DecodeInbox(headers []Header, value []byte) (Inbox, error) { return Inbox{}, errStub }

// VersionHeader is the header of the version that this release writes.
func VersionHeader() Header { return Header{Key: HeaderVersion, Value: []byte("1")} }

// CheckVersion returns a *VersionError where the headers say a version newer than Version, and an
// *InvalidError where there is none or it is no number.
func CheckVersion(what string, headers []Header) error { return errStub }

// PresenceKind says what a key of the presence topic names.
type PresenceKind uint8

const (
	PresenceConnection PresenceKind = iota + 1
	PresenceNodeStart
	PresenceStartMarker
)

// PresenceKey is the key of a record of the presence topic.
type PresenceKey struct {
	Kind   PresenceKind
	UID    string // PresenceConnection
	NodeID ID     // PresenceConnection, PresenceNodeStart
	ConnID ID     // PresenceConnection
}

// AppendPresenceKey appends the key's bytes: a kind byte, then the names, each with its length.
func AppendPresenceKey(dst []byte, k PresenceKey) []byte { return dst }

// DecodePresenceKey is its inverse; strings are copies.
func DecodePresenceKey(key []byte) (PresenceKey, error) { return PresenceKey{}, errStub }

// ConnectionState is what the presence topic holds of one connection: live, or a close that is remembered.
type ConnectionState struct {
	Open       bool
	DeviceFlag uint8
	Version    int64 // time of the latest online (or heartbeat that opened), or of the close; Unix ms
	// Opened is, of a remembered close, the version that the connection had when it was closed; equal to
	// Version for the close of a connection that was never seen. An online at or before it is a copy.
	Opened int64
	// InboxTime is, of a remembered close, the time of the inbox record that made it, Unix ms.
	InboxTime  int64
	OpenedAt   int64 // the generation, Unix ms; -1: unknown
	Background bool
}

// AppendConnectionState appends the value's bytes.
func AppendConnectionState(dst []byte, s ConnectionState) []byte { return dst }

// DecodeConnectionState is its inverse.
func DecodeConnectionState(value []byte) (ConnectionState, error) { return ConnectionState{}, errStub }

// NodeStart is what the presence topic holds of a gateway node: its last start.
type NodeStart struct {
	Time      int64 // Unix ms, the event's
	InboxTime int64 // Unix ms, the inbox record's
}

// AppendNodeStart appends the value's bytes.
func AppendNodeStart(dst []byte, s NodeStart) []byte { return dst }

// DecodeNodeStart is its inverse.
func DecodeNodeStart(value []byte) (NodeStart, error) { return NodeStart{}, errStub }

// StartMarker says which input topics route has begun to read.
type StartMarker struct{ Topics []MarkedTopic }

// MarkedTopic is one topic of a StartMarker.
type MarkedTopic struct {
	Name string
	ID   [16]byte // zero: it did not exist when route began
}

// AppendStartMarker appends the value's bytes.
func AppendStartMarker(dst []byte, m StartMarker) []byte { return dst }

// DecodeStartMarker is its inverse.
func DecodeStartMarker(value []byte) (StartMarker, error) { return StartMarker{}, errStub }

// OnlineStatus is one user.onlinestatus event.
type OnlineStatus struct {
	UID         string
	DeviceFlag  uint8
	Online      bool
	ConnID      uint64 // ID.Number
	DeviceCount int
	TotalCount  int
}

// AppendOnlineStatus appends the webhook item: a JSON string.
func AppendOnlineStatus(dst []byte, s OnlineStatus) []byte { return dst }

// ParseOnlineStatus parses the text of an item (the JSON string's content); the uid may contain '-'.
func ParseOnlineStatus(s string) (OnlineStatus, error) { return OnlineStatus{}, errStub }

// AppendOfflineItem appends the msg.offline item: item with `,"to_uids":[…]` at splice.
func AppendOfflineItem(dst, item []byte, splice int, uids []string) []byte { return dst }

// AppendBody appends a request's body: a JSON array of the items.
func AppendBody(dst []byte, items [][]byte) []byte {
	dst = append(dst, '[')
	for i, item := range items {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, item...)
	}
	return append(dst, ']')
}

// MessageItem is what a receiver reads of a msg.notify or msg.offline item.
type MessageItem struct {
	MessageID    string // its digits
	MessageIDStr string
	ClientMsgNo  string
	FromUID      string
	ChannelID    string
	ChannelType  uint8
	Timestamp    int64
	ToUIDs       []string
}

// DecodeOnlineStatusBody decodes a user.onlinestatus body.
func DecodeOnlineStatusBody(body []byte) ([]OnlineStatus, error) { return nil, errStub }

// DecodeMessagesBody decodes a msg.notify or msg.offline body: an array, or (later servers) one object.
func DecodeMessagesBody(body []byte) ([]MessageItem, error) { return nil, errStub }

// Reason is why a record is in the dead letters: a closed list.
type Reason string

const (
	ReasonInvalid  Reason = "invalid"   // route: not JSON, or a missing or wrong field
	ReasonTooLarge Reason = "too_large" // route: larger than OFFHOOK_MAX_RECORD_BYTES
	ReasonRefused  Reason = "refused"   // sink: the endpoint refuses this event
	ReasonGaveUp   Reason = "gave_up"   // sink: OFFHOOK_WEBHOOK_GIVE_UP_AFTER has passed
	ReasonSkipped  Reason = "skipped"   // sink: an operator skipped it
	ReasonCut      Reason = "cut"       // sink: the rest of a batch of which the log's retention took the first part
)

// DeadLetter is one record of the dead-letter topic.
type DeadLetter struct {
	Source      Source
	TopicID     [16]byte
	SourceKey   []byte // nil: the source had none
	Value       []byte // the source's value; of one that is too large the first 64 KiB
	Reason      Reason
	Detail      string // a sentence; never holds a value of the record
	Sink        string // the sink's name, or "route"
	Status      int    // the last HTTP status; 0: none
	Attempts    int    // 0: none
	Truncated   bool
	Size        int // the source's size in bytes where Truncated
	Traceparent []byte
}

// Key is the record's key, equal for copies of one dead letter: "<sink>/<topic id as 32 hex digits>/<partition>/<offset>".
func (d *DeadLetter) Key() []byte { return nil }

// Headers are the record's headers, the version among them.
func (d *DeadLetter) Headers() []Header { return nil }

// DecodeDeadLetter reads one back from key, headers and value.
func DecodeDeadLetter(key []byte, headers []Header, value []byte) (DeadLetter, error) {
	return DeadLetter{}, errStub
}
