package simulator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/offhook/offhook/internal/truth"
)

// Config is one run. [Default] has values to begin with; zero values are as the fields say.
type Config struct {
	Brokers []string // host:port; required
	TLS     *tls.Config
	// SASLMechanism is "" (none), PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
	SASLMechanism, SASLUsername, SASLPassword string
	// Dialer, where not nil, replaces the network.
	Dialer func(ctx context.Context, network, host string) (net.Conn, error)

	// ConnectionsTopic and MessagesTopic must exist; required.
	ConnectionsTopic, MessagesTopic string

	// Run is part of every uid and client_msg_no: letters, digits, '.' and '_'. Empty: made of the time.
	Run  string
	Seed uint64

	Users     int // at least 3
	Groups    int // 0: all messages go to persons
	GroupSize int // members of a group, at least 2; no more than Users count
	Devices   int // connections of one user at most, at least 1
	Nodes     int // gateway nodes beside the one that crashes, at least 1; their ids start at 1

	Churn      float64 // connection events a second; 0: none, but for the residents' first onlines
	Rate       float64 // messages a second; 0: none
	GroupShare float64 // of the messages, 0 to 1

	// Zipf, above 1, is the exponent of Zipf's law, by which groups have 2 to GroupSize members, and some groups and senders
	// are far busier than others; 0: all are alike.
	Zipf float64

	// The upsets, all 0 by default. With any of them nobody knows what must arrive: a run takes no [Deps.Truth] then, the
	// summary has no Statuses and Pushes, and records beyond Connections and Messages come by themselves.

	// Crashes is how many gateway nodes crash a minute: the connections of one are gone without a goodbye, some seconds later
	// it starts, and its users come back on other nodes. Every second node then counts its connections anew.
	Crashes float64
	// Late is the share of the connection events that come up to 5 s behind others of the same user and connection.
	Late float64
	// Doubled is the share of all records that are written twice, at once or up to 3 s later.
	Doubled float64
	// Skew is how far the clocks of two nodes are apart at most. None of them goes back.
	Skew time.Duration
	// Heartbeat is the longest time between two signs of life of an open connection: by the connection itself, or on every
	// second node by the node. Now and then one falls silent, for up to eight times as long or for good. 0: no more signs
	// than the few that there always are.
	Heartbeat time.Duration

	// Duration bounds the time after the residents have connected and settled; 0: no bound.
	Duration time.Duration
	// Connections and Messages bound the number of records, the residents' first onlines aside; 0: no bound. One that
	// has no bound ends with the other. Without any bound the run lasts until its context ends.
	Connections, Messages int64

	// Settle is the pause between the acknowledgement of the residents' onlines and the first message, long enough that
	// a running offhook has taken them in. 0: no pause, and no claim that residents get no msg.offline.
	Settle time.Duration
	// Persist has the run outlive whatever happens to brokers: a record that fails is doubtful and ends nothing, retries go
	// on for five minutes and more, and partitions that a topic is given are used within seconds. The price is that a
	// retry may write a record twice, which no truth can tell: it takes no [Deps.Truth].
	Persist bool
	// FlushTimeout is how long a run that was stopped waits for acknowledgements; 0: 10 s.
	FlushTimeout time.Duration
}

// Default is a small lively system: 200 users, 100 messages and 50 connection events a second, seed 1, without bound.
func Default() Config {
	return Config{
		ConnectionsTopic: "im.connections", MessagesTopic: "im.messages",
		Seed: 1, Users: 200, Groups: 20, GroupSize: 10, Devices: 3, Nodes: 3,
		Churn: 50, Rate: 100, GroupShare: 0.5, Settle: 2 * time.Second,
	}
}

// Deps is what a run needs from its caller.
type Deps struct {
	Progress io.Writer      // takes one line a second; nil: none
	Truth    truth.Recorder // takes what must arrive; nil: nobody
	// Acks, where not nil, takes a line for each record that Kafka has acknowledged: topic, partition, offset and the
	// 64-bit FNV-1a hash of the value in 16 hexadecimal digits, with a space between two. It gets them within a second. An
	// acknowledgement that came without an offset has no line.
	Acks io.Writer
	// Settled, where not nil, is called when the residents' onlines are acknowledged and [Config.Settle] has passed, with
	// the number of user.onlinestatus items that they make. It returns when these have arrived, which is when offhook
	// surely knows that the residents are there, or false to end the run. No record is written meanwhile.
	Settled func(ctx context.Context, statuses int64) bool
}

// Summary says what a run has written. All counts are of acknowledged records.
type Summary struct {
	Run         string `json:"run"`
	Seed        uint64 `json:"seed"`
	Connections int64  `json:"connections"` // connection records, nodes' starts included
	Messages    int64  `json:"messages"`
	Statuses    int64  `json:"user.onlinestatus"` // items that must arrive
	Pushes      int64  `json:"msg.offline"`       // pairs of a message and a recipient that must arrive; others may
	Doubtful    int64  `json:"doubtful"`          // records that were sent and never acknowledged
	Seconds     float64

	// Of a run with upsets.

	Upset   bool  `json:"upset,omitempty"`   // Statuses and Pushes are 0, since nobody knows what must arrive
	Crashes int64 `json:"crashes,omitempty"` // nodes that crashed
	Late    int64 `json:"late,omitempty"`    // records that were held back
	Doubled int64 `json:"doubled,omitempty"` // records that were written twice
}

// String is a line for people.
func (s Summary) String() string {
	text := fmt.Sprintf("run %s, seed %d: %d connection records and %d messages in %.1f s; ", s.Run, s.Seed, s.Connections, s.Messages, s.Seconds)
	if s.Upset {
		text += fmt.Sprintf("%d crashes, %d records late and %d doubled", s.Crashes, s.Late, s.Doubled)
	} else {
		text += fmt.Sprintf("to arrive: %d user.onlinestatus, %d msg.notify, msg.offline for at least %d pairs of message and recipient", s.Statuses, s.Messages, s.Pushes)
	}
	if s.Doubtful > 0 {
		text += fmt.Sprintf("; %d records unacknowledged", s.Doubtful)
	}
	return text
}

func (c Config) validate() error {
	switch {
	case len(c.Brokers) == 0:
		return errors.New("brokers: at least one host:port is required")
	case c.ConnectionsTopic == "" || c.MessagesTopic == "":
		return errors.New("topics: both names are required")
	case c.ConnectionsTopic == c.MessagesTopic:
		return errors.New("topics: connections and messages need one each")
	case !validRun(c.Run):
		return errors.New("run: must be 1 to 64 letters, digits, '.' and '_'")
	case c.Users < 3 || c.Users > 100_000_000:
		return errors.New("users: must be 3 to 100000000")
	case c.Groups < 0:
		return errors.New("groups: must not be negative")
	case c.Groups > 0 && c.GroupSize < 2:
		return errors.New("group size: must be at least 2")
	case c.Devices < 1:
		return errors.New("devices: must be at least 1")
	case c.Nodes < 1:
		return errors.New("nodes: must be at least 1")
	case !(c.Churn >= 0) || !(c.Rate >= 0):
		return errors.New("churn and rate: must not be negative")
	case !(c.GroupShare >= 0 && c.GroupShare <= 1):
		return errors.New("group share: must be 0 to 1")
	case c.Zipf != 0 && !(c.Zipf > 1 && c.Zipf <= 100):
		return errors.New("zipf: must be above 1, at most 100, or 0")
	case !(c.Crashes >= 0 && c.Crashes <= 6000):
		return errors.New("crashes: must be 0 to 6000 a minute")
	case !(c.Late >= 0 && c.Late <= 1) || !(c.Doubled >= 0 && c.Doubled <= 1):
		return errors.New("late and doubled: must be 0 to 1")
	case c.Skew < 0 || c.Skew > 24*time.Hour:
		return errors.New("skew: must be 0 to 24h")
	case c.Heartbeat != 0 && (c.Heartbeat < 10*time.Millisecond || c.Heartbeat > 24*time.Hour):
		return errors.New("heartbeat: must be 10ms to 24h, or 0")
	case c.Duration < 0 || c.Connections < 0 || c.Messages < 0 || c.Settle < 0 || c.FlushTimeout < 0:
		return errors.New("bounds and pauses: must not be negative")
	}
	return nil
}

// fits refuses a truth that would not be one.
func (c Config) fits(deps Deps) error {
	if deps.Truth == nil {
		return nil
	}
	if c.upset() {
		return errors.New("truth: with crashes, late or doubled records, skew or heartbeats it is not known what must arrive")
	}
	if c.Persist {
		return errors.New("truth: a retry of a run that persists may write a record twice, and what must arrive is not known")
	}
	return nil
}

func validRun(run string) bool {
	if len(run) < 1 || len(run) > 64 {
		return false
	}
	for _, r := range run {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '.', r == '_':
		default:
			return false
		}
	}
	return true
}

// runName makes a run's name of the time: what two runs into one cluster must not share.
func runName(now time.Time) string { return strconv.FormatInt(now.UnixMilli(), 36) }
