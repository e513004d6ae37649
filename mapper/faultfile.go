package mapper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"unsafe"

	"github.com/dmfuse/dmfuse/blockdev/faultrule"
	"golang.org/x/sys/unix"
)

// faultFile keeps the counts of fault rules where a kill does not reach them: in a
// file that is mapped into memory, as the event numbers are. Without it a rule with
// count=N would hit N requests in the life of each worker.
//
// The file has slots of 32 bytes, little-endian words: the tag of a rule (the lower
// half of the device's serial number above, the number of the rule below; 0: free),
// what it has seen and hit, and one that is not used. The first slot begins with
// faultMagic instead, which says the version. What is wrong in a slot makes wrong
// counts and nothing else.
//
// Counts are up to date before the request that they count goes on. One that was
// counted as hit and not answered before a kill is sent again, and judged as another.
type faultFile struct {
	mu    sync.Mutex
	tried bool
	m     *faultMemory         // nil: there is none
	slots map[uint64]int       // by tag: rules in force, and what an earlier process left
	used  [faultSlots / 8]byte // bits of the slots that are not free: those of devices without a record are
	next  int                  // where to look for a free one: one that was freed is used again late
}

// faultMemory is the mapped file; it is unmapped when no rule has it any more.
type faultMemory struct{ mem []byte }

const (
	faultFileName = "faults"
	faultMagic    = "dmfault1"
	faultSlot     = 32
	faultSlots    = 1 << 16
	faultFileSize = faultSlots * faultSlot // a sparse file
)

func faultTag(serial uint64, id int) uint64 { return uint64(uint32(serial))<<32 | uint64(uint32(id)) }

// open maps the file, once. The caller has mu.
func (f *faultFile) open(s *stateDir) error {
	if f.tried {
		return nil
	}
	f.tried = true
	f.slots, f.next = map[uint64]int{}, 1
	path := filepath.Join(s.dir, faultFileName)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	fresh := info.Size() == 0
	data := make([]byte, faultFileSize)
	if !fresh {
		if n, _ := file.ReadAt(data, 0); n != len(data) || info.Size() != faultFileSize || string(data[:len(faultMagic)]) != faultMagic {
			err = errors.New("found something else than counts of fault rules; they begin with 0")
			fresh = true
			clear(data)
		}
	}
	if fresh {
		err = errors.Join(err, file.Truncate(0), file.Truncate(faultFileSize))
		if _, werr := file.WriteAt([]byte(faultMagic), 0); werr != nil {
			return errors.Join(err, werr)
		}
	}
	mem, merr := unix.Mmap(int(file.Fd()), 0, faultFileSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if merr != nil {
		return errors.Join(err, merr)
	}
	f.m = &faultMemory{mem}
	runtime.AddCleanup(f.m, func(mem []byte) { _ = unix.Munmap(mem) }, mem)
	for i := 1; i < faultSlots; i++ {
		tag := binary.LittleEndian.Uint64(data[i*faultSlot:])
		if tag == 0 {
			continue
		}
		if _, gone := os.Lstat(s.recordPath(tag >> 32)); gone == nil {
			f.slots[tag] = i
			f.used[i/8] |= 1 << (i % 8)
		}
	}
	return err
}

// take gives the counts of a rule: those it had, or with fresh new ones.
func (f *faultFile) take(s *stateDir, tag uint64) (c *faultrule.Counts, owner any, had bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	err = f.open(s)
	if f.m == nil {
		return new(faultrule.Counts), nil, false, err
	}
	i, had := f.slots[tag]
	if !had {
		if i = f.free(); i == 0 {
			return new(faultrule.Counts), nil, false, fmt.Errorf("%d rules are counted already", len(f.slots))
		}
		// Written as a file first: a disk that is full is an error here, and would
		// end the process later.
		if werr := f.write(s, i, tag); werr != nil {
			return new(faultrule.Counts), nil, false, werr
		}
		f.slots[tag] = i
		f.used[i/8] |= 1 << (i % 8)
	}
	return (*faultrule.Counts)(unsafe.Pointer(&f.m.mem[i*faultSlot+8])), f.m, had, err
}

// free finds a free slot, 0 if there is none.
func (f *faultFile) free() int {
	for range faultSlots {
		i := f.next
		if f.next++; f.next == faultSlots {
			f.next = 1
		}
		if f.used[i/8]>>(i%8)&1 == 0 {
			return i
		}
	}
	return 0
}

func (f *faultFile) write(s *stateDir, i int, tag uint64) error {
	file, err := os.OpenFile(filepath.Join(s.dir, faultFileName), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	slot := make([]byte, faultSlot)
	binary.LittleEndian.PutUint64(slot, tag)
	_, err = file.WriteAt(slot, int64(i)*faultSlot)
	return errors.Join(err, file.Close())
}

// drop frees the slot of a rule.
func (f *faultFile) drop(tag uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.slots[tag]
	if !ok || f.m == nil {
		return
	}
	binary.LittleEndian.PutUint64(f.m.mem[i*faultSlot:], 0)
	delete(f.slots, tag)
	f.used[i/8] &^= 1 << (i % 8)
}

// armFault makes a rule of the device, whose counts outlive a kill where they can.
func (d *Device) armFault(id int, r faultrule.Rule, restored bool) *faultrule.Armed {
	s := d.m.state
	if s.dir == "" {
		return faultrule.Arm(id, r)
	}
	log := d.m.log.WithField("device", d.Name()).WithField("rule", id)
	counts, owner, had, err := s.faults.take(s, faultTag(d.serial, id))
	if err != nil {
		log.WithError(err).Warn("a restart may count the hits of fault rules from 0")
	}
	switch {
	case restored && !had:
		log.Error("the counts of a fault rule are lost: it begins with 0")
	case !restored && had: // of a change that a kill cut off
		counts.Seen.Store(0)
		counts.Hits.Store(0)
	}
	return faultrule.ArmWith(id, r, counts, owner)
}

// forgetFaultCounts frees the counts of all rules of a device that is gone.
func (d *Device) forgetFaultCounts() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.faultTexts {
		d.m.state.faults.drop(faultTag(d.serial, r.ID))
	}
}

// forgetFaults frees the counts of rules that are gone.
func (d *Device) forgetFaults(list []*faultrule.Armed) {
	if d.m.state.dir == "" {
		return
	}
	for _, a := range list {
		d.m.state.faults.drop(faultTag(d.serial, a.ID))
	}
}
