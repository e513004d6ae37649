// Package mapper is devices and their tables: a live and an inactive slot,
// suspend and resume, names, events, and the way of a request to its target.
// The kernel's part with the same work is dm.c, dm-table.c and dm-ioctl.c.
//
// # Words
//
// A mapped device has a name, a minor number and two slots for tables. The live
// table serves requests; the inactive one waits for the next resume. A table
// covers the device from sector 0 on with segments, one target each. Its lower
// devices are files, block devices, or other mapped devices, which are found
// here and never through the mount. A device is active or suspended; requests
// to a suspended one wait.
//
// # States
//
//	                     load           resume              suspend    I/O
//	no tables, active    inactive set   nothing to do       suspended  EIO
//	no tables, suspended inactive set   EINVAL              (is)       EIO
//	inactive only        replaces it    suspend,swap,resume suspended  EIO
//	live                 inactive set   nothing to do       suspended  runs
//	live, suspended      inactive set   resumes             (is)       queued
//	both                 replaces it    suspend,swap,resume suspended  runs
//	both, suspended      replaces it    swap, resume        (is)       queued
//
// Suspend: presuspend of all targets → flush → no new requests → those inside
// end → flush → suspended → postsuspend. A caller that stops waiting undoes all
// of it. Resume: (suspend) → check the sizes → swap → preresume of all targets
// → record → resume of all targets → requests run → the old table is destroyed.
//
// Where resume stops on an error is part of its contract ([Device.Resume]).
//
// # Rules
//
//  1. A request does all its work under one table: a table is swapped only
//     while no request is inside.
//  2. The way of a request through an active device takes no lock and makes no
//     allocation: one addition to enter the gate, one to leave it, and those that
//     count it.
//  3. A flush reaches every target, also after an error of one (promise 1). For
//     tables of targets that keep nothing themselves each distinct lower device
//     is flushed once. An error of a flush that nobody waited for is kept for
//     the next one.
//  4. Bad input changes nothing (promise 7): a table is built completely before
//     it takes a slot.
//  5. What a restart needs is on disk before an operation is answered, and before
//     the first request to a new live table (promise 9).
//  6. No device uses itself: not through tables, not through a loop device on a
//     file of the mount, not through a file on a file system that is stored on
//     another lower device of the same table.
//
// # Locks
//
// The tree is that of a request's whole way, from the mount to the lower
// device; a lock may be taken while those above it, further left, are held. No
// lock is held across I/O on data. The turn of a device and the gates are
// queues rather than locks: waiting for them can be ended, and they are held
// across I/O.
//
//	fs: table of open files and nodes         (released before the mapper is called)
//	Device.turn          load, clear, suspend, resume, remove: one at a time; held
//	                     while targets are made, suspended and resumed. An
//	                     operation takes one turn at a time, shutdown all of them
//	                     (lower devices first, so that those above can end).
//	  graph.mu           who uses whom
//	  Manager.mu         names, uuids, numbers
//	  Device.faultMu     one change of fault rules; held while the record is written
//	  Device.recordMu    one writer of a record; held across I/O on the state file
//	    stateDir.mu      serial numbers
//	    Device.mu        slots, flags, counts; under graph.mu and Manager.mu too
//	      table.mu       who holds a table against its destruction
//	      counter.mu     event numbers
//	      hub.mu         listeners
//	      faultFile.mu   where fault rules count
//	Device.gate          passed by each request for as long as it is inside; what a
//	                     fault rule makes wait has not passed it yet
//	  kept.turn          writes to a device that keeps some back (faultkept.go); a
//	                     queue, held across I/O
//	    kept.mu          what is kept back
//	  snapshot: origin.gate    passed by an origin write, from its first copy to its end
//	    snapshot: Group.mu
//	    snapshot: origin.mu    list of snapshots
//	      snapshot: snapshot.mu    pending exceptions, allotment in the store
//	        snapshot: exceptions.mu
//	    snapshot: health.mu
//	  Device.gate of a mapped device below, and so on downward
//	    kcopyd: Client.mu      queue of jobs; callbacks run without it
//	    blockdev: shared.mu, Pool.mu   opening and closing only
//	    hub.mu, counter.mu     Env.Event comes from targets with their locks held
//
// # Shutdown
//
// The order, written here once for the whole program: unmount (fs ends and
// drains its requests) → [Manager.Close]: every device, tops first, is suspended
// with a flush (targets stop recovery and merge, drain copies and commit their
// metadata in Presuspend and Postsuspend) → its targets are closed → its lower
// devices are closed → records are forgotten.
//
// # Failure
//
// Errors are of a kind of blockdev; those about tables are a [LineError] (text)
// or a [TableError] (target), which name the line and the word. A target that
// answers with an error fails that request only. A device that a restart cannot
// bring back keeps its name, size and table line, and answers EIO with the
// reason. A state file that cannot be read is moved aside and named.
package mapper
