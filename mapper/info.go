package mapper

import (
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Info is what "dmsetup info" shows of a device.
type Info struct {
	Name, UUID     string
	Major, Minor   int
	Serial         uint64 // never used twice in one state directory
	Suspended      bool
	ReadOnly       bool // of the live table; of the inactive one when that was asked for
	Live, Inactive bool // which tables there are
	DeferredRemove bool // removed when the last user closes it
	OpenCount      int  // opens of the file and uses by other mapped devices
	EventNr        uint32
	Targets        int             // of the live table; of the inactive one when that was asked for
	Size           blockdev.Sector // of the live table
	ReadAhead      int             // sectors; always 256
	ReadAheadKnown bool            // false until the first table was loaded

	// Problem says why the tables could not be brought back after a restart;
	// empty when there is none.
	Problem string
}

// TargetStatus is one line of "dmsetup status" or "dmsetup table".
type TargetStatus struct {
	Start, Length blockdev.Sector
	Type          string
	Params        string // may be empty, may end in a blank
}

// Dep is a device that a table uses.
type Dep struct {
	Major, Minor int    // 0, 0 for a regular file
	Name         string // name of the mapped device; empty for others
	Path         string // absolute path of the file or device node; empty for mapped devices
}

// Attr is what the file of a device shows besides its content.
type Attr struct {
	Mode     uint32 // permission bits; 0 is 0600
	UID, GID uint32
	Mtime    time.Time // time of the last table swap, or as set
}
