package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Usage is what a snapshot takes on its COW device and in memory. Sizes are in
// sectors.
type Usage struct {
	State      string          `json:"state"` // "active", "paused", "invalid", "overflow"; "waiting" for a handover
	Store      string          `json:"store"` // P, PO or N
	Chunk      blockdev.Sector `json:"chunk_sectors"`
	Total      blockdev.Sector `json:"total_sectors"`     // of the COW device
	Allocated  blockdev.Sector `json:"allocated_sectors"` // with metadata, as in the status line
	Metadata   blockdev.Sector `json:"metadata_sectors"`
	Data       blockdev.Sector `json:"data_sectors"`   // Allocated less Metadata
	Needed     blockdev.Sector `json:"needed_sectors"` // a COW device of this size can never overflow
	Exceptions uint64          `json:"exceptions"`     // in the table
	Pending    int             `json:"pending"`        // in the making
	Answered   int64           `json:"uncommitted"`    // answered, in the table and not committed; of Exceptions
	Commit     string          `json:"commit"`         // CommitLazy or CommitStrict: when writes are answered
	CommitWhy  string          `json:"commit_why,omitempty"`
	COWGone    string          `json:"cow_gone,omitempty"` // the name of the COW file leads elsewhere
	Memory     int64           `json:"memory_bytes"`       // of the table of exceptions

	Capacity    blockdev.Sector `json:"capacity_sectors"`           // what the COW device has or may grow to
	Reserve     string          `json:"reserve"`                    // space beforehand: "on", "off", "unsupported" by the file system
	Reserved    blockdev.Sector `json:"reserved_sectors,omitempty"` // of it, not given out yet
	PausedSince *time.Time      `json:"paused_since,omitempty"`     // writes wait for room
	FillKnown   bool            `json:"fill_known"`                 // it was watched for long enough
	FillRate    float64         `json:"fill_sectors_per_second"`    // of late; 0: nothing new
	FullIn      *float64        `json:"full_in_seconds,omitempty"`  // at that rate, until Capacity is used up

	Work // what first writes have cost
}

// UsageReporter is a target that can tell its usage.
type UsageReporter interface {
	Usage() Usage
}

// Usage tells what the snapshot takes.
func (s *snapshot) Usage() Usage {
	u := Usage{State: "active", Store: s.params.store()}
	if s.cow != nil {
		u.Total = blockdev.SectorsIn(s.cow.Size())
	}
	c := s.core.Load()
	switch {
	case s.health.invalid.Load():
		u.State = "invalid"
	case s.health.overflowed.Load():
		u.State = "overflow"
	case c == nil:
		u.State = "waiting"
	}
	if c == nil {
		return u
	}
	s.mu.Lock()
	all, meta := c.store.used()
	u.Answered = s.uncommitted.Load()
	u.Pending = len(s.pending) - int(u.Answered)
	if c.disk != nil && u.Answered > 0 {
		meta = (c.disk.allotted-uint64(u.Pending))/c.perArea + 2 // as the kernel, which has committed them
	}
	s.spaceUsageLocked(&u, c, time.Now(), all)
	s.mu.Unlock()
	u.Commit, u.CommitWhy = s.commitMode(c)
	u.COWGone = s.nameGone()
	u.Chunk = c.chunk
	u.Allocated = blockdev.Sector(all) * c.chunk
	u.Metadata = blockdev.Sector(meta) * c.chunk
	u.Data = u.Allocated - min(u.Allocated, u.Metadata)
	u.Needed = NeededSize(s.env.Length, c.chunk, s.params.persistent)
	u.Exceptions = c.table.chunks()
	u.Memory = c.table.memory()
	u.Work = c.sumWork()
	return u
}

// NeededSize is the size of a COW device, in sectors, with which a snapshot of
// an origin can never overflow (kernel: lvm2 snapshot_manip.c). The chunk size
// is a valid one.
func NeededSize(origin, chunk blockdev.Sector, persistent bool) blockdev.Sector {
	l := newLayout(chunk)
	n := (uint64(origin) + uint64(chunk) - 1) / uint64(chunk)
	if persistent {
		n += 1 + n/l.perArea + 1
	}
	return blockdev.Sector(n) * chunk
}

// Message takes, beyond the kernel, which knows none:
//
//	usage                  answers [Usage] as JSON
//	exceptions [CURSOR]    answers a page of the [Listing]
//	policy [KEY=VALUE...]  changes policies, and prints them; kept=no, in the
//	                       end, where the change is forgotten with the daemon
func (s *snapshot) Message(_ context.Context, words []string) (string, error) {
	switch {
	case len(words) == 1 && words[0] == "usage":
		b, err := json.Marshal(s.Usage())
		return string(b), err
	case len(words) > 0 && words[0] == "exceptions":
		return s.listingText(words[1:])
	case len(words) > 0 && words[0] == "policy":
		kept, err := s.changePolicies(words[1:])
		if err != nil {
			return "", err
		}
		text := s.space.policies.Load().text(s.params)
		if !kept {
			text += " kept=no"
		}
		return text, nil
	}
	return "", fmt.Errorf("%w: a snapshot takes the messages usage, exceptions [CURSOR] and policy [KEY=VALUE...] only", blockdev.ErrInvalid)
}
