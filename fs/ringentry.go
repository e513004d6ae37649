package fs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ringEntry is one of the entries of a queue: with the kernel, or with us and a
// request in it.
type ringEntry struct {
	waiter
	q     *ringQueue
	index int

	header  *ringHeader
	payload []byte // its data, then that of the answer
	iov     [2]unix.Iovec

	request [inHeader/8 + 16]uint64 // header and structure, which fuse has in one piece
	size    int                     // bytes of data of the request

	aside func()     // work with do, for a goroutine
	next  *ringEntry // in ringQueue.done
}

func (e *ringEntry) in() *fuse.InHeader      { return (*fuse.InHeader)(unsafe.Pointer(&e.request)) }
func (e *ringEntry) readIn() *fuse.ReadIn    { return (*fuse.ReadIn)(unsafe.Pointer(&e.request)) }
func (e *ringEntry) writeIn() *fuse.WriteIn  { return (*fuse.WriteIn)(unsafe.Pointer(&e.request)) }
func (e *ringEntry) fsyncIn() *fuse.FsyncIn  { return (*fuse.FsyncIn)(unsafe.Pointer(&e.request)) }
func (e *ringEntry) structure() (length int) { return int(e.in().Length) - inHeader - e.size }

// take reads the header of the request that has come; false: it makes no sense.
func (e *ringEntry) take() bool {
	copy(e.request[:inHeader/8], e.header.inOut[:])
	e.size = int(e.header.payload)
	if n := e.structure(); n < 0 || n > len(e.header.op)*8 || e.size > len(e.payload) {
		return false
	}
	copy(e.request[inHeader/8:], e.header.op[:])
	if node := e.in().NodeId; isFile(node) && e.q.file.Load() != node {
		e.q.file.Store(node)
	}
	return true
}

// ours says that the request is one of those that are not passed on.
func (e *ringEntry) ours() bool {
	h := e.in()
	want := 0
	switch h.Opcode {
	case opRead:
		want = readHeader
	case opWrite:
		want = writeHeader
	case opFsync:
		want = fsyncHeader
	default:
		return false
	}
	return inHeader+e.structure() >= want && isFile(h.NodeId)
}

// large says that the request moves much data, which takes a while even when
// nothing has to be waited for.
func (e *ringEntry) large() bool {
	n := e.size
	if e.in().Opcode == opRead {
		n = int(e.readIn().Size)
	}
	return n >= largeRequest
}

// simple takes the request and answers it if that moves no more than a little memory:
// one that makes no sense, the end of a nudge, and what waits for nothing.
func (e *ringEntry) simple() (answered bool) {
	switch {
	case !e.take():
		e.q.l.dev.log.Warnf("a request of %d bytes with %d bytes of data", e.in().Length, e.size)
		e.answer(0, statusFault)
	case e.in().Opcode == opNotifyReply:
		e.answer(0, fuse.OK)
	default:
		return e.ours() && !e.large() && e.tryNow()
	}
	return true
}

// tryNow answers the request if that can be done without waiting for anything.
func (e *ringEntry) tryNow() (done bool) {
	f := e.q.l.dev.f
	defer func() {
		if v := recover(); v != nil {
			e.answer(0, f.panicked(v))
			done = true
		}
	}()
	switch e.in().Opcode {
	case opRead:
		n, ok := f.readNow(e.readIn(), e.payload)
		if ok {
			e.answer(n, fuse.OK)
		}
		return ok
	case opWrite:
		n, ok := f.writeNow(e.writeIn(), e.data())
		if ok {
			e.answer(e.wrote(uint32(n)), fuse.OK)
		}
		return ok
	}
	return false
}

// data is what is to be written.
func (e *ringEntry) data() []byte { return e.payload[:min(e.size, int(e.writeIn().Size))] }

func (e *ringEntry) wrote(n uint32) int {
	return copy(e.payload, bytesOf(&fuse.WriteOut{Size: n}))
}

// do answers a request that is ours, whatever it waits for.
func (e *ringEntry) do() {
	n, code := e.run()
	e.end()
	e.answer(n, code)
}

func (e *ringEntry) run() (n int, code fuse.Status) {
	f := e.q.l.dev.f
	defer func() {
		if v := recover(); v != nil {
			code = f.panicked(v)
		}
	}()
	switch e.in().Opcode {
	case opRead:
		return f.readDevice(e.cancel, e.readIn(), e.payload)
	case opWrite:
		size, code := f.Write(e.cancel, e.writeIn(), e.data())
		return e.wrote(size), code
	}
	return 0, f.Fsync(e.cancel, e.fsyncIn())
}

// passOn lets go-fuse answer. The answer begins where the request did: go-fuse
// has read that before it writes.
func (e *ringEntry) passOn() {
	l := e.q.l.dev
	in := unsafe.Slice((*byte)(unsafe.Pointer(&e.request)), inHeader+e.structure())
	var head [outHeader]byte
	n, code := l.other.HandleRequest([][]byte{in[:inHeader], in[inHeader:], e.payload[:e.size]}, [][]byte{head[:], e.payload})
	e.end()
	if n >= outHeader {
		n, code = n-outHeader, fuse.Status(-(*fuse.OutHeader)(unsafe.Pointer(&head)).Status)
	} else if code.Ok() {
		code = statusFault // every request of a ring has an answer
	}
	e.answer(n, code)
}

func (e *ringEntry) answer(n int, code fuse.Status) { e.header.answer(e.in().Unique, n, code) }
