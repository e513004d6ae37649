package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/dmfuse/dmfuse/snapshot"
)

// newFile is a file that comes into being as a whole or not at all: it is
// written under another name in the same folder, and renamed when it is durable.
type newFile struct {
	*os.File
	path    string
	replace bool
}

// checkNewFile refuses the path of a file that cannot be made, or is there.
func (s *session) checkNewFile(path, what string, force bool) (string, error) {
	abs, err := cleanAbs(path)
	if err != nil {
		return "", err
	}
	if s.c != nil && within(s.v.Mount, abs) {
		return "", failf(exitFailed, "%s is in the mount of the daemon, where files cannot be made", abs)
	}
	if err := checkDir(abs, what); err != nil {
		return "", err
	}
	fi, err := os.Stat(abs)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return abs, nil
	case err != nil:
		return "", err
	case !fi.Mode().IsRegular():
		return "", failf(exitFailed, "%s is no regular file, and is not overwritten", abs)
	case !force:
		return "", fail(exitBusy, fmt.Errorf("%s exists already", abs), "choose another name, or overwrite it with --force")
	}
	if err := checkNoRecord(abs); err != nil {
		return "", err
	}
	p, err := fileAt(abs)
	if err != nil {
		return "", err
	}
	for _, u := range s.usesOf(p) {
		return "", fail(exitBusy, fmt.Errorf("%s is the %s of the device %s, and is not overwritten", abs, u.role, u.device.Name), "choose another name")
	}
	users, err := s.writersOf(p)
	if err == nil && len(users) > 0 {
		err = busy(p, users, "choose another name")
	}
	return abs, err
}

// checkNoRecord refuses to replace the record beside a COW, a leg or a log, also
// with --force: what it says stands nowhere else.
func checkNoRecord(path string) error {
	of, ok := strings.CutSuffix(path, snapshot.SidecarSuffix)
	if !ok {
		return nil
	}
	_, err := snapshot.ReadSidecar(of)
	if err != nil {
		_, err = mirror.ReadSidecar(of)
	}
	if err != nil {
		return nil
	}
	return fail(exitBusy, fmt.Errorf("%s is the record beside %s, and is not replaced", path, of), "choose another name")
}

// makeNewFile begins a file; replace says that it may take the place of another.
func makeNewFile(path string, replace bool) (*newFile, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return nil, err
	}
	return &newFile{f, path, replace}, nil
}

// drop takes the file back; after keep it does nothing.
func (f *newFile) drop() {
	if f.Close() == nil {
		_ = os.Remove(f.Name())
	}
}

// keep makes the file durable and gives it its name.
func (f *newFile) keep() error {
	if err := f.Sync(); err != nil {
		return err
	}
	err := blockdev.Publish(f.Name(), f.path, f.replace)
	if errors.Is(err, os.ErrExist) && !f.replace {
		return fail(exitBusy, fmt.Errorf("%s came into being meanwhile", f.path), "choose another name, or overwrite it with --force")
	}
	if err != nil {
		return err
	}
	return f.Close()
}
