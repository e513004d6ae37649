package basic

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target        = (*striped)(nil)
	_ target.Zeroer        = (*striped)(nil)
	_ target.Discarder     = (*striped)(nil)
	_ target.Extenter      = (*striped)(nil)
	_ target.DeviceFlusher = (*striped)(nil)
)

// eventErrors is how many errors of a stripe raise an event each
// (kernel: DM_IO_ERROR_THRESHOLD).
const eventErrors = 15

const stripedUsage = "<stripes> <chunk sectors> (<device> <start sector>)..."

// Striped spreads its segment over several devices, chunk by chunk.
func Striped() target.Type {
	return target.Type{
		Name: "striped", Version: [3]uint32{1, 7, 0}, Usage: stripedUsage,
		New: newStriped,
	}
}

type stripe struct {
	dev    target.Lower
	start  blockdev.Sector
	errors atomic.Uint32
}

type striped struct {
	start   int64 // first byte of the segment on the mapped device
	length  int64 // bytes
	chunk   int64 // bytes
	stripes []*stripe
	event   func()
}

func newStriped(env *target.Env, args []string) (target.Target, error) {
	if len(args) < 2 {
		return nil, target.Exactly(args, 4, stripedUsage)
	}
	a := target.NewArgs(args)
	n, err := a.Number("a number of stripes, at least 1", math.MaxUint32)
	if err == nil && n == 0 {
		err = a.Bad("a number of stripes, at least 1")
	}
	if err != nil {
		return nil, err
	}
	chunk, err := a.Number("a chunk size of at least 1 sector", math.MaxUint32)
	if err == nil && chunk == 0 {
		err = a.Bad("a chunk size of at least 1 sector")
	}
	if err != nil {
		return nil, err
	}
	if uint64(len(args)-2) != 2*n {
		return nil, &target.ArgError{Want: fmt.Sprintf("%d words follow, expected a device and a start sector for each of %d stripes", len(args)-2, n)}
	}
	if uint64(env.Length)%n != 0 || uint64(env.Length)/n%chunk != 0 {
		return nil, &target.ArgError{Want: fmt.Sprintf("the length of %d sectors is no multiple of %d stripes of whole chunks of %d sectors", env.Length, n, chunk)}
	}
	s := &striped{
		start: env.Start.Bytes(), length: env.Length.Bytes(), chunk: blockdev.Sector(chunk).Bytes(),
		event: env.Event,
	}
	return s, s.openStripes(env, a, int(n))
}

func (s *striped) openStripes(env *target.Env, a *target.Args, n int) error {
	width := env.Length / blockdev.Sector(n)
	for range n {
		name, _ := a.Word("a device")
		start, err := a.Sector("a start sector")
		if err != nil {
			return err
		}
		if start > blockdev.MaxSector-width {
			return a.Bad("a start sector that the length of a stripe can be added to")
		}
		dev, err := env.Open(name, env.Mode())
		if err != nil {
			return err
		}
		s.stripes = append(s.stripes, &stripe{dev: dev, start: start})
	}
	return nil
}

// place says where byte off of the mapped device lies: the stripe, the byte on
// its device, and how many bytes lie there in a row.
func (s *striped) place(off int64) (st *stripe, at, room int64) {
	off -= s.start
	chunk, in := off/s.chunk, off%s.chunk
	n := int64(len(s.stripes))
	st = s.stripes[chunk%n]
	return st, st.start.Bytes() + chunk/n*s.chunk + in, s.chunk - in
}

func (s *striped) Read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		st, at, room := s.place(off)
		k := min(room, int64(len(p)))
		if err := target.ReadLower(ctx, st.dev, p[:k], at); err != nil {
			return s.failed(st, err)
		}
		p, off = p[k:], off+k
	}
	return nil
}

func (s *striped) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	for len(p) > 0 {
		st, at, room := s.place(off)
		k := min(room, int64(len(p)))
		if err := target.WriteLower(ctx, st.dev, p[:k], at, fua); err != nil {
			return s.failed(st, err)
		}
		p, off = p[k:], off+k
	}
	return nil
}

// Prompt says that only the devices may have to wait.
func (s *striped) Prompt() (reads, writes bool) { return true, true }

// failed counts an error for every stripe on the device of st. What the device
// does not support, and a wait that was given up, are no errors of it.
func (s *striped) failed(st *stripe, err error) error {
	switch blockdev.Kind(err) {
	case blockdev.ErrUnsupported, blockdev.ErrInterrupted, blockdev.ErrTimeout:
		return err
	}
	for _, o := range s.stripes {
		if o.dev.ID() == st.dev.ID() && o.errors.Add(1) < eventErrors {
			s.event()
		}
	}
	return err
}

func (s *striped) FlushDevices() []target.Lower {
	out := make([]target.Lower, len(s.stripes))
	for i, st := range s.stripes {
		out[i] = st.dev
	}
	return out
}

func (s *striped) Flush(ctx context.Context) error {
	seen := make(map[blockdev.ID]bool, len(s.stripes))
	var first error
	for _, st := range s.stripes {
		if seen[st.dev.ID()] {
			continue
		}
		seen[st.dev.ID()] = true
		if err := target.FlushLower(ctx, st.dev); err != nil && first == nil {
			first = s.failed(st, err)
		}
	}
	return first
}

// run is the one contiguous range that stripe i has of a range of the segment
// (kernel: stripe_map_range). Offsets are bytes; off counts from the segment's
// start.
func (s *striped) run(i int, off, n int64) (at, length int64) {
	edge := func(pos int64) int64 { // bytes of stripe i before byte pos of the segment
		chunk, in := pos/s.chunk, pos%s.chunk
		row, col := chunk/int64(len(s.stripes)), chunk%int64(len(s.stripes))
		switch {
		case int64(i) < col:
			return (row + 1) * s.chunk
		case int64(i) == col:
			return row*s.chunk + in
		default:
			return row * s.chunk
		}
	}
	begin, end := edge(off), edge(off+n)
	return s.stripes[i].start.Bytes() + begin, end - begin
}

// each calls do with the part of every stripe that is not empty. All are
// called; the first error is returned.
func (s *striped) each(off, n int64, do func(st *stripe, at, n int64) error) error {
	errs := make([]error, len(s.stripes))
	var wg sync.WaitGroup
	for i, st := range s.stripes {
		at, k := s.run(i, off-s.start, n)
		if k == 0 {
			continue
		}
		wg.Go(func() {
			if err := do(st, at, k); err != nil {
				errs[i] = s.failed(st, err)
			}
		})
	}
	wg.Wait()
	return firstOf(errs)
}

// firstOf returns the first real error, one of kind unsupported only when
// there is no other.
func firstOf(errs []error) error {
	var unsupported error
	for _, err := range errs {
		switch {
		case err == nil:
		case errors.Is(err, blockdev.ErrUnsupported):
			unsupported = err
		default:
			return err
		}
	}
	return unsupported
}

// Zero gives each stripe its part. When only some devices can zero, the answer
// is [blockdev.ErrUnsupported] though these have done it: the mapper then
// writes zeros over all, which changes nothing where zeros are already.
func (s *striped) Zero(ctx context.Context, off, n int64, unmap bool) error {
	return s.each(off, n, func(st *stripe, at, n int64) error {
		return target.ZeroLower(ctx, st.dev, at, n, unmap)
	})
}

func (s *striped) Discard(ctx context.Context, off, n int64) error {
	return s.each(off, n, func(st *stripe, at, n int64) error {
		return target.DiscardLower(ctx, st.dev, at, n)
	})
}

func (s *striped) Extent(ctx context.Context, off int64) (int64, bool, error) {
	var total int64
	var kind bool
	for end := s.start + s.length; off < end; {
		st, at, room := s.place(off)
		n, hole, err := target.ExtentLower(ctx, st.dev, at)
		if err != nil {
			return 0, false, s.failed(st, err)
		}
		if total > 0 && hole != kind {
			break
		}
		kind = hole
		k := min(n, room)
		total, off = total+k, off+k
		if k < room || total >= extentLimit {
			break
		}
	}
	return total, kind, nil
}

// extentLimit ends the search for the end of a run that goes over many chunks.
const extentLimit = 64 << 20

func (s *striped) Status(form target.StatusForm) string {
	var b strings.Builder
	if form == target.StatusTable {
		fmt.Fprintf(&b, "%d %d", len(s.stripes), blockdev.SectorsIn(s.chunk))
		for _, st := range s.stripes {
			fmt.Fprintf(&b, " %s %d", target.DeviceWord(st.dev), st.start)
		}
		return b.String()
	}
	fmt.Fprintf(&b, "%d", len(s.stripes))
	for _, st := range s.stripes {
		b.WriteString(" " + target.DeviceWord(st.dev))
	}
	b.WriteString(" 1 ")
	for _, st := range s.stripes {
		if st.errors.Load() > 0 {
			b.WriteByte('D')
		} else {
			b.WriteByte('A')
		}
	}
	return b.String()
}

func (s *striped) Devices() []target.DeviceUse {
	width := blockdev.SectorsIn(s.length / int64(len(s.stripes)))
	out := make([]target.DeviceUse, len(s.stripes))
	for i, st := range s.stripes {
		out[i] = target.DeviceUse{Lower: st.dev, Area: blockdev.Range{Start: st.start, Count: width}}
	}
	return out
}

func (s *striped) Close() error { return nil }
