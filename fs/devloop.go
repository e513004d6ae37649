package fs

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// devLoop is the transport TransportDev: readers of our own, each on a thread
// and with a clone of /dev/fuse, which answer READ, WRITE and FSYNC of devices
// by themselves and give all else to go-fuse's ProtocolServer.
//
// A reader answers the request it has read before it reads the next, as long as
// another one waits for requests meanwhile. The last one answers only what waits
// for nothing; else it gives its request to a goroutine and reads on: whatever
// waits, there is always one who reads.
type devLoop struct {
	f     *FileSystem
	other *fuse.ProtocolServer
	log   logrus.FieldLogger

	fds     []int // the mounted one and its clones
	calls   calls
	waiting atomic.Int32 // readers inside read(2)

	held      *carry       // of a held mount, which the next process goes on with; or nil
	populated []*buffer    // for each reader, with a held mount
	stop      atomic.Bool  // what is read from now on is left to the next process
	busy      atomic.Int32 // requests that were read and are not answered; counted with a held mount

	readers sync.WaitGroup
	handed  sync.WaitGroup // requests that were given to a goroutine
	gone    chan struct{}  // closed by the first reader that finds the mount gone
	once    sync.Once
	leave   func() // called when the mount is gone
}

// devReaders is how many readers there are. One answers while another waits
// for the next request; more of them help only as far as there are CPUs.
func devReaders() int { return min(max(runtime.NumCPU()+1, 3), 8) }

// newDevLoop answers INIT on fd. It closes fd when it fails.
func newDevLoop(f *FileSystem, fd int, o Options) (*devLoop, error) {
	l := openDevLoop(f, fd, f.FuseOptions(o))
	if err := l.init(func(*fuse.InitIn) {}); err != nil {
		l.close()
		return nil, err
	}
	l.addReaders()
	return l, nil
}

// openDevLoop is a loop with one reader, before INIT.
func openDevLoop(f *FileSystem, fd int, o *fuse.MountOptions) *devLoop {
	l := &devLoop{
		f:     f,
		other: fuse.NewProtocolServer(f, o),
		log:   f.log,
		fds:   []int{fd},
		gone:  make(chan struct{}),
		leave: func() {},
	}
	l.calls.tell = l.tell
	return l
}

// addReaders makes it the number of readers there should be.
func (l *devLoop) addReaders() {
	for range devReaders() - len(l.fds) {
		c, err := cloneFuse(l.fds[0])
		if err != nil {
			c = l.fds[0] // used by several readers
		}
		l.fds = append(l.fds, c)
	}
}

// init reads the first request, which is INIT, and answers it. What the kernel
// offers can be changed before.
func (l *devLoop) init(change func(*fuse.InitIn)) error {
	c := l.calls.begin(l, l.fds[0], maxRequest, maxRequest)
	defer l.calls.done(c)
	for {
		n, err := unix.Read(c.fd, c.in)
		switch {
		case again(err):
			continue
		case err != nil:
			return fmt.Errorf("read /dev/fuse: %w", err)
		}
		c.n = n
		h := c.header()
		if h == nil || h.Opcode != opInit {
			return errors.New("the first request is not INIT")
		}
		if l.held != nil {
			if err := l.held.saveInit(c.in[:n]); err != nil {
				return err
			}
		}
		var in fuse.InitIn // older kernels send less
		copy(bytesOf(&in), c.in[:n])
		change(&in)
		copy(c.in[:n], bytesOf(&in))
		return l.passOn(c)
	}
}

// Serve reads and answers until the mount is gone.
func (l *devLoop) Serve() {
	for i, fd := range l.fds {
		l.readers.Add(1)
		in := maxRequest
		if l.held != nil {
			in = 0
		}
		c := l.calls.begin(l, fd, in, maxRequest)
		if l.held != nil {
			c.bufs[0] = l.populated[i]
			c.in = c.bufs[0].behind(writeHeader)
			c.slot = l.held.flight.keep()
		}
		go l.read(c)
	}
	<-l.gone
	l.leave()
	l.drain()
	l.close()
	l.f.OnUnmount()
}

// drain waits for the requests that are under way when the mount is gone, and
// ends what they wait for. go-fuse takes an interrupt only for what it has begun
// with, so it is told until all are done.
func (l *devLoop) drain() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.readers.Wait()
		l.handed.Wait()
	}()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		for _, unique := range l.calls.end() {
			l.tell(unique)
		}
		select {
		case <-done:
			return
		case <-again.C:
		}
	}
}

func (l *devLoop) close() {
	for i, fd := range l.fds {
		if i == 0 || fd != l.fds[0] {
			unix.Close(fd)
		}
	}
}

// handOverTo makes readers leave what they read to the next process, and waits
// until all that was read before is answered, or done is closed.
func (l *devLoop) handOverTo(done <-chan struct{}) {
	l.stop.Store(true)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for l.busy.Load() > 0 {
		select {
		case <-done:
			return
		case <-again.C:
		}
	}
}

// read is one reader; c is its own.
func (l *devLoop) read(c *call) {
	defer l.readers.Done()
	// A thread of its own is what the kernel wakes; another would have to be
	// woken by it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		l.waiting.Add(1)
		n, err := unix.Read(c.fd, c.in)
		last := l.waiting.Add(-1) == 0
		switch {
		case again(err):
			continue
		case errors.Is(err, unix.ENODEV): // errno: read's word for "unmounted"
			l.once.Do(func() { close(l.gone) })
			return
		case err != nil:
			l.log.WithError(err).Error("reading requests of the mount failed; it is of no use any more")
			l.once.Do(func() { close(l.gone) })
			return
		}
		c.n = n
		l.busy.Add(1)
		if l.stop.Load() {
			l.busy.Add(-1)
			return // the kernel sends it again, and this reader reads no more
		}
		if !last && (l.held == nil || !l.suspected(c)) {
			l.answerAny(c)
			l.busy.Add(-1)
			continue
		}
		if last && l.answerNow(c) {
			l.busy.Add(-1)
			continue
		}
		h := l.handOver(c)
		l.handed.Add(1)
		go func() {
			defer l.handed.Done()
			l.answerAny(h)
			l.busy.Add(-1)
			l.calls.done(h)
		}()
	}
}

// answerAny answers, with note taken of it where the next process must know.
func (l *devLoop) answerAny(c *call) {
	if l.held != nil {
		l.guarded(c)
		return
	}
	l.answer(c)
}

// again says that a read is to be repeated: it was interrupted, or the request
// was taken back before it was read.
func again(err error) bool {
	return errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAGAIN) // errno: of read(2)
}

// handOver copies a request out of the buffer of a reader, into a call that is
// large enough for it and its answer.
func (l *devLoop) handOver(c *call) *call {
	out := 0
	if h := c.header(); h != nil {
		switch {
		case h.Opcode == opRead && c.n >= readHeader:
			out = int(c.readIn().Size)
		case h.Opcode != opWrite && h.Opcode != opFsync:
			out = maxRequest // listings and their like
		}
	}
	to := l.calls.begin(l, c.fd, c.n, out)
	to.n = copy(to.in, c.in[:c.n])
	return to
}
