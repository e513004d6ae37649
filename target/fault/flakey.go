package fault

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target           = (*flakey)(nil)
	_ target.Zeroer           = (*flakey)(nil)
	_ target.Discarder        = (*flakey)(nil)
	_ target.Extenter         = (*flakey)(nil)
	_ target.Suspender        = (*flakey)(nil)
	_ target.PresuspendUndoer = (*flakey)(nil)
)

const flakeyUsage = "<device> <start sector> <up seconds> <down seconds> [<#features> [error_reads] [drop_writes|error_writes] " +
	"[corrupt_bio_byte <n> <r|w> <value> <flags>] [random_read_corrupt <p>] [random_write_corrupt <p>]]"

// Flakey is a linear device that is down from time to time.
func Flakey() target.Type {
	return target.Type{Name: "flakey", Version: [3]uint32{1, 5, 0}, Usage: flakeyUsage, New: newFlakey}
}

type flakey struct {
	place
	loaded   time.Time
	up, down uint32 // seconds; their sum is neither 0 nor too large for 32 bits
	features

	// suspending: the flush that comes is the mapper's own. It is not failed nor
	// dropped: what was answered while the device was up would be lost with the
	// table, and the next table told of an error that is none of its own.
	suspending atomic.Bool
}

var errFlakey = fmt.Errorf("%w: a flakey device that is down", blockdev.ErrIO)

func newFlakey(env *target.Env, args []string) (target.Target, error) {
	if len(args) < 4 {
		return nil, target.Exactly(args, 4, flakeyUsage)
	}
	a := target.NewArgs(args)
	name, _ := a.Word("a device")
	start, err := startSector(env, a)
	if err != nil {
		return nil, err
	}
	up, err := a.Number("a number of seconds in which the device is up", math.MaxUint32)
	if err != nil {
		return nil, err
	}
	down, err := a.Number("a number of seconds in which the device is down", math.MaxUint32)
	if err == nil && (up+down == 0 || up+down > math.MaxUint32) {
		err = a.Bad("a number that makes a sum with the seconds before it of at least 1 and at most 4294967295")
	}
	if err != nil {
		return nil, err
	}
	f := &flakey{loaded: time.Now(), up: uint32(up), down: uint32(down)}
	if f.features, err = parseFeatures(a); err != nil {
		return nil, err
	}
	f.place, err = openPlace(env, name, start)
	return f, err
}

// isDown tells what time it is for this device.
func (f *flakey) isDown() bool {
	seconds := uint64(time.Since(f.loaded) / time.Second)
	return seconds%(uint64(f.up)+uint64(f.down)) >= uint64(f.up)
}

func (f *flakey) Read(ctx context.Context, p []byte, off int64) error {
	down := f.isDown() // when the request comes, not when its data does
	if down && f.errorReads {
		return errFlakey
	}
	if err := target.ReadLower(ctx, f.dev, p, off+f.shift); err != nil {
		return err
	}
	if down {
		if f.byte.hits(false, opRead, len(p)) {
			p[f.byte.n-1] = f.byte.value
		}
		randomByte(p, f.readChance)
	}
	return nil
}

func (f *flakey) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if f.isDown() {
		if f.errorWrites {
			return errFlakey
		}
		if f.dropWrites {
			return nil
		}
		p = f.corrupted(p, fua)
	}
	return target.WriteLower(ctx, f.dev, p, off+f.shift, fua)
}

// corrupted is p, or a copy of it that is not what the caller wrote.
func (f *flakey) corrupted(p []byte, fua bool) []byte {
	flags := uint32(opWrite)
	if fua {
		flags |= opFUA
	}
	hit, random := f.byte.hits(true, flags, len(p)), chance(f.writeChance)
	if !hit && !random {
		return p
	}
	p = append([]byte(nil), p...)
	if hit {
		p[f.byte.n-1] = f.byte.value
	}
	if random {
		randomByte(p, certain)
	}
	return p
}

func (f *flakey) Presuspend(bool)  { f.suspending.Store(true) }
func (f *flakey) PresuspendUndo()  { f.suspending.Store(false) }
func (f *flakey) Postsuspend()     {}
func (f *flakey) Preresume() error { return nil }
func (f *flakey) Resume()          { f.suspending.Store(false) }

func (f *flakey) Flush(ctx context.Context) error {
	if f.isDown() && !f.suspending.Load() {
		if f.errorWrites {
			return errFlakey
		}
		if f.dropWrites {
			return nil
		}
	}
	return target.FlushLower(ctx, f.dev)
}

// Zero is a write; one that may be corrupted has to be made of zeros.
func (f *flakey) Zero(ctx context.Context, off, n int64, unmap bool) error {
	if f.isDown() {
		switch {
		case f.errorWrites:
			return errFlakey
		case f.dropWrites:
			return nil
		case f.corruptsWrites():
			return blockdev.ErrUnsupported
		}
	}
	return target.ZeroLower(ctx, f.dev, off+f.shift, n, unmap)
}

func (f *flakey) Discard(ctx context.Context, off, n int64) error {
	if f.isDown() {
		if f.errorWrites {
			return errFlakey
		}
		if f.dropWrites {
			return nil
		}
	}
	return target.DiscardLower(ctx, f.dev, off+f.shift, n)
}

// Extent knows no holes where reads may fail or be corrupted: a hole is not
// read.
func (f *flakey) Extent(ctx context.Context, off int64) (int64, bool, error) {
	if f.errorReads && f.isDown() {
		return 0, false, errFlakey
	}
	if f.down > 0 && (f.errorReads || f.corruptsReads()) {
		return f.end - off, false, nil
	}
	n, hole, err := target.ExtentLower(ctx, f.dev, off+f.shift)
	return min(n, f.end-off), hole, err
}

func (f *flakey) Status(form target.StatusForm) string {
	if form == target.StatusInfo {
		return ""
	}
	return fmt.Sprintf("%s %d %d %d %s", target.DeviceWord(f.dev), f.area.Start, f.up, f.down, f.features)
}

func (f *flakey) Devices() []target.DeviceUse { return []target.DeviceUse{f.use()} }

func (f *flakey) Close() error { return nil }

// certain is the probability of what always happens (kernel: PROBABILITY_BASE).
const certain = 1_000_000_000

// chance is true with probability p in certain.
func chance(p uint32) bool { return p > 0 && rand.Uint32N(certain) < p }

// randomByte gives one byte of p a random value, with probability chances in
// certain.
func randomByte(p []byte, chances uint32) {
	if len(p) > 0 && chance(chances) {
		p[rand.IntN(len(p))] = byte(rand.Uint32())
	}
}
