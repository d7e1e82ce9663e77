package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// confirmAfter is how soon a change is looked at again before it is believed: a broker that is behind may show the
// past.
const confirmAfter = time.Second

// WatchPartitions looks at the owned topics at each interval until ctx ends, and then returns nil. It returns an error
// that names the topic when its number of partitions changes, or when it is deleted or made anew: uid → partition
// would not be what it was. Brokers that do not answer are none of its business.
func WatchPartitions(ctx context.Context, client *kgo.Client, owned Owned, every time.Duration) error {
	names := slices.Sorted(maps.Keys(owned.IDs))
	var suspected error
	for {
		wait := every
		if suspected != nil {
			wait = min(every, confirmAfter)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		found, err := lookUp(attempt, client, names)
		cancel()
		if err != nil {
			continue
		}
		changed := changes(owned, names, found)
		if changed != nil && suspected != nil && changed.Error() == suspected.Error() {
			return changed
		}
		suspected = changed
	}
}

func changes(owned Owned, names []string, found map[string]topicState) error {
	for _, name := range names {
		topic, was := found[name], owned.IDs[name]
		switch {
		case errors.Is(topic.err, kerr.UnknownTopicOrPartition):
			return fmt.Errorf("topic %s was deleted while offhook ran", name)
		case topic.err != nil:
			// No leader, no permission any more: for the loops to wait for.
		case topic.id != was && topic.id != [16]byte{} && was != [16]byte{}:
			return fmt.Errorf("topic %s was deleted and made anew while offhook ran", name)
		case topic.partitions != owned.Partitions:
			return fmt.Errorf("topic %s had %d partitions and has %d now: the topics that offhook owns must keep their number of partitions", name, owned.Partitions, topic.partitions)
		}
	}
	return nil
}
