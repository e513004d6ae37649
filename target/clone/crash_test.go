package clone

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// answered is a mark: so many operations were answered.
type answered int

// version is what an operation made of a sector.
type version struct {
	op   int
	fill byte // any: it was discarded
}

const anyFill = 0

// history knows what each sector may hold.
type history struct {
	sectors [][]version
	flushed []int // operations that were flushes or durable writes of everything before
}

// crashRun does random operations on a clone over disks that can lose power,
// with copies in the background, and returns the group and what was done.
func crashRun(t *testing.T, seed uint64, hooks Hooks) (*devtest.CrashGroup, *history, *lab) {
	t.Helper()
	const length = 6 * labRegion
	rng := rand.New(rand.NewPCG(seed, 3))
	l := newLab(t, length)
	l.o.Hooks = hooks
	g := devtest.NewCrashGroup()
	for _, name := range []string{"m", "d", "s"} {
		dev, err := g.AddCopy(name, l.disks[name])
		if err != nil {
			t.Fatal(err)
		}
		l.disks[name] = dev
	}
	h := &history{sectors: make([][]version, length)}
	for s := range h.sectors {
		h.sectors[s] = []version{{-1, 's'}}
	}
	words := []string{"1 no_hydration", "", "0 4 hydration_threshold 4 hydration_batch_size 2"}[rng.IntN(3)]
	c := l.start(words)
	ctx := context.Background()
	for op := range 14 {
		first := rng.IntN(length)
		n := 1 + rng.IntN(min(20, length-first))
		if rng.IntN(2) == 0 { // whole regions
			first -= first % labRegion
			n = labRegion
		}
		off, bytes := blockdev.Sector(first).Bytes(), blockdev.Sector(n).Bytes()
		b := byte(op + 1)
		var err error
		switch rng.IntN(8) {
		case 0, 1:
			err = c.Flush(ctx)
			h.flushed = append(h.flushed, op)
		case 2:
			h.change(first, n, version{op, anyFill})
			err = c.Discard(ctx, off, bytes)
		case 3:
			h.change(first, n, version{op, b})
			err = c.Write(ctx, fill(b, bytes), off, true)
			h.flushed = append(h.flushed, op) // not of everything, but of this: see allowed
		default:
			h.change(first, n, version{op, b})
			err = c.Write(ctx, fill(b, bytes), off, false)
		}
		if err != nil {
			t.Fatal(err)
		}
		g.Mark(answered(op + 1))
	}
	l.stop(c)
	return g, h, l
}

func (h *history) change(first, n int, v version) {
	for s := first; s < first+n; s++ {
		h.sectors[s] = append(h.sectors[s], v)
	}
}

// allowed tells whether a sector may hold b when done operations were answered:
// what the last flush made durable, or anything later. A durable write ends with
// a commit only if there are bits; it counts as a flush of what it wrote itself.
func (h *history) allowed(s int, b byte, done int) bool {
	versions := h.sectors[s]
	oldest := 0
	for _, f := range h.flushed {
		if f >= done {
			break
		}
		for i, v := range versions {
			if v.op == f || v.op < f && h.isFlush(f) {
				oldest = max(oldest, i)
			}
		}
	}
	for _, v := range versions[oldest:] {
		if v.op <= done && (v.fill == b || v.fill == anyFill) {
			return true
		}
	}
	// A discard that was not undone may show anything from before it, too.
	return versions[oldest].fill == anyFill
}

// isFlush tells whether operation f changed nothing.
func (h *history) isFlush(f int) bool {
	for _, versions := range h.sectors {
		for _, v := range versions {
			if v.op == f {
				return false
			}
		}
	}
	return true
}

// checkState makes a clone from the disks of a state and compares.
func checkState(t *testing.T, l *lab, h *history, s *devtest.State) error {
	t.Helper()
	done := 0
	for _, m := range s.Marks() {
		done = int(m.(answered))
	}
	disks := l.disks
	defer func() { l.disks = disks }()
	l.disks = map[string]target.Lower{"m": s.Device(0), "d": s.Device(1), "s": s.Device(2)}
	hooks := l.o.Hooks
	l.o.Hooks = Hooks{}
	defer func() { l.o.Hooks = hooks }()
	c, err := l.load("1 no_hydration")
	if err != nil {
		return fmt.Errorf("%s: %w", s.Describe(), err)
	}
	l.resume(c)
	defer l.stop(c)
	all := make([]byte, c.length)
	if err := c.Read(context.Background(), all, 0); err != nil {
		return fmt.Errorf("%s: %w", s.Describe(), err)
	}
	for i := range h.sectors {
		if b := all[i*512]; !h.allowed(i, b, done) {
			return fmt.Errorf("%s, %d operations answered: sector %d holds %q, of %v, flushes %v", s.Describe(), done, i, b, h.sectors[i], h.flushed)
		}
	}
	return nil
}

// What was flushed is there after every power cut, and nothing is anywhere that
// was not written or on the source.
func TestCrash_KeepsWhatWasFlushed(t *testing.T) {
	states := 0
	for seed := range uint64(25) {
		g, h, l := crashRun(t, seed, Hooks{})
		for s := range g.States(seed, 24) {
			states++
			if err := checkState(t, l, h, s); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	}
	if states < 1000 {
		t.Errorf("%d states only", states)
	}
}

// Each barrier that is left out is noticed.
func TestCrash_NoticesMissingBarriers(t *testing.T) {
	for name, hooks := range map[string]Hooks{
		"destination not flushed": {NoDestFlush: true},
		"metadata not flushed":    {NoMetaFlush: true},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(200) {
				g, h, l := crashRun(t, seed, hooks)
				for s := range g.States(seed, 24) {
					if checkState(t, l, h, s) != nil {
						return
					}
				}
			}
			t.Error("nothing was noticed")
		})
	}
}

// busy is a destination on which something is done while it is being flushed.
type busy struct {
	target.Lower
	during func()
}

func (b *busy) Flush() error {
	err := b.Lower.Flush()
	if do := b.during; do != nil {
		b.during = nil
		do()
	}
	return err
}

// Bits that are set after the destination was flushed wait for the next commit.
func TestCommit_TakesBitsBeforeTheFlush(t *testing.T) {
	for _, late := range []bool{false, true} {
		l := newLab(t, 2*labRegion)
		l.o.Hooks.LateBits = late
		g := devtest.NewCrashGroup()
		for _, name := range []string{"m", "d", "s"} {
			dev, err := g.AddCopy(name, l.disks[name])
			if err != nil {
				t.Fatal(err)
			}
			l.disks[name] = dev
		}
		dest := &busy{Lower: l.disks["d"]}
		l.disks["d"] = dest
		c := l.start("1 no_hydration")
		l.write(c, 0, 8, 'a')
		dest.during = func() { l.write(c, 8, 8, 'b') }
		if err := c.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
		wrong := false
		for s := range g.Now().States(1, 64) {
			l.disks = map[string]target.Lower{"m": s.Device(0), "d": s.Device(1), "s": s.Device(2)}
			after := l.start("1 no_hydration")
			if got := content(t, after); got != "as" {
				wrong = true // 'd', or torn
			}
			l.stop(after)
		}
		if wrong != late {
			t.Errorf("bits taken late: %v; wrong content: %v", late, wrong)
		}
		l.stop(c)
	}
}
