package target

import (
	"fmt"
	"sort"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/sirupsen/logrus"
)

// Type is a kind of target: what a table line names in its third word.
type Type struct {
	Name    string    // exact, letter case counts; at most 15 characters
	Version [3]uint32 // as "dmsetup targets" prints it
	Usage   string    // arguments, for messages and pages: "<origin> <COW> ..."

	// Singleton targets must be alone in their table. Immutable targets
	// cannot be mixed with others nor replaced by others, save by "error".
	Singleton, Immutable bool

	// Wildcard marks the type that may replace an immutable one ("error").
	Wildcard bool

	// Mover marks a type whose targets, from their resume on, write to lower
	// devices that targets of other devices look after (a merge writes to an
	// origin, whose other snapshots have to be there): it is resumed after those
	// at a restart, and stopped before them at the end.
	Mover bool

	// Fragile marks a type whose targets show something wrong once a lower device
	// was written while they were not there (a snapshot, whose origin went on).
	Fragile bool

	// New makes a target from the words after the type name. On an error it
	// has released everything it took, save lower devices opened with
	// env.Open, which the table closes.
	New func(env *Env, args []string) (Target, error)
}

// Mode says how a lower device is opened.
type Mode uint8

// Modes of opening a lower device.
const (
	ReadOnly Mode = iota
	ReadWrite
)

// Env is what a target gets from the table it is made for.
type Env struct {
	Start, Length blockdev.Sector // the segment, in sectors of the mapped device
	ReadOnly      bool            // the table is loaded read-only
	Restoring     bool            // the daemon brings back a table after a restart (promise 9)
	Waiting       bool            // while Restoring: a table that was not live

	// Broken says, while Restoring, that the target was [Breaker] when its table
	// was last recorded.
	Broken bool

	// Remembered is, while Restoring, what the target was [Rememberer] of when its
	// table was last recorded.
	Remembered string

	// Record writes the record that a restart is made from, durably enough for a
	// kill. Nil: there is none. It may be called from any request, with no locks
	// held.
	Record func()

	// Device is the name of the mapped device, for logs only: it may be
	// renamed later.
	Device string

	// Open opens a lower device by path, by "major:minor", or by the name or
	// path of a mapped device. The table owns the result, counts it as a
	// dependency in the order of opening, and closes it after the target.
	Open func(name string, mode Mode) (Lower, error)

	// Event raises the event number of the device, if this table is live.
	// It may be called from any goroutine and with locks held.
	Event func()

	// Tell lets those who follow the events know, without raising the number: the
	// kernel is silent there. Nil: nobody follows. It may be called as Event may.
	Tell func(text string)

	// Log takes what a person should know; fields device and target are set.
	Log logrus.FieldLogger
}

// Mode is the mode in which a target that writes opens its lower devices: that
// of the table.
func (e *Env) Mode() Mode {
	if e.ReadOnly {
		return ReadOnly
	}
	return ReadWrite
}

// Set is a list of types, found by name.
type Set struct{ byName map[string]Type }

// NewSet makes a set. It panics when a name is empty, longer than 15
// characters or taken: the list is part of the program.
func NewSet(types ...Type) *Set {
	s := &Set{byName: make(map[string]Type, len(types))}
	for _, t := range types {
		if t.Name == "" || len(t.Name) > 15 || t.New == nil {
			panic(fmt.Sprintf("target: bad type %q", t.Name))
		}
		if _, ok := s.byName[t.Name]; ok {
			panic(fmt.Sprintf("target: type %q twice", t.Name))
		}
		s.byName[t.Name] = t
	}
	return s
}

// Lookup finds a type by its exact name.
func (s *Set) Lookup(name string) (Type, bool) {
	t, ok := s.byName[name]
	return t, ok
}

// All lists the types in order of name.
func (s *Set) All() []Type {
	out := make([]Type, 0, len(s.byName))
	for _, t := range s.byName {
		out = append(out, t)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}
