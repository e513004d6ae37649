package clone

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

func mustFail(t *testing.T, what string, err error) {
	t.Helper()
	if blockdev.Kind(err) == nil {
		t.Errorf("%s succeeds", what)
	}
}

// A commit that fails makes the metadata read-only: nothing is hydrated any more,
// what is can be used, and a suspend tries again.
func TestFailure_MetadataCannotBeWritten(t *testing.T) {
	ctx := context.Background()
	l := newLab(t, 4*labRegion)
	c := l.start("1 no_hydration")
	l.write(c, 0, 8, 'a')
	l.fault("m").SetText("write,fua errno=ENOSPC")
	mustFail(t, "a flush", c.Flush(ctx))
	mustFail(t, "the next flush", c.Flush(ctx))
	if info := c.Status(target.StatusInfo); !strings.HasSuffix(info, " ro") || l.events.Load() != 1 {
		t.Errorf("status %q, %d events", info, l.events.Load())
	}
	if j := c.Jobs(); len(j) != 1 || j[0].State != target.JobFailed || !strings.Contains(j[0].Detail, "no space") {
		t.Errorf("jobs %+v", j)
	}
	l.write(c, 1, 2, 'b')
	mustFail(t, "a write to a region on the source", c.Write(ctx, fill('x', 512), 8*512, false))
	mustFail(t, "a write of a region on the source", c.Write(ctx, fill('x', 4096), 8*512, false))
	l.discard(c, 16, 8)
	if got := content(t, c); got != "(abbaaaaa)sss" {
		t.Errorf("content %q", got)
	}
	suspend(c)
	if info := c.Status(target.StatusInfo); !strings.HasSuffix(info, " ro") {
		t.Errorf("status after a suspend that failed, too: %q", info)
	}
	l.resume(c)
	l.fault("m").Set()
	suspend(c)
	l.resume(c)
	if info := c.Status(target.StatusInfo); !strings.HasSuffix(info, " rw") {
		t.Errorf("status after the suspend: %q", info)
	}
	l.stop(c)
	c = l.start("1 no_hydration")
	if got := content(t, c); got != "(abbaaaaa)sss" {
		t.Errorf("content afterwards: %q", got)
	}
	l.stop(c)
}

// A destination that failed a flush may have lost data: its bits are never
// written.
func TestFailure_DestinationCannotBeFlushed(t *testing.T) {
	l := newLab(t, 2*labRegion)
	c := l.start("1 no_hydration")
	l.write(c, 0, 8, 'a')
	l.fault("d").SetText("flush count=1 errno=EIO")
	mustFail(t, "a flush", c.Flush(context.Background()))
	suspend(c)
	l.resume(c)
	mustFail(t, "a flush after a suspend", c.Flush(context.Background()))
	if info := c.Status(target.StatusInfo); !strings.HasSuffix(info, " ro") {
		t.Errorf("status %q", info)
	}
	l.stop(c)
	c = l.start("1 no_hydration")
	if got := hydrated(c); got != "--" {
		t.Errorf("hydrated %s", got)
	}
	l.stop(c)
}

// Metadata that cannot even be read back fails everything.
func TestFailure_MetadataIsGone(t *testing.T) {
	ctx := context.Background()
	l := newLab(t, 2*labRegion)
	c := l.start("1 no_hydration")
	l.write(c, 0, 8, 'a')
	l.fault("m").SetText("any errno=EIO")
	mustFail(t, "a flush", c.Flush(ctx))
	if info := c.Status(target.StatusInfo); info != "Fail" {
		t.Errorf("status %q", info)
	}
	mustFail(t, "a read", c.Read(ctx, make([]byte, 512), 0))
	mustFail(t, "a write", c.Write(ctx, make([]byte, 512), 0, false))
	mustFail(t, "a discard", c.Discard(ctx, 0, 4096))
	mustFail(t, "zeros", c.Zero(ctx, 0, 4096, false))
	l.stop(c)
}

// Without a flush there is a commit once a second.
func TestCommit_OnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 40*labRegion)
		c := l.start("1 no_hydration")
		l.fault("m").SetText("flush delay=1ns") // counts
		for i := range blockdev.Sector(30) {
			l.write(c, i*8, 8, 'w')
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := l.fault("m").Hits(0); n < 3 || n > 5 {
			t.Errorf("%d commits in 5 s with writes in 3 of them", n)
		}
		if c.pending() {
			t.Error("there are bits left")
		}
		l.stop(c)
	})
}

// A flush that is given up leaves its bits to the next commit, which comes by itself.
func TestCommit_AfterAFlushThatIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 4*labRegion)
		c := l.start("1 no_hydration")
		l.write(c, 0, 8, 'w')
		// It lasts until the loop has looked.
		l.fault("d").SetText(fmt.Sprintf("flush count=1 delay=%v errno=EINTR", 2*commitInterval))
		if err := c.Flush(context.Background()); blockdev.Kind(err) != blockdev.ErrInterrupted {
			t.Errorf("the flush: %v", err)
		}
		time.Sleep(2 * commitInterval)
		synctest.Wait()
		if c.pending() {
			t.Error("there are bits left")
		}
		l.stop(c)
	})
}

func TestMetadata_IsLookedAt(t *testing.T) {
	super := func(at int, v uint64) func([]byte) {
		return func(b []byte) {
			binary.LittleEndian.PutUint64(b[at:], v)
			binary.LittleEndian.PutUint32(b[508:], checksum(b[:512]))
		}
	}
	for name, x := range map[string]struct {
		change func([]byte)
		want   string
	}{
		"other data":  {func(b []byte) { copy(b, "hello") }, "it holds other data"},
		"kernel":      {func(b []byte) { clear(b[:512]); binary.LittleEndian.PutUint64(b[32:], 0x8af27f64) }, "the kernel's clone target"},
		"bit flip":    {func(b []byte) { b[100] ^= 1 }, "super sector is damaged"},
		"version":     {super(8, 2), "version 2"},
		"region":      {super(16, 16), "regions have 16 sectors, the table says 8"},
		"length":      {super(24, 99), "for a segment of 99 sectors"},
		"bits":        {func(b []byte) { b[4096] ^= 4 }, "regions 0 to 3) is damaged"},
		"bits zeroed": {func(b []byte) { clear(b[4096:4608]) }, "is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 4*labRegion)
			l.stop(l.start(""))
			b := make([]byte, 8*4096)
			if _, err := l.disks["m"].ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			x.change(b)
			if _, err := l.disks["m"].WriteAt(b, 0); err != nil {
				t.Fatal(err)
			}
			_, err := l.load("")
			if !errors.Is(err, blockdev.ErrInvalid) || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%v, want something with %q", err, x.want)
			}
		})
	}
	l := newLab(t, 4*labRegion)
	l.disks["m"] = named{blockdev.NewMem(4096 + 512), "m"}
	if _, err := l.load(""); !errors.Is(err, blockdev.ErrInvalid) || !strings.Contains(err.Error(), "8192 are needed") {
		t.Errorf("a short device: %v", err)
	}
	l = newLab(t, 4*labRegion)
	l.env.ReadOnly = true
	if _, err := l.load(""); !errors.Is(err, blockdev.ErrInvalid) || !strings.Contains(err.Error(), "blank") {
		t.Errorf("a blank device, read-only: %v", err)
	}
	l.env.ReadOnly = false
	c := l.start("1 no_hydration")
	l.write(c, 8, 8, 'w')
	l.stop(c)
	l.env.ReadOnly = true
	c = l.start("")
	if got := content(t, c); got != "swss" || len(c.Jobs()) != 0 {
		t.Errorf("read-only: %q", got)
	}
	mustFail(t, "a write to a region on the source", c.Write(context.Background(), fill('x', 512), 0, false))
	l.stop(c)
}

// Many regions: the bits take several sectors, and come back.
func TestMetadata_ManySectorsOfBits(t *testing.T) {
	const regions = 3*bitsPerSector + 5
	l := newLab(t, 8)
	for _, name := range []string{"m", "d", "s"} {
		l.disks[name] = named{blockdev.NewMem(blockdev.Sector(regions * labRegion).Bytes()), name}
	}
	l.length = regions * labRegion
	c := l.start("1 no_hydration")
	want := map[uint64]bool{}
	for _, r := range []uint64{0, 63, 64, bitsPerSector - 1, bitsPerSector, 2*bitsPerSector + 7, regions - 1} {
		l.write(c, blockdev.Sector(r*labRegion), labRegion, 'w')
		want[r] = true
	}
	l.discard(c, blockdev.Sector(bitsPerSector-10)*labRegion, 100*labRegion)
	for r := uint64(bitsPerSector - 10); r < bitsPerSector+90; r++ {
		want[r] = true
	}
	l.stop(c)
	c = l.start("1 no_hydration")
	for r := range uint64(regions) {
		if c.bits.get(r) != want[r] {
			t.Fatalf("region %d: hydrated %v", r, c.bits.get(r))
		}
	}
	if n := c.bits.set.Load(); n != uint64(len(want)) {
		t.Errorf("%d are counted, want %d", n, len(want))
	}
	l.stop(c)
}

// A table that is loaded while an older one works knows at its resume what that
// one did until then.
func TestReload_ReadsTheBitsAtTheResume(t *testing.T) {
	l := newLab(t, 3*labRegion)
	old := l.start("1 no_hydration")
	l.write(old, 0, 8, 'a')
	next, err := l.load("2 no_hydration no_discard_passdown")
	if err != nil {
		t.Fatal(err)
	}
	l.write(old, 8, 8, 'b')
	suspend(old)
	l.resume(next)
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	if got := content(t, next); got != "abs" {
		t.Errorf("content %q", got)
	}
	l.stop(next)
}
