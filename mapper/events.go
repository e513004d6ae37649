package mapper

import "time"

// EventKind says what happened.
type EventKind string

// Kinds of events. Kernel: dm_table_event raises the number of a device,
// dm_issue_global_event the global one.
const (
	EventTarget  EventKind = "target"  // a target reports: invalid, degraded, in sync
	EventCreate  EventKind = "create"  // the device exists
	EventRemove  EventKind = "remove"  // the device is gone
	EventRename  EventKind = "rename"  // Text is the old name
	EventUUID    EventKind = "uuid"    // the uuid was set
	EventSwap    EventKind = "swap"    // another table is live; size and mode may differ
	EventSuspend EventKind = "suspend" // the device is suspended
	EventResume  EventKind = "resume"  // I/O runs again
	EventProblem EventKind = "problem" // something a person should know; Text says what
)

// Event is one thing that happened to a device.
type Event struct {
	Time   time.Time
	Device string // name at the time
	Minor  int
	Serial uint64
	Kind   EventKind
	Number uint32 // event number of the device afterwards
	Text   string // for people; may be empty
	Missed uint64 // events before this one that the listener was too slow for
}
