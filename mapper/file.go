package mapper

import (
	"context"

	"github.com/dmfuse/dmfuse/blockdev"
)

// The file side: what a device does as a file. It differs from the side that
// other mapped devices see (lower.go) in what happens at the end: a read there
// is short, a write says that there is no space.

// Open counts a user of the device. It fails with [blockdev.ErrNoAddress] when
// the device is being removed and with [blockdev.ErrReadOnly] when write is set
// and the live table is read-only.
func (d *Device) Open(write bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deleting {
		return d.errGone()
	}
	if write && d.readOnly {
		return d.errReadOnly()
	}
	d.fileOpens++
	return nil
}

// Release ends an Open. The last one lets a deferred remove go on.
func (d *Device) Release() {
	d.mu.Lock()
	if d.fileOpens == 0 {
		d.mu.Unlock()
		panic("mapper: Release without Open")
	}
	d.fileOpens--
	d.closedLocked()
	d.mu.Unlock()
}

// Size is the size of the live table in bytes, 0 without one.
func (d *Device) Size() int64 {
	if t := d.live.Load(); t != nil {
		return t.size
	}
	return 0
}

// ReadOnly says whether the live table is read-only.
func (d *Device) ReadOnly() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.readOnly
}

// ReadAt reads like a file: at or after the end 0 bytes and no error, over the
// end what there is. An error comes with the bytes read before it.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, invalid("negative offset %d", off)
	}
	for {
		part, err := d.clip(p, off)
		if err != nil || len(part) == 0 {
			return 0, err
		}
		n, err := d.read(ctx, part, off)
		if n > 0 || !d.shrunk(err, part, off) {
			return n, err
		}
	}
}

// shrunk says whether a request failed because the table was swapped for a
// shorter one while it was on its way: it has a new end to be cut at.
func (d *Device) shrunk(err error, p []byte, off int64) bool {
	return blockdev.Kind(err) == blockdev.ErrRange && int64(len(p)) > d.Size()-off
}

// WriteAt writes like a file of fixed size: at or after the end
// [blockdev.ErrNoSpace], over the end as much as fits, with a short count and
// no error. With fua the bytes are durable on return.
func (d *Device) WriteAt(ctx context.Context, p []byte, off int64, fua bool) (int, error) {
	if off < 0 {
		return 0, invalid("negative offset %d", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		part, err := d.clip(p, off)
		if err != nil {
			return 0, err
		}
		if len(part) == 0 {
			return 0, errPastEnd
		}
		n, err := d.write(ctx, part, off, fua)
		if n > 0 || !d.shrunk(err, part, off) {
			return n, err
		}
	}
}

// clip cuts p to the end of the device. Without a live table there is no end,
// only an error.
func (d *Device) clip(p []byte, off int64) ([]byte, error) {
	t := d.live.Load()
	if t == nil {
		return nil, errNoTable
	}
	if off >= t.size {
		return nil, nil
	}
	return p[:min(int64(len(p)), t.size-off)], nil
}

// Zero makes n bytes at off read as zeros, by the targets' own ability or by
// writing zeros. With unmap their space may be given back. The part past the
// end is cut off; a range that begins there is invalid (kernel:
// blkdev_fallocate).
func (d *Device) Zero(ctx context.Context, off, n int64, unmap bool) error {
	n, err := d.clipRange(off, n)
	if err != nil {
		return err
	}
	return d.zero(ctx, off, n, unmap)
}

// Discard drops n bytes at off: they may read as anything afterwards.
// [blockdev.ErrUnsupported] unless all targets and their devices take it. The
// end is treated as by Zero.
func (d *Device) Discard(ctx context.Context, off, n int64) error {
	n, err := d.clipRange(off, n)
	if err != nil {
		return err
	}
	return d.discard(ctx, off, n)
}

func (d *Device) clipRange(off, n int64) (int64, error) {
	t := d.live.Load()
	if t == nil {
		return 0, errNoTable
	}
	if off < 0 || n <= 0 || off >= t.size {
		return 0, invalid("%d bytes at byte %d of a device of %d", n, off, t.size)
	}
	return min(n, t.size-off), nil
}

// Extent describes the run of data or hole at off: [blockdev.ErrRange] at or
// after the end.
func (d *Device) Extent(ctx context.Context, off int64) (length int64, hole bool, err error) {
	return d.extent(ctx, off)
}

// BlockSize is the logical block size of the live table, in bytes.
func (d *Device) BlockSize() int {
	if t := d.live.Load(); t != nil {
		return t.block
	}
	return blockdev.SectorSize
}
