package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

var (
	_ target.Target    = (*snapshot)(nil)
	_ target.Suspender = (*snapshot)(nil)

	_ target.PresuspendUndoer = (*snapshot)(nil)
	_ target.Discarder        = (*snapshot)(nil)
	_ target.Zeroer           = (*snapshot)(nil)
	_ target.Extenter         = (*snapshot)(nil)
	_ target.Messager         = (*snapshot)(nil)
	_ target.BaseWatcher      = (*snapshot)(nil)
	_ target.Breaker          = (*snapshot)(nil)
	_ UsageReporter           = (*snapshot)(nil)
)

// snapshot is the target snapshot: the origin as it was, plus what was written
// to the snapshot since.
type snapshot struct {
	group   *Group
	env     *target.Env
	params  params
	merging bool         // the store of a target snapshot-merge: origin writes make no copies in it
	source  target.Lower // the origin device
	cow     target.Lower // nil: it could not be opened after a restart
	o       *origin
	claimed bool // it counts among the users of its COW device; guarded by group.cowMu

	// core is nil while the target waits for a handover, after it has handed
	// over, and when the store could not be read after a restart.
	core   atomic.Pointer[core]
	health health
	space  space
	copier copier

	unmarked  atomic.Bool  // it is invalid, and nothing on the disk says so
	active    atomic.Bool  // resumed once: origin writes make copies
	diskFull  atomic.Bool  // an event told so
	pace      atomic.Int64 // nanoseconds that a commit takes, about
	suspended bool         // between Postsuspend and Resume; guarded by o.mu
	stopping  atomic.Bool  // from Presuspend to Resume: nobody waits for room

	sidecar sync.Mutex // one change of the sidecar at a time

	mu      sync.Mutex
	pending map[Chunk]*unit // chunks allotted and not completed; guarded by mu
	queue   []*unit         // units in order of allotment; guarded by mu
	leading bool            // somebody commits; guarded by mu
	waiting int             // units that are ready and whose owner waits for the commit; guarded by mu
	users   int             // origin writes that look at this snapshot; guarded by mu
	room    chan struct{}   // closed when pending falls to the limit; guarded by mu
	idle    chan struct{}   // closed when queue and users are empty; guarded by mu

	early       early
	name        cowName
	uncommitted atomic.Int64 // exceptions that were answered first; changed under mu
}

// core is what makes up a snapshot apart from its devices: a handover passes
// it on to the next table.
type core struct {
	layout
	store  store
	table  *exceptions
	disk   *persistent // the store, if that is what it is
	serial uint64      // tells these exceptions from others; see [Listing]

	work    work
	tickets uint64               // chunks allotted; guarded by mu of the snapshot
	note    atomic.Pointer[note] // nil: none
	kept    *keptTable           // nil: the table is not saved
}

// newSnapshot makes the target.
func (g *Group) newSnapshot(env *target.Env, args []string) (target.Target, error) {
	s, lost, err := g.prepareSnapshot(env, args, false)
	if err != nil {
		return nil, err
	}
	if err := s.enter(lost); err != nil {
		s.unregister()
		_ = s.o.release()
		return nil, err
	}
	return s, nil
}

// prepareSnapshot does the first steps in the kernel's order (kernel:
// snapshot_ctr): words, devices, store and chunk size. lost is the error of a
// COW device that could not be opened after a restart. What it returns holds its
// origin.
func (g *Group) prepareSnapshot(env *target.Env, args []string, merging bool) (s *snapshot, lost, err error) {
	p, err := parseParams(args, env.ReadOnly && !merging)
	if err != nil {
		return nil, nil, err
	}
	mode := p.originMode(env)
	if merging {
		mode = env.Mode()
	}
	source, err := env.Open(p.origin, mode)
	if err != nil {
		return nil, nil, err
	}
	cow, lost := openCOW(env, p)
	if lost != nil {
		if !env.Restoring {
			return nil, nil, lost
		}
		cow = nil
	}
	if cow != nil && cow.ID() == source.ID() {
		return nil, nil, &target.ArgError{Index: 2, Text: p.cow, Want: "a COW device that is not the origin"}
	}
	s = &snapshot{group: g, env: env, params: p, source: source, cow: cow, merging: merging, pending: make(map[Chunk]*unit)}
	s.early.kick = make(chan struct{}, 1)
	if err := s.params.parseStore(args, s.blocks(), env.Restoring); err != nil {
		return nil, nil, err
	}
	if merging && !s.params.persistent {
		return nil, nil, &target.ArgError{Index: 3, Text: args[2], Want: "a store that can be merged: P or PO"}
	}
	// The mapper checks this too, but only when a new store has been written
	// (promise 7).
	if size := blockdev.SectorsIn(source.Size()); size < env.Length {
		return nil, nil, &target.ArgError{Index: 1, Text: p.origin, Want: fmt.Sprintf("an origin of at least %d sectors, this one has %d", uint64(env.Length), uint64(size))}
	}
	s.copier = copier{o: g.o}
	s.space.init()
	s.loadPolicies()
	s.o = g.hold(source.ID())
	return s, lost, nil
}

// enter does the other steps: registration, metadata.
func (s *snapshot) enter(lost error) error {
	waits, err := s.register()
	if err == nil && !waits {
		err = s.open(lost)
	}
	return err
}

// originMode is read-only, unless discards are passed down.
func (p params) originMode(env *target.Env) target.Mode {
	if p.discardPassdown {
		return env.Mode()
	}
	return target.ReadOnly
}

// openCOW opens the COW device for writing, also for a read-only table: origin
// writes copy to it all the same. One that cannot be written is opened
// read-only for such a table, and one with a damaged store always is.
func openCOW(env *target.Env, p params) (target.Lower, error) {
	if p.damaged {
		return env.Open(p.cow, target.ReadOnly)
	}
	cow, err := env.Open(p.cow, target.ReadWrite)
	if err != nil && env.ReadOnly {
		if k := blockdev.Kind(err); k == blockdev.ErrReadOnly || k == blockdev.ErrPermission {
			return env.Open(p.cow, target.ReadOnly)
		}
	}
	return cow, err
}

// blocks are the logical block sizes of origin and COW device in bytes.
func (s *snapshot) blocks() [2]int {
	b := [2]int{blockdev.BlockSize(s.source), blockdev.SectorSize}
	if s.cow != nil {
		b[1] = blockdev.BlockSize(s.cow)
	}
	return b
}

// open reads or creates the store.
func (s *snapshot) open(lost error) (err error) {
	switch {
	case s.params.damaged:
		err = s.openSalvage()
	case s.env.Restoring:
		s.restore(lost)
	case s.params.persistent:
		err = s.openStore(true)
	default:
		err = s.makeTransient()
	}
	if err != nil {
		return fmt.Errorf("COW device %s: %w", s.cow.Name(), err)
	}
	s.o.resort()
	return nil
}

// openStore reads the persistent store; with create set, a blank device gets
// one.
func (s *snapshot) openStore(create bool) (err error) {
	kept, saved, err := s.takeSaved()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && kept != nil {
			_, _ = kept.remove()
		}
	}()
	check := func(n uint64) error { return checkChunk(n, s.blocks()) }
	o := loading{want: s.params.chunk, check: check, create: create, hooks: s.group.o.Hooks}
	st, t, usable, err := s.openWith(saved, o)
	if err != nil && saved != nil {
		s.log().WithError(err).Warn("the saved table does not count, and the whole store is read")
		if _, err := kept.remove(); err != nil {
			kept = nil
		}
		st, t, usable, err = s.openWith(nil, o)
	}
	if err != nil {
		return err
	}
	if usable && st.skipped > 0 {
		s.log().Infof("%d of %d metadata areas were not read: their exceptions stood in the saved table", st.skipped, st.area.Load()+1)
	}
	if given := s.params.chunk; given != 0 && given != st.chunk {
		s.log().Warnf("the store has chunks of %d sectors, not of %d as the table says", uint64(st.chunk), uint64(given))
	}
	if !usable {
		s.health.setInvalid()
		s.log().Warn("the store is marked invalid")
	}
	if st.created {
		s.clearSidecar()
	}
	if err := s.takeNote(st, usable, t); err != nil {
		return err
	}
	if s.env.Restoring && usable && st.nextFree > st.chunksIn(s.cow.Size()) {
		s.log().Errorf("the store names data beyond the end of its COW device: it was damaged or cut off; a check says more")
	}
	s.setCore(st, t)
	c := s.core.Load()
	c.kept = kept
	s.keepSaved(c)
	return nil
}

// makeTransient makes an empty store in memory.
func (s *snapshot) makeTransient() error {
	st := &transient{layout: newLayout(s.params.chunk)}
	if dir := s.group.o.TransientDir; dir != "" {
		var err error
		if st.kept, err = makeTable(dir, s.tableID(), s.log()); err != nil {
			return err
		}
		if st.kept != nil {
			st.kept.forgets = s.group.o.Hooks.NoTableRecord
		}
	}
	s.setCore(st, &exceptions{})
	return nil
}

// takeTransient goes on with the store in memory of the worker before.
func (s *snapshot) takeTransient() (err error) {
	st, t := &transient{layout: newLayout(s.params.chunk)}, &exceptions{}
	chunks, origin := st.chunksIn(s.cow.Size()), st.originChunks(blockdev.SectorsIn(s.source.Size()))
	if st.kept, st.next, err = takeTable(s.group.o.TransientDir, s.tableID(), chunks, origin, t, s.log()); err != nil {
		return err
	}
	s.setCore(st, t)
	return nil
}

func (s *snapshot) tableID() tableID {
	return tableID{chunk: s.params.chunk, origin: s.source.ID(), cow: s.cow.ID()}
}

func (s *snapshot) setCore(st store, t *exceptions) {
	c := &core{layout: st.geometry(), store: st, table: t, serial: newSerial()}
	c.disk, _ = st.(*persistent)
	s.core.Store(c)
	s.startSpace(c)
	s.beginName(c)
}

// chunkSize is the chunk size in use, 0 while waiting for a handover.
func (s *snapshot) chunkSize() blockdev.Sector {
	if c := s.core.Load(); c != nil {
		return c.chunk
	}
	return 0
}

// size is the size of the snapshot device in bytes.
func (s *snapshot) size() int64 { return s.env.Length.Bytes() }

// sourceEnd is end or, if that comes first, the end of the origin device in
// bytes, in whole sectors. The origin was at least as long as the snapshot when
// the table was made, so it is asked only for what lies behind that; one that
// was cut off since ends no earlier: the read of what is gone has to fail.
func (s *snapshot) sourceEnd(end int64) int64 {
	if end <= s.size() {
		return end
	}
	return min(end, max(roundDown(s.source.Size()), s.size()))
}

// log is the log of the table, nowhere if it has none.
func (s *snapshot) log() logrus.FieldLogger {
	if s.env.Log != nil {
		return s.env.Log
	}
	if s.group.o.Log != nil {
		return s.group.o.Log
	}
	l := logrus.New()
	l.SetLevel(logrus.PanicLevel)
	return l
}

// Flush commits what was answered first, and flushes the COW device, also that
// of an invalid snapshot. If anything that was answered is lost, it says so
// (promise 1).
func (s *snapshot) Flush(ctx context.Context) error {
	if s.cow == nil {
		return ErrInvalidSnapshot
	}
	flushed := false
	if c := s.core.Load(); c != nil {
		var err error
		if flushed, err = s.commitAnswered(ctx, c); err != nil {
			return err
		}
	}
	var err error
	if !flushed { // a commit has done it
		err = target.FlushLower(ctx, s.cow)
	}
	s.lookName()
	if lost := s.takeLost(); lost != nil {
		return lost
	}
	return err
}

// Devices lists the origin, as far as the snapshot reaches, and the whole COW.
func (s *snapshot) Devices() []target.DeviceUse {
	list := []target.DeviceUse{{Lower: s.source, Area: blockdev.Range{Count: s.env.Length}}}
	if s.cow != nil {
		list = append(list, target.DeviceUse{Lower: s.cow, Area: blockdev.Range{Count: blockdev.SectorsIn(s.cow.Size())}})
	}
	return list
}

// Close leaves the group, commits what was answered, waits for the copies that
// origin writes have begun, and ends the workers.
func (s *snapshot) Close() error {
	s.unregister()
	s.o.gate.bell.ring()
	s.settle()
	s.waitIdle()
	if c := s.core.Load(); c != nil {
		s.closeNote(c)
		if err := c.kept.end(); err != nil {
			s.log().WithError(err).Error("the store was closed all the same")
		}
	}
	s.space.work.Wait()
	err := s.copier.close()
	if c := s.core.Load(); c != nil && !s.params.persistent {
		err = errors.Join(err, c.store.invalidate(s.cow)) // nobody goes on with it
	}
	if rerr := s.o.release(); err == nil {
		err = rerr
	}
	return err
}
