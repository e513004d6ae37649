package blockdev

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// unfinishedMark stands between the name of a file and a number, while its content
// is written beside it.
const unfinishedMark = ".new-"

// CreateUnfinished makes the file PATH.new-NUMBER, whose content is to become that of
// path by [Publish]. As long as it is open it has an flock, by which those who
// remove what kills left know that it is being written.
func CreateUnfinished(path string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+unfinishedMark+"*")
		if err != nil {
			return nil, err
		}
		// A file system without locks: then nobody gets one, and nothing is removed.
		_ = flock(f, unix.LOCK_EX)
		if isAt(f, f.Name()) {
			return f, nil
		}
		_ = f.Close() // somebody had the lock first, and took it for left
	}
}

// DropUnfinished removes what kills left in a folder of files that were to be
// written: PATH.new-NUMBER of those PATH whose last element ours wants (nil: all). A
// file that a process writes has a lock and stays. No folder has none.
func DropUnfinished(dir string, ours func(name string) bool) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		list, err := d.ReadDir(256)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range list {
			name, ok := unfinishedOf(e.Name())
			if !ok || !e.Type().IsRegular() || ours != nil && !ours(name) {
				continue
			}
			if err := dropUnlocked(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
}

// DropUnfinishedOf is [DropUnfinished] for one file.
func DropUnfinishedOf(path string) error {
	return DropUnfinished(filepath.Dir(path), func(name string) bool { return name == filepath.Base(path) })
}

// unfinishedOf gives the name of the file that one was to become.
func unfinishedOf(name string) (string, bool) {
	i := strings.LastIndex(name, unfinishedMark)
	if i <= 0 {
		return "", false
	}
	number := name[i+len(unfinishedMark):]
	return name[:i], number != "" && strings.Trim(number, "0123456789") == ""
}

// dropUnlocked removes a file that nobody has locked.
func dropUnlocked(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil // it is gone, or not ours
	}
	defer f.Close()
	if flock(f, unix.LOCK_EX|unix.LOCK_NB) != nil || !isAt(f, path) {
		return nil // it is being written, or has its name by now
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// isAt says whether a path is that of an open file.
func isAt(f *os.File, path string) bool {
	has, err := f.Stat()
	if err != nil {
		return false
	}
	at, err := os.Lstat(path)
	return err == nil && os.SameFile(has, at)
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
