package clone

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/target"
)

// Options are fixed when the type is made. The zero value works.
type Options struct {
	// CopyPages is the budget for copies in pages of 4 KiB; 0: 1024.
	CopyPages int
	// Hooks break the rules of the package on purpose. For tests only.
	Hooks Hooks
}

// Hooks take single barriers away, so that a test can prove that it would
// notice. The zero value changes nothing.
type Hooks struct {
	NoDestFlush bool // bits are written and the destination was not flushed
	NoMetaFlush bool // bits are written and not flushed
	LateBits    bool // bits are taken after the flush of the destination
	NoClaim     bool // copies run over writes
}

const (
	defaultCopyPages = 1024
	commitInterval   = time.Second      // COMMIT_PERIOD, kernel: dm-clone-target.c
	patience         = time.Second      // of background copies with busy users
	retryInterval    = 30 * time.Second // after a copy that failed
)

// Types lists the target types of this package.
func Types(o Options) []target.Type {
	return []target.Type{{
		Name: "clone", Version: [3]uint32{1, 0, 0}, Usage: usage,
		New: func(env *target.Env, args []string) (target.Target, error) { return o.newClone(env, args) },
	}}
}

var (
	_ target.Target           = (*clone)(nil)
	_ target.Suspender        = (*clone)(nil)
	_ target.PresuspendUndoer = (*clone)(nil)
	_ target.Discarder        = (*clone)(nil)
	_ target.Zeroer           = (*clone)(nil)
	_ target.Extenter         = (*clone)(nil)
	_ target.Messager         = (*clone)(nil)
	_ target.Worker           = (*clone)(nil)
)

// mode is that of the metadata.
type mode uint8

const (
	modeWrite mode = iota
	modeReadOnly
	modeFail
)

func (m mode) String() string { return [...]string{"rw", "ro", "Fail"}[m] }

// clone is the target.
type clone struct {
	o      Options
	env    *target.Env
	params params
	start  int64 // first byte of the segment on the mapped device
	length int64 // bytes
	region int64 // bytes

	meta         metadata
	dest, source target.Lower
	bits         *bitmap // replaced at the first resume, before any request
	loaded       bool    // it was
	whole        atomic.Bool
	copier       *kcopyd.Client

	users  atomic.Int64 // requests under way
	broken atomic.Bool  // mode is modeFail

	commitMu sync.Mutex

	mu         sync.Mutex
	begun      uint64 // commits
	busy       bool   // one is at work
	last       error  // how the last one ended
	nextCommit time.Time
	mode       mode
	doubt      bool                // the destination may have lost data: bits must not be written any more
	claims     map[*claim]struct{} // of regions that are being hydrated
	dirty      map[uint64]struct{} // sectors of bits to be written
	hyd        hydration
	meter      meter
	told       bool // the event that all is hydrated was raised

	loops *loops // nil while suspended; guarded by mu
}

// newClone makes the target. Arguments are looked at before any device is
// opened.
func (o Options) newClone(env *target.Env, args []string) (target.Target, error) {
	p, err := parseParams(args, env.Length)
	if err != nil {
		return nil, err
	}
	c := &clone{
		o: o, env: env, params: p,
		start: env.Start.Bytes(), length: env.Length.Bytes(), region: p.region.Bytes(),
		claims: map[*claim]struct{}{}, dirty: map[uint64]struct{}{},
	}
	c.hyd.enabled, c.hyd.threshold, c.hyd.batch = !p.noHydration, p.threshold, p.batch
	if err := c.open(); err != nil {
		return nil, err
	}
	pages := o.CopyPages
	if pages == 0 {
		pages = defaultCopyPages
	}
	c.copier, err = kcopyd.New(kcopyd.Options{Pages: pages})
	return c, err
}

// open opens the devices in the kernel's order, and the metadata.
func (c *clone) open() (err error) {
	p := &c.params
	if c.meta.dev, err = c.env.Open(p.meta, c.env.Mode()); err != nil {
		return err
	}
	if c.dest, err = c.env.Open(p.dest, c.env.Mode()); err != nil {
		return err
	}
	if c.source, err = c.env.Open(p.source, target.ReadOnly); err != nil {
		return err
	}
	if err := c.fits(); err != nil {
		return err
	}
	c.meta.region, c.meta.length, c.meta.regions = p.region, c.env.Length, p.regions
	ctx := context.Background()
	if err := c.meta.open(ctx, c.env.ReadOnly); err != nil {
		return err
	}
	if c.bits, err = c.meta.load(ctx); err != nil {
		return err
	}
	if c.env.ReadOnly {
		c.mode = modeReadOnly
	}
	return nil
}

// fits compares the devices with the arguments.
func (c *clone) fits() error {
	p := &c.params
	for i, d := range []struct {
		lower target.Lower
		text  string
	}{{c.meta.dev, p.meta}, {c.dest, p.dest}, {c.source, p.source}} {
		for j, other := range []target.Lower{c.meta.dev, c.dest, c.source}[:i] {
			if other.ID() == d.lower.ID() {
				return &target.ArgError{Index: i + 1, Text: d.text, Want: fmt.Sprintf("another device than argument %d", j+1)}
			}
		}
		if i == 0 {
			continue
		}
		if size := d.lower.Size(); size < c.length {
			return &target.ArgError{Index: i + 1, Text: d.text, Want: fmt.Sprintf("a device as long as the segment, %d sectors; it has %d", uint64(c.env.Length), uint64(blockdev.SectorsIn(size)))}
		}
		if bs := int64(blockdev.BlockSize(d.lower)); c.region%bs != 0 {
			return &target.ArgError{Index: 4, Text: p.rest[0], Want: fmt.Sprintf("a multiple of the block size of %s, %d sectors", d.lower.Name(), bs/blockdev.SectorSize)}
		}
	}
	return nil
}

// Devices lists them in the order of opening.
func (c *clone) Devices() []target.DeviceUse {
	seg := blockdev.Range{Count: c.env.Length}
	return []target.DeviceUse{
		{Lower: c.meta.dev, Area: blockdev.Range{Count: blockdev.SectorsIn(int64(metaBlocks(c.meta.regions)) * metaBlock)}},
		{Lower: c.dest, Area: seg},
		{Lower: c.source, Area: seg},
	}
}

// Close ends the target, also one that was not suspended.
func (c *clone) Close() error {
	<-c.stopHydration()
	c.stopLoops()
	return c.copier.Close()
}
