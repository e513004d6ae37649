package mapper

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// TestStress lets requests run against two stacked devices while their tables
// are swapped, suspended, renamed and looked at: no request fails or reads
// something else than its worker wrote. For the race detector.
func TestStress(t *testing.T) {
	m, _ := newManager(t, func(o *Options) { o.StateDir = t.TempDir(); o.Host = newMachine(t).host })
	low := mustCreate(t, m, "low", "0 512 linear 7:0 0")
	top := mustCreate(t, m, "top", "0 256 linear low 0\n256 256 linear low 256")
	const workers, share = 6, 512 * 512 / 8
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var stop atomic.Bool
	var all sync.WaitGroup
	run := func(what string, f func(rng *rand.Rand) error) {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(len(what))))
			for !stop.Load() {
				if err := f(rng); err != nil {
					t.Errorf("%s: %v", what, err)
					stop.Store(true)
				}
			}
		})
	}
	var done atomic.Int64
	for w := range workers {
		run(fmt.Sprint("worker ", w), func(rng *rand.Rand) error {
			d := []*Device{top, low}[w%2]
			off, n := int64(w)*share+rng.Int64N(share/2), 1+rng.Int64N(share/2)
			p := bytes.Repeat([]byte{byte(rng.Uint32())}, int(n))
			if _, err := d.WriteAt(ctx, p, off, rng.IntN(4) == 0); err != nil {
				return err
			}
			got := make([]byte, n)
			if _, err := d.ReadAt(ctx, got, off); err != nil {
				return err
			}
			if !bytes.Equal(got, p) {
				return fmt.Errorf("%d bytes at %d are not what was written", n, off)
			}
			if done.Add(1) > 3000 {
				stop.Store(true)
			}
			return d.Flush(ctx)
		})
	}
	run("swap top", func(rng *rand.Rand) error {
		at := 1 + rng.IntN(511)
		lines := []Line{
			{0, blockdev.Sector(at), "linear", []string{"253:0", "0"}},
			{blockdev.Sector(at), blockdev.Sector(512 - at), "linear", []string{"253:0", fmt.Sprint(at)}},
		}
		if err := top.Load(ctx, lines, false); err != nil {
			return err
		}
		return top.Resume(ctx, SuspendOptions{NoLockFS: rng.IntN(2) == 0})
	})
	run("swap low", func(rng *rand.Rand) error {
		if err := low.Load(ctx, []Line{{0, 512, "linear", []string{"7:0", "0"}}}, false); err != nil {
			return err
		}
		if err := low.Suspend(ctx, SuspendOptions{NoFlush: rng.IntN(2) == 0}); err != nil {
			return err
		}
		return low.Resume(ctx, SuspendOptions{})
	})
	run("look", func(*rand.Rand) error {
		for _, d := range m.Devices() {
			_, _, _ = d.InfoText("info"), d.Deps(true), d.Status(target.StatusTable, true, true)
			_, _ = d.Message(ctx, 0, []string{"x"})
			d.SetAttr(d.Attr())
		}
		return nil
	})
	run("rename", func(*rand.Rand) error {
		if err := m.Rename("low", "lower"); err != nil {
			return err
		}
		return m.Rename("lower", "low")
	})
	run("others come and go", func(rng *rand.Rand) error {
		d, err := m.Create("other", "", -1)
		if err != nil {
			return err
		}
		if err := d.Load(ctx, []Line{{0, 512, "linear", []string{"253:0", "0"}}}, true); err != nil {
			return err
		}
		if err := d.Resume(ctx, SuspendOptions{}); err != nil {
			return err
		}
		_, err = m.Remove(ctx, ByName("other"), RemoveOptions{})
		return err
	})
	all.Wait()
	if ctx.Err() != nil {
		t.Error("something waited too long")
	}
}
