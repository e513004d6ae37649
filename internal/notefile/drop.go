package notefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// DropUnplaced removes the notes of a directory whose names begin with prefix and
// that were never placed.
func DropUnplaced(dir, prefix string) error {
	_, err := Drop(dir, prefix, func(file string) bool { return !strings.HasSuffix(file, unplaced) })
	return err
}

// Drop removes the files of a directory whose names begin with prefix, save those
// that keep wants (nil: none), and tells how many there were. No directory, or
// the empty name, has none.
func Drop(dir, prefix string, keep func(file string) bool) (n int, err error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || dir == "" {
		return 0, nil
	}
	for _, e := range list {
		file := filepath.Join(dir, e.Name())
		if !strings.HasPrefix(e.Name(), prefix) || keep != nil && keep(file) {
			continue
		}
		if rerr := os.Remove(file); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) && err == nil {
			err = rerr
		}
		n++
	}
	return n, err
}
