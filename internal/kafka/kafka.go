package kafka

import (
	"context"
	"net"

	"github.com/offhook/offhook/schemas"
)

// Config says how to reach the brokers.
type Config struct {
	Brokers []string // host:port
	TLS     bool
	// CAFile, CertFile and KeyFile are PEM files; empty: the system's roots, no client certificate.
	CAFile, CertFile, KeyFile  string
	SASLMechanism              string // "", PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
	SASLUsername, SASLPassword string
	// Dialer, where not nil, replaces the network (tests, demo). TLS, where it is on, runs over what it returns.
	Dialer func(ctx context.Context, network, host string) (net.Conn, error)
}

// The topics that offhook owns end in these names, after the prefix and a dot.
const (
	inboxSuffix        = ".inbox"
	presenceSuffix     = ".presence"
	onlineStatusSuffix = ".user.onlinestatus"
	offlineSuffix      = ".msg.offline"
	notifySuffix       = ".msg.notify"
	deadLettersSuffix  = ".dead-letters"
)

// Topics are the names of the topics that offhook owns.
type Topics struct {
	Prefix                                                      string
	Inbox, Presence, OnlineStatus, Offline, Notify, DeadLetters string
}

// NewTopics names the topics: "<prefix>.inbox" and so on.
func NewTopics(prefix string) Topics {
	return Topics{
		Prefix:       prefix,
		Inbox:        prefix + inboxSuffix,
		Presence:     prefix + presenceSuffix,
		OnlineStatus: prefix + onlineStatusSuffix,
		Offline:      prefix + offlineSuffix,
		Notify:       prefix + notifySuffix,
		DeadLetters:  prefix + deadLettersSuffix,
	}
}

// All lists the six names.
func (t Topics) All() []string {
	return []string{t.Inbox, t.Presence, t.OnlineStatus, t.Offline, t.Notify, t.DeadLetters}
}

// Of is the topic of an event; empty for one that is none of schemas.Events.
func (t Topics) Of(event schemas.Event) string {
	switch event {
	case schemas.EventOnlineStatus:
		return t.OnlineStatus
	case schemas.EventOffline:
		return t.Offline
	case schemas.EventNotify:
		return t.Notify
	}
	return ""
}

// Owned is what [Ensure] found.
type Owned struct {
	Partitions int32               // P, the same for all six
	IDs        map[string][16]byte // topic id by name; zero where the broker is too old to have one
}

// MaxOwnedBytes is the largest record of an owned topic, for max.message.bytes and kgo.ProducerBatchMaxBytes.
func MaxOwnedBytes(maxRecordBytes int) int { return 2*maxRecordBytes + 64<<10 }
