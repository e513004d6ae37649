package blockdev

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loopHolder names a loop device on the file or block device with that
// identity which excludes our use of it, or is empty.
//
// A loop device that can write excludes us whatever we do: it takes no lock,
// and what it writes goes past us. One that is read-only has pages of the file
// cached that a writer would make old, so it excludes a writer; a reader
// shares the file with it.
func loopHolder(id ID, write bool) string {
	dirs, _ := filepath.Glob("/sys/block/loop*/loop")
	for _, dir := range dirs {
		disk := filepath.Dir(dir)
		name := filepath.Base(disk)
		if ro, _ := os.ReadFile(filepath.Join(disk, "ro")); !write && strings.TrimSpace(string(ro)) == "1" {
			continue
		}
		if loopBacking(dir, name, id) == id {
			return "loop device /dev/" + name
		}
	}
	return ""
}

// LoopFile is the path of the file below a loop device, as sysfs tells it;
// empty for any other device. Nothing is asked of the file's file system.
func LoopFile(major, minor uint32) string {
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/loop/backing_file", major, minor))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(text), "\n")
}

// loopBacking is the identity of the file below a loop device, none if it
// cannot be the one wanted.
func loopBacking(dir, name string, wanted ID) ID {
	text, err := os.ReadFile(filepath.Join(dir, "backing_file"))
	if err != nil {
		return ID{} // detached meanwhile
	}
	path := strings.TrimSuffix(string(text), "\n")
	if mayHang(path, wanted) {
		return ID{}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == nil {
		id, _ := statID(&st)
		return id
	}
	// The path is that of a deleted file, or of another mount namespace: the
	// driver knows device and inode, if we may ask it.
	fd, err := unix.Open("/dev/"+name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return ID{}
	}
	defer unix.Close(fd)
	var info unix.LoopInfo64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.LOOP_GET_STATUS64, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return ID{}
	}
	if info.Rdevice != 0 {
		return ID{Kind: IDBlock, A: info.Rdevice}
	}
	return ID{Kind: IDFile, A: info.Device, B: info.Inode}
}

// mayHang says whether path lies on a file system that answers through another
// process or machine and is not that of the file wanted. It may be our own
// mount, which we must not ask while it waits for us.
func mayHang(path string, wanted ID) bool {
	best, number, kind := "", "", ""
	eachMount(func(n, point, fsType string) {
		if len(point) >= len(best) && (path == point || strings.HasPrefix(path, strings.TrimSuffix(point, "/")+"/")) {
			best, number, kind = point, n, fsType
		}
	})
	for _, remote := range []string{"fuse", "nfs", "cifs", "smb", "9p", "ceph", "afs"} {
		if strings.HasPrefix(kind, remote) {
			return wanted.Kind != IDFile || number != deviceNumber(wanted.A)
		}
	}
	return false
}

// eachMount calls f with device number, mount point and type of every mount of
// our namespace, in their order.
func eachMount(f func(number, point, fsType string)) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		head, tail, _ := strings.Cut(lines.Text(), " - ")
		w := strings.Fields(head)
		fsType, _, _ := strings.Cut(tail, " ")
		if len(w) > 4 {
			f(w[2], unescape(w[4]), fsType)
		}
	}
}

// blockHolders says what the kernel itself uses a block device or one of its
// partitions for: mounts, swap, devices on top of it.
func blockHolders(rdev uint64) (holders []string) {
	sys := "/sys/dev/block/" + deviceNumber(rdev)
	dirs, _ := filepath.Glob(sys + "/*/partition")
	numbers := map[string]string{deviceNumber(rdev): ""}
	for _, partition := range dirs {
		dir := filepath.Dir(partition)
		if n, err := os.ReadFile(filepath.Join(dir, "dev")); err == nil {
			numbers[strings.TrimSpace(string(n))] = "its partition " + filepath.Base(dir) + " is "
		}
	}
	for number, which := range numbers {
		for _, point := range mountedAt(number) {
			holders = append(holders, which+"mounted on "+point)
		}
		above, _ := filepath.Glob("/sys/dev/block/" + number + "/holders/*")
		for _, dir := range above {
			holders = append(holders, which+"below block device "+filepath.Base(dir))
		}
		if swap := swapOn(number); swap != "" {
			holders = append(holders, which+"swap space")
		}
	}
	return holders
}

// mountedAt lists the mount points of a block device.
func mountedAt(number string) (points []string) {
	eachMount(func(n, point, _ string) {
		if n == number {
			points = append(points, point)
		}
	})
	return points
}

// unescape replaces the \ooo of a path in mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// swapOn is the path of a block device that is swap space, or empty.
func swapOn(number string) string {
	text, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		path, _, _ := strings.Cut(line, " ")
		var st unix.Stat_t
		if unix.Stat(unescape(path), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && deviceNumber(st.Rdev) == number {
			return path
		}
	}
	return ""
}

// process is one that has a file open.
type process struct {
	pid    int
	name   string
	locked bool // it holds a lock on the file
}

func (p process) String() string { return fmt.Sprintf("%s (process %d)", p.name, p.pid) }

// openBy finds the processes other than this one that have the file open, as
// far as this user may see; if some hold locks on it, only these.
func openBy(id ID) (found []process) {
	pids, _ := filepath.Glob("/proc/[0-9]*")
	locked := false
	for _, dir := range pids {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if p, ok := opens(dir, pid, id); ok {
			found = append(found, p)
			locked = locked || p.locked
		}
	}
	if !locked {
		return found
	}
	var holders []process
	for _, p := range found {
		if p.locked {
			holders = append(holders, p)
		}
	}
	return holders
}

// opens says whether a process has the file open.
func opens(dir string, pid int, id ID) (p process, ok bool) {
	fds, _ := os.ReadDir(dir + "/fd")
	for _, fd := range fds {
		if openFileID(dir+"/fd/"+fd.Name()) != id {
			continue
		}
		info, _ := os.ReadFile(dir + "/fdinfo/" + fd.Name())
		ok = true
		p.locked = p.locked || strings.Contains(string(info), "\nlock:")
	}
	if ok {
		name, _ := os.ReadFile(dir + "/comm")
		p.pid, p.name = pid, strings.TrimSpace(string(name))
	}
	return p, ok
}

// openFileID is the identity of an open file, without asking the server of a
// remote file system, which may be us.
func openFileID(path string) ID {
	var sx unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &sx) != nil {
		return ID{}
	}
	id, _ := statID(&unix.Stat_t{
		Mode: uint32(sx.Mode), Ino: sx.Ino,
		Dev: unix.Mkdev(sx.Dev_major, sx.Dev_minor), Rdev: unix.Mkdev(sx.Rdev_major, sx.Rdev_minor),
	})
	return id
}
