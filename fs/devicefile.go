package fs

import (
	"encoding/binary"
	"math"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// blockSize is st_blksize and f_bsize. A loop device takes f_bsize as its
// discard granularity; any offset and length is served all the same.
const blockSize = 4096

// fileFlags are given for every open device file: no page cache between caller
// and device, and writes to one file side by side.
const fileFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES

// fileAttr fills in what stat shows of a device file.
func fileAttr(d Device, out *fuse.Attr) {
	a := d.Attr()
	size := uint64(max(d.Size(), 0))
	mode := a.Mode & 07777
	if d.ReadOnly() {
		mode &^= 0222
	}
	*out = fuse.Attr{
		Ino:     nodeID(d.Serial(), partFile),
		Size:    size,
		Blocks:  (size + 511) / 512,
		Mode:    syscall.S_IFREG | mode,
		Nlink:   1,
		Owner:   fuse.Owner{Uid: a.UID, Gid: a.GID},
		Blksize: blockSize,
	}
	if !a.Mtime.IsZero() {
		out.SetTimes(&a.Mtime, &a.Mtime, &a.Mtime)
	}
}

// openFile counts one user of the device. Reads and writes go by the node id, so
// they work under a daemon that never saw the open; the handle is for RELEASE,
// where a ledger is kept.
func (f *FileSystem) openFile(d Device, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if f.ledger != nil && in.Unique&resent != 0 {
		if fh, ok := f.ledger.find(in.Unique); ok {
			out.Fh, out.OpenFlags = fh, fileFlags
			return fuse.OK // the daemon before counted it, and died before it could say so
		}
	}
	write := in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if err := d.Open(write); err != nil {
		return status(err)
	}
	if f.ledger != nil {
		fh, ok := f.ledger.add(d.Serial(), in.Unique)
		if !ok {
			d.Release()
			return statusTooMany
		}
		out.Fh = fh
	}
	f.opens.add(in.NodeId, d)
	out.OpenFlags = fileFlags
	return fuse.OK
}

// readFile reads from the device straight into the reply.
func (f *FileSystem) readFile(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, code := f.readDevice(cancel, in, buf)
	if !code.Ok() {
		return nil, code
	}
	return newReply(buf[:n]), fuse.OK
}

// readDevice reads what is asked for into buf, as far as it has room.
func (f *FileSystem) readDevice(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (int, fuse.Status) {
	d, code := f.file(in.NodeId)
	if !code.Ok() {
		return 0, code
	}
	buf = buf[:min(int(in.Size), len(buf))]
	if !addressable(in.Offset, len(buf)) {
		return 0, statusInvalid
	}
	n, err := d.ReadAt(callContext(cancel), buf, int64(in.Offset))
	if err != nil {
		return 0, status(err)
	}
	return n, fuse.OK
}

// readNow is readDevice for a device that need not wait; false: nothing is
// answered.
func (f *FileSystem) readNow(in *fuse.ReadIn, buf []byte) (int, bool) {
	d, ok := f.opens.get(in.NodeId).(Prompt)
	buf = buf[:min(int(in.Size), len(buf))]
	if !ok || !addressable(in.Offset, len(buf)) {
		return 0, false
	}
	return d.ReadNow(buf, int64(in.Offset))
}

// writeNow is Write likewise. One that has to be durable waits.
func (f *FileSystem) writeNow(in *fuse.WriteIn, data []byte) (int, bool) {
	d, ok := f.opens.get(in.NodeId).(Prompt)
	if !ok || in.Flags&syscall.O_DSYNC != 0 || !addressable(in.Offset, len(data)) {
		return 0, false
	}
	return d.WriteNow(data, int64(in.Offset))
}

// addressable says that a range has no end beyond what an offset can be. The
// kernel sees to it, other transports may not.
func addressable(off uint64, n int) bool { return off <= math.MaxInt64-uint64(n) }

// reply is a fuse.ReadResult that is used again: go-fuse's own would be the one
// allocation of a read.
type reply struct{ data []byte }

var replies = sync.Pool{New: func() any { return new(reply) }}

func newReply(data []byte) *reply {
	r := replies.Get().(*reply)
	r.data = data
	return r
}

// Bytes returns the data, which lies in the transport's buffer already.
func (r *reply) Bytes([]byte) ([]byte, fuse.Status) { return r.data, fuse.OK }

// Size is the length of the data.
func (r *reply) Size() int { return len(r.data) }

// Done is called once, when the data was sent.
func (r *reply) Done() {
	r.data = nil
	replies.Put(r)
}

// Write writes to the device. A write with O_DSYNC or O_SYNC is durable before
// it is answered: for direct I/O the kernel sends no FSYNC after it.
func (f *FileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	d, code := f.file(in.NodeId)
	if !code.Ok() {
		return 0, code
	}
	if !addressable(in.Offset, len(data)) {
		return 0, statusInvalid
	}
	fua := in.Flags&syscall.O_DSYNC != 0 // O_SYNC contains it
	n, err := d.WriteAt(callContext(cancel), data, int64(in.Offset), fua)
	if n > 0 {
		return uint32(n), fuse.OK // the caller meets the error again at the rest
	}
	return 0, status(err)
}

// Writev is Write for data that a transport has in several pieces.
func (f *FileSystem) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if len(data) == 1 {
		return f.Write(cancel, in, data[0])
	}
	var done uint32
	rest := *in
	for _, p := range data {
		n, code := f.Write(cancel, &rest, p)
		done += n
		if !code.Ok() && done == 0 {
			return 0, code
		}
		if !code.Ok() || int(n) < len(p) {
			break
		}
		rest.Offset += uint64(n)
	}
	return done, fuse.OK
}

// Fsync is a flush of the device, for fsync and fdatasync alike.
func (f *FileSystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if _, p, ok := splitID(in.NodeId); ok && p != partFile {
		return fuse.OK
	}
	d, code := f.file(in.NodeId)
	if !code.Ok() {
		return code
	}
	return status(d.Flush(callContext(cancel)))
}

// Fallocate punches holes and zeroes ranges; both read as zeros afterwards.
// What would make the file longer is refused, and what would only reserve
// space that is there succeeds.
func (f *FileSystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	d, code := f.file(in.NodeId)
	if !code.Ok() {
		return code
	}
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	off, n, size := int64(in.Offset), int64(in.Length), d.Size()
	switch {
	case off < 0 || n <= 0:
		return statusInvalid
	case in.Mode&keep == 0 && (n > size || off > size-n):
		return statusNoSpace
	}
	n = min(n, size-off) // keep size: beyond the end there is nothing to do
	switch in.Mode {
	case 0, keep:
		return fuse.OK
	case punch | keep:
		return f.zero(cancel, d, off, n, true)
	case zero, zero | keep:
		return f.zero(cancel, d, off, n, false)
	}
	return statusUnsupported
}

func (f *FileSystem) zero(cancel <-chan struct{}, d Device, off, n int64, unmap bool) fuse.Status {
	if d.ReadOnly() {
		return statusReadOnly
	}
	if n <= 0 {
		return fuse.OK
	}
	return status(d.Zero(callContext(cancel), off, n, unmap))
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the others.
func (f *FileSystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	d, code := f.file(in.NodeId)
	if !code.Ok() {
		return code
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return statusInvalid
	}
	ctx := callContext(cancel)
	off := int64(in.Offset)
	for {
		if off < 0 || off >= d.Size() {
			if in.Whence == unix.SEEK_HOLE && off > int64(in.Offset) {
				break // the end is a hole, unless one starts there
			}
			return statusPastEnd
		}
		n, hole, err := d.Extent(ctx, off)
		if err != nil {
			return seekStatus(err)
		}
		if hole == (in.Whence == unix.SEEK_HOLE) {
			break
		}
		if err := ctx.Err(); err != nil {
			return status(err)
		}
		off += max(n, 1)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// SetAttr changes mode, owner and time of a device file. Its size is the
// device's: setting it to what it is, or to 0 as O_TRUNC does, changes nothing.
func (f *FileSystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	d, p, ok := f.device(in.NodeId)
	switch {
	case !ok && in.NodeId>>partBits != 0:
		return statusNoEntry
	case !ok || p != partFile:
		return statusPermission
	}
	if size, ok := in.GetSize(); ok {
		if d.ReadOnly() {
			return statusReadOnly
		}
		if size != 0 && size != uint64(max(d.Size(), 0)) {
			return statusInvalid
		}
	}
	a := d.Attr()
	was := a
	if mode, ok := in.GetMode(); ok {
		a.Mode = mode
	}
	if uid, ok := in.GetUID(); ok {
		a.UID = uid
	}
	if gid, ok := in.GetGID(); ok {
		a.GID = gid
	}
	if t, ok := in.GetMTime(); ok && in.Valid&fuse.FATTR_SIZE == 0 {
		a.Mtime = t
	}
	if a != was {
		d.SetAttr(a)
	}
	fileAttr(d, &out.Attr)
	return fuse.OK
}

// Ioctl answers the ioctls of block devices that FUSE passes on: those whose
// number says how much is copied.
func (f *FileSystem) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	d, code := f.file(in.NodeId)
	if !code.Ok() || in.Cmd != unix.BLKGETSIZE64 || len(outbuf) < 8 {
		return statusNoIoctl
	}
	binary.NativeEndian.PutUint64(outbuf, uint64(d.Size()))
	return fuse.OK
}

// CopyFileRange makes the kernel copy by itself.
func (f *FileSystem) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, statusUnsupported
}
