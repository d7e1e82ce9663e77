package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func spec(prefix string) kafka.Spec {
	return kafka.Spec{
		Topics: kafka.NewTopics(prefix), Create: true, Partitions: 4, ReplicationFactor: -1,
		EventRetention: 48 * time.Hour, MaxRecordBytes: 1 << 20,
	}
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *buffer) log() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func ensure(t *testing.T, c *kafkatest.Cluster, s kafka.Spec) (kafka.Owned, string, error) {
	t.Helper()
	var log buffer
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	owned, err := kafka.Ensure(ctx, c.Client(t), s, log.log())
	return owned, log.String(), err
}

func configs(t *testing.T, c *kafkatest.Cluster, topic string) map[string]string {
	t.Helper()
	described, err := kadm.NewClient(c.Client(t)).DescribeTopicConfigs(t.Context(), topic)
	if err != nil || described[0].Err != nil {
		t.Fatalf("describe %s: %v %v", topic, err, described)
	}
	got := make(map[string]string)
	for _, config := range described[0].Configs {
		got[config.Key] = config.MaybeValue()
	}
	return got
}

func TestEnsureCreates(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		owned, log, err := ensure(t, c, spec(c.Prefix))
		if err != nil {
			t.Fatal(err)
		}
		if owned.Partitions != 4 {
			t.Errorf("got %d partitions, want 4", owned.Partitions)
		}
		if strings.Contains(log, "WARN") {
			t.Errorf("warnings: %s", log)
		}
		names := kafka.NewTopics(c.Prefix)
		details, err := kadm.NewClient(c.Client(t)).ListTopics(t.Context(), names.All()...)
		if err != nil {
			t.Fatal(err)
		}
		minISR := "1"
		for _, name := range names.All() {
			if len(details[name].Partitions) != 4 || owned.IDs[name] != details[name].ID || owned.IDs[name] == [16]byte{} {
				t.Errorf("topic %s: %d partitions, id %v, Ensure says %v", name, len(details[name].Partitions), details[name].ID, owned.IDs[name])
			}
			if details[name].Partitions.NumReplicas() >= 3 {
				minISR = "2"
			}
		}
		common := map[string]string{"max.message.bytes": "2162688", "unclean.leader.election.enable": "false", "min.insync.replicas": minISR}
		with := func(more map[string]string) map[string]string {
			maps.Copy(more, common)
			return more
		}
		for topic, want := range map[string]map[string]string{
			names.Inbox:        with(map[string]string{"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1", "segment.bytes": "67108864"}),
			names.Presence:     with(map[string]string{"cleanup.policy": "compact", "segment.bytes": "67108864", "delete.retention.ms": "86400000"}),
			names.OnlineStatus: with(map[string]string{"cleanup.policy": "delete", "retention.ms": "172800000", "retention.bytes": "-1"}),
			names.Offline:      with(map[string]string{"cleanup.policy": "delete", "retention.ms": "172800000", "retention.bytes": "-1"}),
			names.Notify:       with(map[string]string{"cleanup.policy": "delete", "retention.ms": "172800000", "retention.bytes": "-1"}),
			names.DeadLetters:  with(map[string]string{"cleanup.policy": "delete", "retention.ms": "2592000000", "retention.bytes": "-1"}),
		} {
			all, got := configs(t, c, topic), make(map[string]string)
			for key := range want {
				got[key] = all[key]
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("configs of %s (-want +got):\n%s", topic, diff)
			}
		}

		again, log, err := ensure(t, c, spec(c.Prefix))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(owned, again); diff != "" {
			t.Errorf("a second Ensure (-first +second):\n%s", diff)
		}
		if log != "" {
			t.Errorf("a second Ensure logs %s", log)
		}
	})
}

func TestEnsureAtOnce(t *testing.T) {
	kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
		const processes = 4
		var (
			wg     sync.WaitGroup
			owned  [processes]kafka.Owned
			errors [processes]error
			log    buffer
		)
		for i := range processes {
			client := c.Client(t)
			wg.Go(func() {
				owned[i], errors[i] = kafka.Ensure(t.Context(), client, spec(c.Prefix), log.log())
			})
		}
		wg.Wait()
		if strings.Contains(log.String(), "WARN") {
			t.Errorf("being second is warned of:\n%s", log.String())
		}
		for i := range processes {
			if errors[i] != nil {
				t.Errorf("process %d: %v", i, errors[i])
			}
			if diff := cmp.Diff(owned[0], owned[i]); diff != "" {
				t.Errorf("processes 0 and %d differ:\n%s", i, diff)
			}
		}
	})
}

func TestEnsureTakesTheCountOfTopicsThatExist(t *testing.T) {
	c := kafkatest.New(t)
	c.CreateTopic(t, c.Prefix+".inbox", 7, "retention.ms=-1", "max.message.bytes=3000000")
	owned, _, err := ensure(t, c, spec(c.Prefix))
	if err != nil || owned.Partitions != 7 {
		t.Errorf("got %d partitions, error %v; want 7", owned.Partitions, err)
	}
}

func TestEnsureRefuses(t *testing.T) {
	t.Run("different counts", func(t *testing.T) {
		c := kafkatest.New(t)
		c.CreateTopic(t, c.Prefix+".inbox", 7)
		c.CreateTopic(t, c.Prefix+".msg.notify", 5)
		_, _, err := ensure(t, c, spec(c.Prefix))
		wantError(t, err, c.Prefix+".inbox has 7")
		wantError(t, err, c.Prefix+".msg.notify has 5")
		if topics := c.Fake.TopicInfo(c.Prefix + ".presence"); topics != nil {
			t.Error("a topic was created beside those that cannot be used")
		}
	})
	t.Run("missing", func(t *testing.T) {
		c := kafkatest.New(t)
		c.CreateTopic(t, c.Prefix+".inbox", 4)
		s := spec(c.Prefix)
		s.Create = false
		_, _, err := ensure(t, c, s)
		wantError(t, err, c.Prefix+".msg.offline")
		wantError(t, err, "OFFHOOK_CREATE_TOPICS")
		if err != nil && strings.Contains(err.Error(), ".inbox") {
			t.Errorf("the error names a topic that is there: %v", err)
		}
	})
	t.Run("a changelog that is deleted", func(t *testing.T) {
		c := kafkatest.New(t)
		c.CreateTopic(t, c.Prefix+".presence", 4, "cleanup.policy=delete")
		_, _, err := ensure(t, c, spec(c.Prefix))
		wantError(t, err, "cleanup.policy=compact")
	})
	t.Run("events that are compacted", func(t *testing.T) {
		c := kafkatest.New(t)
		c.CreateTopic(t, c.Prefix+".user.onlinestatus", 4, "cleanup.policy=compact,delete")
		_, _, err := ensure(t, c, spec(c.Prefix))
		wantError(t, err, c.Prefix+".user.onlinestatus")
	})
	t.Run("more replicas than brokers", func(t *testing.T) {
		c := kafkatest.New(t)
		s := spec(c.Prefix)
		s.ReplicationFactor = 4
		_, _, err := ensure(t, c, s)
		wantError(t, err, "OFFHOOK_REPLICATION_FACTOR")
	})
	t.Run("no permission", func(t *testing.T) {
		c := kafkatest.New(t, kfake.EnableSASL(), kfake.EnableACLs(), kfake.User("PLAIN", "user", "word", kfake.ACL{
			Resource: kmsg.ACLResourceTypeTopic, Name: "*", Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: kmsg.ACLOperationDescribe, Allow: true,
		}))
		cfg := c.Config()
		cfg.SASLMechanism, cfg.SASLUsername, cfg.SASLPassword = "PLAIN", "user", "word"
		wantError(t, ensureError(t, cfg), "needs Create")
	})
}

func TestEnsureWarns(t *testing.T) {
	c := kafkatest.New(t)
	c.CreateTopic(t, c.Prefix+".inbox", 4, "retention.ms=604800000", "max.message.bytes=1000000", "segment.bytes=1000000")
	_, log, err := ensure(t, c, spec(c.Prefix))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"topic=" + c.Prefix + ".inbox", "retention.ms is 604800000, not -1", "max.message.bytes is 1000000, not 2162688"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q: %s", want, log)
		}
	}
	if strings.Contains(log, "segment.bytes is 1000000") {
		t.Errorf("a smaller segment is warned of: %s", log)
	}
}

// TestEnsureWithoutForbiddenSettings stands for hosted brokers that refuse some settings.
func TestEnsureWithoutForbiddenSettings(t *testing.T) {
	forbid := func(c *kafkatest.Cluster, refusal *kerr.Error, keys ...string) {
		c.Fake.ControlKey(int16(kmsg.CreateTopics), func(request kmsg.Request) (kmsg.Response, error, bool) {
			c.Fake.KeepControl()
			create := request.(*kmsg.CreateTopicsRequest)
			response := create.ResponseKind().(*kmsg.CreateTopicsResponse)
			for _, topic := range create.Topics {
				for _, config := range topic.Configs {
					if slices.Contains(keys, config.Name) {
						answer := kmsg.NewCreateTopicsResponseTopic()
						answer.Topic, answer.ErrorCode = topic.Topic, refusal.Code
						response.Topics = append(response.Topics, answer)
						return response, nil, true
					}
				}
			}
			return nil, nil, false
		})
	}
	t.Run("some", func(t *testing.T) {
		c := kafkatest.New(t)
		forbid(c, kerr.PolicyViolation, "unclean.leader.election.enable", "min.insync.replicas")
		_, log, err := ensure(t, c, spec(c.Prefix))
		if err != nil {
			t.Fatal(err)
		}
		got := configs(t, c, c.Prefix+".inbox")
		if got["retention.ms"] != "-1" || got["unclean.leader.election.enable"] == "false" {
			t.Errorf("configs of the inbox: %v", got)
		}
		if !strings.Contains(log, "config=unclean.leader.election.enable") {
			t.Errorf("no warning: %s", log)
		}
	})
	t.Run("the cleanup policy", func(t *testing.T) {
		c := kafkatest.New(t)
		forbid(c, kerr.InvalidConfig, "cleanup.policy")
		_, _, err := ensure(t, c, spec(c.Prefix))
		wantError(t, err, c.Prefix+".inbox")
	})
}

func TestEnsureWaitsForBrokers(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().(*net.TCPAddr)
	listener.Close()
	var log buffer
	client, err := kafka.Config{Brokers: []string{address.String()}}.NewClient(log.log())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := kafka.Ensure(ctx, client, spec("p"), log.log())
		done <- err
	}()
	kafkatest.Wait(t, 10*time.Second, "the wait to be logged", func() bool { return strings.Contains(log.String(), "waiting for the Kafka brokers") })
	cancel(stop)
	if err := <-done; !errors.Is(err, stop) {
		t.Errorf("got error %v when its context ended, want its cause", err)
	}

	go func() {
		_, err := kafka.Ensure(t.Context(), client, spec("p"), log.log())
		done <- err
	}()
	kafkatest.New(t, kfake.NumBrokers(1), kfake.Ports(address.Port))
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(15 * time.Second):
		t.Error("Ensure does not see that the broker is there")
	}
	if n := strings.Count(log.String(), "unable to open connection"); n > 2 {
		t.Errorf("the client's warnings are not held back: %d of them\n%s", n, log.String())
	}
}

func TestWatchPartitions(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(t *testing.T, c *kafkatest.Cluster, admin *kadm.Client)
		want   string
	}{
		{"more partitions", func(t *testing.T, c *kafkatest.Cluster, admin *kadm.Client) {
			if _, err := admin.CreatePartitions(t.Context(), 1, c.Prefix+".inbox"); err != nil {
				t.Fatal(err)
			}
		}, ".inbox had 4 partitions and has 5"},
		{"deleted", func(t *testing.T, c *kafkatest.Cluster, admin *kadm.Client) {
			if _, err := admin.DeleteTopic(t.Context(), c.Prefix+".msg.notify"); err != nil {
				t.Fatal(err)
			}
		}, ".msg.notify was deleted"},
		{"made anew", func(t *testing.T, c *kafkatest.Cluster, admin *kadm.Client) {
			if _, err := admin.DeleteTopic(t.Context(), c.Prefix+".presence"); err != nil {
				t.Fatal(err)
			}
			kafkatest.Wait(t, 10*time.Second, "the name to be free", func() bool {
				_, err := admin.CreateTopic(t.Context(), 4, -1, nil, c.Prefix+".presence")
				return err == nil
			})
		}, ".presence was deleted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			kafkatest.Each(t, func(t *testing.T, c *kafkatest.Cluster) {
				owned, _, err := ensure(t, c, spec(c.Prefix))
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				client := c.Client(t)
				done := make(chan error, 1)
				go func() { done <- kafka.WatchPartitions(ctx, client, owned, 20*time.Millisecond) }()
				select {
				case err := <-done:
					t.Fatalf("ended before anything changed: %v", err)
				case <-time.After(200 * time.Millisecond):
				}
				test.change(t, c, kadm.NewClient(client))
				select {
				case err := <-done:
					wantError(t, err, c.Prefix+test.want)
				case <-time.After(10 * time.Second):
					t.Error("the change was not seen")
				}
			})
		})
	}
	t.Run("until ctx ends", func(t *testing.T) {
		c := kafkatest.New(t)
		owned, _, err := ensure(t, c, spec(c.Prefix))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := kafka.WatchPartitions(ctx, c.Client(t), owned, time.Millisecond); err != nil {
			t.Error(err)
		}
	})
}
