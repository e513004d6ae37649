package blockdev

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// memoryFile is a file on tmpfs.
func memoryFile(t *testing.T, size int64) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "dmfuse-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What is in memory anyhow is done now, but for what would be an error.
func TestPrompt_Memory(t *testing.T) {
	f := mustOpenFile(t, memoryFile(t, 10_000), FileOptions{Write: true})
	if !f.memory {
		t.Skip("/dev/shm is no tmpfs")
	}
	want := bytes.Repeat([]byte("now "), 1000)
	if !f.WriteNow(want, 4000) {
		t.Error("a write would wait")
	}
	got := make([]byte, len(want))
	if !f.ReadNow(got, 4000) || !bytes.Equal(got, want) {
		t.Error("a read would wait, or is wrong")
	}
	for _, off := range []int64{-1, 6001, 9_999, 10_000, 1 << 40} {
		if f.ReadNow(got, off) || f.WriteNow(want, off) {
			t.Errorf("done at %d, over the end", off)
		}
	}
	if f.Size() != 10_000 {
		t.Errorf("size %d", f.Size())
	}
	r := mustOpenFile(t, memoryFile(t, 10_000), FileOptions{})
	if r.WriteNow(want, 0) {
		t.Error("written to a file that is open for reading")
	}
	if err := r.Close(); err != nil || r.ReadNow(got, 0) {
		t.Errorf("read from a closed file; %v", err)
	}
}

// On a medium only what the page cache has is read now, and nothing written.
func TestPrompt_Disk(t *testing.T) {
	path := testFile(t, 1<<20)
	f := mustOpenFile(t, path, FileOptions{Write: true})
	if f.memory {
		t.Skip("the directory for temporary files is in memory")
	}
	data := bytes.Repeat([]byte{7}, 1<<20)
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	switch {
	case f.noReadNow.Load():
	case !f.ReadNow(p, 8192):
		if f.noReadNow.Load() {
			t.Skip("this file system cannot tell")
		}
		t.Error("what was just written is not in memory")
	case !bytes.Equal(p, data[:4096]):
		t.Error("other content")
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(f.fd.n, 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if f.ReadNow(p, 8192) {
		t.Error("read now from a file that is not in memory")
	}
	if f.WriteNow(p, 0) {
		t.Error("written now to a disk")
	}
	d, err := OpenFile(path, FileOptions{Direct: true, NoLocks: true})
	if err != nil {
		t.Skip(err)
	}
	defer d.Close()
	if d.ReadNow(p, 0) {
		t.Error("read now from a file without a cache")
	}
}
