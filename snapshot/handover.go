package snapshot

import (
	"fmt"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
)

// register enters s in the list of its origin. waits tells that a live table
// with the same origin and COW device exists, whose exceptions s takes over
// when it is resumed (kernel: __validate_exception_handover).
func (s *snapshot) register() (waits bool, err error) {
	if err := s.group.claimCOW(s); err != nil {
		return false, err
	}
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	from, to, n := s.o.sharingLocked(s)
	if n == 2 || to != nil {
		return false, fmt.Errorf("%w: a table that waits to take over COW device %s is loaded already", blockdev.ErrInvalid, s.cow.Name())
	}
	if from != nil && s.params.damaged {
		return false, fmt.Errorf("%w: COW device %s is in use by a live snapshot", blockdev.ErrInvalid, s.cow.Name())
	}
	if from != nil && s.env.Restoring && !s.env.Waiting && s.merging != from.merging {
		s.settleLocked(from)
		return true, nil
	}
	if s.merging && slices.ContainsFunc(s.o.snaps, func(other *snapshot) bool { return other.merging }) {
		return false, fmt.Errorf("%w: a snapshot of the origin %s is being merged already", blockdev.ErrInvalid, s.source.Name())
	}
	s.o.snaps = append(slices.Clone(s.o.snaps), s)
	return from != nil, nil
}

// settleLocked ends a handover to a merge that had happened when the daemon was
// killed, and of which both tables were recorded as live: the merge has the
// exceptions, whichever of the two comes back first. Nothing is in flight yet.
func (s *snapshot) settleLocked(from *snapshot) {
	s.o.snaps = append(slices.Clone(s.o.snaps), s)
	if s.merging {
		s.takeOver(from)
		return
	}
	s.health.setInvalid()
	s.active.Store(true) // it does not wait for anything
}

// sharingLocked finds the active and the waiting snapshot on the COW device of
// one, which may be either.
func (o *origin) sharingLocked(one *snapshot) (from, to *snapshot, n int) {
	for _, s := range o.snaps {
		if one.cow == nil || s.cow == nil || s.cow.ID() != one.cow.ID() {
			continue
		}
		if s.active.Load() {
			from = s
		} else {
			to = s
		}
		n++
	}
	return from, to, n
}

// resort puts the list in order after a chunk size has become known.
func (o *origin) resort() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sortLocked()
}

// unregister takes s out of the list. A table that waits to take over from it
// becomes invalid; the COW device is left as it is.
func (s *snapshot) unregister() {
	s.group.dropCOW(s)
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	if from, to, _ := s.o.sharingLocked(s); from == s && to != nil && to.core.Load() == nil {
		to.health.setInvalid()
	}
	s.o.removeLocked(s)
}

// Presuspend gives writes to the snapshot back that wait for room. Copies belong
// to requests.
func (s *snapshot) Presuspend(bool) {
	s.stopping.Store(true)
	s.o.gate.bell.ring()
}

// PresuspendUndo lets them wait again.
func (s *snapshot) PresuspendUndo() { s.stopping.Store(false) }

// Postsuspend notes that no request is inside: a handover may happen. What was
// answered is committed, as a suspend without a flush leaves it.
func (s *snapshot) Postsuspend() {
	s.settle()
	s.o.mu.Lock()
	s.suspended = true
	s.o.mu.Unlock()
}

// Preresume refuses while a handover is half done.
func (s *snapshot) Preresume() error {
	s.o.mu.RLock()
	defer s.o.mu.RUnlock()
	from, to, _ := s.o.sharingLocked(s)
	switch {
	case from == nil || to == nil || to.core.Load() != nil:
		return nil
	case s == from:
		return fmt.Errorf("%w: a new table waits to take over COW device %s: resume that one", blockdev.ErrInvalid, s.cow.Name())
	case !from.suspended:
		return fmt.Errorf("%w: the table that uses COW device %s must be suspended first", blockdev.ErrInvalid, s.cow.Name())
	}
	return nil
}

// Resume takes over the exceptions of a suspended table, if one waits, and
// makes the snapshot active: origin writes make copies from now on. Those
// under way are waited for, new ones wait until it is done.
func (s *snapshot) Resume() {
	s.o.gate.close()
	defer s.o.gate.reopen()
	s.o.mu.Lock()
	defer s.o.mu.Unlock()
	if from, to, _ := s.o.sharingLocked(s); from != nil && to == s && s.core.Load() == nil {
		s.takeOver(from)
	}
	s.o.sortLocked()
	s.suspended = false
	s.stopping.Store(false)
	s.active.Store(true)
}

// takeOver moves the exceptions and the store from another table to s. Nothing
// is in flight on either of them.
func (s *snapshot) takeOver(from *snapshot) {
	s.core.Store(from.core.Load())
	s.health.invalid.Store(from.health.invalid.Load())
	s.health.overflowed.Store(from.health.overflowed.Load())
	from.mu.Lock()
	s.early.lost = from.early.lost
	from.mu.Unlock()
	s.space.policies.Store(from.space.policies.Load())
	s.startSpace(s.core.Load())
	from.health.setInvalid()
	from.core.Store(nil)
	if s.merging {
		s.closeNote(s.core.Load()) // a merge makes no exceptions, and takes others away
	}
}
