package fs

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// flight is the requests under way, in memory of a held mount: the next server
// learns from it which ones the dead one had, and so which may be what it died
// of.
//
// A request that was met by [maxDeaths] servers that died of themselves is
// answered with EIO and its device fails from then on. Of those that were met by
// one death less only one runs at a time, so that the next death names the
// one.
type flight struct {
	slots []flightSlot

	mu   sync.Mutex
	free []int32          // slots that are free
	met  map[uint64]int32 // requests that the dead servers had, and that were not seen again yet: the slot of each

	suspect chan struct{} // holds an element while a suspect runs
}

// flightSlot is in use while unique is not 0.
type flightSlot struct {
	unique atomic.Uint64
	node   atomic.Uint64
	state  atomic.Uint64 // operation, deaths, age, and whether it waits for other suspects
}

// Parts of flightSlot.state. A request waits until this server begins with it.
const (
	flightOp     = 0xffff
	flightDeaths = 16 // shift
	flightAge    = 24 // shift
	flightWaits  = 1 << 32
)

const (
	maxFlight  = 2048
	flightSize = 24
	maxDeaths  = 3

	// suspectLimit is how long the others wait for a suspect. One that has not
	// killed anybody by then most likely waits for something itself.
	suspectLimit = time.Second
)

// newFlight reads what dead servers had; crashed: the last one died of itself.
func newFlight(mem []byte, crashed bool) *flight {
	f := &flight{
		slots:   unsafe.Slice((*flightSlot)(unsafe.Pointer(&mem[0])), maxFlight),
		met:     make(map[uint64]int32),
		suspect: make(chan struct{}, 1),
	}
	for i := maxFlight - 1; i >= 0; i-- {
		s := &f.slots[i]
		unique := s.unique.Load()
		state := s.state.Load()
		age := state >> flightAge & 0xff
		if unique == 0 || age >= 3 { // three servers saw nothing of it: it was answered
			s.unique.Store(0)
			f.free = append(f.free, int32(i))
			continue
		}
		if deaths := state >> flightDeaths & 0xff; crashed && state&flightWaits == 0 && deaths < maxDeaths {
			state += 1 << flightDeaths
		}
		s.state.Store((state | flightWaits) + 1<<flightAge)
		f.met[unique] = int32(i)
	}
	return f
}

// ticket is a request in the list.
type ticket struct {
	f    *flight
	slot int32 // -1: there was no room
	kept bool  // the slot is that of a reader
	solo *solo
}

// noSlot is what calls have that keep none.
const noSlot = -1

// keep takes a slot out of the list for good, for a reader, whose requests come one
// after the other; noSlot if there is no room.
func (f *flight) keep() int32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.free) == 0 {
		return noSlot
	}
	slot := f.free[len(f.free)-1]
	f.free = f.free[:len(f.free)-1]
	return slot
}

// enter puts a request into the list before anything is done for it, in the slot
// that is kept for it if there is one. Deaths is how many servers died with it.
func (f *flight) enter(kept int32, unique, node uint64, op uint32) (t ticket, deaths int) {
	if kept != noSlot && unique&resent == 0 {
		f.slots[kept].put(unique, node, op)
		return ticket{f: f, slot: kept, kept: true}, 0
	}
	f.mu.Lock()
	slot, again := int32(-1), false
	if unique&resent != 0 {
		if slot, again = f.met[unique&^resent]; again {
			delete(f.met, unique&^resent)
		} else {
			slot = -1
		}
	}
	if slot < 0 && len(f.free) > 0 {
		slot = f.free[len(f.free)-1]
		f.free = f.free[:len(f.free)-1]
	}
	f.mu.Unlock()
	if slot < 0 {
		return ticket{f: f, slot: -1}, 0
	}
	s := &f.slots[slot]
	if again {
		state := s.state.Load() &^ (0xff << flightAge)
		deaths = int(state >> flightDeaths & 0xff)
		if deaths < maxDeaths-1 {
			state &^= flightWaits
		}
		s.state.Store(state)
	} else {
		s.put(unique&^resent, node, op)
	}
	return ticket{f: f, slot: slot}, deaths
}

// put makes the slot that of a request. What it says already is not written once
// more, which takes as long as all the rest.
func (s *flightSlot) put(unique, node uint64, op uint32) {
	if s.node.Load() != node {
		s.node.Store(node)
	}
	if state := uint64(op & flightOp); s.state.Load() != state {
		s.state.Store(state)
	}
	s.unique.Store(unique)
}

// alone waits until no other suspect runs; its wait is not held against it.
func (t *ticket) alone() {
	s := &t.f.slots[t.slot]
	t.f.suspect <- struct{}{}
	s.state.Store(s.state.Load() &^ flightWaits)
	t.solo = newSolo(t.f, s)
}

// leave takes an answered request out of the list.
func (t *ticket) leave() {
	if t.solo != nil {
		t.solo.end()
	}
	if t.slot < 0 {
		return
	}
	t.f.slots[t.slot].unique.Store(0)
	if t.kept {
		return
	}
	t.f.mu.Lock()
	t.f.free = append(t.f.free, t.slot)
	t.f.mu.Unlock()
}

// solo is the turn of a suspect, which ends with it or after a limit.
type solo struct {
	once  sync.Once
	f     *flight
	timer *time.Timer
}

func newSolo(f *flight, s *flightSlot) *solo {
	o := &solo{f: f}
	o.timer = time.AfterFunc(suspectLimit, func() {
		s.state.Store(s.state.Load() & flightOp) // it may be at it for long, and is no suspect any more
		o.end()
	})
	return o
}

func (o *solo) end() {
	o.once.Do(func() {
		o.timer.Stop()
		<-o.f.suspect
	})
}

// guarded answers a request that is in the list while it is under way. Other
// requests than suspects are answered at once.
func (l *devLoop) guarded(c *call) {
	h := c.header()
	if h == nil || h.Opcode == opForget || h.Opcode == opBatchForget || h.Opcode == opInterrupt || h.Opcode == opInit {
		l.answer(c)
		return
	}
	t, deaths := l.held.flight.enter(c.slot, h.Unique, h.NodeId, h.Opcode)
	defer t.leave()
	switch {
	case deaths >= maxDeaths:
		l.f.condemn(h.NodeId, fmt.Errorf("a request killed %d daemons: operation %d of %s", deaths, h.Opcode, c.place()))
		if err := l.reply(c, 0, statusFault); err != nil {
			l.log.WithError(err).Debug("answer to a request that kills")
		}
		return
	case deaths == maxDeaths-1:
		t.alone()
	}
	l.answer(c)
}

// suspected says that the request is one that others must not wait for.
func (l *devLoop) suspected(c *call) bool {
	h := c.header()
	return h != nil && h.Unique&resent != 0
}

// place is what a request is about, for people.
func (c *call) place() string {
	h := c.header()
	switch {
	case h.Opcode == opRead && c.n >= readHeader:
		return fmt.Sprintf("%d bytes at %d", c.readIn().Size, c.readIn().Offset)
	case h.Opcode == opWrite && c.n >= writeHeader:
		return fmt.Sprintf("%d bytes at %d", c.writeIn().Size, c.writeIn().Offset)
	}
	return fmt.Sprintf("node %d", h.NodeId)
}

// condemned is a device that says for itself that it is of no use any more.
type condemned interface{ Fail(error) }

// condemn makes a device fail, so that what is wrong with it kills no more.
func (f *FileSystem) condemn(node uint64, why error) {
	serial, _, ok := splitID(node)
	if !ok {
		f.log.WithError(why).Error("a request is not done")
		return
	}
	f.failedMu.Lock()
	defer f.failedMu.Unlock()
	m := make(map[uint64]error)
	if old := f.failed.Load(); old != nil {
		for k, v := range *old {
			m[k] = v
		}
	}
	if m[serial] != nil {
		return
	}
	m[serial] = why
	f.failed.Store(&m)
	if d, ok := f.src.BySerial(serial); ok {
		f.log.WithField("device", d.Name()).WithError(why).Error("the device fails from now on")
		if c, ok := d.(condemned); ok {
			c.Fail(why)
		}
	}
}

// isCondemned says that the device of a node fails.
func (f *FileSystem) isCondemned(node uint64) bool {
	m := f.failed.Load()
	if m == nil {
		return false
	}
	serial, _, ok := splitID(node)
	return ok && (*m)[serial] != nil
}
