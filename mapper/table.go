package mapper

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// maxTargets and maxSectors limit a table (kernel: dm-ioctl.c, dm-table.c).
const (
	maxTargets = 1048576
	maxSectors = 1<<54 - 1
)

// segment is one target of a table with its abilities looked up once.
type segment struct {
	start, end int64 // bytes of the mapped device
	line       Line
	typ        target.Type
	target     target.Target

	discarder target.Discarder // nil where the target has not the ability
	zeroer    target.Zeroer
	extenter  target.Extenter
	messager  target.Messager
	suspender target.Suspender

	readsNow, writesNow bool // may be asked not to wait
}

// table is a list of targets that covers a device from 0 on without gaps. It
// does not change after it is built.
type table struct {
	dev      *Device
	segs     []segment
	readOnly bool
	size     int64 // bytes
	lowers   []*lowerRef
	block    int  // logical block size, bytes
	discards bool // every target takes discards

	// flushDevices are the distinct lower devices, when a flush of the table is
	// nothing but a flush of these; plain says that it is so.
	plain        bool
	flushDevices []target.Lower

	live       atomic.Bool // this table may raise events
	lost       bool        // it stands for one that a restart could not bring back
	flushAtEnd bool        // it was replaced without a flush: destroy flushes

	mu    sync.Mutex
	users int           // INVARIANT: not below 0
	gone  chan struct{} // set when someone waits for users to be 0
}

// find returns the segment that holds byte off.
func (t *table) find(off int64) *segment {
	if len(t.segs) == 1 {
		return &t.segs[0]
	}
	lo, hi := 0, len(t.segs)-1
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if off < t.segs[mid].end {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return &t.segs[lo]
}

// finish computes what follows from the targets.
func (t *table) finish() {
	t.discards, t.plain, t.block = true, true, blockdev.SectorSize
	seen := map[blockdev.ID]bool{}
	for i := range t.segs {
		s := &t.segs[i]
		s.discarder, _ = s.target.(target.Discarder)
		s.zeroer, _ = s.target.(target.Zeroer)
		if p, ok := s.target.(target.Prompt); ok {
			s.readsNow, s.writesNow = p.Prompt()
		}
		s.extenter, _ = s.target.(target.Extenter)
		s.messager, _ = s.target.(target.Messager)
		s.suspender, _ = s.target.(target.Suspender)
		t.discards = t.discards && s.discarder != nil
		f, ok := s.target.(target.DeviceFlusher)
		if !ok {
			t.plain = false
			continue
		}
		for _, l := range f.FlushDevices() {
			if !seen[l.ID()] {
				seen[l.ID()] = true
				t.flushDevices = append(t.flushDevices, l)
			}
		}
	}
	for _, l := range t.lowers {
		t.block = max(t.block, blockdev.BlockSize(l.Lower))
	}
	t.size = t.segs[len(t.segs)-1].end
}

// flush makes every write answered before durable on all lower devices
// (promise 1). All targets or devices are flushed, also after an error; the
// first error is returned.
func (t *table) flush(ctx context.Context) error {
	if t.plain {
		return flushAll(len(t.flushDevices), func(i int) error {
			return target.FlushLower(ctx, t.flushDevices[i])
		})
	}
	return flushAll(len(t.segs), func(i int) error { return t.segs[i].target.Flush(ctx) })
}

// flushAll runs n flushes and returns the first error in their order. One is
// run in place, several run beside each other, a bounded number at a time.
func flushAll(n int, one func(i int) error) error {
	const atOnce = 16
	switch n {
	case 0:
		return nil
	case 1:
		return one(0)
	}
	errs := make([]error, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, atOnce) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				errs[i] = one(i)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkLimits is what the kernel does when it combines the limits of the lower
// devices: every area lies in its device and suits its block size, and every
// boundary of a target suits that of the whole (kernel: device_area_is_invalid,
// validate_hardware_logical_block_alignment).
func (t *table) checkLimits() error {
	for i := range t.segs {
		for _, u := range t.segs[i].target.Devices() {
			if err := checkArea(u); err != nil {
				return &TableError{Line: i + 1, Type: t.segs[i].typ.Name, Err: err}
			}
		}
	}
	return t.checkBoundaries()
}

func checkArea(u target.DeviceUse) error {
	size := blockdev.SectorsIn(u.Lower.Size())
	if u.Area.Start > size || u.Area.Count > size-u.Area.Start {
		return fmt.Errorf("%w: %s is too small: sectors %s are used, it has %d",
			blockdev.ErrInvalid, u.Lower.Name(), u.Area, size)
	}
	block := blockdev.Sector(blockdev.BlockSize(u.Lower) / blockdev.SectorSize)
	if u.Area.Start%block != 0 || u.Area.Count%block != 0 {
		return fmt.Errorf("%w: sectors %s of %s are no multiple of its logical blocks of %d bytes",
			blockdev.ErrInvalid, u.Area, u.Lower.Name(), block.Bytes())
	}
	return nil
}

// checkBoundaries refuses a target border inside a logical block of the device,
// unless the block ends in targets that can do with less.
func (t *table) checkBoundaries() error {
	whole := int64(t.block)
	var rest int64 // bytes of the last block that the next targets must fill
	for i := range t.segs {
		s := &t.segs[i]
		own := int64(blockdev.SectorSize)
		for _, u := range s.target.Devices() {
			own = max(own, int64(blockdev.BlockSize(u.Lower)))
		}
		length := s.end - s.start
		if rest < length && rest&(own-1) != 0 {
			return t.boundaryError(i)
		}
		rest = 0
		if over := s.end & (whole - 1); over != 0 {
			rest = whole - over
		}
	}
	if rest != 0 {
		return t.boundaryError(len(t.segs) - 1)
	}
	return nil
}

func (t *table) boundaryError(i int) error {
	return &TableError{Line: i + 1, Type: t.segs[i].typ.Name, Err: fmt.Errorf(
		"%w: the segment is not aligned to the logical blocks of the device, %d bytes", blockdev.ErrInvalid, t.block)}
}

// hold keeps the table from being destroyed until release.
func (t *table) hold() *table {
	t.mu.Lock()
	t.users++
	t.mu.Unlock()
	return t
}

func (t *table) release() {
	t.mu.Lock()
	t.users--
	if t.users == 0 && t.gone != nil {
		close(t.gone)
		t.gone = nil
	}
	t.mu.Unlock()
}

// destroy waits for the last holder, closes the targets and then the lower
// devices. The table is in no slot any more, so nobody can take hold of it.
func (t *table) destroy(ctx context.Context) error {
	t.live.Store(false)
	t.mu.Lock()
	var gone chan struct{}
	if t.users > 0 {
		gone = make(chan struct{})
		t.gone = gone
	}
	t.mu.Unlock()
	if gone != nil {
		<-gone
	}
	if t.flushAtEnd {
		if err := t.lastFlush(ctx); err != nil {
			t.dev.keepFlushError(err)
		}
	}
	return t.closeAll()
}

// lastFlush flushes a table before it is closed. It does not wait for a suspended
// device below: neither a resume without flush nor a remove may hang on that.
func (t *table) lastFlush(ctx context.Context) error {
	if t.lost {
		return nil // nothing was ever written through it, and every fsync said so
	}
	if d := t.stuckBelow(); d != nil {
		return fmt.Errorf("%w: the table was not flushed, as device %s below it is suspended", blockdev.ErrIO, d.Name())
	}
	return t.flush(ctx)
}

// stuckBelow finds a mapped device below the table that a flush would wait for.
func (t *table) stuckBelow() *Device {
	for _, l := range t.lowers {
		if l.mapped == nil {
			continue
		}
		if l.mapped.isSuspended() && !l.mapped.clean.Load() {
			return l.mapped
		}
		if below := l.mapped.hold(false); below != nil {
			d := below.stuckBelow()
			below.release()
			if d != nil {
				return d
			}
		}
	}
	return nil
}

func (t *table) closeAll() error {
	var first error
	keep := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	for i := range t.segs {
		keep(t.segs[i].target.Close())
	}
	for i := len(t.lowers) - 1; i >= 0; i-- {
		keep(t.lowers[i].close())
	}
	return first
}

// immutable is the name of the type that this table binds its device to.
func (t *table) immutable() string {
	for i := range t.segs {
		if t.segs[i].typ.Immutable {
			return t.segs[i].typ.Name
		}
	}
	return ""
}

// moves tells whether targets write by themselves where others look after.
func (t *table) moves() bool {
	return slices.ContainsFunc(t.segs, func(s segment) bool { return s.typ.Mover })
}

func (t *table) wildcard() bool {
	for i := range t.segs {
		if t.segs[i].typ.Wildcard {
			return true
		}
	}
	return false
}

// lines are the table's lines as they have to be written to make it again.
func (t *table) lines() []Line {
	out := make([]Line, len(t.segs))
	for i := range t.segs {
		s := &t.segs[i]
		out[i] = s.line
		out[i].Args = target.SplitWords(s.target.Status(target.StatusTable))
	}
	return out
}

func (t *table) presuspend(noflush bool) {
	for i := range t.segs {
		if s := t.segs[i].suspender; s != nil {
			s.Presuspend(noflush)
		}
	}
}

func (t *table) presuspendUndo() {
	for i := range t.segs {
		if u, ok := t.segs[i].target.(target.PresuspendUndoer); ok {
			u.PresuspendUndo()
		}
	}
}

func (t *table) postsuspend() {
	for i := range t.segs {
		if s := t.segs[i].suspender; s != nil {
			s.Postsuspend()
		}
	}
}

func (t *table) preresume() error {
	for i := range t.segs {
		if s := t.segs[i].suspender; s != nil {
			if err := s.Preresume(); err != nil {
				return &TableError{Line: i + 1, Type: t.segs[i].typ.Name, Err: err}
			}
		}
	}
	return nil
}

func (t *table) resume() {
	for i := range t.segs {
		if s := t.segs[i].suspender; s != nil {
			s.Resume()
		}
	}
}

// deps lists the distinct lower devices, the one opened last first.
func (t *table) deps() []*lowerRef {
	var out []*lowerRef
	seen := map[blockdev.ID]bool{}
	for _, l := range t.lowers {
		if !seen[l.ID()] {
			seen[l.ID()] = true
			out = append(out, l)
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}
