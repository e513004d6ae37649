package blockdev

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func mustOpenFile(t *testing.T, path string, o FileOptions) *File {
	t.Helper()
	f, err := OpenFile(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestFileThatShrinks(t *testing.T) {
	path := testFile(t, 1<<20)
	f := mustOpenFile(t, path, FileOptions{Write: true})
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	if f.Size() != 1000 {
		t.Errorf("size %d", f.Size())
	}
	if n, err := f.ReadAt(buf, 0); n != 1000 || err != io.EOF {
		t.Errorf("read over the new end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(buf, 1<<19); n != 0 || err != io.EOF {
		t.Errorf("read past the new end: %d, %v", n, err)
	}
	if n, err := f.WriteAt(buf, 1<<19); n != 0 || !errors.Is(err, ErrRange) {
		t.Errorf("write past the new end: %d, %v", n, err)
	}
	if f.Size() != 1000 {
		t.Errorf("the write made the file %d bytes long", f.Size())
	}
	if err := f.Zero(1<<19, 4096, true); !errors.Is(err, ErrRange) {
		t.Errorf("zero past the new end: %v", err)
	}
	if _, _, err := f.Extent(1000); !errors.Is(err, ErrRange) {
		t.Errorf("extent at the new end: %v", err)
	}
}

func TestFileErrorsHaveAKind(t *testing.T) {
	f := mustOpenFile(t, testFile(t, 4096), FileOptions{})
	_, err := f.WriteAt([]byte{1}, 0)
	var e *Error
	if !errors.As(err, &e) || e.Op != "write" || Kind(err) != ErrReadOnly {
		t.Errorf("write to a file open for reading: %v", err)
	}
	_ = f.Close()
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if err := f.Flush(); !errors.Is(err, ErrClosed) {
		t.Errorf("flush after Close: %v", err)
	}
}

func TestFileFlushErrorIsSticky(t *testing.T) {
	f := mustOpenFile(t, testFile(t, 4096), FileOptions{Write: true})
	f.failed.Store(f.fail("flush", 0, 0, unix.EIO))
	for range 2 {
		if err := f.Flush(); Kind(err) != ErrIO {
			t.Errorf("flush: %v", err)
		}
		if _, err := f.WriteFUA([]byte{1}, 0); Kind(err) != ErrIO {
			t.Errorf("durable write: %v", err)
		}
	}
	if _, err := f.WriteAt([]byte{1}, 0); err != nil {
		t.Errorf("a write that promises nothing: %v", err)
	}
}

func TestFileFUAWithoutKernelSupport(t *testing.T) {
	f := mustOpenFile(t, testFile(t, 4096), FileOptions{Write: true})
	f.noDSync.Store(true)
	if n, err := f.WriteFUA([]byte("abc"), 10); n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	got := make([]byte, 3)
	if _, err := f.ReadAt(got, 10); err != nil || string(got) != "abc" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestFileSpace(t *testing.T) {
	path := testFile(t, 1<<20)
	f := mustOpenFile(t, path, FileOptions{Write: true})
	if _, err := f.WriteAt(bytes.Repeat([]byte{9}, 64<<10), 128<<10); err != nil {
		t.Fatal(err)
	}
	n, hole, err := f.Extent(0)
	if err != nil {
		t.Fatal(err)
	}
	if !hole {
		t.Skip("this file system does not tell holes")
	}
	if n != 128<<10 {
		t.Errorf("first hole is %d bytes", n)
	}
	if n, hole, err := f.Extent(128<<10 + 5); n != 64<<10-5 || hole || err != nil {
		t.Errorf("data: %d, hole %v, %v", n, hole, err)
	}
	if err := f.Zero(128<<10, 64<<10, true); err != nil {
		t.Fatal(err)
	}
	if n, hole, err := f.Extent(0); n != 1<<20 || !hole || err != nil {
		t.Errorf("after punching: %d, hole %v, %v", n, hole, err)
	}
	if err := f.Preallocate(0, 1<<20); err != nil && Kind(err) != ErrUnsupported {
		t.Error(err)
	}
	if err := f.Grow(2 << 20); err != nil || f.Size() != 2<<20 {
		t.Errorf("grow: %v, size %d", err, f.Size())
	}
	if err := f.Grow(1<<63 - 1); Kind(err) != ErrTooBig || f.Size() != 2<<20 {
		t.Errorf("grow to more than any file system takes: %v, size %d", err, f.Size())
	}
	if err := f.Grow(1 << 20); err != nil || f.Size() != 2<<20 {
		t.Errorf("grow to less: %v, size %d", err, f.Size())
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct{ off, n, head, middle, tail int64 }{
		{0, 512, 0, 512, 0},
		{1, 510, 510, 0, 0},
		{1, 1023, 511, 512, 0},
		{511, 514, 1, 512, 1},
		{512, 1025, 0, 1024, 1},
		{100, 0, 0, 0, 0},
	} {
		if h, m, tl := within(c.off, c.n, 512); h != c.head || m != c.middle || tl != c.tail {
			t.Errorf("%d+%d: %d %d %d", c.off, c.n, h, m, tl)
		}
	}
}

// A write does not ask for the times of the file: then the next one would have to
// change them, and each flush would write the inode as well as the data.
func TestWriteAsksForNoTimes(t *testing.T) {
	path := testFile(t, 1<<20)
	f := mustOpenFile(t, path, FileOptions{Write: true})
	now := func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts); err != nil {
			t.Fatal(err)
		}
		return ts.Nano()
	}
	write := func() {
		if _, err := f.WriteAt(make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
	}
	changed := func() int64 { // asks
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ctim.Nano()
	}
	// A tick of the clock between two writes changes the time in any case.
	for range 200 {
		changed()
		write()
		before := now()
		write()
		if changed() < before {
			return
		}
	}
	t.Error("each write takes a time of its own")
}
