// Package stress uses the daemon through its mount as hard as programs do: a
// random test against a model, fio with verification, file systems with fsck,
// partitions, suspended devices with full queues, and killed clients.
//
// make test runs it short, make test-long (DMFUSE_LONG) with more of
// everything.
package stress
