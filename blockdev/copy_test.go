package blockdev

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// randomBytes is content that is not compressible and differs everywhere.
func randomBytes(n int) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(9, uint64(n)))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func fileWith(t *testing.T, dir string, content []byte) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "copy")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func TestCopyAll(t *testing.T) {
	const size = 3 << 19
	content := randomBytes(size)
	clear(content[1<<19 : 1<<19+256<<10])
	dir := t.TempDir()
	p, direct := NewPool(PoolOptions{}), NewPool(PoolOptions{Direct: true})
	file := mustOpen(t, p, fileWith(t, dir, content), false)
	hole := mustOpen(t, p, fileWith(t, dir, content), true)
	if err := hole.Zero(1<<19, 256<<10, true); err != nil && Kind(err) != ErrUnsupported {
		t.Fatal(err)
	}
	slice, err := NewSlice(file, 5000, size-5000)
	if err != nil {
		t.Fatal(err)
	}
	mem := NewMemBytes(content)
	for name, src := range map[string]Device{"file": file, "file with a hole": hole, "memory": mem, "slice": slice} {
		off := int64(12345)
		want := content[off:]
		if name == "slice" {
			want = content[off+5000:]
		}
		for what, p := range map[string]*Pool{"buffered": p, "direct": direct, "memory": nil} {
			garbage := bytes.Repeat([]byte{0xee}, size)
			var dst Device = NewMemBytes(garbage)
			if p != nil {
				h, err := p.Open(fileWith(t, dir, garbage), true)
				if errors.Is(err, ErrUnsupported) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				dst = h
			}
			const n = 1<<20 + 777
			method, err := CopyAll(dst, 4321, src, off, n)
			if err != nil || method == CopyNone {
				t.Fatalf("%s to %s: %v, %v", name, what, method, err)
			}
			copy(garbage[4321:], want[:n])
			got := make([]byte, size)
			if _, err := dst.ReadAt(got, 0); err != nil || !bytes.Equal(got, garbage) {
				t.Errorf("%s to %s by %v: other content, %v", name, what, method, err)
			}
			_ = dst.Close()
		}
	}
}

func TestCopyRefuses(t *testing.T) {
	p := NewPool(PoolOptions{})
	content := randomBytes(8192)
	src := mustOpen(t, p, fileWith(t, t.TempDir(), content), false)
	dst := mustOpen(t, p, testFile(t, 8192), true)
	for what, c := range map[string]struct {
		dst            Device
		dstOff, off, n int64
		kind           error
	}{
		"over the end of the source":      {dst, 0, 4096, 4097, ErrRange},
		"over the end of the destination": {dst, 4096, 0, 4097, ErrRange},
		"before the beginning":            {dst, 0, -1, 10, ErrRange},
		"to a file open for reading":      {src, 0, 4096, 100, ErrReadOnly},
		"to memory":                       {NewMem(8192), 0, 0, 100, ErrUnsupported},
	} {
		if m, err := Copy(c.dst, c.dstOff, src, c.off, c.n); Kind(err) != c.kind || m != CopyNone {
			t.Errorf("%s: %v, %v", what, m, err)
		}
	}
	if _, err := Copy(dst, 100, dst, 0, 101); Kind(err) != ErrInvalid {
		t.Errorf("overlapping ranges: %v", err)
	}
	if _, err := CopyAll(NewMem(100), 50, src, 0, 51); Kind(err) != ErrRange {
		t.Errorf("over the end of memory: %v", err)
	}
	if _, err := CopyAll(NewMem(10000), 0, src, 8000, 1000); Kind(err) != ErrRange {
		t.Errorf("over the end of the source, read and written: %v", err)
	}
	got := make([]byte, 8192)
	if _, err := dst.ReadAt(got, 0); err != nil || !bytes.Equal(got, make([]byte, 8192)) {
		t.Errorf("something was written, %v", err)
	}
}

func TestCopyWithinAFile(t *testing.T) {
	content := randomBytes(8192)
	h := mustOpen(t, NewPool(PoolOptions{}), fileWith(t, t.TempDir(), content), true)
	if _, err := CopyAll(h, 4096, h, 0, 4096); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if _, err := h.ReadAt(got, 4096); err != nil || !bytes.Equal(got, content[:4096]) {
		t.Errorf("other content, %v", err)
	}
}

// mounted makes a file system in a file and mounts it for the test.
func mounted(t *testing.T, size int64, mkfs ...string) string {
	t.Helper()
	image := testFile(t, size)
	device, _ := losetup(t, image)
	if out, err := exec.CommandContext(t.Context(), mkfs[0], append(mkfs[1:], device)...).CombinedOutput(); err != nil {
		t.Skipf("no %s: %v %s", mkfs[0], err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(device, dir, mkfs[0][len("mkfs."):], 0, ""); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestCopyReflink(t *testing.T) {
	dir := mounted(t, 320<<20, "mkfs.xfs", "-q")
	const size = 4 << 20
	content := randomBytes(size)
	p := NewPool(PoolOptions{})
	src := mustOpen(t, p, fileWith(t, dir, content), false)
	dst := mustOpen(t, p, fileWith(t, dir, make([]byte, size)), true)
	if m, err := Copy(dst, 1<<20, src, 8192, 2<<20); m != CopyReflink || err != nil {
		t.Fatalf("aligned: %v, %v", m, err)
	}
	if m, err := Copy(dst, 100, src, 0, 1000); m != CopyRange || err != nil {
		t.Fatalf("not aligned: %v, %v", m, err)
	}
	want := make([]byte, size)
	copy(want[1<<20:], content[8192:8192+2<<20])
	copy(want[100:], content[:1000])
	got := make([]byte, size)
	if _, err := dst.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other content, %v", err)
	}
	// A write to the copy must not reach the source.
	if _, err := dst.WriteAt([]byte("changed"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := src.ReadAt(got[:7], 8192); err != nil || !bytes.Equal(got[:7], content[8192:8199]) {
		t.Errorf("the source changed, %v", err)
	}
}

// copy_file_range does less than asked for when it likes.
func TestCopyRangeInSteps(t *testing.T) {
	content := randomBytes(10000)
	p := NewPool(PoolOptions{})
	src := mustOpen(t, p, fileWith(t, t.TempDir(), content), false)
	dst := mustOpen(t, p, testFile(t, 10000), true)
	if err := copyRange(dst.file.fd.n, 100, src.file.fd.n, 50, 9000, 1000); unsupported(err) {
		t.Skipf("no copy_file_range here: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	want, got := make([]byte, 10000), make([]byte, 10000)
	copy(want[100:9100], content[50:])
	if _, err := dst.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("other content, %v", err)
	}
	if err := copyRange(dst.file.fd.n, 0, src.file.fd.n, 9000, 2000, copyStep); err == nil {
		t.Error("a copy from past the end of the source succeeds")
	}
}
