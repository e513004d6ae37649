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
	"unsafe"

	"golang.org/x/sys/unix"
)

// loopPart is a partition of a loop device that the kernel knows.
type loopPart struct {
	number int
	dev    devNum
	path   string // the node in /dev
	start  int64  // bytes
	size   int64  // bytes
}

// partsLimit bounds the wait for the nodes of partitions.
const partsLimit = 5 * time.Second

// loopParts lists the partitions the kernel has found on a loop device, by
// number.
func loopParts(l loopDevice) ([]loopPart, error) {
	found, err := filepath.Glob(filepath.Join(l.sys(), l.name()+"p*", "partition"))
	if err != nil {
		return nil, err
	}
	var parts []loopPart
	for _, f := range found {
		dir := filepath.Dir(f)
		p := loopPart{path: "/dev/" + filepath.Base(dir)}
		n, err1 := sysNumber(f)
		start, err2 := sysNumber(filepath.Join(dir, "start"))
		size, err3 := sysNumber(filepath.Join(dir, "size"))
		text, err4 := os.ReadFile(filepath.Join(dir, "dev"))
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return nil, err
		}
		if p.dev, err = parseDevNum(string(text)); err != nil {
			return nil, err
		}
		p.number, p.start, p.size = int(n), start*512, size*512
		parts = append(parts, p)
	}
	slices.SortFunc(parts, func(a, b loopPart) int { return a.number - b.number })
	return parts, nil
}

// sysNumber reads a file of sysfs that holds a decimal number.
func sysNumber(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// providePartitions sees to it that every partition of the table has a device:
// the kernel has scanned the disk when it was set up; what it did not find (a
// kernel without that kind of table) is told to it, and nodes that nobody made
// are made.
func providePartitions(l loopDevice, table []partition) ([]loopPart, error) {
	parts, err := loopParts(l)
	if err != nil {
		return nil, err
	}
	for _, want := range table {
		if slices.ContainsFunc(parts, func(p loopPart) bool { return p.number == want.Number }) || want.Extended {
			continue
		}
		if err := addPartition(l, want); err != nil {
			return nil, err
		}
	}
	if parts, err = loopParts(l); err != nil {
		return nil, err
	}
	for _, p := range parts {
		if err := ensureNode(p.path, p.dev); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// blkpgPartition is struct blkpg_partition of uapi/linux/blkpg.h.
type blkpgPartition struct {
	start, length int64
	number        int32
	devname       [64]byte
	volname       [64]byte
	_             [4]byte
}

// blkpgArg is struct blkpg_ioctl_arg of uapi/linux/blkpg.h.
type blkpgArg struct {
	op      int32
	flags   int32
	datalen int32
	_       int32
	data    unsafe.Pointer
}

// addPartition tells the kernel of one partition. One that it has already is
// left alone.
func addPartition(l loopDevice, want partition) error {
	dev, err := os.OpenFile(l.path(), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	p := blkpgPartition{start: want.StartBytes, length: want.SizeBytes, number: int32(want.Number)}
	arg := blkpgArg{op: unix.BLKPG_ADD_PARTITION, datalen: int32(unsafe.Sizeof(p)), data: unsafe.Pointer(&p)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 && errno != unix.EBUSY {
		return fmt.Errorf("partition %d of %s (%d bytes at %d) is not accepted by the kernel: %w", want.Number, l.path(), want.SizeBytes, want.StartBytes, errno)
	}
	return nil
}

// ensureNode sees to it that path is the node of a block device: it waits for
// the kernel or udev to make it, and makes it when nobody does, at once where
// /dev is no devtmpfs.
func ensureNode(path string, dev devNum) error {
	if isNodeOf(path, dev) {
		return nil
	}
	mounts, _ := readMounts()
	if m, _ := mountAt(mounts, "/dev"); m.fsType != "devtmpfs" {
		return mknodAt(path, dev)
	}
	return poll(partsLimit, func() (bool, error) { return isNodeOf(path, dev), nil },
		func() error { return mknodAt(path, dev) })
}

// isNodeOf says whether path is the node of that block device.
func isNodeOf(path string, dev devNum) bool {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev.dev()
}

// mknodAt makes the node, in the place of one of another device.
func mknodAt(path string, dev devNum) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the node %s is not that of device %s and cannot be replaced: %w", path, dev, err)
	}
	if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(dev.dev())); err != nil && !isNodeOf(path, dev) {
		return fmt.Errorf("the node %s is missing and cannot be made: %w", path, err)
	}
	return nil
}
