package blockdev

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A write-back that begins changes nothing, whatever the range, and nothing happens
// where the device is closed or has no medium.
func TestBeginWriteback(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	want := bytes.Repeat([]byte("durable?"), 1024)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	p := NewPool(PoolOptions{})
	h := mustOpen(t, p, path, true)
	if _, err := h.WriteAt(want[:4096], 4096); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{4096, 4096}, {0, 8192}, {0, 0}, {4096, 1 << 40}, {-1, 1}, {0, -1}, {1 << 62, 1 << 62}} {
		BeginWriteback(h, r[0], r[1])
		h.Unwrap().BeginWriteback(r[0], r[1])
	}
	if err := h.Flush(); err != nil {
		t.Errorf("a flush behind it: %v", err)
	}
	got := make([]byte, len(want))
	if _, err := h.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has changed, or cannot be read: %v", err)
	}
	if h.Size() != int64(len(want)) {
		t.Errorf("the file has %d bytes, wanted %d", h.Size(), len(want))
	}
	h.Close()
	BeginWriteback(h, 0, 4096)
	BeginWriteback(NewMem(4096), 0, 4096)
}
