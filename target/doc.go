// Package target is the contract between the mapper, which owns devices and
// tables, and the targets, which own what happens to a request.
//
// # Words
//
//   - A table line is "start length type arguments": one segment of a mapped
//     device and the target that serves it. Numbers are sectors of 512 bytes.
//   - A lower device is what a target stores on: a file, a block device, or
//     another mapped device.
//   - The info form and the table form are the two texts of a target:
//     "dmsetup status" and "dmsetup table".
//
// # Life of a target
//
// A target is made by [Type.New] when its table is loaded, which may be long
// before the table is live, while an older table with targets on the same lower
// devices is still at work. The order is that of the kernel (dm.c):
//
//	New of the new target                        (load)
//	Presuspend of the old, in table order        (suspend)
//	    all requests of the old end
//	Postsuspend of the old
//	Preresume of all new, then Resume of all     (resume)
//	    requests of the new begin
//	Close of the old
//
// A target that was never resumed is closed too. One that is suspended and
// resumed without another table gets Presuspend, Postsuspend, Preresume and
// Resume. A suspend whose caller stops waiting ends with PresuspendUndo instead
// of Postsuspend. A removed device's targets get Presuspend and Postsuspend, if
// they were active, and Close.
//
// # Rules
//
//  1. Offsets and lengths of requests are bytes of the mapped device; tables and
//     statuses are in sectors. A request may begin and end at any byte of the
//     segment.
//  2. A request does all of its bytes or returns an error. It is not begun
//     before Resume has returned, and none is inside between Postsuspend and
//     Preresume.
//  3. Flush returns when all writes answered before it are durable, with the
//     metadata needed to find them (promise 1).
//  4. A context ends waiting, never work that has begun.
//  5. A buffer given to Write belongs to the caller and is not changed.
//  6. Requests go to lower devices through [ReadLower] and its like, so that a
//     wait for a suspended mapped device below can be ended.
//  7. Status in table form is a fixed point: parsed and made again it gives the
//     same text. Words in both forms are quoted with [Quote] or [DeviceWord].
//
// # What may block
//
// New may read and write lower devices. Presuspend, Postsuspend, Preresume and
// Resume may wait for the target's own work, as long as that ends by itself.
// Status, Devices and Env.Event must not wait for I/O.
//
// # Locks
//
// The mapper holds none of its locks while it calls a target, save the turn of
// the device in New and the four steps of suspend and resume; a target must not
// call operations of its own device from there. Env.Event may be called with a
// target's locks held.
//
// # Failure
//
// Errors are of a kind of blockdev. New refuses arguments with an [ArgError],
// which names the argument, what was found and what was expected.
package target
