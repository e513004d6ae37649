package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Answers that fs gives by itself, without an error of a device. ENOSYS is among
// them only for what no device can ever do: the kernel takes it for "never ask
// again", for all devices.
const (
	statusNoFlush     = fuse.ENOSYS                     // of a close, which has nothing to flush: never asked again
	statusNoEntry     = fuse.ENOENT                     // no such name, or a device that is gone
	statusNotDir      = fuse.ENOTDIR                    // a directory operation on a file
	statusIsDir       = fuse.EISDIR                     // a file operation on a directory
	statusPermission  = fuse.EPERM                      // the tree is changed by device commands only
	statusReadOnly    = fuse.EROFS                      // opening for write what cannot be written
	statusInvalid     = fuse.EINVAL                     // an argument that no device takes
	statusNoSpace     = fuse.Status(syscall.ENOSPC)     // would have to grow
	statusPastEnd     = fuse.Status(syscall.ENXIO)      // lseek at or past the end
	statusUnsupported = fuse.Status(syscall.EOPNOTSUPP) // a mode of fallocate, copy_file_range
	statusNoIoctl     = fuse.Status(syscall.ENOTTY)     // an ioctl we do not know
	statusFault       = fuse.EIO                        // a panic: a fault of ours
	statusTooMany     = fuse.Status(syscall.ENFILE)     // more opens than a held mount can count
	statusNoData      = fuse.ENODATA                    // no such extended attribute
)

// status returns the errno for an error of a device. With the constants above
// it is the only place that makes an errno.
func status(err error) fuse.Status {
	switch blockdev.Kind(err) {
	case nil:
		return fuse.OK
	case blockdev.ErrInvalid:
		return fuse.EINVAL
	case blockdev.ErrRange:
		return fuse.EIO // a lower device ended early: its users see a failing disk
	case blockdev.ErrNoSpace:
		return fuse.Status(syscall.ENOSPC)
	case blockdev.ErrTooBig:
		return fuse.Status(syscall.EFBIG)
	case blockdev.ErrReadOnly:
		return fuse.EROFS
	case blockdev.ErrUnsupported:
		return fuse.Status(syscall.EOPNOTSUPP)
	case blockdev.ErrBusy:
		return fuse.EBUSY
	case blockdev.ErrNoDevice:
		return fuse.ENODEV
	case blockdev.ErrNoAddress:
		return fuse.Status(syscall.ENXIO)
	case blockdev.ErrPermission:
		return fuse.EACCES
	case blockdev.ErrInterrupted:
		return fuse.EINTR
	case blockdev.ErrTimeout:
		return fuse.Status(syscall.ETIMEDOUT)
	case blockdev.ErrNotExist:
		return fuse.ENOENT
	case blockdev.ErrNoMemory:
		return fuse.Status(syscall.ENOMEM)
	}
	return fuse.EIO // ErrIO, ErrClosed, and what nobody knows
}

// seekStatus is status for Extent: the end of the device is not an I/O error.
func seekStatus(err error) fuse.Status {
	if blockdev.Kind(err) == blockdev.ErrRange {
		return statusPastEnd
	}
	return status(err)
}
