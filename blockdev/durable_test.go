package blockdev

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A file is the old one or the new one, a path that is taken stays what it is, and
// what fails leaves nothing behind.
func TestReplaceAndCreateFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "record")
	holds := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("the file holds %q (%v), want %q", got, err, want)
		}
	}
	if err := CreateFile(path, []byte("first")); err != nil {
		t.Fatal(err)
	}
	holds("first")
	if err := CreateFile(path, []byte("second")); !errors.Is(err, os.ErrExist) {
		t.Errorf("a path that is taken: %v, want %v", err, os.ErrExist)
	}
	holds("first")
	if err := ReplaceFile(path, []byte("third")); err != nil {
		t.Fatal(err)
	}
	holds("third")

	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"replace a folder":  ReplaceFile(folder, nil),
		"create a folder":   CreateFile(folder, nil),
		"no such folder":    ReplaceFile(filepath.Join(dir, "nosuch", "record"), nil),
		"sync what is not":  SyncPath(filepath.Join(dir, "nosuch")),
		"publish a nothing": Publish(filepath.Join(dir, "nosuch"), path, true),
		"publish no more":   Publish(filepath.Join(dir, "nosuch"), filepath.Join(dir, "other"), false),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	holds("third")
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 2 {
		t.Errorf("the folder holds %v (%v), want the file and the folder alone", list, err)
	}
}
