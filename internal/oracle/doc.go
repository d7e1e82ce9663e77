// Package oracle judges a finished run of offhook. It is given everything that is known of it: what the producers of
// the input had acknowledged, the logs of the input topics and of the inbox, the dead letters, and the requests that
// the receiver read. It names every loss, duplicate, disorder, wrong count, changed body and wrong close, with the
// record that proves it.
//
// It shares no code with what it judges, nor with the package that both sides of offhook encode with: the rules are
// written anew from docs/design.md, so that one mistake is not made on both sides.
//
// # How it judges
//
//		acks ──▶ input log ──(1)──▶ inbox ──(2)──▶ user.onlinestatus, msg.offline ──(4)──▶ requests
//		              └──────────────(3)──▶ msg.notify ────────────────────────────(4)──▶
//
//	 1. Each inbox partition must be a merge of what the input partitions put into it, which keeps the order of each.
//	    Equal records may stand in two input partitions; then it is not known which came, and the oracle goes on with all
//	    that are possible. A list of recipients may be cut anywhere.
//	 2. A model of who is online reads the inbox as it is, and says which statuses and offline pushes must come of it. It
//	    takes a close by the time to live as it stands there, and checks that the connection had been silent for as long.
//	 3. Each message gives one msg.notify.
//	 4. The requests that were taken, each id once and in the order of its first taking, are aligned with what must have
//	    come: for each uid and event, and for msg.notify for each order key, where a merge of the input partitions will do.
//	    What is missing and stands in the dead letters is not lost; it has no place in the order.
//
// A fault is named where it happened, and not again behind it: a record that the inbox lacks is a lost input, and no
// event is expected of it.
//
// # Limits
//
// Every input topic must have been read from its beginning, and the inbox too: OFFHOOK_INBOX_KEEP has to keep it. The run
// must be over, with nothing under way. Events that are equal (the same user, connection and counts; the same message
// twice) are told apart by their number and place alone. Bodies are compared by hashes of 64 bits. A rewind of a sink
// sends events again on purpose, which the oracle would call duplicates.
package oracle
