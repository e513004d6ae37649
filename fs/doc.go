// Package fs shows devices as files in a FUSE mount.
//
//	R/dev/NAME                                            a device
//	R/dev/.dmfuse/NAME/{table,status,info,uuid,events}    what is known of it, read-only
//
// # Words
//
// A node is what the kernel asks about: the root, .dmfuse, a device file, the
// information directory or an information file of a device. A handle is what
// OPEN gave out. A transport is the way by which requests arrive: readers of
// /dev/fuse of our own (devloop.go), io_uring (ringloop.go), or go-fuse's Server. What the files do is in
// FileSystem, which is a fuse.RawFileSystem and knows no transport; what our own
// readers do not answer themselves they give to fuse.ProtocolServer.
//
// # Rules
//
//  1. Nothing is kept that a new process could not rebuild. Node ids follow from
//     Device.Serial (node.go), the handle of a device file is always 0, FORGET
//     is ignored, directory cookies are node ids. What opens.go and infofile.go
//     hold are caches; a request for what is not in them is answered all the
//     same, and the RELEASE of an open that was never counted takes nothing back.
//  2. Nothing is cached between the caller and the device. Files are opened
//     FOPEN_DIRECT_IO, the writeback cache is not negotiated, and names,
//     attributes and sizes hold for no time at all: a device that appears,
//     vanishes, moves or is resized is seen so by the next system call, and no
//     notification is ever sent (one that invalidates data would wait for the
//     reads of a suspended device). Shared mappings go through the page cache
//     while they last.
//  3. A write with O_DSYNC, O_SYNC or RWF_DSYNC is handed on as durable: with
//     direct I/O the kernel sends no FSYNC after it. fsync and fdatasync are a
//     flush; close is not.
//  4. Punched holes and zeroed ranges read as zeros. What would make a file
//     longer is ENOSPC; setting the size to what it is, or to 0 as O_TRUNC does,
//     succeeds and changes nothing; any other size is EINVAL.
//  5. No device operation is answered with ENOSYS: the kernel takes it for
//     "never ask again", for every device of the mount. (For extended
//     attributes, poll, statx, locks and the FLUSH of a close that is what is
//     wanted.)
//  6. An errno is made in errno.go only.
//
// # Ioctls
//
// FUSE passes on ioctls whose number says how many bytes are copied. Of those
// that block devices know, this is BLKGETSIZE64, which is answered. BLKGETSIZE,
// BLKSSZGET, BLKPBSZGET, BLKROGET, BLKDISCARD and BLKZEROOUT do not say so and
// are ENOTTY whatever we would answer; use stat, fallocate and dmfuse discard.
//
// # Who waits for whom
//
// While a request is answered another thread waits for the next (the last one
// that waits gives its request to a goroutine and waits again; the thread of a
// ring does only what waits for nothing), and the kernel lets thousands of asynchronous ones out at a time, so that the queue of a
// suspended device holds up no other. No lock is
// held while a device is called. Device.Size, Attr, Open, Release, InfoText and
// the methods of Source must not wait for I/O: stat and ls go through them.
//
// An interrupt ends the context of a call whose caller wants to end: a signal
// that ends the process is pending, or one of HUP, INT, QUIT and TERM. The kernel
// sends interrupts for any signal that the caller does not ignore (the timers and
// children of a program, the Go runtime's own), for a tracer and for a container
// that is paused, while I/O on a disk never fails with EINTR and most programs
// take that for a broken disk. So the caller's pending signals are looked at, now
// and every 50 ms until the call has ended. A device that was waiting returns
// ErrInterrupted and the caller sees EINTR. Interrupts come only for synchronous
// calls: a process with asynchronous I/O (libaio, io_uring) under
// way cannot end, even by kill -9, before the device has answered. With go-fuse's
// own loop every interrupt ends the wait.
//
// # Deadlocks to know
//
//   - A process that waits on a mount of its own cannot be killed: its threads
//     hold /dev/fuse open while they wait. The daemon never touches its own
//     mount; lower devices that lie in it are resolved by name inside mapper.
//     For the same reason tests let other processes do what may wait. Abort
//     ends such a wait from inside, writing to
//     /sys/fs/fuse/connections/N/abort from outside.
//   - A page fault on a mapping of the own mount, or the poll that package os
//     does when it opens a file, stops the Go runtime of both ends.
//   - An answer, and the answer to an INTERRUPT, count on the descriptor only
//     that the request was read from.
//   - Under memory pressure the kernel may write dirty pages through the daemon
//     (loop devices do): memory that a request needs should not have to wait for
//     that. Each reader has buffers for 1 MiB, of which only the pages that were
//     filled take up memory; requests that a goroutine answers have smaller ones
//     where that is enough.
//
// # Failure
//
// An error of a device becomes the errno of its kind for the request concerned.
// A panic becomes EIO and a line in the log; the mount goes on. A mount that a
// dead daemon left is taken away by the next one, if it is one of ours.
package fs
