package mirror

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// TestLog_GroupCommit: writes that come while the log is being written share the
// next write of it.
func TestLog_GroupCommit(t *testing.T) {
	const writers = 20
	l := newLab(t, Options{ClearDelay: time.Hour})
	l.mem("a", 64)
	l.mem("b", 64)
	l.mem("log", 4)
	f := l.fault("log")
	tb := l.live("0 64 mirror disk 3 log 2 nosync 2 a 0 b 0")
	f.SetText("fua count=1 hang")
	first := start(func() error { return tb.write(50, 0, 1) })
	hanging(t, f, 1)
	f.SetText("fua after=1000")
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			if err := tb.write(60, blockdev.Sector(2+2*w), 1); err != nil {
				t.Error(err)
			}
		})
	}
	until(t, "all writers wait for the log", func() bool {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		return len(tb.regions) == writers+1
	})
	if fmt.Sprint(content(t, l.devs["b"])[:512]) != fmt.Sprint(make([]byte, 512)) {
		t.Error("a leg was written before the log")
	}
	f.Release()
	if err := result(t, first); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if n := f.Seen(0); n > 2 {
		t.Errorf("%d writes of the log for %d writers who came together", n, writers)
	}
	tb.close()
}

// TestLog_BusyRegion: a region that is written again and again costs one write
// of the log, and one more when it was idle for a while.
func TestLog_BusyRegion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Options{})
		l.mem("a", 64)
		l.mem("b", 64)
		l.mem("log", 4)
		f := l.fault("log")
		tb := l.live("0 64 mirror disk 3 log 2 nosync 2 a 0 b 0")
		f.SetText("write,fua after=1000")
		for range 10 {
			if err := tb.write(50, 0, 1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(defaultClearDelay / 2)
		}
		if n := f.Seen(0); n != 1 {
			t.Errorf("%d writes of the log for a busy region", n)
		}
		time.Sleep(2 * defaultClearDelay)
		synctest.Wait()
		if n := f.Seen(0); n != 2 {
			t.Errorf("%d writes of the log after it was idle", n)
		}
		tb.close()
	})
}

// blocky has a logical block size.
type blocky struct {
	target.Lower
	size int
}

func (b blocky) BlockSize() int { return b.size }

// TestLog_Sizes: what a log device must have at least.
func TestLog_Sizes(t *testing.T) {
	for _, c := range []struct {
		regions uint64
		block   int
		want    int64
	}{
		{1, 512, 1536}, {64, 512, 1536}, {65, 512, 1536}, {4096, 512, 1536}, {4097, 512, 2048},
		{1000, 512, 1536}, {1, 4096, 4096}, {24576, 4096, 4096}, {24577, 4096, 8192}, {2 << 20, 512, 1024 + 256<<10},
	} {
		if got := LogSize(c.regions, c.block); got != c.want {
			t.Errorf("%d regions, blocks of %d: %d bytes, want %d", c.regions, c.block, got, c.want)
		}
	}
	l := newLab(t, Options{})
	l.mem("a", 64)
	l.mem("b", 64)
	m := l.mem("log", 7)
	l.devs["log"] = blocky{l.devs["log"], 4096}
	if _, err := l.load("0 64 mirror disk 2 log 2 2 a 0 b 0"); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("7 sectors for a log in blocks of 4096: %v", err)
	}
	if err := m.Resize(4096); err != nil {
		t.Fatal(err)
	}
	tb := l.live("0 64 mirror disk 2 log 2 2 a 0 b 0")
	tb.settled()
	tb.close()
}

// TestLog_Numbers: logs of 1, 63, 64 and 65 regions, the last one short, end
// with these bits set and none behind.
func TestLog_Numbers(t *testing.T) {
	for _, n := range []uint64{1, 2, 63, 64, 65, 128, 129} {
		l := newLab(t, Options{})
		size := blockdev.Sector(n*8 - 3)
		if n == 1 {
			size = 8
		}
		fill(t, l.mem("a", size), 1)
		fill(t, l.mem("b", size), 2)
		fill(t, l.mem("log", 8), 5)
		tb := l.live(fmt.Sprintf("0 %d mirror disk 2 log 8 2 a 0 b 0", size))
		tb.settled()
		tb.close()
		r, err := CheckLog(l.devs["log"], n)
		if err != nil || len(r.Problems) > 0 || r.Clean != n {
			t.Errorf("%d regions: %+v %v", n, r, err)
		}
		if string(content(t, l.devs["a"])) != string(content(t, l.devs["b"])) {
			t.Errorf("%d regions: the legs differ", n)
		}
	}
}

// TestLog_VersionOne: a log of version 1 is used and becomes one of version 2.
func TestLog_VersionOne(t *testing.T) {
	l := newLab(t, Options{ClearDelay: time.Hour})
	fill(t, l.mem("a", 64), 1)
	fill(t, l.mem("b", 64), 2)
	p := make([]byte, 2048)
	Header{logMagic, 1, 8}.encode(p)
	p[offBits] = 0b11110000
	put(t, l.mem("log", 4), p, 0)
	l.devs["b"] = devtest.NewFaultText(l.devs["b"], "write 32+32 errno=EIO") // must not be copied
	tb := l.live("0 64 mirror disk 2 log 8 2 a 0 b 0 1 handle_errors")
	tb.settled()
	if s := tb.Status(target.StatusInfo); s != "2 a b 8/8 1 AA 3 disk log A" {
		t.Error(s)
	}
	tb.close()
	if h, err := ReadHeader(l.devs["log"]); err != nil || h != (Header{logMagic, 2, 8}) {
		t.Errorf("%+v %v", h, err)
	}
}

// TestLog_Unreadable: without its log the mirror starts, with nothing in sync and
// one event.
func TestLog_Unreadable(t *testing.T) {
	l := newLab(t, Options{Policies: Policies{Retry: -1}})
	fill(t, l.mem("a", 64), 1)
	fill(t, l.mem("b", 64), 2)
	p := make([]byte, 2048)
	Header{logMagic, 2, 8}.encode(p)
	p[offBits] = 0xff
	put(t, l.mem("log", 4), p, 0)
	l.fault("log").SetText("read errno=EIO")
	tb := l.live("0 64 mirror disk 2 log 8 2 a 0 b 0")
	tb.settled()
	if s := tb.Status(target.StatusInfo); s != "2 a b 8/8 1 AA 3 disk log D" || tb.events.Load() != 2 {
		t.Errorf("%q, %d events", s, tb.events.Load())
	}
	tb.close()
	if string(content(t, l.devs["a"])) != string(content(t, l.devs["b"])) {
		t.Error("the legs differ: bits were believed that could not be read")
	}
}

// TestClear_FlushFails: when a flush before clearing fails, no bit is ever clear
// again, and what was written is out of sync.
func TestClear_FlushFails(t *testing.T) {
	tb, faults := failureLab(t, "disk 2 log 8", " 1 handle_errors", Policies{})
	if err := doWrite(tb, 3); err != nil {
		t.Fatal(err)
	}
	faults["b"].SetText("flush count=1 errno=EIO")
	for tb.clearStep(time.Now(), true) >= 0 {
	}
	if s := tb.short(); s != "15 AF A" {
		t.Errorf("status %q", s)
	}
	if n := tb.events.Load(); n != 1 {
		t.Errorf("%d events", n)
	}
	r, err := CheckLog(tb.l.devs["log"], failRegions)
	if err != nil || r.Clean != 0 {
		t.Errorf("%d regions are clean on the disk, %v", r.Clean, err)
	}
	tb.suspend(false)
	tb.resume()
	tb.settled()
	tb.close()
	if r, _ := CheckLog(tb.l.devs["log"], failRegions); r.Clean != 0 {
		t.Errorf("%d regions are clean on the disk after a resume", r.Clean)
	}
	if string(content(t, tb.l.devs["a"])) != string(content(t, tb.l.devs["b"])) {
		t.Error("the legs differ")
	}
}
