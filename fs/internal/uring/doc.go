// Package uring is as much of io_uring as a FUSE transport needs: one ring that
// one thread submits to and waits on, with submission entries of 128 bytes. It
// knows nothing of FUSE.
//
// A [Ring] belongs to the thread that made it: runtime.LockOSThread comes
// before New, and all methods but Close are called from there. Nothing is
// locked.
//
// Waiting is a system call that the Go scheduler knows of. With one it does not
// know of (RawSyscall) a garbage collection would wait for the ring, and the
// request that ends the wait for the garbage collection.
package uring
