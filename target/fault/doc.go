// Package fault has the targets that people test software with: flakey, which
// fails, drops or corrupts requests from time to time.
//
// # Words
//
//   - Up and down: a flakey device is up for some seconds, in which it is a
//     linear one, then down for some seconds, in which it does its mischief, and
//     so on from the moment its table was loaded.
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
//
// # Failure
//
// A failure that a target makes by itself is of kind I/O and says which target
// made it. Errors of lower devices come through.
package fault
