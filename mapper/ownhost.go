package mapper

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"golang.org/x/sys/unix"
)

// onOwn is the error of a word of a table that leads to a mapped device by way of
// loop devices and perhaps file systems on them, nil for all others. While
// devices are brought back nobody serves those files, and whoever looks for one
// there, or reads it, would wait for himself: in the kernel, where no signal ends
// it. So no file is looked at that may lie there, but names in proc and sysfs.
func (m *Manager) onOwn(mounts []mount, word string) error {
	w := ownWalk{m: m, mounts: mounts, seen: map[[2]uint32]bool{}}
	name := ""
	if major, minor, ok := parseNumber(word); ok {
		name = w.block(major, minor)
	} else if filepath.IsAbs(word) {
		name = w.path(word)
	}
	if name == "" {
		return nil
	}
	return fmt.Errorf("%w: %s lies on the device %s of this daemon, by way of a loop device, and cannot be opened before that is served", blockdev.ErrNoDevice, word, name)
}

// ownWalk looks for mapped devices below a path, in sysfs and mountinfo.
type ownWalk struct {
	m      *Manager
	mounts []mount
	seen   map[[2]uint32]bool // block devices
}

// path is the mapped device below a path; empty: none. What is in the mount
// itself is the device of that name, and the end.
func (w *ownWalk) path(path string) string {
	rest := strings.Split(strings.TrimPrefix(filepath.Clean(path), "/"), "/")
	done := "/"
	for links := 0; len(rest) > 0; {
		next := filepath.Join(done, rest[0])
		rest = rest[1:]
		if w.inMount(next) {
			return ""
		}
		if mnt, ok := mountOf(w.mounts, next); ok {
			if major, minor, ok := mnt.block(); ok {
				if name := w.block(major, minor); name != "" {
					return name
				}
			}
		}
		to, err := os.Readlink(next)
		if err != nil {
			done = next
			continue
		}
		if links++; links > 40 {
			return ""
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(done, to)
		}
		rest = append(strings.Split(strings.TrimPrefix(filepath.Clean(to), "/"), "/"), rest...)
		done = "/"
	}
	var st unix.Stat_t
	if unix.Stat(done, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	return w.block(unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// inMount says whether a path is in the daemon's own mount, or in another mount
// of the same.
func (w *ownWalk) inMount(path string) bool {
	if w.m.o.MountDir == "" {
		return false
	}
	if under(path, w.m.o.MountDir) {
		return true
	}
	own, ok1 := mountOf(w.mounts, w.m.o.MountDir)
	there, ok2 := mountOf(w.mounts, path)
	return ok1 && ok2 && own.point == w.m.o.MountDir && own.major == there.major && own.minor == there.minor
}

// block is the mapped device below a block device; empty: none.
func (w *ownWalk) block(major, minor uint32) string {
	n := [2]uint32{major, minor}
	if w.seen[n] {
		return ""
	}
	w.seen[n] = true
	dir := w.m.host.blockDir(major, minor)
	if b, err := os.ReadFile(filepath.Join(dir, "loop/backing_file")); err == nil {
		file := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), " (deleted)")
		if w.inMount(file) {
			return filepath.Base(file)
		}
		return w.path(file)
	}
	below, _ := filepath.Glob(filepath.Join(dir, "slaves/*/dev"))
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			below = append(below, filepath.Join(filepath.Dir(real), "dev"))
		}
	}
	for _, file := range below {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if major, minor, ok := parseNumber(strings.TrimSpace(string(b))); ok {
			if name := w.block(major, minor); name != "" {
				return name
			}
		}
	}
	return ""
}
