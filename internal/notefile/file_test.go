package notefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "note")
	const size = 3 * 4096
	a, err := Create(path, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, size); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a note that has no place was found: %v", err)
	}
	if err := a.Place(); err != nil {
		t.Fatal(err)
	}
	if err := Guard(func() { a.Bytes()[size-1] = 7 }); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 < size {
		t.Errorf("%d blocks, %v: its space is not taken", st.Blocks, err)
	}
	if _, err := Open(path, size+1); err == nil {
		t.Error("a note of another size was opened")
	}
	var b *File
	next, err := Open(path, size)
	if err != nil || next.Bytes()[size-1] != 7 {
		t.Fatalf("what the next one sees: %v", err)
	}
	if err := next.Unmap(); err != nil {
		t.Error(err)
	}
	for range 2 { // the first one dies
		b, err = Create(path, size)
		if err != nil {
			t.Fatal(err)
		}
	}
	if !a.Linked() {
		t.Error("the old one is gone before the new one has its place")
	}
	if err := b.Place(); err != nil {
		t.Fatal(err)
	}
	if a.Linked() || !b.Linked() {
		t.Errorf("linked: the old one %v, the new one %v", a.Linked(), b.Linked())
	}
	if err := a.Remove(); err != nil || !b.Linked() {
		t.Errorf("the old one took the new one away (%v)", err)
	}
	if err := b.Remove(); err != nil || b.Linked() {
		t.Errorf("not removed: %v", err)
	}
	for _, f := range []*File{a, b} {
		if err := f.Unmap(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Open(path, size); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestGuard: a page that is gone is an error, another panic stays one.
func TestGuard(t *testing.T) {
	path := filepath.Join(t.TempDir(), "note")
	f, err := Create(path, 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Unmap()
	if err := f.Place(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := Guard(func() { f.Bytes()[0] = 1 }); err == nil {
		t.Error("a page behind the end of the file was written")
	}
	defer func() {
		if recover() != "another" {
			t.Error("the panic is gone")
		}
	}()
	_ = Guard(func() { panic("another") })
}

func TestMark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const name = "user.dmfuse.test"
	if s, err := Mark(path, name); s != "" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	switch err := SetMark(path, name, "x"); {
	case errors.Is(err, unix.EOPNOTSUPP):
		t.Skip("no extended attributes here")
	case err != nil:
		t.Fatal(err)
	}
	if s, err := Mark(path, name); s != "x" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	if err := SetMark(path, name, strings.Repeat("y", 65)); err != nil {
		t.Fatal(err)
	}
	if s, err := Mark(path, name); s == "" || err != nil {
		t.Errorf("a mark that is not ours: %q, %v", s, err)
	}
	for range 2 {
		if err := RemoveMark(path, name); err != nil {
			t.Error(err)
		}
	}
	if s, err := Mark(path, name); s != "" || err != nil {
		t.Errorf("%q, %v", s, err)
	}
	if _, err := Mark(path+"x", name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if one, other := NewSession(), NewSession(); one == other {
		t.Error("two sessions are the same")
	}
}
