// Package keeper is the small process that lets the daemon die: it holds what
// the kernel and the clients of a mount hang on to, and starts one worker after
// the other that serves it.
//
//	keeper   /dev/fuse and its clones, memory of the mount, the listening control
//	         socket, the lock of the run directory; reads nothing, answers nothing
//	worker   the daemon proper, a child that inherited all of that
//
// A worker that dies is reaped, and then the next one started: it restores the
// devices from the run directory, asks the kernel for the requests that the dead
// one had (FUSE_NOTIFY_RESEND), and goes on. Clients see a pause.
//
// # What keeper and worker agree on
//
// A keeper outlives the program file it was started from (see upgrade), so this
// does not change without [Contract] changing.
//
// The worker is started as "dmfuse worker FLAGS --kept CONTRACT,FUSE,AFTER": FUSE
// is how many descriptors of /dev/fuse there are, AFTER is why there is a worker
// again ([Why]). Descriptors:
//
//	3      where the worker reports, in lines
//	4      memory of the mount
//	5      the control socket, listening
//	6      the lock of the run directory
//	7 ...  /dev/fuse
//
// Reports:
//
//	alive          the check of the worker went well, or it gets on with its start
//	restoring NAME a start that stands still, at this device; this is no sign of life
//	ready          requests are answered
//	once           the kernel cannot resend: there can be no other worker
//	final          the mount is gone: the end of this worker is that of the keeper
//	upgrade FILE   the next worker is to be this program
//
// A worker that gets SIGUSR2 answers what it has, leaves the rest, and exits with
// [ExitHandOver]; so it does by itself after reporting upgrade.
//
// # Who dies with whom
//
// The worker is killed when the keeper dies: two workers on one set of backing
// files would be the end of them. Where a service manager stores descriptors the
// next keeper finds them there and starts a worker; elsewhere the mount is dead.
package keeper
