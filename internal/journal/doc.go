// Package journal keeps the requests that a receiver read, in the order in which it took them, in a file that outlives the
// receiver's kill -9.
//
// # Format
//
// An entry is a line of five fields and the request's body:
//
//	<Unix ms> <event> <webhook-id> <taken> <length>\n
//	<body>\n
//
// The length is that of the body in bytes, without the line end behind it. taken is 1 where the receiver has taken the
// events, whether or not the answer got back to the sender, and 0 where it refused them. Event and webhook-id are escaped
// as in a query string, which changes nothing about those that offhook sends; - stands for one that is empty.
//
// # What a crash leaves
//
// A [Writer] writes an entry with one call of write(2) before the request is answered, so that each request that was
// answered is in the file. It is not synced: the file is whole when the process dies, not when the machine does. A process
// that is killed amid its call leaves a torn entry at the end, which stands for a request without an answer; [Open] cuts it
// off before it appends, and a [Reader] ends before it and says so. Anything else that is no entry is an error.
//
// A writer whose write failed writes nothing more, since the file may end in half an entry: each later Write returns the
// first error.
package journal
