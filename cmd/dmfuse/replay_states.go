package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/replay"
)

// enumerated is the answer of --enumerate and --seed.
type enumerated struct {
	Device string        `json:"device"`
	Cuts   int           `json:"cuts"`
	States int           `json:"states"`
	Checks []checkResult `json:"checks"` // without --fsck: the states, with exit 0
	Failed int           `json:"failed"`
}

// errEnough ends the walk over the states.
var errEnough = errors.New("enough")

// states goes through the contents that power cuts can leave, or makes one.
func (r *replayer) states(ctx context.Context) error {
	var wantCut int
	var wantPick uint64
	if r.o.seed != "" {
		var err error
		if wantCut, wantPick, err = replay.ParseSeed(r.o.seed); err != nil {
			return fail(exitUsage, err, "")
		}
	}
	if r.o.scratch == "" {
		r.o.scratch = os.TempDir()
	}
	base, drop, err := r.base()
	if err != nil {
		return err
	}
	defer drop()
	sum := enumerated{Device: r.path, Checks: []checkResult{}}
	for c := range r.log.Cuts(r.o.tear) {
		for _, i := range c.Settled {
			if base == nil {
				break
			}
			if err := r.log.Apply(base, i); err != nil {
				return fmt.Errorf("entry %d: %w", i, err)
			}
		}
		sum.Cuts++
		if r.o.seed != "" && c.Number != wantCut {
			continue
		}
		err := r.statesOf(ctx, c, wantPick, base, &sum)
		if errors.Is(err, errEnough) {
			break
		}
		if err != nil {
			return err
		}
	}
	if r.o.seed != "" && sum.States == 0 {
		return fail(exitMissing, fmt.Errorf("there is no power cut %d: the log has %d", wantCut, sum.Cuts), "give the --tear and the log that the seed was printed with")
	}
	if r.o.fsck != "" {
		sum.Checks = r.checks
	}
	sum.Failed = r.failed
	return r.report(sum, count(sum.Cuts, "power cut")+", "+count(sum.States, "content"))
}

// base is a copy of DEV that the walk brings up to each cut; nil where only
// seeds are printed.
func (r *replayer) base() (*blockdev.Handle, func(), error) {
	if r.o.fsck == "" && r.o.into == "" {
		return nil, func() {}, nil
	}
	dev, err := r.pool.Open(r.path, false)
	if err != nil {
		return nil, nil, err
	}
	defer dev.Close()
	path, err := r.copyOf(dev, r.o.scratch)
	if err != nil {
		return nil, nil, fmt.Errorf("a copy of %s in %s: %w", r.path, r.o.scratch, err)
	}
	base, err := r.pool.Open(path, true)
	if err != nil {
		_ = os.Remove(path)
		return nil, nil, err
	}
	return base, func() { _ = base.Close(); _ = os.Remove(path) }, nil
}

// statesOf goes through the states of a cut.
func (r *replayer) statesOf(ctx context.Context, c *replay.Cut, pick uint64, base *blockdev.Handle, sum *enumerated) error {
	one := func(s *replay.State) error {
		sum.States++
		goOn, err := r.state(ctx, s, base, sum)
		if err == nil && !goOn {
			err = errEnough
		}
		return err
	}
	if r.o.seed != "" {
		if err := one(c.State(pick)); err != nil {
			return err
		}
		return errEnough
	}
	for s := range c.States(r.o.bound, r.o.sample) {
		if err := one(s); err != nil {
			return err
		}
	}
	return nil
}

// state makes one content, and checks it.
func (r *replayer) state(ctx context.Context, s *replay.State, base *blockdev.Handle, sum *enumerated) (bool, error) {
	if err := context.Cause(ctx); err != nil {
		return false, fmt.Errorf("stopped before the content with seed %s: %w", s.Seed(), err)
	}
	c := s.Cut
	res := checkResult{Entry: c.End, Mark: c.Mark, Seed: s.Seed(), Units: c.Units()}
	if base == nil {
		sum.Checks = append(sum.Checks, res)
		if r.a.json {
			return true, nil
		}
		mark := ""
		if c.Mark != "" {
			mark = ", mark " + printable(c.Mark)
		}
		_, err := fmt.Fprintf(r.a.stdout, "seed %s, entry %d%s: %d of %d undecided units are kept\n", res.Seed, res.Entry, mark, s.Kept, c.Units())
		return true, err
	}
	path, err := r.copyOf(base, r.o.scratch)
	if err != nil {
		return false, err
	}
	if err := r.makeState(s, path); err != nil {
		_ = os.Remove(path)
		return false, err
	}
	if r.o.into != "" {
		if err := r.keep(path); err != nil {
			return false, err
		}
		path = r.o.into
		sum.Checks = append(sum.Checks, res)
		if r.o.fsck == "" {
			return true, nil
		}
		return r.check(ctx, path, res)
	}
	return r.checkCopy(ctx, path, res)
}

// makeState applies a state to a copy of the base.
func (r *replayer) makeState(s *replay.State, path string) error {
	dev, err := r.pool.Open(path, true)
	if err != nil {
		return err
	}
	err = s.Apply(dev)
	if cerr := dev.Close(); err == nil {
		err = cerr
	}
	return err
}

// keep makes the copy at path the new file of --into.
func (r *replayer) keep(path string) error {
	defer os.Remove(path)
	f, err := os.OpenFile(r.o.into, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(exitBusy, fmt.Errorf("--into: %w", err), "")
	}
	if err := f.Close(); err != nil {
		return err
	}
	from, err := r.pool.Open(path, false)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := os.Truncate(r.o.into, from.Size()); err != nil {
		return err
	}
	to, err := r.pool.Open(r.o.into, true)
	if err != nil {
		return err
	}
	if err := copySparse(to, from); err != nil {
		_ = to.Close()
		return err
	}
	return closeFlushed(to)
}
