package fs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/dmfuse/dmfuse/fs/internal/uring"
)

// FUSE over io_uring (kernel: include/uapi/linux/fuse.h, fs/fuse/dev_uring.c).
// For each possible CPU there is a queue. An entry of it is a header and a
// payload in memory of ours. It is registered, comes back with a request, and is
// committed with the answer, which fetches the next request.
const (
	ringRegister = 1 // FUSE_IO_URING_CMD_REGISTER
	ringCommit   = 2 // FUSE_IO_URING_CMD_COMMIT_AND_FETCH
)

// ringHeader is struct fuse_uring_req_header.
type ringHeader struct {
	inOut   [16]uint64 // the header of the request, then that of the answer
	op      [16]uint64 // what follows the header in the request: its structure
	flags   uint64
	id      uint64 // names the request in the commit
	payload uint32 // bytes: data of a request, all but the header of an answer
	_       uint32
	_       uint64
}

// ringHeaderSpace is what a header has in memory.
const ringHeaderSpace = 512

// ringCmd is struct fuse_uring_cmd_req, in the entry that is submitted.
type ringCmd struct {
	flags uint64
	id    uint64
	queue uint16
	_     [6]uint8
}

func cmdOf(e *uring.SQE) *ringCmd { return (*ringCmd)(unsafe.Pointer(&e.Cmd)) }

// bytesOf is the memory of v.
func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }

// answer writes the header of an answer with n bytes behind it.
func (h *ringHeader) answer(unique uint64, n int, code fuse.Status) {
	if !code.Ok() {
		n = 0
	}
	*(*fuse.OutHeader)(unsafe.Pointer(&h.inOut)) = fuse.OutHeader{Length: uint32(outHeader + n), Status: -int32(code), Unique: unique}
	h.payload = uint32(n)
}
