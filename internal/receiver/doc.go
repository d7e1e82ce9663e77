// Package receiver takes webhook requests as a careful business back end would, and keeps the books on them: signatures,
// ids that come again, order, repeats, and, with a truth, what was lost. It knows nothing of offhook but the contract.
//
// # What it checks
//
//   - A request with a webhook-id that was taken before is a repeat: it is answered, and its events are not taken again.
//     Its body must be the same.
//   - After that, the same event under another id is a duplicate: for msg.notify a message, for msg.offline a message and
//     a recipient. A user.onlinestatus changes the user's total by one, so the same item twice in a row is one as well;
//     and with a truth each that comes more often than it says.
//   - Order: the n of a client_msg_no <run>-<from_uid>-<n> must not fall for one sender in msg.notify (with OrderByChannel:
//     for one sender and channel), nor for one sender and recipient in msg.offline. Each user.onlinestatus must change the user's total, and its count for the device
//     flag, by exactly one against the item before. The first item of a user is taken as it is, as long as it makes sense.
//     With a truth also the order of items that happen to fit.
//   - What a truth demands and did not arrive is lost: messages without msg.notify, pairs of message and recipient without
//     msg.offline, missing user.onlinestatus items. What it forbids is unexpected: a msg.offline to somebody who was
//     online, is no recipient, or is the sender; an item that it does not have. Messages and users that it does not
//     name are not judged by it.
//
// # Endpoints that misbehave
//
// A [Player] stands before a receiver, or any other handler, and plays scenarios: it delays, refuses, cuts off, or spoils
// the answer to what was taken. [Listen] plays the one that needs the port, down. What a scenario refuses never reaches
// the receiver, and so its books.
//
// # The journal
//
// With one, each request that was read whole is noted before it is answered, taken or refused, in the order in which requests
// were taken: a receiver that is killed loses nothing that a sender was told. A request that cannot be noted is answered 500
// and not taken.
//
// # Memory
//
// Unless it is unchecked, it must remember what it has taken for as long as it runs, and so grows with it: 8 bytes of hash for each id, body,
// message, pair and item, and a map's overhead on them. Hashes are seeded by the process; that two of ten million are
// equal has a chance of three in a million.
package receiver
