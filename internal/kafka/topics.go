package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// smallSegment is the segment size of the topics from which old records are to go soon: a partition keeps its
	// active segment whole, and by default that is 1 GiB.
	smallSegment = 64 << 20

	// deadLetterRetention is how long an operator has to look at what could not be delivered.
	deadLetterRetention = 30 * 24 * time.Hour

	// tombstoneRetention must be longer than a restore may take: a reader that has passed a record, and comes to its
	// tombstone's place when that is gone already, would keep the record.
	tombstoneRetention = 24 * time.Hour

	cleanupPolicy = "cleanup.policy"
	deletePolicy  = "delete"
	compactPolicy = "compact"
)

// Spec is what [Ensure] creates and checks topics by.
type Spec struct {
	Topics            Topics
	Create            bool
	Partitions        int32 // for creation
	ReplicationFactor int16 // for creation; -1: the broker's default
	EventRetention    time.Duration
	MaxRecordBytes    int // of an input record; owned topics take twice that and 64 KiB more
}

// settings are a topic's configs by name.
type settings map[string]string

// settings of the topic, without min.insync.replicas, which depends on the replicas that it gets.
func (s Spec) settings(topic string) settings {
	set := settings{
		cleanupPolicy:                    deletePolicy,
		"retention.bytes":                "-1",
		"retention.ms":                   strconv.FormatInt(s.EventRetention.Milliseconds(), 10),
		"max.message.bytes":              strconv.Itoa(MaxOwnedBytes(s.MaxRecordBytes)),
		"unclean.leader.election.enable": "false",
	}
	switch topic {
	case s.Topics.Inbox:
		set["retention.ms"] = "-1" // purged by offset, never by time
		set["segment.bytes"] = strconv.Itoa(smallSegment)
		set["message.timestamp.type"] = "CreateTime" // what is silent and what is forgotten goes by it
	case s.Topics.Presence:
		set[cleanupPolicy] = compactPolicy
		delete(set, "retention.ms")
		delete(set, "retention.bytes")
		set["segment.bytes"] = strconv.Itoa(smallSegment)
		set["delete.retention.ms"] = strconv.FormatInt(tombstoneRetention.Milliseconds(), 10)
	case s.Topics.DeadLetters:
		set["retention.ms"] = strconv.FormatInt(deadLetterRetention.Milliseconds(), 10)
	}
	return set
}

// Ensure creates the owned topics that are missing (where Spec.Create says so), checks their configs and that all
// have one number of partitions, and returns it. It waits for brokers that are unreachable, until ctx ends, and
// logs that once with rising interval. Errors: different partition counts, missing topics that it may not create and
// a wrong cleanup policy name the topics; refusals are those of [Refused]; ctx's end returns its cause.
func Ensure(ctx context.Context, client *kgo.Client, spec Spec, log *slog.Logger) (Owned, error) {
	e := &ensurer{spec: spec, client: client, admin: kadm.NewClient(client), log: log}
	waiting := waitLog{log: log}
	for attempt := 0; ; attempt++ {
		owned, err := e.attempt(ctx)
		if err == nil {
			waiting.over()
			return owned, nil
		}
		if ctx.Err() != nil {
			return Owned{}, context.Cause(ctx)
		}
		if refused := Refused(err); refused != nil {
			return Owned{}, refused
		}
		if final, ok := errors.AsType[*finalError](err); ok {
			return Owned{}, final
		}
		if !errors.Is(err, errSettling) {
			waiting.say(err)
		}
		if !pause(ctx, attempt) {
			return Owned{}, context.Cause(ctx)
		}
	}
}

// finalError is an error that another attempt would meet again.
type finalError struct{ text string }

func (e *finalError) Error() string { return e.text }

func finalf(format string, args ...any) error { return &finalError{fmt.Sprintf(format, args...)} }

// errSettling says that topics created a moment ago are not seen by all brokers yet.
var errSettling = errors.New("the brokers settle new topics")

// mismatchAttempts is how often different counts, or missing topics that may not be created, are looked at before they
// are believed: brokers that are behind may show the topics of another process's creation half, or not yet.
const mismatchAttempts = 3

type ensurer struct {
	spec       Spec
	client     *kgo.Client
	admin      *kadm.Client
	log        *slog.Logger
	mismatches int
	created    map[string]bool // by this Ensure, and so known to be as they should be

	replication int16 // the brokers' default, 0 or -1 as long as it is not known
}

func (e *ensurer) attempt(ctx context.Context) (Owned, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	// Ping asks each broker once and returns the cause, where other requests retry for long and then say "timeout".
	if err := Ping(ctx, e.client); err != nil {
		return Owned{}, fmt.Errorf("reach the brokers: %w", err)
	}
	names := e.spec.Topics.All()
	found, err := lookUp(ctx, e.client, names)
	if err != nil {
		return Owned{}, err
	}
	var missing, present []string
	for _, name := range names {
		switch topic := found[name]; {
		case errors.Is(topic.err, kerr.UnknownTopicOrPartition):
			missing = append(missing, name)
		case errors.Is(topic.err, kerr.TopicAuthorizationFailed):
			return Owned{}, fmt.Errorf("describe topic %s (needs Describe on it): %w", name, topic.err)
		case topic.err != nil:
			return Owned{}, fmt.Errorf("look up topic %s: %w", name, topic.err)
		default:
			present = append(present, name)
		}
	}
	if len(missing) > 0 && !e.spec.Create {
		if e.mismatches++; e.mismatches < mismatchAttempts {
			return Owned{}, errSettling
		}
		return Owned{}, finalf("topics are missing: %s; create them with `offhook topics create`, or start with OFFHOOK_CREATE_TOPICS=true",
			strings.Join(missing, ", "))
	}
	counts := make(map[int32]bool)
	for _, name := range present {
		counts[found[name].partitions] = true
	}
	if len(counts) > 1 {
		if e.mismatches++; e.mismatches < mismatchAttempts {
			return Owned{}, errSettling
		}
		return Owned{}, countsError(found, present)
	}
	if len(missing) > 0 {
		partitions := e.spec.Partitions
		if len(present) > 0 {
			partitions = found[present[0]].partitions // another count would never fit
		}
		for _, name := range missing {
			if e.created[name] {
				continue // the broker that answered has not heard of it yet
			}
			if err := e.create(ctx, name, partitions); err != nil {
				return Owned{}, err
			}
		}
		return Owned{}, errSettling
	}
	for _, name := range names {
		if !found[name].led {
			return Owned{}, fmt.Errorf("topic %s has partitions without a leader", name)
		}
	}
	if len(e.created) > 0 && !e.known(ctx, names) {
		return Owned{}, errSettling
	}
	if err := e.check(ctx); err != nil {
		return Owned{}, err
	}
	owned := Owned{Partitions: found[names[0]].partitions, IDs: make(map[string][16]byte, len(names))}
	for _, name := range names {
		owned.IDs[name] = found[name].id
	}
	return owned, nil
}

// known reports whether each broker that answers knows the topics and their leaders. One that has not heard of a topic
// that was just created would refuse its producers and consumers, and group members would come and go.
func (e *ensurer) known(ctx context.Context, names []string) bool {
	brokers, err := e.admin.ListBrokers(ctx)
	if err != nil {
		return false
	}
	for _, broker := range brokers {
		found, err := lookUp(ctx, e.client.Broker(int(broker.NodeID)), names)
		if err != nil {
			continue // away: what it knows when it comes back is told by its metadata's log
		}
		for _, topic := range found {
			if topic.err != nil || !topic.led {
				return false
			}
		}
	}
	return true
}

// create creates one topic, without the settings that the brokers forbid.
func (e *ensurer) create(ctx context.Context, name string, partitions int32) error {
	replication := e.spec.ReplicationFactor
	set := e.spec.settings(name)
	if replication == -1 {
		if e.replication <= 0 {
			// A dry run says what the broker's default is.
			if dry, err := e.admin.ValidateCreateTopics(ctx, partitions, -1, nil, name); err == nil {
				e.replication = dry[name].ReplicationFactor
			}
		}
		replication = e.replication
	}
	if replication >= 3 {
		set["min.insync.replicas"] = "2"
	}
	err := e.createWith(ctx, name, partitions, set)
	if forbidden(err) {
		set, err = e.createAllowed(ctx, name, partitions, set, err)
	}
	switch {
	case errors.Is(err, kerr.TopicAlreadyExists): // another process was faster
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return fmt.Errorf("create topic %s (needs Create on it, or create it beforehand, see `offhook topics create`): %w", name, err)
	case errors.Is(err, kerr.InvalidReplicationFactor):
		return finalf("create topic %s: the brokers refuse %d replicas (set OFFHOOK_REPLICATION_FACTOR to no more than there are brokers): %v", name, e.spec.ReplicationFactor, err)
	case errors.Is(err, kerr.InvalidPartitions):
		return finalf("create topic %s: the brokers refuse %d partitions (set OFFHOOK_PARTITIONS to fewer): %v", name, partitions, err)
	case forbidden(err), errors.Is(err, kerr.InvalidTopicException):
		return finalf("create topic %s: %v", name, err)
	case err != nil:
		return fmt.Errorf("create topic %s: %w", name, err)
	default:
		e.log.Info("topic created", "topic", name, "partitions", partitions, "configs", maps.Clone(set))
	}
	if e.created == nil {
		e.created = make(map[string]bool)
	}
	e.created[name] = err == nil
	return nil
}

// createAllowed creates a topic of whose settings the brokers forbid some: each is tried alone, and those that are
// refused are left out. The cleanup policy is never left out.
func (e *ensurer) createAllowed(ctx context.Context, name string, partitions int32, set settings, cause error) (settings, error) {
	allowed := settings{cleanupPolicy: set[cleanupPolicy]}
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if key == cleanupPolicy {
			continue
		}
		alone := settings{cleanupPolicy: set[cleanupPolicy], key: set[key]}
		dry, err := e.admin.ValidateCreateTopics(ctx, partitions, e.spec.ReplicationFactor, alone.pointers(), name)
		if err == nil {
			err = dry[name].Err
		}
		if forbidden(err) {
			e.log.Warn("the brokers forbid a setting; the topic is created without it", "topic", name, "config", key, "value", set[key], "error", err)
			continue
		}
		allowed[key] = set[key]
	}
	if len(allowed) < len(set) {
		if err := e.createWith(ctx, name, partitions, allowed); !forbidden(err) {
			return allowed, err
		}
	}
	// Each is allowed, or a broker does not judge them in a dry run; not all are together.
	e.log.Warn("the brokers forbid settings; the topic is created with its cleanup policy alone", "topic", name, "error", cause)
	allowed = settings{cleanupPolicy: set[cleanupPolicy]}
	return allowed, e.createWith(ctx, name, partitions, allowed)
}

func (e *ensurer) createWith(ctx context.Context, name string, partitions int32, set settings) error {
	answer, err := e.admin.CreateTopic(ctx, partitions, e.spec.ReplicationFactor, set.pointers(), name)
	if err != nil && answer.ErrMessage != "" {
		return fmt.Errorf("%w: %s", err, answer.ErrMessage)
	}
	return err
}

func forbidden(err error) bool {
	return errors.Is(err, kerr.InvalidConfig) || errors.Is(err, kerr.PolicyViolation)
}

func (s settings) pointers() map[string]*string {
	pointers := make(map[string]*string, len(s))
	for key, value := range s {
		pointers[key] = &value
	}
	return pointers
}

// check compares the settings of topics that this Ensure has not created with what they should be. What the
// guarantees cannot do without is an error, the rest a warning.
func (e *ensurer) check(ctx context.Context) error {
	var names []string
	for _, name := range e.spec.Topics.All() {
		if !e.created[name] {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	described, err := e.admin.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("describe configs: %w", err)
		}
		e.log.Warn("the topics' settings cannot be checked (needs DescribeConfigs on them)", "error", err)
		return nil
	}
	for _, topic := range described {
		if topic.Err != nil {
			e.log.Warn("the topic's settings cannot be checked (needs DescribeConfigs on it)", "topic", topic.Name, "error", topic.Err)
			continue
		}
		is := make(settings, len(topic.Configs))
		for _, config := range topic.Configs {
			if config.Value != nil {
				is[config.Key] = *config.Value
			}
		}
		want := e.spec.settings(topic.Name)
		if policy, ok := is[cleanupPolicy]; ok && policy != want[cleanupPolicy] {
			return finalf("topic %s has cleanup.policy=%s and needs %s: %s (kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config cleanup.policy=%s)",
				topic.Name, policy, want[cleanupPolicy], policyConsequence(want[cleanupPolicy]), topic.Name, want[cleanupPolicy])
		}
		if differs := differences(is, want); len(differs) > 0 {
			e.log.Warn("the topic's settings differ from what offhook would set", "topic", topic.Name, "differs", differs)
		}
	}
	return nil
}

func policyConsequence(want string) string {
	if want == compactPolicy {
		return "connections would be forgotten"
	}
	return "events with equal keys would be lost"
}

// differences are sentences on settings that are worse than wanted; configs that the broker does not report are none.
func differences(is, want settings) []string {
	var differs []string
	for _, key := range slices.Sorted(maps.Keys(want)) {
		got, ok := is[key]
		if !ok || got == want[key] || harmless(key, got, want[key]) {
			continue
		}
		differs = append(differs, fmt.Sprintf("%s is %s, not %s", key, got, want[key]))
	}
	return differs
}

// harmless reports whether a setting may be as it is, though it is not what offhook would set.
func harmless(key, got, want string) bool {
	g, err1 := strconv.ParseInt(got, 10, 64)
	w, err2 := strconv.ParseInt(want, 10, 64)
	if err1 != nil || err2 != nil {
		return false
	}
	switch key {
	case "max.message.bytes", "delete.retention.ms":
		return g >= w
	case "segment.bytes":
		return g <= w
	}
	return false
}

// topicState is what the brokers say of a topic.
type topicState struct {
	err        error
	id         [16]byte
	partitions int32
	led        bool // each partition has a leader
}

// lookUp asks a broker (any, where it is given the client) for the topics, past the client's cache. All names are in the
// answer.
func lookUp(ctx context.Context, from kmsg.Requestor, names []string) (map[string]topicState, error) {
	request := kmsg.NewPtrMetadataRequest()
	request.AllowAutoTopicCreation = false
	for _, name := range names {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = &name
		request.Topics = append(request.Topics, topic)
	}
	response, err := request.RequestWith(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("look up topics: %w", err)
	}
	found := make(map[string]topicState, len(names))
	for _, name := range names {
		found[name] = topicState{err: kerr.UnknownTopicOrPartition}
	}
	for _, topic := range response.Topics {
		if topic.Topic == nil {
			continue
		}
		state := topicState{
			err:        kerr.ErrorForCode(topic.ErrorCode),
			id:         topic.TopicID,
			partitions: int32(len(topic.Partitions)),
			led:        true,
		}
		for _, partition := range topic.Partitions {
			state.led = state.led && partition.Leader >= 0
		}
		found[*topic.Topic] = state
	}
	return found, nil
}

func countsError(found map[string]topicState, names []string) error {
	counts := make([]string, 0, len(names))
	for _, name := range names {
		counts = append(counts, fmt.Sprintf("%s has %d", name, found[name].partitions))
	}
	return finalf("the topics that offhook owns must have one number of partitions: %s", strings.Join(counts, ", "))
}
