package txn

import (
	"bytes"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FuzzAdvertise: what stands in a member's subscription, which any client of the group may have written, gives a URL or none; and a
// URL that was added is found, with what stood there before it as it was.
func FuzzAdvertise(f *testing.F) {
	subscription := kgo.CooperativeStickyBalancer().JoinGroupMetadata([]string{"t"}, map[string][]int32{"t": {0, 1}}, 7)
	f.Add(subscription, "http://10.0.0.7:8080")
	f.Add(advertise(subscription, "http://before"), "http://10.0.0.7:8080")
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, subscription []byte, url string) {
		_ = AdvertisedURL(subscription)
		got := advertise(bytes.Clone(subscription), url)
		var before, after kmsg.ConsumerMemberMetadata
		if before.ReadFrom(subscription) != nil || url == "" {
			if !bytes.Equal(got, subscription) {
				t.Error("a subscription that is none, or to which nothing is to be added, has changed")
			}
			return
		}
		if err := after.ReadFrom(got); err != nil {
			t.Fatalf("the subscription cannot be read any more: %v", err)
		}
		if !bytes.HasPrefix(after.UserData, before.UserData) {
			t.Error("the user data does not begin as before")
		}
		if !bytes.Contains(append(bytes.Clone(before.UserData), urlMark[:len(urlMark)-1]...), urlMark) && AdvertisedURL(after.UserData) != url {
			t.Errorf("the URL is %q, want %q", AdvertisedURL(after.UserData), url)
		}
	})
}

// FuzzParseSyncAssignment: an assignment, which the group's leader writes, is taken as a whole or refused.
func FuzzParseSyncAssignment(f *testing.F) {
	assignment := kmsg.NewConsumerMemberAssignment()
	topic := kmsg.NewConsumerMemberAssignmentTopic()
	topic.Topic, topic.Partitions = "t", []int32{0, 3}
	assignment.Topics = append(assignment.Topics, topic)
	f.Add(assignment.AppendTo(nil))
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		a := &assignments{GroupBalancer: kgo.CooperativeStickyBalancer()}
		full, err := a.ParseSyncAssignment(raw)
		if err != nil {
			if a.newest() != nil {
				t.Error("an assignment that cannot be read is the newest")
			}
			return
		}
		if len(a.newest()) != len(full) {
			t.Errorf("%d topics are assigned, and %d known", len(full), len(a.newest()))
		}
	})
}
