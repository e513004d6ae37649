package mapper

import (
	"context"

	"github.com/dmfuse/dmfuse/target"
)

// Requests that must not wait: those of one CPU have one thread, which all of
// them would wait for. A device that is suspended, has fault rules or statistics
// takes none, nor a target that does not say it can.

// ReadNow is ReadAt if that waits for nothing; false: it would, or would fail.
func (d *Device) ReadNow(p []byte, off int64) (int, bool) {
	part, ok := d.clipNow(p, off)
	if !ok || len(part) == 0 {
		return 0, ok
	}
	start := d.count.begin()
	ok = d.pieceNow(part, off, false)
	if !ok {
		d.count.giveUp()
		return 0, false
	}
	d.count.end(&d.count.reads, start, int64(len(part)), nil)
	return len(part), true
}

// WriteNow is WriteAt without fua, likewise. Where it is false a part may be
// written.
func (d *Device) WriteNow(p []byte, off int64) (int, bool) {
	part, ok := d.clipNow(p, off)
	if !ok || len(part) == 0 {
		return 0, ok && len(p) == 0 // past the end is an error
	}
	start := d.count.begin()
	ok = d.pieceNow(part, off, true)
	if !ok {
		d.count.giveUp()
		return 0, false
	}
	d.count.end(&d.count.writes, start, int64(len(part)), nil)
	return len(part), true
}

func (d *Device) clipNow(p []byte, off int64) ([]byte, bool) {
	if off < 0 || d.faults.Load() != nil || d.stats.Load() != nil {
		return nil, false
	}
	part, err := d.clip(p, off)
	return part, err == nil
}

func (d *Device) pieceNow(p []byte, off int64, write bool) bool {
	if !d.gate.enter() {
		return false
	}
	defer d.gate.leave()
	t := d.live.Load()
	if t == nil || write && t.readOnly || int64(len(p)) > t.size-off {
		return false
	}
	for len(p) > 0 {
		s := t.find(off)
		n := min(s.end-off, int64(len(p)))
		switch {
		case write && (!s.writesNow || s.target.Write(target.Now, p[:n], off, false) != nil):
			return false
		case !write && (!s.readsNow || s.target.Read(target.Now, p[:n], off) != nil):
			return false
		}
		p, off = p[n:], off+n
	}
	return true
}

// readLower and writeLower are for another device whose table has this one.
func (d *Device) readLower(ctx context.Context, p []byte, off int64) (err error) {
	if ctx == target.Now {
		if n, ok := d.ReadNow(p, off); !ok || n < len(p) {
			return target.ErrWouldWait
		}
		return nil
	}
	_, err = d.read(ctx, p, off)
	return err
}

func (d *Device) writeLower(ctx context.Context, p []byte, off int64, fua bool) (err error) {
	if ctx == target.Now {
		if fua {
			return target.ErrWouldWait
		}
		if n, ok := d.WriteNow(p, off); !ok || n < len(p) {
			return target.ErrWouldWait
		}
		return nil
	}
	_, err = d.write(ctx, p, off, fua)
	return err
}
