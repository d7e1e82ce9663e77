// Package txn is the read-process-write loop that route and presence run in: it consumes in a group, hands each
// record to a Handler, produces what the handler emits and commits the consumed offsets, all in one Kafka
// transaction, over and over. What it guarantees: state, output and offsets move together or not at all.
//
//	       ┌────────────── a session: one client, one group membership ──────────────┐
//	       │                                                                         │
//	await ─┼─▶ join ─▶ idle ──first record──▶ open ──drained, interval, bound──▶ End ─┼─▶ close
//	  ▲    │             ▲                                        │  │  │            │     │
//	  │    │             ├──── committed: Handler.Commit ─────────┘  │  │            │     │
//	  │    │             └──── aborted, and read back: Rollback ─────┘  │            │     │
//	  │    └────────────────────────────────────────────────────────────┼────────────┘     │
//	  └───────────────── error or doubt: Handler.Reset, backoff ◀────────┘            ctx ended
//
// # What happens on each failure
//
//   - End says aborted: what the transaction consumed will be consumed again. kgo also says so where EndTxn was
//     answered UNKNOWN_SERVER_ERROR and may have been applied, so the committed offsets are read back (after
//     InitProducerID has settled the transaction); only where they are those from before it is the handler rolled
//     back. Repeated aborts wait, from 50 ms up to 5 s.
//   - End, Begin or a fetch returns an error, an operation takes longer than operationTimeout, or a read-back does
//     not match: nobody knows what was committed. Handler.Reset throws all state away, the client is closed, and a
//     new session restores. The transactional id stays, so that the new session's InitProducerID ends what hangs.
//   - A rebalance takes a partition away in an open transaction: it is aborted. Ownership is never put together from
//     revoke callbacks (kgo drops them while an earlier revoke is unacknowledged) but taken whole from each
//     generation's assignment. A new member id with partitions that seem kept is doubt: another member may have
//     owned them in between.
//   - Between two transactions a rebalance leaves kgo's revoked flag up, which would abort the next one and swallow
//     later revokes: End(TryAbort) after the idle poll takes it down.
//   - A partition that nobody can look up (no leader) is left to kgo, which waits for it alone.
//   - A record fails: the transaction is aborted. The record may have been written all the same, and kgo would number the next one
//     alike, which the broker would drop as a copy: where the abort has begun no new epoch (before Kafka 4.0) the session
//     is over.
//   - A record that a topic refuses as too large ends Run with what to set: the same transaction would fail for ever.
//   - A record has more to do than one transaction should hold: the transaction ends, committed up to that record, and the
//     partition is read again from it. kgo would commit all that was polled; the offset is put right in its request.
//   - A process killed within a transaction blocks read-committed readers until the transaction times out (15 s, and up to
//     10 s more until the coordinator looks) or the same transactional id is initialised again. Each session does so
//     first, EndOpen before it where something must read earlier. Of a process that does not come back, those who are given its
//     partitions end what hangs (hanging.go).
//   - A rebalance holds up the partitions that stay too: kgo commits nothing while a join is under way, and a join waits for the
//     last member that lives to hear of it, by its heartbeat, and for one that has died until its session is over. So
//     heartbeats are frequent, and a dynamic member that is killed and started again at once holds up all for
//     the rest of its session: the new process's join begins a rebalance that the dead one is missing from. A static
//     member joins without one.
//   - An offset out of range, at the assignment or while running: the loop goes on at the log's start, and counts and
//     logs the gap. No committed offset means the partition's beginning.
//   - FENCED_INSTANCE_ID ends Run: another process runs with the same OFFHOOK_INSTANCE_ID.
//   - Refused authentication or authorization ends Run at the start and is waited for later. A broker that cannot be
//     reached is always waited for.
//   - An error of Handler.Process or Handler.Restore that is Fatal ends Run: the transaction is aborted.
//
// # Goroutines and locks
//
// One loop goroutine per session polls, calls the handler's methods (but for Restore), begins, produces and ends.
// kgo's group goroutine runs the assignment callbacks; from there only GroupMetadata and PauseFetchPartitions are
// called, never End, Close, LeaveGroup or a request, which would wait for the callback itself. The exception is the
// offset adjustment, which kgo runs on a goroutine that may send requests. Each assigned partition is restored on a
// goroutine of its own, at most restoresAtOnce working at a time, cancelled when the partition goes.
//
// [Membership] is for goroutines of others: it sends a heartbeat of the member by itself, which kgo's callbacks never wait for, and
// looks at the view.
//
// session.mu guards the view of ownership that callbacks write and the loop reads; under it only kgo's pause set is
// locked (Pause, Resume), nothing is sent, and no handler method is called. The loop resumes a partition under
// session.mu and only while the view still holds the very ownership that was restored: a partition that went and
// came back meanwhile stays paused until its new restore is done.
package txn
