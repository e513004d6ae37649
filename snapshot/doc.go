// Package snapshot has the targets snapshot, snapshot-origin and snapshot-merge:
// a writable point-in-time view of a device, in the kernel's own on-disk format.
//
// # Words
//
// The origin device is the lower device that holds the original data;
// snapshots find each other and the snapshot-origin target by its identity
// ([Group]). The COW device holds what was saved or written since. Both are
// divided into chunks. An exception says that the data of a chunk of the origin
// is in a chunk of the COW device; it is pending from its allotment until it is
// recorded, then completed. The store is what allots the chunks of the COW
// device and keeps the list of exceptions: persistent (P, PO) on the COW device
// itself, or transient (N) in memory. A unit is what one request allotted
// together.
//
// # Rules
//
//  1. Order of a commit: the data of a chunk is written to the COW device →
//     barrier → its exception is written → barrier → whoever waits for it is let
//     through. Exceptions are written in the order in which their chunks were
//     allotted, so that the log has no holes. The list on the disk ends, at
//     every moment, with an entry of zeros or at the end of an area whose
//     successor begins with one; what must be zero for that is zeroed before the
//     first barrier. A new store has an empty area, durably, before it has a
//     header. (Promise 3, and promise 1: a flush of the snapshot has nothing to
//     do but flush the COW device.)
//
//  2. An origin write reaches the origin only when every active snapshot has a
//     completed exception for each chunk it touches, or is invalid, durably.
//     A pending exception does not count, whoever made it. (Promise 2.)
//
//  3. A write to a snapshot is answered when its exceptions are durable; or, where
//     the store has a note, when its data is on the COW device, unflushed, and its
//     exceptions stand in the note (early.go, note.go). Then they are committed at
//     the next flush or durable write, before the origin writes to their chunks,
//     after a moment, and before the table changes hands. After a kill the next
//     daemon commits what the note has before anything is served; after a power
//     cut such a write has not happened. (Promise 3.)
//
//  4. A snapshot that lost something becomes invalid before the origin goes on,
//     in memory and on the disk, and stays so for ever. It never fails the
//     origin. (Promise 5.)
//
//  5. A read of the snapshot returns data of the snapshot however origin writes
//     overtake it: the exceptions are looked at again after the origin was
//     read. It waits for nobody, and nobody waits for it.
//
//  6. A merge takes exceptions out of the log from its end, durably, when what
//     they stand for is durable on the origin and before anybody writes there.
//     While chunks are copied, writes to them go to the COW device as before and
//     are copied again at the end; only for that moment writes wait.
//
// # Group commit
//
// A request allots its chunks under mu, fills them by itself, and says that they
// are ready. The first to find nobody committing leads: it takes all ready units
// from the head of the queue, commits them together, and goes on while there are
// more. So requests that come while a commit runs share the next one.
//
// # Saving together
//
// Origin writes that come at the same time, where there are several snapshots,
// take turns: who has the turn allots, copies and commits for all who wait, at all
// snapshots side by side where commits take long (together.go). To wait for a turn
// is to wait for copies and commits of others that have begun, and the one who has
// it waits for no request. Each write then looks by itself whether all its
// snapshots are safe (rule 2), and only then waits for units of others.
//
// # Failures
//
// What makes a snapshot invalid, and what only fails a request, is the kernel's
// choice (dm-snap.c), line by line in failures_test.go. Invalid snapshots answer
// everything but a flush with an I/O error; a store PO that was full answers
// writes so. Beyond the kernel:
//
//   - The header that says invalid is durable before the origin write goes on.
//     Where it cannot be written, the sidecar of the COW file says it, and where
//     there is none the record of the daemon ([target.Breaker]); a restart
//     ([target.Env.Restoring]) listens to both.
//   - A read that is under way when a copy fails gets an error, not the data of
//     the origin write.
//   - No room for the next metadata area is found before the last entry of an
//     area is given out: the COW device is full then, no worse.
//   - Old data behind the end of the list is never taken over.
//   - A full disk below the COW file fails a write to the snapshot and costs it
//     nothing else. An origin write has to go on, and costs the snapshot, unless
//     the policies let it wait.
//   - A copy that is broken off because a table goes away fails its request and
//     costs nothing.
//
// # Room
//
// Chunks are given out up to a mark in the COW device that costs one comparison
// (space.go). A write that finds no room ends what it has allotted, and then has
// more made: the COW file grows, and its space is taken from the disk, so that a
// full disk is met before anything is allotted. A worker does the same when half
// of what was made ready is used. Where no more can be had the policies decide
// ([Policies], pause.go): a write that waits for room holds no chunk, and lets go
// of the gate of its origin at every look, so that a suspend, a snapshot that
// starts and one that ends never wait for it.
//
// # Damaged stores
//
// [CheckStore] names what is wrong with a store. A table line takes what the
// kernel takes; in a read-only table it also takes a feature of our own,
// "damaged", which serves a store as far as it can be read and never writes to
// it.
//
// [PlanRepair] and [Repair.Apply] mend a store in place, behind a [Backup];
// [PlanRebuild] and [Rebuild.Write] make a new one of what is right in it
// (docs/cow.md). They are for stores that nobody uses.
//
// # Large stores
//
// The table of a large store is saved for the next worker (saved.go): what stood
// in full areas, which do not change until a merge. It counts only where nobody can
// have changed the store; else the store is read.
//
// # Locks
//
//	origin.gate        passed by each origin write from its first copy to the
//	                   end of the write; shut by the resume of a snapshot
//	  turns.turn       held during copies and commits; no lock in the sense below
//	  Group.mu, Group.cowMu, turns.mu
//	  origin.mu        list of snapshots
//	    snapshot.mu    pending exceptions, queue, allotment in the store, room
//	      exceptions.mu
//	  early.mu         held while a note is made, and across I/O on it
//	  snapshot.sidecar one change of the sidecar, written under it
//	  health.mu
//	  copier.mu
//	  mergeTarget.mu, mergeRanges.mu
//
// No lock is held during I/O on a device, save that a table that takes over asks
// for the size of its COW device under origin.mu. The gate, the leadership of a
// commit, and the turns to save and to make room are no locks in this sense. A
// request fills and commits the chunks it allotted itself before it waits for
// those of others, so that no two can wait for each other. What a request has
// begun it ends: a context ends waits only.
package snapshot
