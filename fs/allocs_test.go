package fs_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// hotSize is the size of each device whose reads are counted.
const hotSize = 16 << 20

// hotDevices are a linear device, a snapshot of which every other chunk is
// copied, and a mirror in sync, all over files in memory.
func hotDevices(t testing.TB) []fs.Device {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "dmfuse-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, size := range map[string]int64{"base": hotSize, "cow": 2 * hotSize, "other": hotSize} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
	}
	group := snapshot.NewGroup(snapshot.Options{})
	types := append(append(basic.Types(), group.Types()...), mirror.Types(mirror.Options{})...)
	m, err := mapper.New(mapper.Options{
		Types: target.NewSet(types...), Pool: blockdev.NewPool(blockdev.PoolOptions{}), Major: 252, MountDir: "/mnt/dm", ReleaseWait: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	var devs []fs.Device
	for name, table := range map[string]string{
		"linear":   "0 %[1]d linear %[2]s/base 0",
		"snapshot": "0 %[1]d snapshot %[2]s/base %[2]s/cow P 8",
		"mirror":   "0 %[1]d mirror core 2 1024 nosync 2 %[2]s/base 0 %[2]s/other 0",
	} {
		d, err := m.Create(name, "", -1)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := mapper.ParseTable(fmt.Sprintf(table, hotSize/512, dir), mapper.GrammarDmfuse)
		if err == nil {
			err = d.Load(ctx, lines, false)
		}
		if err == nil {
			err = d.Resume(ctx, mapper.SuspendOptions{})
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "snapshot" {
			for off := int64(0); off < hotSize; off += 8192 {
				if _, err := d.WriteAt(ctx, make([]byte, 4096), off, false); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
		devs = append(devs, d)
	}
	return devs
}

// reader is a process that reads as often as it is told.
type reader struct{ *process }

func startReader(t testing.TB, path string) reader { return reader{start(t, nil, "read-many", path)} }

func (r reader) read(t testing.TB, n int) {
	t.Helper()
	if _, err := fmt.Fprintln(r.in, n); err != nil {
		t.Fatal(err)
	}
	if line, err := r.out.ReadString('\n'); err != nil || line != "done\n" {
		t.Fatalf("the reader said %q, %v", line, err)
	}
}

// childReadMany reads 4 KiB at random places, as many times as each line of its
// stdin says.
func childReadMany(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	p := aligned(4096)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); fmt.Println("done") {
		n, err := strconv.Atoi(strings.TrimSpace(in.Text()))
		if err != nil {
			return err
		}
		for range n {
			if _, err := unix.Pread(fd, p, rand.Int64N(hotSize/4096)*4096); err != nil {
				return err
			}
		}
	}
	return nil
}

// ownTransports are those whose loops are ours.
func ownTransports(t testing.TB, run func(fs.Transport)) {
	run(fs.TransportDev)
	if os.Geteuid() != 0 {
		return
	}
	restore, err := fstest.EnableURing()
	if err != nil {
		t.Log(err)
		return
	}
	defer restore()
	run(fs.TransportURing)
}

// A read of a snapshot or a mirror costs no memory from the kernel and back.
func TestTransport_ReadsAllocateNothing(t *testing.T) {
	const reads = 1000
	needFuse(t)
	if testTransport() != "" {
		t.Skip("tries both by itself")
	}
	devs := hotDevices(t)
	ownTransports(t, func(tr fs.Transport) {
		t.Run(string(tr), func(t *testing.T) {
			m := mountWith(t, fs.Options{Transport: tr}, devs...)
			if m.Transport() != tr {
				t.Fatalf("transport %s", m.Transport())
			}
			for _, d := range devs {
				r := startReader(t, m.path(d.Name()))
				r.read(t, 100)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				r.read(t, reads)
				runtime.ReadMemStats(&after)
				// What the test and the runtime take for themselves does not grow with the reads.
				if n := after.Mallocs - before.Mallocs; n > reads/20 {
					t.Errorf("%s: %d reads make %d allocations", d.Name(), reads, n)
				}
				if err := r.in.Close(); err != nil {
					t.Error(err)
				}
				if said, err := r.end(); err != nil {
					t.Errorf("reader: %v %s", err, said)
				}
			}
		})
	})
}

// BenchmarkTransport_Read counts what a read costs the server: its clients are
// another process.
func BenchmarkTransport_Read(b *testing.B) {
	needFuse(b)
	devs := hotDevices(b)
	ownTransports(b, func(tr fs.Transport) {
		m := mountWith(b, fs.Options{Transport: tr}, devs...)
		for _, d := range devs {
			b.Run(string(tr)+"/"+d.Name(), func(b *testing.B) {
				r := startReader(b, m.path(d.Name()))
				b.ReportAllocs()
				b.ResetTimer()
				r.read(b, b.N)
				b.StopTimer()
				if err := r.in.Close(); err != nil {
					b.Error(err)
				}
			})
		}
	})
}
