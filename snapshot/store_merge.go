package snapshot

import (
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
)

// A merge takes the exceptions out of a store from the end of the log
// backwards: what is left is a valid store at every moment (kernel:
// persistent_prepare_merge, persistent_commit_merge).

// last reads up to n of the exceptions that stand last in the log, in the order
// of the log; none when the store is empty.
func (s *persistent) last(cow blockdev.Device, n int) ([]exception, error) {
	es := make([]exception, n)
	free := n // of es, from the start
	for a, k := s.area.Load(), s.committed; free > 0; a, k = a-1, s.perArea {
		take := min(uint64(free), k)
		b := make([]byte, take*entrySize)
		if take > 0 {
			c := s.layout.area(a)
			if err := readFull(cow, b, s.offset(c)+int64(k-take)*entrySize); err != nil {
				return nil, fmt.Errorf("metadata area %d (chunk %d): %w", a, c, err)
			}
		}
		free -= int(take)
		for i := range int(take) {
			es[free+i] = getEntry(b[i*entrySize:])
		}
		if a == 0 {
			break
		}
	}
	return es[free:], nil
}

// drop takes the last n exceptions out of the log. When it returns that is
// durable. An area is emptied before the one in front of it is touched, so that
// the log ends where it ended, or earlier.
func (s *persistent) drop(cow blockdev.Device, n int) error {
	s.rewound = true
	for left := uint64(n); left > 0; {
		if s.committed == 0 {
			a := s.area.Load()
			if a == 0 {
				return fmt.Errorf("%w: %d more exceptions to take out than the store has", blockdev.ErrInvalid, left)
			}
			s.area.Store(a - 1)
			s.committed = s.perArea
		}
		k := min(left, s.committed)
		if err := s.zeroEntries(cow, s.committed-k, s.committed); err != nil {
			return err
		}
		s.committed -= k
		left -= k
	}
	s.left.Store(s.area.Load()*s.perArea + s.committed + 1)
	return nil
}

// zeroEntries makes the entries [from, to) of the area zero, durably: whole
// blocks, of which the first may hold entries that stay.
func (s *persistent) zeroEntries(cow blockdev.Device, from, to uint64) error {
	start := int64(from) * entrySize / s.unit * s.unit
	keep := int64(from)*entrySize - start
	b := make([]byte, s.blockEnd(to-1)-start)
	off := s.offset(s.layout.area(s.area.Load())) + start
	if keep > 0 {
		if err := readFull(cow, b[:s.unit], off); err != nil {
			return err
		}
		clear(b[keep:])
	}
	if s.hooks.NoDropFlush {
		if _, err := cow.WriteAt(b, off); err != nil {
			return err
		}
	} else if _, err := blockdev.WriteFUA(cow, b, off); err != nil {
		return err
	}
	s.tail = append(s.tail[:0], b[:keep]...)
	s.clean = 0 // what stands behind is not known
	return nil
}
