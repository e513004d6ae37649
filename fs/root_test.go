package fs_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

func TestRoot_DevicesAppearVanishAndMove(t *testing.T) {
	a, b := fstest.NewMemory(1, "a", 1<<20), fstest.NewMemory(2, "b", 1<<20)
	m := mount(t, a)
	list := func() string { return strings.Join(strings.Fields(run(t, "ls", "-A", m.Dir())), " ") }
	if got := list(); got != ".dmfuse a" {
		t.Errorf("at first: %q", got)
	}
	if err := unix.Access(m.path("b"), 0); err != unix.ENOENT {
		t.Errorf("b before: %v", err)
	}
	m.list.Add(b)
	if err := unix.Access(m.path("b"), 0); err != nil {
		t.Errorf("b added: %v", err)
	}
	if got := list(); got != ".dmfuse a b" {
		t.Errorf("b added: %q", got)
	}
	fd := open(t, m.path("b"), unix.O_RDWR)
	b.Rename("c")
	if err := unix.Access(m.path("b"), 0); err != unix.ENOENT {
		t.Errorf("b renamed: %v", err)
	}
	if got := list(); got != ".dmfuse a c" {
		t.Errorf("b renamed: %q", got)
	}
	if _, err := unix.Pwrite(fd, []byte("x"), 0); err != nil {
		t.Errorf("write to the renamed: %v", err)
	}
	m.list.Remove(b)
	if err := unix.Access(m.path("c"), 0); err != unix.ENOENT {
		t.Errorf("c removed: %v", err)
	}
	// The device stays as long as it is open (deferred remove).
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != 1<<20 {
		t.Errorf("fstat of the removed: %d, %v", st.Size, err)
	}
	if _, err := unix.Pwrite(fd, []byte("x"), 0); err != nil {
		t.Errorf("write to the removed: %v", err)
	}
	unix.Close(fd)
	awaitDevice(t, b, "b is closed", func() bool { return b.Opens() == 0 })
}

// A name given to another device is another file at once.
func TestRoot_NameUsedAgain(t *testing.T) {
	old := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, old)
	fd := open(t, m.path("vol"), unix.O_RDWR)
	var before, after unix.Stat_t
	if err := unix.Fstat(fd, &before); err != nil {
		t.Fatal(err)
	}
	m.list.Remove(old)
	m.list.Add(fstest.NewMemory(2, "vol", 2<<20))
	if err := unix.Stat(m.path("vol"), &after); err != nil {
		t.Fatal(err)
	}
	if before.Ino == after.Ino || after.Size != 2<<20 {
		t.Errorf("inode %d then %d, size %d", before.Ino, after.Ino, after.Size)
	}
	if _, err := unix.Pwrite(fd, []byte("old"), 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 3)
	if _, err := old.ReadAt(t.Context(), buf, 0); err != nil || string(buf) != "old" {
		t.Errorf("what was open before wrote elsewhere: %q, %v", buf, err)
	}
}

func TestRoot_NothingIsMadeOrRemovedThroughIt(t *testing.T) {
	m := mount(t, fstest.NewMemory(1, "vol", 1<<20), fstest.NewMemory(2, "other", 1<<20))
	p := m.path
	for what, err := range map[string]error{
		"unlink":           unix.Unlink(p("vol")),
		"unlink info":      unix.Unlink(p(".dmfuse/vol/table")),
		"rmdir":            unix.Rmdir(p(".dmfuse")),
		"rmdir info":       unix.Rmdir(p(".dmfuse/vol")),
		"mkdir":            unix.Mkdir(p("new"), 0700),
		"mkdir in info":    unix.Mkdir(p(".dmfuse/new"), 0700),
		"rename":           unix.Rename(p("vol"), p("new")),
		"rename over":      unix.Rename(p("vol"), p("other")),
		"rename no over":   unix.Renameat2(unix.AT_FDCWD, p("vol"), unix.AT_FDCWD, p("new"), unix.RENAME_NOREPLACE),
		"rename across":    unix.Rename(p("vol"), p(".dmfuse/vol2")),
		"link":             unix.Link(p("vol"), p("new")),
		"symlink":          unix.Symlink("vol", p("new")),
		"mknod":            unix.Mknod(p("new"), unix.S_IFREG|0600, 0),
		"mkfifo":           unix.Mkfifo(p("new"), 0600),
		"chmod root":       unix.Chmod(m.Dir(), 0777),
		"chmod info":       unix.Chmod(p(".dmfuse/vol/table"), 0777),
		"truncate info":    unix.Truncate(p(".dmfuse/vol/table"), 0),
		"create":           creates(p("new")),
		"create in info":   creates(p(".dmfuse/vol/new")),
		"create exclusive": creates(p("new"), unix.O_EXCL),
	} {
		if err != unix.EPERM {
			t.Errorf("%s: %v, want EPERM", what, err)
		}
	}
	for what, c := range map[string]struct{ got, want error }{
		"create over a device": {creates(p("vol")), nil},
		"exclusive over it":    {creates(p("vol"), unix.O_EXCL), unix.EEXIST},
		"without a name":       {creates(m.Dir(), unix.O_TMPFILE), unix.EOPNOTSUPP},
		"setxattr":             {unix.Setxattr(p("vol"), "user.x", []byte("y"), 0), unix.EOPNOTSUPP},
		"unlink nothing":       {unix.Unlink(p("nothing")), unix.ENOENT},
		"read a directory":     {reads(m.Dir()), unix.EISDIR},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", what, c.got, c.want)
		}
	}
	if got := run(t, "ls", m.Dir()); got != "other\nvol\n" {
		t.Errorf("listed: %q", got)
	}
}

func creates(path string, flags ...int) error {
	flag := unix.O_CREAT | unix.O_RDWR
	for _, f := range flags {
		if f == unix.O_TMPFILE {
			flag = unix.O_RDWR
		}
		flag |= f
	}
	fd, err := unix.Open(path, flag, 0600)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func reads(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Read(fd, make([]byte, 10))
	return err
}

func TestRoot_NamesThatCannotBeFiles(t *testing.T) {
	list := fstest.NewList()
	for i, name := range []string{"", ".", "..", ".dmfuse", "a/b", "a\x00b", strings.Repeat("x", 256), "fine", "also fine \\x20 ü"} {
		list.Add(fstest.NewMemory(uint64(i), name, 512))
	}
	f := fs.NewFileSystem(list, fs.Options{})
	var got []string
	for _, e := range entries(t, f, fuse.FUSE_ROOT_ID, 64<<10, func() {}) {
		got = append(got, e.Name)
	}
	if !slices.Equal(got, []string{".", "..", ".dmfuse", "fine", "also fine \\x20 ü"}) {
		t.Errorf("listed: %q", got)
	}
	for _, name := range []string{"", ".", "..", "a/b", strings.Repeat("x", 256)} {
		if code := f.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, name, new(fuse.EntryOut)); code != fuse.ENOENT {
			t.Errorf("%q: %v", name, code)
		}
	}
}

// entries lists a directory in steps of a buffer of size bytes, and calls
// between after each.
func entries(t *testing.T, f *fs.FileSystem, dir uint64, size int, between func()) []fuse.DirEntry {
	t.Helper()
	var all []fuse.DirEntry
	for off := uint64(0); ; {
		out := fuse.NewDirEntryList(make([]byte, size), off)
		if code := f.ReadDir(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: dir}, Offset: off}, out); !code.Ok() {
			t.Fatalf("readdir from %d: %v", off, code)
		}
		list, err := fuse.ParseDirEntries(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			return all
		}
		for _, e := range list {
			if e.Off <= off {
				t.Fatalf("entry %q has the cookie %d, behind %d", e.Name, e.Off, off)
			}
			off = e.Off
		}
		all = append(all, list...)
		between()
	}
}

// Devices that are there all the time are listed exactly once, whatever comes
// and goes while the listing is under way.
func TestRoot_ListingWhileDevicesChange(t *testing.T) {
	const stay = 100
	list := fstest.NewList()
	for i := range uint64(stay) {
		list.Add(fstest.NewMemory(2*i+1, fmt.Sprintf("stay-%03d", i), 512))
	}
	f := fs.NewFileSystem(list, fs.Options{})
	var others []fs.Device
	rnd := rand.New(rand.NewPCG(1, 2))
	change := func() {
		for range 5 {
			dev := fstest.NewMemory(2*rnd.Uint64N(2*stay), "come-and-go", 512)
			list.Add(dev)
			others = append(others, dev)
			if rnd.IntN(2) == 0 {
				list.Remove(others[rnd.IntN(len(others))])
			}
		}
		moved, _ := list.BySerial(2*rnd.Uint64N(stay) + 1)
		moved.(*fstest.Memory).Rename(fmt.Sprintf("stay-%d", rnd.Uint64()))
	}
	for _, dir := range []uint64{fuse.FUSE_ROOT_ID, 2} {
		for range 5 {
			count := make(map[uint64]int)
			for _, e := range entries(t, f, dir, 300, change) {
				if strings.HasPrefix(e.Name, "stay-") {
					count[e.Ino]++
				}
			}
			if len(count) != stay {
				t.Fatalf("%d devices listed, want %d", len(count), stay)
			}
			for ino, n := range count {
				if n != 1 {
					t.Fatalf("inode %d listed %d times", ino, n)
				}
			}
		}
	}
}

func TestRoot_ReadDirPlus(t *testing.T) {
	gone := fstest.NewMemory(3, "gone", 512)
	list := fstest.NewList(fstest.NewMemory(1, "a", 1000), fstest.NewMemory(2, "b", 2000), gone)
	f := fs.NewFileSystem(&losing{Source: list, list: list, lose: gone}, fs.Options{})
	out := fuse.NewDirEntryList(make([]byte, 64<<10), 0)
	if code := f.ReadDirPlus(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}}, out); !code.Ok() {
		t.Fatal(code)
	}
	entries, attrs, err := fuse.ParseDirLookupEntries(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, e := range entries {
		got = append(got, fmt.Sprintf("%s %d %d", e.Name, attrs[i].NodeId, attrs[i].Size))
		if attrs[i].EntryTimeout() != 0 || attrs[i].AttrTimeout() != 0 {
			t.Errorf("%s may be kept", e.Name)
		}
	}
	want := []string{". 0 0", ".. 0 0", ".dmfuse 2 0", "a 32 1000", "b 48 2000", "gone 0 0"}
	if !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
}

// losing removes a device after it was listed.
type losing struct {
	fs.Source
	list *fstest.List
	lose fs.Device
}

func (l *losing) List() []fs.Device {
	all := l.list.List()
	l.list.Remove(l.lose)
	return all
}

func TestRoot_StatFs(t *testing.T) {
	m := mount(t, fstest.NewMemory(1, "a", 1<<20), fstest.NewMemory(2, "b", 3<<20))
	var st unix.Statfs_t
	if err := unix.Statfs(m.path("a"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Bsize != 4096 || st.Blocks != 1024 || st.Bfree != 0 || st.Files != 2 || st.Namelen != 255 {
		t.Errorf("%+v", st)
	}
	run(t, "df", m.Dir())
}

func TestInfo_Files(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, dev)
	if got := run(t, "ls", "-A", m.path(".dmfuse"), m.path(".dmfuse/vol")); got !=
		fmt.Sprintf("%s:\nvol\n\n%s:\nevents\ninfo\nstatus\ntable\nuuid\n", m.path(".dmfuse"), m.path(".dmfuse/vol")) {
		t.Errorf("listed:\n%s", got)
	}
	for i, kind := range fs.InfoKinds() {
		path := m.path(".dmfuse/vol/" + kind)
		if got := run(t, "stat", "-c", "%F %a %h", path); got != "regular empty file 400 1\n" {
			t.Errorf("stat of %s: %q", kind, got)
		}
		if got, want := run(t, "cat", path), fmt.Sprintf("%s of vol, time %d\n", kind, i+1); got != want {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
		if _, err := unix.Open(path, unix.O_WRONLY, 0); err != unix.EROFS {
			t.Errorf("open %s for writing: %v", kind, err)
		}
	}
	// What one open sees does not change; the next sees it anew.
	fd := open(t, m.path(".dmfuse/vol/table"), unix.O_RDONLY)
	dev.Rename("renamed")
	buf := make([]byte, 100)
	var got string
	for off := int64(0); ; {
		n, err := unix.Pread(fd, buf[:5], off)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		got += string(buf[:n])
		off += int64(n)
	}
	if got != "table of vol, time 6\n" {
		t.Errorf("in steps of 5 bytes: %q", got)
	}
	if got := run(t, "cat", m.path(".dmfuse/renamed/table")); got != "table of renamed, time 7\n" {
		t.Errorf("after it: %q", got)
	}
	if err := unix.Access(m.path(".dmfuse/vol"), 0); err != unix.ENOENT {
		t.Errorf("the old name: %v", err)
	}
	if dev.Opens() != 0 {
		t.Error("an information file counts as a user of the device")
	}
	m.list.Remove(dev)
	if err := unix.Access(m.path(".dmfuse/renamed/table"), 0); err != unix.ENOENT {
		t.Errorf("of a removed device: %v", err)
	}
}

// The tools of every day must not stumble.
func TestRoot_EverydayTools(t *testing.T) {
	m := mount(t, fstest.NewMemory(1, "vol", 64<<10), fstest.NewMemory(2, "other", 64<<10))
	run(t, "ls", "-lRa", m.Dir())
	run(t, "find", m.Dir(), "-ls")
	run(t, "du", "-a", m.Dir())
	run(t, "grep", "-rc", "vol", m.path(".dmfuse"))
	run(t, "cp", "-r", m.path(".dmfuse"), filepath.Join(t.TempDir(), "copy"))
	run(t, "tar", "-C", m.Dir(), "-cf", filepath.Join(t.TempDir(), "tar"), "vol", "other")
	run(t, "cmp", m.path("vol"), m.path("other"))
	run(t, "sync", m.path("vol"))
	run(t, "cp", m.path("vol"), m.path("other"))
	if _, err := os.ReadDir(m.Dir()); err != nil {
		t.Error(err)
	}
}
