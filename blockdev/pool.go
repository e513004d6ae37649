package blockdev

import (
	"path/filepath"
	"sync"
)

// PoolOptions say how a pool opens what is below.
type PoolOptions struct {
	Direct  bool // I/O without the page cache, see [FileOptions]
	NoLocks bool // neither take locks nor look for those of others
}

// Pool opens each backing file or block device once, however many tables name
// it and by whatever path: an origin and its snapshots share one open file. It
// is found by identity (device and inode, or device number).
type Pool struct {
	o PoolOptions

	mu     sync.Mutex
	shared map[ID]*shared

	guards guards
}

// shared is a file that is open in a pool.
type shared struct {
	// mu is held while the file is opened, closed or opened another way.
	// Lock order: shared.mu before Pool.mu.
	mu      sync.Mutex
	file    *File // nil until it is open
	writers int   // handles that write

	users int // handles, and openers that wait for mu; guarded by Pool.mu
}

// NewPool makes an empty pool.
func NewPool(o PoolOptions) *Pool {
	return &Pool{o: o, shared: map[ID]*shared{}}
}

// Open opens the regular file or block device at path. A file that is open for
// reading becomes one for writing when the first writer comes; those who read
// it notice nothing.
func (p *Pool) Open(path string, write bool) (*Handle, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, &Error{Op: "open", Device: path, Err: err}
	}
	st, id, err := identify(abs)
	if err != nil {
		return nil, err
	}
	s := p.join(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := p.openShared(s, abs, id, write); err != nil {
		p.leave(id, s)
		return nil, err
	}
	h := &Handle{pool: p, shared: s, file: s.file, name: abs, write: write}
	if id.Kind == IDBlock {
		h.name = deviceNumber(st.Rdev)
	}
	if write {
		s.writers++
	}
	return h, nil
}

// join counts a user of the file with that identity.
func (p *Pool) join(id ID) *shared {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shared[id]
	if s == nil {
		s = &shared{}
		p.shared[id] = s
	}
	s.users++
	return s
}

// leave gives up a user. The caller holds s.mu and has closed the file if it
// was the last ([Pool.last]).
func (p *Pool) leave(id ID, s *shared) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.users--
	if s.users == 0 {
		delete(p.shared, id)
	}
}

// last says whether only one user is left. One that comes now waits for s.mu.
func (p *Pool) last(s *shared) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return s.users == 1
}

// openShared makes s open in at least the way asked for. The caller holds s.mu.
func (p *Pool) openShared(s *shared, path string, id ID, write bool) error {
	if s.file != nil {
		if write && s.writers == 0 {
			return s.file.reopen(true)
		}
		return nil
	}
	f, err := OpenFile(path, FileOptions{Write: write, Direct: p.o.Direct, NoLocks: p.o.NoLocks})
	if err != nil {
		return err
	}
	if f.ID() != id {
		_ = f.Close()
		return &Error{Op: "open", Device: path, Err: errReplaced}
	}
	s.file = f
	return nil
}

// release gives back what h held. The last one closes the file.
func (p *Pool) release(h *Handle) error {
	s := h.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.write {
		s.writers--
	}
	defer p.leave(h.file.ID(), s)
	if p.last(s) {
		s.file = nil
		return h.file.Close()
	}
	if h.write && s.writers == 0 {
		// Best effort: a file that stays open for writing only keeps others out.
		_ = h.file.reopen(false)
	}
	return nil
}

// Len is the number of files open now.
func (p *Pool) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.shared)
}
