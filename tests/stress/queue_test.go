package stress

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// queued is how many requests wait on the suspended device.
const queued = 128

// TestSuspendedDeviceStallsNoOther: with 128 requests waiting on a suspended
// device another device answers as always, commands answer, and after the
// resume all requests come to their end, none lost.
func TestSuspendedDeviceStallsNoOther(t *testing.T) {
	d := harness.Start(t)
	sectors := sectorsOf(4)
	makeShape(t, d, "linear", sectors)
	makeShape(t, d, "origin-1", sectors)
	for _, victim := range []struct{ held, free string }{{"linear", "origin-1"}, {"origin-1", "linear"}} {
		m := model.New(sectors, 1)
		held, err := os.OpenFile(d.Dev(victim.held), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		free, err := os.OpenFile(d.Dev(victim.free), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		d.Must("suspend", victim.held)
		var waiting sync.WaitGroup
		errs := make(chan error, queued)
		for i := range int64(queued) {
			waiting.Go(func() {
				if i%4 == 3 {
					_, err := held.ReadAt(make([]byte, sector), (sectors-1-i)*sector)
					errs <- err
					return
				}
				_, err := held.WriteAt(model.Pattern(uint64(100+i), 8*i, 8), 8*i*sector)
				errs <- err
			})
		}
		inFlight(t, d, queued)
		// The other device: reads, first writes with copies, fsync.
		within(t, 10*time.Second, victim.free+" beside a suspended device", func() error {
			for i := range int64(50) {
				if _, err := free.WriteAt(model.Pattern(50, 16*i, 3), 16*i*sector); err != nil {
					return err
				}
				if _, err := free.ReadAt(make([]byte, 4096), 4096*i); err != nil {
					return err
				}
			}
			return free.Sync()
		})
		within(t, 10*time.Second, "commands beside a suspended device", func() error {
			d.Must("status")
			d.Must("info", victim.held)
			d.Must("ls")
			return nil
		})
		select {
		case err := <-errs:
			t.Fatalf("a request on the suspended device was answered: %v", err)
		default:
		}
		d.Must("resume", victim.held)
		within(t, 20*time.Second, "the requests that waited", func() error { waiting.Wait(); return nil })
		for range queued {
			if err := <-errs; err != nil {
				t.Errorf("%s: %v", victim.held, err)
			}
		}
		for i := range int64(queued) {
			if i%4 != 3 {
				m.Write(uint64(100+i), 8*i, 8)
			}
		}
		checkFile(t, d.Dev(victim.held), m)
		for _, f := range []*os.File{held, free} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
		// As it was, for the other way round.
		d.Must("remove", "origin-1")
		d.Must("remove", "origin-1-view0")
		d.Must("remove", "linear")
		makeShape(t, d, "linear", sectors)
		makeShape(t, d, "origin-1", sectors)
	}
	d.Stop()
}

// inFlight waits until the kernel counts so many requests of the mount as
// waiting for an answer.
func inFlight(t *testing.T, d *harness.Daemon, n int) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, fmt.Sprintf("%d requests wait", n), func() bool {
		return waitingRequests(t, d) >= n
	})
}

// within runs fn and fails when it takes too long.
func within(t *testing.T, limit time.Duration, what string, fn func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	case <-time.After(limit):
		t.Fatalf("%s: nothing within %v", what, limit)
	}
}

// TestKilledClientLeavesNothing: a program that is killed while its requests
// wait on a suspended device is gone at once, its opens are given back, the
// requests that waited do nothing later, and the device can be removed.
func TestKilledClientLeavesNothing(t *testing.T) {
	harness.RequireTool(t, "dd")
	d := harness.Start(t)
	sectors := sectorsOf(2)
	s := makeShape(t, d, "origin-1", sectors)
	const clients = 8
	for round := range harness.Pick(3, 20) {
		d.Must("suspend", s.device)
		var procs []*exec.Cmd
		for i := range clients {
			args := []string{"if=/dev/zero", "of=" + d.Dev(s.device), "bs=64k", "count=4", "conv=notrunc", "oflag=direct"}
			if i%2 == 1 {
				args = []string{"if=" + d.Dev(s.device), "of=/dev/null", "bs=64k", "iflag=direct"}
			}
			cmd := exec.Command("dd", args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			procs = append(procs, cmd)
		}
		harness.Eventually(t, 10*time.Second, "the clients wait", func() bool { return waitingRequests(t, d) >= clients })
		for _, cmd := range procs {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		within(t, 10*time.Second, "the end of killed clients", func() error {
			for _, cmd := range procs {
				_ = cmd.Wait()
			}
			return nil
		})
		harness.Eventually(t, 10*time.Second, "their opens are given back", func() bool {
			return strings.Contains(d.Must("info", s.device), "Open count:        0")
		})
		d.Must("resume", s.device)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	checkFile(t, d.Dev(s.device), model.New(sectors, 1))
	s.checkViews(t, d, sectors)
	d.Must("remove", s.device)
	for _, v := range s.views {
		d.Must("remove", v)
	}
	d.Stop()
}

// waitingRequests asks the kernel: /sys/fs/fuse/connections/N/waiting, where N
// is the device number of the mount.
func waitingRequests(t *testing.T, d *harness.Daemon) int {
	t.Helper()
	body, err := os.ReadFile(fuseConnection(t, d) + "/waiting")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(bytes.TrimSpace(body)), &n); err != nil {
		t.Fatal(err)
	}
	return n
}
