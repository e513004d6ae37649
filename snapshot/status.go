package snapshot

import (
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Status is the kernel's text: "Invalid", "Overflow" or
// "<allocated>/<total> <metadata>" in sectors, metadata counted as allocated
// too; or the table line with the chunk size in use.
func (s *snapshot) Status(form target.StatusForm) string {
	if form == target.StatusTable {
		return s.tableLine()
	}
	if s.health.invalid.Load() {
		return "Invalid"
	}
	if s.health.overflowed.Load() {
		return "Overflow"
	}
	u := s.Usage()
	return fmt.Sprintf("%d/%d %d", uint64(u.Allocated), uint64(u.Total), uint64(u.Metadata))
}

// tableLine prints the chunk size of the store, 0 while waiting for a handover
// and afterwards; that of the table when there is no store.
func (s *snapshot) tableLine() string {
	chunk := s.chunkSize()
	cow := target.Quote(s.params.cow)
	if s.cow != nil {
		cow = target.DeviceWord(s.cow)
	}
	if s.core.Load() == nil && s.env.Restoring {
		chunk = s.params.chunk
	}
	return s.params.line(target.DeviceWord(s.source), cow, chunk)
}

// line prints the arguments with the names of the devices and the chunk size
// in use.
func (p params) line(origin, cow string, chunk blockdev.Sector) string {
	s := fmt.Sprintf("%s %s %s %d", origin, cow, p.store(), uint64(chunk))
	var features string
	n := 0
	for _, f := range p.features() {
		if f.on {
			n++
			features += " " + f.name
		}
	}
	if n == 0 {
		return s
	}
	return fmt.Sprintf("%s %d%s", s, n, features)
}
