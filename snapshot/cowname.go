package snapshot

import (
	"fmt"
	"sync/atomic"
)

// cowName watches whether the name of the COW file leads to the file that is
// open. A file that was replaced or removed is written to as before, and all of
// that is gone with the daemon: it is said, as a status, an event and in the log.
// Nothing fails by it: as long as the daemon runs everything can be read, and
// copied away.
type cowName struct {
	had  atomic.Bool // when the store was opened
	gone atomic.Bool // it has been said
}

// beginName is called when the store is open.
func (s *snapshot) beginName(c *core) {
	if c.disk != nil {
		_, _, _, ok := s.group.o.Notes.machine().file(s.cow)
		s.name.had.Store(ok)
	}
}

// nameGone says what is wrong with the name; empty: nothing.
func (s *snapshot) nameGone() string {
	if !s.name.had.Load() {
		return ""
	}
	if _, _, _, ok := s.group.o.Notes.machine().file(s.cow); ok {
		return ""
	}
	return fmt.Sprintf("%s is no more the file that is in use: it was replaced or removed, and what is written is lost when the daemon ends", s.cow.Name())
}

// lookName says it once.
func (s *snapshot) lookName() {
	why := s.nameGone()
	switch {
	case why == "":
		s.name.gone.Store(false)
	case !s.name.gone.Swap(true):
		s.log().Error(why)
		s.env.Event()
	}
}
