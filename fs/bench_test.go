package fs_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// null is a device that answers without touching anything.
type null struct{ *fstest.Memory }

func (null) ReadAt(ctx context.Context, p []byte, off int64) (int, error) { return len(p), nil }

func (null) WriteAt(ctx context.Context, p []byte, off int64, fua bool) (int, error) {
	return len(p), nil
}

// opened returns a file system with one open device that does nothing.
func opened(t testing.TB) (*fs.FileSystem, uint64) {
	t.Helper()
	f := fs.NewFileSystem(fstest.NewList(null{fstest.NewMemory(1, "vol", 1<<30)}), fs.Options{})
	const node = 2 << 4
	if code := f.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: node}, Flags: unix.O_RDWR}, new(fuse.OpenOut)); !code.Ok() {
		t.Fatal(code)
	}
	return f, node
}

// Between transport and device a request costs no memory.
func TestFile_NoAllocations(t *testing.T) {
	f, node := opened(t)
	cancel := make(chan struct{})
	buf := make([]byte, 4096)
	rin := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: node}, Size: 4096}
	if n := testing.AllocsPerRun(1000, func() {
		r, code := f.Read(cancel, rin, buf)
		if !code.Ok() || r.Size() != 4096 {
			t.Fatal(code)
		}
		r.Done()
	}); n != 0 {
		t.Errorf("a read makes %v allocations", n)
	}
	win := &fuse.WriteIn{InHeader: fuse.InHeader{NodeId: node}, Size: 4096}
	iov := [][]byte{buf}
	if n := testing.AllocsPerRun(1000, func() {
		if _, code := f.Writev(cancel, win, iov); !code.Ok() {
			t.Fatal(code)
		}
	}); n != 0 {
		t.Errorf("a write makes %v allocations", n)
	}
}

func BenchmarkFileSystemRead(b *testing.B) {
	f, node := opened(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		cancel := make(chan struct{})
		buf := make([]byte, 4096)
		in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: node}, Size: 4096}
		for pb.Next() {
			r, code := f.Read(cancel, in, buf)
			if !code.Ok() {
				b.Fatal(code)
			}
			r.Done()
		}
	})
}

// BenchmarkMount compares a device that passes a file through with a go-fuse
// server that does nothing but pread and pwrite. Clients are in the same
// process: for figures between processes see the benchmarks of the program.
func BenchmarkMount(b *testing.B) {
	needRoot(b)
	const size = 64 << 20
	back := filepath.Join(b.TempDir(), "back")
	if dir := "/dev/shm"; os.MkdirAll(dir, 0755) == nil {
		back = filepath.Join(dir, fmt.Sprintf("dmfuse-bench-%d", os.Getpid()))
		b.Cleanup(func() { os.Remove(back) })
	}
	if err := os.WriteFile(back, make([]byte, size), 0600); err != nil {
		b.Fatal(err)
	}
	dev, err := fstest.OpenFile(1, "vol", back)
	if err != nil {
		b.Fatal(err)
	}
	defer dev.Close()
	m := mount(b, dev)
	dir := b.TempDir()
	plain, err := fstest.MountPlain(back, dir)
	if err != nil {
		b.Fatal(err)
	}
	onHang(b, dir, func() { _ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) })
	b.Cleanup(func() {
		if err := plain.Close(); err != nil {
			b.Error(err)
		}
	})
	for _, write := range []bool{false, true} {
		for _, block := range []int{4 << 10, 1 << 20} {
			for _, depth := range []int{1, 16} {
				for _, who := range []struct{ name, path string }{{"dmfuse", m.path("vol")}, {"plain", plain.Path()}} {
					kind := map[bool]string{false: "read", true: "write"}[write]
					b.Run(fmt.Sprintf("%s/%dk/depth%d/%s", kind, block>>10, depth, who.name), func(b *testing.B) {
						load(b, who.path, size, block, depth, write)
					})
				}
			}
		}
	}
}

// load runs b.N requests, depth at a time.
func load(b *testing.B, path string, size int64, block, depth int, write bool) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	b.SetBytes(int64(block))
	b.ReportAllocs()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range depth {
		wg.Go(func() {
			buf := aligned(block)
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				off := i * 7919 * int64(block) % size
				var err error
				if write {
					_, err = unix.Pwrite(fd, buf, off)
				} else {
					_, err = unix.Pread(fd, buf, off)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
