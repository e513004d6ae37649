package blockdev

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestMemGrowsAndShrinks(t *testing.T) {
	m := NewMemBytes([]byte("0123456789"))
	if err := m.Grow(5); err != nil || m.Size() != 10 {
		t.Fatalf("Grow below the size: %v, size %d", err, m.Size())
	}
	if err := m.Grow(3 * memPage); err != nil || m.Size() != 3*memPage {
		t.Fatalf("Grow: %v, size %d", err, m.Size())
	}
	if n, hole, err := m.Extent(memPage); n != 2*memPage || !hole || err != nil {
		t.Errorf("the new part is %d, hole %v, %v", n, hole, err)
	}
	if err := m.Resize(4); err != nil {
		t.Fatal(err)
	}
	if err := m.Grow(10); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if _, err := m.ReadAt(got, 0); err != nil || !bytes.Equal(got, []byte("0123\x00\x00\x00\x00\x00\x00")) {
		t.Errorf("after shrinking and growing: %q, %v", got, err)
	}
}

func TestMemEnds(t *testing.T) {
	m := NewMem(100)
	if n, err := m.WriteAt(make([]byte, 2), 99); n != 0 || !errors.Is(err, ErrRange) {
		t.Errorf("write over the end: %d, %v", n, err)
	}
	if n, err := m.ReadAt(make([]byte, 2), 99); n != 1 || err != io.EOF {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := m.ReadAt(make([]byte, 2), -1); n != 0 || !errors.Is(err, ErrRange) {
		t.Errorf("read before the beginning: %d, %v", n, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

func TestMemPunchGivesPagesBack(t *testing.T) {
	m := NewMemBytes(bytes.Repeat([]byte{7}, 3*memPage+5))
	if err := m.Zero(1, 3*memPage+4, true); err != nil {
		t.Fatal(err)
	}
	if n, hole, _ := m.Extent(0); hole || n != memPage {
		t.Errorf("first page: %d, hole %v", n, hole)
	}
	if n, hole, _ := m.Extent(memPage); !hole || n != 2*memPage+5 {
		t.Errorf("the rest: %d, hole %v", n, hole)
	}
}
