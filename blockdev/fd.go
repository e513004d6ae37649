package blockdev

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// fd is an open file descriptor that may be closed while it is in use: the
// number is given back when the last user is done. Taking it is one atomic
// addition.
//
// The open file behind the number can be exchanged ([fd.replace]): that is how
// a file opened for reading becomes one for writing below its users.
type fd struct {
	n    int
	refs atomic.Int64 // users; fdClosed is added by close
}

const fdClosed = -1 << 62

func newFD(n int) *fd { return &fd{n: n} }

// take returns the number, which is valid until drop.
func (f *fd) take() (int, error) {
	if f.refs.Add(1) <= 0 {
		f.drop()
		return -1, ErrClosed
	}
	return f.n, nil
}

func (f *fd) drop() {
	if f.refs.Add(-1) == fdClosed {
		// The last user of a closed descriptor; take can no longer succeed.
		if f.refs.CompareAndSwap(fdClosed, fdClosed*2+1) {
			_ = unix.Close(f.n)
		}
	}
}

// close makes take fail; it reports false when that was done before.
func (f *fd) close() bool {
	for {
		r := f.refs.Load()
		if r < 0 {
			return false
		}
		if f.refs.CompareAndSwap(r, r+1+fdClosed) {
			f.drop()
			return true
		}
	}
}

// replace puts the open file of number other, which is closed, in place of
// this one. System calls under way end on the old one.
func (f *fd) replace(other int) error {
	defer unix.Close(other)
	n, err := f.take()
	if err != nil {
		return err
	}
	defer f.drop()
	return ignoringEINTR(func() error { return unix.Dup3(other, n, unix.O_CLOEXEC) })
}

// ignoringEINTR repeats a system call that a signal interrupted.
func ignoringEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
