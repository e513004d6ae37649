package mirror

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

const hotSectors = 1 << 18 // 128 MiB

// hotLab has legs a and b in memory, or on files.
func hotLab(b *testing.B, files bool) *lab {
	l := newLab(b, Options{group: newGroup()})
	l.mem("log", 2048)
	pool := blockdev.NewPool(blockdev.PoolOptions{})
	for _, d := range []string{"a", "b"} {
		if !files {
			fill(b, l.mem(d, hotSectors), 1)
			continue
		}
		path := filepath.Join(b.TempDir(), d)
		if err := os.WriteFile(path, make([]byte, hotSectors*512), 0o600); err != nil {
			b.Fatal(err)
		}
		h, err := pool.Open(path, true)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { h.Close() })
		l.devs[d] = h
	}
	return l
}

// BenchmarkHot does 4 KiB at random places from 16 goroutines: on one leg by
// itself, as a linear target would, and on the mirror.
func BenchmarkHot(b *testing.B) {
	const depth = 16
	run := func(b *testing.B, do func(off int64, p []byte) error) {
		b.SetBytes(4096)
		b.ReportAllocs()
		b.SetParallelism(depth)
		var seed atomic.Int64
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			p := make([]byte, 4096)
			for i := seed.Add(7919); pb.Next(); i += 104729 {
				if err := do(i%(hotSectors/8)*4096, p); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.StopTimer()
	}
	ctx := context.Background()
	for _, files := range []bool{false, true} {
		where := map[bool]string{false: "memory", true: "files"}[files]
		l := hotLab(b, files)
		b.Run(where+"/one leg/write", func(b *testing.B) {
			run(b, func(off int64, p []byte) error { return target.WriteLower(ctx, l.devs["a"], p, off, false) })
		})
		b.Run(where+"/one leg/read", func(b *testing.B) {
			run(b, func(off int64, p []byte) error { return target.ReadLower(ctx, l.devs["a"], p, off) })
		})
		for _, line := range []string{"core 1 1024 2 a 0 b 0", "disk 2 log 1024 2 a 0 b 0", "disk 2 log 1024 2 a 0 b 0 1 leg_record"} {
			b.Run(where+"/"+line+"/write", func(b *testing.B) {
				tb := hotTable(b, l, line)
				run(b, func(off int64, p []byte) error { return tb.Write(ctx, p, off, false) })
				tb.close()
			})
			b.Run(where+"/"+line+"/read", func(b *testing.B) {
				tb := hotTable(b, l, line)
				run(b, func(off int64, p []byte) error { return tb.Read(ctx, p, off) })
				tb.close()
			})
		}
	}
}

// hotTable is a mirror in sync.
func hotTable(t testing.TB, l *lab, line string) *table {
	tb := l.live(fmt.Sprintf("0 %d mirror %s", hotSectors, line))
	tb.inSyncSoon()
	return tb
}

// TestRead_Allocates: a read of data that is in sync allocates nothing.
func TestRead_Allocates(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates")
	}
	for _, line := range []string{"core 1 16 2 a 0 b 0", "disk 2 log 16 2 a 0 b 0", "core 1 16 2 a 0 b 0 1 leg_record"} {
		l := newLab(t, Options{group: newGroup()})
		for _, d := range []string{"a", "b", "log"} {
			fill(t, l.mem(d, 256), 1)
		}
		tb := l.live("0 256 mirror " + line)
		tb.inSyncSoon()
		p, off, ctx := make([]byte, 8192), int64(0), context.Background()
		n := testing.AllocsPerRun(500, func() {
			off = (off + 4096) % (240 * 512)
			if err := tb.Read(ctx, p, off); err != nil {
				t.Error(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations a read", line, n)
		}
		tb.close()
	}
}
