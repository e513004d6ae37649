package fs

import (
	"errors"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Numbers of the protocol (kernel: include/uapi/linux/fuse.h).
const (
	opForget      = 2
	opRead        = 15
	opWrite       = 16
	opFsync       = 20
	opInit        = 26
	opInterrupt   = 36
	opNotifyReply = 41
	opBatchForget = 42

	notifyRetrieve = 5

	inHeader    = 40
	outHeader   = 16
	readHeader  = inHeader + 40
	writeHeader = inHeader + 40
	fsyncHeader = inHeader + 16

	interruptLength = inHeader + 8

	ioctlClone = 0x8004e500 // FUSE_DEV_IOC_CLONE: _IOR(229, 0, uint32)
)

// call is a request under way and the memory for it and its answer.
type call struct {
	l    *devLoop
	fd   int // where it was read, and is answered
	bufs [2]*buffer

	in  []byte // request; data of a WRITE at writeHeader
	n   int    // its length
	out []byte // answer; data at outHeader

	slot int32 // of a reader, in the list of requests under way; or noSlot

	waiter
}

// page is what the data is aligned to.
const page = 4096

// header is the beginning of the request, nil if it is cut short.
func (c *call) header() *fuse.InHeader {
	if c.n < inHeader {
		return nil
	}
	return (*fuse.InHeader)(unsafe.Pointer(&c.in[0]))
}

func (c *call) readIn() *fuse.ReadIn   { return (*fuse.ReadIn)(unsafe.Pointer(&c.in[0])) }
func (c *call) writeIn() *fuse.WriteIn { return (*fuse.WriteIn)(unsafe.Pointer(&c.in[0])) }
func (c *call) fsyncIn() *fuse.FsyncIn { return (*fuse.FsyncIn)(unsafe.Pointer(&c.in[0])) }

// answer does what the request wants and answers it.
func (l *devLoop) answer(c *call) {
	h := c.header()
	if h == nil {
		l.log.Warnf("a request of %d bytes: expected %d or more", c.n, inHeader)
		return
	}
	switch {
	case h.Opcode == opForget || h.Opcode == opBatchForget:
		return // nothing is counted, nothing is answered
	case h.Opcode == opInterrupt:
		l.interrupt(c)
	case c.isOurs(h):
		if err := l.do(c, h); err != nil {
			l.log.WithError(err).Debugf("answer to operation %d", h.Opcode)
		}
	default:
		if err := l.passOn(c); err != nil {
			l.log.WithError(err).Debugf("answer to operation %d", h.Opcode)
		}
	}
}

// answerNow answers the request if that can be done without waiting for anything;
// false: nothing is answered. What another process failed to answer is not tried.
func (l *devLoop) answerNow(c *call) bool {
	h := c.header()
	if h == nil || h.Unique&resent != 0 || !c.isOurs(h) || c.large(h.Opcode) {
		return false
	}
	if l.held != nil {
		t, _ := l.held.flight.enter(c.slot, h.Unique, h.NodeId, h.Opcode)
		defer t.leave()
	}
	n, code, ok := c.now(h.Opcode)
	if !ok {
		return false
	}
	if err := l.reply(c, n, code); err != nil {
		l.log.WithError(err).Debugf("answer to operation %d", h.Opcode)
	}
	return true
}

// large says that the request moves much data.
func (c *call) large(op uint32) bool {
	return c.n >= largeRequest || op == opRead && c.readIn().Size >= largeRequest
}

func (c *call) now(op uint32) (n int, code fuse.Status, ok bool) {
	defer func() {
		if v := recover(); v != nil {
			n, code, ok = 0, c.l.f.panicked(v), true
		}
	}()
	switch op {
	case opRead:
		n, ok = c.l.f.readNow(c.readIn(), c.out[outHeader:])
	case opWrite:
		in, data := c.writeIn(), c.in[writeHeader:c.n]
		if n, ok = c.l.f.writeNow(in, data[:min(len(data), int(in.Size))]); ok {
			n = c.wrote(uint32(n))
		}
	}
	return n, fuse.OK, ok
}

// wrote puts the answer to a write in place.
func (c *call) wrote(n uint32) int { return copy(c.out[outHeader:], bytesOf(&fuse.WriteOut{Size: n})) }

// isOurs says that the request is one of those that are not passed on.
func (c *call) isOurs(h *fuse.InHeader) bool {
	switch h.Opcode {
	case opRead:
		return c.n >= readHeader && isFile(h.NodeId)
	case opWrite:
		return c.n >= writeHeader && isFile(h.NodeId)
	case opFsync:
		return c.n >= fsyncHeader && isFile(h.NodeId)
	}
	return false
}

func isFile(node uint64) bool {
	_, p, ok := splitID(node)
	return ok && p == partFile
}

// do answers a request that is ours.
func (l *devLoop) do(c *call, h *fuse.InHeader) error {
	c.begin(h, false)
	n, code := c.run(h.Opcode)
	c.end()
	if !code.Ok() {
		n = 0
	}
	return l.reply(c, n, code)
}

// run does what the request wants, with EIO for a panic, and returns how much
// data the answer has.
func (c *call) run(op uint32) (n int, code fuse.Status) {
	defer func() {
		if v := recover(); v != nil {
			code = c.l.f.panicked(v)
		}
	}()
	switch op {
	case opRead:
		return c.l.f.readDevice(c.cancel, c.readIn(), c.out[outHeader:])
	case opWrite:
		return c.write()
	}
	return 0, c.l.f.Fsync(c.cancel, c.fsyncIn())
}

func (c *call) write() (int, fuse.Status) {
	in := c.writeIn()
	data := c.in[writeHeader:c.n]
	n, code := c.l.f.Write(c.cancel, in, data[:min(len(data), int(in.Size))])
	return c.wrote(n), code
}

// passOn lets go-fuse answer.
func (l *devLoop) passOn(c *call) error {
	c.begin(c.header(), true)
	n, code := l.other.HandleRequest([][]byte{c.in[:c.n]}, [][]byte{c.out})
	c.end()
	switch {
	case n > 0:
		return l.send(c.fd, c.out[:n])
	case !code.Ok():
		return l.reply(c, 0, code)
	}
	return nil // an operation without answer
}

// reply answers with n bytes of data, which are in place.
func (l *devLoop) reply(c *call, n int, code fuse.Status) error {
	p := c.out[:outHeader+n]
	*(*fuse.OutHeader)(unsafe.Pointer(&p[0])) = fuse.OutHeader{Length: uint32(len(p)), Status: -int32(code), Unique: c.header().Unique}
	return l.send(c.fd, p)
}

// send writes an answer. One that the kernel waits for no more is no error.
func (l *devLoop) send(fd int, p []byte) error {
	_, err := unix.Write(fd, p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) { // errno: of write(2) to /dev/fuse
		return nil
	}
	return err
}

// interrupt ends the wait of the request that is named if its caller wants to
// end. One that is not known yet is answered with EAGAIN, which go-fuse does:
// the kernel tells again. That answer counts only on the descriptor that the
// request itself was read from.
func (l *devLoop) interrupt(c *call) {
	if c.n < interruptLength {
		return
	}
	unique := *(*uint64)(unsafe.Pointer(&c.in[inHeader]))
	if l.calls.early != nil {
		l.calls.early.note(unique)
	}
	if l.calls.interrupt(unique) {
		return
	}
	n, _ := l.other.HandleRequest([][]byte{c.in[:c.n]}, [][]byte{c.out})
	if n == 0 {
		return
	}
	for _, fd := range l.fds {
		if _, err := unix.Write(fd, c.out[:n]); err == nil {
			return
		}
	}
}

// tell interrupts a request that go-fuse has.
func (l *devLoop) tell(unique uint64) {
	in := fuse.InterruptIn{InHeader: fuse.InHeader{Length: interruptLength, Opcode: opInterrupt, Unique: unique | 1}, Unique: unique}
	var out [page]byte
	l.other.HandleRequest([][]byte{unsafe.Slice((*byte)(unsafe.Pointer(&in)), interruptLength)}, [][]byte{out[:]})
}
