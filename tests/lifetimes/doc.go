// Package lifetimes leads one origin and up to eight snapshots of it, with all
// kinds of stores and chunk sizes, through random lives: requests side by side,
// suspend and resume, tables swapped, snapshots taken, removed and merged, COW
// devices that are too small, restarts. Everything runs in one process, through
// mapper and targets, over files; what each device must hold is known all the
// time.
package lifetimes
