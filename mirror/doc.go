// Package mirror has the target mirror: several legs that hold the same data,
// with a log of the regions that may differ, in the kernel's own format
// (kernel: dm-raid1.c, dm-log.c, dm-region-hash.c).
//
// # Words
//
// A leg is a lower device and an offset. A region is the unit of the log: a
// power of two of sectors, counted from the start of the target. A region is in
// sync when all legs hold the same data as far as anybody reads, dirty when
// writes to it may have reached some legs and not others, nosync when the legs
// are known to differ, recovering while the source leg is copied to the others.
// The default leg is the one that counts where legs differ; it is leg 0 until it
// fails. A mark says that a leg had an error of some type. A write is held when
// it can be answered neither with success nor with failure yet.
//
// # Rules
//
//  1. The dirty bit of a region is durable on the log device before any leg is
//     touched (promise 4). Writes that come together share one write of the
//     log.
//  2. A bit is set to clean only after all legs were flushed, with no write to
//     the region from before that flush until the bit is set.
//  3. A region that was recovered is dirty, on the disk, until rule 2 makes it
//     clean: what was copied is durable first.
//  4. A write to a region that is in sync goes to all legs, and the region is out
//     of sync, in memory and on the disk, before a write that failed on some
//     leg is answered.
//  5. A write to a region that is not in sync goes to the default leg, one to a
//     recovering region waits for the end of the recovery.
//  6. Regions out of sync are read from the default leg only; others from any
//     leg without a mark.
//  7. A region that fell out of sync in the life of a target stays so until it
//     was recovered, whatever the table says at the next resume.
//
// # The leg record
//
// A mirror with the feature leg_record knows which legs can be trusted: a leg is
// in (has all that was answered), filling (is being copied to) or dropped. The
// record lies beside the legs and the log; docs/formats.md says what is written in
// which order and what copies that differ mean.
//
//  8. A leg on which a write or flush failed is dropped durably before the answer
//     (promise 4), the last leg that is in excepted. Success means that all legs
//     that are in have it.
//  9. A region is in sync when all legs that are in or filling are equal. It is
//     alike when those that are in are; only the first is in the log.
//  10. Writes to a region in sync go to the legs that are in or filling, others to
//     those that are in. Reads take any leg that is in where the region is alike,
//     else the source, which is the first of them.
//  11. Where a region is alike a copy goes to the legs that are filled only, else
//     to all. One that began before a leg came or went does not count.
//  12. Before the record says that a leg is filling, its area is out of sync in the
//     log; before it says that it is in again, all legs are flushed.
//
// # Scrub and resync
//
//  13. A scrub reads the legs beside the writes. Only what differs then is looked at
//     with its region frozen: no write or discard begins there, and those under
//     way have ended. What differs in that look does.
//  14. A repair happens in the same moment and is a write from the inside: rules 1
//     and 2 hold for it, and a leg that cannot be written is treated as in rule 4
//     or 8.
//  15. A resync makes all bits 0 durably, with none set to 1 meanwhile, before any
//     region counts as out of sync: from then on writes go to fewer legs.
//  16. A table with a leg record that takes the place of another takes over what is
//     in sync, if no log on a device says it: of the legs that both have, from a
//     suspended mirror of the same shape (group).
//
// # The note of a core log
//
// What a core log knows outlives a kill in a note (regionnote.go), where all legs are
// files; it says nothing after a power cut.
//
//  17. A region is clean in the note when it is in sync and no write to it is under
//     way: its bit is 0 before a leg is touched, and 1 only after all legs were
//     written to. There is no barrier: what system calls wrote outlives a kill.
//  18. An error of a leg makes the note void: a leg that did not flush may lack what
//     was written long before. The note says before a flush that there is one: what
//     no earlier flush covered does not count after a kill in the middle. In memory
//     there is a note of each core log: when a flush fails, the mirror asks it what
//     may be lost.
//  19. A mirror that is resumed removes the marks of other notes from its legs, and
//     makes its own only when no other table can go on with the legs.
//
// # Region states
//
//	not in the table  in sync, or out of sync, as the log says
//	dirty             in sync; bit 0 on the disk or in the note. Writes pending, or
//	                  idle and waiting for rule 2
//	nosync            out of sync, writes to the default leg pending
//	recovering        out of sync, chosen; waiting for its pending writes, then
//	                  being copied
//
//	in sync --first write--> dirty --idle, legs flushed--> in sync
//	dirty --write fails on a leg, or a flush does--> out of sync
//	in sync, core log, in no good flush --flush fails--> out of sync
//	out of sync --chosen--> recovering --copied--> dirty (idle)
//	recovering --copy fails, or a write or a flush does--> out of sync
//
// # Differences from the kernel
//
// Bits are cleared when a region was idle for a moment, not at once. Only the
// blocks of the log that changed are written. Several regions are recovered at
// a time, neighbours in one copy. Regions that fell out of sync or could not be
// recovered are tried again later without a resume, if the default leg can be
// trusted. Reads are spread over the legs, unless the table says nosync: then
// nobody has ever made them equal. When a flush fails, all regions written or copied
// to since the last good flush fall out of sync, whatever the log; the kernel only
// stops clearing their bits. A region that could not be recovered and counts as in sync by the
// kernel's rule (no handle_errors) is read from the default leg, and its bit stays
// 0 whatever is written to it. Held writes go on when the mirror is in sync again. A read-only
// table neither recovers nor writes its log.
//
// # Locks
//
//	group.mu       the mirrors of the process; never with a lock below but mirror.mu
//	keeper.mu      the leg record; held while its copies are written
//	  mirror.mu      regions, recovery, marks, held writes
//	    dirtyLog.mu    bits, what of them is to be written
//
// The last two are not held during I/O. The reader takes none. Env.Event is called with
// mirror.mu or dirtyLog.mu held.
//
// # Failure
//
// Errors of legs are answered by the table in docs/targets/mirror.md, by the
// features handle_errors, keep_log and leg_record. A log that fails stays failed until the
// table is replaced.
package mirror
