// Package devtest has what tests of block devices need.
//
//   - [Suite]: what every [blockdev.Device] must do; run it for each new kind.
//   - [Fault]: a device that fails by [Rule]: errors, delays, short and torn
//     I/O, and requests that hang until they are released.
//   - [Log]: records the operations on several devices in one order.
//   - [CrashGroup]: several devices that lose power at one instant. It yields
//     every content they can have afterwards.
//   - [Fill] and [Check]: numbered patterns, which show a piece that was
//     written to the wrong place or at the wrong time.
//
// # The model of a power cut
//
// A disk has a volatile cache and writes sectors of 512 bytes whole, in any
// order. A write that was begun may be on the disk or not, each of its sectors
// by itself, whether it was answered or was under way at the cut. A sector
// that was written several times since it was last made durable holds any of
// these versions, or the old one. A flush makes durable what was answered
// before the flush began; a write with FUA makes durable exactly itself. Both
// count only when they are answered. Devices of one group lose power together,
// but each chooses by itself what it kept.
//
// # Words
//
// An event is the beginning or the end of an operation, or a mark that the
// test put into the log. A cut is a place in the log where the power may go; a
// state is one content of all devices that is possible after a cut. Undecided
// sectors are those with more than one possible version.
//
// Nothing here is random but by a seed that the caller gives and prints.
package devtest
