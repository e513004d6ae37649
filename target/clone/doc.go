// Package clone has the clone target: a device that is usable at once while its
// content is copied from a read-only source in the background (kernel:
// dm-clone-target.c).
//
// # Words
//
//   - A region is the unit of copying: a power of two of sectors. The last one of
//     a segment may be short.
//   - A region is hydrated when its content lies on the destination: it was
//     copied, or written whole, or discarded. Others are read from the source.
//   - A bit of the metadata says of a region that it is hydrated, durably. To
//     commit is to write the bits that were set since the last time.
//   - A claim is a run of regions, none hydrated, that somebody is hydrating.
//
// # Rules
//
//  1. The source is only read. A region is claimed before anything is written to
//     its place on the destination, so no copy runs over a write.
//  2. A region becomes hydrated in memory when what hydrates it was answered by
//     the destination, and never goes back.
//  3. A commit takes the bits first, then flushes the destination, then writes
//     the bits and flushes the metadata. So no bit is durable before its data.
//  4. A flush and a durable write end with a commit, if there are bits; also
//     there is one a second. A power cut, and a kill of the program, lose what
//     was written to regions that were not committed, all of it not flushed.
//  5. Background copies wait while requests are under way, but not longer than a
//     second each time, and take what no request has claimed. A region that
//     could not be copied is tried again after a while.
//  6. The metadata is read at the first resume: an older table may be at work
//     until then.
//
// # Modes of the metadata
//
// rw; ro after a commit that failed: nothing is hydrated any more and flushes
// fail, regions that are hydrated can be written; Fail when the metadata cannot
// even be read back: every request fails. A failure to write the metadata is
// tried again at the suspend. A destination that failed a flush may have lost
// data: its bits are never written.
//
// # Format
//
// Little-endian. Byte 0: the super sector; from byte 4096 on: sectors of bits.
//
//	super    magic "dmfclone", u32 version 1, u32 0, u64 sectors of a region,
//	         u64 sectors of the segment, u64 regions, zeros, u32 CRC-32C of the
//	         508 bytes before it
//	bits     504 bytes, 4032 regions, bit r mod 8 of byte r div 8; u32 number of
//	         the sector from 0; u32 CRC-32C of the 508 bytes before it
//
// It is not the kernel's, whose metadata is a tree of its own library; that is
// recognised and refused. A device whose first 4096 bytes are zeros is made
// ready at the load: the bits first, then the super sector.
//
// # Lock order
//
//	commitMu       one commit at a time; held across I/O
//	  mu           claims, counts, mode; never held across I/O
//
// # Failure
//
// A copy that fails fails the requests that wait for its region and no others.
package clone
