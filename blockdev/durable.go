package blockdev

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/dmfuse/dmfuse/internal/step"
	"golang.org/x/sys/unix"
)

// ReplaceFile puts data into path so that a reader finds the old content or the
// new one, whatever happens, and after a return the new one: create, sync, rename,
// sync of the folder. A kill may leave a file PATH.new-*, see [DropUnfinished].
func ReplaceFile(path string, data []byte) error { return writeFile(path, data, true) }

// CreateFile is ReplaceFile for a path that must be free: [os.ErrExist] otherwise.
func CreateFile(path string, data []byte) error { return writeFile(path, data, false) }

func writeFile(path string, data []byte, replace bool) (err error) {
	f, err := CreateUnfinished(path)
	if err != nil {
		return err
	}
	defer f.Close() // after the rename, as the lock ends with it
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	step.At("file-written")
	if err != nil {
		return err
	}
	return Publish(f.Name(), path, replace)
}

// Publish gives a file that is complete and durable its name, durably. What is
// there is only replaced when asked: [os.ErrExist] otherwise.
func Publish(from, to string, replace bool) error {
	if replace {
		if err := os.Rename(from, to); err != nil {
			return err
		}
		step.At("file-renamed")
		return SyncPath(filepath.Dir(to))
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // a file system without it
		if err = os.Link(from, to); err == nil {
			err = os.Remove(from)
		}
	}
	if errors.Is(err, os.ErrExist) {
		return &os.PathError{Op: "create", Path: to, Err: unix.EEXIST}
	}
	if err != nil {
		return err
	}
	return SyncPath(filepath.Dir(to))
}

// SyncPath makes a file, or the entries of a folder, durable, whoever wrote them.
func SyncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
