package mirror

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// sparseLine is a mirror of 1 TiB with the default region size of 512 KiB.
const sparseLine = "0 2147483648 mirror disk 3 log 1024 nosync 2 a 0 b 0"

// TestSparse: a mirror of 1 TiB over empty devices comes to life at once and
// needs little memory (docs/targets/mirror.md says how much).
func TestSparse(t *testing.T) {
	l := newLab(t, Options{})
	pool := blockdev.NewPool(blockdev.PoolOptions{})
	for name, size := range map[string]int64{"a": 1 << 40, "b": 1 << 40, "log": 1 << 20} {
		path := filepath.Join(t.TempDir(), name)
		err := os.WriteFile(path, nil, 0o600)
		if err == nil {
			err = os.Truncate(path, size)
		}
		if err != nil {
			t.Skipf("no files of 1 TiB here: %v", err)
		}
		h, err := pool.Open(path, true)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		l.devs[name] = h
	}
	if got := LogSize(2<<20, 512); got != 263168 {
		t.Errorf("the log needs %d bytes", got)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	tb := l.live(sparseLine)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 2<<20 {
		t.Errorf("%d bytes of memory", n)
	} else {
		t.Logf("%d bytes of memory, log included", n)
	}
	if err := tb.write(50, 2147483640, 8); err != nil {
		t.Error(err)
	}
	tb.close()

	// Without nosync all of it is copied: holes, by punching.
	tb = l.live("0 2147483648 mirror core 1 1024 2 a 0 b 0")
	until(t, "a beginning is made", func() bool { return tb.Report().InSync > 0 })
	tb.close()
}

// BenchmarkWrite4k writes 4 KiB at random places of a mirror in memory.
func BenchmarkWrite4k(b *testing.B) {
	for _, log := range []string{"core 2", "disk 3 log"} {
		b.Run(log, func(b *testing.B) {
			l := newLab(b, Options{})
			l.mem("a", 1<<21)
			l.mem("b", 1<<21)
			l.mem("log", 2048)
			tb := l.live(fmt.Sprintf("0 %d mirror %s 1024 nosync 2 a 0 b 0", 1<<21, log))
			p := make([]byte, 4096)
			b.SetBytes(4096)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if err := tb.Write(context.Background(), p, int64(i*7919%(1<<18))*4096, false); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			tb.close()
		})
	}
}

// BenchmarkRead4k reads likewise.
func BenchmarkRead4k(b *testing.B) {
	l := newLab(b, Options{})
	l.mem("a", 1<<21)
	l.mem("b", 1<<21)
	tb := l.live(fmt.Sprintf("0 %d mirror core 1 1024 2 a 0 b 0", 1<<21))
	tb.settled()
	p := make([]byte, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		if err := tb.Read(context.Background(), p, int64(i*7919%(1<<18))*4096); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	tb.close()
}

// BenchmarkRecover copies 256 MiB of data from leg to leg in memory.
func BenchmarkRecover(b *testing.B) {
	const size = 256 << 11
	l := newLab(b, Options{CopyPages: defaultCopyPages})
	fill(b, l.mem("a", size), 1)
	fill(b, l.mem("b", size), 2)
	b.SetBytes(size * blockdev.SectorSize)
	b.ResetTimer()
	for range b.N {
		tb := l.live(fmt.Sprintf("0 %d mirror core 1 1024 2 a 0 b 0", size))
		for !tb.dirty.complete() {
			time.Sleep(100 * time.Microsecond) // sleep: between looks at the progress
		}
		tb.close()
	}
}
