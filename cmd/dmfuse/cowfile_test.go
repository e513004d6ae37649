package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmfuse/dmfuse/snapshot"
)

// plannedCow is a COW as a command has planned it that has not made it yet.
func plannedCow(t *testing.T, path string, wipe bool) *cowFile {
	t.Helper()
	c := &cowFile{path: path, size: 64 << 10, chunk: 4096, store: "P", wipe: wipe}
	if p, err := fileAt(path); err == nil {
		c.place, c.exists = p, true
	}
	t.Cleanup(c.close)
	return c
}

// Of two commands that have chosen the same COW one gets it, whenever the other
// comes; the other says that it is taken and changes nothing, also when it takes
// back what it did.
func TestCowFile_IsForOneCommand(t *testing.T) {
	for _, c := range []struct {
		name    string
		content []byte // of the file before both look; nil: none
		wipe    bool   // --force
		closed  bool   // the first is done when the second begins
		late    bool   // the second looked when the first had made it
	}{
		{name: "new"},
		{name: "new, done", closed: true},
		{name: "new, looked late", late: true},
		{name: "empty", content: []byte{}},
		{name: "empty, done", content: []byte{}, closed: true},
		{name: "full, forced", content: bytes.Repeat([]byte{7}, 9000), wipe: true},
		{name: "full, forced, done", content: bytes.Repeat([]byte{7}, 9000), wipe: true, closed: true},
		{name: "full, forced, looked late", content: bytes.Repeat([]byte{7}, 9000), wipe: true, late: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cow")
			if c.content != nil {
				if err := os.WriteFile(path, c.content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			nobody := func() error { return nil }
			first := plannedCow(t, path, c.wipe)
			second := plannedCow(t, path, c.wipe)
			if err := first.make(nobody); err != nil {
				t.Fatal(err)
			}
			if err := first.writeSidecar(baseOf{}, "first"); err != nil {
				t.Fatal(err)
			}
			store := []byte("what the daemon writes at once")
			if f, err := os.OpenFile(path, os.O_WRONLY, 0); err != nil {
				t.Fatal(err)
			} else if _, err = f.WriteAt(store, 0); errors.Join(err, f.Close()) != nil {
				t.Fatal(err)
			}
			if c.late {
				second = plannedCow(t, path, c.wipe)
			}
			if c.closed {
				first.close()
			}
			err := second.make(nobody)
			if err == nil || exitCode(err) != exitBusy || advice(err) == "" {
				t.Fatalf("the second: %v (exit code %d, advice %q)", err, exitCode(err), advice(err))
			}
			if err := second.undo(); err != nil {
				t.Error(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || len(got) != 64<<10 || !bytes.HasPrefix(got, store) {
				t.Errorf("the COW of the first: %d bytes, %.30q, %v", len(got), got, err)
			}
			if side, err := snapshot.ReadSidecar(path); err != nil || side.Name != "first" {
				t.Errorf("its sidecar: %+v, %v", side, err)
			}
		})
	}
}

// What another command did after this one had looked is seen before anything is
// changed: all that a device has no lock for, and --force for which a file that is
// in use looks like any other.
func TestCowFile_LooksAgainBeforeItChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cow")
	content := bytes.Repeat([]byte{7}, 9000)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	c := plannedCow(t, path, true)
	taken := errors.New("taken")
	if err := c.make(func() error { return taken }); !errors.Is(err, taken) {
		t.Fatalf("make: %v", err)
	}
	if err := c.undo(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file has changed: %d bytes, %v", len(got), err)
	}
}
