package fs

import (
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
)

// FileSystem is what the files of the mount do, whatever way the requests
// arrive: it runs under go-fuse's Server (see Mount) and under
// fuse.ProtocolServer alike. Its state is a cache; see doc.go.
type FileSystem struct {
	fuse.RawFileSystem // refuses what is not answered here

	src   Source
	log   logrus.FieldLogger
	uid   uint32 // owner of the directories and information files
	gid   uint32
	perm  uint32 // permission bits of the directories
	opens opens
	infos infos

	ledger *ledger // of the opens of a held mount, or nil

	failedMu sync.Mutex
	failed   atomic.Pointer[map[uint64]error] // devices that killed too many daemons, by serial; changes under failedMu

	started time.Time // shown as the time of the directories
}

var _ fuse.RawFileSystem = (*FileSystem)(nil)

// NewFileSystem returns the files for the devices of src. Of o only AllowOther
// and Log are used.
func NewFileSystem(src Source, o Options) *FileSystem {
	o = o.withDefaults()
	f := &FileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		src:           src,
		log:           o.Log,
		uid:           uint32(os.Geteuid()),
		gid:           uint32(os.Getegid()),
		perm:          o.dirPerm(),
		started:       time.Now(),
	}
	f.infos.next = uint64(f.started.UnixNano())
	return f
}

// String is the name of the file system.
func (f *FileSystem) String() string { return subtype }

// Forget does nothing: nothing is counted.
func (f *FileSystem) Forget(nodeid, nlookup uint64) {}

// OnUnmount gives back what clients left open: no RELEASE comes any more.
func (f *FileSystem) OnUnmount() {
	for _, d := range f.opens.drain() {
		d.Release()
	}
	f.infos.drain()
}

// panicked turns a panic of a request into EIO for its caller. A broken rule of
// ours must not take the mount, and with it all other devices, down.
func (f *FileSystem) panicked(v any) fuse.Status {
	f.log.WithField("panic", v).Errorf("a request failed by a fault of dmfuse\n%s", debug.Stack())
	return statusFault
}

// device returns the device of a node, whether open or not.
func (f *FileSystem) device(node uint64) (Device, part, bool) {
	serial, p, ok := splitID(node)
	if !ok {
		return nil, 0, false
	}
	if d, ok := f.src.BySerial(serial); ok {
		return d, p, true
	}
	if d := f.opens.get(nodeID(serial, partFile)); d != nil {
		return d, p, true // removed, or about to be, with files still open
	}
	return nil, 0, false
}

// file returns the device of a device file, by the short way if it is open.
func (f *FileSystem) file(node uint64) (Device, fuse.Status) {
	if f.isCondemned(node) {
		return nil, statusFault
	}
	if d := f.opens.get(node); d != nil {
		return d, fuse.OK
	}
	d, p, ok := f.device(node)
	switch {
	case !ok && node>>partBits == 0:
		return nil, statusIsDir
	case !ok:
		return nil, statusNoEntry
	case p != partFile:
		return nil, statusInvalid
	}
	return d, fuse.OK
}

// GetAttr answers stat.
func (f *FileSystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return f.attr(in.NodeId, &out.Attr)
}

// attr fills in what stat shows of a node. No time is given for which it holds:
// sizes and names are true at once after a change.
func (f *FileSystem) attr(node uint64, out *fuse.Attr) fuse.Status {
	if node == rootID || node == infoRootID {
		f.dirAttr(node, out)
		return fuse.OK
	}
	d, p, ok := f.device(node)
	if !ok {
		return statusNoEntry
	}
	if p == partFile {
		fileAttr(d, out)
		return fuse.OK
	}
	if p == partInfoDir {
		f.dirAttr(node, out)
		return fuse.OK
	}
	if _, ok := p.infoKind(); !ok {
		return statusNoEntry
	}
	f.infoAttr(d, node, out)
	return fuse.OK
}

// entry fills in the answer to a lookup.
func (f *FileSystem) entry(node uint64, out *fuse.EntryOut) fuse.Status {
	out.NodeId = node
	out.Generation = 1
	return f.attr(node, &out.Attr)
}

// Access answers access(2) and chdir. Who may do what is the kernel's to check
// (default_permissions, or only the owner of the mount gets here); that a
// device is read-only only we know.
func (f *FileSystem) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	if in.Mask&fuse.W_OK == 0 {
		return fuse.OK
	}
	d, p, ok := f.device(in.NodeId)
	if ok && (p != partFile || d.ReadOnly()) {
		return statusReadOnly
	}
	return fuse.OK
}

// Open counts a user of a device, or makes the content of an information file.
func (f *FileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	d, p, ok := f.device(in.NodeId)
	switch {
	case !ok && in.NodeId>>partBits == 0:
		return statusIsDir
	case !ok:
		return statusNoEntry
	case p == partFile:
		return f.openFile(d, in, out)
	}
	kind, ok := p.infoKind()
	if !ok {
		return statusIsDir
	}
	return f.openInfo(d, kind, in, out)
}

// Release takes back what Open gave.
func (f *FileSystem) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if _, p, ok := splitID(in.NodeId); ok && p != partFile {
		f.infos.remove(in.Fh)
		return
	}
	if f.ledger != nil && !f.ledger.remove(in.Fh) {
		return // the daemon before took it back, and died before it could say so
	}
	if d := f.opens.remove(in.NodeId); d != nil {
		d.Release()
	}
}

// Read answers a read of either kind of file, into the buffer of the transport.
func (f *FileSystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if _, p, ok := splitID(in.NodeId); ok && p != partFile {
		return f.readInfo(in, p, buf)
	}
	return f.readFile(cancel, in, buf)
}

// StatFs answers df. The size is that of all devices together, all of it used.
// The block size is what a loop device takes as its discard granularity.
func (f *FileSystem) StatFs(cancel <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: blockSize, Frsize: blockSize, NameLen: 255}
	for _, d := range f.src.List() {
		out.Blocks += uint64(max(d.Size(), 0)) / blockSize
		out.Files++
	}
	return fuse.OK
}

// Flush answers close: nothing is kept back that would have to be written, and
// the kernel, which remembers this for the mount, never asks again. A program that
// forks and executes closes the files of its child in the middle of that, and must
// not have to wait for a daemon that is just being replaced.
func (f *FileSystem) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return statusNoFlush
}
