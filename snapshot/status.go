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
		return s.params.line(s.source.Name(), s.cow.Name(), s.chunkSize())
	}
	switch c := s.core.Load(); {
	case s.health.invalid.Load():
		return "Invalid"
	case s.health.overflowed.Load():
		return "Overflow"
	case c == nil:
		return "Unknown"
	default:
		s.mu.Lock()
		all, meta := c.store.used()
		s.mu.Unlock()
		chunk := uint64(c.chunk)
		return fmt.Sprintf("%d/%d %d", all*chunk, uint64(blockdev.SectorsIn(s.cow.Size())), meta*chunk)
	}
}
