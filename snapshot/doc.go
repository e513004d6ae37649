// Package snapshot has the targets snapshot and snapshot-origin: a writable
// point-in-time view of a device, in the kernel's own on-disk format.
//
// # Words
//
// The origin device is the lower device that holds the original data;
// snapshots find each other and the snapshot-origin target by its identity.
// The COW device holds what was saved or written since. Both are divided into
// chunks. An exception says that the data of a chunk of the origin is in a
// chunk of the COW device; it is pending from its allotment until it is
// recorded, then completed. The store is what allots the chunks of the COW
// device and keeps the list of exceptions: persistent (P, PO) on the COW device
// itself, or transient (N) in memory.
//
// # Rules
//
//  1. Order of a commit: the data of a chunk is written to the COW device →
//     barrier → its exception is written → barrier → whoever waits for it is let
//     through. Exceptions are written in the order in which their chunks were
//     allotted, so that the log has no holes. The list on the disk ends, at
//     every moment, with an entry of zeros or at the end of an area whose
//     successor begins with one.
//  2. An origin write reaches the origin only when every active snapshot has a
//     completed exception for each chunk it touches, or is invalid, durably.
//     A pending exception does not count, whoever made it.
//  3. A write to a snapshot is answered when its exceptions are durable.
//  4. A snapshot that lost something becomes invalid before the origin goes on,
//     in memory and on the disk, and stays so for ever. It never fails the
//     origin.
//  5. A read of the snapshot returns data of the snapshot however origin writes
//     overtake it: the exceptions are looked at again after the origin was
//     read.
//
// # Locks
//
//	origin.gate        passed by each origin write from its first copy to the
//	                   end of the write; shut by the resume of a snapshot
//	  Group.mu
//	  origin.mu        list of snapshots
//	    snapshot.mu    pending exceptions, queue, allotment in the store
//	      exceptions.mu
//	  health.mu
//
// No lock is held during I/O on a device; the gate and the leadership of a
// commit are no locks in this sense. A request fills and commits the chunks it
// allotted itself before it waits for those of others, so that no two can wait
// for each other.
package snapshot
