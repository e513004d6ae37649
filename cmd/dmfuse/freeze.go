package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Freezing. A snapshot of a device with a mounted file system on it is clean
// when the file system is frozen around it: everything is written out and no
// write begins. The command does it, never the daemon, which must go on serving
// the dirty pages. Rules:
//
//  1. All file systems concerned are frozen, those on top first, before
//     anything is suspended; they are thawed after everything runs again.
//  2. A file system that holds what the daemon must write in between (its run
//     directory, its log, the new COW file) is never frozen: the daemon would
//     wait for the thaw, and the thaw for the daemon.
//  3. Whoever holds a freeze can die. A process of its own freezes and thaws
//     (freezehold.go): it thaws when the command is gone or a limit passes, and
//     the command thaws when that process is gone.
//  4. The command writes nothing to its own output while something is frozen.

// frozenFS is a file system that is to be frozen.
type frozenFS struct {
	dev    devNum
	point  string // where it is mounted, for people
	open   string // a path to its root that this process can open
	fsType string
}

// mountSpace is the mounts of one mount namespace.
type mountSpace struct {
	root   string // prefix under which this process sees the namespace: "" or /proc/PID/root
	mounts []mountEntry
}

// mountSpaces lists the mounts of this process's namespace and of every other
// one that can be seen: a file system may be mounted in a container only.
func mountSpaces() ([]mountSpace, error) {
	own, err := readMounts()
	if err != nil {
		return nil, err
	}
	spaces := []mountSpace{{"", own}}
	self, _ := os.Readlink("/proc/self/ns/mnt")
	seen := map[string]bool{self: true}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/mnt")
	for _, link := range links {
		ns, err := os.Readlink(link)
		if err != nil || seen[ns] {
			continue
		}
		proc := strings.TrimSuffix(link, "/ns/mnt")
		f, err := os.Open(proc + "/mountinfo")
		if err != nil {
			continue
		}
		mounts, err := parseMounts(f)
		f.Close()
		if err == nil {
			seen[ns] = true
			spaces = append(spaces, mountSpace{proc + "/root", mounts})
		}
	}
	return spaces, nil
}

// fileSystemsOn lists the file systems mounted from the file at path through
// loop devices, their partitions and what the kernel stacks on them, and those
// that stand on loop devices over files of these: tops first, each once.
func fileSystemsOn(path string) ([]frozenFS, error) {
	loops, err := loopsOn(path)
	if err != nil || len(loops) == 0 {
		return nil, err
	}
	spaces, err := mountSpaces()
	if err != nil {
		return nil, err
	}
	all, err := listLoops()
	if err != nil {
		return nil, err
	}
	w := fsWalk{spaces: spaces, loops: all, seen: map[devNum]bool{}}
	for _, l := range loops {
		w.loop(l)
	}
	slices.Reverse(w.found) // found bottom up
	return w.found, nil
}

// fsWalk collects file systems from the bottom up.
type fsWalk struct {
	spaces []mountSpace
	loops  []loopDevice
	seen   map[devNum]bool
	found  []frozenFS
}

func (w *fsWalk) loop(l loopDevice) {
	nodes := nodeMap(blockTree(l.name()))
	for _, s := range w.spaces {
		for _, m := range mountsOf(s.mounts, nodes) {
			if w.seen[m.dev] {
				continue
			}
			w.seen[m.dev] = true
			w.found = append(w.found, frozenFS{m.dev, m.point, s.root + m.point, m.fsType})
			for _, above := range w.loops {
				if on, ok := mountHolding(s.mounts, above.backing); ok && on.dev == m.dev {
					w.loop(above)
				}
			}
		}
	}
}

// freezeConflict refuses to freeze a file system that holds one of the paths,
// which the daemon may have to write before the thaw (rule 2). The values say
// what each path is.
func freezeConflict(list []frozenFS, needed map[string]string) error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	for path, what := range needed {
		real, err := cleanAbs(path)
		if err != nil {
			return err
		}
		on, ok := mountHolding(mounts, real)
		if !ok {
			continue
		}
		for _, fs := range list {
			if fs.dev == on.dev {
				return fail(exitFailed, fmt.Errorf("the file system on %s cannot be frozen: %s (%s) lies on it, and the daemon would wait for it for ever", fs.point, what, real),
					"move it to another file system, or take a crash-consistent snapshot with --no-freeze")
			}
		}
	}
	return nil
}

// daemonFiles lists the files that are standard output and error of the daemon:
// where its log goes.
func daemonFiles(pid int) map[string]string {
	files := map[string]string{}
	for _, fd := range []string{"1", "2"} {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); err == nil && strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "/dev/") {
			files[target] = "the log of the daemon"
		}
	}
	return files
}

// freezeRefused explains an errno of FIFREEZE.
func freezeRefused(fs frozenFS, errno error) error {
	err := fmt.Errorf("the %s file system on %s cannot be frozen: %w", fs.fsType, fs.point, errno)
	if errors.Is(errno, unix.EPERM) || errors.Is(errno, unix.EACCES) {
		return fail(exitFailed, err, "run the command as root, or take a crash-consistent snapshot with --no-freeze")
	}
	return fail(exitFailed, err, "take a crash-consistent snapshot with --no-freeze")
}
