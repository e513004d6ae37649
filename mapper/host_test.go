package mapper

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"golang.org/x/sys/unix"
)

// fakeHost is a machine of files: mounts, and loop devices in sysfs.
type fakeHost struct {
	t      *testing.T
	host   Host
	dir    string // files of the machine; real, as they are asked for their identity
	mounts []string
}

func newFakeHost(t *testing.T) *fakeHost {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHost{t: t, dir: dir, host: Host{Proc: t.TempDir(), Sys: t.TempDir()}}
	h.mount("0:25", "/", "/", "overlay")
	h.mount("0:99", "/", "/mnt/dm", "dmfuse")
	return h
}

// mount adds a line of mountinfo.
func (h *fakeHost) mount(dev, root, point, source string) {
	h.t.Helper()
	esc := strings.NewReplacer(" ", `\040`)
	h.mounts = append(h.mounts, fmt.Sprintf("%d 1 %s %s %s rw,relatime shared:1 master:2 - x %s rw",
		len(h.mounts)+20, dev, esc.Replace(root), esc.Replace(point), esc.Replace(source)))
	h.write(filepath.Join(h.host.Proc, "self/mountinfo"), strings.Join(h.mounts, "\n")+"\n")
}

// loop adds a loop device over a file.
func (h *fakeHost) loop(number, backing string) {
	h.write(filepath.Join(h.host.Sys, "dev/block", number, "loop/backing_file"), backing+"\n")
}

// partition adds a partition of a block device.
func (h *fakeHost) partition(number, disk string) {
	real := filepath.Join(h.host.Sys, "dev/block", disk, "p"+strings.ReplaceAll(number, ":", "-"))
	h.write(filepath.Join(real, "partition"), "1\n")
	h.write(filepath.Join(h.host.Sys, "dev/block", disk, "dev"), disk+"\n")
	if err := os.Symlink(real, filepath.Join(h.host.Sys, "dev/block", number)); err != nil {
		h.t.Fatal(err)
	}
}

// slave puts a block device of the kernel's device-mapper over another.
func (h *fakeHost) slave(number, below string) {
	h.write(filepath.Join(h.host.Sys, "dev/block", number, "slaves/x/dev"), below+"\n")
}

func (h *fakeHost) write(path, content string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// file makes a file below the machine's directory.
func (h *fakeHost) file(name string) string {
	path := filepath.Join(h.dir, name)
	h.write(path, strings.Repeat("x", 100*512))
	return path
}

// manager opens real files by identity and 7:N as block devices.
func (h *fakeHost) manager() *Manager {
	m, _ := newManager(h.t, func(o *Options) {
		o.Host = h.host
		open := o.OpenNumber
		o.OpenLower = func(path string, _ bool) (target.Lower, error) {
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				return nil, err
			}
			return realFile{blockdev.NewMem(100 * 512), path, blockdev.ID{Kind: blockdev.IDFile, A: st.Dev, B: st.Ino}}, nil
		}
		o.OpenNumber = func(major, minor uint32, w bool) (target.Lower, error) {
			l, err := open(major, minor, w)
			if err != nil {
				return nil, err
			}
			l.(*disk).id = blockdev.ID{Kind: blockdev.IDBlock, A: unix.Mkdev(major, minor)}
			return l, nil
		}
	})
	return m
}

// realFile has the identity of a file and no content of it.
type realFile struct {
	blockdev.Device
	name string
	id   blockdev.ID
}

func (f realFile) Name() string    { return f.name }
func (f realFile) ID() blockdev.ID { return f.id }

// refused wants a load to be refused as invalid with a word in the reason.
func refused(t *testing.T, d *Device, table, word string) {
	t.Helper()
	err := load(t, d, table)
	wantKind(t, table, err, blockdev.ErrInvalid)
	if err != nil && !strings.Contains(err.Error(), word) {
		t.Errorf("%s: %v, want %q", table, err, word)
	}
	if d.Info(false).Inactive {
		t.Errorf("%s: an inactive table is there", table)
	}
}

func TestLoops_ThroughTables(t *testing.T) {
	m, _ := newManager(t, nil)
	a := mustCreate(t, m, "a", "")
	wantKind(t, "itself at the first load, by number", load(t, a, "0 8 linear 253:0 0"), blockdev.ErrNoAddress)
	wantKind(t, "itself at the first load, by name", load(t, a, "0 8 linear a 0"), blockdev.ErrNoAddress)
	mustLoad(t, a, "0 8 zero")
	mustResume(t, a)
	for _, word := range []string{"253:0", "a", "/mnt/dm/a"} {
		refused(t, a, "0 8 linear "+word+" 0", "itself")
	}
	b := mustCreate(t, m, "b", "0 8 linear a 0")
	c := mustCreate(t, m, "c", "0 8 linear 7:0 0")
	mustLoad(t, c, "0 8 linear b 0") // only inactive
	refused(t, a, "0 8 linear c 0", "itself through c")
	if err := c.Clear(); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, a, "0 8 linear c 0") // c does not use b any more
	if n := b.Info(false).OpenCount; n != 0 {
		t.Errorf("open count of b: %d", n)
	}
}

func TestLoops_ThroughALoopDeviceOnOurMount(t *testing.T) {
	h := newFakeHost(t)
	h.loop("7:2", "/mnt/dm/a")
	h.partition("259:1", "7:2")
	h.slave("252:0", "259:1")
	m := h.manager()
	a := mustCreate(t, m, "a", "0 8 zero")
	b := mustCreate(t, m, "b", "0 8 linear 7:2 0") // b → loop → a
	refused(t, a, "0 8 linear b 0", "itself through b")
	refused(t, a, "0 8 linear 7:2 0", "itself through 7:2")
	file := h.file("on-a/f") // a file on a file system on a partition on a loop device on a
	h.mount("0:77", "/", filepath.Dir(file), "none")
	mustLoad(t, a, "0 8 linear "+file+" 0")
	h.mount("252:0", "/", filepath.Dir(file), "/dev/x")
	refused2 := load(t, a, "0 8 linear "+file+" 0")
	wantKind(t, "a file that is stored on the device", refused2, blockdev.ErrInvalid)
	if got := m.graph.topsFirst(m.Devices()); got[0] != b || got[1] != a {
		t.Errorf("tops first: %s, %s", got[0].Name(), got[1].Name())
	}
}

// The COW file of a snapshot on a file system on its own origin: an origin write
// would wait for the copy, and the copy for the origin.
func TestLoops_TwoLowerDevicesThatDependOnEachOther(t *testing.T) {
	h := newFakeHost(t)
	base := h.file("disk.img")
	cow := h.file("fs/cow file")
	h.mount("7:8", "/", filepath.Dir(cow), "/dev/loop8")
	for name, backing := range map[string]string{
		"a loop device on the base itself":     base,
		"a loop device on the origin device":   "/mnt/dm/origin",
		"a loop device on a file that is gone": base + " (deleted)",
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			h.loop("7:8", backing)
			p := newProbes()
			m := h.manager()
			m.types = target.NewSet(append(p.types(), m.types.All()...)...)
			mustCreate(t, m, "origin", "0 100 linear "+base+" 0")
			s := mustCreate(t, m, "snap", "")
			word := target.Quote(cow)
			refused(t, s, "0 100 probe s "+base+" "+word, "lies on a file system that is stored on")
			refused(t, s, "0 100 probe s "+word+" "+base, "lies on a file system that is stored on")
			mustLoad(t, s, "0 100 probe s "+base)
			other := mustCreate(t, m, "other", "")
			mustLoad(t, other, "0 100 probe o "+word) // alone it is no loop
		})
	}
}

func TestLower_PathsIntoTheMount(t *testing.T) {
	h := newFakeHost(t)
	link := filepath.Join(h.dir, "link")
	chain := filepath.Join(h.dir, "chain")
	for from, to := range map[string]string{link: "/mnt/dm/a", chain: "link"} {
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	bind := filepath.Join(h.dir, "bind")
	if err := os.Mkdir(bind, 0o755); err != nil {
		t.Fatal(err)
	}
	h.mount("0:99", "/", bind, "dmfuse")
	one := h.file("one")
	h.mount("0:99", "/a", one, "dmfuse")
	m := h.manager()
	mustCreate(t, m, "a", "0 8 zero")
	d := mustCreate(t, m, "d", "")
	for _, path := range []string{"/mnt/dm/a", "/mnt/dm/../dm/./a", link, chain, bind + "/a", one} {
		mustLoad(t, d, "0 8 linear "+path+" 0")
		if deps := d.Deps(true); len(deps) != 1 || deps[0].Name != "a" {
			t.Errorf("%s: %+v", path, deps)
		}
	}
	for _, path := range []string{"/mnt/dm/nosuch", "/mnt/dm", "/mnt/dm/.dmfuse/a/table", bind + "/nosuch"} {
		err := load(t, d, "0 8 linear "+path+" 0")
		wantKind(t, path, err, blockdev.ErrNoDevice)
		if err != nil && !strings.Contains(err.Error(), "own mount") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestLower_ANumberThatIsBothIsRefused(t *testing.T) {
	h := newFakeHost(t)
	m := h.manager()
	mustCreate(t, m, "a", "0 8 zero")
	d := mustCreate(t, m, "d", "")
	mustLoad(t, d, "0 8 linear 253:0 0")
	h.slave("253:0", "8:0")
	wantKind(t, "a number that is both", load(t, d, "0 8 linear 253:0 0"), blockdev.ErrInvalid)
	mustLoad(t, d, "0 8 linear a 0")
}

func TestMountinfo(t *testing.T) {
	h := newFakeHost(t)
	h.mount("8:1", "/sub dir", "/a b", "/dev/my disk")
	h.mount("8:2", "/", "/a b/c", "/dev/sda2")
	h.mount("8:3", "/", "/a b/c", "/dev/sda3")
	mounts := h.host.mounts()
	for path, want := range map[string]uint32{"/x": 25, "/a b": 1, "/a b/x": 1, "/a bc": 25, "/a b/c/d": 3, "/mnt/dm/a": 99} {
		m, ok := mountOf(mounts, path)
		if !ok || m.minor != want {
			t.Errorf("%s is on %+v, want minor %d", path, m, want)
		}
	}
	if m, _ := mountOf(mounts, "/a b"); m.root != "/sub dir" || m.source != "/dev/my disk" {
		t.Errorf("%+v", m)
	}
	if got := (&Host{Proc: "/nonexistent"}).mounts(); got != nil {
		t.Errorf("%v", got)
	}
}

// A file on a file system on a loop device over a device of our own is not looked
// at while devices are brought back; what only looks like it is.
func TestOnOwn(t *testing.T) {
	h := newFakeHost(t)
	nested, elsewhere := filepath.Join(h.dir, "nested"), filepath.Join(h.dir, "elsewhere")
	h.loop("7:0", "/mnt/dm/low")
	h.loop("7:1", filepath.Join(nested, "inner.img"))
	h.loop("7:2", filepath.Join(elsewhere, "x.img")+" (deleted)")
	h.loop("7:3", "/bind/low")
	h.partition("7:64", "7:0")
	h.slave("253:0", "7:1")
	h.mount("7:0", "/", nested, "/dev/loop0")
	h.mount("7:2", "/", elsewhere+"/x", "/dev/loop2")
	h.mount("0:99", "/", "/bind", "dmfuse")
	h.mount("7:1", "/", filepath.Join(nested, "deep"), "/dev/loop1")
	link := filepath.Join(h.dir, "link")
	if err := os.Symlink(filepath.Join(nested, "b.img"), link); err != nil {
		t.Fatal(err)
	}
	round := filepath.Join(h.dir, "round")
	if err := os.Symlink(round, round); err != nil {
		t.Fatal(err)
	}
	m, _ := newManager(t, func(o *Options) { o.Host, o.MountDir = h.host, "/mnt/dm" })
	for word, want := range map[string]string{
		filepath.Join(nested, "b.img"):             "low",
		filepath.Join(nested, "there", "is", "no"): "low",
		filepath.Join(nested, "deep", "c.img"):     "low",
		link:                                       "low",
		"7:0":                                      "low",
		"7:64":                                     "low",
		"253:0":                                    "low",
		"7:3":                                      "low",
		"7:2":                                      "",
		"7:9":                                      "",
		filepath.Join(elsewhere, "x", "y"):         "",
		h.file("plain"):                            "",
		round:                                      "",
		"/mnt/dm/low":                              "", // the device itself
		"/bind/low":                                "",
		"low":                                      "",
		"8":                                        "",
		"relative/b.img":                           "",
	} {
		err := m.onOwn(m.host.mounts(), word)
		if got := err != nil; got != (want != "") || err != nil && !strings.Contains(err.Error(), "the device "+want+" ") {
			t.Errorf("%s: %v, want %q", word, err, want)
		}
	}
}
