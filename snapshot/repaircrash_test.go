package snapshot

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// Power cuts in a repair in place: whatever of it is on the disk, each chunk
// reads what it read before or what it reads after, the backup brings back what
// was, and the repair can be done again.

// badly damages a store in several ways at once, in all of its areas.
func badly(t *testing.T, seed uint64) *damagedStore {
	rng := rand.New(rand.NewPCG(seed, 7))
	d := shape{"crash", 1, 80, 300}.make(t, rng)
	for range 12 {
		i := rng.IntN(len(d.es))
		switch rng.IntN(5) {
		case 0:
			putEntry(d.entry(i), exception{d.es[i].old, 1 << 40})
		case 1:
			putEntry(d.entry(i), exception{d.es[i].old, 34})
		case 2:
			putEntry(d.entry(i), exception{d.es[rng.IntN(len(d.es))].old, d.es[i].new})
		case 3:
			putEntry(d.entry(i), exception{1 << 33, d.es[i].new})
		case 4:
			putEntry(d.entry(i), exception{d.es[i].old, d.es[rng.IntN(len(d.es))].new})
		}
	}
	scribble(rng, d.bytes[d.l.offset(d.l.area(2))+17*entrySize:d.l.offset(d.l.area(2))+20*entrySize])
	if seed%2 == 0 {
		clear(d.bytes[4:8]) // marked invalid
	}
	return d
}

// repairCrash repairs on a device that remembers, and tells what is wrong in
// one of the states after a power cut.
func repairCrash(t *testing.T, d *damagedStore, h Hooks) error {
	origin := patternOrigin(t, d.origin)
	before := d.shown(t, d.dev(), origin, true)
	g := devtest.NewCrashGroup()
	dev, err := g.AddCopy("cow", d.dev())
	if err != nil {
		t.Fatal(err)
	}
	o := d.options()
	o.Hooks = h
	r, err := PlanRepair(dev, o)
	if blockdev.Kind(err) == blockdev.ErrNoSpace {
		return nil // it would have to grow, which the device of the test cannot
	}
	if err != nil {
		t.Fatal(err)
	}
	if r.GrowTo > 0 {
		return nil // likewise
	}
	b := r.Backup("/cow", nil)
	if err := r.Apply(); err != nil {
		t.Fatal(err)
	}
	after := d.shown(t, dev, origin, true)
	n := 0
	for s := range g.States(crashSeed, 200) {
		n++
		now := d.shown(t, s.Device(0), origin, true)
		for c := range now {
			if !bytes.Equal(now[c], before[c]) && !bytes.Equal(now[c], after[c]) {
				return fmt.Errorf("%s: chunk %d reads neither what it did before nor after", s.Describe(), c)
			}
		}
		if n%17 == 0 {
			if err := restoreCrash(t, d, b, s.Device(0), r); err != nil {
				return fmt.Errorf("%s: %w", s.Describe(), err)
			}
		}
		if n%11 == 0 {
			m := blockdev.NewMemBytes(content(t, s.Device(0)))
			again, err := PlanRepair(m, d.options())
			if err == nil {
				err = again.Apply()
			}
			if err != nil {
				return fmt.Errorf("%s: once more: %w", s.Describe(), err)
			}
			if rep, err := CheckStore(m, d.origin); err != nil || !rep.Clean() {
				return fmt.Errorf("%s: once more: %v %v", s.Describe(), err, rep.Problems)
			}
		}
	}
	if n < 5 {
		t.Errorf("%d states only", n)
	}
	return nil
}

// restoreCrash takes a repair back that was cut off, with power cuts.
func restoreCrash(t *testing.T, d *damagedStore, b Backup, half blockdev.Device, r *Repair) error {
	g := devtest.NewCrashGroup()
	dev, err := g.AddCopy("cow", half)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Check(dev); err != nil {
		return err
	}
	if err := b.Restore(dev, nil); err != nil {
		return err
	}
	n := 0
	for s := range g.States(crashSeed, 3) {
		if n++; n%4 != 0 {
			continue
		}
		m := blockdev.NewMemBytes(content(t, s.Device(0)))
		if err := b.Check(m); err != nil {
			return err
		}
		if err := b.Restore(m, nil); err != nil {
			return err
		}
		now, want := content(t, m), bytes.Clone(d.bytes)
		for _, c := range r.copies {
			off := d.l.offset(c.new)
			clear(now[off : off+d.l.bytes()])
			clear(want[off : off+d.l.bytes()])
		}
		if !bytes.Equal(now, want) {
			return fmt.Errorf("%s: restored twice it is not what it was: %s", s.Describe(), firstDifference(now, want))
		}
	}
	return nil
}

func TestRepair_PowerCut(t *testing.T) {
	seeds := uint64(20)
	if long() {
		seeds = 60
	}
	for seed := range seeds {
		if err := repairCrash(t, badly(t, seed), Hooks{}); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

// Without barriers the same test fails.
func TestRepair_PowerCutNoticesMissingBarriers(t *testing.T) {
	for seed := range uint64(20) {
		if err := repairCrash(t, badly(t, seed), Hooks{NoRepairFlush: true}); err != nil {
			t.Log(err)
			return
		}
	}
	t.Error("nobody noticed that the barriers are gone")
}
