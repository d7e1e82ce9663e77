package oracle

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"time"
)

// The events.
const (
	onlineStatus = "user.onlinestatus"
	msgOffline   = "msg.offline"
	msgNotify    = "msg.notify"
)

// Header is a header of a Kafka record.
type Header struct {
	Key   string
	Value []byte
}

// Record is a record of a topic as a consumer with read_committed has read it.
type Record struct {
	Topic      string
	Partition  int32
	Offset     int64
	Time       int64  // the record's timestamp, Unix ms
	Key, Value []byte // nil is Kafka's null, which an empty value is not
	Headers    []Header
}

// Request is a webhook request that the receiver read whole.
type Request struct {
	Time      int64 // Unix ms
	Event, ID string
	Taken     bool // answered, or meant to be answered, with a 2xx
	Body      []byte
}

// Ack is the acknowledgement of an input record that its producer got.
type Ack struct {
	Topic     string
	Partition int32
	Offset    int64
	Sum       uint64 // FNV-1a 64 of the value
}

// Config is what the run was made with. The settings mean what offhook's do.
type Config struct {
	Partitions            int32 // of the inbox and of each event topic; at least 1
	Connections, Messages []string
	Inbox                 string  // name of the inbox topic
	OnlineFlags           []uint8 // nil: all
	BackgroundIsOnline    bool
	SystemUIDs            []string
	OrderByChannel        bool          // msg.notify is ordered by channel_id
	CloseMemory           time.Duration // 0: nothing is remembered
	TTL                   time.Duration // 0: none, and no connection may expire
	MaxRecordBytes        int           // 0: no limit
	Findings              int           // how many of each kind are kept; 0: 20
}

// Kind says what a finding is about.
type Kind string

// The kinds.
const (
	Lost         Kind = "lost"           // an event that must have come did not, and is not in the dead letters
	LostInput    Kind = "lost_input"     // an acknowledged record is not in its log, or one of the log has no inbox record or dead letter
	InboxOrder   Kind = "inbox_order"    // the inbox is no merge of the input's partitions
	Duplicate    Kind = "duplicate"      // an event came more often than it must, under different ids
	Unexpected   Kind = "unexpected"     // an event came, or a dead letter is there, that nothing caused
	OutOfOrder   Kind = "out_of_order"   // an event came before one that it must follow
	WrongCount   Kind = "wrong_count"    // a user.onlinestatus came with other counts
	ChangedBody  Kind = "changed_body"   // two requests with one id have different bodies
	WrongClose   Kind = "wrong_close"    // a connection expired within the time to live of its last sign of life
	BadRequest   Kind = "bad_request"    // a body is not what the event's should be
	BadID        Kind = "bad_id"         // a webhook-id is malformed, or does not fit to the events under it
	TakenAndDead Kind = "taken_and_dead" // an event was taken, and stands in the dead letters
	Overlap      Kind = "overlap"        // two taken ids name the same offset
)

// Finding is one thing that is wrong.
type Finding struct {
	Kind Kind   `json:"kind"`
	Text string `json:"text"` // names the record or request that proves it
}

// Report is the judgement of a run.
type Report struct {
	Inputs       int64            `json:"inputs"`        // input records, those that are null among them
	Acks         int64            `json:"acks"`          // acknowledged input records
	InboxRecords int64            `json:"inbox_records"` // those of route and those of presence
	Requests     int64            `json:"requests"`      // all that the receiver read
	TakenIDs     int64            `json:"taken_ids"`     // different ids that were taken
	Repeated     int64            `json:"repeated"`      // taken requests whose id was taken before
	Events       map[string]int64 `json:"events"`        // expected, for each event; msg.offline counts each recipient
	OfflineItems int64            `json:"offline_items"` // expected msg.offline items
	Delivered    map[string]int64 `json:"delivered"`     // taken, counted alike; an id counts once
	DeadLettered int64            `json:"dead_lettered"` // events that stand in the dead letters of sinks, counted alike
	Rejected     int64            `json:"rejected"`      // input records that stand in the dead letters
	Expired      int64            `json:"expired"`       // connections that were closed by the time to live
	Counts       map[Kind]int64   `json:"counts"`
	Findings     []Finding        `json:"findings"` // by kind, in the order in which they were found
}

// Wrong reports whether anything is.
func (r Report) Wrong() bool { return len(r.Counts) > 0 }

type phase uint8

const (
	readingInput phase = iota
	readingInbox
	readingDeadLetters
	readingRequests
	judged
)

var phaseNames = [...]string{"input", "inbox", "dead letters", "requests", "judgement"}

// Oracle judges one run. It is not safe for concurrent use.
type Oracle struct {
	cfg      Config
	seed     maphash.Seed
	buf      []byte // of what is hashed
	phase    phase
	report   Report
	findings map[Kind][]Finding

	connections, messages, system map[string]bool
	onlineFlags                   *[256]bool

	names  names
	inputs map[topicPartition]*input
	order  []*input // in the order of their first record
	inbox  []*inboxPartition

	expectedStatus  list[status]
	expectedOffline list[event]
	expectedNotify  list[event]

	rejected  map[recordRef]*rejection
	dead      deadLetters
	delivered delivered
}

type topicPartition struct {
	topic     string
	partition int32
}

func (tp topicPartition) String() string { return fmt.Sprintf("%s-%d", tp.topic, tp.partition) }

// recordRef is a record of an input partition.
type recordRef struct {
	topicPartition
	offset int64
}

// New returns an oracle for a run with these settings.
func New(cfg Config) *Oracle {
	if cfg.Findings == 0 {
		cfg.Findings = 20
	}
	o := &Oracle{
		cfg: cfg, seed: maphash.MakeSeed(), findings: make(map[Kind][]Finding),
		connections: set(cfg.Connections), messages: set(cfg.Messages), system: set(cfg.SystemUIDs),
		names: newNames(), inputs: make(map[topicPartition]*input),
		rejected: make(map[recordRef]*rejection), dead: newDeadLetters(), delivered: newDelivered(),
	}
	o.report.Counts = make(map[Kind]int64)
	o.report.Events = make(map[string]int64)
	if cfg.OnlineFlags != nil {
		o.onlineFlags = new([256]bool)
		for _, f := range cfg.OnlineFlags {
			o.onlineFlags[f] = true
		}
	}
	for q := range cfg.Partitions {
		o.inbox = append(o.inbox, newInboxPartition(q))
	}
	return o
}

func set(list []string) map[string]bool {
	m := make(map[string]bool, len(list))
	for _, s := range list {
		m[s] = true
	}
	return m
}

// find notes a finding.
func (o *Oracle) find(kind Kind, format string, args ...any) {
	o.report.Counts[kind]++
	if kept := o.findings[kind]; len(kept) < o.cfg.Findings {
		o.findings[kind] = append(kept, Finding{kind, fmt.Sprintf(format, args...)})
	}
}

// enter begins a phase, or goes on with it; the phases have an order.
func (o *Oracle) enter(p phase) error {
	if p < o.phase {
		return fmt.Errorf("read %s after %s", phaseNames[p], phaseNames[o.phase])
	}
	if o.phase == readingInput && p > readingInput {
		o.beginInbox()
	}
	o.phase = p
	return nil
}

// sum is the FNV-1a hash of 64 bits.
func sum(value []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range value {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// Judge compares what came with what must have come. It ends the oracle's work.
func (o *Oracle) Judge() Report {
	if o.phase != judged {
		_ = o.enter(judged) // it is the last
		o.judgeInput()
		o.judgeInbox()
		o.judgeRejected()
		o.judgeIDs()
		o.judgeStatuses()
		o.judgeOffline()
		o.judgeNotify()
	}
	r := o.report
	kinds := make([]Kind, 0, len(o.findings))
	for k := range o.findings {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	for _, k := range kinds {
		r.Findings = append(r.Findings, o.findings[k]...)
	}
	return r
}

// errOffsets is returned where a partition is not given in its order.
var errOffsets = errors.New("offsets do not rise")
