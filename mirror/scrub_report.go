package mirror

import (
	"math/bits"
	"time"
)

// ScrubState says how far a scrub is.
type ScrubState string

// States of a scrub.
const (
	ScrubNone    ScrubState = "none" // there was none in the life of this table
	ScrubRunning ScrubState = "running"
	ScrubPaused  ScrubState = "paused"  // the device is suspended
	ScrubDone    ScrubState = "done"    // all of it was looked at
	ScrubStopped ScrubState = "stopped" // by a message
)

// scrubList bounds the lists of a report; the counts beside them are exact.
const scrubList = 256

// ScrubReport is what a scrub has found so far: the answer to the message
// "scrub report", as JSON.
type ScrubReport struct {
	State   ScrubState `json:"state"`
	Repair  bool       `json:"repair"`           // legs that differ are written
	Source  int        `json:"source_leg"`       // what the others are compared with, and copied from
	Started time.Time  `json:"started,omitzero"` //
	Ended   time.Time  `json:"ended,omitzero"`

	Done    int64 `json:"done_bytes"`
	Total   int64 `json:"total_bytes"`
	Rate    int64 `json:"rate_bytes"`    // a second, over the last moments
	Skipped int64 `json:"skipped_bytes"` // of Done: not compared, as they are out of sync, or too busy

	DifferingRanges int64        `json:"differing_ranges"` // how many; exact
	DifferingBytes  int64        `json:"differing_bytes"`  // likewise, in whole sectors
	Differing       []ScrubRange `json:"differing"`        // the first 256 of them
	Repaired        int64        `json:"repaired_bytes"`   // of the mirror, however many legs were written

	UnreadableRanges int64        `json:"unreadable_ranges"`
	UnreadableBytes  int64        `json:"unreadable_bytes"`
	Unreadable       []ScrubRange `json:"unreadable"`

	Problem string `json:"problem,omitempty"` // the last reason for not repairing or not reading something
}

// ScrubRange is a run of bytes of the mapped device.
type ScrubRange struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	Legs   []int `json:"legs"` // that differ from the source, or cannot be read
}

// Clean tells whether nothing was found that is still so.
func (r *ScrubReport) Clean() bool {
	return r.DifferingBytes+r.UnreadableBytes <= r.Repaired && r.Problem == ""
}

// ranges collects runs, each going on from the one before where it can.
type ranges struct {
	list  []ScrubRange
	count int64
	bytes int64

	end  int64 // of the last run
	legs uint64
}

// add takes the next run. Runs come in rising order.
func (l *ranges) add(off, n int64, legs uint64) {
	l.bytes += n
	if l.count > 0 && l.end == off && l.legs == legs {
		if l.count == int64(len(l.list)) {
			l.list[len(l.list)-1].Length += n
		}
		l.end += n
		return
	}
	l.count++
	l.end, l.legs = off+n, legs
	if len(l.list) < scrubList {
		l.list = append(l.list, ScrubRange{off, n, legList(legs)})
	}
}

// legList is a set of legs as numbers.
func legList(mask uint64) []int {
	list := []int{}
	for ; mask != 0; mask &= mask - 1 {
		list = append(list, bits.TrailingZeros64(mask))
	}
	return list
}
