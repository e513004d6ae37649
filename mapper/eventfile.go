package mapper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// eventFile keeps the event numbers of the devices where a kill does not reach
// them. Targets raise them with locks held, where no record can be written; a
// word of a file that is mapped into memory can.
//
// The word of a device lies at 8 times its minor number: the event number in the
// lower half, the lower half of the device's serial number in the upper one. A
// word with another serial number is that of a device that is gone. What is
// wrong in it makes a wrong event number and nothing else.
type eventFile struct {
	f   *os.File
	mem []byte
}

const (
	eventFileName = "events"
	eventWord     = 8
	eventFileSize = maxMinors * eventWord // a sparse file
)

func openEvents(dir string) (*eventFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, eventFileName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err = f.Truncate(eventFileSize); err == nil {
		var mem []byte
		if mem, err = unix.Mmap(int(f.Fd()), 0, eventFileSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
			return &eventFile{f, mem}, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("event numbers: %w", err), f.Close())
}

// keep makes the counter of a device one that outlives a kill. Where an earlier
// process counted further than the counter, it goes on from there.
func (e *eventFile) keep(c *counter, minor int, serial uint64) error {
	word := (*atomic.Uint64)(unsafe.Pointer(&e.mem[minor*eventWord]))
	old := word.Load()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := uint32(old); uint32(old>>32) == uint32(serial) && int32(n-c.n) > 0 {
		c.n = n
	}
	// Written as a file first: a disk that is full is an error here, and would
	// end the process later.
	now := uint64(uint32(serial))<<32 | uint64(c.n)
	if _, err := e.f.WriteAt(unsafe.Slice((*byte)(unsafe.Pointer(&now)), eventWord), int64(minor)*eventWord); err != nil {
		return fmt.Errorf("event numbers: %w", err)
	}
	c.kept, c.tag = word, uint64(uint32(serial))<<32
	return nil
}

// close forgets the memory: no counter may keep its number there any more.
func (e *eventFile) close() {
	_ = unix.Munmap(e.mem)
	_ = e.f.Close() // nothing is pending: it was written through the memory
}

// keepEvents has the event number of a device outlive a kill. Where that cannot
// be, a restart may show a lower one.
func (d *Device) keepEvents() {
	if d.m.state.events == nil {
		return
	}
	if err := d.m.state.events.keep(&d.events, d.minor, d.serial); err != nil {
		d.m.log.WithField("device", d.Name()).WithError(err).Warn("after a restart the event number may be lower")
	}
}
