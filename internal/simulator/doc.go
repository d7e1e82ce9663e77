// Package simulator writes the traffic of an invented instant-messaging system into offhook's input topics, as the
// pipelines that feed offhook would: through sarama's producer with its default partitioner, acknowledged by all
// replicas and idempotent.
//
// The same [Config], seed and run included, yields the same records in the same order, times aside; how far a run gets
// depends on its bounds alone, unless the brokers cannot keep up.
//
// # Who does what
//
// Of the users, a fifth never connect (sleepers), a fifth connect before the first message and stay (residents), a
// twentieth live on a gateway node that crashes now and then (restarters), and the others come and go on the other
// nodes (churners). Sleepers never send. The uids are <name>-<run>, so that two runs into one cluster share no user.
//
// # What makes the truth decidable
//
// offhook orders what comes from one input partition, and nothing else. So all connection events of a user have one
// key, its uid, and one producer. A node's start is ordered against the events of its users only where it shares their
// partition: the users of the node that crashes are on no other, and its events, theirs among them, have the node as
// key. Connections and messages lie in different topics: that a resident is online when the first message comes is only
// known if offhook runs and keeps up while they connect, for which the run waits [Config.Settle].
//
// A connection id is used for one connection of its node, and times rise strictly for each user (for all users of the
// node that crashes together). Beside the onlines and offlines that change something there are those that must not:
// a refreshed online, copies of one that is open and of one that was closed since, offlines of what is closed,
// heartbeats with and without flag.
//
// # Upsets
//
// With Crashes, Late, Doubled, Skew or Heartbeat the traffic is that of an installation where things go wrong: nodes crash
// without a word and count their connections anew, events come seconds behind later ones, records come twice, clocks are
// apart, connections fall silent. Then the order against each other of what lies in several partitions decides what must
// arrive, and only who reads the inbox can tell: such a run takes no truth. For who judges it afterwards [Deps.Acks] names
// each record that Kafka has acknowledged. Each node's clock never goes back, and an event has the time of its node's.
//
// # Ends
//
// A run ends at its bounds, or when its context ends; both wait until all records are acknowledged, the latter for
// [Config.FlushTimeout] at most. A record that Kafka refuses ends the run with an error; with [Config.Persist] it is
// counted, and the producer is not idempotent, so that no record that failed stands in another's way. The truth has only
// what was acknowledged; what was not, and may stand in Kafka all the same, is marked as doubtful in it.
package simulator
