package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"golang.org/x/sys/unix"
)

// inUse says who uses the files of the mount from outside: loop devices and
// processes other than except. Devices that only other devices use do not
// count.
func (d *daemon) inUse(except int) error {
	holders := mountHolders(d.o.mount, d.mountDev, except)
	if len(holders) == 0 {
		return nil
	}
	e := control.Errorf(control.CodeBusy, "devices below %s are in use", d.o.mount)
	e.Holders = holders
	e.Next = "end these uses first; dmfuse shutdown --force ends the daemon all the same, and they get errors"
	return e
}

// mountHolders names the loop devices whose file is below dir and the
// processes that have files there open, mapped or as their directory. It looks
// at names in sysfs and proc alone, as asking a file of the mount could wait
// for a suspended device. Dev is the number of the file system mounted there:
// processes that are in what the mount covers, the directory as it was before,
// do not count. The process except is left out.
func mountHolders(dir string, dev devNum, except int) []string {
	var holders []string
	loops, _ := listLoops() // without sysfs there are no loop devices to name
	for _, l := range loops {
		if within(dir, l.backing) {
			holders = append(holders, fmt.Sprintf("%s (on %s)", l.path(), l.backing)+usersText(l))
		}
	}
	for _, pid := range pids() {
		if files := filesBelow(pid, dir, onFileSystem(dev)); len(files) > 0 && pid != except {
			holders = append(holders, fmt.Sprintf("pid %d (%s): %s", pid, commandName(pid), strings.Join(files, ", ")))
		}
	}
	return holders
}

// pids lists the processes there are, but for this one.
func pids() []int {
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var all []int
	for _, n := range names {
		if pid, err := strconv.Atoi(filepath.Base(n)); err == nil && pid != os.Getpid() {
			all = append(all, pid)
		}
	}
	slices.Sort(all)
	return all
}

// fileSystemAt is the number of what is mounted exactly at point, which must be
// absolute and clean.
func fileSystemAt(point string) (devNum, error) {
	mounts, err := readMounts()
	if err != nil {
		return devNum{}, err
	}
	m, ok := mountAt(mounts, point)
	if !ok {
		return devNum{}, fmt.Errorf("nothing is mounted at %s", point)
	}
	return m.dev, nil
}

// statLimit is how long the question which file system a file is on may take.
const statLimit = time.Second

// onFileSystem makes a check whether the file behind a link of proc is on the
// file system with that number; of one that is gone it says no, and yes where
// it cannot tell.
//
// The file may be one that this process serves. Nothing is asked of it: the
// link leads to the file without a look-up, and statx(2) for no field at all
// is answered with the number of the file system alone (kernel:
// fuse_update_get_attr). The limit is there should a kernel do otherwise.
func onFileSystem(dev devNum) func(link string) bool {
	return func(link string) bool {
		answer := make(chan bool, 1)
		go func() {
			var st unix.Statx_t
			err := unix.Statx(unix.AT_FDCWD, link, unix.AT_STATX_DONT_SYNC, 0, &st)
			gone := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)
			answer <- !gone && (err != nil || devNum{st.Dev_major, st.Dev_minor} == dev)
		}()
		limit := time.NewTimer(statLimit)
		defer limit.Stop()
		select {
		case on := <-answer:
			return on
		case <-limit.C:
			return true
		}
	}
}

// anyFile counts every file.
func anyFile(string) bool { return true }

// filesBelow lists what a process holds below dir, of those files that count
// says yes to: what cannot be read (of other users) is not there.
func filesBelow(pid int, dir string, counts func(link string) bool) []string {
	proc := "/proc/" + strconv.Itoa(pid)
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	for _, of := range []string{"/fd/*", "/map_files/*"} {
		more, _ := filepath.Glob(proc + of)
		links = append(links, more...)
	}
	found := map[string]bool{}
	for _, l := range links {
		to, err := os.Readlink(l)
		if err == nil && within(dir, strings.TrimSuffix(to, " (deleted)")) && !found[to] && counts(l) {
			found[to] = true
		}
	}
	files := make([]string, 0, len(found))
	for f := range found {
		files = append(files, f)
	}
	slices.Sort(files)
	return files
}

func commandName(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}
