package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"golang.org/x/sys/unix"
)

// place is what ORIGIN, COW or FILE on the command line stands for.
type place struct {
	device    *control.Info // of the daemon; nil for a file or block device
	path      string        // absolute, links resolved; of a device its file in the mount
	block     bool          // a block device of this machine
	stat      unix.Stat_t   // of a file or block device
	size      int64         // bytes
	blockSize int           // logical block size in bytes
	missing   error         // why it cannot be opened; only of a leg that a record knows
}

// what says what the place is, for messages.
func (p place) what() string {
	switch {
	case p.device != nil:
		return "the device " + p.device.Name
	case p.block:
		return "the block device " + p.path
	}
	return "the file " + p.path
}

// view is the place as the daemon must see it; false for its own devices.
func (p place) view() (control.View, bool) {
	return control.View{Path: p.path, Dev: p.stat.Dev, Ino: p.stat.Ino}, p.device == nil
}

// find resolves a word of the command line: the name of a device, its path in
// the mount, or the path of a file or block device. A word without a slash that
// is both is refused. It needs load.
func (s *session) find(word string) (place, error) {
	if word == "" {
		return place{}, usagef("an empty name: give a path, or the name of a device")
	}
	_, statErr := os.Lstat(word)
	if !strings.Contains(word, "/") {
		m, ok := s.deviceOf(word)
		switch {
		case ok && statErr == nil:
			return place{}, usagef("%q is both a device and a file of this directory: write %s for the device, ./%s for the file", word, m.Path, word)
		case ok:
			return deviceAt(m)
		case errors.Is(statErr, os.ErrNotExist):
			return place{}, fail(exitMissing, fmt.Errorf("there is neither a device nor a file %q", word), "see which devices there are with: dmfuse ls; a file of another directory is written with its path")
		}
	}
	path, err := cleanAbs(word)
	if err != nil {
		return place{}, err
	}
	if s.c != nil && within(s.v.Mount, path) {
		return s.inMount(path)
	}
	p, err := fileAt(path)
	if err == nil && p.block {
		err = s.checkOwnLoop(p)
	}
	return p, err
}

// checkOwnLoop refuses a loop device, or a partition of one, on a file of the
// daemon's own mount: the daemon would wait for itself.
func (s *session) checkOwnLoop(p place) error {
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + devNumOf(p.stat.Rdev).String())
	if err != nil || s.c == nil {
		return nil // not known to sysfs, so no loop device of this machine
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	var n int
	if _, err := fmt.Sscanf(filepath.Base(dir), "loop%d", &n); err != nil {
		return nil
	}
	if l, ok := readLoop(n); ok && within(s.v.Mount, l.backing) {
		name := filepath.Base(l.backing)
		return fail(exitFailed, fmt.Errorf("%s is a loop device on the device %s of the daemon, which cannot use its own mount from below", p.path, name), "use the device itself: "+name)
	}
	return nil
}

// findWord resolves a word of a table: like find, and "major:minor" of a block
// device.
func (s *session) findWord(word string) (place, error) {
	if m, ok := s.deviceOf(word); ok {
		return deviceAt(m)
	}
	if dev, err := parseDevNum(word); err == nil {
		dir, err := filepath.EvalSymlinks("/sys/dev/block/" + dev.String())
		if err != nil {
			return place{}, err
		}
		return fileAt("/dev/" + strings.ReplaceAll(filepath.Base(dir), "!", "/"))
	}
	return s.find(word)
}

// inMount resolves a path below the mount of the daemon, without asking the
// file, which may belong to a suspended device.
func (s *session) inMount(path string) (place, error) {
	if m, ok := s.deviceOf(path); ok {
		return deviceAt(m)
	}
	return place{}, fail(exitMissing, fmt.Errorf("%s is no device of the daemon whose mount it is in", path), "see which devices there are with: dmfuse ls")
}

func deviceAt(m mapped) (place, error) {
	if !m.Live {
		return place{}, failf(exitFailed, "the device %s has no live table, so it holds nothing yet", m.Name)
	}
	return place{device: &m.Info, path: m.Path, size: m.SizeBytes, blockSize: 512}, nil
}

// fileAt resolves the path of a regular file or block device.
func fileAt(path string) (place, error) {
	p := place{path: path, blockSize: 512}
	if err := unix.Stat(path, &p.stat); err != nil {
		return p, fail(exitFailed, fmt.Errorf("%s: %w", path, err), "")
	}
	switch p.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		p.size = p.stat.Size
		return p, nil
	case unix.S_IFBLK:
		p.block = true
		return p, p.measure()
	case unix.S_IFDIR:
		return p, failf(exitFailed, "%s is a directory; a regular file or block device is needed", path)
	}
	return p, failf(exitFailed, "%s is neither a regular file nor a block device", path)
}

// measure asks a block device for its size and logical block size.
func (p *place) measure() error {
	f, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if p.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	p.blockSize, err = unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	return err
}

// sectors is the size in whole sectors: what a device over it has.
func (p place) sectors() uint64 { return uint64(blockdev.SectorsIn(p.size)) }

// probe says what the place holds, as far as this user may read it.
func (p place) probe() (contents, error) {
	if p.device != nil && p.device.Suspended {
		return contents{}, nil // a read would wait
	}
	f, err := os.Open(p.path)
	if err != nil {
		return contents{}, err
	}
	defer f.Close()
	return probe(f, p.size)
}

// sameFile says whether path is the same file or block device as p.
func sameFile(path string, p place) bool {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return false
	}
	if p.block {
		return st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == p.stat.Rdev
	}
	return st.Dev == p.stat.Dev && st.Ino == p.stat.Ino
}

// errEmptyName is the refusal of an empty word where a name is expected, as a
// script writes it with a variable that is not set.
func errEmptyName() error { return usagef("the name is empty") }

// checkText refuses what cannot be told to a daemon, before one is started.
func checkText(word string) error {
	if utf8.ValidString(word) {
		return nil
	}
	return fail(exitUsage, fmt.Errorf("%q is not valid UTF-8, which the control API cannot pass on", word), "use a link with another name: ln -s")
}

// checkName refuses what cannot be the name of a device.
func checkName(name string) error {
	switch {
	case name == "":
		return errEmptyName()
	case len(name) > 127:
		return usagef("the name %.20q… has %d bytes; at most 127 are possible", name, len(name))
	case strings.Contains(name, "/"):
		return usagef("%q is no name for a device: it cannot hold a slash", name)
	case name == "." || name == ".." || name == "control" || name == ".dmfuse":
		return usagef("%q is no name for a device: it is taken for another purpose", name)
	case strings.ContainsAny(name, "\n\x00"):
		return usagef("%q is no name for a device: it cannot hold a line break", name)
	case !utf8.ValidString(name):
		return usagef("%q is no name for a device: it is not valid UTF-8", name)
	}
	return nil
}

// checkFree refuses the name of a device that exists. It needs load.
func (s *session) checkFree(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if _, ok := s.called(name); ok {
		return fail(exitBusy, fmt.Errorf("there is already a device %q", name), "choose another name, or see what it is with: dmfuse table "+shellQuote(name))
	}
	return nil
}

// note tells the user something that does not stop the work.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.stderr, "dmfuse: note: %s\n", message(fmt.Sprintf(format, args...)))
}

// baseName is the last part of a path without one of the endings.
func baseName(path string, endings ...string) string {
	name := filepath.Base(path)
	for _, e := range endings {
		name = strings.TrimSuffix(name, e)
	}
	return name
}
