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

	"golang.org/x/sys/unix"
)

// loopMajor is the major number of loop devices (kernel: uapi/linux/major.h).
const loopMajor = 7

// sysBlock is where the kernel lists block devices.
const sysBlock = "/sys/block"

// loopDevice is a loop device that has a backing file.
type loopDevice struct {
	number   int
	backing  string // path of the backing file, as this mount namespace names it
	deleted  bool   // the backing file has no name any more
	readOnly bool
	directIO bool
	partScan bool
	// autoClear: the device lets the file go when its last user does.
	autoClear bool

	held *os.File // keeps a device with autoClear alive until it is mounted
}

// release gives up the hold that attachLoop took on a device with autoClear.
func (l loopDevice) release() {
	if l.held != nil {
		l.held.Close()
	}
}

// path is the device node.
func (l loopDevice) path() string { return "/dev/" + l.name() }

func (l loopDevice) name() string { return "loop" + strconv.Itoa(l.number) }

func (l loopDevice) sys() string { return filepath.Join(sysBlock, l.name()) }

// listLoops lists the loop devices in use, by number. It asks sysfs only, so a
// backing file on a file system that hangs cannot hold it.
func listLoops() ([]loopDevice, error) {
	dirs, err := filepath.Glob(sysBlock + "/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var all []loopDevice
	for _, d := range dirs {
		name := filepath.Base(filepath.Dir(filepath.Dir(d)))
		n, err := strconv.Atoi(strings.TrimPrefix(name, "loop"))
		if err != nil {
			continue
		}
		if l, ok := readLoop(n); ok {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b loopDevice) int { return a.number - b.number })
	return all, nil
}

// readLoop reads what sysfs says of one loop device; false when it has no
// backing file.
func readLoop(number int) (loopDevice, bool) {
	l := loopDevice{number: number}
	text, err := os.ReadFile(filepath.Join(l.sys(), "loop", "backing_file"))
	if err != nil {
		return l, false
	}
	l.backing = unescapeMount(strings.TrimSuffix(string(text), "\n"))
	l.backing, l.deleted = strings.CutSuffix(l.backing, " (deleted)")
	l.readOnly = sysFlag(filepath.Join(l.sys(), "ro"))
	l.directIO = sysFlag(filepath.Join(l.sys(), "loop", "dio"))
	l.partScan = sysFlag(filepath.Join(l.sys(), "loop", "partscan"))
	l.autoClear = sysFlag(filepath.Join(l.sys(), "loop", "autoclear"))
	return l, true
}

// sysFlag reads a file of sysfs that holds 0 or 1.
func sysFlag(path string) bool {
	text, err := os.ReadFile(path)
	return err == nil && strings.TrimSpace(string(text)) == "1"
}

// loopsOn lists the loop devices whose backing file is path, which is absolute
// and clean: by name, or as the same file under another name. A backing file
// on another FUSE file system is not asked, as that may hang.
func loopsOn(path string) ([]loopDevice, error) {
	all, err := listLoops()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	var want, got unix.Stat_t
	known := unix.Stat(path, &want) == nil
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(l loopDevice) bool {
		if l.backing == path && !l.deleted {
			return false
		}
		m, ok := mountHolding(mounts, l.backing)
		if !known || l.deleted || !ok || strings.HasPrefix(m.fsType, "fuse") && m.dev != devNumOf(want.Dev) {
			return true
		}
		return unix.Stat(l.backing, &got) != nil || got.Dev != want.Dev || got.Ino != want.Ino
	}), nil
}

// blockNode is a block device in the tree of a disk: the disk itself, a
// partition, or a kernel device (device-mapper, RAID) that stands on one.
type blockNode struct {
	dev    devNum
	path   string // the node in /dev
	holder bool   // stands on the disk or a partition
}

// blockTree lists the disk called name (as in /sys/block), its partitions and,
// recursively, what stands on them.
func blockTree(name string) []blockNode { return blockTreeAt(filepath.Join(sysBlock, name)) }

// blockTreeAt is blockTree for a directory of sysfs, also that of a partition.
func blockTreeAt(dir string) []blockNode {
	w := blockWalk{seen: map[devNum]bool{}}
	w.walk(dir, false)
	return w.out
}

type blockWalk struct {
	out  []blockNode
	seen map[devNum]bool
}

func (w *blockWalk) walk(dir string, holder bool) {
	text, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return
	}
	dev, err := parseDevNum(string(text))
	if err != nil || w.seen[dev] {
		return
	}
	w.seen[dev] = true
	name := filepath.Base(dir)
	w.out = append(w.out, blockNode{dev, "/dev/" + strings.ReplaceAll(name, "!", "/"), holder})
	holders, _ := filepath.Glob(filepath.Join(dir, "holders", "*"))
	for _, h := range holders {
		w.walk(filepath.Join(sysBlock, filepath.Base(h)), true)
	}
	parts, _ := filepath.Glob(filepath.Join(dir, name+"*", "partition"))
	for _, p := range parts {
		w.walk(filepath.Dir(p), holder)
	}
}

// nodeMap is a block tree as [mountsOf] takes it.
func nodeMap(nodes []blockNode) map[devNum]string {
	m := map[devNum]string{}
	for _, n := range nodes {
		m[n.dev] = n.path
	}
	return m
}

// loopOptions says how a loop device is set up.
type loopOptions struct {
	readOnly  bool
	partScan  bool
	blockSize int // logical block size in bytes, 0 for 512
	// autoClear makes a device that goes away with its last user, be it this
	// process or a mount. The caller releases it once it is mounted.
	autoClear bool
}

// attachTries is how often another free loop device is asked for when the one
// found was taken by somebody else in between.
const attachTries = 64

// attachLoop makes a loop device on the file at path, with direct I/O where
// the file offers it.
func attachLoop(path string, o loopOptions) (loopDevice, error) {
	mode := os.O_RDWR
	if o.readOnly {
		mode = os.O_RDONLY
	}
	file, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return loopDevice{}, err
	}
	defer file.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return loopDevice{}, loopRefused(err)
	}
	defer ctl.Close()
	for range attachTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return loopDevice{}, fmt.Errorf("no free loop device: %w", err)
		}
		held, err := configureLoop(n, file, o)
		if errors.Is(err, unix.EBUSY) {
			continue // another process was faster
		}
		if err != nil {
			return loopDevice{}, err
		}
		l, ok := readLoop(n)
		l.held = held
		if !ok {
			l.release()
			return loopDevice{}, fmt.Errorf("/dev/loop%d was detached by somebody else at once", n)
		}
		return l, nil
	}
	return loopDevice{}, fmt.Errorf("no loop device could be had: %d times another process took the free one", attachTries)
}

// loopRefused explains why loop devices cannot be used here.
func loopRefused(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("loop devices need root: %w", err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("this machine has no loop devices (is the kernel module \"loop\" loaded, and /dev complete?): %w", err)
	}
	return err
}

// configureLoop sets up /dev/loopN on file. It is EBUSY when somebody else has
// just taken the device. A device with autoClear comes back open.
func configureLoop(n int, file *os.File, o loopOptions) (*os.File, error) {
	dev, err := openLoop(n)
	if err != nil {
		return nil, err
	}
	c := unix.LoopConfig{Fd: uint32(file.Fd()), Size: uint32(o.blockSize)}
	if c.Size == 0 {
		c.Size = 512
	}
	copy(c.Info.File_name[:len(c.Info.File_name)-1], file.Name())
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	for flag, set := range map[uint32]bool{
		unix.LO_FLAGS_READ_ONLY: o.readOnly, unix.LO_FLAGS_PARTSCAN: o.partScan, unix.LO_FLAGS_AUTOCLEAR: o.autoClear,
	} {
		if set {
			c.Info.Flags |= flag
		}
	}
	err = unix.IoctlLoopConfigure(int(dev.Fd()), &c)
	if errors.Is(err, unix.EINVAL) { // a file without direct I/O, on some kernels
		c.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &c)
	}
	if err != nil {
		dev.Close()
		return nil, fmt.Errorf("%s cannot be set up on %s: %w", dev.Name(), file.Name(), err)
	}
	if !o.autoClear {
		return nil, dev.Close()
	}
	return dev, nil
}

// openLoop opens /dev/loopN, making the node where nobody did (a container
// whose /dev is no devtmpfs).
func openLoop(n int) (*os.File, error) {
	path := "/dev/loop" + strconv.Itoa(n)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(loopMajor, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("the node %s is missing and cannot be made: %w", path, err)
		}
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, loopRefused(err)
	}
	return f, nil
}

// detachLimit bounds the wait for the kernel to let a backing file go.
const detachLimit = 10 * time.Second

// detachLoop takes the backing file away from a loop device and waits until the
// kernel has let it go, so that the device below can be removed at once. With
// lazy, a device still in use goes when its last user does, and nothing is
// waited for.
func detachLoop(l loopDevice, lazy bool) error {
	dev, err := os.OpenFile(l.path(), os.O_RDONLY, 0)
	if err != nil {
		return loopRefused(err)
	}
	err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
	dev.Close() // the last close is what frees the file
	if errors.Is(err, unix.ENXIO) {
		return nil // already free
	}
	if err != nil {
		return fmt.Errorf("%s cannot be detached: %w", l.path(), err)
	}
	if lazy {
		return nil
	}
	return poll(detachLimit, func() (bool, error) {
		now, ok := readLoop(l.number)
		return !ok || now.backing != l.backing, nil
	}, func() error {
		return fmt.Errorf("%s is still in use%s and goes away with its last user", l.path(), usersText(l))
	})
}

// usersText names who uses a loop device, as " by …", or nothing.
func usersText(l loopDevice) string {
	users := loopUsers(l)
	if len(users) == 0 {
		return ""
	}
	return " by " + strings.Join(users, ", ")
}

// loopUsers says who uses a loop device or a partition of it: mounts, devices
// of the kernel on it, swap.
func loopUsers(l loopDevice) []string {
	var users []string
	nodes := blockTree(l.name())
	mounts, _ := readMounts()
	for _, m := range mountsOf(mounts, nodeMap(nodes)) {
		users = append(users, "the mount at "+m.point)
	}
	for _, n := range nodes {
		if n.holder {
			users = append(users, "the device "+n.path)
		}
	}
	swaps, _ := os.ReadFile("/proc/swaps")
	for line := range strings.Lines(string(swaps)) {
		for _, n := range nodes {
			if f := strings.Fields(line); len(f) > 0 && f[0] == n.path {
				users = append(users, "swap on "+n.path)
			}
		}
	}
	return users
}

// poll asks done until it says so, fails, or the limit passes; then the error
// is late's. There is nothing to wait on where sysfs is the only witness.
func poll(limit time.Duration, done func() (bool, error), late func() error) error {
	end := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return late()
		}
		time.Sleep(pause)
	}
}
