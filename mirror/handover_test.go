package mirror

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

const swapSectors = 8192 // 64 regions of 128

// swapLab has four legs and a log, which are files or not.
func swapLab(t *testing.T, files bool) (*lab, map[string]*devtest.Fault) {
	l := newLab(t, Options{CopyPages: 2048, group: newGroup()})
	faults := map[string]*devtest.Fault{}
	pool := blockdev.NewPool(blockdev.PoolOptions{})
	dir := t.TempDir()
	for i, d := range []string{"a", "b", "c", "d", "log"} {
		if files {
			path := filepath.Join(dir, d)
			if err := os.WriteFile(path, make([]byte, swapSectors*512), 0o600); err != nil {
				t.Fatal(err)
			}
			h, err := pool.Open(path, true)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { h.Close() })
			l.devs[d] = h
		} else {
			l.mem(d, swapSectors)
		}
		if d != "log" {
			fill(t, l.devs[d], uint64(i+1))
		}
		faults[d] = l.fault(d)
	}
	return l, faults
}

func swapLine(log string, legs ...string) string {
	line := fmt.Sprintf("0 %d mirror %s 128 %d", swapSectors, log, len(legs))
	for _, d := range legs {
		line += " " + d + " 0"
	}
	return line + " 1 leg_record"
}

// swap replaces a table, as the mapper does.
func (tb *table) swap(line string, noflush bool) *table {
	tb.l.t.Helper()
	next, err := tb.l.load(line)
	if err != nil {
		tb.l.t.Fatalf("load %q: %v", line, err)
	}
	tb.suspend(noflush)
	tb.live.Store(false)
	next.resume()
	if err := tb.Close(); err != nil {
		tb.l.t.Error(err)
	}
	return next
}

// count has the devices count what is written to them.
func count(faults map[string]*devtest.Fault) {
	for _, f := range faults {
		f.SetText("write,fua,zero")
	}
}

// written are the devices that were written since.
func written(faults map[string]*devtest.Fault) string {
	var s string
	for _, d := range []string{"a", "b", "c", "d"} {
		if faults[d].Seen(0) > 0 {
			s += d
		}
	}
	return s
}

func (tb *table) regionsInSync() int { return int(tb.dirty.count.Load()) }

// TestHandover: a change of the table copies to the legs that are new, and to no
// others, with a log in memory as with one on a device.
func TestHandover(t *testing.T) {
	for _, c := range []struct {
		name    string
		before  string
		prepare []string // messages
		after   string
		written string // the legs that are written
		at      int    // regions in sync just after it
	}{
		{"the same again, core", swapLine("core 1", "a", "b"), nil, swapLine("core 1", "a", "b"), "", 64},
		{"the same again, disk", swapLine("disk 2 log", "a", "b"), nil, swapLine("disk 2 log", "a", "b"), "", 64},
		{"other order, core", swapLine("core 1", "a", "b"), nil, swapLine("core 1", "b", "a"), "", 64},
		{"add, core", swapLine("core 1", "a", "b"), nil, swapLine("core 1", "a", "b", "c"), "c", 0},
		{"add, disk", swapLine("disk 2 log", "a", "b"), nil, swapLine("disk 2 log", "a", "b", "c"), "c", 0},
		{"add first, core", swapLine("core 1", "a", "b"), nil, swapLine("core 1", "c", "a", "b"), "c", 0},
		{"add two, core", swapLine("core 1", "a", "b"), nil, swapLine("core 1", "a", "b", "c", "d"), "cd", 0},
		{"remove, core", swapLine("core 1", "a", "b", "c"), []string{"drop b"}, swapLine("core 1", "a", "c"), "", 64},
		{"remove the first, core", swapLine("core 1", "a", "b", "c"), []string{"drop a"}, swapLine("core 1", "b", "c"), "", 64},
		{"remove, disk", swapLine("disk 2 log", "a", "b", "c"), []string{"drop b"}, swapLine("disk 2 log", "a", "c"), "", 64},
		{"replace, core", swapLine("core 1", "a", "b", "c"), []string{"drop b"}, swapLine("core 1", "a", "d", "c"), "d", 0},
		{"replace, disk", swapLine("disk 2 log", "a", "b", "c"), []string{"drop b"}, swapLine("disk 2 log", "a", "d", "c"), "d", 0},
		{"core to disk", swapLine("core 1", "a", "b"), nil, swapLine("disk 2 log", "a", "b"), "", 64},
		{"disk to core", swapLine("disk 2 log", "a", "b"), nil, swapLine("core 1", "a", "b"), "", 64},
		{"plain, core", strings.TrimSuffix(swapLine("core 1", "a", "b"), " 1 leg_record"), nil, strings.TrimSuffix(swapLine("core 1", "a", "b"), " 1 leg_record"), "b", 0},
	} {
		for _, files := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, files %v", c.name, files), func(t *testing.T) {
				l, faults := swapLab(t, files)
				tb := l.live(c.before)
				tb.inSyncSoon()
				for _, m := range c.prepare {
					tb.message(m)
				}
				tb.inSyncSoon()
				if err := tb.write(50, 100, 30); err != nil {
					t.Fatal(err)
				}
				count(faults)
				fresh := strings.Trim(c.written, "")
				for _, d := range fresh {
					faults[string(d)].SetText("write,fua,zero hang")
				}
				tb = tb.swap(c.after, files)
				if n := tb.regionsInSync(); n != c.at {
					t.Errorf("%d regions are in sync, expected %d", n, c.at)
				}
				if err := tb.check(50, 100, 30); err != nil {
					t.Error(err)
				}
				got := written(faults)
				for _, d := range fresh {
					faults[string(d)].SetText("write,fua,zero")
					faults[string(d)].Release()
				}
				tb.inSyncSoon()
				if got += written(faults); strings.Trim(got, fresh) != "" || fresh != "" && got == "" {
					t.Errorf("written were the legs %q, expected %q", got, fresh)
				}
				legs := strings.Fields(c.after)
				tb.close()
				want := content(t, l.devs["a"])
				if strings.Contains(c.name, "remove the first") {
					want = content(t, l.devs["b"])
				}
				for i, w := range legs {
					if l.devs[w] == nil || w == "log" || legs[i+1] != "0" {
						continue
					}
					if got := content(t, l.devs[w]); !bytes.Equal(got, want) {
						t.Errorf("leg %s: %s", w, firstDifference(got, want))
					}
				}
				if strings.Contains(c.name, "to disk") {
					b := make([]byte, 8)
					if _, err := l.devs["log"].ReadAt(b, offBits); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{0xff}, 8)) {
						t.Errorf("the bits of the new log are %x, %v", b, err)
					}
				}
			})
		}
	}
}

// inSyncSoon waits until all is in sync and no leg is being filled.
func (tb *table) inSyncSoon() {
	tb.l.t.Helper()
	until(tb.l.t, "all is in sync", func() bool {
		tb.mu.Lock()
		defer tb.mu.Unlock()
		return tb.inSync && tb.dirty.complete() && !tb.filling() && tb.rec.active == 0
	})
}

// TestHandover_OtherShape: nothing is taken over where regions are not the same.
func TestHandover_OtherShape(t *testing.T) {
	l, faults := swapLab(t, false)
	tb := l.live(swapLine("core 1", "a", "b"))
	tb.inSyncSoon()
	faults["b"].SetText("write,zero hang")
	tb = tb.swap(strings.Replace(swapLine("core 1", "a", "b"), " 128 ", " 256 ", 1), false)
	if n := tb.regionsInSync(); n != 0 {
		t.Errorf("%d regions are in sync", n)
	}
	faults["b"].Set()
	faults["b"].Release()
	tb.inSyncSoon()
	tb.close()
}

// TestHandover_Active: a mirror that is not suspended hands nothing over.
func TestHandover_Active(t *testing.T) {
	l, faults := swapLab(t, false)
	tb := l.live(swapLine("core 1", "a", "b"))
	tb.inSyncSoon()
	faults["b"].SetText("write,zero hang")
	other := l.live(swapLine("core 1", "a", "b"))
	if n := other.regionsInSync(); n != 0 {
		t.Errorf("%d regions are in sync", n)
	}
	faults["b"].Set()
	faults["b"].Release()
	other.inSyncSoon()
	other.close()
	tb.close()
	if n := len(l.o.group.live); n != 0 {
		t.Errorf("%d mirrors are remembered after their end", n)
	}
}

// TestHandover_HalfWay: what a swap interrupts goes on where it was.
func TestHandover_HalfWay(t *testing.T) {
	for _, log := range []string{"core 1", "disk 2 log"} {
		l, faults := swapLab(t, true)
		faults["b"].SetText("write,zero 4096+4096 hang")
		tb := l.live(swapLine(log, "a", "b"))
		until(t, "the first half is copied", func() bool {
			return tb.regionsInSync() == 32
		})
		before := make(chan int, 1)
		next, err := l.load(swapLine(log, "a", "b"))
		if err != nil {
			t.Fatal(err)
		}
		suspended := start(func() error {
			tb.suspend(true)
			before <- tb.regionsInSync()
			return nil
		})
		until(t, "the suspend waits", func() bool { tb.mu.Lock(); defer tb.mu.Unlock(); return tb.suspended })
		faults["b"].Set()
		faults["b"].Release()
		if err := result(t, suspended); err != nil {
			t.Fatal(err)
		}
		tb.live.Store(false)
		faults["b"].SetText("write,zero 0+4096 errno=EIO") // what has been copied
		next.resume()
		if n, m := next.regionsInSync(), <-before; n < m {
			t.Errorf("%s: %d regions are in sync, %d were", log, n, m)
		}
		if err := tb.Close(); err != nil {
			t.Error(err)
		}
		next.inSyncSoon()
		next.close()
		if !bytes.Equal(content(t, l.devs["a"]), content(t, l.devs["b"])) {
			t.Errorf("%s: the legs differ", log)
		}
	}
}

// TestHandover_UnderLoad: legs come and go while four writers write; no request is
// lost, and all legs are equal in the end.
func TestHandover_UnderLoad(t *testing.T) {
	for _, log := range []string{"core 1", "disk 2 log"} {
		l, _ := swapLab(t, true)
		var now atomic.Pointer[table]
		now.Store(l.live(swapLine(log, "a", "b")))
		now.Load().inSyncSoon()
		gate := &sync.RWMutex{}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					s, seed := blockdev.Sector(w*2048+i*7%2040), uint64(100+w*100000+i)
					err := within(gate, func() error { return now.Load().write(seed, s, 5) })
					if err == nil {
						err = within(gate, func() error { return now.Load().check(seed, s, 5) })
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for i, step := range []struct {
			message string
			legs    string
		}{{"", "a b c"}, {"drop a", "b c"}, {"", "b c d"}, {"drop c", "a b d"}, {"", "d b a"}, {"drop d", "b a"}} {
			tb := now.Load()
			if step.message != "" {
				tb.message(step.message)
			}
			next, err := l.load(swapLine(log, strings.Fields(step.legs)...))
			if err != nil {
				t.Fatal(err)
			}
			tb.Presuspend(i%2 == 0)
			gate.Lock()
			tb.Postsuspend()
			tb.live.Store(false)
			next.resume()
			now.Store(next)
			gate.Unlock()
			if err := tb.Close(); err != nil {
				t.Error(err)
			}
			next.inSyncSoon()
			if s := next.Status(target.StatusInfo); !strings.Contains(s, " 64/64 ") {
				t.Errorf("status %q", s)
			}
		}
		close(stop)
		wg.Wait()
		now.Load().close()
		if a, b := content(t, l.devs["a"]), content(t, l.devs["b"]); !bytes.Equal(a, b) {
			t.Errorf("%s: %s", log, firstDifference(a, b))
		}
	}
}
