package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// image makes a sparse file of size bytes in a directory of the test.
func image(t *testing.T, name string, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// tool runs a program of the machine, or skips the test when it is missing.
func tool(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		t.Skipf("%s is not installed", args[0])
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func probeFile(t *testing.T, path string) contents {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	c, err := probe(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What the tools that make the formats really write.
func TestProbe_KnowsWhatTheToolsMake(t *testing.T) {
	const m = 1 << 20
	for _, c := range []struct {
		format string
		class  contentClass
		size   int64
		make   []string // FILE is the image
	}{
		{"ext2", classFileSystem, 8 * m, []string{"mkfs.ext2", "-q", "-F", "FILE"}},
		{"ext3", classFileSystem, 8 * m, []string{"mkfs.ext3", "-q", "-F", "FILE"}},
		{"ext4", classFileSystem, 8 * m, []string{"mkfs.ext4", "-q", "-F", "FILE"}},
		{"xfs", classFileSystem, 320 * m, []string{"mkfs.xfs", "-q", "FILE"}},
		{"btrfs", classFileSystem, 128 * m, []string{"mkfs.btrfs", "-q", "FILE"}},
		{"vfat", classFileSystem, 8 * m, []string{"mkfs.vfat", "FILE"}},
		{"vfat", classFileSystem, 64 * m, []string{"mkfs.vfat", "-F", "32", "FILE"}},
		{"swap", classVolume, 8 * m, []string{"mkswap", "FILE"}},
		{"luks", classVolume, 32 * m, []string{"cryptsetup", "-q", "luksFormat", "--pbkdf-force-iterations", "4", "--pbkdf", "argon2id", "--pbkdf-memory", "32", "FILE", "/dev/null"}},
		{"qcow2", classImage, 0, []string{"qemu-img", "create", "-q", "-f", "qcow2", "FILE", "8m"}},
		{"vmdk", classImage, 0, []string{"qemu-img", "create", "-q", "-f", "vmdk", "FILE", "8m"}},
		{"vdi", classImage, 0, []string{"qemu-img", "create", "-q", "-f", "vdi", "FILE", "8m"}},
		{"vhdx", classImage, 0, []string{"qemu-img", "create", "-q", "-f", "vhdx", "FILE", "8m"}},
		{"vhd", classImage, 0, []string{"qemu-img", "create", "-q", "-f", "vpc", "FILE", "8m"}},
		{"vhd", classImage, 0, []string{"qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed", "FILE", "8m"}},
		{"gzip", classPacked, 8 * m, []string{"gzip", "-f", "FILE"}},
		{"xz", classPacked, 8 * m, []string{"xz", "-f", "FILE"}},
		{"zstd", classPacked, 8 * m, []string{"zstd", "-q", "-f", "FILE"}},
	} {
		t.Run(strings.Join(c.make[:1], ""), func(t *testing.T) {
			path := image(t, "img", c.size)
			args := make([]string, len(c.make))
			for i, a := range c.make {
				args[i] = strings.ReplaceAll(a, "FILE", path)
			}
			tool(t, "", args...)
			for _, ext := range []string{".gz", ".xz", ".zst"} {
				if _, err := os.Stat(path + ext); err == nil {
					path += ext
				}
			}
			got := probeFile(t, path)
			if got.Format != c.format || got.Class != c.class {
				t.Errorf("%s was taken for %q (class %d), want %q (class %d)", strings.Join(c.make, " "), got.Format, got.Class, c.format, c.class)
			}
			if got.Table != "" {
				t.Errorf("%s: a %s partition table was seen", c.format, got.Table)
			}
			notes := got.notes("/x")
			if wrong := c.class == classImage || c.class == classPacked; wrong != (len(notes) > 0 && strings.Contains(notes[0], c.format)) {
				t.Errorf("notes on %s: %q", c.format, notes)
			}
		})
	}
}

func TestProbe_UUIDIsThatOfTheFileSystem(t *testing.T) {
	const uuid = "0d7a4c6e-1b2c-4d3e-8f90-a1b2c3d4e5f6"
	ext, xfs := image(t, "e", 8<<20), image(t, "x", 320<<20)
	tool(t, "", "mkfs.ext4", "-q", "-F", "-U", uuid, ext)
	tool(t, "", "mkfs.xfs", "-q", "-m", "uuid="+uuid, xfs)
	for _, p := range []string{ext, xfs} {
		if got := probeFile(t, p).UUID; got != uuid {
			t.Errorf("uuid of %s is %q, want %q", p, got, uuid)
		}
	}
}

func TestProbe_ReadsPartitionTables(t *testing.T) {
	const m = 1 << 20
	for name, c := range map[string]struct {
		script string
		table  string
		want   []partition
	}{
		"gpt": {"label: gpt\nstart=2048,size=8192,name=boot\nstart=16384,size=20480\n", "gpt", []partition{
			{Number: 1, StartBytes: m, SizeBytes: 4 * m, Name: "boot"}, {Number: 2, StartBytes: 8 * m, SizeBytes: 10 * m}}},
		"dos": {"label: dos\nstart=2048,size=8192,type=83\nstart=10240,size=20480,type=5\nstart=12288,size=2048,type=83\nstart=16384,size=4096,type=82\n", "dos", []partition{
			{Number: 1, StartBytes: m, SizeBytes: 4 * m, Type: "0x83"}, {Number: 2, StartBytes: 5 * m, SizeBytes: 10 * m, Type: "0x05", Extended: true},
			{Number: 5, StartBytes: 6 * m, SizeBytes: m, Type: "0x83"}, {Number: 6, StartBytes: 8 * m, SizeBytes: 2 * m, Type: "0x82"}}},
	} {
		t.Run(name, func(t *testing.T) {
			path := image(t, "img", 32*m)
			tool(t, c.script, "sfdisk", "-q", path)
			got := probeFile(t, path)
			if got.Table != c.table || len(got.Partitions) != len(c.want) {
				t.Fatalf("found %q with %+v, want %d partitions", got.Table, got.Partitions, len(c.want))
			}
			for i, w := range c.want {
				g := got.Partitions[i]
				if w.Type == "" {
					w.Type = g.Type
				}
				if g != w {
					t.Errorf("partition %d: %+v, want %+v", i, g, w)
				}
			}
		})
	}
}

func TestProbe_SaysOfATail(t *testing.T) {
	for _, size := range []int64{1, 511, 513, 4097} {
		path := image(t, "img", size)
		got := probeFile(t, path)
		if got.Tail != size%512 || len(got.notes("/x")) != 1 {
			t.Errorf("%d bytes: tail %d, notes %q", size, got.Tail, got.notes("/x"))
		}
	}
	if n := probeFile(t, image(t, "img", 4096)).notes("/x"); len(n) != 0 {
		t.Errorf("zeros: notes %q", n)
	}
}

// Whatever stands on the disk, probing ends and stays within bounds.
func TestProbe_SurvivesGarbage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		b := make([]byte, 1+rnd.IntN(1<<17))
		for i := range min(len(b), 6144) {
			b[i] = byte(rnd.Uint32())
		}
		if len(b) > 1024 {
			b[510], b[511] = 0x55, 0xaa
			for i := range 4 {
				b[446+16*i] &= 0x80
				b[450+16*i] = []byte{0x83, 0x05, 0x0f, 0}[rnd.IntN(4)]
				binary.LittleEndian.PutUint32(b[454+16*i:], uint32(rnd.IntN(len(b)/512)))
				binary.LittleEndian.PutUint32(b[458+16*i:], uint32(rnd.IntN(len(b)/512)))
			}
			if rnd.IntN(2) == 0 {
				copy(b[512:], "EFI PART")
			}
		}
		c, err := probe(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatalf("%v", err)
		}
		for _, p := range c.Partitions {
			if p.StartBytes < 0 || p.SizeBytes < 0 || p.Number < 1 {
				t.Fatalf("a partition of %+v", p)
			}
		}
	}
}

// A chain of extended records that leads back to itself must end.
func TestProbe_LogicalChainEnds(t *testing.T) {
	b := make([]byte, 1<<20)
	entry := func(at int, kind byte, start, size uint32) {
		b[at+4] = kind
		binary.LittleEndian.PutUint32(b[at+8:], start)
		binary.LittleEndian.PutUint32(b[at+12:], size)
	}
	b[510], b[511] = 0x55, 0xaa
	entry(446, 5, 100, 1000)
	for _, ebr := range []int{100, 101} {
		b[ebr*512+510], b[ebr*512+511] = 0x55, 0xaa
		entry(ebr*512+446, 0x83, 1, 1)
	}
	entry(100*512+462, 5, 1, 10)
	entry(101*512+462, 5, 0, 10) // back to the first
	c, err := probe(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(c.Partitions) != 3 {
		t.Errorf("%+v, %v; want the extended one and two logical ones", c.Partitions, err)
	}
}
