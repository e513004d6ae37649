package blockdev

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// FileOptions say how [OpenFile] opens.
type FileOptions struct {
	Write   bool // for reading and writing; block devices exclusively
	Direct  bool // without the page cache (O_DIRECT); [ErrUnsupported] where the file system cannot
	NoLocks bool // neither take locks nor look for those of others
}

// OpenFile opens the regular file or block device at path. Anything else, and
// a missing path, is [ErrNoDevice]; one that somebody else uses in a way that
// excludes ours is an [*InUseError].
func OpenFile(path string, o FileOptions) (*File, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, &Error{Op: "open", Device: path, Err: err}
	}
	st, id, err := identify(abs)
	if err != nil {
		return nil, err
	}
	f := &File{path: abs, name: abs, id: id, block: id.Kind == IDBlock, bsize: SectorSize, noLocks: o.NoLocks}
	if f.block {
		f.name = deviceNumber(st.Rdev)
	}
	if o.Direct {
		f.direct = &directIO{}
	}
	fds, err := f.open(abs, o.Write)
	if err != nil {
		f.lock.close()
		return nil, f.openError(abs, o.Write, err)
	}
	f.fd = newFD(fds.main)
	f.memory = !f.block && inMemory(fds.main)
	f.allow(o.Write)
	if err := f.prepareDirect(fds); err != nil {
		_ = f.Close()
		return nil, &Error{Op: "open", Device: abs, Err: err}
	}
	if f.block {
		if f.bsize, err = unix.IoctlGetInt(fds.main, unix.BLKSSZGET); err != nil {
			_ = f.Close()
			return nil, &Error{Op: "open", Device: abs, Err: fmt.Errorf("logical block size: %w", err)}
		}
	}
	return f, nil
}

// openError finds out who holds a file that is busy.
func (f *File) openError(path string, write bool, err error) error {
	var found *InUseError
	if Kind(err) == ErrBusy && !errors.Is(err, errReplaced) && !errors.As(err, &found) {
		return inUse(path, f.id, write, err)
	}
	return &Error{Op: "open", Device: path, Err: err}
}

// identify says what is at path.
func identify(path string) (st unix.Stat_t, id ID, err error) {
	if err = ignoringEINTR(func() error { return unix.Stat(path, &st) }); err == nil {
		id, err = statID(&st)
	}
	if err != nil {
		err = &Error{Op: "open", Device: path, Err: err}
	}
	return st, id, err
}

func statID(st *unix.Stat_t) (ID, error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return ID{Kind: IDFile, A: st.Dev, B: st.Ino}, nil
	case unix.S_IFBLK:
		return ID{Kind: IDBlock, A: st.Rdev}, nil
	case unix.S_IFDIR:
		return ID{}, fmt.Errorf("%w: it is a directory", ErrNoDevice)
	}
	return ID{}, fmt.Errorf("%w: neither a regular file nor a block device", ErrNoDevice)
}

func deviceNumber(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

// openFDs are the descriptors of one way of opening.
type openFDs struct {
	main int // with O_DIRECT for direct I/O
	tail int // without, for the last part of a regular file; -1 if not needed
}

// open takes the locks and opens the file, in this order: opening a file for
// writing alone disturbs whoever holds a lease on it.
func (f *File) open(path string, write bool) (n openFDs, err error) {
	if err := f.takeLocks(path, write); err != nil {
		return n, err
	}
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
		if f.block {
			flags |= unix.O_EXCL
		}
	}
	if f.direct == nil {
		n.main, err = openIdentified(path, flags, f.id)
		return n, err
	}
	if n.main, err = openIdentified(path, flags|unix.O_DIRECT, f.id); err != nil {
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: no direct I/O on this file system", ErrUnsupported)
		}
		return n, err
	}
	if f.block {
		n.tail = -1
	} else if n.tail, err = openIdentified(path, flags, f.id); err != nil {
		_ = unix.Close(n.main)
	}
	return n, err
}

// prepareDirect makes what direct I/O needs.
func (f *File) prepareDirect(fds openFDs) error {
	if f.direct == nil {
		return nil
	}
	if fds.tail >= 0 {
		f.direct.tail = newFD(fds.tail)
	}
	align, memory, err := directAlignment(fds.main, f.block)
	if err != nil {
		return err
	}
	f.direct.prepare(align, memory)
	return nil
}

// takeLocks makes the locks those of a reader or a writer.
func (f *File) takeLocks(path string, write bool) (err error) {
	if f.noLocks {
		return nil
	}
	if f.lock == nil {
		f.lock, err = lockFile(path, f.id, write)
	} else {
		err = f.lock.setWrite(write)
	}
	if err != nil {
		return err
	}
	if loop := loopHolder(f.id, write); loop != "" {
		return &InUseError{Path: f.path, Holder: loop}
	}
	return nil
}

var errReplaced = fmt.Errorf("%w: it was replaced while it was opened", ErrBusy)

// openIdentified opens path, which must still be what it was.
func openIdentified(path string, flags int, id ID) (n int, err error) {
	err = ignoringEINTR(func() (err error) {
		n, err = unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(n, &st); err == nil {
		var now ID
		if now, err = statID(&st); err == nil && now != id {
			err = errReplaced
		}
	}
	if err != nil {
		_ = unix.Close(n)
		return -1, err
	}
	return n, nil
}

// reopen makes the file one for writing, or for reading only again. Requests
// under way are not disturbed: the open file is exchanged below the number of
// its descriptor.
func (f *File) reopen(write bool) error {
	f.mode.Lock()
	defer f.mode.Unlock()
	if f.writable.Load() == write {
		return nil
	}
	// Through the descriptor: the file may have been renamed, and the node of
	// a block device removed.
	n, err := f.open(fmt.Sprintf("/proc/self/fd/%d", f.fd.n), write)
	if errors.Is(err, unix.ENOENT) {
		n, err = f.open(f.path, write)
	}
	if err != nil {
		if f.lock != nil {
			_ = f.lock.setWrite(!write)
		}
		return f.openError(f.path, write, err)
	}
	if !write {
		f.writable.Store(false)
	}
	err = f.fd.replace(n.main)
	if n.tail >= 0 && f.direct != nil {
		err = errors.Join(err, f.direct.tail.replace(n.tail))
	}
	if err != nil {
		return &Error{Op: "open", Device: f.name, Err: err}
	}
	f.allow(write)
	return nil
}

// allow lets writes pass, or no more.
func (f *File) allow(write bool) {
	f.writable.Store(write)
	if write {
		f.written.Store(true)
	}
}
