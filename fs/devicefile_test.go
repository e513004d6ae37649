package fs_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// recorder notes the calls of a device.
type recorder struct {
	mu  sync.Mutex
	ops []fstest.Op
}

func record(dev *fstest.Memory) *recorder {
	r := new(recorder)
	dev.Watch(func(op fstest.Op) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ops = append(r.ops, op)
	})
	return r
}

// take returns the calls since the last take.
func (r *recorder) take() []fstest.Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := r.ops
	r.ops = nil
	return ops
}

func (r *recorder) want(t *testing.T, ops ...fstest.Op) {
	t.Helper()
	if got := r.take(); fmt.Sprint(got) != fmt.Sprint(ops) {
		t.Errorf("the device saw %v, want %v", got, ops)
	}
}

func TestFile_ReadAndWriteAtAnyByte(t *testing.T) {
	const size = 1<<20 + 777
	m := mount(t, fstest.NewMemory(1, "vol", size))
	fd := open(t, m.path("vol"), unix.O_RDWR)
	model := make([]byte, size)
	for i, c := range []struct{ off, n int }{
		{0, 1}, {1, 511}, {511, 2}, {4095, 4098}, {8192, 4096}, {100_001, 333_333}, {size - 1, 1}, {size - 5000, 5000},
	} {
		data := bytes.Repeat([]byte{byte(i + 1)}, c.n)
		if n, err := unix.Pwrite(fd, data, int64(c.off)); n != c.n || err != nil {
			t.Fatalf("write %d+%d: %d, %v", c.off, c.n, n, err)
		}
		copy(model[c.off:], data)
	}
	got := make([]byte, size)
	if n, err := unix.Pread(fd, got, 0); n != size || err != nil || !bytes.Equal(got, model) {
		t.Fatalf("read of all: %d, %v, equal %t", n, err, bytes.Equal(got, model))
	}
	for _, c := range []struct{ off, n int }{{3, 5}, {510, 4}, {99_999, 300_000}} {
		if n, err := unix.Pread(fd, got[:c.n], int64(c.off)); n != c.n || err != nil || !bytes.Equal(got[:c.n], model[c.off:c.off+c.n]) {
			t.Errorf("read %d+%d: %d, %v, or other data", c.off, c.n, n, err)
		}
	}
}

func TestFile_TheEnd(t *testing.T) {
	const size = 10_000
	m := mount(t, fstest.NewMemory(1, "vol", size))
	fd := open(t, m.path("vol"), unix.O_RDWR)
	buf := make([]byte, 4096)
	for _, c := range []struct {
		off   int64
		reads int
		write int
		err   error
	}{
		{size - 4096, 4096, 4096, nil},
		{size - 100, 100, 100, nil},
		{size, 0, 0, unix.ENOSPC},
		{size + 1, 0, 0, unix.ENOSPC},
		{1 << 40, 0, 0, unix.ENOSPC},
	} {
		if n, err := unix.Pread(fd, buf, c.off); n != c.reads || err != nil {
			t.Errorf("read at %d: %d, %v", c.off, n, err)
		}
		n, err := unix.Pwrite(fd, buf, c.off)
		if max(n, 0) != c.write || err != c.err {
			t.Errorf("write at %d: %d, %v", c.off, n, err)
		}
	}
	if end, err := unix.Seek(fd, 0, unix.SEEK_END); end != size || err != nil {
		t.Errorf("the end is at %d, %v", end, err)
	}
	appending := open(t, m.path("vol"), unix.O_WRONLY|unix.O_APPEND)
	if _, err := unix.Write(appending, buf); err != unix.ENOSPC {
		t.Errorf("append: %v", err)
	}
}

// A direct write is not followed by FSYNC: its own flags must make it durable.
func TestFile_SyncWritesAreFUA(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, dev)
	rec := record(dev)
	data := make([]byte, 4096)
	for _, c := range []struct {
		flag int
		fua  bool
	}{
		{0, false}, {unix.O_DSYNC, true}, {unix.O_SYNC, true}, {unix.O_DIRECT, false}, {unix.O_DIRECT | unix.O_DSYNC, true},
	} {
		fd := open(t, m.path("vol"), unix.O_RDWR|c.flag)
		buf := aligned(4096)
		copy(buf, data)
		if _, err := unix.Pwrite(fd, buf, 8192); err != nil {
			t.Fatal(err)
		}
		rec.want(t, fstest.Op{Kind: "write", Off: 8192, Len: 4096, FUA: c.fua})
	}
	fd := open(t, m.path("vol"), unix.O_RDWR)
	if _, err := unix.Pwritev2(fd, [][]byte{data}, 0, unix.RWF_DSYNC); err != nil {
		t.Fatal(err)
	}
	rec.want(t, fstest.Op{Kind: "write", Len: 4096, FUA: true})
	if err := unix.Fsync(fd); err != nil {
		t.Error(err)
	}
	rec.want(t, fstest.Op{Kind: "flush"})
	if err := unix.Fdatasync(fd); err != nil {
		t.Error(err)
	}
	rec.want(t, fstest.Op{Kind: "flush"})
	unix.Close(open(t, m.path("vol"), unix.O_RDWR))
	rec.want(t)
}

// aligned returns memory for direct I/O.
func aligned(n int) []byte {
	buf := make([]byte, n+4096)
	at := int(-uintptr(unsafe.Pointer(unsafe.SliceData(buf))) & 4095)
	return buf[at : at+n]
}

func TestFile_ErrorsArriveAsTheyAre(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, dev)
	fd := open(t, m.path("vol"), unix.O_RDWR)
	buf := make([]byte, 512)
	for kind, errno := range map[error]error{
		blockdev.ErrIO: unix.EIO, blockdev.ErrNoSpace: unix.ENOSPC, blockdev.ErrNoAddress: unix.ENXIO, blockdev.ErrTimeout: unix.ETIMEDOUT,
	} {
		dev.Fail(func(fstest.Op) error { return fmt.Errorf("lower: %w", kind) })
		if _, err := unix.Pread(fd, buf, 0); err != errno {
			t.Errorf("read with %v: %v", kind, err)
		}
		if _, err := unix.Pwrite(fd, buf, 0); err != errno {
			t.Errorf("write with %v: %v", kind, err)
		}
		if err := unix.Fsync(fd); err != errno {
			t.Errorf("fsync with %v: %v", kind, err)
		}
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 512); err != errno {
			t.Errorf("fallocate with %v: %v", kind, err)
		}
		if _, err := unix.Seek(fd, 0, unix.SEEK_DATA); err != errno {
			t.Errorf("lseek with %v: %v", kind, err)
		}
	}
}

func TestFile_Fallocate(t *testing.T) {
	const size = 1 << 20
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	dev := fstest.NewMemory(1, "vol", size)
	m := mount(t, dev)
	fd := open(t, m.path("vol"), unix.O_RDWR)
	full := bytes.Repeat([]byte{0xaa}, size)
	rec := record(dev)
	unmap := func(off, n int64) []fstest.Op { return []fstest.Op{{Kind: "zero", Off: off, Len: n, Unmap: true}} }
	clear := func(off, n int64) []fstest.Op { return []fstest.Op{{Kind: "zero", Off: off, Len: n}} }
	for _, c := range []struct {
		mode   uint32
		off, n int64
		err    error
		ops    []fstest.Op
	}{
		{punch | keep, 4096, 8192, nil, unmap(4096, 8192)},
		{punch | keep, 1, 4097, nil, unmap(1, 4097)},
		{punch | keep, size - 100, 4096, nil, unmap(size-100, 100)},
		{punch | keep, size, 4096, nil, nil},
		{zero, 0, size, nil, clear(0, size)},
		{zero, size - 100, 101, unix.ENOSPC, nil},
		{zero | keep, 512, 512, nil, clear(512, 512)},
		{zero | keep, size - 100, 1 << 40, nil, clear(size-100, 100)},
		{0, 0, size, nil, nil},
		{0, 1, size, unix.ENOSPC, nil},
		{0, 0, 1 << 40, unix.ENOSPC, nil},
		{keep, 0, 1 << 40, nil, nil},
		{unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, unix.EOPNOTSUPP, nil},
		{unix.FALLOC_FL_INSERT_RANGE, 0, 4096, unix.EOPNOTSUPP, nil},
	} {
		if _, err := unix.Pwrite(fd, full, 0); err != nil {
			t.Fatal(err)
		}
		rec.take()
		if err := unix.Fallocate(fd, c.mode, c.off, c.n); err != c.err {
			t.Errorf("mode %x %d+%d: %v, want %v", c.mode, c.off, c.n, err, c.err)
		}
		rec.want(t, c.ops...)
		want := bytes.Clone(full)
		for _, op := range c.ops {
			copy(want[op.Off:op.Off+op.Len], make([]byte, op.Len))
		}
		got := make([]byte, size)
		if _, err := unix.Pread(fd, got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("mode %x %d+%d: other content than expected, or %v", c.mode, c.off, c.n, err)
		}
		if got := dev.Size(); got != size {
			t.Fatalf("the size became %d", got)
		}
	}
	// What a device cannot do is said so, and asked again the next time: the
	// kernel would remember ENOSYS for all devices.
	dev.Fail(func(fstest.Op) error { return blockdev.ErrUnsupported })
	if err := unix.Fallocate(fd, punch|keep, 0, 4096); err != unix.EOPNOTSUPP {
		t.Errorf("a device that cannot: %v", err)
	}
	dev.Fail(nil)
	if err := unix.Fallocate(fd, punch|keep, 0, 4096); err != nil {
		t.Errorf("a device that can again: %v", err)
	}
}

func TestFile_SeekDataAndHole(t *testing.T) {
	const size = 100_000
	m := mount(t, fstest.NewMemory(1, "vol", size), fstest.NewMemory(2, "empty", size), fstest.NewMemory(3, "none", 0))
	fd := open(t, m.path("vol"), unix.O_RDWR)
	for _, off := range []int64{8192, 12_288, 40_960, size - 10} { // data in pages 2, 3, 10 and 24
		if _, err := unix.Pwrite(fd, []byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	empty, none := open(t, m.path("empty"), unix.O_RDONLY), open(t, m.path("none"), unix.O_RDONLY)
	for _, c := range []struct {
		fd, whence int
		off, want  int64
		err        error
	}{
		{fd, unix.SEEK_DATA, 0, 8192, nil},
		{fd, unix.SEEK_DATA, 9000, 9000, nil},
		{fd, unix.SEEK_HOLE, 0, 0, nil},
		{fd, unix.SEEK_HOLE, 100, 100, nil},
		{fd, unix.SEEK_HOLE, 8192, 16_384, nil},
		{fd, unix.SEEK_DATA, 16_384, 40_960, nil},
		{fd, unix.SEEK_DATA, 45_056, 98_304, nil},
		{fd, unix.SEEK_HOLE, 98_304, size, nil},
		{fd, unix.SEEK_HOLE, size, -1, unix.ENXIO},
		{fd, unix.SEEK_DATA, size, -1, unix.ENXIO},
		{fd, unix.SEEK_DATA, 1 << 50, -1, unix.ENXIO},
		{empty, unix.SEEK_DATA, 0, -1, unix.ENXIO},
		{empty, unix.SEEK_HOLE, 5, 5, nil},
		{none, unix.SEEK_HOLE, 0, -1, unix.ENXIO},
	} {
		got, err := unix.Seek(c.fd, c.off, c.whence)
		if err != c.err || err == nil && got != c.want {
			t.Errorf("fd %d whence %d from %d: %d, %v; want %d, %v", c.fd, c.whence, c.off, got, err, c.want, c.err)
		}
	}
}

func TestFile_TruncateChangesNothing(t *testing.T) {
	const size = 1 << 20
	dev := fstest.NewMemory(1, "vol", size)
	m := mount(t, dev)
	fd := open(t, m.path("vol"), unix.O_RDWR)
	if _, err := unix.Pwrite(fd, []byte("stays"), 0); err != nil {
		t.Fatal(err)
	}
	open(t, m.path("vol"), unix.O_WRONLY|unix.O_TRUNC)
	for _, c := range []struct {
		size int64
		err  error
	}{{0, nil}, {size, nil}, {1, unix.EINVAL}, {size - 1, unix.EINVAL}, {size + 1, unix.EINVAL}, {1 << 45, unix.EINVAL}} {
		if err := unix.Ftruncate(fd, c.size); err != c.err {
			t.Errorf("ftruncate to %d: %v", c.size, err)
		}
		if err := unix.Truncate(m.path("vol"), c.size); err != c.err {
			t.Errorf("truncate to %d: %v", c.size, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Size != size {
			t.Errorf("after ftruncate to %d: size %d, %v", c.size, st.Size, err)
		}
	}
	buf := make([]byte, 5)
	if _, err := unix.Pread(fd, buf, 0); err != nil || string(buf) != "stays" {
		t.Errorf("read %q, %v", buf, err)
	}
	run(t, "cp", "/dev/null", m.path("vol")) // opens with O_TRUNC
	if _, err := unix.Pread(fd, buf, 0); err != nil || string(buf) != "stays" {
		t.Errorf("after cp: read %q, %v", buf, err)
	}
}

// There is no time for which a size holds: a table swap is seen at once.
func TestFile_SizeIsTrueAtOnce(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, dev)
	fd := open(t, m.path("vol"), unix.O_RDWR)
	for _, size := range []int64{2 << 20, 512, 0, 3 << 20, 1_234_567} {
		dev.Resize(size)
		var st, byPath unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(m.path("vol"), &byPath); err != nil {
			t.Fatal(err)
		}
		end, err := unix.Seek(fd, 0, unix.SEEK_END)
		if st.Size != size || byPath.Size != size || end != size || err != nil {
			t.Errorf("size %d: fstat %d, stat %d, end %d, %v", size, st.Size, byPath.Size, end, err)
		}
		if size == 0 {
			continue
		}
		if _, err := unix.Pwrite(fd, []byte("x"), size-1); err != nil {
			t.Errorf("size %d: writing the last byte: %v", size, err)
		}
		if _, err := unix.Pwrite(fd, []byte("x"), size); err != unix.ENOSPC {
			t.Errorf("size %d: writing behind it: %v", size, err)
		}
	}
}

func TestFile_Stat(t *testing.T) {
	dev := fstest.NewMemory(5, "vol", 1<<20+1)
	m := mount(t, dev)
	var st unix.Stat_t
	if err := unix.Stat(m.path("vol"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode != unix.S_IFREG|0600 || st.Nlink != 1 || st.Size != 1<<20+1 || st.Blocks != 2049 || st.Blksize != 4096 ||
		st.Uid != 0 || st.Gid != 0 || st.Mtim.Sec != 1_600_000_000 {
		t.Errorf("stat: %+v", st)
	}
	run(t, "chmod", "640", m.path("vol"))
	run(t, "touch", "-d", "@1234567890.5", m.path("vol"))
	if os.Geteuid() == 0 {
		run(t, "chown", "12:34", m.path("vol"))
	}
	if a := dev.Attr(); a.Mode != 0640 || !a.Mtime.Equal(time.Unix(1234567890, 5e8)) || os.Geteuid() == 0 && (a.UID != 12 || a.GID != 34) {
		t.Errorf("the device has %+v", a)
	}
	if got := run(t, "stat", "-c", "%a %Y %s", m.path("vol")); got != "640 1234567890 1048577\n" {
		t.Errorf("stat says %q", got)
	}
	// The time that a truncation sets is not a change of the device's.
	run(t, "truncate", "-s", "0", m.path("vol"))
	if a := dev.Attr(); !a.Mtime.Equal(time.Unix(1234567890, 5e8)) {
		t.Errorf("the time became %v", a.Mtime)
	}
}

func TestFile_ReadOnlyDevice(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, dev)
	fd := open(t, m.path("vol"), unix.O_RDWR)
	dev.SetReadOnly(true)
	var st unix.Stat_t
	if err := unix.Stat(m.path("vol"), &st); err != nil || st.Mode != unix.S_IFREG|0400 {
		t.Errorf("mode %o, %v", st.Mode, err)
	}
	for _, flag := range []int{unix.O_RDWR, unix.O_WRONLY, unix.O_RDWR | unix.O_TRUNC} {
		if got, err := unix.Open(m.path("vol"), flag, 0); err != unix.EROFS {
			t.Errorf("open with flags %x: %d, %v", flag, got, err)
		}
	}
	if err := unix.Access(m.path("vol"), unix.W_OK); err != unix.EROFS {
		t.Errorf("access: %v", err)
	}
	if err := unix.Access(m.path("vol"), unix.R_OK); err != nil {
		t.Errorf("access for reading: %v", err)
	}
	ro := open(t, m.path("vol"), unix.O_RDONLY)
	if _, err := unix.Pread(ro, make([]byte, 10), 0); err != nil {
		t.Errorf("read: %v", err)
	}
	// Open for writing since before.
	if _, err := unix.Pwrite(fd, make([]byte, 10), 0); err != unix.EROFS {
		t.Errorf("write: %v", err)
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, 512); err != unix.EROFS {
		t.Errorf("zero range: %v", err)
	}
	if err := unix.Ftruncate(fd, 0); err != unix.EROFS {
		t.Errorf("ftruncate: %v", err)
	}
	if n := dev.Opens(); n != 2 {
		t.Errorf("%d opens, want 2: a refused open must not count", n)
	}
	if os.Geteuid() == 0 {
		need(t, "losetup")
		loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", m.path("vol"))) // falls back to read-only
		defer run(t, "losetup", "-d", loop)
		if got := strings.TrimSpace(run(t, "blockdev", "--getro", loop)); got != "1" {
			t.Errorf("a loop device on it is writable")
		}
	}
}

func TestFile_Ioctl(t *testing.T) {
	m := mount(t, fstest.NewMemory(1, "vol", 123_456_789))
	fd := open(t, m.path("vol"), unix.O_RDONLY)
	var size [8]byte
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		t.Errorf("BLKGETSIZE64: %v", errno)
	} else if n := binary.NativeEndian.Uint64(size[:]); n != 123_456_789 {
		t.Errorf("BLKGETSIZE64: %d", n)
	}
	for name, cmd := range map[string]uintptr{"BLKSSZGET": unix.BLKSSZGET, "BLKDISCARD": unix.BLKDISCARD, "BLKROGET": unix.BLKROGET,
		"FS_IOC_GETFLAGS": unix.FS_IOC_GETFLAGS, "TCGETS": unix.TCGETS} {
		var arg [64]byte
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), cmd, uintptr(unsafe.Pointer(&arg))); errno != unix.ENOTTY {
			t.Errorf("%s: %v", name, errno)
		}
	}
}

func TestFile_CopyFileRange(t *testing.T) {
	const size = 1 << 20
	m := mount(t, fstest.NewMemory(1, "a", size), fstest.NewMemory(2, "b", size))
	a, b := open(t, m.path("a"), unix.O_RDWR), open(t, m.path("b"), unix.O_RDWR)
	data := make([]byte, size)
	rand.Read(data)
	if _, err := unix.Pwrite(a, data, 0); err != nil {
		t.Fatal(err)
	}
	run(t, "cp", "--reflink=auto", "--sparse=never", m.path("a"), m.path("b"))
	got := make([]byte, size)
	if _, err := unix.Pread(b, got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the copy differs, or %v", err)
	}
}

func TestFile_Mmap(t *testing.T) {
	const size = 1<<20 + 100
	dev := fstest.NewMemory(1, "vol", size)
	m := mount(t, dev)
	data := make([]byte, size)
	rand.Read(data)
	like := filepath.Join(t.TempDir(), "like")
	put := func() {
		fd := open(t, m.path("vol"), unix.O_RDWR)
		if _, err := unix.Pwrite(fd, data, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(like, data, 0600); err != nil {
			t.Fatal(err)
		}
	}
	put()
	runChild(t, "mmap-read", m.path("vol"), like)
	copy(data[5000:], "changed by a write")
	put()
	runChild(t, "mmap-read", m.path("vol"), like)
	runChild(t, "mmap-write", m.path("vol"))
	buf := make([]byte, 6)
	if _, err := dev.ReadAt(t.Context(), buf, 5000); err != nil || string(buf) != "mapped" {
		t.Errorf("written through a mapping: %q, %v", buf, err)
	}
}

// Requests are as large as the caller's, up to 1 MiB.
func TestFile_RequestsOfOneMiB(t *testing.T) {
	const size = 16 << 20
	dev := fstest.NewMemory(1, "vol", size)
	m := mount(t, dev)
	rec := record(dev)
	run(t, "dd", "if=/dev/zero", "of="+m.path("vol"), "bs=4M", "oflag=direct", "conv=notrunc", "count=4")
	run(t, "dd", "of=/dev/null", "if="+m.path("vol"), "bs=4M", "iflag=direct")
	run(t, "dd", "of=/dev/null", "if="+m.path("vol"), "bs=1M")
	count := make(map[string]int)
	for _, op := range rec.take() {
		count[op.Kind]++
		if op.Kind == "read" && op.Off == size { // dd looks for the end
			count["read"]--
		} else if op.Len != 1<<20 {
			t.Errorf("a request of %v", op)
		}
	}
	if count["write"] != 16 || count["read"] != 32 {
		t.Errorf("requests: %v", count)
	}
}

var _ fs.Device = (*fstest.Memory)(nil)
