package fs_test

import (
	"os/exec"
	"sync/atomic"
	"testing"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// TestRings_HelpersComeBack: after many requests at a time, which leave the helpers
// waiting with entries that the kernel does not come to, those that come one at a time
// find a helper again, not a goroutine each.
func TestRings_HelpersComeBack(t *testing.T) {
	needRings(t)
	const writes = 2000
	var asides atomic.Int64
	dev := fstest.NewMemory(1, "vol", 8<<20)
	dev.Watch(func(fstest.Op) {}) // so that nothing is answered at once
	m := mountWith(t, fs.Options{Transport: fs.TransportURing}.With(fs.NewRingWatch(func() { asides.Add(1) })), dev)
	if m.Transport() != fs.TransportURing {
		t.Fatalf("transport %s", m.Transport())
	}
	for range 10 {
		var many []*exec.Cmd
		for range 8 {
			c := exec.Command("dd", "if="+m.path("vol"), "of=/dev/null", "bs=1M", "iflag=direct", "status=none")
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			many = append(many, c)
		}
		for _, c := range many {
			if err := c.Wait(); err != nil {
				t.Fatal(err)
			}
		}
		asides.Store(0)
		run(t, "dd", "if=/dev/zero", "of="+m.path("vol"), "bs=4k", "count=2000", "oflag=direct", "conv=notrunc")
		if n := asides.Load(); n > writes/4 {
			t.Errorf("%d goroutines for %d writes that came one at a time", n, writes)
		}
	}
}
