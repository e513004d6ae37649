package main

import (
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/snapshot"
	"golang.org/x/sys/unix"
)

func TestReadStatus_TakesTheTextsOfTheKernel(t *testing.T) {
	for text, want := range map[string]snapshotInfo{
		"397896/2097152 1560": {State: "valid", AllocatedBytes: 397896 * 512, TotalBytes: 2097152 * 512, MetadataBytes: 1560 * 512},
		"16/2097152 16":       {State: "valid", AllocatedBytes: 8192, TotalBytes: 2097152 * 512, MetadataBytes: 8192},
		"Invalid":             {State: "invalid"},

		// Of damaged stores.
		"524296/8240 16":               {State: "damaged", AllocatedBytes: 8240 * 512, TotalBytes: 8240 * 512},
		"18101085981225058040/8240 24": {State: "damaged", AllocatedBytes: 8240 * 512, TotalBytes: 8240 * 512},
		"24/8240 18446744073709551608": {State: "damaged", AllocatedBytes: 8240 * 512, TotalBytes: 8240 * 512},
		"Overflow":                     {State: "overflow"},
		"Merge failed":                 {State: "merge-failed"},
		"Unknown":                      {State: "waiting"},
	} {
		var got snapshotInfo
		if err := got.readStatus(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		got.UsedPercent = 0
		if got != want {
			t.Errorf("%q was read as %+v, want %+v", text, got, want)
		}
	}
	for _, text := range []string{"", "1/2", "a/b c", "invalid"} {
		if err := new(snapshotInfo).readStatus(text); err == nil {
			t.Errorf("%q was understood", text)
		}
	}
}

// The figures of lvm2's own tests (snapshot-usage.sh).
func TestUsedPercent_IsThatOfLVM(t *testing.T) {
	for _, c := range []struct {
		allocated, total, metadata int64
		want                       float64
	}{
		{24, 200, 16, 12}, {24, 24, 16, 100}, {24, 48, 16, 50}, {16, 200, 16, 0}, {300, 200, 16, 100}, {0, 0, 0, 0},
	} {
		if got := usedPercent(c.allocated, c.total, c.metadata); got != c.want {
			t.Errorf("%d/%d %d: %v %%, want %v", c.allocated, c.total, c.metadata, got, c.want)
		}
	}
}

func TestStoreWord(t *testing.T) {
	for _, c := range []struct {
		wish cowWish
		full bool
		want string // a store, or part of the refusal
	}{
		{cowWish{}, true, "P"},
		{cowWish{size: 1 << 20}, false, "PO"},
		{cowWish{overflow: "invalidate"}, false, "P"},
		{cowWish{overflow: "readonly"}, true, "PO"},
		{cowWish{overflow: "grow"}, true, "P"},
		{cowWish{temp: true}, true, "N"},
		{cowWish{temp: true, overflow: "invalidate"}, false, "N"},
		{cowWish{temp: true, overflow: "readonly"}, true, "--temporary"},
		{cowWish{overflow: "grow", size: 1 << 20}, false, "PO"},
		{cowWish{limit: 1 << 20}, false, "PO"},
		{cowWish{overflow: "grow", size: 2 << 20, limit: 1 << 20}, false, "--cow-limit 1 MiB is less"},
		{cowWish{overflow: "pause", limit: 1 << 20}, false, "--cow-limit"},
		{cowWish{overflow: "pause"}, true, "P"},
		{cowWish{overflow: "pause", temp: true}, false, "N"},
		{cowWish{overflow: "grow", temp: true}, false, "N"},
		{cowWish{overflow: "Readonly"}, true, "--overflow Readonly"},
	} {
		got, _, err := c.wish.storeAndPolicy(c.full, false)
		switch {
		case err != nil && (exitCode(err) != exitUsage || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%+v: %v, want %q", c.wish, err, c.want)
		case err == nil && got != c.want:
			t.Errorf("%+v: store %s, want %s", c.wish, got, c.want)
		}
	}
}

// What the sidecar is to hold. A device has none, and cannot grow.
func TestStorePolicy(t *testing.T) {
	for _, c := range []struct {
		wish        cowWish
		full, fixed bool
		want        string
	}{
		{cowWish{}, true, false, "overflow=grow"},
		{cowWish{size: 1 << 20}, false, false, "overflow=readonly"},
		{cowWish{limit: 1 << 20}, false, false, "overflow=grow limit=1048576"},
		{cowWish{temp: true, size: 1 << 20}, false, false, "overflow=invalidate"},
		{cowWish{overflow: "pause"}, false, false, "overflow=pause"},
		{cowWish{}, false, true, ""},
		{cowWish{overflow: "pause"}, false, true, "overflow=pause"},
		{cowWish{overflow: "grow"}, false, true, "a device cannot grow"},
	} {
		_, got, err := c.wish.storeAndPolicy(c.full, c.fixed)
		if err != nil && !strings.Contains(err.Error(), c.want) || err == nil && strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %q, %v, want %q", c.wish, got, err, c.want)
		}
	}
}

func TestOtherOrigin(t *testing.T) {
	file := func(path string, ino uint64) baseOf {
		return baseOf{lower: place{path: path, stat: unix.Stat_t{Ino: ino}}, size: 4096}
	}
	noted := snapshot.SidecarOrigin{Path: "/a", Inode: 7, Size: 4096}
	for _, c := range []struct {
		what  string
		noted snapshot.SidecarOrigin
		base  baseOf
		says  string // empty: the same
	}{
		{"the same", noted, file("/a", 7), ""},
		{"moved", noted, file("/b", 7), ""},
		{"replaced", noted, file("/a", 8), "another file"},
		{"another", noted, file("/b", 8), "/a, not for /b"},
		{"larger", noted, baseOf{lower: place{path: "/a", stat: unix.Stat_t{Ino: 7}}, size: 8192}, "4096 bytes"},
		{"inode not known", snapshot.SidecarOrigin{Path: "/a", Size: 4096}, file("/a", 9), ""},
		{"block device", snapshot.SidecarOrigin{Path: "/dev/a", Size: 4096}, baseOf{lower: place{path: "/dev/a", block: true}, size: 4096}, ""},
		{"another block device", snapshot.SidecarOrigin{Path: "/dev/a", Size: 4096}, baseOf{lower: place{path: "/dev/b", block: true}, size: 4096}, "/dev/b"},
	} {
		got := otherOrigin(c.noted, c.base)
		if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q, want %q", c.what, got, c.says)
		}
	}
}

func TestAddOptions(t *testing.T) {
	ro := mapped{Info: control.Info{ReadOnly: true}}
	for _, c := range []struct {
		format string
		m      mapped
		view   bool
		given  []string
		want   string
	}{
		{"ext4", mapped{}, true, nil, ""},
		{"xfs", mapped{}, false, nil, ""},
		{"xfs", mapped{}, true, []string{"noquota"}, "noquota,nouuid"},
		{"xfs", ro, true, []string{"nouuid"}, "nouuid,norecovery"},
		{"ext4", ro, true, nil, "noload"},
		{"ext3", ro, false, nil, "noload"},
		{"ext2", ro, true, nil, ""},
		{"btrfs", ro, true, nil, "rescue=nologreplay"},
	} {
		if got := strings.Join(addOptions(c.format, c.m, c.view, c.given), ","); got != c.want {
			t.Errorf("%s: %q, want %q", c.format, got, c.want)
		}
	}
}

// A small world of devices, to look things up in.
func testSession() *session {
	s := &session{v: control.Version{Mount: "/r/dev"}, byWord: map[string]int{}}
	add := func(name, table string) {
		i := len(s.devices)
		lines, err := mapper.ParseTable(table, mapper.GrammarDmfuse)
		if err != nil {
			panic(err)
		}
		m := mapped{Info: control.Info{Name: name, Path: "/r/dev/" + name, Major: 252, Minor: i, Live: true, SizeBytes: 4096}, lines: lines}
		for _, w := range []string{name, m.Path, "252:" + string(rune('0'+i))} {
			s.byWord[w] = i
		}
		s.devices = append(s.devices, m)
	}
	add("disk", "0 8 snapshot-origin /img/a\\ b")
	add("snap", "0 8 snapshot /img/a\\ b /img/cow P 8")
	add("part", "0 4 linear 252:0 4")
	add("deep", "0 4 linear /r/dev/part 0")
	add("over", "0 8 snapshot-origin snap")
	return s
}

func TestSession_LooksThingsUp(t *testing.T) {
	s := testSession()
	base := place{path: "/img/a b"}
	if m, ok := s.originOver(base); !ok || m.Name != "disk" {
		t.Errorf("the origin device of a file: %q, %v", m.Name, ok)
	}
	snap, _ := s.called("snap")
	p, err := deviceAt(snap)
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := s.originOver(p); !ok || m.Name != "over" {
		t.Errorf("the origin device of a device: %q, %v", m.Name, ok)
	}
	if _, ok := s.originOver(place{path: "/img/cow"}); ok {
		t.Error("a COW has no origin device")
	}
	roles := map[string]string{}
	for _, u := range s.usesOf(base) {
		roles[u.device.Name] = u.role
	}
	if len(roles) != 2 || roles["disk"] != "origin" || roles["snap"] != "base" {
		t.Errorf("uses of the file: %v", roles)
	}
	if u := s.usesOf(place{path: "/img/cow"}); len(u) != 1 || u[0].role != "COW" {
		t.Errorf("uses of the COW: %+v", u)
	}
	var names []string
	for _, m := range s.above("disk") {
		names = append(names, m.Name)
	}
	if strings.Join(names, " ") != "deep part" {
		t.Errorf("above disk: %q, want the topmost first", names)
	}
	if over, _ := s.called("over"); !s.onSnapshot(over) {
		t.Error("a device over a snapshot is not seen as one")
	}
	if deep, _ := s.called("deep"); s.onSnapshot(deep) {
		t.Error("a device over the origin is taken for a snapshot")
	}
	for word, want := range map[string]string{"252:1": "snap", "/r/dev/disk": "disk", "disk": "disk", "disk2": "", "/img/a b": ""} {
		if m, _ := s.deviceOf(word); m.Name != want {
			t.Errorf("%q stands for %q, want %q", word, m.Name, want)
		}
	}
	if got := s.wordText("252:0"); got != "disk" {
		t.Errorf("252:0 is shown as %q", got)
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", strings.Repeat("n", 127), "a b", "a:1", "ä", "-x", "...", "control2"} {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", strings.Repeat("n", 128), "a/b", ".", "..", "control", ".dmfuse", "a\nb", "a\x00b"} {
		if err := checkName(name); err == nil || exitCode(err) != exitUsage {
			t.Errorf("%q: %v, want a usage error", name, err)
		}
	}
}

// What is only passing by is no user; what stays is.
func TestOpenWriters_FindsThisAndWaits(t *testing.T) {
	path := image(t, "f", 4096)
	if got := lastingWriters(path, 0); len(got) != 0 {
		t.Errorf("nobody has it open, but %q are found", got)
	}
	cmd := heldOpen(t, path, "<>")
	if got := openWriters(path); len(got) != 1 || !strings.Contains(got[0], "sh") {
		t.Errorf("a shell has it open for writing; found %q", got)
	}
	if got := openWriters(path, cmd.Process.Pid); len(got) != 0 {
		t.Errorf("without that shell %q are found", got)
	}
	reader := image(t, "g", 4096)
	heldOpen(t, reader, "<")
	if got := openWriters(reader); len(got) != 0 {
		t.Errorf("a reader was taken for a writer: %q", got)
	}
	time.AfterFunc(passing/3, func() { _ = cmd.Process.Kill() })
	if got := lastingWriters(path, 0); len(got) != 0 {
		t.Errorf("who went at once still counts: %q", got)
	}
}
