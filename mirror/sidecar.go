package mirror

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dmfuse/dmfuse/blockdev"
	"golang.org/x/sys/unix"
)

// SidecarSuffix is added to the path of a file to get that of its sidecar.
const SidecarSuffix = ".dmfuse"

// sidecarVersion is the version that this program writes and the newest it
// reads.
const sidecarVersion = 1

// Kind is what a sidecar of this package stands beside.
type Kind string

// Kinds of sidecars.
const (
	KindLeg Kind = "mirror-leg"
	KindLog Kind = "mirror-log"
)

// Sidecar is one copy of a leg record, beside a leg or the log.
type Sidecar struct {
	Version int  `json:"version"`
	Kind    Kind `json:"kind"`
	// Inode is st_ino of the file itself. Another number means that the sidecar
	// was left beside, or copied with, another file.
	Inode uint64 `json:"inode"`
	// Self is the number of the leg that this copy stands beside; -1 of a log.
	Self int `json:"self"`
	Record
}

// SidecarPath is the path of the sidecar of a file.
func SidecarPath(file string) string { return file + SidecarSuffix }

// ReadSidecar reads the copy beside a leg or a log. A missing one is
// [fs.ErrNotExist]; one that is damaged, of another kind, of a newer version or
// of another file is [blockdev.ErrInvalid].
func ReadSidecar(file string) (Sidecar, error) { return readSidecar(osSteps{}, file) }

// WriteSidecar writes the copy beside a file, durably and at once: after a crash
// there is the old one or the new one. Version and inode are filled in.
func WriteSidecar(file string, s Sidecar) error { return writeSidecar(osSteps{}, file, s, Hooks{}) }

// RemoveSidecar takes the copy beside a file away: it belongs to no mirror any
// more. A missing one is no error.
func RemoveSidecar(file string) error {
	err := os.Remove(SidecarPath(file))
	osSteps{}.dropUnfinished(SidecarPath(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return osSteps{}.syncDir(SidecarPath(file))
}

// steps are what a copy of the record needs of a file system. Tests put one
// there that loses power between any two of them.
type steps interface {
	isFile(dev blockdev.Identified) bool // has a sidecar
	inode(file string) (uint64, error)
	read(path string) ([]byte, error)
	create(path string, data []byte) (tmp string, done func(), err error) // a new file beside path, being written until done
	sync(tmp string) error
	rename(tmp, path string) error
	syncDir(path string) error // the folder of path
	remove(tmp string)
	dropUnfinished(path string) // removes what kills left
}

func readSidecar(st steps, file string) (Sidecar, error) {
	var s Sidecar
	path := SidecarPath(file)
	b, err := st.read(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return Sidecar{}, fmt.Errorf("%w: sidecar %s: %v", blockdev.ErrInvalid, path, err)
	}
	switch {
	case s.Kind != KindLeg && s.Kind != KindLog:
		return Sidecar{}, fmt.Errorf("%w: sidecar %s is of kind %q, expected %q or %q", blockdev.ErrInvalid, path, s.Kind, KindLeg, KindLog)
	case s.Version < 1 || s.Version > sidecarVersion:
		return Sidecar{}, fmt.Errorf("%w: sidecar %s has version %d, this program knows 1 to %d", blockdev.ErrInvalid, path, s.Version, sidecarVersion)
	}
	if err := s.check(); err != nil {
		return Sidecar{}, fmt.Errorf("sidecar %s: %w", path, err)
	}
	ino, err := st.inode(file)
	if err != nil {
		return Sidecar{}, err
	}
	if ino != s.Inode {
		return Sidecar{}, fmt.Errorf("%w: sidecar %s was written for another file: inode %d, this one is %d", blockdev.ErrInvalid, path, s.Inode, ino)
	}
	return s, nil
}

func writeSidecar(st steps, file string, s Sidecar, h Hooks) (err error) {
	s.Version = sidecarVersion
	if s.Inode, err = st.inode(file); err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	path := SidecarPath(file)
	tmp, done, err := st.create(path, append(b, '\n'))
	if done != nil {
		defer done()
	}
	if err == nil && !h.NoRecordSync {
		err = st.sync(tmp)
	}
	if err == nil {
		err = st.rename(tmp, path)
	}
	if err != nil {
		if tmp != "" {
			st.remove(tmp)
		}
		return err
	}
	st.dropUnfinished(path)
	if h.NoRecordDirSync {
		return nil
	}
	return st.syncDir(path)
}

// osSteps are those of the machine.
type osSteps struct{}

func (osSteps) isFile(dev blockdev.Identified) bool { return dev.ID().Kind == blockdev.IDFile }

func (osSteps) inode(file string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: file, Err: err}
	}
	return st.Ino, nil
}

func (osSteps) read(path string) ([]byte, error) { return os.ReadFile(path) }

func (osSteps) create(path string, data []byte) (string, func(), error) {
	f, err := blockdev.CreateUnfinished(path)
	if err != nil {
		return "", nil, err
	}
	_, err = f.Write(data)
	return f.Name(), func() { _ = f.Close() }, err
}

func (osSteps) sync(tmp string) error         { return blockdev.SyncPath(tmp) }
func (osSteps) rename(tmp, path string) error { return os.Rename(tmp, path) }
func (osSteps) syncDir(path string) error     { return blockdev.SyncPath(filepath.Dir(path)) }
func (osSteps) remove(tmp string)             { _ = os.Remove(tmp) }

// What stays takes space and nothing else.
func (osSteps) dropUnfinished(path string) { _ = blockdev.DropUnfinishedOf(path) }
