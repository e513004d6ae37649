// Package control is how programs talk to the daemon: the types on the wire
// and a client. It imports nothing else of this module, so a program can use
// it without FUSE.
//
// # Words
//
// The daemon answers HTTP on a unix socket. A request is JSON, a reply is
// JSON, an event stream is one JSON object a line. Every route is described
// with an example in docs/control.md.
//
// A [Key] names a device by exactly one of its name, its uuid and its minor
// number. A [Step] is one change to one device; [Client.Apply] runs a list of
// them inside the daemon, all or nothing. A [View] is what the caller sees
// under a path it names, so that the daemon can refuse to act on another file
// than the caller meant.
//
// # Rules
//
//   - Field names, codes and routes under /v1 are stable: fields are added,
//     never renamed, and a reader ignores those it does not know.
//   - Sizes and offsets of table lines are in sectors of 512 bytes, as the
//     kernel's; everything whose name ends in "bytes" is in bytes.
//   - An error is an [Error]: a stable code, the errno that the kernel's
//     device-mapper would give, the step it happened in, and a text for people.
//
// # Failure
//
// A client whose connection ends (it was killed, or its context ended) stops
// what it waited for; an operation that had begun is finished or undone by the
// daemon, never left half done.
package control
