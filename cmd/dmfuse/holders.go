package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
)

// inUse says who uses the files of the mount from outside: loop devices and
// processes other than except. Devices that only other devices use do not
// count.
func (d *daemon) inUse(except int) error {
	holders := mountHolders(d.o.mount, except)
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
// for a suspended device. The process except is left out.
func mountHolders(dir string, except int) []string {
	var holders []string
	loops, _ := listLoops() // without sysfs there are no loop devices to name
	for _, l := range loops {
		if within(dir, l.backing) {
			holders = append(holders, fmt.Sprintf("%s (on %s)", l.path(), l.backing)+usersText(l))
		}
	}
	for _, pid := range pids() {
		if files := filesBelow(pid, dir); len(files) > 0 && pid != except {
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

// filesBelow lists what a process holds below dir: what cannot be read (of
// other users) is not there.
func filesBelow(pid int, dir string) []string {
	proc := "/proc/" + strconv.Itoa(pid)
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	for _, of := range []string{"/fd/*", "/map_files/*"} {
		more, _ := filepath.Glob(proc + of)
		links = append(links, more...)
	}
	found := map[string]bool{}
	for _, l := range links {
		to, err := os.Readlink(l)
		if err == nil && within(dir, strings.TrimSuffix(to, " (deleted)")) {
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
