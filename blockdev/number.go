package blockdev

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenNumber opens the block device with that number, found through sysfs and
// /dev, or by a node made for the moment of opening. A number that no device
// has is [ErrNoAddress].
func (p *Pool) OpenNumber(major, minor uint32, write bool) (*Handle, error) {
	path, done, err := findBlock(major, minor)
	if err != nil {
		return nil, &Error{Op: "open", Device: fmt.Sprintf("%d:%d", major, minor), Err: err}
	}
	defer done()
	return p.Open(path, write)
}

// findBlock returns the path of a node for a block device; done removes it if
// it was made here.
func findBlock(major, minor uint32) (path string, done func(), err error) {
	rdev := unix.Mkdev(major, minor)
	name, err := sysfsName(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", major, minor))
	if err != nil {
		return "", nil, fmt.Errorf("%w: there is no block device %d:%d", ErrNoAddress, major, minor)
	}
	path = filepath.Join("/dev", name)
	if isBlock(path, rdev) {
		return path, func() {}, nil
	}
	return makeNode(rdev)
}

// isBlock says whether path is a node of the block device rdev.
func isBlock(path string, rdev uint64) bool {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == rdev
}

// sysfsName reads the name of the node below /dev from a uevent file.
func sysfsName(uevent string) (string, error) {
	f, err := os.Open(uevent)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "DEVNAME="); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("%w: no name in %s", ErrNoAddress, uevent)
}

// makeNode makes a node in a directory that only this user can enter.
func makeNode(rdev uint64) (path string, done func(), err error) {
	for _, parent := range []string{"/dev", os.TempDir()} {
		dir, mkErr := os.MkdirTemp(parent, ".dmfuse-node-")
		if mkErr != nil {
			err = mkErr
			continue
		}
		path = filepath.Join(dir, "block")
		done = func() { _ = os.RemoveAll(dir) }
		if err = unix.Mknod(path, unix.S_IFBLK|0o600, int(rdev)); err == nil {
			return path, done, nil
		}
		done()
	}
	return "", nil, fmt.Errorf("make a node for block device %d:%d: %w", unix.Major(rdev), unix.Minor(rdev), err)
}
