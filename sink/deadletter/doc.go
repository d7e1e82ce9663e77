// Package deadletter reads the dead-letter topic and replays what stands there. It serves the operator's commands: it
// never joins a group, commits nothing, and deletes nothing, so a letter that was replayed stays until its topic's
// retention ends.
//
// # Reading
//
//	Open ──▶ Topic: id, start and end of each partition as they are then
//	           │
//	           └─ Letters(partition): start ──▶ end, read committed
//	                 each record is a Letter: readable, a Copy, or with an Err
//
// What a sink buries it may write twice (it dies between the write and its commit), under one key. Equal keys are in one
// partition, the first counts, and the others are a [Letter.Copy]. For that a read remembers 16 bytes of the hash of each
// key of the partitions that it is in; nothing else that it holds grows with the topic.
//
// A record that this release cannot read (broken, or of a newer format) is a letter with an Err: it is counted and named,
// and stops nothing.
//
// # Replaying
//
// [Replay] goes through the partitions side by side, one letter of a partition at a time, in order:
//
//   - Letters of a sink are POSTed with the settings of a sink, one event a request, under
//     `<topic id>-<partition>-<offset>-r<run>` of the dead letter, where run is the Unix second at which the replay began.
//     It is not the id of the first delivery, because a receiver that has seen that may drop it on sight. A replay that
//     goes on with an earlier run has its ids, so a receiver that remembers them sees each event once.
//   - Letters of route are put back into their source topic, to be routed again. Putting back twice makes two records: to
//     go on with such a replay is to begin after what it has done ([Filter.After]).
//
// # Failures
//
//   - An answer of 400, 413, 415 or 422: the letter is refused again. It is reported and counted, and the partition goes on.
//   - Any other answer, or none: the letter is sent again for [Config.Patience]; then the whole replay ends, with a
//     [StoppedError] that says where each partition stands. Requests under way end first: the others are neither cut off
//     nor tried again.
//   - The command is interrupted: the same.
//   - A letter that cannot be replayed (its value was cut, its event is none of the sink's) is reported and counted.
//   - A source topic that is gone, or a broker that does not take a record: the replay ends with an error.
package deadletter
