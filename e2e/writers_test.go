package main

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/IBM/sarama"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/offhook/offhook/internal/kafka/kafkatest"
)

// writeTimeout bounds the write of one record.
const writeTimeout = 30 * time.Second

// writer writes one record and returns when Kafka has acknowledged it. An empty key is none.
type writer func(t *testing.T, topic, key, value string)

// writers are the client libraries that feed offhook, by name.
var writers = []struct {
	name string
	make func(t *testing.T, c *kafkatest.Cluster) writer
}{
	{"kcat", newKcat},
	{"sarama", newSarama},
	{"franz-go", newFranz},
}

// newKcat writes with kcat, which stands for librdkafka and the many clients made of it.
func newKcat(t *testing.T, c *kafkatest.Cluster) writer {
	path, err := exec.LookPath("kcat")
	if err != nil {
		t.Skip("kcat is not installed: install the package kcat (Debian, Ubuntu, Homebrew) to write with librdkafka too")
	}
	return func(t *testing.T, topic, key, value string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
		defer cancel()
		args := []string{"-P", "-b", strings.Join(c.Brokers, ","), "-t", topic}
		if key != "" {
			args = append(args, "-k", key)
		}
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Stdin = strings.NewReader(value)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("write to %s with kcat: %v\n%s", topic, err, out)
		}
	}
}

// newSarama writes with sarama's SyncProducer and its default partitioner.
func newSarama(t *testing.T, c *kafkatest.Cluster) writer {
	config := sarama.NewConfig()
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Return.Successes = true
	config.Metadata.AllowAutoTopicCreation = false
	producer, err := sarama.NewSyncProducer(c.Brokers, config)
	if err != nil {
		t.Fatalf("new sarama producer: %v", err)
	}
	t.Cleanup(func() {
		if err := producer.Close(); err != nil {
			t.Errorf("close the sarama producer: %v", err)
		}
	})
	return func(t *testing.T, topic, key, value string) {
		t.Helper()
		message := &sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder(value)}
		if key != "" {
			message.Key = sarama.StringEncoder(key)
		}
		if _, _, err := producer.SendMessage(message); err != nil {
			t.Fatalf("write to %s with sarama: %v", topic, err)
		}
	}
}

// newFranz writes with franz-go and its default partitioner, records of up to 4 MiB.
func newFranz(t *testing.T, c *kafkatest.Cluster) writer {
	client := c.Client(t, kgo.ProducerBatchMaxBytes(4<<20), kgo.ProducerLinger(0))
	return func(t *testing.T, topic, key, value string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
		defer cancel()
		record := &kgo.Record{Topic: topic, Value: []byte(value)}
		if key != "" {
			record.Key = []byte(key)
		}
		if err := client.ProduceSync(ctx, record).FirstErr(); err != nil {
			t.Fatalf("write to %s with franz-go: %v", topic, err)
		}
	}
}
