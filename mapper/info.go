package mapper

import (
	"fmt"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
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
	FileOpens      int  // of these, opens of the file
	EventNr        uint32
	Targets        int             // of the live table; of the inactive one when that was asked for
	Size           blockdev.Sector // of the live table
	ReadAhead      int             // sectors; 256 unless set
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
	// ReadAhead is what is shown as such, in sectors: 0 is what the kernel
	// shows by itself, a negative number is none. Nothing reads ahead.
	ReadAhead int
}

// readAhead is what the kernel shows for a device without hints, in sectors.
const readAhead = 256

func (a Attr) readAhead() int {
	if a.ReadAhead == 0 {
		return readAhead
	}
	return max(0, a.ReadAhead)
}

// Info describes the device, with the number of targets and the mode of the
// inactive table when inactive is set and there is one.
func (d *Device) Info(inactive bool) Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	live := d.live.Load()
	i := Info{
		Name: d.Name(), UUID: d.uuid, Major: d.m.major, Minor: d.minor, Serial: d.serial,
		Suspended: d.suspended, ReadOnly: d.readOnly, Live: live != nil, Inactive: d.inactive != nil,
		DeferredRemove: d.deferredRemove, OpenCount: d.fileOpens + d.tableOpens, FileOpens: d.fileOpens,
		EventNr: d.events.now(), ReadAhead: d.attr.readAhead(), ReadAheadKnown: d.loaded,
	}
	if d.problem != nil {
		i.Problem = d.problem.Error()
	}
	if live != nil {
		i.Size = blockdev.SectorsIn(live.size)
		i.Targets = len(live.segs)
	}
	if inactive {
		i.Targets = 0
		if d.inactive != nil {
			i.Targets = len(d.inactive.segs)
			i.ReadOnly = i.ReadOnly || d.inactive.readOnly
		}
	}
	return i
}

// Status gives one line per target of the live or inactive table; none without
// a table. Unless noflush is set, a target may write out what its numbers
// depend on first (kernel: DM_NOFLUSH_FLAG); no target here does.
func (d *Device) Status(form target.StatusForm, inactive, noflush bool) []TargetStatus {
	t := d.hold(inactive)
	if t == nil {
		return nil
	}
	defer t.release()
	out := make([]TargetStatus, len(t.segs))
	for i := range t.segs {
		s := &t.segs[i]
		out[i] = TargetStatus{
			Start: s.line.Start, Length: s.line.Length, Type: s.typ.Name,
			Params: s.target.Status(form),
		}
	}
	return out
}

// String prints the line as dmsetup does: there is a blank after the type even
// when nothing follows.
func (s TargetStatus) String() string {
	return fmt.Sprintf("%d %d %s %s", s.Start, s.Length, s.Type, s.Params)
}

// Deps lists the distinct lower devices of a table, the one opened last first.
func (d *Device) Deps(inactive bool) []Dep {
	t := d.hold(inactive)
	if t == nil {
		return nil
	}
	defer t.release()
	var out []Dep
	for _, l := range t.deps() {
		out = append(out, depOf(l))
	}
	return out
}

func depOf(l *lowerRef) Dep {
	if l.mapped != nil {
		return Dep{Major: l.mapped.m.major, Minor: l.mapped.minor, Name: l.mapped.Name()}
	}
	name := l.Lower.Name()
	if major, minor, ok := parseNumber(name); ok {
		return Dep{Major: int(major), Minor: int(minor), Path: l.path}
	}
	return Dep{Path: name}
}

// InfoText is the content of an information file: "table", "status", "info",
// "uuid" or "events"; empty for another word.
func (d *Device) InfoText(kind string) string {
	switch kind {
	case "table":
		return statusText(d.Status(target.StatusTable, false, true))
	case "status":
		return statusText(d.Status(target.StatusInfo, false, true))
	case "info":
		return d.Info(false).String()
	case "uuid":
		return d.UUID() + "\n"
	case "events":
		return fmt.Sprintf("%d\n", d.EventNr())
	}
	return ""
}

func statusText(lines []TargetStatus) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.String() + "\n")
	}
	return b.String()
}

// String prints the block of "dmsetup info", without the blank line that
// follows each device.
func (i Info) String() string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-19s"+format+"\n", append([]any{label}, args...)...)
	}
	line("Name:", "%s", i.Name)
	line("State:", "%s", i.StateText())
	if i.ReadAheadKnown {
		line("Read Ahead:", "%d", i.ReadAhead)
	}
	line("Tables present:", "%s", i.TablesText())
	line("Open count:", "%d", i.OpenCount)
	line("Event number:", "%d", i.EventNr)
	line("Major, minor:", "%d, %d", i.Major, i.Minor)
	line("Number of targets:", "%d", i.Targets)
	if i.UUID != "" {
		fmt.Fprintf(&b, "UUID: %s\n", i.UUID)
	}
	return b.String()
}

// StateText is the word after "State:".
func (i Info) StateText() string {
	s := "ACTIVE"
	if i.Suspended {
		s = "SUSPENDED"
	}
	if i.ReadOnly {
		s += " (READ-ONLY)"
	}
	if i.DeferredRemove {
		s += " (DEFERRED REMOVE)"
	}
	return s
}

// TablesText is the text after "Tables present:".
func (i Info) TablesText() string {
	switch {
	case i.Live && i.Inactive:
		return "LIVE & INACTIVE"
	case i.Live:
		return "LIVE"
	case i.Inactive:
		return "INACTIVE"
	}
	return "None"
}
