package mount

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/tests/harness"
)

func TestFile_ReadAndWriteAtAnyByte(t *testing.T) {
	onEach(t, func(t *testing.T, path string, content []byte) {
		opened(t, path, unix.O_RDWR, func(fd int) {
			rng := harness.Rand(harness.Seed(t))
			for i := range harness.Pick(60, 2000) {
				n := 1 + rng.IntN([]int{10, 600, 10_000, 300_000}[i%4])
				off := rng.IntN(size - n + 1)
				data := bytes.Repeat([]byte{byte(i + 1)}, n)
				if got, err := unix.Pwrite(fd, data, int64(off)); got != n || err != nil {
					t.Fatalf("write %d+%d: %d, %v", off, n, got, err)
				}
				copy(content[off:], data)
				// Around it.
				from, to := max(off-700, 0), min(off+n+700, size)
				buf := make([]byte, to-from)
				if got, err := unix.Pread(fd, buf, int64(from)); got != len(buf) || err != nil || !bytes.Equal(buf, content[from:to]) {
					t.Fatalf("read %d+%d after write %d+%d: %d, %v, equal %t", from, len(buf), off, n, got, err, bytes.Equal(buf, content[from:to]))
				}
			}
			if err := unix.Fsync(fd); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestFile_TheEnd(t *testing.T) {
	onEach(t, func(t *testing.T, path string, content []byte) {
		opened(t, path, unix.O_RDWR, func(fd int) {
			buf := bytes.Repeat([]byte{7}, 8192)
			for _, c := range []struct {
				off int64
				n   int // of 8192
			}{{size - 8192, 8192}, {size - 1000, 1000}, {size - 1, 1}, {size, 0}, {size + 1, 0}, {1 << 50, 0}} {
				if n, err := unix.Pread(fd, make([]byte, 8192), c.off); n != c.n || err != nil {
					t.Errorf("read at %d: %d, %v", c.off, n, err)
				}
				n, err := unix.Pwrite(fd, buf, c.off)
				if c.n > 0 && (n != c.n || err != nil) || c.n == 0 && err != unix.ENOSPC {
					t.Errorf("write at %d: %d, %v", c.off, n, err)
				}
				if c.n > 0 {
					copy(content[c.off:], buf)
				}
			}
			if end, err := unix.Seek(fd, 0, unix.SEEK_END); end != size || err != nil {
				t.Errorf("the end is at %d, %v", end, err)
			}
		})
	})
}

// A write that is durable when answered does as a write.
func TestFile_SyncWrites(t *testing.T) {
	onEach(t, func(t *testing.T, path string, content []byte) {
		for i, flag := range []int{unix.O_DSYNC, unix.O_SYNC, unix.O_DSYNC | unix.O_DIRECT} {
			opened(t, path, unix.O_RDWR|flag, func(fd int) {
				buf := aligned(8192)
				for j := range buf {
					buf[j] = byte(100 + i)
				}
				off := 40_960 * int64(i)
				if n, err := unix.Pwrite(fd, buf, off); n != len(buf) || err != nil {
					t.Errorf("write with flags %x: %d, %v", flag, n, err)
				}
				copy(content[off:], buf)
				if err := unix.Fdatasync(fd); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// aligned returns memory for direct I/O.
func aligned(n int) []byte {
	buf := make([]byte, n+4096)
	at := int(-uintptr(unsafe.Pointer(unsafe.SliceData(buf))) & 4095)
	return buf[at : at+n]
}

// Punched holes and zeroed ranges read as zeros, also where an origin has data
// below.
func TestFile_HolesReadAsZeros(t *testing.T) {
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	onEach(t, func(t *testing.T, path string, content []byte) {
		opened(t, path, unix.O_RDWR, func(fd int) {
			for i, c := range []struct {
				mode   uint32
				off, n int64
			}{
				{punch | keep, 0, 4096}, {punch | keep, 65_536, 262_144}, {punch | keep, 500_001, 7}, {punch | keep, 600_000, 100_000},
				{punch | keep, size - 5000, 10_000}, {punch | keep, size, 4096},
				{zero, 1_000_000, 65_536}, {zero, 1_200_001, 99_999}, {zero | keep, 1_400_000, 512}, {zero | keep, size - 10_000, 100_000},
			} {
				if err := unix.Fallocate(fd, c.mode, c.off, c.n); err != nil {
					t.Errorf("%d: mode %x at %d+%d: %v", i, c.mode, c.off, c.n, err)
					continue
				}
				clear(content[min(c.off, size):min(c.off+c.n, size)])
			}
			for i, c := range []struct {
				mode   uint32
				off, n int64
				err    error
			}{{0, 0, size, nil}, {0, 1, size, unix.ENOSPC}, {zero, size - 1, 2, unix.ENOSPC}, {unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, unix.EOPNOTSUPP}} {
				if err := unix.Fallocate(fd, c.mode, c.off, c.n); err != c.err {
					t.Errorf("%d: mode %x at %d+%d: %v, want %v", i, c.mode, c.off, c.n, err, c.err)
				}
			}
		})
	})
}

// Where SEEK_DATA and SEEK_HOLE see a hole there are zeros.
func TestFile_SeekTellsTheTruth(t *testing.T) {
	onEach(t, func(t *testing.T, path string, content []byte) {
		opened(t, path, unix.O_RDWR, func(fd int) {
			_ = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<20)
			if _, err := unix.Pread(fd, content, 0); err != nil { // whether it could or not
				t.Fatal(err)
			}
			data := 0
			for at := int64(0); at < size; {
				next, err := unix.Seek(fd, at, unix.SEEK_DATA)
				if err == unix.ENXIO {
					next = size
				} else if err != nil {
					t.Fatalf("SEEK_DATA from %d: %v", at, err)
				}
				if i := bytes.IndexFunc(content[at:next], func(r rune) bool { return r != 0 }); i >= 0 {
					t.Fatalf("byte %d lies in the hole %d to %d and is not zero", at+int64(i), at, next)
				}
				if next == size {
					break
				}
				if at, err = unix.Seek(fd, next, unix.SEEK_HOLE); err != nil || at <= next {
					t.Fatalf("SEEK_HOLE from %d: %d, %v", next, at, err)
				}
				data += int(at - next)
			}
			if data == 0 {
				t.Error("no data found")
			}
			for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
				if _, err := unix.Seek(fd, size, whence); err != unix.ENXIO {
					t.Errorf("from the end: %v", err)
				}
			}
		})
	})
}

func TestFile_SizeIsFixed(t *testing.T) {
	onEach(t, func(t *testing.T, path string, content []byte) {
		opened(t, path, unix.O_RDWR|unix.O_TRUNC|unix.O_CREAT, func(fd int) {
			for _, c := range []struct {
				size int64
				err  error
			}{{0, nil}, {size, nil}, {1, unix.EINVAL}, {size - 512, unix.EINVAL}, {size + 512, unix.EINVAL}} {
				if err := unix.Ftruncate(fd, c.size); err != c.err {
					t.Errorf("to %d: %v", c.size, err)
				}
			}
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil || st.Size != size || st.Mode != unix.S_IFREG|0o600 || st.Nlink != 1 {
				t.Errorf("stat: %+v, %v", st, err)
			}
			var number [8]byte
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&number))); errno != 0 ||
				binary.NativeEndian.Uint64(number[:]) != size {
				t.Errorf("BLKGETSIZE64: %v, %v", number, errno)
			}
		})
	})
}

// Tools that copy use holes, copy_file_range and mappings.
func TestFile_ToolsThatCopy(t *testing.T) {
	harness.RequireTool(t, "cp", "dd", "cmp")
	onEach(t, func(t *testing.T, path string, content []byte) {
		dir := t.TempDir()
		like := dir + "/like"
		if err := os.WriteFile(like, content, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{"cp", "--sparse=auto", path, dir + "/copy"},
			{"cp", "--sparse=always", path, dir + "/copy"},
			{"cp", "--reflink=never", path, dir + "/copy"},
			{"dd", "if=" + path, "of=" + dir + "/copy", "bs=1M", "iflag=direct"},
			{"dd", "if=" + path, "of=" + dir + "/copy", "bs=777"},
		} {
			harness.Must(t, args...)
			harness.Must(t, "cmp", like, dir+"/copy")
		}
		for i := range content {
			content[i] ^= 0x55
		}
		if err := os.WriteFile(like, content, 0o600); err != nil {
			t.Fatal(err)
		}
		harness.Must(t, "cp", "--sparse=never", like, path)
		harness.Must(t, "cmp", like, path)
		harness.Must(t, "dd", "if="+like, "of="+path, "bs=256k", "conv=notrunc,fsync")
	})
}
