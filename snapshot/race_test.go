package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// async runs f and gives its result when it is there.
func async(f func() error) <-chan error {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	return ch
}

// result waits for the result of async.
func result(t testing.TB, ch <-chan error) error {
	t.Helper()
	select {
	case err := <-ch:
		return err
	case <-soon(t).Done():
		t.Fatal("a request hangs")
		return nil
	}
}

func awaitHanging(t testing.TB, f *devtest.Fault, n int) {
	t.Helper()
	if err := f.AwaitHanging(soon(t), n); err != nil {
		t.Fatal("nothing hangs")
	}
}

// TestRead_OvertakenByAnOriginWrite: a read of the snapshot is on its way to the
// origin when an origin write to the same chunk runs from beginning to end. The
// write does not wait for the read, and the read returns the old data.
func TestRead_OvertakenByAnOriginWrite(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 400)
	f := l.fault("o")
	snap, org := l.live("0 64 snapshot o c P 8"), l.live("0 64 snapshot-origin o")
	f.SetText("read count=1 hang")
	var p []byte
	read := async(func() (err error) { p, err = snap.read(0, 64); return err })
	awaitHanging(t, f, 1)
	if err := org.write(2, 12, 20); err != nil {
		t.Fatal(err)
	}
	f.Release()
	if err := result(t, read); err != nil {
		t.Fatal(err)
	}
	if d := firstDifference(p, devtest.Pattern(1, 0, 64)); string(p) != string(devtest.Pattern(1, 0, 64)) {
		t.Error(d)
	}
	snap.close()
	org.close()
}

// TestRead_WhileTheSnapshotIsLost: the same, but the copy fails: the read must
// not return what the origin write left there (kernel weakness).
func TestRead_WhileTheSnapshotIsLost(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 400)
	f := l.fault("o")
	cf := l.fault("c")
	snap, org := l.live("0 64 snapshot o c P 8"), l.live("0 64 snapshot-origin o")
	f.SetText("read count=1 hang")
	cf.SetText("write 24+8 errno=EIO; write 16+8 errno=EIO")
	read := async(func() error { _, err := snap.read(0, 64); return err })
	awaitHanging(t, f, 1)
	if err := org.write(2, 12, 20); err != nil {
		t.Fatal(err)
	}
	f.Release()
	if err := result(t, read); !errors.Is(err, ErrInvalidSnapshot) {
		t.Errorf("the read: %v", err)
	}
	snap.close()
	org.close()
}

// TestOriginWrite_WaitsForTheException: nothing reaches the origin before the
// exception is durable, whoever makes it.
func TestOriginWrite_WaitsForTheException(t *testing.T) {
	for _, rule := range []string{"write 16+8", "flush", "fua 8+8"} {
		t.Run(rule, func(t *testing.T) {
			l := newLab(t, Options{})
			fill(t, l.mem("o", 64), 1)
			l.mem("c", 400)
			f := l.fault("c")
			snap, org := l.live("0 64 snapshot o c P 8"), l.live("0 64 snapshot-origin o")
			f.SetText(rule + " count=1 hang")
			mine := async(func() error { return snap.write(3, 8, 8) })
			awaitHanging(t, f, 1)
			theirs := async(func() error { return org.write(2, 8, 8) })
			ctx, cancel := context.WithCancel(context.Background())
			gaveUp := async(func() error {
				return org.Write(ctx, make([]byte, 512), 10*512, false)
			})
			cancel()
			if err := result(t, gaveUp); blockdev.Kind(err) != blockdev.ErrInterrupted {
				t.Errorf("a wait that was given up: %v", err)
			}
			org.want(1, 0, 64)
			snap.want(1, 0, 64)
			f.Release()
			if err := result(t, mine); err != nil {
				t.Error(err)
			}
			if err := result(t, theirs); err != nil {
				t.Error(err)
			}
			org.want(2, 8, 8)
			snap.want(3, 8, 8)
			snap.close()
			org.close()
		})
	}
}

// TestGroupCommit: requests that come while a commit runs share the next one.
func TestGroupCommit(t *testing.T) { synctest.Test(t, testGroupCommit) }

func testGroupCommit(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 256), 1)
	l.mem("c", 1000)
	f := l.fault("c")
	snap, org := l.live("0 256 snapshot o c P 8"), l.live("0 256 snapshot-origin o")
	f.SetText("flush count=1 hang")
	first := async(func() error { return org.write(2, 0, 1) })
	awaitHanging(t, f, 1)
	const n = 20
	var others []<-chan error
	for i := 1; i <= n; i++ {
		w := org
		if i%2 == 0 {
			w = snap
		}
		others = append(others, async(func() error { return w.write(3, blockdev.Sector(i*8), 8) }))
	}
	synctest.Wait() // all have filled their chunks
	f.Set(devtest.Rule{Ops: devtest.OpFlush}, devtest.Rule{Ops: devtest.OpFUA})
	f.Release()
	if err := result(t, first); err != nil {
		t.Fatal(err)
	}
	for _, ch := range others {
		if err := result(t, ch); err != nil {
			t.Fatal(err)
		}
	}
	if flushes, areas := f.Seen(0), f.Seen(1); flushes != 1 || areas != 2 {
		t.Errorf("%d flushes and %d writes of the area for %d requests after the first, expected 1 and 2", flushes, areas, n)
	}
	for i := 1; i <= n; i++ {
		if i%2 == 0 {
			snap.want(3, blockdev.Sector(i*8), 8)
		} else {
			org.want(3, blockdev.Sector(i*8), 8)
			snap.want(1, blockdev.Sector(i*8), 8)
		}
	}
	snap.close()
	org.close()
}

// TestOriginWrite_Large: an origin write over many chunks is copied in few
// pieces and committed once.
func TestOriginWrite_Large(t *testing.T) {
	const sectors = 4096 // 2 MiB
	l := newLab(t, Options{})
	fill(t, l.mem("o", sectors), 1)
	l.mem("c", 2*sectors)
	log := devtest.NewLog()
	l.devs["c"] = log.Wrap("c", l.devs["c"])
	snap, org := l.live("0 4096 snapshot o c P 8"), l.live("0 4096 snapshot-origin o")
	skip := len(log.Events())
	if err := org.write(2, 0, 2048); err != nil {
		t.Fatal(err)
	}
	n := map[devtest.Op]int{}
	for _, e := range log.Events()[skip:] {
		if e.Phase == devtest.Begin {
			n[e.Op]++
		}
	}
	// 256 chunks fill the area: zeros for the next one, copies around it.
	if n[devtest.OpFlush] != 1 || n[devtest.OpFUA] != 1 || n[devtest.OpWrite] > 12 {
		t.Errorf("flushes %d, durable writes %d, writes %d", n[devtest.OpFlush], n[devtest.OpFUA], n[devtest.OpWrite])
	}
	snap.want(1, 0, sectors)
	org.want(2, 0, 2048)
	org.want(1, 2048, sectors-2048)
	snap.close()
	org.close()
}

// TestOriginWrite_SharedRead: what several snapshots need is read once.
func TestOriginWrite_SharedRead(t *testing.T) {
	for _, count := range []blockdev.Sector{1, 8, 100, 1500} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			l := newLab(t, Options{})
			fill(t, l.mem("o", 2048), 1)
			log := devtest.NewLog()
			var snaps []*table
			for i, chunk := range []int{8, 64, 8, 1, 8, 16, 8, 8, 8, 8} {
				cow := fmt.Sprintf("c%d", i)
				l.mem(cow, 5000)
				snaps = append(snaps, l.live(fmt.Sprintf("0 2048 snapshot o %s P %d", cow, chunk)))
			}
			org := l.live("0 2048 snapshot-origin o")
			for _, s := range snaps {
				s.snap().source = log.Wrap("o", s.snap().source)
			}
			if err := org.write(2, 66, count); err != nil {
				t.Fatal(err)
			}
			read := map[int64]int{}
			for _, e := range log.Events() {
				if e.Phase == devtest.Begin && e.Op == devtest.OpRead {
					for s := e.Off / 512; s < (e.Off+e.N)/512; s++ {
						read[s]++
					}
				}
			}
			limit := 1
			if len(snaps) > maxPlaces {
				limit = 2 // a copy has eight destinations at most
			}
			for s, n := range read {
				if n > limit {
					t.Fatalf("sector %d was read %d times", s, n)
				}
			}
			for _, s := range snaps {
				s.want(1, 0, 2048)
				s.close()
			}
			org.want(2, 66, count)
			org.close()
		})
	}
}

// TestLimit: a request waits while too many chunks are in the making, and can
// give up.
func TestLimit(t *testing.T) { synctest.Test(t, testLimit) }

func testLimit(t *testing.T) {
	const sectors = 16384
	l := newLab(t, Options{})
	l.mem("o", sectors)
	l.mem("c", 3*sectors)
	f := l.fault("c")
	snap, org := l.live("0 16384 snapshot o c P 1"), l.live("0 16384 snapshot-origin o")
	f.SetText("flush hang")
	var writes []<-chan error
	for _, at := range []blockdev.Sector{0, 1000, 4096} {
		writes = append(writes, async(func() error { return org.write(2, at, 1000) }))
	}
	synctest.Wait()
	if n := snap.snap().Usage().Pending; n != 3000 {
		t.Fatalf("%d chunks are pending", n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	late := async(func() error { return org.Write(ctx, make([]byte, 512), 9000*512, false) })
	own := async(func() error { return snap.Write(ctx, make([]byte, 512), 9100*512, false) })
	synctest.Wait() // both wait for room
	cancel()
	for _, ch := range []<-chan error{late, own} {
		if err := result(t, ch); blockdev.Kind(err) != blockdev.ErrInterrupted {
			t.Errorf("a wait that was given up: %v", err)
		}
	}
	wait := async(func() error { return org.write(3, 9000, 1) })
	f.SetText("")
	f.Release()
	for _, ch := range append(writes, wait) {
		if err := result(t, ch); err != nil {
			t.Error(err)
		}
	}
	snap.want(0, 0, sectors)
	org.want(3, 9000, 1)
	snap.close()
	org.close()
}

// TestClose_WaitsForCopies: a snapshot that is removed while an origin write
// copies for it ends in order.
func TestClose_WaitsForCopies(t *testing.T) { synctest.Test(t, testClose_WaitsForCopies) }

func testClose_WaitsForCopies(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 400)
	f := l.fault("c")
	snap, org := l.live("0 64 snapshot o c P 8"), l.live("0 64 snapshot-origin o")
	f.SetText("fua hang")
	w := async(func() error { return org.write(2, 8, 8) })
	awaitHanging(t, f, 1)
	closed := async(snap.Close)
	synctest.Wait()
	if len(closed) > 0 {
		t.Error("closed while a copy is in the making")
	}
	f.SetText("")
	f.Release()
	if err := errors.Join(result(t, w), result(t, closed)); err != nil {
		t.Fatal(err)
	}
	snap = l.live("0 64 snapshot o c P 8")
	snap.want(1, 0, 64)
	snap.close()
	org.close()
}

// TestResume_WaitsForOriginWrites: a snapshot becomes active between origin
// writes, never in one.
func TestResume_WaitsForOriginWrites(t *testing.T) { synctest.Test(t, testResume_WaitsForOriginWrites) }

func testResume_WaitsForOriginWrites(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 400)
	f := l.fault("o")
	org := l.live("0 64 snapshot-origin o")
	snap, err := l.load("0 64 snapshot o c P 8")
	if err != nil {
		t.Fatal(err)
	}
	f.SetText("write count=1 hang")
	w := async(func() error { return org.write(2, 8, 8) })
	awaitHanging(t, f, 1)
	resumed := async(snap.resume)
	synctest.Wait() // the gate is shut
	ctx, cancel := context.WithCancel(context.Background())
	held := async(func() error { return org.Write(ctx, make([]byte, 512), 0, false) })
	cancel()
	if err := result(t, held); blockdev.Kind(err) != blockdev.ErrInterrupted {
		t.Errorf("a write at the gate that was given up: %v", err)
	}
	late := async(func() error { return org.write(3, 16, 8) })
	synctest.Wait()
	if len(resumed) > 0 || len(late) > 0 {
		t.Error("resumed while an origin write runs")
	}
	f.Release()
	for _, ch := range []<-chan error{w, resumed, late} {
		if err := result(t, ch); err != nil {
			t.Error(err)
		}
	}
	snap.want(2, 8, 8) // written before
	snap.want(1, 16, 8)
	snap.close()
	org.close()
}

// TestInterruptedCopy: a copy that is broken off, as its device stopped
// waiting, fails the origin write and nothing else; whoever waited for it makes
// the copy himself.
func TestInterruptedCopy(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	cow := &interruptible{Mem: l.mem("c", 400), hang: make(chan struct{}), hangs: make(chan struct{})}
	l.devs["c"] = cow
	snap, org := l.live("0 64 snapshot o c P 8"), l.live("0 64 snapshot-origin o")
	cow.mu.Lock()
	cow.armed = true
	cow.mu.Unlock()
	first := async(func() error { return org.write(2, 8, 8) })
	select {
	case <-cow.hangs:
	case <-soon(t).Done():
		t.Fatal("nothing hangs")
	}
	second := async(func() error { return org.write(3, 9, 2) })
	third := async(func() error { return snap.write(4, 12, 1) })
	close(cow.hang)
	if err := result(t, first); blockdev.Kind(err) != blockdev.ErrInterrupted {
		t.Errorf("the write whose copy was broken off: %v", err)
	}
	if err := errors.Join(result(t, second), result(t, third)); err != nil {
		t.Fatal(err)
	}
	if got := snap.Status(0); got == "Invalid" || snap.events != 0 {
		t.Errorf("status %s, %d events", got, snap.events)
	}
	snap.want(1, 0, 12)
	snap.want(4, 12, 1)
	snap.want(1, 13, 51)
	org.want(1, 8, 1)
	org.want(3, 9, 2)
	if rep, err := CheckStore(cow, 64); err != nil || rep.Damaged() || rep.Exceptions != 1 {
		t.Errorf("check: %+v %v", rep, err)
	}
	snap.close()
	org.close()
}

// interruptible lets one write hang and then fail as interrupted.
type interruptible struct {
	*blockdev.Mem
	mu    sync.Mutex
	armed bool
	hang  chan struct{}
	hangs chan struct{}
}

func (d *interruptible) Name() string { return "c" }

func (d *interruptible) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	armed := d.armed
	d.armed = false
	d.mu.Unlock()
	if armed {
		close(d.hangs)
		<-d.hang
		return 0, fmt.Errorf("%w: the table is going away", blockdev.ErrInterrupted)
	}
	return d.Mem.WriteAt(p, off)
}

// TestGate is the gate by itself, in a bubble: who hangs would be noticed.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gate
		if err := g.enter(context.Background()); err != nil {
			t.Fatal(err)
		}
		shut := make(chan struct{})
		go func() { g.close(); g.close(); close(shut) }()
		synctest.Wait()
		select {
		case <-shut:
			t.Fatal("shut with somebody inside")
		default:
		}
		entered := make(chan error, 1)
		go func() { entered <- g.enter(context.Background()) }()
		synctest.Wait()
		g.leave()
		<-shut
		g.reopen()
		synctest.Wait()
		if len(entered) != 0 {
			t.Fatal("open, though shut twice")
		}
		g.reopen()
		if err := <-entered; err != nil {
			t.Fatal(err)
		}
		g.leave()
	})
}

// TestOriginWrite_OneCopy: writers of one chunk share one copy.
func TestOriginWrite_OneCopy(t *testing.T) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 64), 1)
	l.mem("c", 400)
	f := l.fault("c")
	snap, org := l.live("0 64 snapshot o c P 16"), l.live("0 64 snapshot-origin o")
	f.Set(devtest.Rule{Ops: devtest.OpWrite, Hang: true}, devtest.Rule{Ops: devtest.OpAll})
	var writes []<-chan error
	for i := range blockdev.Sector(10) {
		writes = append(writes, async(func() error { return org.write(2, 16+i, 1) }))
		writes = append(writes, async(func() error { return snap.write(3, 16+i, 1) }))
	}
	awaitHanging(t, f, 1)
	f.Set(devtest.Rule{Ops: devtest.OpFUA}, devtest.Rule{Ops: devtest.OpWrite, Range: blockdev.Range{Start: 32, Count: 16}})
	f.Release()
	for _, ch := range writes {
		if err := result(t, ch); err != nil {
			t.Fatal(err)
		}
	}
	// The copy itself was counted before; all later writes are the snapshot's.
	if n := snap.snap().Usage().Exceptions; n != 1 || f.Seen(0) != 1 {
		t.Errorf("%d exceptions, %d commits", n, f.Seen(0))
	}
	org.want(2, 16, 10)
	org.want(1, 26, 6)
	snap.want(3, 16, 10)
	snap.want(1, 26, 6)
	snap.close()
	org.close()
}
