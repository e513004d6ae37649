package snapshot

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target      = (*snapshot)(nil)
	_ target.Suspender   = (*snapshot)(nil)
	_ target.Discarder   = (*snapshot)(nil)
	_ target.Zeroer      = (*snapshot)(nil)
	_ target.Extenter    = (*snapshot)(nil)
	_ target.BaseWatcher = (*snapshot)(nil)
)

// snapshot is the target snapshot: the origin as it was, plus what was written
// to the snapshot since.
type snapshot struct {
	group  *Group
	env    *target.Env
	params params
	source target.Lower // the origin device, opened read-only
	cow    target.Lower
	o      *origin

	// core is nil while the target waits for a handover.
	core atomic.Pointer[core]

	health health

	active atomic.Bool // resumed once: origin writes make copies

	mu sync.Mutex
	// pending has the chunks whose exception is allotted and not completed.
	pending map[Chunk]*unit // guarded by mu
	queue   []*unit         // units in order of allotment; guarded by mu
	leading bool            // somebody commits; guarded by mu
	users   int             // origin writes that look at this snapshot; guarded by mu
	room    chan struct{}   // closed when pending falls to the limit; guarded by mu
	idle    chan struct{}   // closed when queue and users are empty; guarded by mu

	suspended bool // between Postsuspend and Resume; guarded by o.mu

	copier copier
}

// core is what makes up a snapshot apart from its devices: a handover passes
// it on to the next table.
type core struct {
	layout
	store store
	table *exceptions
}

func (g *Group) newSnapshot(env *target.Env, args []string) (target.Target, error) {
	p, err := parseParams(args)
	if err != nil {
		return nil, err
	}
	source, err := env.Open(p.origin, p.originMode(env))
	if err != nil {
		return nil, err
	}
	cow, err := openCOW(env, p.cow)
	if err != nil {
		return nil, err
	}
	if cow.ID() == source.ID() {
		return nil, &target.ArgError{Index: 2, Text: p.cow, Want: "a COW device that is not the origin"}
	}
	if err := p.parseStore(args, [2]int{blockdev.BlockSize(source), blockdev.BlockSize(cow)}); err != nil {
		return nil, err
	}
	// The mapper checks this too, but only when a new store has been written
	// (promise 7).
	if size := blockdev.SectorsIn(source.Size()); size < env.Length {
		return nil, &target.ArgError{Index: 1, Text: p.origin, Want: fmt.Sprintf("an origin of at least %d sectors, this one has %d", env.Length, size)}
	}
	s := &snapshot{group: g, env: env, params: p, source: source, cow: cow, pending: make(map[Chunk]*unit)}
	s.copier = copier{o: g.o}
	s.o = g.hold(source.ID())
	waits, err := s.register()
	if err == nil && !waits {
		err = s.open()
	}
	if err != nil {
		s.o.remove(s)
		s.o.release()
		return nil, err
	}
	return s, nil
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
// read-only for such a table.
func openCOW(env *target.Env, name string) (target.Lower, error) {
	cow, err := env.Open(name, target.ReadWrite)
	if err != nil && env.ReadOnly {
		if k := blockdev.Kind(err); k == blockdev.ErrReadOnly || k == blockdev.ErrPermission {
			return env.Open(name, target.ReadOnly)
		}
	}
	return cow, err
}

// open reads or creates the store.
func (s *snapshot) open() error {
	t := &exceptions{}
	var st store
	if s.params.persistent {
		check := func(n uint64) error {
			return checkChunk(n, [2]int{blockdev.BlockSize(s.source), blockdev.BlockSize(s.cow)})
		}
		p, usable, err := openPersistent(s.cow, s.params.chunk, check, t, s.group.o.Hooks)
		if err != nil {
			return fmt.Errorf("COW device %s: %w", s.cow.Name(), err)
		}
		if !usable {
			s.health.setInvalid()
		}
		st = p
	} else {
		st = &transient{layout: newLayout(s.params.chunk)}
	}
	s.core.Store(&core{layout: st.geometry(), store: st, table: t})
	s.o.resort()
	return nil
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

// sourceSize is the end of the origin device in bytes, in whole sectors.
func (s *snapshot) sourceSize() int64 { return blockdev.SectorsIn(s.source.Size()).Bytes() }

// Flush flushes the COW device, also that of an invalid snapshot. Exceptions
// need no more: they were durable before the write was answered (rule 3).
func (s *snapshot) Flush(context.Context) error { return s.cow.Flush() }

// Devices lists the origin, as far as the snapshot reaches, and the whole COW.
func (s *snapshot) Devices() []target.DeviceUse {
	return []target.DeviceUse{
		{Lower: s.source, Area: blockdev.Range{Count: s.env.Length}},
		{Lower: s.cow, Area: blockdev.Range{Count: blockdev.SectorsIn(s.cow.Size())}},
	}
}

// Close leaves the group, waits for the copies that origin writes have begun,
// and ends the copy worker.
func (s *snapshot) Close() error {
	s.unregister()
	s.waitIdle()
	s.o.release()
	return s.copier.close()
}

// copier moves chunks from the origin to COW devices.
type copier struct {
	o    Options
	mu   sync.Mutex
	done bool
	kc   *kcopyd.Client // guarded by mu; made at first need
}
