package devtest_test

import (
	"errors"
	"os"
	"path/filepath"
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
