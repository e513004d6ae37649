package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// devNum is the number of a block device or of a file system.
type devNum struct {
	major, minor uint32
}

// devNumOf splits a dev_t as stat(2) gives it.
func devNumOf(dev uint64) devNum { return devNum{unix.Major(dev), unix.Minor(dev)} }

// dev is the dev_t of the number.
func (d devNum) dev() uint64 { return unix.Mkdev(d.major, d.minor) }

func (d devNum) String() string { return fmt.Sprintf("%d:%d", d.major, d.minor) }

// parseDevNum reads "major:minor" as sysfs and mountinfo print it.
func parseDevNum(text string) (devNum, error) {
	major, minor, ok := strings.Cut(strings.TrimSpace(text), ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return devNum{}, fmt.Errorf("%q is no device number", text)
	}
	return devNum{uint32(a), uint32(b)}, nil
}

// mountEntry is a line of mountinfo (proc_pid_mountinfo(5)).
type mountEntry struct {
	id, parent int
	dev        devNum // of the file system: of its block device, where it has one of its own
	root       string // what of the file system is mounted
	point      string // where
	readOnly   bool   // the mount or the file system
	fsType     string
	source     string
}

// readMounts lists the mounts of this process's own namespace, in the order
// they were made.
func readMounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("the list of mounts cannot be read: %w", err)
	}
	defer f.Close()
	return parseMounts(f)
}

// parseMounts reads the text of a mountinfo file.
func parseMounts(r io.Reader) ([]mountEntry, error) {
	var all []mountEntry
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		m, err := parseMountLine(scan.Text())
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, scan.Err()
}

// parseMountLine reads one line: six fields, optional ones, a lone hyphen, and
// three fields more.
func parseMountLine(line string) (mountEntry, error) {
	bad := fmt.Errorf("a line of mountinfo is not as expected: %q", line)
	head, tail, ok := strings.Cut(line, " - ")
	fields, rest := strings.Fields(head), strings.Split(tail, " ")
	if !ok || len(fields) < 6 || len(rest) < 3 {
		return mountEntry{}, bad
	}
	dev, err := parseDevNum(fields[2])
	if err != nil {
		return mountEntry{}, bad
	}
	m := mountEntry{
		dev: dev, root: unescapeMount(fields[3]), point: unescapeMount(fields[4]),
		readOnly: hasWord(fields[5], "ro") || hasWord(rest[2], "ro"),
		fsType:   rest[0], source: unescapeMount(rest[1]),
	}
	var err1, err2 error
	m.id, err1 = strconv.Atoi(fields[0])
	m.parent, err2 = strconv.Atoi(fields[1])
	if err1 != nil || err2 != nil {
		return mountEntry{}, bad
	}
	return m, nil
}

// hasWord says whether a list with commas holds word.
func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// unescapeMount undoes the octal escapes of mountinfo and sysfs (blank, tab,
// newline, backslash).
func unescapeMount(text string) string {
	if !strings.Contains(text, `\`) {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// mountAt is the topmost mount exactly at point, which must be absolute and
// clean.
func mountAt(all []mountEntry, point string) (mountEntry, bool) {
	var found mountEntry
	ok := false
	for _, m := range all { // a later mount covers an earlier one
		if m.point == point {
			found, ok = m, true
		}
	}
	return found, ok
}

// mountHolding is the mount that path lies on, by its text alone: nothing is
// asked of the file system, which may be dead.
func mountHolding(all []mountEntry, path string) (mountEntry, bool) {
	var found mountEntry
	ok := false
	for _, m := range all {
		if within(m.point, path) && (!ok || len(m.point) >= len(found.point)) {
			found, ok = m, true
		}
	}
	return found, ok
}

// within says whether path is dir or below it; both are absolute and clean.
func within(dir, path string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// mountsOf lists the mounts of file systems that lie on one of the block
// devices: by the number of the file system, or by its source for those that
// have an invented number (btrfs).
func mountsOf(all []mountEntry, devs map[devNum]string) []mountEntry {
	var found []mountEntry
	paths := map[string]bool{}
	for _, p := range devs {
		paths[p] = true
	}
	for _, m := range all {
		if _, ok := devs[m.dev]; ok || paths[m.source] {
			found = append(found, m)
		}
	}
	return found
}

// cleanAbs is path made absolute, with links resolved as far as it exists.
func cleanAbs(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return abs, nil
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}
