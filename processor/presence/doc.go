// Package presence is the stage that knows which devices of a user are connected.
//
// It reads the inbox, which is one ordered log a user, keeps for each inbox partition that it owns a Table of the
// live connections and the remembered closes, and writes what follows: a user.onlinestatus event for every open and
// close, a msg.offline event for the recipients of a message that are offline, and every change of the table to the
// presence topic, from which the table is restored. All of it, and the inbox offset, move in one Kafka transaction
// (package txn), partition by partition: what is made of inbox partition p goes to partition p of every topic.
//
//	inbox p ──▶ Table p ──▶ user.onlinestatus p, msg.offline p
//	              ▲ │
//	       restore│ │changes
//	              │ ▼
//	           presence p (compacted)
//
// # States of a partition
//
//   - restoring: assigned, paused, and its part of the presence topic is being read, up to the high watermark of the
//     restore's beginning, beside the other partitions. A revoke cancels it.
//   - live: its table takes records. Within a transaction the table's changes are pending; Commit makes them
//     lasting, Rollback undoes them.
//   - gone: revoked; the table is dropped.
//
// Whatever might still be committed when the partition is assigned lies below the restore's target: an earlier
// owner's transaction flushes its records before it commits its offsets, which the coordinator refuses once the
// partition has moved, and the offset that reading goes on from is fetched only when no transaction is pending on it.
//
// # Silence
//
// A connection of which nothing is heard for OFFHOOK_CONNECTION_TTL is closed, by offhook's own clock. Each connection has
// the inbox offset of its last sign of life, in memory alone ([Table.Begin] says what a restored table takes for that), and
// [Liveness] turns a time to live into an offset: it marks about one inbox record a second, and begins anew at a gap. The
// marks are caught_up records, which route writes into every inbox partition while its group has read all connections
// topics to their ends (see package route). On each of them a part of the table is swept; who is silent is asked to be
// closed by an expire record in the inbox, so that what is heard until that is read counts ([Table.ExpireConnection]).
//
// # A gateway that starts
//
// node_started closes what the node had, some thousands of connections a transaction: the record is handed over again
// until it is done, nothing behind it in its partition is read before, and the inbox offset passes it with the last close. Other
// partitions go on in the same transactions. The start is recorded with the first closes, with its inbox offset, so that who
// takes over in the middle knows the record again and closes the rest.
//
// # Queries
//
// [Query] reads tables for others than the loop. The loop takes stage.tables, all its tokens, before the first change of a transaction
// and gives them back when that has ended, so that what is read is committed; who waits has its turn before the next transaction.
// Whether this process owns what was read is [txn.Membership]'s to say.
//
// # What happens on each failure
//
//   - A transaction is aborted: every table rolls back; the same records come again.
//   - Its outcome is unknown: all tables are dropped, and restored in a new session.
//   - A restore fails: it is tried again; the partition stays paused, the process is not ready.
//   - A record of the inbox or of the presence topic is of a newer version or cannot be decoded: the stage ends with a
//     sentence that says which. They are offhook's own, and none is ever skipped.
//   - Purging the inbox fails: logged once and counted; the inbox grows meanwhile.
//
// # Who changes what
//
// Table (with its users, in slabs), rules and Liveness are pure (table*.go, slab.go, rules.go, expiry.go). The loop goroutine of txn alone changes installed tables and the
// maps of them. A restore fills a table that nobody else sees, on its goroutine, and hands it over. The purge runs on a
// goroutine and a client of its own and knows only which partitions are owned, under stage.ownedMu, which is held for
// nothing else. A table changes only in a transaction that also consumed a record: one that consumed nothing is not
// fenced against a member that its group has removed. So forgetting old closes rides on records.
package presence
