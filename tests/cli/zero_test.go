package cli

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// blocksOf is what a file takes on its disk, in bytes.
func blocksOf(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// noise fills a file with bytes that are no zeros.
func noise(t *testing.T, path string) []byte {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, st.Size())
	src := rand.NewChaCha8([32]byte{7})
	_, _ = src.Read(p)
	for i := range p {
		p[i] |= 1
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// wantContent compares a device with what it must show.
func wantContent(t *testing.T, what, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if i >= len(got) || got[i] != want[i] {
			t.Fatalf("%s: byte %d of %d differs", what, i, len(want))
		}
	}
}

// TestZero_ThroughTheMount zeroes, punches and discards parts of an origin and of
// a snapshot, by fallocate on the files and by blkdiscard on loop devices: every
// snapshot keeps its moment, what was zeroed reads as zeros, the image gives its
// blocks back, and a snapshot's zeros take none.
func TestZero_ThroughTheMount(t *testing.T) {
	harness.RequireLoop(t)
	harness.RequireTool(t, "fallocate", "blkdiscard")
	d := harness.Start(t)
	image := d.Image("disk.img", 16*mib)
	before := noise(t, image)
	zeroed := func(p []byte, off, n int) { clear(p[off : off+n]) }
	sectors := 16 * mib / 512
	d.Must("create", "disk", "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, image))
	chunks := []int{8, 128, 1}
	for i, chunk := range chunks {
		cow := d.Image(fmt.Sprintf("s%d.cow", i), 24*mib)
		d.Must("create", fmt.Sprint("s", i), "--table", fmt.Sprintf("0 %d snapshot %s %s P %d", sectors, image, cow, chunk))
	}
	snapshots := func(what string) {
		t.Helper()
		for i := range chunks {
			wantContent(t, fmt.Sprintf("%s: snapshot of %d sectors a chunk", what, chunks[i]), d.Dev(fmt.Sprint("s", i)), before)
		}
	}
	origin := bytes.Clone(before)
	full := blocksOf(t, image)

	loop := harness.Losetup(t, d.Dev("disk"))
	for _, c := range []struct {
		args    []string
		off, n  int
		punches bool
	}{
		{[]string{"fallocate", "-p"}, 1 << 20, 1 << 20, true},
		{[]string{"fallocate", "-p"}, 5<<20 + 512, 70000, false}, // odd edges
		{[]string{"fallocate", "-z"}, 6 << 20, 300 << 10, false},
		{[]string{"blkdiscard"}, 8 << 20, 2 << 20, true},
		{[]string{"blkdiscard", "-z"}, 12 << 20, 1 << 20, false},
	} {
		had := blocksOf(t, image)
		file := d.Dev("disk")
		if c.args[0] == "blkdiscard" {
			file = loop
		}
		harness.Must(t, append(c.args, "-o", fmt.Sprint(c.off), "-l", fmt.Sprint(c.n), file)...)
		zeroed(origin, c.off, c.n)
		wantContent(t, fmt.Sprint(c.args), d.Dev("disk"), origin)
		snapshots(fmt.Sprint(c.args))
		if now := blocksOf(t, image); c.punches && now > had-int64(c.n) {
			t.Errorf("%v of %d bytes: the image takes %d bytes, before %d", c.args, c.n, now, had)
		}
	}
	if now := blocksOf(t, image); now >= full {
		t.Errorf("the image takes %d bytes, before %d", now, full)
	}
	harness.Detach(t, loop)

	// A snapshot: zeros take a chunk's place, and no block of the COW file.
	cow := d.Path("s0.cow")
	shown := bytes.Clone(before)
	had := blocksOf(t, cow)
	harness.Must(t, "fallocate", "-p", "-o", fmt.Sprint(14<<20), "-l", fmt.Sprint(1<<20), d.Dev("s0"))
	zeroed(shown, 14<<20, 1<<20)
	wantContent(t, "a hole in a snapshot", d.Dev("s0"), shown)
	if now := blocksOf(t, cow); now > had+64<<10 {
		t.Errorf("1 MiB of zeros makes the COW file %d bytes larger", now-had)
	}
	had = blocksOf(t, cow)
	snap := harness.Losetup(t, d.Dev("s0"))
	harness.Must(t, "blkdiscard", "-o", fmt.Sprint(1<<20), "-l", fmt.Sprint(1<<20), snap) // saved before: gives its chunks' blocks back
	zeroed(shown, 1<<20, 1<<20)
	wantContent(t, "a discarded part of a snapshot", d.Dev("s0"), shown)
	if now := blocksOf(t, cow); now > had-(1<<20)+(64<<10) {
		t.Errorf("discarding 1 MiB that the snapshot has: the COW file takes %d bytes, before %d", now, had)
	}
	harness.Detach(t, snap)
	wantContent(t, "the origin", d.Dev("disk"), origin)

	// And after a kill.
	d.Kill()
	d.Start()
	wantContent(t, "the origin after a restart", d.Dev("disk"), origin)
	wantContent(t, "the snapshot after a restart", d.Dev("s0"), shown)
	wantContent(t, "another after a restart", d.Dev("s1"), before)
}

// TestReflink_CopyOut: on a file system that shares blocks, a large origin write
// costs several snapshots no copy of what they save.
func TestReflink_CopyOut(t *testing.T) {
	harness.RequireLoop(t)
	harness.RequireTool(t, "mkfs.xfs")
	d := harness.Start(t)
	disk := d.Image("xfs.img", 320*mib)
	harness.Must(t, "mkfs.xfs", "-q", "-m", "reflink=1", disk)
	s := &smallDisk{t: t, dir: harness.Mount(t, d.Dir, harness.Losetup(t, disk), "xfs", "")}
	image := s.dir + "/disk.img"
	if err := os.WriteFile(image, make([]byte, 32*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	before := noise(t, image)
	sectors := 32 * mib / 512
	d.Must("create", "disk", "--table", fmt.Sprintf("0 %d snapshot-origin %s", sectors, image))
	for i, chunk := range []int{8, 8, 64, 128} {
		cow := fmt.Sprintf("%s/s%d.cow", s.dir, i)
		if err := os.WriteFile(cow, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(cow, 40*mib); err != nil {
			t.Fatal(err)
		}
		d.Must("create", fmt.Sprint("s", i), "--table", fmt.Sprintf("0 %d snapshot %s %s P %d", sectors, image, cow, chunk))
	}
	harness.Must(t, "sync", "-f", s.dir)
	had := s.free()
	harness.Must(t, "dd", "if=/dev/urandom", "of="+d.Dev("disk"), "bs=1M", "seek=4", "count=16", "iflag=fullblock", "conv=notrunc,fsync", "status=none")
	harness.Must(t, "dd", "if=/dev/urandom", "of="+d.Dev("disk"), "bs=1000", "seek=100", "count=3", "conv=notrunc,fsync", "status=none")
	harness.Must(t, "sync", "-f", s.dir)
	took := had - s.free()
	if took > 32*mib { // 16 for the origin's own; with copies 80
		t.Errorf("a write of 16 MiB to an origin with four snapshots takes %d MiB", took/mib)
	}
	t.Logf("a write of 16 MiB to an origin with four snapshots takes %d KiB", took>>10)
	for i := range 4 {
		wantContent(t, fmt.Sprint("snapshot ", i), d.Dev(fmt.Sprint("s", i)), before)
	}
	d.Kill()
	d.Start()
	for i := range 4 {
		wantContent(t, fmt.Sprint("after a kill: snapshot ", i), d.Dev(fmt.Sprint("s", i)), before)
	}
	for i := range 4 {
		d.Must("remove", fmt.Sprint("s", i))
	}
	d.Must("remove", "disk")
}
