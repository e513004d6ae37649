package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// TestDropUnfinished: what a kill left goes, and nothing that could be another's.
func TestDropUnfinished(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"a.new-1", "b.new-4294967295", "a.new-", "a.new-x1", "a.new", ".new-1", "a.new-1.bak", "a"} {
		if err := os.WriteFile(path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(path("a.new-2"), 0o700), os.Symlink("a", path("a.new-3"))); err != nil {
		t.Fatal(err)
	}
	written, err := CreateUnfinished(path("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer written.Close()
	want := []string{".new-1", "a", "a.new", "a.new-", "a.new-1.bak", "a.new-2", "a.new-3", filepath.Base(written.Name()), "a.new-x1"}
	slices.Sort(want)
	has := func(more ...string) {
		t.Helper()
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		if want := slices.Sorted(slices.Values(slices.Concat(want, more))); !slices.Equal(names, want) {
			t.Errorf("there is %q, want %q", names, want)
		}
	}
	if err := DropUnfinishedOf(path("a")); err != nil {
		t.Fatal(err)
	}
	has("b.new-4294967295")
	if err := DropUnfinished(dir, nil); err != nil {
		t.Fatal(err)
	}
	has()
	if err := DropUnfinished(path("none"), nil); err != nil {
		t.Errorf("no folder: %v", err)
	}
}

// TestDropUnfinished_Beside: those who write a file at the same time never lose it
// to somebody who removes what is left.
func TestDropUnfinished_Beside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	var writers, removers sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		writers.Go(func() {
			for range 100 {
				if err := ReplaceFile(path, []byte("whole")); err != nil {
					t.Error(err)
				}
			}
		})
		removers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := DropUnfinishedOf(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(done)
	removers.Wait()
	if got, err := os.ReadFile(path); err != nil || string(got) != "whole" {
		t.Errorf("%q, %v", got, err)
	}
}
