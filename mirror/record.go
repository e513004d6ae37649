package mirror

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// LegState is what the leg record says of a leg.
type LegState string

// States of a leg in the record.
const (
	LegIn      LegState = "in"      // has all that was answered; may be a source
	LegFilling LegState = "filling" // is being copied to; never a source
	LegDropped LegState = "dropped" // lacks writes that were answered
)

// Record is the leg record: which legs of a mirror can be trusted (promise 4).
// All copies of one generation are equal; docs/formats.md has the rules.
type Record struct {
	// Mirror is a random name that tells mirrors apart.
	Mirror string `json:"mirror"`
	// Name is that of the device when the mirror was made; empty: not known.
	Name string `json:"name,omitempty"`
	// Generation counts changes; the highest wins.
	Generation uint64 `json:"generation"`
	// Tag is random for each generation: two of one generation and different
	// tags come from two histories.
	Tag string `json:"tag"`
	// Past are the generations before this one, the newest last; at most
	// pastLimit of them.
	Past []PastRecord `json:"past,omitempty"`

	Length blockdev.Sector `json:"length_sectors"`
	Region blockdev.Sector `json:"region_sectors"`

	Log  LogRecord   `json:"log"`
	Legs []LegRecord `json:"legs"`
	// NextID is the number of the next leg that is new.
	NextID int `json:"next_id"`

	// Policies are those that a table line cannot say, by their keys.
	Policies map[string]string `json:"policies,omitempty"`
	Created  time.Time         `json:"created,omitzero"`
	Changed  time.Time         `json:"changed,omitzero"` // of this generation
}

// PastRecord names an older generation.
type PastRecord struct {
	Generation uint64 `json:"generation"`
	Tag        string `json:"tag"`
}

// LogRecord is what the record says of the dirty log.
type LogRecord struct {
	Type string `json:"type"`           // core or disk
	Path string `json:"path,omitempty"` // of a log on a device
	// Number is major:minor of what is no file, when the record was written.
	Number string `json:"number,omitempty"`
	// NoCopy says that no copy of the record is kept beside the log: it is no
	// file, or its folder could not be written.
	NoCopy bool `json:"no_copy,omitempty"`
	// Untrusted says that the log on the device lacks regions that are dirty:
	// everything has to be copied.
	Untrusted bool       `json:"untrusted,omitempty"`
	Why       string     `json:"why,omitempty"` // it is not to be trusted
	Since     *time.Time `json:"since,omitempty"`
}

// LegRecord is what the record says of a leg.
type LegRecord struct {
	ID     int             `json:"id"`   // never used twice in one mirror
	Path   string          `json:"path"` // of a file its absolute path; else the word of the table line
	Offset blockdev.Sector `json:"offset_sectors"`
	// Number is major:minor of what is no file, when the record was written.
	Number string   `json:"number,omitempty"`
	State  LegState `json:"state"`
	// NoCopy says that no copy of the record is kept beside the leg.
	NoCopy bool `json:"no_copy,omitempty"`
	// Why and Since tell of the last change of the state.
	Why   string     `json:"why,omitempty"`
	Since *time.Time `json:"since,omitempty"`
}

// pastLimit is how many older generations a record names.
const pastLimit = 32

// logCore and logDisk are the types of a log.
const (
	logCore = "core"
	logDisk = "disk"
)

// randomName is 16 random bytes, or fewer, as hexadecimal digits.
func randomName(bytes int) string {
	b := make([]byte, bytes)
	if _, err := rand.Read(b); err != nil {
		panic("mirror: no random numbers: " + err.Error()) // crypto/rand never fails on Linux
	}
	return hex.EncodeToString(b)
}

// NewRecord is the record of a mirror that has none, generation 1: the first leg
// counts, the others are filled from it. A mirror whose log says that nothing
// has to be copied has them in at once.
func NewRecord(s Setup, now time.Time) Record {
	now = now.UTC().Truncate(time.Millisecond)
	r := Record{
		Mirror: randomName(16), Name: s.Name, Generation: 1, Tag: randomName(8),
		Length: s.Length, Region: s.Region, Log: s.Log.record(), Created: now, Changed: now,
	}
	for i, m := range s.Legs {
		l := LegRecord{ID: i, Path: m.Path, Number: m.Number, Offset: m.Offset, State: LegFilling, NoCopy: !m.File, Since: &now}
		if i == 0 {
			l.State = LegIn
		}
		r.Legs = append(r.Legs, l)
	}
	r.NextID = len(r.Legs)
	return r
}

// clone is a copy that shares nothing that is changed in place.
func (r Record) clone() Record {
	r.Legs = slices.Clone(r.Legs)
	r.Past = slices.Clone(r.Past)
	return r
}

// next makes the record that follows: one generation later, with a tag of its
// own.
func (r Record) next(now time.Time) Record {
	n := r.clone()
	n.addPast(PastRecord{r.Generation, r.Tag})
	n.Generation++
	n.Tag = randomName(8)
	n.Changed = now.UTC().Truncate(time.Millisecond)
	return n
}

// addPast names one more older generation.
func (r *Record) addPast(p PastRecord) {
	if slices.Contains(r.Past, p) {
		return
	}
	r.Past = append(r.Past, p)
	slices.SortStableFunc(r.Past, func(a, b PastRecord) int { return cmp.Compare(a.Generation, b.Generation) })
	if k := len(r.Past) - pastLimit; k > 0 {
		r.Past = slices.Delete(r.Past, 0, k)
	}
}

// follows tells whether a record comes from an older one: false means that the
// mirror was used in two places. Of generations that are not named any more
// nobody knows; they count as the past.
func (r Record) follows(old Record) bool {
	if old.Generation == r.Generation {
		return old.Tag == r.Tag
	}
	if slices.Contains(r.Past, PastRecord{old.Generation, old.Tag}) {
		return true
	}
	return len(r.Past) == 0 || old.Generation < r.Past[0].Generation
}

// leg finds a leg by its number.
func (r Record) leg(id int) (LegRecord, bool) {
	for _, l := range r.Legs {
		if l.ID == id {
			return l, true
		}
	}
	return LegRecord{}, false
}

// check refuses what no record of ours says.
func (r Record) check() error {
	switch {
	case r.Mirror == "" || r.Generation == 0 || r.Tag == "":
		return fmt.Errorf("%w: the record has no mirror, generation or tag", blockdev.ErrInvalid)
	case len(r.Legs) == 0:
		return fmt.Errorf("%w: the record names no legs", blockdev.ErrInvalid)
	}
	seen := map[int]bool{}
	for _, l := range r.Legs {
		if seen[l.ID] || l.ID < 0 || l.ID >= r.NextID {
			return fmt.Errorf("%w: the record has leg %d twice, or beyond its numbers", blockdev.ErrInvalid, l.ID)
		}
		seen[l.ID] = true
		switch l.State {
		case LegIn, LegFilling, LegDropped:
		default:
			return fmt.Errorf("%w: leg %d has the state %q, expected in, filling or dropped", blockdev.ErrInvalid, l.ID, l.State)
		}
	}
	return nil
}
