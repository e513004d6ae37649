package devtest

import (
	"iter"

	"github.com/dmfuse/dmfuse/blockdev"
)

// CrashGroup is a set of devices that lose power at one instant. Run something
// on them, then look at every content that they could have had afterwards:
//
//	g := devtest.NewCrashGroup()
//	origin, cow := g.Add("origin", 1<<20), g.Add("cow", 1<<20)
//	… work on origin and cow; g.Mark("write 3 answered") …
//	for s := range g.States(seed, 256) {
//		… open s.Device(0) and s.Device(1) and check, with s.Marks() …
//	}
type CrashGroup struct {
	*Log
	devices []*CrashDevice
}

// NewCrashGroup makes a group without devices.
func NewCrashGroup() *CrashGroup { return &CrashGroup{Log: NewLog()} }

// Add adds a device of size bytes that holds zeros, durably.
func (g *CrashGroup) Add(name string, size int64) *CrashDevice {
	return g.add(name, NewImage(name, size))
}

// AddCopy adds a device with the content of dev, durably: for instance a
// [State]'s, to cut the power again while it recovers.
func (g *CrashGroup) AddCopy(name string, dev blockdev.Device) (*CrashDevice, error) {
	m, err := CopyImage(name, dev)
	if err != nil {
		return nil, err
	}
	return g.add(name, m), nil
}

func (g *CrashGroup) add(name string, m *Image) *CrashDevice {
	d := &CrashDevice{group: g, live: m, first: m.Share(), number: g.device(name)}
	g.devices = append(g.devices, d)
	return d
}

// Device is the i-th device that was added.
func (g *CrashGroup) Device(i int) *CrashDevice { return g.devices[i] }

// CrashDevice is a device that remembers which of its writes could be lost.
// Its operations are in the log of its group, reads excepted.
type CrashDevice struct {
	group  *CrashGroup
	number int
	live   *Image // as reads see it
	first  *Image // as it was added
}

var (
	_ blockdev.Identified = (*CrashDevice)(nil)
	_ blockdev.FUAWriter  = (*CrashDevice)(nil)
	_ blockdev.Zeroer     = (*CrashDevice)(nil)
	_ blockdev.Discarder  = (*CrashDevice)(nil)
	_ blockdev.Extenter   = (*CrashDevice)(nil)
)

// NewCrash makes a device of size bytes that is alone in its group.
func NewCrash(size int64) *CrashDevice { return NewCrashGroup().Add("disk", size) }

// Group is the group it belongs to.
func (d *CrashDevice) Group() *CrashGroup { return d.group }

// States is that of the group if the power went now.
func (d *CrashDevice) States(seed uint64, max int) iter.Seq[*State] {
	return d.group.Now().States(seed, max)
}

// change does an operation in the order of the group's log.
func (d *CrashDevice) change(op Op, off, n int64, do func() error) (err error) {
	call := d.group.begin(d.number, op, off, n, func() []byte {
		if err = do(); err != nil || op == OpFlush {
			return nil
		}
		return d.sectors(off, n)
	})
	d.group.end(call, d.number, op, off, n, err)
	return err
}

// sectors is the newest content of the whole sectors around n bytes at off.
func (d *CrashDevice) sectors(off, n int64) []byte {
	from, to := sectorsAround(off, n)
	data := make([]byte, to-from)
	d.live.mu.RLock()
	defer d.live.mu.RUnlock()
	d.live.get(data[:min(to, d.live.size)-from], from)
	return data
}

// sectorsAround is the whole sectors around n bytes at off, as byte offsets.
func sectorsAround(off, n int64) (from, to int64) {
	const last = blockdev.SectorSize - 1
	return off &^ last, (off + n + last) &^ last
}

// check refuses what must not get into the log.
func (d *CrashDevice) check(op string, off, n int64) error {
	d.live.mu.RLock()
	defer d.live.mu.RUnlock()
	return d.live.check(op, off, n)
}

// ReadAt reads the newest content.
func (d *CrashDevice) ReadAt(p []byte, off int64) (int, error) { return d.live.ReadAt(p, off) }

// WriteAt writes; until the next flush each sector can be lost.
func (d *CrashDevice) WriteAt(p []byte, off int64) (int, error) { return d.write(OpWrite, p, off) }

// WriteFUA writes; answered, it cannot be lost.
func (d *CrashDevice) WriteFUA(p []byte, off int64) (int, error) { return d.write(OpFUA, p, off) }

func (d *CrashDevice) write(op Op, p []byte, off int64) (int, error) {
	if err := d.check("write", off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	err := d.change(op, off, int64(len(p)), func() error { _, err := d.live.WriteAt(p, off); return err })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush makes durable what was answered before.
func (d *CrashDevice) Flush() error {
	if err := d.check("flush", 0, 0); err != nil {
		return err
	}
	return d.change(OpFlush, 0, 0, d.live.Flush)
}

// Zero is a write of zeros, as volatile as any.
func (d *CrashDevice) Zero(off, n int64, unmap bool) error {
	if err := d.check("zero", off, n); err != nil || n == 0 {
		return err
	}
	return d.change(OpZero, off, n, func() error { return d.live.Zero(off, n, unmap) })
}

// Discard is a write of zeros, as volatile as any.
func (d *CrashDevice) Discard(off, n int64) error {
	if err := d.check("discard", off, n); err != nil || n == 0 {
		return err
	}
	return d.change(OpDiscard, off, n, func() error { return d.live.Discard(off, n) })
}

// Extent tells holes of the newest content.
func (d *CrashDevice) Extent(off int64) (int64, bool, error) { return d.live.Extent(off) }

// Size is the size in bytes.
func (d *CrashDevice) Size() int64 { return d.live.Size() }

// ID is that of this device; the devices of its states have the same.
func (d *CrashDevice) ID() blockdev.ID { return d.live.ID() }

// Name is the name in the group.
func (d *CrashDevice) Name() string { return d.live.Name() }

// Close ends the use; the states stay.
func (d *CrashDevice) Close() error { return d.live.Close() }
