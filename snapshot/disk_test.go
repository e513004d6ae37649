package snapshot

import (
	"sync"
	"syscall"

	"github.com/dmfuse/dmfuse/blockdev"
)

// diskBlock is the unit in which a disk gives out space.
const diskBlock = 4096

// disk is a file in memory on a disk that can be full.
type disk struct {
	named
	mu     sync.Mutex
	free   int            // blocks left
	have   map[int64]bool // blocks that the file has
	errno  syscall.Errno  // of a full disk
	most   int64          // longest file
	plain  bool           // no space can be taken beforehand
	writes int            // that met a full disk
	before func([]byte)   // called before each write that has its space; may be nil
}

// disk adds a device on a disk with so many blocks left.
func (l *lab) disk(name string, sectors blockdev.Sector, free int) *disk {
	d := &disk{named: named{blockdev.NewMem(sectors.Bytes()), name}, free: free, have: map[int64]bool{}, errno: syscall.ENOSPC, most: 1 << 40}
	l.devs[name] = d
	return d
}

// take takes the space of a range, all of it or nothing.
func (d *disk) take(op string, off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var blocks []int64
	for b := off / diskBlock; b*diskBlock < off+n; b++ {
		if !d.have[b] {
			blocks = append(blocks, b)
		}
	}
	if len(blocks) > max(d.free, 0) || off+n > d.most {
		if op == "write" {
			d.writes++
		}
		return &blockdev.Error{Op: op, Device: d.name, Offset: off, Length: n, Err: d.errno}
	}
	d.free -= len(blocks)
	for _, b := range blocks {
		d.have[b] = true
	}
	return nil
}

// give gives space back to the disk, or takes some away.
func (d *disk) give(blocks int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.free += blocks
}

func (d *disk) fullWrites() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writes
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.take("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	before := d.before
	d.mu.Unlock()
	if before != nil {
		before(p)
	}
	return d.Mem.WriteAt(p, off)
}

func (d *disk) WriteFUA(p []byte, off int64) (int, error) { return d.WriteAt(p, off) }

// Zero punches holes in whole blocks.
func (d *disk) Zero(off, n int64, unmap bool) error {
	if !unmap {
		if err := d.take("zero", off, n); err != nil {
			return err
		}
	}
	d.mu.Lock()
	for b := (off + diskBlock - 1) / diskBlock; unmap && (b+1)*diskBlock <= off+n; b++ {
		if d.have[b] {
			d.free++
			delete(d.have, b)
		}
	}
	d.mu.Unlock()
	return d.Mem.Zero(off, n, unmap)
}

func (d *disk) Grow(size int64) error {
	d.mu.Lock()
	most := d.most
	d.mu.Unlock()
	if size > most {
		return &blockdev.Error{Op: "grow", Device: d.name, Length: size, Err: syscall.EFBIG}
	}
	return d.Mem.Grow(size)
}

func (d *disk) Preallocate(off, n int64) error {
	if d.plain {
		return blockdev.ErrUnsupported
	}
	if off+n > d.Size() {
		return blockdev.ErrRange
	}
	return d.take("preallocate", off, n)
}
