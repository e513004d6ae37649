package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/dmfuse/dmfuse/blockdev/faultrule"
	"golang.org/x/sys/unix"
)

// fileOnDevice finds where on a device the data of a file lies: the file system
// of the file is mounted from a loop device on the device's file, or from a
// partition of one.
func fileOnDevice(m mapped, path string) ([]faultrule.Span, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, usagef("%s is no regular file: only such a one has extents to put a rule on", path)
	}
	base, err := fileSystemBase(m, path, devNumOf(st.Dev))
	if err != nil {
		return nil, err
	}
	extents, err := fiemap(f)
	if err != nil {
		return nil, fmt.Errorf("where %s lies on its disk is not known: %w", path, err)
	}
	if len(extents) == 0 {
		return nil, failf(exitFailed, "%s has no data on its disk: a rule on it would never be hit", path)
	}
	for i := range extents {
		extents[i].Off += base
	}
	return extents, nil
}

// fileSystemBase is where on the device the file system with that number begins.
func fileSystemBase(m mapped, path string, dev devNum) (int64, error) {
	loops, err := loopsOn(m.Path)
	if err != nil {
		return 0, err
	}
	for _, l := range loops {
		start, err := sysNumber(filepath.Join(l.sys(), "loop", "offset"))
		if err != nil {
			return 0, err
		}
		if text, err := os.ReadFile(filepath.Join(l.sys(), "dev")); err == nil {
			if n, err := parseDevNum(string(text)); err == nil && n == dev {
				return start, nil
			}
		}
		parts, err := loopParts(l)
		if err != nil {
			return 0, err
		}
		for _, p := range parts {
			if p.dev == dev {
				return start + p.start, nil
			}
		}
	}
	where := "file system " + dev.String()
	if mounts, err := readMounts(); err == nil {
		if abs, err := filepath.EvalSymlinks(path); err == nil {
			if abs, err = filepath.Abs(abs); err == nil {
				if on, ok := mountHolding(mounts, abs); ok {
					where = fmt.Sprintf("the %s file system mounted at %s", on.fsType, on.point)
					if on.fsType == "btrfs" {
						where += ", which does not say where on its disks a file lies"
					}
				}
			}
		}
	}
	return 0, fail(exitFailed, fmt.Errorf("%s does not lie on %s: it is on %s, and none is mounted from a loop device on %s", path, m.Name, where, m.Path),
		"mount it with: dmfuse mount "+shellQuote(m.Name)+" DIR; or name the place with sectors= or bytes=")
}

// The ioctl FIEMAP of uapi/linux/fiemap.h.
const (
	fsIocFiemap     = 0xC020660B
	fiemapFlagSync  = 1
	fiemapLast      = 0x1
	fiemapUnknown   = 0x2
	fiemapDelayed   = 0x4
	fiemapEncoded   = 0x8
	fiemapUnaligned = 0x100
	fiemapInline    = 0x200
	fiemapHead      = 32 // bytes of struct fiemap
	fiemapExtent    = 56 // bytes of struct fiemap_extent
	fiemapAtOnce    = 512
)

// fiemap lists the extents of a file on its file system's disk, after writing
// out what has no place yet.
func fiemap(f *os.File) ([]faultrule.Span, error) {
	var spans []faultrule.Span
	for next := uint64(0); ; {
		buf := make([]byte, fiemapHead+fiemapAtOnce*fiemapExtent)
		binary.NativeEndian.PutUint64(buf[0:], next)
		binary.NativeEndian.PutUint64(buf[8:], ^uint64(0)-next)
		binary.NativeEndian.PutUint32(buf[16:], fiemapFlagSync)
		binary.NativeEndian.PutUint32(buf[24:], fiemapAtOnce)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
			if errno == unix.EOPNOTSUPP || errno == unix.ENOTTY {
				return nil, errors.New("its file system cannot tell")
			}
			return nil, errno
		}
		n := int(binary.NativeEndian.Uint32(buf[20:]))
		for i := range n {
			e := buf[fiemapHead+i*fiemapExtent:]
			logical, physical, length := binary.NativeEndian.Uint64(e), binary.NativeEndian.Uint64(e[8:]), binary.NativeEndian.Uint64(e[16:])
			flags := binary.NativeEndian.Uint32(e[40:])
			switch {
			case flags&(fiemapInline|fiemapUnaligned) != 0:
				return nil, errors.New("its data lies among the metadata of the file system")
			case flags&fiemapEncoded != 0:
				return nil, errors.New("its data is compressed or encrypted there")
			case flags&(fiemapUnknown|fiemapDelayed) != 0:
				return nil, fmt.Errorf("byte %d has no place on the disk yet", logical)
			}
			spans = append(spans, faultrule.Span{Off: int64(physical), Len: int64(length)})
			if flags&fiemapLast != 0 {
				return spans, nil
			}
			next = logical + length
		}
		if n == 0 {
			return spans, nil
		}
	}
}
