package clone

import (
	"context"
	"slices"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// pending tells whether there are bits that are not durable, or a commit is at
// work that may have taken some.
func (c *clone) pending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.dirty) > 0 || c.busy
}

// commit makes durable what was answered before the call. Callers that wait
// together share a commit.
func (c *clone) commit(ctx context.Context) error {
	c.mu.Lock()
	began := c.begun
	c.mu.Unlock()
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	c.mu.Lock()
	// One that began after the call, and so has ended with the lock.
	shared := c.begun > began && c.last == nil
	if shared {
		c.mu.Unlock()
		return nil
	}
	c.begun++
	c.busy = true
	c.mu.Unlock()
	err := c.commitNow(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = false
	c.last = err
	return err
}

// commitNow takes the bits, flushes the destination, writes the bits and
// flushes them (rule 3).
func (c *clone) commitNow(ctx context.Context) error {
	if m := c.currentMode(); m != modeWrite {
		c.mu.Lock()
		lost := len(c.dirty) > 0
		c.mu.Unlock()
		if lost {
			return errReadOnly
		}
		return target.FlushLower(ctx, c.dest)
	}
	list := c.takeBits()
	if !c.o.Hooks.NoDestFlush {
		if err := target.FlushLower(ctx, c.dest); err != nil {
			if k := blockdev.Kind(err); k != blockdev.ErrInterrupted && k != blockdev.ErrTimeout {
				c.fail(ctx, list, err, true)
			} else {
				c.giveBits(list)
			}
			return err
		}
	}
	if c.o.Hooks.LateBits {
		for i := range list {
			list[i] = c.bits.sector(list[i].n)
		}
	}
	err := c.writeBits(list)
	if err != nil {
		c.fail(ctx, list, err, false)
		return err
	}
	c.announce()
	return nil
}

// writeBits is not given up half way: it takes no context.
func (c *clone) writeBits(list []bitSector) error {
	if len(list) == 0 {
		return nil
	}
	ctx := context.Background()
	if err := c.meta.write(ctx, list); err != nil {
		return err
	}
	if c.o.Hooks.NoMetaFlush {
		return nil
	}
	return target.FlushLower(ctx, c.meta.dev)
}

// takeBits copies the sectors of bits that have to be written.
func (c *clone) takeBits() []bitSector {
	c.mu.Lock()
	defer c.mu.Unlock()
	var numbers []uint64
	for s := range c.dirty {
		numbers = append(numbers, s)
	}
	clear(c.dirty)
	slices.Sort(numbers)
	list := make([]bitSector, len(numbers))
	for i, s := range numbers {
		list[i] = c.bits.sector(s)
	}
	return list
}

// giveBits has sectors written later.
func (c *clone) giveBits(list []bitSector) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range list {
		c.dirty[list[i].n] = struct{}{}
	}
	c.loops.wake(loopCommit) // it may have found nothing to do meanwhile
}

// fail ends the writing of metadata after a commit that failed; doubt says that
// the destination failed.
func (c *clone) fail(ctx context.Context, list []bitSector, why error, doubt bool) {
	next := modeReadOnly
	if again := c.meta.again(context.WithoutCancel(ctx)); again != nil {
		next = modeFail
		c.env.Log.WithError(again).Error("the metadata cannot be read any more: all requests fail")
	}
	c.giveBits(list)
	c.mu.Lock()
	c.mode, c.doubt = next, c.doubt || doubt
	c.broken.Store(next == modeFail)
	c.hyd.why = why
	c.mu.Unlock()
	if doubt {
		c.env.Log.WithError(why).Error("the destination failed a flush and may have lost data: the metadata is read-only")
	} else {
		c.env.Log.WithError(why).Error("the metadata could not be written and is read-only now")
	}
	c.env.Event()
}

// announce raises the event that all is hydrated, durably, once.
func (c *clone) announce() {
	c.mu.Lock()
	now := !c.told && c.bits.full() && len(c.dirty) == 0
	c.told = c.told || now
	c.mu.Unlock()
	if now {
		c.env.Event()
	}
}

// commitStep commits when it is time to, and says when to come again.
func (c *clone) commitStep(ctx context.Context, now time.Time) time.Duration {
	c.mu.Lock()
	c.meter.add(now, c.doneLocked())
	idle := len(c.dirty) == 0 || c.mode != modeWrite
	wait := c.nextCommit.Sub(now)
	urgent := c.bits.full()
	if !idle && (wait <= 0 || urgent) {
		c.nextCommit = now.Add(commitInterval)
	}
	c.mu.Unlock()
	switch {
	case idle:
		return -1
	case wait > 0 && !urgent:
		return wait
	}
	_ = c.commit(ctx) // a failure shows in the mode
	return commitInterval
}
