// Package blockdev is what a block device is: bytes that can be read and
// written at any offset, flushed, and sometimes zeroed, discarded or searched
// for holes. Everything above works on [Device]; what is below is a regular
// file or block device of the host ([File], shared through a [Pool]), memory
// ([Mem]), or a window on another device ([Slice]).
//
//	pool := blockdev.NewPool(blockdev.PoolOptions{})
//	origin, err := pool.Open("disk.img", true)
//	…
//	if _, err := origin.WriteAt(p, off); err != nil { … }
//	if err := origin.Flush(); err != nil { … } // now it is durable
//	err = origin.Close()
//
// # Words
//
// A sector is 512 bytes ([Sector]), whatever the logical block size of a disk
// is. Tables and formats count in sectors, I/O calls in bytes. The identity of
// a device ([ID]) says whether two names mean the same storage: device and
// inode of a regular file, the device number of a block device.
//
// # Rules
//
//  1. A request may start and end at any byte. Who needs alignment (O_DIRECT,
//     blocks of 4096 bytes) reads, changes and writes the edges himself, and
//     keeps other writers out of the block while he does.
//  2. Nothing but Flush makes a write durable, or the write itself with FUA.
//     Requests that overlap have no order unless one was answered before the
//     other began.
//  3. A failed flush is reported to every later one ([File.Flush]): the kernel
//     reports lost data once and forgets it.
//  4. A file is never made longer by a write, also where it shrank meanwhile;
//     only [Grow] does that. Data is never mapped into memory.
//  5. Abilities are optional interfaces ([Zeroer], [Discarder], [Extenter],
//     [FUAWriter], [Grower], [Preallocator], [Writebacker], [BlockSizer],
//     [Identified]); the function of the same name uses them or does without. [ErrUnsupported]
//     means that nothing was changed.
//  6. An error says device, operation and range ([Error]) and is of one kind
//     ([Kind]). Bytes before it may have been written, as the count tells.
//
// # Sharing and locks
//
// A pool opens each file once. One that is open for reading becomes one for
// writing when the first writer comes and goes back with the last: the open
// file is exchanged below its descriptor number (dup3), requests under way are
// not disturbed, and the read path takes no lock.
//
// Regular files and block devices are locked as qemu locks its images (see
// lock.go), on a descriptor apart from the I/O. Block devices are opened with
// O_EXCL for writing. What takes no lock is looked for when a file is opened
// or becomes writable:
//
//	                          we read            we write
//	another reader            shared             refused (we would change its base)
//	another writer            refused            refused
//	loop device, read-only    shared             refused (its cache would grow old)
//	loop device, can write    refused            refused
//	mounted block device      shared             refused by the kernel (O_EXCL)
//
// The error, [InUseError], names the holder: loop device, mount point, device
// above, or processes. It is searched for in sysfs and /proc, without asking a
// file system that is served by a process or another machine: it could be our
// own mount, waiting for us. What comes later (losetup on a file that we have
// open) is not prevented; a base that must not change is watched with
// [Pool.Guard].
//
// # Direct I/O
//
// With FileOptions.Direct requests whose offset, length and buffer
// ([AlignedBytes]) are aligned go to the disk as they are, others through a
// buffer. The part of a regular file that ends within a block goes through the
// page cache.
//
// # Failure
//
// A full disk, a limit, a file that shrank, a broken disk: an error to the
// request concerned, nothing else. SIGXFSZ, which comes with the limit on file
// sizes, is ignored by the Go runtime. After Close everything is [ErrClosed];
// requests under way end first.
//
// # Lock order
//
//	shared.mu (one file of a pool is opened, closed, made writable)
//	  File.mode (how a file is open; its size grows)
//	  Pool.mu (which files are open)
//	guards.mu (which files are guarded)
//	rangeLock (blocks written in part; direct I/O only)
//	  rangeLock.mu
//	Mem.mu, shared by every request
//	  page.mu
//
// Only the range lock is held during I/O, for the blocks concerned, and the
// first two while a file is opened.
package blockdev
