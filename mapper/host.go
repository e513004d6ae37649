package mapper

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"golang.org/x/sys/unix"
)

// Host names the directories that describe the machine. Empty fields are the
// real ones.
type Host struct {
	Proc string // "/proc": devices, self/mountinfo, sys/kernel/random/boot_id
	Sys  string // "/sys": dev/block
}

func (h *Host) defaults() {
	if h.Proc == "" {
		h.Proc = "/proc"
	}
	if h.Sys == "" {
		h.Sys = "/sys"
	}
}

// hasBlockDevice says whether this machine has a block device of that number.
func (h *Host) hasBlockDevice(major, minor uint32) bool {
	_, err := os.Lstat(h.blockDir(major, minor))
	return err == nil
}

func (h *Host) blockDir(major, minor uint32) string {
	return filepath.Join(h.Sys, "dev/block", fmt.Sprintf("%d:%d", major, minor))
}

// mount is a line of mountinfo (kernel: Documentation/filesystems/proc.rst).
type mount struct {
	major, minor uint32
	root         string // what of the file system is mounted
	point        string // where
	source       string // device, for most file systems of a disk
}

// mounts lists the mounts of this process; none when they cannot be read.
func (h *Host) mounts() []mount {
	data, err := os.ReadFile(filepath.Join(h.Proc, "self/mountinfo"))
	if err != nil {
		return nil
	}
	var out []mount
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		dash := 6 // optional fields end at a single hyphen
		for dash < len(f) && f[dash] != "-" {
			dash++
		}
		if dash+2 >= len(f) {
			continue
		}
		major, minor, ok := parseNumber(f[2])
		if !ok {
			continue
		}
		out = append(out, mount{major, minor, unescape(f[3]), unescape(f[4]), unescape(f[dash+2])})
	}
	return out
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		var n int
		if s[i] == '\\' && i+3 < len(s) {
			if _, err := fmt.Sscanf(s[i+1:i+4], "%03o", &n); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountOf is the mount that an absolute path without links lies on: the deepest
// one, and of several at one place the last.
func mountOf(mounts []mount, path string) (mount, bool) {
	best, found := mount{}, false
	for _, m := range mounts {
		if under(path, m.point) && (!found || len(m.point) >= len(best.point)) {
			best, found = m, true
		}
	}
	return best, found
}

// under says whether path is dir or lies below it.
func under(path, dir string) bool {
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}

// block is the number of the block device that a mount's file system is on.
// File systems with several devices, like btrfs, have a number of their own and
// name one of the devices as source.
func (m mount) block() (major, minor uint32, ok bool) {
	if m.major != 0 {
		return m.major, m.minor, true
	}
	var st unix.Stat_t
	if !strings.HasPrefix(m.source, "/dev/") || unix.Stat(m.source, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, false
	}
	return unix.Major(st.Rdev), unix.Minor(st.Rdev), true
}

// resolve follows the symbolic links of an absolute path. It does not look
// below stop, the daemon's own mount: asking there would be asking itself.
func resolve(path, stop string) string {
	rest := strings.Split(strings.TrimPrefix(filepath.Clean(path), "/"), "/")
	done := "/"
	for links := 0; len(rest) > 0; {
		next := filepath.Join(done, rest[0])
		rest = rest[1:]
		if stop != "" && under(next, stop) {
			return filepath.Join(append([]string{next}, rest...)...)
		}
		to, err := os.Readlink(next)
		if err != nil {
			done = next
			continue
		}
		if links++; links > 40 {
			return path
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(done, to)
		}
		rest = append(strings.Split(strings.TrimPrefix(filepath.Clean(to), "/"), "/"), rest...)
		done = "/"
	}
	return done
}

// inMount says whether a path leads into the daemon's own mount, there or by
// way of a link or a bind mount, and which name it has there: empty for a path
// that is not directly below the root.
func (m *Manager) inMount(path string) (name string, in bool) {
	if m.o.MountDir == "" || !filepath.IsAbs(path) {
		return "", false
	}
	path = resolve(path, m.o.MountDir)
	if !under(path, m.o.MountDir) {
		mounts := m.host.mounts()
		own, ok1 := mountOf(mounts, m.o.MountDir)
		there, ok2 := mountOf(mounts, path)
		if !ok1 || !ok2 || own.point != m.o.MountDir || own.major != there.major || own.minor != there.minor {
			return "", false
		}
		path = filepath.Join(m.o.MountDir, there.root, strings.TrimPrefix(path, there.point))
	}
	rel := strings.TrimPrefix(strings.TrimPrefix(path, m.o.MountDir), "/")
	if rel == "" || strings.Contains(rel, "/") {
		return "", true
	}
	return rel, true
}

// hosts finds where the bytes of a file or block device lie, all the way down:
// a file on the device of its file system, a partition on its disk, a loop
// device on its file, and a file of our own mount on a mapped device. What
// cannot be read is taken for the end.
func (m *Manager) hosts(id blockdev.ID, path string) []edge {
	w := hostWalk{m: m, mounts: m.host.mounts(), seen: map[node]bool{}}
	n := node{id: id}
	switch id.Kind {
	case blockdev.IDFile:
		w.file(n, path)
	case blockdev.IDBlock:
		w.block(n, unix.Major(id.A), unix.Minor(id.A))
	}
	return w.edges
}

type hostWalk struct {
	m      *Manager
	mounts []mount
	seen   map[node]bool
	edges  []edge
}

// step notes an edge; false when its end was visited already.
func (w *hostWalk) step(from, to node) bool {
	w.edges = append(w.edges, edge{from, to, useHosted})
	if w.seen[to] {
		return false
	}
	w.seen[to] = true
	return true
}

func (w *hostWalk) file(n node, path string) {
	mnt, ok := mountOf(w.mounts, resolve(path, w.m.o.MountDir))
	if !ok {
		return
	}
	if major, minor, ok := mnt.block(); ok {
		w.number(n, major, minor)
	}
}

func (w *hostWalk) number(n node, major, minor uint32) {
	to := node{id: blockdev.ID{Kind: blockdev.IDBlock, A: unix.Mkdev(major, minor)}}
	if w.step(n, to) {
		w.block(to, major, minor)
	}
}

func (w *hostWalk) block(n node, major, minor uint32) {
	dir := w.m.host.blockDir(major, minor)
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			w.numberIn(n, filepath.Join(filepath.Dir(real), "dev"))
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "loop/backing_file")); err == nil {
		w.backing(n, strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), " (deleted)"))
	}
	slaves, _ := filepath.Glob(filepath.Join(dir, "slaves/*/dev"))
	for _, s := range slaves {
		w.numberIn(n, s)
	}
}

// numberIn goes on at the device whose number is in a sysfs file.
func (w *hostWalk) numberIn(n node, file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	if major, minor, ok := parseNumber(strings.TrimSpace(string(b))); ok {
		w.number(n, major, minor)
	}
}

func (w *hostWalk) backing(n node, path string) {
	if name, in := w.m.inMount(path); in {
		if d, err := w.m.Device(ByName(name)); err == nil {
			w.step(n, node{dev: d})
		}
		return
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return
	}
	to := node{id: blockdev.ID{Kind: blockdev.IDFile, A: st.Dev, B: st.Ino}}
	if w.step(n, to) {
		w.file(to, path)
	}
}
