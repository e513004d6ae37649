// Package replay goes through a log of writes (target log-writes, kernel:
// dm-log-writes.c) and makes the contents that the logged device had, or could
// have had after a power cut.
//
// # Words
//
//   - An entry is a write, a discard, a flush or a mark. An index counts entries
//     from 0.
//   - A cut is a place in the log where the power may go: just before a flush or
//     a durable write ends, or at the end of the log.
//   - Undecided units are what may be on the disk at a cut, or not: a write or a
//     discard that no flush has made durable, whole or cut into aligned pieces
//     when writes may tear.
//   - A state is a content after a cut: the units that were kept. Its seed is the
//     number of the cut and a number that says which units, see [Cut.State].
//
// # Rules
//
//  1. What the log has before a flush had been answered when the flush began, so
//     the flush makes it durable. A durable write (FUA) makes durable itself.
//  2. Undecided units are kept or lost independently of each other; those of one
//     place that are kept lie there in the order of the log. At a cut whose end is
//     a durable write, that write is undecided, too.
//  3. All marks before a cut had been set, as the power can go at the last moment
//     before its end: what they promise holds in every state of the cut.
//  4. Writes that were answered while a flush was under way stand behind it in the
//     log. States with them and without the flush are legal and not made: the
//     log does not tell when a write began.
//  5. A discarded range reads as zeros.
//  6. A state follows from the log, the tear and its seed alone. What is drawn is
//     drawn from numbers that the caller gave.
//
// # Failure
//
// A log is checked as a whole when it is read: what is torn, truncated or no log
// is [blockdev.ErrInvalid] and names the entry. Errors of devices come through.
package replay
