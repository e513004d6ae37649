package fs

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Held is a mount that outlives the processes that serve it: the descriptors of
// /dev/fuse and some memory belong to a process that serves nothing and starts
// one after the other of those that do.
//
// A descriptor that a server opened itself would abort its requests when the
// server dies; those of the holder do not. What the dead one had read and not
// answered is sent again by the kernel (Linux 6.9) to the next one, which asks
// for it before it reads anything.
type Held struct {
	Dir    string // mount point
	Fuse   []int  // the mounted descriptor and its clones
	Memory int    // descriptor of the memory

	// Crashed says that the last server died of itself, rather than by a kill
	// from outside: the requests it had may be the cause.
	Crashed bool

	// NoResend leaves the question for them out: a test shows that it notices.
	NoResend bool

	carry *carry
}

// Hold mounts without serving. The directory is cleared as [Mount] does.
func Hold(o Options) (*Held, error) {
	o = o.withDefaults()
	dir, err := prepareDir(o)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", o.Dir, err)
	}
	mem, err := unix.MemfdCreate("dmfuse-held", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(mem, carrySize)
	}
	if err != nil {
		return nil, fmt.Errorf("memory for what a mount must keep: %w", err)
	}
	fd, err := mountFuse(dir, o)
	if err != nil {
		unix.Close(mem)
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	h := &Held{Dir: dir, Fuse: []int{fd}, Memory: mem}
	for range devReaders() - 1 {
		c, err := cloneFuse(fd)
		if err != nil {
			break // several readers share one
		}
		h.Fuse = append(h.Fuse, c)
	}
	return h, nil
}

// TakeOver is for a server that was handed the descriptors of a held mount: it
// maps the memory.
func TakeOver(h Held) (*Held, error) {
	if len(h.Fuse) == 0 {
		return nil, errors.New("a held mount without a descriptor")
	}
	mem, err := unix.Mmap(h.Memory, 0, carrySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("memory of the held mount: %w", err)
	}
	if h.carry, err = newCarry(mem, h.Crashed); err != nil {
		return nil, err
	}
	return &h, nil
}

// Opens is how often each device file is open, by the serial of the device:
// clients go on with what they opened under the servers before.
func (h *Held) Opens() map[uint64]int { return h.carry.opens.counts() }

// Alive says whether the mount is there, perhaps without a server.
func (h *Held) Alive() bool {
	p := []unix.PollFd{{Fd: int32(h.Fuse[0])}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&(unix.POLLERR|unix.POLLNVAL) == 0
}

// Drop takes a mount away that nobody will serve any more.
func (h *Held) Drop() error {
	var err error
	if h.Alive() {
		err = abortMount(h.Dir)
	}
	for _, fd := range h.Fuse {
		unix.Close(fd)
	}
	unix.Close(h.Memory)
	return err
}

// ServeHeld serves a held mount until it is unmounted. Nothing is read from the
// kernel before all of src is in place: call it last.
func ServeHeld(src Source, o Options, h *Held) (*Server, error) {
	o = o.withDefaults()
	f := NewFileSystem(src, o)
	f.adopt(&h.carry.opens)
	l, err := newHeldLoop(f, h, o)
	if err != nil {
		return nil, fmt.Errorf("serving %s: %w", h.Dir, err)
	}
	s := &Server{dir: h.Dir, transport: TransportDev, readers: len(l.fds), done: make(chan struct{}), dev: l}
	go func() {
		defer close(s.done)
		l.Serve()
	}()
	return s, nil
}

// adopt takes over the opens that earlier servers counted.
func (f *FileSystem) adopt(l *ledger) {
	f.ledger = l
	l.each(func(serial, _ uint64) {
		if d, ok := f.src.BySerial(serial); ok {
			f.opens.add(nodeID(serial, partFile), d)
		}
	})
}

// newHeldLoop makes ready to read: memory first, then what INIT settled, then
// the request for what was left unanswered.
func newHeldLoop(f *FileSystem, h *Held, o Options) (*devLoop, error) {
	l := openDevLoop(f, h.Fuse[0], f.FuseOptions(o))
	l.held, l.fds = h.carry, h.Fuse
	for len(l.fds) < devReaders() {
		l.fds = append(l.fds, l.fds[0])
	}
	for range l.fds {
		b, err := populated()
		if err != nil {
			return nil, err
		}
		l.populated = append(l.populated, b)
	}
	init := h.carry.init()
	if init != nil {
		// The kernel has its answer: this is for go-fuse, which takes no request
		// before it.
		out := make([]byte, page)
		if _, code := l.other.HandleRequest([][]byte{init}, [][]byte{out}); !code.Ok() {
			return nil, fmt.Errorf("the INIT of the mount, done again: %v", code)
		}
	}
	var err error
	if !h.NoResend {
		err = resend(l.fds[0])
	}
	if errors.Is(err, unix.ENODEV) { // errno: of write(2) to /dev/fuse, "unmounted": readers will see it
		err = nil
	}
	if init != nil {
		if err != nil {
			return nil, fmt.Errorf("asking for the requests of the process before: %w", err)
		}
		return l, nil
	}
	return l, l.init(func(*fuse.InitIn) {}) // the first server, or the one before died over it
}

// CanResend says whether the kernel sends again what a dead server had (Linux
// 6.9). It is known once the mount is served.
func (s *Server) CanResend() bool {
	if s.dev == nil || s.dev.held == nil {
		return false
	}
	in := s.dev.held.init()
	if len(in) < inHeader+20 {
		return false
	}
	const flags2 = inHeader + 16                                     // fuse_init_in: major, minor, max_readahead, flags, flags2
	return *(*uint32)(unsafe.Pointer(&in[flags2]))&(1<<(39-32)) != 0 // FUSE_HAS_RESEND
}

// Resends says whether a kernel of that release sends requests again, as far as
// its number tells. [Server.CanResend] knows it, later.
func Resends(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return true // of no form we know: it will say so itself
	}
	return major > 6 || major == 6 && minor >= 9
}

// resend makes the kernel queue again what was read and not answered. It must
// not be called while another process may still answer.
func resend(fd int) error {
	const notifyResend = 7 // FUSE_NOTIFY_RESEND
	msg := struct {
		length uint32
		code   int32
		unique uint64
	}{outHeader, notifyResend, 0}
	_, err := unix.Write(fd, unsafe.Slice((*byte)(unsafe.Pointer(&msg)), outHeader))
	return err
}

// cloneFuse returns another descriptor for the same mount: requests are answered
// on the one they were read from, and each has a list and a lock of its own.
func cloneFuse(fd int) (int, error) {
	c, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.IoctlSetPointerInt(c, ioctlClone, fd); err != nil {
		unix.Close(c)
		return -1, err
	}
	return c, nil
}

// populated is memory for the requests of one reader that is there, all of it,
// and stays: a reader that is killed while the kernel copies a request into a
// page that is not there yet fails the request at its client.
func populated() (*buffer, error) {
	n := page + bufferSizes[len(bufferSizes)-1]
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for requests: %w", err)
	}
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE) // a kernel without huge pages refuses
	for i := 0; i < len(mem); i += page {
		mem[i] = 0
	}
	_ = unix.Mlock(mem) // an ordinary user may not lock that much; swapping is rarer than kills
	return &buffer{class: len(bufferSizes) - 1, mem: mem}, nil
}

// Check passes a request through all that is here, and returns when it was
// answered and somebody waits for the next. It is for a watchdog: a server that
// hangs does not return.
func (s *Server) Check() error {
	if s.dev == nil {
		return nil
	}
	const opStatfs = 17
	in := fuse.InHeader{Length: inHeader, Opcode: opStatfs, NodeId: rootID, Unique: 1}
	out := make([]byte, page)
	if n, code := s.dev.other.HandleRequest([][]byte{bytesOf(&in)}, [][]byte{out}); n < outHeader || !code.Ok() {
		return fmt.Errorf("a request of our own: %d bytes, %v", n, code)
	}
	for s.dev.waiting.Load() == 0 && !s.gone() && !s.dev.stop.Load() {
		time.Sleep(time.Millisecond)
	}
	return nil
}

// HandOver makes the server read no more and waits until what it has is
// answered, or done is closed. The next server of the held mount goes on; what
// this one still has is sent again.
func (s *Server) HandOver(done <-chan struct{}) {
	if s.dev != nil {
		s.dev.handOverTo(done)
	}
}
