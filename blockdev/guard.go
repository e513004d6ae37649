package blockdev

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// guardGrace is how long somebody who opens a guarded file for writing waits
// at most for those who were promised that it does not change.
const guardGrace = time.Second

// guards watches the leases of a pool. The watcher runs while there are any.
type guards struct {
	mu     sync.Mutex
	held   map[*guard]bool
	signal chan os.Signal // nil without a watcher
	ended  chan struct{}  // closed by the watcher at its end
}

// guard is a read lease on one file.
type guard struct {
	id     ID
	fd     int // closed when the guard leaves guards.held
	broken func(ID)
}

// Guard watches a file that is promised not to change, such as the frozen base
// of a snapshot: broken is called when somebody opens it for writing or
// truncates it, by whatever means, this process too. It is called once, on a
// goroutine of its own, and he who opens waits for it, up to one second, before
// he can change anything. (One who opens with O_NONBLOCK is told to try again.)
//
// A file that is open for writing already is an [*InUseError]. Where leases are
// not to be had (block devices, most network file systems, files of another
// user) the error is [ErrUnsupported] or [ErrPermission], and nothing is
// watched. The lease is a read lease (fcntl F_SETLEASE); the kernel reports its
// breaking by SIGIO.
//
// release ends the watch. It is never nil, may be called again, and does not
// wait for a call of broken that is under way.
func (p *Pool) Guard(path string, broken func(ID)) (release func(), err error) {
	nothing := func() {}
	_, id, err := identify(path)
	if err != nil {
		return nothing, err
	}
	if id.Kind != IDFile {
		return nothing, fmt.Errorf("%w: %s is a block device and has no leases", ErrUnsupported, path)
	}
	fd, err := openIdentified(path, unix.O_RDONLY|unix.O_NONBLOCK, id)
	if err != nil {
		return nothing, &Error{Op: "open", Device: path, Err: err}
	}
	g := &guard{id: id, fd: fd, broken: broken}
	if err := p.guards.add(g); err != nil {
		_ = unix.Close(fd)
		return nothing, p.leaseError(path, id, err)
	}
	return func() { p.guards.remove(g) }, nil
}

func (p *Pool) leaseError(path string, id ID, err error) error {
	switch {
	case errors.Is(err, unix.EAGAIN):
		e := inUse(path, id, false, err)
		if p.writes(id) {
			e.Holder = "this process has it open for writing"
		}
		return e
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: no lease on %s, which belongs to another user", ErrPermission, path)
	}
	return fmt.Errorf("%w: no lease on %s: %w", ErrUnsupported, path, err)
}

// writes says whether a file is open for writing in this pool.
func (p *Pool) writes(id ID) bool {
	p.mu.Lock()
	s := p.shared[id]
	p.mu.Unlock()
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writers > 0
}

// add takes the lease and starts the watcher if there is none.
func (w *guards) add(g *guard) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.signal == nil {
		// Before the lease is taken: its breaking must not be missed.
		w.start()
	}
	err := setLease(g.fd, unix.F_RDLCK)
	if err == nil {
		w.held[g] = true
	}
	w.stopIfIdle()
	return err
}

func setLease(fd, kind int) error {
	return ignoringEINTR(func() error {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, kind)
		return err
	})
}

func (w *guards) start() {
	w.held = map[*guard]bool{}
	w.signal = make(chan os.Signal, 1)
	w.ended = make(chan struct{})
	signal.Notify(w.signal, unix.SIGIO)
	go w.watch(w.signal, w.ended)
}

// stopIfIdle ends a watcher that has nothing to watch; the caller holds w.mu.
func (w *guards) stopIfIdle() {
	if w.signal != nil && len(w.held) == 0 {
		signal.Stop(w.signal)
		close(w.signal)
		w.signal = nil
	}
}

// remove ends a guard and waits for the watcher if it was the last.
func (w *guards) remove(g *guard) {
	w.mu.Lock()
	if !w.held[g] {
		w.mu.Unlock()
		return
	}
	delete(w.held, g)
	_ = unix.Close(g.fd)
	w.stopIfIdle()
	ended, stopped := w.ended, w.signal == nil
	w.mu.Unlock()
	if stopped {
		<-ended
	}
}

// watch looks after each SIGIO which leases are being broken. The signal may
// have come for something else, and one may stand for several.
func (w *guards) watch(signals <-chan os.Signal, ended chan<- struct{}) {
	defer close(ended)
	for range signals {
		for _, g := range w.breaking() {
			go w.give(g)
		}
	}
}

// breaking takes those out of w.held whose lease is being broken. Their
// descriptors stay open.
func (w *guards) breaking() (found []*guard) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for g := range w.held {
		kind, err := unix.FcntlInt(uintptr(g.fd), unix.F_GETLEASE, 0)
		if err == nil && kind == unix.F_RDLCK {
			continue
		}
		delete(w.held, g)
		found = append(found, g)
	}
	w.stopIfIdle()
	return found
}

// give tells that a lease is broken, then gives it up: with that the opener
// goes on.
func (w *guards) give(g *guard) {
	told := make(chan struct{})
	go func() {
		defer close(told)
		g.broken(g.id)
	}()
	timer := time.NewTimer(guardGrace)
	defer timer.Stop()
	select {
	case <-told:
	case <-timer.C:
	}
	_ = setLease(g.fd, unix.F_UNLCK)
	_ = unix.Close(g.fd)
}
