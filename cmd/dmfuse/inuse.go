package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A file that becomes an origin, a frozen base or a COW must not be written by
// others. This is the search for who does, by name; the daemon's own locks are
// what keeps them out afterwards.

// writersOf lists who may write to the place behind our back: loop devices,
// mounts, and processes that have it open for writing, but for the daemon.
func (s *session) writersOf(p place) ([]string, error) {
	var found []string
	if p.device != nil || !p.block {
		loops, err := loopsOn(p.path)
		if err != nil {
			return nil, err
		}
		for _, l := range loops {
			if !l.readOnly {
				found = append(found, "the loop device "+l.path()+usersText(l))
			}
		}
	}
	if p.block {
		users, err := blockUsers(devNumOf(p.stat.Rdev))
		if err != nil {
			return nil, err
		}
		found = append(found, users...)
	}
	return append(found, lastingWriters(p.path, s.v.PID)...), nil
}

// passing is how long a process may have a file open before it counts as a
// user: udev and losetup look at a block device for a moment.
const passing = 300 * time.Millisecond

// lastingWriters is openWriters without those who are gone after a moment.
func lastingWriters(path string, daemon int) []string {
	var found []string
	_ = poll(passing, func() (bool, error) {
		found = openWriters(path, daemon)
		return len(found) == 0, nil
	}, func() error { return nil })
	return found
}

// blockUsers lists the writable mounts, and the kernel's devices, on a block
// device, its partitions, or the whole disk it is a partition of.
func blockUsers(dev devNum) ([]string, error) {
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + dev.String())
	if err != nil {
		return nil, fmt.Errorf("sysfs does not know the block device %s: %w", dev, err)
	}
	nodes := blockTreeAt(dir)
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		nodes = append(nodes, blockTreeAt(filepath.Dir(dir))[:1]...)
	}
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var users []string
	for _, m := range mountsOf(mounts, nodeMap(nodes)) {
		if !m.readOnly {
			users = append(users, "the mount at "+m.point)
		}
	}
	for _, n := range nodes {
		if n.holder {
			users = append(users, "the device "+n.path)
		}
	}
	return users, nil
}

// openWriters lists the processes, save this one and those given, that have
// path open for writing.
func openWriters(path string, except ...int) []string {
	var found []string
next:
	for _, pid := range pids() {
		for _, e := range except {
			if pid == e {
				continue next
			}
		}
		dir := "/proc/" + strconv.Itoa(pid) + "/fd/"
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // another user's, or gone
		}
		for _, fd := range fds {
			if to, err := os.Readlink(dir + fd.Name()); err == nil && to == path && opensForWriting(pid, fd.Name()) {
				found = append(found, fmt.Sprintf("pid %d (%s)", pid, commandName(pid)))
				continue next
			}
		}
	}
	return found
}

// opensForWriting reads the access mode of a descriptor.
func opensForWriting(pid int, fd string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(rest), 8, 32)
			return err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY && flags&unix.O_PATH == 0
		}
	}
	return false
}

// busy is the refusal of a place that others use, naming them.
func busy(p place, users []string, next string) error {
	return fail(exitBusy, fmt.Errorf("%s is in use by %s", p.what(), strings.Join(users, ", ")), next)
}
