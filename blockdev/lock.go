package blockdev

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The locks are those of qemu's raw file driver (block/file-posix.c), so that
// qemu, another dmfuse and we keep out of each other's way and share bases
// that nobody writes. A permission has a number. Who uses it holds a read lock
// on the byte lockPerm + number; who does not want others to use it holds one
// on lockUnshared + number. All locks are read locks, which never conflict:
// one takes them, then looks whether somebody else's contradict. They are OFD
// locks, which belong to the open file and not to the process.
const (
	lockPerm     = 100
	lockUnshared = 200

	permRead   = 0 // the content is what the user of the file last saw
	permWrite  = 1
	permResize = 3
)

// fileLock holds the locks of one file. They are on an open file of their own,
// so that they stay when the file is opened another way. Not safe for
// concurrent use.
type fileLock struct {
	fd    int // open for reading; -1: this file system has no locks
	write bool
}

// lockFile takes the locks of a reader, and those of a writer too if asked.
// A lock of somebody else that contradicts is [ErrBusy].
func lockFile(path string, id ID, write bool) (*fileLock, error) {
	n, err := openIdentified(path, unix.O_RDONLY, id)
	if err != nil {
		return nil, err
	}
	l := &fileLock{fd: n}
	if err := l.take(permRead, permRead); err != nil {
		l.close()
		if noLocks(err) {
			return l, nil
		}
		return nil, err
	}
	if write {
		if err := l.setWrite(true); err != nil {
			l.close()
			return nil, err
		}
	}
	return l, nil
}

// noLocks says whether err means that a file system does not know locks.
func noLocks(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// setWrite adds the locks of a writer, or gives them up.
func (l *fileLock) setWrite(write bool) error {
	if l.fd < 0 || l.write == write {
		l.write = write
		return nil
	}
	if !write {
		l.write = false
		return l.drop()
	}
	if err := l.take(permWrite, permResize); err != nil {
		_ = l.drop()
		return err
	}
	l.write = true
	return nil
}

// take takes the two permissions, which are not shared with others in any
// case, and checks that nobody contradicts.
func (l *fileLock) take(a, b int64) error {
	for _, at := range []int64{lockPerm + a, lockPerm + b, lockUnshared + permWrite, lockUnshared + permResize} {
		if err := l.lock(unix.F_RDLCK, at); err != nil {
			return err
		}
	}
	for _, at := range []int64{lockUnshared + a, lockUnshared + b, lockPerm + permWrite, lockPerm + permResize} {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
		if err := ignoringEINTR(func() error { return unix.FcntlFlock(uintptr(l.fd), unix.F_OFD_GETLK, &lk) }); err != nil {
			return err
		}
		if lk.Type != unix.F_UNLCK {
			return fmt.Errorf("%w: it is locked", ErrBusy)
		}
	}
	return nil
}

// drop gives up what only a writer holds.
func (l *fileLock) drop() error {
	return errors.Join(l.lock(unix.F_UNLCK, lockPerm+permWrite), l.lock(unix.F_UNLCK, lockPerm+permResize))
}

func (l *fileLock) lock(kind int16, at int64) error {
	lk := unix.Flock_t{Type: kind, Start: at, Len: 1}
	err := ignoringEINTR(func() error { return unix.FcntlFlock(uintptr(l.fd), unix.F_OFD_SETLK, &lk) })
	if err == unix.EAGAIN || err == unix.EACCES {
		return fmt.Errorf("%w: it is locked", ErrBusy)
	}
	return err
}

// close gives up all locks.
func (l *fileLock) close() {
	if l != nil && l.fd >= 0 {
		_ = unix.Close(l.fd)
		l.fd = -1
	}
}
