package uring

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cqEntries is how many completions fit; the kernel keeps more for itself until
// there is room. It is small, for what a ring takes counts as locked memory.
const cqEntries = 512

// Ring is an instance of io_uring.
type Ring struct {
	fd      int
	enterFD int    // fd, or its number among the registered ones
	flags   uint32 // of enter, always

	rings, sqes []byte // mapped

	sqHead, sqTail *uint32
	sqMask         uint32
	tail           uint32 // sqTail of entries that are filled in, yet not published

	cqHead, cqTail *uint32
	cqMask         uint32
	cqes           uintptr // offset in rings

	alone bool
}

// Options change how a ring is made. The zero value is right but for tests.
type Options struct {
	// Setup is called instead of the system call.
	Setup func(entries uint32, flags uint32, setup func() (int, error)) (int, error)
}

// New makes a ring with room for entries submissions, a power of two, for the
// calling thread. What makes it faster and the kernel may not know (one
// submitter whose completions are worked off when it waits) is done without
// where it is refused.
func New(entries uint32, o Options) (*Ring, error) {
	const must, fast = setupSQE128 | setupCQSize, setupSingleIssuer | setupDeferTaskrun | setupSubmitAll
	var err error
	for _, flags := range []uint32{must | fast, must | setupSubmitAll, must} {
		p := params{flags: flags, cqEntries: max(cqEntries, 2*entries)}
		setup := func() (int, error) {
			fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
			if errno != 0 {
				return -1, os.NewSyscallError("io_uring_setup", errno)
			}
			return int(fd), nil
		}
		var fd int
		if o.Setup != nil {
			fd, err = o.Setup(entries, flags, setup)
		} else {
			fd, err = setup()
		}
		if err != nil {
			continue
		}
		return newRing(fd, &p)
	}
	return nil, err
}

// newRing maps a ring that was set up. It closes fd when it fails.
func newRing(fd int, p *params) (*Ring, error) {
	r := &Ring{fd: fd, enterFD: fd, alone: p.flags&setupSingleIssuer != 0}
	unix.CloseOnExec(fd)
	if want := uint32(featSingleMmap | featNoDrop); p.features&want != want {
		r.Close()
		return nil, fmt.Errorf("io_uring of this kernel has features %#x: expected %#x", p.features, want)
	}
	size := max(int(p.sq.array+p.sqEntries*4), int(p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(CQE{}))))
	var err error
	if r.rings, err = mapRing(fd, offSQRing, size); err == nil {
		r.sqes, err = mapRing(fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(SQE{})))
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	r.sqHead, r.sqTail, r.sqMask = r.word(p.sq.head), r.word(p.sq.tail), *r.word(p.sq.mask)
	r.cqHead, r.cqTail, r.cqMask, r.cqes = r.word(p.cq.head), r.word(p.cq.tail), *r.word(p.cq.mask), uintptr(p.cq.cqes)
	r.tail = *r.sqTail
	for i := range p.sqEntries {
		*r.word(p.sq.array + 4*i) = i // entries are used in order
	}
	r.register()
	return r, nil
}

func mapRing(fd int, off int64, size int) ([]byte, error) {
	p, err := unix.Mmap(fd, off, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	return p, os.NewSyscallError("mmap of io_uring", err)
}

// register makes enter find the ring by number, without looking at the table of
// open files. Where that is refused it does without.
func (r *Ring) register() {
	u := rsrcUpdate{offset: ^uint32(0), data: uint64(r.fd)}
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerRingFDs, uintptr(unsafe.Pointer(&u)), 1, 0, 0)
	if errno == 0 && n == 1 {
		r.enterFD, r.flags = int(u.offset), enterRegisteredRing
	}
}

func (r *Ring) word(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }

// Alone says that the ring was made for one thread that works off its
// completions when it waits.
func (r *Ring) Alone() bool { return r.alone }

// Next returns an empty submission entry, nil when all are taken: then Enter
// makes room. It is submitted by the next Enter.
func (r *Ring) Next() *SQE {
	if r.tail-atomic.LoadUint32(r.sqHead) > r.sqMask {
		return nil
	}
	e := (*SQE)(unsafe.Pointer(&r.sqes[uintptr(r.tail&r.sqMask)*unsafe.Sizeof(SQE{})]))
	*e = SQE{}
	r.tail++
	return e
}

// Enter submits what Next gave out and waits until there are completions, wait
// of them. It returns early, and without an error, for a signal.
func (r *Ring) Enter(wait int) error {
	atomic.StoreUint32(r.sqTail, r.tail)
	submit := r.tail - atomic.LoadUint32(r.sqHead)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.enterFD), uintptr(submit), uintptr(wait), uintptr(r.flags|enterGetEvents), 0, 0)
	switch errno {
	case 0, unix.EINTR, unix.EAGAIN, unix.EBUSY: // the next call goes on
		return nil
	}
	return os.NewSyscallError("io_uring_enter", errno)
}

// Completion takes the next completion; false: there is none.
func (r *Ring) Completion() (CQE, bool) {
	head := *r.cqHead // ours alone to change
	if head == atomic.LoadUint32(r.cqTail) {
		return CQE{}, false
	}
	e := *(*CQE)(unsafe.Pointer(&r.rings[r.cqes+uintptr(head&r.cqMask)*unsafe.Sizeof(CQE{})]))
	atomic.StoreUint32(r.cqHead, head+1)
	return e, true
}

// Close ends what is under way and gives the ring back. Memory that was named
// in entries is not touched by the kernel any more when the thread of the ring
// has called it, or has ended.
func (r *Ring) Close() {
	if r.flags != 0 {
		u := rsrcUpdate{offset: uint32(r.enterFD)}
		_, _, _ = unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerRingFDs+1, uintptr(unsafe.Pointer(&u)), 1, 0, 0)
	}
	if r.sqes != nil {
		_ = unix.Munmap(r.sqes)
	}
	if r.rings != nil {
		_ = unix.Munmap(r.rings)
	}
	_ = unix.Close(r.fd)
}
