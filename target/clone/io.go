package clone

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

var (
	errFail     = fmt.Errorf("%w: clone: the metadata failed and cannot be read", blockdev.ErrIO)
	errReadOnly = fmt.Errorf("%w: clone: the metadata failed and is read-only: no region can be hydrated", blockdev.ErrIO)
)

// enter counts a request, leave its end.
func (c *clone) enter() error {
	c.users.Add(1)
	if c.broken.Load() {
		c.leave()
		return errFail
	}
	return nil
}

func (c *clone) leave() {
	if c.users.Add(-1) == 0 && !c.whole.Load() {
		c.wake(loopHydrate)
	}
}

func (c *clone) currentMode() mode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mode
}

// regionsAround is the regions that n bytes at off of the segment touch.
func (c *clone) regionsAround(off, n int64) (first, end uint64) {
	return uint64(off / c.region), uint64((off + n + c.region - 1) / c.region)
}

// regionsWithin is the regions that lie in n bytes at off of the segment; first
// is end where there are none. The last region may be short.
func (c *clone) regionsWithin(off, n int64) (first, end uint64) {
	first, end = uint64((off+c.region-1)/c.region), uint64((off+n)/c.region)
	if off+n == c.length {
		end = c.params.regions
	}
	return first, max(first, end)
}

// bytesOf is the place of regions in the segment.
func (c *clone) bytesOf(first, end uint64) (from, to int64) {
	return int64(first) * c.region, min(int64(end)*c.region, c.length)
}

// Read reads from the destination what is hydrated, the rest from the source.
func (c *clone) Read(ctx context.Context, p []byte, off int64) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	off -= c.start
	for len(p) > 0 {
		n, dev := c.run(off, int64(len(p)))
		if err := target.ReadLower(ctx, dev, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// run is how many of n bytes at off lie on one device, and which.
func (c *clone) run(off, n int64) (int64, target.Lower) {
	if c.whole.Load() {
		return n, c.dest
	}
	first, end := c.regionsAround(off, n)
	k, hydrated := c.bits.run(first, end)
	_, to := c.bytesOf(first, first+k)
	n = min(n, to-off)
	if hydrated {
		return n, c.dest
	}
	return n, c.source
}

// Write writes to the destination: regions that it covers need no copy, others
// are copied first.
func (c *clone) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	off -= c.start
	n := int64(len(p))
	durable := fua && !c.pending() && c.allHydrated(off, n)
	err := c.change(ctx, off, n, func(at, k int64) error {
		return target.WriteLower(ctx, c.dest, p[at-off:at-off+k], at, durable)
	})
	if err != nil || !fua || durable {
		return err
	}
	return c.commit(ctx)
}

func (c *clone) allHydrated(off, n int64) bool {
	first, end := c.regionsAround(off, n)
	return c.whole.Load() || c.bits.next(first, end, false) == end
}

// Zero is a write of zeros, if the destination can be told to.
func (c *clone) Zero(ctx context.Context, off, n int64, unmap bool) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	return c.change(ctx, off-c.start, n, func(at, k int64) error {
		return target.ZeroLower(ctx, c.dest, at, k, unmap)
	})
}

// change calls do for all of n bytes at off of the segment, in pieces, with
// their regions hydrated or claimed.
func (c *clone) change(ctx context.Context, off, n int64, do func(off, n int64) error) error {
	for n > 0 {
		k, err := c.changeRun(ctx, off, n, do)
		if err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// changeRun does the first piece; 0 is to look again.
func (c *clone) changeRun(ctx context.Context, off, n int64, do func(off, n int64) error) (int64, error) {
	if k, dev := c.run(off, n); dev == c.dest {
		return k, do(off, k)
	}
	if c.currentMode() != modeWrite {
		return 0, errReadOnly
	}
	r := uint64(off / c.region)
	if first, end := c.regionsWithin(off, n); first == r && first < end {
		end = c.bits.next(first, end, true)
		if end == first {
			return 0, nil // a copy has ended meanwhile
		}
		from, to := c.bytesOf(first, end)
		mine, other := c.take(first, end-first, false)
		if mine == nil {
			return 0, other.maybe(ctx)
		}
		err := do(from, to-from)
		c.give(mine, err == nil)
		return to - from, err
	}
	mine, other := c.take(r, 1, true)
	if mine == nil {
		return 0, other.maybe(ctx)
	}
	return 0, c.copyNow(ctx, mine)
}

// maybe waits for a claim, if there is one.
func (k *claim) maybe(ctx context.Context) error {
	if k == nil {
		return nil
	}
	return k.wait(ctx)
}

// Discard makes the regions that it covers hydrated without a copy, and drops
// them on the destination, unless the table says no (kernel:
// process_discard_bio). It always succeeds where the kernel's does.
func (c *clone) Discard(ctx context.Context, off, n int64) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	first, end := c.regionsWithin(off-c.start, n)
	for r := first; r < end; {
		k, hydrated := c.bits.run(r, end)
		if !hydrated {
			if c.currentMode() != modeWrite {
				return nil
			}
			mine, other := c.take(r, k, false)
			if mine == nil {
				if err := other.maybe(ctx); err != nil {
					return err
				}
				continue
			}
			c.give(mine, true)
		}
		r += k
	}
	if first == end || c.params.noPassdown {
		return nil
	}
	from, to := c.bytesOf(first, end)
	if err := target.DiscardLower(ctx, c.dest, from, to-from); err != nil && !errors.Is(err, blockdev.ErrUnsupported) {
		return err
	}
	return nil
}

// Extent is that of the device that holds off.
func (c *clone) Extent(ctx context.Context, off int64) (int64, bool, error) {
	if err := c.enter(); err != nil {
		return 0, false, err
	}
	defer c.leave()
	off -= c.start
	limit, dev := c.run(off, c.length-off)
	n, hole, err := target.ExtentLower(ctx, dev, off)
	return min(n, limit), hole, err
}

// Flush makes the destination durable, and which regions lie there.
func (c *clone) Flush(ctx context.Context) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	if !c.pending() {
		return target.FlushLower(ctx, c.dest)
	}
	return c.commit(ctx)
}
