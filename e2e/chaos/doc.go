// Package chaos runs offhook as an installation would have it, breaks everything around and in it, and has
// internal/oracle judge what came of it.
//
// # What runs
//
//	simulate ─▶ toxiproxy ─▶ 3 brokers ◀─ toxiproxy ─ 3 processors
//	                             ▲                    3 sinks ─▶ toxiproxy ─▶ receive ─▶ journal
//	                             └─ the run itself, directly: topics, leaders, and in the end every record
//
// Each box is a process of its own: what [Run] has built of this repository, Apache Kafka by scripts/kafka.sh, and toxiproxy,
// whose version stands in tools/go.mod. The brokers have a second listener that leads clients through toxiproxy.
//
// # What is broken
//
// [Plan] draws faults from a seed, in three tracks beside each other: processes, brokers and the way to them, the endpoint
// and the way to it. Within a track one fault ends before the next begins, and each kind comes once before one comes again.
// The same seed gives the same plan; what a fault meets is decided by the machine's pace, so that a run is repeated in kind
// and not to the instruction. Two brokers are never down at once: that is what min.insync.replicas=2 of three promises.
//
// # How it ends
//
// All faults are healed and the simulator is stopped. When the processors have done all that came from the input they are stopped, and
// when the sinks have lag 0 these are, by SIGTERM and with exit code 0. Then the input topics, the inbox, the dead letters, what the simulator noted as acknowledged and
// what the receiver noted as taken are given to the oracle. A process that ended by itself meanwhile fails the run as a finding of
// the oracle does. Evidence (logs, journals, the plan as it happened, the report) is kept where the run failed or --evidence names
// a directory.
package chaos
