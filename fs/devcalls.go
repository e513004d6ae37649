package fs

import (
	"sync"
	"sync/atomic"
	"unsafe"
)

// calls knows every request of a loop that may wait.
type calls struct {
	dead  atomic.Bool         // the mount is gone: nothing waits any more
	early *early              // nil: the kernel tells interrupts again that come too early
	tell  func(unique uint64) // interrupts a request that go-fuse has

	mu  sync.Mutex
	all map[*waiter]struct{} // guarded by mu

	idle    sync.Pool                   // of *call
	buffers [len(bufferSizes)]sync.Pool // of *buffer, by class
}

// largeRequest is from where on a request is not answered where others pass, even
// when nothing has to be waited for: the copying takes a while.
const largeRequest = 128 << 10

// bufferSizes are the classes of room for data. A thousand small requests that
// wait must not take a thousand large buffers. The largest has a page for what
// is not data of a request of 1 MiB.
var bufferSizes = [...]int{8 << 10, 128 << 10, maxRequest + page}

// buffer is memory for a request or an answer, whose data begins at a page:
// lower devices may want that (O_DIRECT).
type buffer struct {
	class int
	mem   []byte // begins a page before the data
}

// behind returns the memory from head bytes before the data on.
func (b *buffer) behind(head int) []byte { return b.mem[page-head:] }

func (s *calls) buffer(n int) *buffer {
	class := 0
	for class < len(bufferSizes)-1 && n > bufferSizes[class] {
		class++
	}
	if b, ok := s.buffers[class].Get().(*buffer); ok {
		return b
	}
	size := page + bufferSizes[class]
	mem := make([]byte, size+page)
	skip := (page - int(uintptr(unsafe.Pointer(&mem[0]))%page)) % page
	return &buffer{class: class, mem: mem[skip : skip+size]}
}

// begin makes a call, which is done at fd, for a request and an answer with up
// to in and out bytes of data.
func (s *calls) begin(l *devLoop, fd, in, out int) *call {
	c, ok := s.idle.Get().(*call)
	if !ok {
		c = &call{slot: noSlot}
	}
	c.l, c.fd, c.bufs = l, fd, [2]*buffer{s.buffer(in), s.buffer(out)}
	c.in, c.out = c.bufs[0].behind(writeHeader), c.bufs[1].behind(outHeader)
	s.add(&c.waiter)
	return c
}

// done forgets a call.
func (s *calls) done(c *call) {
	s.remove(&c.waiter)
	for _, b := range c.bufs {
		s.buffers[b.class].Put(b)
	}
	c.in, c.out, c.bufs = nil, nil, [2]*buffer{}
	s.idle.Put(c)
}
