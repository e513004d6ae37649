package fs

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// infos holds the content of information files that are open, so that a reader
// in several steps sees one state. A handle that is not in it was opened under
// an earlier daemon: its content is made anew.
type infos struct {
	mu   sync.Mutex
	next uint64 // handles begin at a time in nanoseconds, apart from those of an earlier daemon
	m    map[uint64]string
}

func (i *infos) add(text string) (fh uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.m == nil {
		i.m = make(map[uint64]string)
	}
	i.next++
	i.m[i.next] = text
	return i.next
}

func (i *infos) get(fh uint64) (string, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	text, ok := i.m[fh]
	return text, ok
}

func (i *infos) remove(fh uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.m, fh)
}

func (i *infos) drain() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.m = nil
}

// infoAttr fills in what stat shows of an information file. As in /proc the
// size is 0 until one reads.
func (f *FileSystem) infoAttr(d Device, node uint64, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:     node,
		Mode:    syscall.S_IFREG | f.perm&0444,
		Nlink:   1,
		Owner:   fuse.Owner{Uid: f.uid, Gid: f.gid},
		Blksize: blockSize,
	}
	if t := d.Attr().Mtime; !t.IsZero() {
		out.SetTimes(&t, &t, &t)
	}
}

// openInfo makes the content.
func (f *FileSystem) openInfo(d Device, kind string, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return statusReadOnly
	}
	out.Fh = f.infos.add(d.InfoText(kind))
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

func (f *FileSystem) readInfo(in *fuse.ReadIn, p part, buf []byte) (fuse.ReadResult, fuse.Status) {
	text, ok := f.infos.get(in.Fh)
	if !ok {
		d, _, found := f.device(in.NodeId)
		kind, known := p.infoKind()
		if !found || !known {
			return nil, statusNoEntry
		}
		text = d.InfoText(kind)
	}
	if in.Offset >= uint64(len(text)) {
		return newReply(buf[:0]), fuse.OK
	}
	return newReply(buf[:copy(buf, text[in.Offset:])]), fuse.OK
}
