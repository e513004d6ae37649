package control

import "time"

// Protocol is the version of the wire format. A daemon answers requests of its
// own protocol only; both sides say theirs (see [Version] and the header
// [ProtocolHeader]).
const Protocol = 1

// ProtocolHeader carries [Protocol] in requests and replies. A request without
// it (curl) is taken as of the present protocol.
const ProtocolHeader = "Dmfuse-Protocol"

// SchemaVersion stands in every JSON answer of the command line.
const SchemaVersion = 1

// Key names a device: exactly one of the three is set.
type Key struct {
	Name  string `json:"name,omitempty"`
	UUID  string `json:"uuid,omitempty"`
	Minor *int   `json:"minor,omitempty"`
}

// ByName is the key of the device called name.
func ByName(name string) Key { return Key{Name: name} }

// ByUUID is the key of the device with that uuid.
func ByUUID(uuid string) Key { return Key{UUID: uuid} }

// ByMinor is the key of the device with that minor number.
func ByMinor(minor int) Key { return Key{Minor: &minor} }

// Line is one line of a table, split into words; nothing in it is quoted.
type Line struct {
	Start  uint64   `json:"start"`  // first sector of the segment
	Length uint64   `json:"length"` // sectors
	Type   string   `json:"type"`
	Args   []string `json:"args"`
}

// View is what the caller sees under an absolute path that a table names. A
// block device is the same where its number is, under whatever node.
type View struct {
	Path string `json:"path"`
	Dev  uint64 `json:"dev"`            // st_dev
	Ino  uint64 `json:"ino"`            // st_ino
	Rdev uint64 `json:"rdev,omitempty"` // st_rdev of a block device
}

// Attr is the mode and owner of a device file; nil fields keep what is.
type Attr struct {
	Mode *uint32 `json:"mode,omitempty"` // permission bits
	UID  *uint32 `json:"uid,omitempty"`
	GID  *uint32 `json:"gid,omitempty"`
	// ReadAhead in sectors; 0 is the default, negative is none.
	ReadAhead *int `json:"read_ahead,omitempty"`
}

// Step is one change to one device. Which fields count depends on Op.
type Step struct {
	Op  string `json:"op"`
	Key        // the device; its name for OpCreate, where Minor asks for a number

	NewUUID  string `json:"new_uuid,omitempty"`  // OpCreate, OpSetUUID
	NewName  string `json:"new_name,omitempty"`  // OpRename
	Table    []Line `json:"table,omitempty"`     // OpLoad
	ReadOnly bool   `json:"read_only,omitempty"` // OpLoad: a read-only table
	NoFlush  bool   `json:"noflush,omitempty"`   // OpSuspend, OpResume
	NoLockFS bool   `json:"nolockfs,omitempty"`  // OpSuspend, OpResume
	Deferred bool   `json:"deferred,omitempty"`  // OpRemove: later if the device is open
	Attr     *Attr  `json:"attr,omitempty"`      // OpAttr, OpCreate

	// GuardBase (OpCreate) is the absolute path of a file that must not be
	// written by others while the device lives: the daemon holds a read lease
	// on it where the file system has them, and tells the device when it broke.
	GuardBase string `json:"guard_base,omitempty"`

	// Views are the files named in Table and GuardBase, as the caller sees them.
	Views []View `json:"views,omitempty"`

	// Sole (OpLoad) refuses the table when another device has one with a target of
	// the same type on the same lower device.
	Sole bool `json:"sole,omitempty"`

	// Together (in an apply) runs the step at the same time as the one before it.
	// They must not depend on each other.
	Together bool `json:"together,omitempty"`
}

// The operations of a [Step].
const (
	OpCreate  = "create"  // a device without table; undone by removing it
	OpLoad    = "load"    // a table into the inactive slot; undone by clearing or loading what was there
	OpClear   = "clear"   // drops the inactive table; undone by loading it again
	OpSuspend = "suspend" // undone by resuming, with the table that was live
	OpResume  = "resume"  // brings the inactive table in; undone by loading the old table and resuming
	OpRename  = "rename"  // undone by renaming back
	OpSetUUID = "setuuid" // cannot be undone: a failure after it undoes only what came after
	OpRemove  = "remove"  // cannot be undone, as OpSetUUID
	OpAttr    = "attr"    // mode and owner of the file; undone
)

// ApplyRequest is a list of steps, run in order, all or nothing.
type ApplyRequest struct {
	// ID is chosen by a caller who may want to give up, and used once. It may be empty.
	ID    string `json:"id,omitempty"`
	Steps []Step `json:"steps"`
}

// AbandonRequest gives up an apply.
type AbandonRequest struct {
	ID string `json:"id"`
}

// ApplyReply says what became of each step.
type ApplyReply struct {
	Results []StepResult `json:"results"`
	// SuspendedMillis is the time from the beginning of the first suspend to the
	// end of the last resume; 0 without a suspend.
	SuspendedMillis float64 `json:"suspended_ms,omitempty"`
}

// StepResult is what one step did.
type StepResult struct {
	Device   *Info `json:"device,omitempty"`   // after the step; absent when it is gone
	Deferred bool  `json:"deferred,omitempty"` // OpRemove: will happen at the last close
}

// Info describes a device.
type Info struct {
	Name           string `json:"name"`
	UUID           string `json:"uuid"`
	Major          int    `json:"major"`
	Minor          int    `json:"minor"`
	Path           string `json:"path"`       // its file in the mount
	SizeBytes      int64  `json:"size_bytes"` // of the live table
	Suspended      bool   `json:"suspended"`
	ReadOnly       bool   `json:"read_only"`
	Live           bool   `json:"live"`     // has a live table
	Inactive       bool   `json:"inactive"` // has an inactive table
	DeferredRemove bool   `json:"deferred_remove"`
	OpenCount      int    `json:"open_count"`
	EventNr        uint32 `json:"event_nr"`
	Targets        int    `json:"targets"` // of the live table, or of the inactive one when asked for it
	ReadAhead      int    `json:"read_ahead"`
	ReadAheadKnown bool   `json:"read_ahead_known"` // false until a table was loaded once
	Mode           uint32 `json:"mode"`
	UID            uint32 `json:"uid"`
	GID            uint32 `json:"gid"`
	Problem        string `json:"problem,omitempty"` // why a restart could not bring its tables back
}

// DeviceList is every device, by name in byte order.
type DeviceList struct {
	Devices []Info `json:"devices"`
	// Tables and Statuses are the live table and the status of each device, in
	// the same order, where the request asked for them.
	Tables   [][]TargetStatus `json:"tables,omitempty"`
	Statuses [][]TargetStatus `json:"statuses,omitempty"`
	Deps     [][]Dep          `json:"deps,omitempty"` // likewise, see [DepsReply]
}

// TargetStatus is one line of table or status: "start length type params".
type TargetStatus struct {
	Start  uint64 `json:"start"`
	Length uint64 `json:"length"`
	Type   string `json:"type"`
	Params string `json:"params"`
}

// StatusReply is the table or the status of a device.
type StatusReply struct {
	Device  Info           `json:"device"`
	Targets []TargetStatus `json:"targets"`
}

// Dep is a lower device. Major and Minor are -1 for a regular file, which has
// a path only.
type Dep struct {
	Major int    `json:"major"`
	Minor int    `json:"minor"`
	Name  string `json:"name,omitempty"` // of a device of this daemon
	Path  string `json:"path,omitempty"`
}

// DepsReply lists the lower devices, most recently opened first.
type DepsReply struct {
	Device Info  `json:"device"`
	Deps   []Dep `json:"deps"`
}

// MessageRequest is a message to the target at Sector.
type MessageRequest struct {
	Sector uint64   `json:"sector"`
	Words  []string `json:"words"`
}

// MessageReply is the answer of a target, which may be empty.
type MessageReply struct {
	Text string `json:"text"`
}

// WaitReply is the event number that ended a wait.
type WaitReply struct {
	EventNr uint32 `json:"event_nr"`
}

// RangeRequest is a range of bytes of a device; Length -1 means up to its end.
type RangeRequest struct {
	OffsetBytes int64 `json:"offset_bytes"`
	LengthBytes int64 `json:"length_bytes"`
}

// RemoveAllReply names the devices that were open and stayed.
type RemoveAllReply struct {
	Skipped []string `json:"skipped"`
}

// Event is something that happened to a device or to the daemon.
type Event struct {
	Time   time.Time `json:"time"`
	Device string    `json:"device,omitempty"`
	Minor  int       `json:"minor"`
	Kind   string    `json:"kind"`
	Number uint32    `json:"number"` // event number of the device
	Text   string    `json:"text,omitempty"`
	Missed uint64    `json:"missed,omitempty"` // events before this one that this listener was too slow for
}

// TargetType is a type of target the daemon knows.
type TargetType struct {
	Name    string    `json:"name"`
	Version [3]uint32 `json:"version"`
	Usage   string    `json:"usage"`
}

// TargetsReply lists the types of targets.
type TargetsReply struct {
	Targets []TargetType `json:"targets"`
}

// Version says who the daemon is and where its things lie.
type Version struct {
	Version    string    `json:"version"`
	Protocol   int       `json:"protocol"`
	PID        int       `json:"pid"`                  // of the process that serves
	KeeperPID  int       `json:"keeper_pid,omitempty"` // of the one that replaces it when it dies, if there is one
	NoKeeper   string    `json:"no_keeper,omitempty"`  // why there is none
	After      string    `json:"after,omitempty"`      // with a keeper, what became of the process before: first (there was none), killed, crashed, upgraded, handover
	Started    time.Time `json:"started"`
	RunDir     string    `json:"run_dir"`
	Mount      string    `json:"mount"` // where the device files are
	Major      int       `json:"major"`
	AllowOther bool      `json:"allow_other"`
	Transport  string    `json:"transport"` // how requests arrive: "uring", "dev" or "gofuse"
	// Leftovers are loop devices and mounts of a daemon that died, which stay
	// dead (promise 9), with the command that clears each.
	Leftovers []Leftover `json:"leftovers,omitempty"`
	// Restored are the problems met when the devices were brought back.
	Restored []RestoreProblem `json:"restore_problems,omitempty"`
}

// Leftover is a loop device or mount over the mount of a dead daemon.
type Leftover struct {
	What  string `json:"what"`  // "loop device" or "mount"
	Where string `json:"where"` // /dev/loopN or the mount point
	Over  string `json:"over"`  // the file it stands on
	Clear string `json:"clear"` // the command that clears it
}

// RestoreProblem is a device that did not come back as it was.
type RestoreProblem struct {
	Device string `json:"device"`
	Text   string `json:"text"`
}

// UpgradeRequest has the keeper of the daemon start this program in its place.
type UpgradeRequest struct {
	Binary string `json:"binary"`
}

// ShutdownRequest ends the daemon; with Force even when devices are in use.
type ShutdownRequest struct {
	Force bool `json:"force"`
}
