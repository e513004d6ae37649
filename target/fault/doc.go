// Package fault has the targets that people test software with: flakey, which
// fails, drops or corrupts requests from time to time; delay, which is slow;
// dust, which has bad blocks; and log-writes, which writes down what is written
// in an order that shows what was durable when.
// [OpenLog] reads such a log.
//
// # Words
//
//   - Up and down: a flakey device is up for some seconds, in which it is a
//     linear one, then down for some seconds, in which it does its mischief, and
//     so on from the moment its table was loaded.
//   - A log is a device with what log-writes wrote down; an entry is a write, a
//     discard, a flush or a mark on it. A write that was answered and is not on
//     the log yet is pending: nobody knows whether it is durable.
//
// # Rules
//
//  1. A request is one request of the mapper: what reaches the target in one
//     piece. Byte n of corrupt_bio_byte counts in it.
//  2. Everything that is not a read counts as a write: discards, zeroing and
//     flushes, too (kernel: bio_data_dir).
//  3. The caller's buffer stays as it is: what is corrupted on the way down is
//     a copy.
//  4. Arguments are checked before a device is opened.
//  5. The log is in the order in which writes became durable: pending ones with
//     the flush that covers them, in the order of their completion; one that is
//     durable by itself at once, with the older ones to the same blocks before
//     it. A flush and a durable write are answered when they are on the log.
//  6. One flush at a time: two at once would be logged in the wrong order.
//  7. When the log cannot be written, it ends, and requests go on.
//
// # Locks
//
// logWrites.edges is held while the device is written; flushing, a token, while
// it is flushed. logOwners.mu comes before logWrites.mu, which is not held
// during I/O. A goroutine writes the log as long as something is to be written;
// Close waits for it.
//
// # Failure
//
// A failure that a target makes by itself is of kind I/O and says which target
// made it. Errors of lower devices come through, that of opening one too, save
// for dust, which makes it one of kind invalid as the kernel does.
package fault
