package snapshot

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

// Options are fixed when a [Group] is made. The zero value works.
type Options struct {
	// Log takes what no table is concerned with; nil: nothing is logged.
	Log logrus.FieldLogger
	// Throttle limits the copies of all snapshots together; nil: no limit.
	Throttle *kcopyd.Throttle
	// CopyPages is the budget for copies of each snapshot, in pages of 4 KiB;
	// 0: the default of kcopyd.
	CopyPages int
	// Notes says where the exceptions of writes that are answered first stand.
	Notes Notes
	// TransientDir is where the exceptions of transient stores stand for the next
	// worker of the same daemon; empty: in memory only.
	TransientDir string
	// MergeBytes is the most that one step of a merge takes; 0: as much as is quick.
	MergeBytes int64
	// AtOnce is told when more barriers than ever before are to run side by side;
	// nil: nobody is told.
	AtOnce func(barriers int)
	// Hooks break the rules of the package on purpose. For tests only.
	Hooks Hooks
}

// Hooks take single barriers away, so that a test can prove that it would
// notice. The zero value changes nothing.
type Hooks struct {
	NoCreateFlush    bool // the header of a new store is written without a flush of the empty area before
	NoDataFlush      bool // exceptions are written without a flush of the data before
	NoExceptionFlush bool // origin writes are let through before the exception is durable
	NoAreaFlush      bool // a full area is written without a flush of the zeroed next one
	NoInvalidFlush   bool // origin writes are let through before the header says invalid
	NoRepairFlush    bool // a repair in place has no barriers between its steps

	NoMergeFlush      bool // exceptions are taken out before what was merged is durable
	NoMergeAgain      bool // what was written to chunks while they were copied is not copied again
	NoMergeAgainFlush bool // what was copied again is not durable when the exceptions are taken out
	NoDropFlush       bool // the origin is written before it is durable that the exceptions are gone
	NoMergeCopyOut    bool // other snapshots do not save what a merge overwrites

	NoNoteRecord  bool // writes are answered first without a record in the note
	NoNoteCommit  bool // exceptions that were answered first count for the origin
	NoNoteSession bool // a note is good whatever the mark on the store says
	NoNoteData    bool // a note is good whatever the chunks hold
	NoNoteForget  bool // what the note says of a chunk stays when that is written to

	NoTableRecord bool // exceptions of transient stores do not get into the table for the next worker

	NoTableCheck bool // a saved table is good whatever the mark on the store says

	amidMerge func() // called when a step has copied and writes do not wait yet
}

// Group links origins and their snapshots: they find each other by the
// identity of the lower device that holds the original data. A daemon has one
// group.
type Group struct {
	o Options

	mu      sync.Mutex
	origins map[blockdev.ID]*origin

	atOnce atomic.Int32 // barriers, at most so far

	tables sync.Map // the files of saved tables that are of open stores

	cowMu sync.Mutex
	cows  map[blockdev.ID]*cowUse // COW devices of all snapshots; guarded by cowMu
}

// cowUse is how many tables have a COW device. They are of one origin.
type cowUse struct {
	o     *origin
	users int
}

// claimCOW enters s among the users of its COW device. Two origins on one would
// overwrite each other's chunks.
func (g *Group) claimCOW(s *snapshot) error {
	if s.cow == nil || s.params.damaged {
		return nil
	}
	g.cowMu.Lock()
	defer g.cowMu.Unlock()
	use := g.cows[s.cow.ID()]
	switch {
	case use == nil:
		g.cows[s.cow.ID()] = &cowUse{s.o, 1}
		s.claimed = true
	case use.o != s.o:
		return fmt.Errorf("%w: COW device %s belongs to a snapshot of another origin", blockdev.ErrBusy, s.cow.Name())
	default:
		use.users++
		s.claimed = true
	}
	return nil
}

// dropCOW takes back what claimCOW did.
func (g *Group) dropCOW(s *snapshot) {
	g.cowMu.Lock()
	defer g.cowMu.Unlock()
	if !s.claimed {
		return
	}
	s.claimed = false
	if use := g.cows[s.cow.ID()]; use != nil {
		if use.users--; use.users == 0 {
			delete(g.cows, s.cow.ID())
		}
	}
}

// NewGroup makes a group without origins.
func NewGroup(o Options) *Group {
	return &Group{o: o, origins: make(map[blockdev.ID]*origin), cows: make(map[blockdev.ID]*cowUse)}
}

// Types lists the target types whose targets find each other in this group.
func (g *Group) Types() []target.Type {
	return []target.Type{
		{Name: "snapshot", Version: [3]uint32{1, 16, 0}, Usage: usageSnapshot, Fragile: true, New: g.newSnapshot},
		{Name: "snapshot-merge", Version: [3]uint32{1, 5, 0}, Usage: usageSnapshot, Mover: true, New: g.newMerge},
		{Name: "snapshot-origin", Version: [3]uint32{1, 9, 0}, Usage: usageOrigin, New: g.newOrigin},
	}
}

// origin is a lower device that has snapshots or a snapshot-origin target.
type origin struct {
	group *Group
	id    blockdev.ID
	users int // targets that hold it; guarded by group.mu

	// gate is passed by every write of a snapshot-origin target, and shut
	// while a snapshot becomes active.
	gate gate

	// copier makes the copies that several snapshots share.
	copier copier
	turns  turns // origin writes that save together

	mu    sync.RWMutex
	snaps []*snapshot // registered, largest chunk first; replaced, never changed; guarded by mu
}

// hold finds or makes the origin with this identity.
func (g *Group) hold(id blockdev.ID) *origin {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := g.origins[id]
	if o == nil {
		o = &origin{group: g, id: id, copier: copier{o: g.o}, turns: turns{turn: make(chan struct{}, 1)}}
		g.origins[id] = o
	}
	o.users++
	return o
}

// release gives back what hold gave.
func (o *origin) release() error {
	o.group.mu.Lock()
	o.users--
	last := o.users == 0
	if last {
		delete(o.group.origins, o.id)
	}
	o.group.mu.Unlock()
	if last {
		return o.copier.close()
	}
	return nil
}

// sortLocked puts the snapshots with the largest chunk first, as the kernel
// does. One that waits for a handover counts as chunk 0.
func (o *origin) sortLocked() {
	o.snaps = slices.Clone(o.snaps)
	slices.SortStableFunc(o.snaps, func(a, b *snapshot) int { return cmp.Compare(b.chunkSize(), a.chunkSize()) })
}

// removeLocked takes s out of the list.
func (o *origin) removeLocked(s *snapshot) {
	i := slices.Index(o.snaps, s)
	if i < 0 {
		return
	}
	o.snaps = slices.Concat(o.snaps[:i], o.snaps[i+1:])
}

// sideBySide says that n commits that take long are to run at once.
func (g *Group) sideBySide(n int) {
	for most := g.atOnce.Load(); n > 1 && int32(n) > most; most = g.atOnce.Load() {
		if g.atOnce.CompareAndSwap(most, int32(n)) && g.o.AtOnce != nil {
			g.o.AtOnce(n)
		}
	}
}
