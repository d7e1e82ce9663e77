// Package truth says what must come out of offhook for traffic that is known: which messages are notified, who must
// and who must not be pushed to, and the exact user.onlinestatus items of every user, in order. The simulator writes
// it, one line for each fact, when Kafka has acknowledged the record that makes it one; the receiver reads it and says
// what was lost. It imports nothing of offhook, so that a mistake of offhook's is not one of the truth's too: the
// device counts come from a model of its own, [Connections].
//
// # File
//
// A truth file is JSON lines, each an object with a "kind":
//
//	{"kind":"run","run":"k3","seed":7,"settled":true}
//	{"kind":"user","uid":"u0-k3","presence":"sleeper"}
//	{"kind":"group","channel_id":"g0-k3","members":["u0-k3","u5-k3"]}
//	{"kind":"message","client_msg_no":"k3-u5-k3-1","from_uid":"u5-k3","n":1,"channel_id":"g0-k3","channel_type":2,"push":true}
//	{"kind":"status","uid":"u5-k3","item":"u5-k3-0-1-17-1-1"}
//	{"kind":"doubt","uid":"u5-k3"}
//	{"kind":"end","messages":1,"items":1}
//
// The run comes first, users before the groups and messages that name them, the end last: a file without it was cut
// short, and [Read] refuses it, since what was acknowledged afterwards is not in it.
//
//   - A message is one msg.notify. With push, its recipients (the members of the group channel_id, or, for channel_type
//     1, the user channel_id; never the sender) are pushed to as their presence says: a sleeper never connects and must
//     get a msg.offline; a resident is online from before the first message to the end and must not (settled false: its
//     online may have come late, and it may); any other, a churner, may. Without push nobody must get one.
//   - The statuses of one uid stand in the order in which they must arrive.
//   - A message with "doubt":true, or a doubt about a uid, comes from a record of which nobody knows whether Kafka took
//     it: the message may arrive, and of the uid any statuses may follow the ones listed.
package truth
