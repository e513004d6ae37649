package fault

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

var (
	_ target.Target           = (*delay)(nil)
	_ target.Zeroer           = (*delay)(nil)
	_ target.Discarder        = (*delay)(nil)
	_ target.Extenter         = (*delay)(nil)
	_ target.Suspender        = (*delay)(nil)
	_ target.PresuspendUndoer = (*delay)(nil)
)

const delayUsage = "<device> <start sector> <delay ms> [<write device> <start sector> <delay ms> [<flush device> <start sector> <delay ms>]]"

// Delay holds requests for a while before it passes them on, reads, writes and
// flushes to a device each if so wanted.
func Delay() target.Type {
	return target.Type{Name: "delay", Version: [3]uint32{1, 5, 0}, Usage: delayUsage, New: newDelay}
}

// The classes of requests.
const (
	delayReads = iota
	delayWrites
	delayFlushes
	delayClasses
)

// delayGroup is where requests of a class go, and when.
type delayGroup struct {
	place
	wait time.Duration
}

type delay struct {
	given []delayGroup // as in the table
	class [delayClasses]delayGroup

	mu    sync.Mutex
	held  [delayClasses]int
	hold  bool          // false while the device is being suspended
	freed chan struct{} // closed when everything held is to go on; then made anew
}

func newDelay(env *target.Env, args []string) (target.Target, error) {
	if len(args) != 3 && len(args) != 6 && len(args) != 9 {
		return nil, &target.ArgError{Want: fmt.Sprintf("%d arguments found, expected 3, 6 or 9: %s", len(args), delayUsage)}
	}
	d := &delay{hold: true, freed: make(chan struct{})}
	a := target.NewArgs(args)
	for a.Left() > 0 {
		g, err := takeDelayGroup(env, a)
		if err != nil {
			return nil, err
		}
		d.given = append(d.given, g)
	}
	for i := range d.class {
		d.class[i] = d.given[min(i, len(d.given)-1)]
	}
	return d, nil
}

func takeDelayGroup(env *target.Env, a *target.Args) (g delayGroup, err error) {
	name, _ := a.Word("a device")
	start, err := startSector(env, a)
	if err != nil {
		return g, err
	}
	ms, err := a.Number("a delay in milliseconds", math.MaxUint32)
	if err != nil {
		return g, err
	}
	g.wait = time.Duration(ms) * time.Millisecond
	g.place, err = openPlace(env, name, start)
	return g, err
}

// await holds a request of a class until its time has come, or everything is let
// go.
func (d *delay) await(ctx context.Context, class int) error {
	wait := d.class[class].wait
	if wait == 0 {
		return nil
	}
	d.mu.Lock()
	if !d.hold {
		d.mu.Unlock()
		return nil
	}
	freed := d.freed
	d.held[class]++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.held[class]--
		d.mu.Unlock()
	}()
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-freed:
	case <-ctx.Done():
		return fmt.Errorf("%w: the request was held", blockdev.Kind(ctx.Err()))
	}
	return nil
}

func (d *delay) Read(ctx context.Context, p []byte, off int64) error {
	if err := d.await(ctx, delayReads); err != nil {
		return err
	}
	g := &d.class[delayReads]
	return target.ReadLower(ctx, g.dev, p, off+g.shift)
}

func (d *delay) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if err := d.await(ctx, delayWrites); err != nil {
		return err
	}
	g := &d.class[delayWrites]
	return target.WriteLower(ctx, g.dev, p, off+g.shift, fua)
}

// Flush flushes the device of the flushes, and that of the writes, which the
// kernel leaves out where it is another one.
func (d *delay) Flush(ctx context.Context) error {
	if err := d.await(ctx, delayFlushes); err != nil {
		return err
	}
	w, f := &d.class[delayWrites], &d.class[delayFlushes]
	err := target.FlushLower(ctx, f.dev)
	if w.dev.ID() != f.dev.ID() {
		if werr := target.FlushLower(ctx, w.dev); err == nil {
			err = werr
		}
	}
	return err
}

func (d *delay) Zero(ctx context.Context, off, n int64, unmap bool) error {
	if err := d.await(ctx, delayWrites); err != nil {
		return err
	}
	g := &d.class[delayWrites]
	return target.ZeroLower(ctx, g.dev, off+g.shift, n, unmap)
}

func (d *delay) Discard(ctx context.Context, off, n int64) error {
	if err := d.await(ctx, delayWrites); err != nil {
		return err
	}
	g := &d.class[delayWrites]
	return target.DiscardLower(ctx, g.dev, off+g.shift, n)
}

func (d *delay) Extent(ctx context.Context, off int64) (int64, bool, error) {
	g := &d.class[delayReads]
	n, hole, err := target.ExtentLower(ctx, g.dev, off+g.shift)
	return min(n, g.end-off), hole, err
}

// Presuspend lets everything go at once; nothing is held until Resume.
func (d *delay) Presuspend(bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hold = false
	close(d.freed)
	d.freed = make(chan struct{})
}

// PresuspendUndo holds requests again.
func (d *delay) PresuspendUndo() { d.Resume() }

// Postsuspend has nothing to do.
func (d *delay) Postsuspend() {}

// Preresume never refuses.
func (d *delay) Preresume() error { return nil }

// Resume holds requests again.
func (d *delay) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hold = true
}

func (d *delay) Status(form target.StatusForm) string {
	if form == target.StatusInfo {
		d.mu.Lock()
		defer d.mu.Unlock()
		return fmt.Sprintf("%d %d %d", d.held[delayReads], d.held[delayWrites], d.held[delayFlushes])
	}
	var words []string
	for _, g := range d.given {
		words = append(words, fmt.Sprintf("%s %d %d", target.DeviceWord(g.dev), g.area.Start, g.wait.Milliseconds()))
	}
	return strings.Join(words, " ")
}

func (d *delay) Devices() []target.DeviceUse {
	var list []target.DeviceUse
	for _, g := range d.given {
		list = append(list, g.use())
	}
	return list
}

func (d *delay) Close() error { return nil }
