package fs

import (
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// carry is the memory of a held mount: what the next server has to know and can
// learn from nobody else. Every change of it is one store of a word, so that a
// kill between any two instructions leaves it true.
//
//	byte     0  "dmfuse-1"
//	         8  length of INIT, 0: none yet
//	        12  slots of the table of opens that were ever used
//	        64  the INIT request
//	      4096  the requests under way (flight.go)
//	     65536  the table of opens: serial, unique (16 bytes each)
//
// It is made of zeros.
type carry struct {
	mem    []byte
	opens  ledger
	flight *flight
}

const (
	carryMagic   = "dmfuse-1"
	carryInitLen = 8
	carryHigh    = 12
	carryInit    = 64
	carryInitMax = 1024
	carryFlight  = page
	carryOpens   = 65536

	maxOpens  = 1 << 17
	openSize  = 16
	carrySize = carryOpens + maxOpens*openSize
)

// newCarry reads memory of carrySize, which may be all zeros.
func newCarry(mem []byte, crashed bool) (*carry, error) {
	switch got := string(mem[:len(carryMagic)]); got {
	case carryMagic:
	case "\x00\x00\x00\x00\x00\x00\x00\x00":
		copy(mem, carryMagic)
	default:
		return nil, fmt.Errorf("the memory of the held mount is of a form that this program does not know: %q, expected %q", got, carryMagic)
	}
	c := &carry{mem: mem}
	c.opens.high = (*atomic.Uint32)(unsafe.Pointer(&mem[carryHigh]))
	c.opens.slots = unsafe.Slice((*openSlot)(unsafe.Pointer(&mem[carryOpens])), maxOpens)
	c.flight = newFlight(mem[carryFlight:carryOpens], crashed)
	return c, nil
}

// saveInit keeps the INIT request. It must be kept before it is answered.
func (c *carry) saveInit(request []byte) error {
	if len(request) > carryInitMax {
		return fmt.Errorf("an INIT of %d bytes", len(request))
	}
	copy(c.mem[carryInit:], request)
	c.initLen().Store(uint32(len(request)))
	return nil
}

// init is the INIT request, nil if none was read yet.
func (c *carry) init() []byte {
	n := c.initLen().Load()
	if n == 0 || n > carryInitMax {
		return nil
	}
	return c.mem[carryInit : carryInit+n]
}

func (c *carry) initLen() *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&c.mem[carryInitLen]))
}

// ledger is the opens of device files, one slot each. An OPEN that was counted
// and not answered comes again, and is found by its number; so is a RELEASE,
// which finds its slot free. A handle is the slot and some of that number.
type ledger struct {
	slots []openSlot
	high  *atomic.Uint32 // slots from here on were never used

	mu   sync.Mutex
	free int // no slot below is free
}

// openSlot is in use while unique is not 0, which is stored last and taken away
// first.
type openSlot struct {
	serial uint64
	unique atomic.Uint64
}

// resent marks the number of a request that the kernel sends again
// (FUSE_UNIQUE_RESEND).
const resent = uint64(1) << 63

const slotBits = 20

func handleOf(slot int, unique uint64) uint64 {
	return uint64(slot+1) | unique<<slotBits&^resent
}

// add counts an open; false: there is no room.
func (l *ledger) add(serial, unique uint64) (fh uint64, ok bool) {
	unique &^= resent
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := l.free; i < len(l.slots); i++ {
		if s := &l.slots[i]; s.unique.Load() == 0 {
			l.free = i + 1
			s.serial = serial
			l.high.Store(max(l.high.Load(), uint32(i+1)))
			s.unique.Store(unique)
			return handleOf(i, unique), true
		}
	}
	return 0, false
}

// find returns the handle of an open that was counted under this number.
func (l *ledger) find(unique uint64) (fh uint64, ok bool) {
	unique &^= resent
	for i := range l.used() {
		if l.slots[i].unique.Load() == unique {
			return handleOf(i, unique), true
		}
	}
	return 0, false
}

// remove takes an open back; false: that was done already.
func (l *ledger) remove(fh uint64) bool {
	i := int(fh&(1<<slotBits-1)) - 1
	if i < 0 || i >= len(l.slots) {
		return false
	}
	s := &l.slots[i]
	unique := s.unique.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	if unique == 0 || handleOf(i, unique) != fh || !s.unique.CompareAndSwap(unique, 0) {
		return false
	}
	l.free = min(l.free, i)
	return true
}

// used is how many slots may be in use.
func (l *ledger) used() int { return min(int(l.high.Load()), len(l.slots)) }

func (l *ledger) each(f func(serial, unique uint64)) {
	for i := range l.used() {
		if u := l.slots[i].unique.Load(); u != 0 {
			f(l.slots[i].serial, u)
		}
	}
}

func (l *ledger) counts() map[uint64]int {
	m := make(map[uint64]int)
	l.each(func(serial, _ uint64) { m[serial]++ })
	return m
}
