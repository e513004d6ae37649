package fstest

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Plain is a FUSE server for one file that does nothing but pread, pwrite and
// fdatasync: what one can have at best over go-fuse. It is mounted with the same options
// as package fs uses.
type Plain struct {
	fuse.RawFileSystem
	file   *os.File
	fd     int
	size   int64
	dir    string
	server *fuse.Server
	done   chan struct{}
}

// plainNode is the node of the one file.
const plainNode = 2

// MountPlain serves the file at path as DIR/file. DIR must be there; only root
// can.
func MountPlain(path, dir string) (*Plain, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	p := &Plain{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		file:          file, fd: int(file.Fd()), size: st.Size(), dir: dir, done: make(chan struct{}),
	}
	p.server, err = fuse.NewServer(p, dir, &fuse.MountOptions{
		Name: "dmfuse-plain", FsName: "plain", DirectMountStrict: true,
		MaxWrite: 1 << 20, MaxBackground: 4096,
		ExtraCapabilities: fuse.CAP_ASYNC_DIO, DisableXAttrs: true, DisableReadDirPlus: true, DisableSplice: true,
	})
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	go func() {
		defer close(p.done)
		p.server.Serve()
	}()
	return p, nil
}

// Path is the path of the file in the mount.
func (p *Plain) Path() string { return filepath.Join(p.dir, "file") }

// Close unmounts.
func (p *Plain) Close() error {
	if err := unix.Unmount(p.dir, 0); err != nil {
		_ = unix.Unmount(p.dir, unix.MNT_DETACH)
		return err
	}
	<-p.done
	return p.file.Close()
}

func (p *Plain) attr(node uint64, out *fuse.Attr) {
	out.Ino, out.Nlink, out.Blksize = node, 1, 4096
	if node == plainNode {
		out.Mode, out.Size = syscall.S_IFREG|0600, uint64(p.size)
	} else {
		out.Mode = syscall.S_IFDIR | 0700
	}
}

// Lookup finds the file.
func (p *Plain) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "file" {
		return fuse.ENOENT
	}
	out.NodeId = plainNode
	p.attr(plainNode, &out.Attr)
	return fuse.OK
}

// GetAttr answers stat.
func (p *Plain) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	p.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

// Open makes the kernel keep no cache.
func (p *Plain) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	return fuse.OK
}

// Read is pread.
func (p *Plain) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := unix.Pread(p.fd, buf, int64(in.Offset))
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write is pwrite.
func (p *Plain) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, err := unix.Pwrite(p.fd, data, int64(in.Offset))
	return uint32(max(n, 0)), fuse.ToStatus(err)
}

// Fsync is fdatasync.
func (p *Plain) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fuse.ToStatus(unix.Fdatasync(p.fd))
}
