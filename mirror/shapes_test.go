package mirror

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
)

// bare is a device that can only be read and written, as a block device without
// discard: it cannot be zeroed, and tells nothing of its holes. It notes where
// it was written.
type bare struct {
	target.Lower
	mu     sync.Mutex
	writes []int64
}

func (b *bare) WriteAt(p []byte, off int64) (int, error) {
	b.mu.Lock()
	b.writes = append(b.writes, off)
	b.mu.Unlock()
	return b.Lower.WriteAt(p, off)
}

// TestShapes: two and nine legs, each at another offset, with 1, 63, 64 and 65
// regions, the last one short: all is copied, the log has as many ones, writes
// over borders of regions arrive everywhere, and nothing outside of the mirror is
// touched.
func TestShapes(t *testing.T) {
	for _, legs := range []int{2, 3, 9} {
		for _, regions := range []int{1, 2, 63, 64, 65} {
			t.Run(fmt.Sprintf("%d legs, %d regions", legs, regions), func(t *testing.T) { testShape(t, legs, regions) })
		}
	}
}

func testShape(t *testing.T, legs, regions int) {
	size := blockdev.Sector(16)
	if regions > 1 {
		size = blockdev.Sector(regions-1)*16 + 5
	}
	l := newLab(t, Options{ClearDelay: time.Millisecond})
	put(t, l.mem("log", 8), bytes.Repeat([]byte{0xaa}, 2048), 2048)
	line := fmt.Sprintf("7 %d mirror disk 2 log 16 %d", size, legs)
	names := []string{}
	for i := range legs {
		d := string(rune('a' + i))
		fill(t, l.mem(d, size+blockdev.Sector(8*i)+9), uint64(i+1))
		if i%2 == 1 {
			l.devs[d] = &bare{Lower: l.devs[d]}
		}
		line += fmt.Sprintf(" %s %d", d, 8*i)
		names = append(names, d)
	}
	tb := l.live(line)
	tb.settled()
	if s := tb.Status(target.StatusInfo); s != fmt.Sprintf("%d %s %d/%d 1 %s 3 disk log A", legs, strings.Join(names, " "), regions, regions, strings.Repeat("A", legs)) {
		t.Errorf("status %q", s)
	}
	want := devtest.Pattern(1, 0, size)
	for i, w := range []struct{ start, count blockdev.Sector }{{0, size}, {15, min(size-15, 20)}, {size - 1, 1}, {3, 1}, {size / 2, size - size/2}} {
		p := devtest.Pattern(uint64(50+i), w.start, w.count)
		if err := tb.Write(context.Background(), p, (w.start + 7).Bytes(), i%2 == 0); err != nil {
			t.Fatal(err)
		}
		copy(want[w.start.Bytes():], p)
	}
	if err := tb.Zero(context.Background(), (size + 7 - 3).Bytes(), 3*512, true); err != nil {
		t.Fatal(err)
	}
	clear(want[(size - 3).Bytes():])
	got := make([]byte, size.Bytes())
	if err := tb.Read(context.Background(), got, 7*512); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, %s", err, firstDifference(got, want))
	}
	tb.cleared()
	tb.message("scrub start")
	if r := tb.scrubbed(); !r.Clean() || r.Done != size.Bytes() {
		t.Errorf("%+v", r)
	}
	tb.close()
	for i, d := range names {
		c := content(t, l.devs[d])
		off := blockdev.Sector(8 * i)
		if !bytes.Equal(c[off.Bytes():(off+size).Bytes()], want) {
			t.Errorf("leg %s: %s", d, firstDifference(c[off.Bytes():(off+size).Bytes()], want))
		}
		if !bytes.Equal(c[:off.Bytes()], devtest.Pattern(uint64(i+1), 0, off)) || !bytes.Equal(c[(off+size).Bytes():], devtest.Pattern(uint64(i+1), off+size, 9)) {
			t.Errorf("leg %s was written outside of the mirror", d)
		}
	}
	log := content(t, l.devs["log"])
	bits := make([]byte, 16)
	for r := range regions {
		bits[r/8] |= 1 << (r % 8)
	}
	if h := decodeHeader(log); h != (Header{logMagic, 2, uint64(regions)}) || !bytes.Equal(log[offBits:offBits+16], bits) || !bytes.Equal(log[2048:], bytes.Repeat([]byte{0xaa}, 2048)) {
		t.Errorf("log %+v, bits %x", h, log[offBits:offBits+16])
	}
}

// TestRecovery_HolesBare: holes of the source become zeros on a leg full of garbage
// that can only be written.
func TestRecovery_HolesBare(t *testing.T) {
	l := newLab(t, Options{})
	const size = 8192
	put(t, l.mem("a", size), devtest.Pattern(1, 4096, 8), 4096*512)
	fill(t, l.mem("b", size), 9)
	l.devs["b"] = &bare{Lower: l.devs["b"]}
	f := l.fault("a")
	f.SetText("read 0+4096 errno=EIO; read 4224+3968 errno=EIO")
	tb := l.live(fmt.Sprintf("0 %d mirror core 1 64 2 a 0 b 0 1 handle_errors", size))
	tb.settled()
	if s := tb.Status(target.StatusInfo); s != "2 a b 128/128 1 AA 1 core" {
		t.Errorf("status %q", s)
	}
	tb.close()
	f.Set()
	if got, want := content(t, l.devs["b"]), content(t, l.devs["a"]); !bytes.Equal(got, want) {
		t.Error(firstDifference(got, want))
	}
}

// TestRecovery_Sequential: copies are several at a time, and on the disk they go
// forward: writes begin no further back than what may be under way, but for a few.
func TestRecovery_Sequential(t *testing.T) {
	for _, region := range []int{64, 2048} {
		l := newLab(t, Options{CopyPages: defaultCopyPages})
		const size = 64 << 11
		fill(t, l.mem("a", size), 1)
		fill(t, l.mem("b", size), 2)
		b := &bare{Lower: l.devs["b"]}
		l.devs["b"] = b
		tb := l.live(fmt.Sprintf("0 %d mirror core 1 %d 2 a 0 b 0", size, region))
		tb.settled()
		tb.close()
		var furthest int64
		late := 0
		for _, off := range b.writes {
			if furthest-off > (defaultParallel+1)<<20 {
				late++ // its goroutine had to wait for a processor
			}
			furthest = max(furthest, off)
		}
		if late > len(b.writes)/10 {
			t.Errorf("regions of %d: %d of %d writes are far behind others", region, late, len(b.writes))
		}
		if len(b.writes) > 2*64*2 {
			t.Errorf("regions of %d: %d writes for 64 MiB", region, len(b.writes))
		}
	}
}

// TestWrite_AllAtOnce: a leg is written while another one takes its time.
func TestWrite_AllAtOnce(t *testing.T) {
	for _, line := range []string{"core 2 16 nosync 3 a 0 b 0 c 0", "core 2 16 nosync 3 a 0 b 0 c 0 1 leg_record"} {
		for _, slow := range []string{"a", "b", "c"} {
			l := newLab(t, Options{group: newGroup()})
			for _, d := range []string{"a", "b", "c"} {
				fill(t, l.mem(d, 64), 1)
			}
			mems := map[string]target.Lower{"a": l.devs["a"], "b": l.devs["b"], "c": l.devs["c"]}
			f := l.fault(slow)
			tb := l.live("0 64 mirror " + line)
			tb.inSyncSoon()
			f.SetText("write hang")
			done := start(func() error { return tb.write(50, 3, 1) })
			hanging(t, f, 1)
			for d, m := range mems {
				if d != slow {
					until(t, "leg "+d+" is written", func() bool {
						return bytes.Equal(content(t, m)[3*512:4*512], devtest.Pattern(50, 3, 1))
					})
				}
			}
			if len(done) > 0 {
				t.Error("answered before all legs have it")
			}
			f.Release()
			if err := result(t, done); err != nil {
				t.Error(err)
			}
			tb.close()
		}
	}
}

// TestWrite_OneByOne: many small writes on quick legs arrive on all of them, and a
// leg that becomes slow is noticed.
func TestWrite_OneByOne(t *testing.T) {
	l := newLab(t, Options{group: newGroup()})
	for _, d := range []string{"a", "b"} {
		l.mem(d, 4096)
	}
	tb := l.live("0 4096 mirror core 2 16 nosync 2 a 0 b 0")
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range blockdev.Sector(256) {
				if err := tb.write(uint64(w+10), blockdev.Sector(w)*256+i, 1); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	tb.writes.Store(crowd)
	for _, l := range tb.legs {
		l.haste.average.Store(1) // whatever else this machine does
	}
	if !tb.oneByOne(3, 4096) || tb.oneByOne(3, quickBytes+1) {
		t.Error("quick legs are not written one by one, or large writes are")
	}
	for range 3 {
		tb.legs[1].haste.add(time.Millisecond)
	}
	if tb.oneByOne(3, 4096) || !tb.oneByOne(1, 4096) {
		t.Error("a slow leg is not noticed")
	}
	tb.legs[0].haste.average.Store(int64(quick) - 1)
	if !tb.oneByOne(1, 4096) {
		t.Error("one of many writes does not go to one leg after the other")
	}
	tb.writes.Store(0)
	if tb.oneByOne(1, 4096) {
		t.Error("a write by itself does not go to all legs at once")
	}
	tb.legs[0].haste.average.Store(0)
	if tb.oneByOne(1, 4096) {
		t.Error("a leg that nothing is known of is taken for memory")
	}
	tb.legs[0].haste.average.Store(int64(instant) - 1)
	if !tb.oneByOne(1, 4096) {
		t.Error("legs in memory are not written one after the other")
	}
	tb.close()
	for w := range 16 {
		for _, d := range []string{"a", "b"} {
			if err := devtest.Check(l.devs[d], uint64(w+10), blockdev.Sector(w)*256, 256); err != nil {
				t.Errorf("leg %s: %v", d, err)
			}
		}
	}
}
