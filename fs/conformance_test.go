package fs_test

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs/fstest"
)

func TestConformance_DdThereAndBack(t *testing.T) {
	const size = 8 << 20
	m := mount(t, fstest.NewMemory(7, "vol", size))
	data := make([]byte, size)
	rand.Read(data)
	in, out := filepath.Join(t.TempDir(), "in"), filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(in, data, 0600); err != nil {
		t.Fatal(err)
	}
	run(t, "dd", "if="+in, "of="+m.path("vol"), "bs=1M", "conv=fsync")
	for _, how := range []string{"bs=64k iflag=direct", "bs=1000", "bs=3M"} {
		run(t, "dd", append([]string{"if=" + m.path("vol"), "of=" + out}, strings.Fields(how)...)...)
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("%s: what was read is not what was written", how)
		}
	}
}

func TestConformance_FioVerify(t *testing.T) {
	need(t, "fio")
	m := mount(t, fstest.NewMemory(1, "vol", 16<<20))
	for name, args := range map[string]string{
		"random direct depth 16":  "--ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite --bsrange=512-256k --bs_unaligned=0",
		"sequential direct 16":    "--ioengine=libaio --iodepth=16 --direct=1 --rw=write --bs=1M",
		"random unaligned":        "--ioengine=psync --rw=randwrite --bsrange=333-100001 --bs_unaligned=1",
		"four threads, own parts": "--ioengine=libaio --iodepth=8 --direct=1 --rw=randwrite --bs=4k --thread --numjobs=4 --size=4M --offset_increment=4M",
		"with trims":              "--ioengine=psync --rw=randwrite --bs=4k --fdatasync=32",
	} {
		t.Run(name, func(t *testing.T) {
			all := []string{"--name=v", "--filename=" + m.path("vol"), "--size=16M", "--io_size=16M", "--allow_file_create=0", "--fallocate=none",
				"--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1", "--do_verify=1", "--group_reporting", "--randrepeat=0"}
			run(t, "fio", append(all, strings.Fields(args)...)...)
		})
	}
}

// A file system on a loop device on the file, with direct I/O and without.
func TestConformance_LoopDevice(t *testing.T) {
	needRoot(t)
	need(t, "losetup", "mkfs.ext4", "fsck.ext4")
	for _, direct := range []string{"on", "off"} {
		t.Run("direct-io="+direct, func(t *testing.T) {
			dev := fstest.NewMemory(1, "vol", 64<<20)
			m := mount(t, dev)
			loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", "--direct-io="+direct, m.path("vol")))
			t.Cleanup(func() {
				run(t, "losetup", "-d", loop)
				awaitDevice(t, dev, "the loop device is gone", func() bool { return dev.Opens() == 0 })
			})
			if got := run(t, "losetup", "-n", "-O", "DIO", loop); strings.TrimSpace(got) != map[string]string{"on": "1", "off": "0"}[direct] {
				t.Errorf("direct I/O of the loop device: %q", got)
			}
			run(t, "mkfs.ext4", "-q", "-F", "-E", "discard", loop)
			run(t, "fsck.ext4", "-f", "-n", loop)
			dir := filepath.Join(t.TempDir(), "mnt")
			if err := os.Mkdir(dir, 0700); err != nil {
				t.Fatal(err)
			}
			onHang(t, dir, func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			tree := tree(t)
			run(t, "mount", "-t", "ext4", loop, dir)
			run(t, "cp", "-a", tree, dir)
			run(t, "diff", "-r", tree, filepath.Join(dir, filepath.Base(tree)))
			run(t, "sync", "-f", dir)
			run(t, "umount", dir)
			run(t, "fsck.ext4", "-f", "-n", loop)
			run(t, "mount", "-t", "ext4", "-o", "discard", loop, dir)
			run(t, "diff", "-r", tree, filepath.Join(dir, filepath.Base(tree)))
			run(t, "rm", "-r", filepath.Join(dir, filepath.Base(tree)))
			rec := record(dev)
			run(t, "fstrim", dir)
			run(t, "umount", dir)
			zeroed := false
			for _, op := range rec.take() {
				zeroed = zeroed || op.Kind == "zero" && op.Unmap
			}
			if !zeroed {
				t.Error("fstrim did not reach the device")
			}
			run(t, "fsck.ext4", "-f", "-n", loop)
		})
	}
}

// tree makes a directory with files of all sizes.
func tree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	for i, size := range []int{0, 1, 100, 4095, 4096, 4097, 65_536, 1_000_000, 3 << 20} {
		sub := filepath.Join(dir, strings.Repeat("d/", i%4))
		if err := os.MkdirAll(sub, 0700); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, size)
		rand.Read(data)
		if err := os.WriteFile(filepath.Join(sub, string(rune('a'+i))), data, 0600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
