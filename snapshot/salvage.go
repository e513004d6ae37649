package snapshot

import (
	"fmt"
	"math"

	"github.com/dmfuse/dmfuse/blockdev"
)

var _ store = (*salvage)(nil)

// salvage is a store that is damaged and served as far as it can be read: the
// feature "damaged". Nothing is ever written to it.
type salvage struct {
	layout
	all, metadata uint64 // chunks
}

// errSalvage is what becomes of everything that would write.
var errSalvage = fmt.Errorf("%w: the store is damaged and open for reading only", blockdev.ErrReadOnly)

func (s *salvage) prepare(int64) (Chunk, error)                     { return 0, errSalvage }
func (s *salvage) bounds() (used, free, need int64)                 { return 0, 0, math.MaxInt64 }
func (s *salvage) fresh(Chunk, Chunk) bool                          { return false }
func (s *salvage) forget(int)                                       {}
func (s *salvage) commit(blockdev.Device, []exception) (int, error) { return 0, errSalvage }
func (s *salvage) invalidate(blockdev.Device) error                 { return nil }
func (s *salvage) used() (all, metadata uint64)                     { return s.all, s.metadata }
func (s *salvage) geometry() layout                                 { return s.layout }

// openSalvage takes from a damaged store what makes sense. A chunk whose
// exception points to nowhere reads as an I/O error; a chunk whose exception
// cannot be read shows the origin. A store that is marked invalid is served as
// it was. The header is believed if it can be, the table otherwise.
func (s *snapshot) openSalvage() error {
	if !s.params.persistent {
		return fmt.Errorf("%w: the store N has nothing to be read", blockdev.ErrInvalid)
	}
	chunk := loading{want: s.params.chunk}.chunk(s.cow)
	h, err := ReadHeader(s.cow)
	if err == nil {
		err = h.Validate()
	}
	if err == nil {
		chunk = blockdev.Sector(h.ChunkSize)
	} else {
		s.log().WithError(err).Warn("the store has no good header")
	}
	l := newLayout(chunk)
	t := &exceptions{}
	st := &salvage{layout: l, all: 2}
	s.setCore(st, t)
	end := s.walkSalvage(l, t, st)
	st.metadata = end.area + 2
	return nil
}

func (s *snapshot) walkSalvage(l layout, t *exceptions, st *salvage) walked {
	chunks := l.chunksIn(s.cow.Size())
	w := walk{layout: l, dev: s.cow,
		entry: func(a, i uint64, e exception) {
			if e.new < chunks && uint64(e.new)+1 > st.all {
				st.all = uint64(e.new) + 1
			}
			if e.new >= chunks || l.isArea(e.new) {
				s.log().Warnf("%s: chunk %d has no data: its exception points to chunk %d", where(a, i), e.old, e.new)
				e.new = maxNew
			}
			t.insert([]exception{e})
		},
		unreadable: func(a uint64, c Chunk, _, _ int64, err error) {
			s.log().WithError(err).Warnf("metadata area %d (chunk %d) cannot be read: its chunks show the origin", a, c)
		},
	}
	return w.run()
}
