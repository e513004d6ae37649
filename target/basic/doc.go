// Package basic has the four smallest targets: linear, striped, zero and error
// (kernel: dm-linear.c, dm-stripe.c, dm-zero.c, dm-target.c).
//
// # Rules
//
//  1. An offset given to a target is a byte of the mapped device; each target
//     subtracts its own start.
//  2. linear and striped keep nothing of their own: their flush is the flush of
//     their devices, once for each distinct one, and an error of one does not
//     keep the others from being flushed.
//  3. zero drops writes and reads as zeros; error fails everything but a flush,
//     which neither of the two passes on (the kernel sends them no flush).
//  4. A striped device counts errors for each stripe and never stops using one.
//
// # Locks
//
// None is held across I/O; the error counters of striped are atomic.
//
// # Failure
//
// Arguments are refused with a [target.ArgError] that names the argument, what
// was found and what was expected. An I/O error of a lower device is passed on
// as it is.
package basic
