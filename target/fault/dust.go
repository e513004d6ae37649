package fault

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

var (
	_ target.Target        = (*dust)(nil)
	_ target.Zeroer        = (*dust)(nil)
	_ target.Discarder     = (*dust)(nil)
	_ target.Extenter      = (*dust)(nil)
	_ target.Messager      = (*dust)(nil)
	_ target.DeviceFlusher = (*dust)(nil)
	_ target.Rememberer    = (*dust)(nil)
)

const dustUsage = "<device> <start sector> <block bytes>"

// Dust is a linear device with a list of bad blocks.
func Dust() target.Type {
	return target.Type{Name: "dust", Version: [3]uint32{1, 0, 0}, Usage: dustUsage, New: newDust}
}

type dust struct {
	place
	begin  int64 // first byte of the segment on the mapped device
	block  int64 // bytes
	logger logrus.FieldLogger
	record func()

	mu      sync.Mutex
	bad     map[uint64]uint8 // how many more writes fail, by number of the block
	enabled bool
	quiet   bool
}

const maxDustBlock = 1 << 30

func newDust(env *target.Env, args []string) (target.Target, error) {
	if err := target.Exactly(args, 3, dustUsage); err != nil {
		return nil, err
	}
	a := target.NewArgs(args)
	name, _ := a.Word("a device")
	start, err := startSector(env, a)
	if err != nil {
		return nil, err
	}
	block, err := a.Number("a block size in bytes", math.MaxUint32)
	if err == nil && (block < blockdev.SectorSize || block&(block-1) != 0 || block > maxDustBlock || int64(block) > env.Length.Bytes()) {
		err = a.Bad("a block size in bytes: a power of two from 512 to 1073741824, not more than the segment")
	}
	if err != nil {
		return nil, err
	}
	p, err := openPlace(env, name, start)
	if err != nil {
		// The kernel's target does not pass the error of opening on.
		return nil, fmt.Errorf("%w: %w", blockdev.ErrInvalid, err)
	}
	d := &dust{place: p, begin: env.Start.Bytes(), block: int64(block), logger: env.Log, record: env.Record, bad: map[uint64]uint8{}}
	if env.Remembered != "" {
		if err := d.restore(env.Remembered); err != nil {
			d.logger.WithError(err).Error("the list of bad blocks is lost, and the device is in bypass mode")
		}
	}
	return d, nil
}

// piece is the part of a request that is judged as one: it ends where a block of
// the segment does. The block it counts for is that of its first sector on the
// device (kernel: dust_map).
func (d *dust) piece(off, n int64) (length int64, block uint64) {
	in := off - d.begin
	return min(n, d.block-in%d.block), uint64((off + d.shift) / d.block)
}

// passes judges a piece of a request: one to a bad block fails; a write to it
// takes it off the list once it has failed often enough. Changed says that the list
// is another one now.
func (d *dust) passes(block uint64, write bool) (ok, changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	left, bad := d.bad[block]
	if !d.enabled || !bad {
		return true, false
	}
	if !write {
		return false, false
	}
	if left > 0 {
		d.bad[block] = left - 1
		return false, true
	}
	delete(d.bad, block)
	if !d.quiet {
		d.logger.WithField("block", block).Info("a bad block is good after a write")
	}
	return true, true
}

// minds tells whether requests have to be judged at all.
func (d *dust) minds() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.enabled && len(d.bad) > 0
}

// runs judges a range piece by piece and calls do for the runs that pass. It
// goes on after a bad piece: each is a request of its own. A list that it has
// changed is recorded before the request is answered.
func (d *dust) runs(off, n int64, write bool, do func(off, n int64) error) (first error) {
	if !d.minds() {
		return do(off, n)
	}
	run := func(from, to int64) {
		if from == to {
			return
		}
		if err := do(from, to-from); err != nil && first == nil {
			first = err
		}
	}
	from, end, changed := off, off+n, false
	for off < end {
		length, block := d.piece(off, end-off)
		ok, other := d.passes(block, write)
		changed = changed || other
		if !ok {
			run(from, off)
			if first == nil {
				first = fmt.Errorf("%w: block %d of a dust device is bad", blockdev.ErrIO, block)
			}
			from = off + length
		}
		off += length
	}
	run(from, end)
	if changed {
		d.save()
	}
	return first
}

func (d *dust) Read(ctx context.Context, p []byte, off int64) error {
	return d.runs(off, int64(len(p)), false, func(at, n int64) error {
		return target.ReadLower(ctx, d.dev, p[at-off:][:n], at+d.shift)
	})
}

func (d *dust) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	return d.runs(off, int64(len(p)), true, func(at, n int64) error {
		return target.WriteLower(ctx, d.dev, p[at-off:][:n], at+d.shift, fua)
	})
}

func (d *dust) Discard(ctx context.Context, off, n int64) error {
	return d.runs(off, n, true, func(at, n int64) error { return target.DiscardLower(ctx, d.dev, at+d.shift, n) })
}

// Zero has zeros written where blocks have to be judged.
func (d *dust) Zero(ctx context.Context, off, n int64, unmap bool) error {
	if d.minds() {
		return blockdev.ErrUnsupported
	}
	return target.ZeroLower(ctx, d.dev, off+d.shift, n, unmap)
}

func (d *dust) Flush(ctx context.Context) error { return target.FlushLower(ctx, d.dev) }

func (d *dust) FlushDevices() []target.Lower { return []target.Lower{d.dev} }

// Extent knows no holes where blocks are bad: a hole is not read.
func (d *dust) Extent(ctx context.Context, off int64) (int64, bool, error) {
	if d.minds() {
		return d.end - off, false, nil
	}
	n, hole, err := target.ExtentLower(ctx, d.dev, off+d.shift)
	return min(n, d.end-off), hole, err
}

func (d *dust) Status(form target.StatusForm) string {
	if form == target.StatusTable {
		return fmt.Sprintf("%s %d %d", target.DeviceWord(d.dev), d.area.Start, d.block)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	mode, verbosity := "bypass", "verbose"
	if d.enabled {
		mode = "fail_read_on_bad_block"
	}
	if d.quiet {
		verbosity = "quiet"
	}
	return target.DeviceWord(d.dev) + " " + mode + " " + verbosity
}

func (d *dust) Devices() []target.DeviceUse { return []target.DeviceUse{d.use()} }

func (d *dust) Close() error { return nil }
