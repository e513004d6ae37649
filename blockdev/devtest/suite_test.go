package devtest_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// closing closes dev at the end of the test, unless that was done.
func closing(t *testing.T, dev blockdev.Device) blockdev.Device {
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

// image makes an empty file in the test's directory.
func image(t *testing.T, size int64) string {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// block makes a loop device with blocks of 4096 bytes and opens it.
func block(t *testing.T, size int64, direct bool) blockdev.Device {
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	if size%4096 != 0 {
		t.Skip("a block device has whole blocks")
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", "-b", "4096", image(t, size)).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device here: %v %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() })
	h, err := blockdev.NewPool(blockdev.PoolOptions{Direct: direct}).Open(device, true)
	if err != nil {
		t.Fatal(err)
	}
	if h.BlockSize() != 4096 {
		t.Errorf("block size %d", h.BlockSize())
	}
	return closing(t, h)
}

// plain hides the abilities of a device.
type plain struct{ blockdev.Device }

func TestSuite(t *testing.T) {
	kinds := map[string]func(t *testing.T, size int64) blockdev.Device{
		"Mem": func(t *testing.T, size int64) blockdev.Device { return closing(t, blockdev.NewMem(size)) },
		"Plain": func(t *testing.T, size int64) blockdev.Device {
			return closing(t, plain{blockdev.NewMem(size)})
		},
		"Image": func(t *testing.T, size int64) blockdev.Device { return closing(t, devtest.NewImage("image", size)) },
		"Slice": func(t *testing.T, size int64) blockdev.Device {
			s, err := blockdev.NewSlice(blockdev.NewMem(size+10000), 3333, size)
			if err != nil {
				t.Fatal(err)
			}
			return closing(t, s)
		},
		"SliceOfPlain": func(t *testing.T, size int64) blockdev.Device {
			s, err := blockdev.NewSlice(plain{blockdev.NewMem(size + 10000)}, 3333, size)
			if err != nil {
				t.Fatal(err)
			}
			return closing(t, s)
		},
		"File": func(t *testing.T, size int64) blockdev.Device {
			f, err := blockdev.OpenFile(image(t, size), blockdev.FileOptions{Write: true})
			if err != nil {
				t.Fatal(err)
			}
			return closing(t, f)
		},
		"FileDirect": func(t *testing.T, size int64) blockdev.Device {
			f, err := blockdev.OpenFile(image(t, size), blockdev.FileOptions{Write: true, Direct: true})
			if errors.Is(err, blockdev.ErrUnsupported) {
				t.Skipf("no direct I/O here: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			return closing(t, f)
		},
		"Block":       func(t *testing.T, size int64) blockdev.Device { return block(t, size, false) },
		"BlockDirect": func(t *testing.T, size int64) blockdev.Device { return block(t, size, true) },
		"Handle": func(t *testing.T, size int64) blockdev.Device {
			h, err := blockdev.NewPool(blockdev.PoolOptions{}).Open(image(t, size), true)
			if err != nil {
				t.Fatal(err)
			}
			return closing(t, h)
		},
		"Fault": func(t *testing.T, size int64) blockdev.Device {
			return closing(t, devtest.NewFault(blockdev.NewMem(size)))
		},
		"Recorded": func(t *testing.T, size int64) blockdev.Device {
			return closing(t, devtest.NewLog().Wrap("disk", blockdev.NewMem(size)))
		},
		"Crash": func(t *testing.T, size int64) blockdev.Device { return closing(t, devtest.NewCrash(size)) },
	}
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) { devtest.Suite(t, kind) })
	}
}
