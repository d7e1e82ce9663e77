// Package sink delivers the events of the event topics to one endpoint, as docs/design.md's guarantees say.
//
// # What runs where
//
// [Run] holds one session at a time, a session one membership in the sink's consumer group. A session has one loop
// (session.run) that owns all lanes and all decisions about commits and does no I/O; goroutines around it do, and hand
// it what happened as tasks:
//
//	                 ┌────────────── the loop ──────────────┐
//	reader ─records─▶│ lane: queue ▶ batch ▶ plan ▶ done    │─attempt─▶ transport (one goroutine a request in flight)
//	                 │   ▲        dispatch     │            │◀─answer──
//	member ─assigned▶│   │ load: plan          ▼            │
//	  callbacks, ◀───│───┘         one commit request ──────│──plans──▶ committer ─▶ coordinator
//	  revoked waits  └──────────────────────────────────────┘◀─result──
//
// [Lane], [Plan], claims (who may commit what, and when) and [Breaker] are the pure core: no I/O, no clock, no goroutine. A lane says which batch may be sent
// next ([Lane.Next]): one that is planned and shares no uid with an unfinished one before it. dispatch gives requests to
// lanes in turn, as far as the limit in flight, the rate and the breaker allow; each attempt is a goroutine of its own, and what
// its answer means ([JudgeStatus]) is decided by the loop: done, again later, halved, or dead. A commit request carries what all lanes have to
// say that wait for one; there is never a second in flight, and nothing sends one again.
//
// Two clients read and commit. The member's joins the group and is asked for member id and generation; its topics are
// paused, so it fetches nothing. The reader's is in no group and reads each lane from where its plan begins.
//
// # Who calls what from a callback
//
// The group's callbacks (onAssigned, onRevoked) hand the loop a task and call no client but for GroupMetadata.
// onRevoked, which serves revoked and lost partitions alike, returns when the loop has dropped the lanes and no commit
// request that holds one of them is in flight: that is where the right to commit a partition ends. The loop calls
// GroupMetadata, and pause and resume of the reader's client; it never waits for a client, so no callback waits long.
// The only lock is the reader's, held for no call but a context's cancel.
//
// # States and failures
//
// A lane goes loading → reading → dropped. Loading begins after the assignment, and so sees each commit that the
// coordinator accepted before. A start that is not committed yet is committed before anything is read.
//
//   - A process dies, or a partition is revoked with requests under way: the next owner finds the plan and sends the same
//     batches under the same ids. A batch whose plan was not committed was never sent.
//   - A zombie (a process that was stopped and wakes up) may still send what it had planned: the same requests. Its commit
//     is refused, since the coordinator knows its member id or generation no more.
//   - A commit whose outcome nobody knows may be applied at any later time: the session ends. The next one has a new member
//     id, and its plans are fetched after its assignment, when the old generation can commit no more.
//   - A commit that is refused for certain has changed nothing: the lane goes on proposing.
//   - The group has forgotten the member and the client has joined anew by itself: the lanes carry the member id that they
//     were assigned to, and the session ends before one of them commits under the new one.
//   - The endpoint fails: the batch is tried again, those that share a uid with it wait, the others go on. A full lane pauses
//     its partition.
//   - The endpoint refuses a batch: halves take its place in the plan, and are sent when that is committed. A single event, and a
//     batch that is given up, is marked dead; when that is committed it is written to the dead letters, and then it is done. An
//     answer that comes for a batch while a commit is in flight changes the lane at once, and the commit's answer says nothing of
//     what it changed.
//   - The log's start has passed the plan: see [Plan.CutTo]. A plan that cannot be read ends the process: it is never guessed.
//   - A partition cannot be read (no leader, no permission, lost records): its lane begins anew from what is committed, at
//     once and then after a backoff. One that cannot be loaded, or whose plan is refused, waits alone.
//   - A stop begins no batch and no further attempt, waits for requests under way up to the shutdown timeout, commits what
//     they did, and leaves the group.
package sink
