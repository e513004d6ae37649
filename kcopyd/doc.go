// Package kcopyd copies ranges between devices, and nothing else: one source,
// up to eight destinations, asynchronously, with one serial stream of
// callbacks per client. It is dm-kcopyd of the kernel (drivers/md/dm-kcopyd.c)
// for programs.
//
// # Words
//
// A client ([Client]) is one user with a buffer budget and a callback stream.
// A request or job ([Job]) is one call of Copy or Zero. A segment is the part
// of a job that is copied in one go: one read, and one write per destination.
// The budget is counted in pages of 4096 bytes.
//
// # Rules
//
//  1. Data is read once and written from the same buffer to every destination.
//     Nothing is flushed: when a request has ended without errors, its writes
//     were answered, not made durable.
//  2. Buffers are all or nothing and first come, first served. No segment
//     needs more than the whole budget: a request up to min(512 KiB, budget)
//     is one segment; a larger one is cut into segments of a quarter of the
//     budget, 512 KiB at most, so that several are in flight. A segment that
//     has its buffer waits for no other buffer, and the first that waits stays
//     the first. So every request ends, whatever the budget.
//  3. Of one request at most eight segments are in flight; requests take turns.
//     After an error no new segment is started, unless IgnoreError. The errors
//     of the segments are or-ed; which of them were copied is not reported, so
//     after an error the destination is undefined, as in the kernel.
//  4. A read error ends its segment unwritten. With IgnoreError the segment is
//     read again page by page, and what then cannot be read is written as
//     zeros. A write error at one destination does not keep the same segment
//     from the others. An end of file is an error. Every error is reported,
//     ignored or not.
//  5. Callbacks of one client run one at a time, each after the one before it
//     has returned, in the order in which the requests ended, on a goroutine
//     of the client, never inside the call that submits. The buffers of the
//     request were given back before. A callback may submit requests and use
//     [Prepared.Do]; it must not wait for another request of its client
//     (Drain and Close included), which would be waiting for itself.
//  6. Holes of the source (see [blockdev.Extenter]) are not read: the same
//     range of the destinations is made to read as zeros, if possible as holes.
//     Where data was found it is taken for data for some requests more.
//     A hole that somebody fills while the request runs may be copied as it was:
//     keeping writers away is the caller's matter, as with any other data.
//  7. With WriteSeq the writes to each destination are issued in rising order,
//     each after the end of the one before; reads run ahead. After an error the
//     remaining segments are not written.
//  8. A request of 1 MiB or more with one destination is left to the file
//     system where both are its files (blockdev.Copy): without buffers, one
//     segment of up to 4 MiB at a time. When that fails for any reason, the
//     rest is read and written, the failed segment again, so that errors are
//     those of rules 3 and 4.
//  9. A throttle with a rate counts a byte once, when it is read or left to the
//     file system; holes count nothing.
//  10. A throttle gives way: for 5 ms, or three times the length of an I/O, after a request that somebody waits for
//     ([Throttle.Came]) one I/O is issued at a time, with pauses of twice its
//     length (yield.go).
//
// # Limits
//
// A client has at most [Options.Workers] goroutines doing I/O and one in a
// callback; they end when there is nothing to do. A device that does not
// answer keeps its workers and its part of the budget.
//
// # Lock order
//
//	Client.mu          lists, budget, errors of jobs; never held across I/O,
//	  |                callbacks or sleeps of the throttle
//	  Throttle.mu      leaf
//
// Callbacks run without a lock of this package. Copy, Zero, Prepare,
// Prepared.Do, Cancel, Progress, Err and Stats never wait for I/O and may be
// called with any lock held that callbacks may wait for.
//
// # Failure
//
// Errors of devices are values: two flags for the callback, and the first of
// them with operation, device and byte range in [Job.Err]. A request that no
// device can have (regions beyond the largest byte offset) fails in the same
// way, as its numbers may come from a damaged disk. Wrong calls panic: no or
// too many destinations, counts that differ, a Prepared used twice.
//
// # Example
//
//	c, err := kcopyd.New(kcopyd.Options{})
//	...
//	c.Copy(kcopyd.Region{Dev: origin, Start: 0, Count: 16},
//		[]kcopyd.Region{{Dev: cow, Start: 32, Count: 16}}, 0,
//		func(readErr bool, writeErr uint64) { ... })
//	...
//	c.Close()
package kcopyd
