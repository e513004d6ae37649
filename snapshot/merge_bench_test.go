package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// BenchmarkMerge merges 64 MiB between files, in runs of 1 MiB and of single
// chunks.
func BenchmarkMerge(b *testing.B) {
	dir := os.Getenv("DMFUSE_BENCH_DIR")
	if dir == "" {
		dir = "/dev/shm"
	}
	for _, chunk := range []int{8, 128} {
		for _, run := range []int{1 << 20, chunk * 512} {
			b.Run(fmt.Sprintf("chunk=%d/run=%d", chunk, run), func(b *testing.B) { benchMerge(b, dir, chunk, run) })
		}
	}
}

func benchMerge(b *testing.B, dir string, chunk, run int) {
	const size = 128 << 20
	dir, err := os.MkdirTemp(dir, "dmfuse-test-")
	if err != nil {
		b.Skip(err)
	}
	defer os.RemoveAll(dir)
	l := newLab(b, Options{})
	pool := blockdev.NewPool(blockdev.PoolOptions{})
	for name, n := range map[string]int64{"o": size, "c": 2 * size} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			b.Fatal(err)
		}
		if err := os.Truncate(path, n); err != nil {
			b.Fatal(err)
		}
		d, err := pool.Open(path, true)
		if err != nil {
			b.Fatal(err)
		}
		defer d.Close()
		l.devs[name] = d
	}
	b.SetBytes(size / 2)
	p := make([]byte, run)
	for i := range p {
		p[i] = byte(i>>3) | 1
	}
	for range b.N {
		b.StopTimer()
		s := l.live(fmt.Sprintf("0 %d snapshot o c P %d", size/512, chunk))
		for at := int64(0); at < size; at += 2 * int64(run) {
			if err := s.Write(context.Background(), p, at, false); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.Flush(context.Background()); err != nil {
			b.Fatal(err)
		}
		s.close()
		m := l.paused(fmt.Sprintf("0 %d snapshot-merge o c P %d", size/512, chunk))
		b.StartTimer()
		m.goOn()
		b.StopTimer()
		if !m.merge().finished.Load() {
			b.Fatal("the merge has failed")
		}
		m.close()
		b.StartTimer()
	}
}
