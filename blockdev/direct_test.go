package blockdev

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// openDirect opens path without the page cache, or skips the test.
func openDirect(t *testing.T, path string) *File {
	t.Helper()
	f, err := OpenFile(path, FileOptions{Write: true, Direct: true})
	if errors.Is(err, ErrUnsupported) {
		t.Skipf("no direct I/O here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestAlignedBytes(t *testing.T) {
	for _, n := range []int{0, 1, 512, 4096, 1 << 20} {
		if b := AlignedBytes(n); len(b) != n || cap(b) != n || !aligned(b, bufferAlign) {
			t.Errorf("%d: length %d, capacity %d", n, len(b), cap(b))
		}
	}
}

// Bytes that cannot be read or written in whole blocks go to the page cache
// only at the end of a file whose size is no whole block.
func TestDirectGoesPastThePageCache(t *testing.T) {
	path := testFile(t, 1<<20)
	f := openDirect(t, path)
	flags, err := unix.FcntlInt(uintptr(f.fd.n), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_DIRECT == 0 {
		t.Fatalf("flags %#x, %v", flags, err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 10000), 777); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10000)
	if n, err := f.ReadAt(got, 100); n != 4900 || err != io.EOF {
		t.Errorf("read over the new end: %d, %v", n, err)
	}
	if !bytes.Equal(got[677:4900], bytes.Repeat([]byte{1}, 4900-677)) {
		t.Error("other content")
	}
	if n, err := f.WriteAt(got[:10], 4995); n != 0 || Kind(err) != ErrRange {
		t.Errorf("write over the new end: %d, %v", n, err)
	}
	if n, err := f.WriteAt([]byte("end"), 4997); n != 3 || err != nil {
		t.Errorf("write of the end: %d, %v", n, err)
	}
	if got, err := os.ReadFile(path); err != nil || len(got) != 5000 || string(got[4997:]) != "end" {
		t.Errorf("the file is %d bytes long, %v", len(got), err)
	}
}

func TestDirectAlignedAllocatesNothing(t *testing.T) {
	f := openDirect(t, testFile(t, 1<<20))
	whole, part := AlignedBytes(8192), make([]byte, 1000)
	for what, do := range map[string]func() error{
		"read":           func() error { _, err := f.ReadAt(whole, 4096); return err },
		"write":          func() error { _, err := f.WriteAt(whole, 4096); return err },
		"unaligned read": func() error { _, err := f.ReadAt(part, 4097); return err },
	} {
		if n := testing.AllocsPerRun(100, func() {
			if err := do(); err != nil {
				t.Error(err)
			}
		}); n >= 1 && !raceEnabled {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
}

// A whole block written beside a part of the same block: whatever the order,
// what only the first wrote must stay.
func TestDirectWholeAndPartOfABlock(t *testing.T) {
	f := openDirect(t, testFile(t, 1<<20))
	whole := AlignedBytes(4096)
	for i := range 100 {
		for j := range whole {
			whole[j] = byte(i + 1)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := f.WriteAt(whole, 8192); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := f.WriteAt([]byte{0xff}, 8192+100); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		got := make([]byte, 4096)
		if _, err := f.ReadAt(got, 8192); err != nil {
			t.Fatal(err)
		}
		for j, b := range got {
			if j != 100 && b != byte(i+1) {
				t.Fatalf("round %d: byte %d is %d", i, j, b)
			}
		}
	}
}

// The model of a file is a slice of bytes; the file is used by both ways of
// I/O in turn.
func TestFileModel(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.Int64Range(1, 40000).Draw(rt, "size")
		file, err := os.CreateTemp(dir, "model")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(file.Name())
		defer file.Close()
		if err := file.Truncate(size); err != nil {
			t.Fatal(err)
		}
		f, err := OpenFile(file.Name(), FileOptions{Write: true, NoLocks: true, Direct: rapid.Bool().Draw(rt, "direct")})
		if errors.Is(err, ErrUnsupported) {
			t.Skipf("no direct I/O here: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		m := &fileModel{dev: f, want: make([]byte, size)}
		rt.Repeat(map[string]func(*rapid.T){
			"read": m.read, "write": m.write, "zero": m.zero, "grow": m.grow, "flush": m.flush, "extents": m.extents,
		})
	})
}

type fileModel struct {
	dev  *File
	want []byte
}

func (m *fileModel) span(rt *rapid.T) (off, n int64) {
	size := int64(len(m.want))
	off = rapid.Int64Range(0, size).Draw(rt, "offset")
	n = rapid.Int64Range(0, size-off).Draw(rt, "length")
	if rapid.Bool().Draw(rt, "aligned") {
		off, n = off&^4095, min((n+4095)&^4095, size-off&^4095)
	}
	return off, n
}

func (m *fileModel) read(rt *rapid.T) {
	off, n := m.span(rt)
	got := make([]byte, n)
	if k, err := m.dev.ReadAt(got, off); int64(k) != n || err != nil {
		rt.Fatalf("read %d+%d: %d, %v", off, n, k, err)
	}
	if !bytes.Equal(got, m.want[off:off+n]) {
		rt.Fatalf("read %d+%d differs", off, n)
	}
}

func (m *fileModel) write(rt *rapid.T) {
	off, n := m.span(rt)
	p := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "value")}, int(n))
	copy(m.want[off:], p)
	write := m.dev.WriteAt
	if rapid.Bool().Draw(rt, "fua") {
		write = m.dev.WriteFUA
	}
	if k, err := write(p, off); int64(k) != n || err != nil {
		rt.Fatalf("write %d+%d: %d, %v", off, n, k, err)
	}
}

func (m *fileModel) zero(rt *rapid.T) {
	off, n := m.span(rt)
	clear(m.want[off : off+n])
	if err := Zero(m.dev, off, n, rapid.Bool().Draw(rt, "unmap")); err != nil {
		rt.Fatalf("zero %d+%d: %v", off, n, err)
	}
}

func (m *fileModel) grow(rt *rapid.T) {
	by := rapid.Int64Range(0, 5000).Draw(rt, "by")
	m.want = append(m.want, make([]byte, by)...)
	if err := m.dev.Grow(int64(len(m.want))); err != nil {
		rt.Fatalf("grow: %v", err)
	}
}

func (m *fileModel) flush(rt *rapid.T) {
	if err := m.dev.Flush(); err != nil {
		rt.Fatal(err)
	}
}

func (m *fileModel) extents(rt *rapid.T) {
	for off := int64(0); off < int64(len(m.want)); {
		n, hole, err := m.dev.Extent(off)
		if err != nil || n < 1 || off+n > int64(len(m.want)) {
			rt.Fatalf("extent at %d: %d, %v", off, n, err)
		}
		if hole && !bytes.Equal(m.want[off:off+n], make([]byte, n)) {
			rt.Fatalf("the hole %d+%d has data", off, n)
		}
		off += n
	}
}
