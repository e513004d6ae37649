package fs

import (
	"cmp"
	"slices"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// infoRootName is the directory of the information files.
const infoRootName = ".dmfuse"

// shown says whether a device of this name can have a file.
func shown(name string) bool {
	switch name {
	case "", ".", "..", infoRootName:
		return false
	}
	return len(name) <= 255 && !strings.ContainsAny(name, "/\x00")
}

// dirAttr fills in what stat shows of a directory.
func (f *FileSystem) dirAttr(node uint64, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:     node,
		Mode:    syscall.S_IFDIR | f.perm,
		Nlink:   2,
		Owner:   fuse.Owner{Uid: f.uid, Gid: f.gid},
		Blksize: blockSize,
	}
	out.SetTimes(&f.started, &f.started, &f.started)
}

// Lookup finds a name in a directory.
func (f *FileSystem) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	node, code := f.child(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	return f.entry(node, out)
}

// child returns the node of a name in a directory.
func (f *FileSystem) child(dir uint64, name string) (uint64, fuse.Status) {
	switch dir {
	case rootID:
		if name == infoRootName {
			return infoRootID, fuse.OK
		}
		return f.named(name, partFile)
	case infoRootID:
		return f.named(name, partInfoDir)
	}
	d, p, ok := f.device(dir)
	switch {
	case !ok:
		return 0, statusNoEntry
	case p != partInfoDir:
		return 0, statusNotDir
	}
	if i := slices.Index(infoKinds[:], name); i >= 0 {
		return nodeID(d.Serial(), partInfoFirst+part(i)), fuse.OK
	}
	return 0, statusNoEntry
}

func (f *FileSystem) named(name string, p part) (uint64, fuse.Status) {
	if !shown(name) {
		return 0, statusNoEntry
	}
	d, ok := f.src.Lookup(name)
	if !ok || d.Serial() > maxSerial {
		return 0, statusNoEntry
	}
	return nodeID(d.Serial(), p), fuse.OK
}

// OpenDir lets any directory be listed; there is no state to it.
func (f *FileSystem) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	var a fuse.Attr
	if code := f.attr(in.NodeId, &a); !code.Ok() {
		return code
	}
	if !a.IsDir() {
		return statusNotDir
	}
	return fuse.OK
}

// ReleaseDir has nothing to give back.
func (f *FileSystem) ReleaseDir(in *fuse.ReleaseIn) {}

// FsyncDir has nothing to write.
func (f *FileSystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Cookies of directory entries. An entry keeps its cookie as long as it lives,
// and a listing goes on behind the cookie it has reached: whatever appears or
// vanishes meanwhile, no entry comes twice and none that stays is missed, and
// no state is kept. Devices are listed in the order of their serial numbers.
const (
	cookieDot uint64 = 1 + iota
	cookieDotDot
	cookieFirst // .dmfuse in the root; in .dmfuse/NAME the first file
)

// entries returns what a directory holds behind a cookie.
func (f *FileSystem) entries(dir, behind uint64) ([]fuse.DirEntry, fuse.Status) {
	parent := rootID
	var list []fuse.DirEntry
	switch dir {
	case rootID:
		list = f.deviceEntries(partFile, behind)
		list = append([]fuse.DirEntry{{
			Name: infoRootName, Ino: infoRootID, Mode: syscall.S_IFDIR, Off: cookieFirst,
		}}, list...)
	case infoRootID:
		list = f.deviceEntries(partInfoDir, behind)
	default:
		d, p, ok := f.device(dir)
		if !ok {
			return nil, statusNoEntry
		}
		if p != partInfoDir {
			return nil, statusNotDir
		}
		parent = infoRootID
		for i, kind := range infoKinds {
			list = append(list, fuse.DirEntry{
				Name: kind, Ino: nodeID(d.Serial(), partInfoFirst+part(i)), Mode: syscall.S_IFREG, Off: cookieFirst + uint64(i),
			})
		}
	}
	list = append([]fuse.DirEntry{
		{Name: ".", Ino: dir, Mode: syscall.S_IFDIR, Off: cookieDot},
		{Name: "..", Ino: parent, Mode: syscall.S_IFDIR, Off: cookieDotDot},
	}, list...)
	return slices.DeleteFunc(list, func(e fuse.DirEntry) bool { return e.Off <= behind }), fuse.OK
}

// deviceEntries returns an entry for every device; its node id is its cookie.
func (f *FileSystem) deviceEntries(p part, behind uint64) []fuse.DirEntry {
	mode := uint32(syscall.S_IFREG)
	if p == partInfoDir {
		mode = syscall.S_IFDIR
	}
	var list []fuse.DirEntry
	for _, d := range f.src.List() {
		id, name := nodeID(d.Serial(), p), d.Name()
		if id > behind && d.Serial() <= maxSerial && shown(name) {
			list = append(list, fuse.DirEntry{Name: name, Ino: id, Mode: mode, Off: id})
		}
	}
	slices.SortFunc(list, func(a, b fuse.DirEntry) int { return cmp.Compare(a.Off, b.Off) })
	return list
}

// ReadDir lists a directory.
func (f *FileSystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	list, code := f.entries(in.NodeId, in.Offset)
	for _, e := range list {
		if !out.AddDirEntry(e) {
			break
		}
	}
	return code
}

// ReadDirPlus lists a directory with the attributes of what is in it.
func (f *FileSystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	list, code := f.entries(in.NodeId, in.Offset)
	for _, e := range list {
		o := out.AddDirLookupEntry(e)
		if o == nil {
			break
		}
		if e.Off == cookieDot || e.Off == cookieDotDot {
			continue // node id 0: not a lookup
		}
		if !f.entry(e.Ino, o).Ok() {
			*o = fuse.EntryOut{} // gone meanwhile: listed, but not looked up
		}
	}
	return code
}

// The tree is changed by the commands for devices, never through it.

func (f *FileSystem) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return statusPermission
}

func (f *FileSystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return statusPermission
}

func (f *FileSystem) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return statusPermission
}

func (f *FileSystem) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return statusPermission
}

func (f *FileSystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	return statusPermission
}

func (f *FileSystem) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	return statusPermission
}

func (f *FileSystem) Symlink(cancel <-chan struct{}, in *fuse.InHeader, to, name string, out *fuse.EntryOut) fuse.Status {
	return statusPermission
}

func (f *FileSystem) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return statusPermission
}

func (f *FileSystem) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return statusUnsupported
}

func (f *FileSystem) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	return nil, statusInvalid
}

// There are no extended attributes.

func (f *FileSystem) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	return 0, statusNoData
}

func (f *FileSystem) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	return 0, fuse.OK
}

func (f *FileSystem) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	return statusUnsupported
}

func (f *FileSystem) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	return statusUnsupported
}
