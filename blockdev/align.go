package blockdev

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bufferAlign suits the direct I/O of every disk and file system known.
const bufferAlign = 4096

// AlignedBytes makes a buffer that direct I/O can use as it is. Requests whose
// buffer, offset and length are aligned are not copied.
func AlignedBytes(n int) []byte {
	b := make([]byte, n+bufferAlign)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (bufferAlign - 1)
	return b[skip : int(skip)+n : int(skip)+n]
}

// aligned says whether the address of p is a multiple of align, a power of two.
func aligned(p []byte, align uintptr) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))&(align-1) == 0
}

// directAlignment is what direct I/O on fd wants offsets and lengths, and
// buffers, to be multiples of: as statx tells it, else the logical block size
// of a block device, else 4096.
func directAlignment(fd int, block bool) (offset int64, memory uintptr, err error) {
	var sx unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &sx)
	if err == nil && sx.Mask&unix.STATX_DIOALIGN != 0 {
		if sx.Dio_offset_align == 0 {
			return 0, 0, fmt.Errorf("%w: no direct I/O on this file", ErrUnsupported)
		}
		return int64(max(sx.Dio_offset_align, sx.Dio_read_offset_align)), uintptr(max(sx.Dio_mem_align, 1)), nil
	}
	if block {
		n, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
		return int64(n), uintptr(n), err
	}
	return bufferAlign, bufferAlign, nil
}
