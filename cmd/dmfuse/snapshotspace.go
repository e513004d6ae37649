package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/dmfuse/dmfuse/snapshot"
)

// forecast says when a COW is full if it goes on as of late.
type forecast struct {
	State    string   `json:"state"` // growing, idle (nothing new of late), unknown (not watched for long enough)
	Rate     float64  `json:"bytes_per_second"`
	FullIn   *float64 `json:"full_in_seconds,omitempty"` // nil where it does not grow
	FullDisk bool     `json:"full_disk,omitempty"`       // the disk below the COW file is full before the COW is
}

// newForecast tells how long room bytes last at a rate; disk is what the disk has
// for them, below 0 where that is not known.
func newForecast(known bool, rate float64, room, disk int64) *forecast {
	f := &forecast{State: "growing", Rate: rate}
	switch {
	case !known:
		f.State, f.Rate = "unknown", 0
		return f
	case rate <= 0:
		f.State, f.Rate = "idle", 0
		return f
	}
	if disk >= 0 && disk < room {
		room, f.FullDisk = disk, true
	}
	left := float64(max(room, 0)) / rate
	f.FullIn = &left
	return f
}

// text is the forecast for people.
func (f *forecast) text(a *app) string {
	switch {
	case f.State == "unknown":
		return "not known yet"
	case f.FullIn == nil:
		return "not growing"
	}
	what := "full"
	if f.FullDisk {
		what = "the disk is full"
	}
	return fmt.Sprintf("%s in %s, at %s/s", what, roughly(*f.FullIn), a.size(int64(f.Rate)))
}

// roughly is a time in words that claim no more than a forecast knows.
func roughly(seconds float64) string {
	switch {
	case seconds >= 100*365*86400:
		return "over 100 years"
	case seconds >= 3*86400:
		return fmt.Sprintf("%.0f days", seconds/86400)
	case seconds >= 3*3600:
		return fmt.Sprintf("%.0f hours", seconds/3600)
	case seconds >= 180:
		return fmt.Sprintf("%.0f minutes", seconds/60)
	}
	return fmt.Sprintf("%.0f s", math.Ceil(seconds))
}

// addSpace adds what the target knows of the room that is left.
func (u *snapshotUsageInfo) addSpace(ctx context.Context, s *session, m mapped) error {
	space, err := s.spaceOf(ctx, &u.snapshotInfo)
	if err != nil {
		return err
	}
	u.Reserve, u.PausedSince = space.Reserve, space.PausedSince
	u.COWGone = space.COWGone
	u.Commit, u.CommitWhy, u.Uncommitted = space.Commit, space.CommitWhy, space.Answered
	u.CapacityBytes, u.ReservedBytes = space.Capacity.Bytes(), space.Reserved.Bytes()
	u.Work = space.Work
	if u.State == "valid" {
		u.Fill = u.forecast(space)
	}
	if u.Policies, err = s.policies(ctx, m); err != nil {
		u.Policies = nil // of a table that takes none
	}
	if u.Commit == snapshot.CommitStrict && u.CommitWhy == "" {
		u.CommitWhy = u.whyStrict()
	}
	return nil
}

// whyStrict is what to say of a snapshot that commits first where nothing keeps it
// from answering first.
func (u *snapshotUsageInfo) whyStrict() string {
	for _, p := range u.Policies {
		if p.Key == "commit" && p.Value == snapshot.CommitStrict {
			return "as its policy says"
		}
	}
	if u.Asked == 0 {
		return "until the first write, which settles it"
	}
	return "as the kernel does it, unless the policy says commit=lazy"
}

func (u *snapshotUsageInfo) forecast(space snapshot.Usage) *forecast {
	disk := int64(-1)
	if u.DiskFreeBytes != nil {
		disk = *u.DiskFreeBytes + u.ReservedBytes
	}
	rate := space.FillRate * 512
	return newForecast(space.FillKnown, rate, u.CapacityBytes-u.AllocatedBytes, disk)
}

// spaceRows are the lines of usage about the room that is left.
func (u snapshotUsageInfo) spaceRows(a *app) [][]string {
	var rows [][]string
	add := func(key, format string, args ...any) {
		rows = append(rows, []string{key, fmt.Sprintf(format, args...)})
	}
	if u.COWGone != "" {
		add("COW:", "%s", u.COWGone)
	}
	if u.DiskFreeBytes != nil {
		add("Disk free:", "%s", a.size(*u.DiskFreeBytes))
	}
	if u.CapacityBytes > u.TotalBytes && u.TotalBytes > 0 {
		add("Grows to:", "%s", a.size(u.CapacityBytes))
	}
	switch u.Reserve {
	case "on":
		add("Reserved:", "%s", a.size(u.ReservedBytes))
	case "unsupported":
		add("Reserved:", "nothing: the file system cannot take space beforehand")
	}
	for _, p := range u.Policies {
		if p.Key == "overflow" {
			add("When full:", "%s", p.Value)
		}
	}
	switch {
	case u.Commit == snapshot.CommitLazy:
		add("Commit:", "lazy: writes are answered first; not committed: %s", count(u.Uncommitted, "chunk"))
	case u.CommitWhy != "":
		add("Commit:", "strict: %s", u.CommitWhy)
	}
	if u.PausedSince != nil {
		add("Paused:", "writes wait for room, since %s", u.PausedSince.Local().Format(time.DateTime))
	}
	if u.Asked > 0 {
		add("First writes:", "%s, %s copied for them (%s of zeros), %s written: %.1f times as much", a.size(u.Asked), a.size(u.Copied), a.size(u.Zero),
			a.size(u.Written), u.Amplified)
	}
	if u.Fill != nil {
		add("Forecast:", "%s", u.Fill.text(a))
	}
	return rows
}
