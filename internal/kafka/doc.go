// Package kafka holds what offhook's parts share of Kafka: the options of its clients, the names, creation and check
// of the topics that offhook owns, and the partitioner.
//
// # Waiting and refusing
//
// Everything here follows one rule. Brokers that cannot be reached, that have no leader or that are too slow are
// waited for: the cause is logged once, and again at intervals that double up to five minutes, until the context
// ends. What waiting does not mend is returned at once as an error that says what to change: refused authentication
// and TLS name the variable, refused authorization names the operation and the resource, topics with different
// partition counts are named with their counts.
//
// # Owned topics
//
// [Ensure] runs once at the start. It creates what is missing, with the settings that the guarantees need; a setting
// that the brokers forbid is left out with a warning, but the cleanup policy, without which either the changelog is
// lost or events are. Two processes may run it at the same time. It never changes a topic that exists: what differs
// there is the operator's, and is said in the log. [WatchPartitions] runs as long as the process, because uid →
// partition depends on the count: a count or a topic id that changes under a running process ends it.
package kafka
