package fs_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

const queue = 128

// A suspended device with 128 requests queued stalls no other device, neither
// with calls that wait in their threads nor with asynchronous ones, of which
// the kernel counts all devices of a mount together.
func TestStall_SuspendedDeviceStallsNoOther(t *testing.T) {
	for name, readers := range map[string][]string{
		"threads": {"--ioengine=psync", "--thread", "--numjobs=128"},
		"aio":     {"--ioengine=libaio", "--direct=1", "--iodepth=128"},
	} {
		t.Run(name, func(t *testing.T) {
			need(t, "fio")
			stuck, free := fstest.NewMemory(1, "stuck", 16<<20), fstest.NewMemory(2, "free", 16<<20)
			m := mount(t, stuck, free)
			stuck.Suspend()
			args := append([]string{"--name=j", "--filename=" + m.path("stuck"), "--rw=randwrite", "--bs=4k", "--size=16M",
				"--number_ios=128", "--group_reporting", "--allow_file_create=0", "--fallocate=none"}, readers...)
			fio := exec.Command("fio", args...)
			var said strings.Builder
			fio.Stdout, fio.Stderr = &said, &said
			if err := fio.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- fio.Wait() }()
			onHang(t, "fio", func() { _ = fio.Process.Kill() })
			t.Cleanup(func() { stuck.Resume() })
			awaitDevice(t, stuck, "128 requests wait", func() bool { return stuck.Waiting() >= queue })

			begin := time.Now()
			run(t, "dd", "if=/dev/zero", "of="+m.path("free"), "bs=1M", "count=16", "oflag=direct", "conv=notrunc,fsync")
			run(t, "fio", "--name=o", "--filename="+m.path("free"), "--rw=randrw", "--bs=4k", "--size=16M", "--number_ios=2000",
				"--ioengine=libaio", "--direct=1", "--iodepth=16", "--allow_file_create=0", "--fallocate=none")
			run(t, "ls", "-l", m.Dir())
			run(t, "cat", m.path(".dmfuse/stuck/status"))
			t.Logf("the other device was served in %v", time.Since(begin))
			if n := stuck.Waiting(); n < queue {
				t.Errorf("only %d requests wait still", n)
			}
			stuck.Resume()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("fio: %v\n%s", err, said.String())
				}
			case <-time.After(waitLimit):
				t.Fatal("fio does not end after resume")
			}
			awaitDevice(t, stuck, "nothing is open", func() bool { return stuck.Opens() == 0 && stuck.Waiting() == 0 })
		})
	}
}

// A client that is killed while it waits leaves nothing behind.
func TestStall_KilledClientLeavesNothing(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, dev)
	dev.Suspend()
	var wg sync.WaitGroup
	for range 8 {
		p := start(t, nil, "read", m.path("vol"))
		wg.Go(func() {
			ok := t.Context()
			if !dev.Await(ok, func() bool { return dev.Waiting() > 0 }) {
				return
			}
			_ = p.Process.Kill()
		})
	}
	wg.Wait()
	awaitDevice(t, dev, "nothing is open and nothing waits", func() bool { return dev.Opens() == 0 && dev.Waiting() == 0 })
	dev.Resume()
	run(t, "dd", "if="+m.path("vol"), "of=/dev/null", "bs=64k")
}

// The kernel lets a process with asynchronous requests under way not end before
// they are answered, killed or not; after that nothing is left behind.
func TestStall_KilledAsynchronousClient(t *testing.T) {
	need(t, "fio")
	dev := fstest.NewMemory(1, "vol", 16<<20)
	m := mount(t, dev)
	dev.Suspend()
	t.Cleanup(dev.Resume)
	fio := exec.Command("fio", "--name=j", "--filename="+m.path("vol"), "--rw=randread", "--bs=4k", "--size=16M", "--thread",
		"--ioengine=libaio", "--direct=1", "--iodepth=32", "--allow_file_create=0")
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	onHang(t, "fio", func() { _ = fio.Process.Kill() })
	ended := make(chan error, 1)
	go func() { ended <- fio.Wait() }()
	awaitDevice(t, dev, "32 requests wait", func() bool { return dev.Waiting() >= 32 })
	if err := fio.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	dev.Resume()
	select {
	case <-ended:
	case <-time.After(waitLimit):
		t.Fatal("fio does not end")
	}
	awaitDevice(t, dev, "nothing is open", func() bool { return dev.Opens() == 0 && dev.Waiting() == 0 })
}

// A signal by which a program is asked to end ends waiting, also one that it
// handles; go-fuse's own loop takes any signal for one.
func TestStall_SignalEndsWaiting(t *testing.T) {
	dev := fstest.NewMemory(1, "vol", 1<<20)
	m := mount(t, dev)
	dev.Suspend()
	p := start(t, nil, "read", m.path("vol"))
	awaitDevice(t, dev, "a read waits", func() bool { return dev.Waiting() == 1 })
	p.signal(t, unix.SIGTERM)
	if said, err := p.end(); err == nil || !strings.Contains(said, unix.EINTR.Error()) {
		t.Errorf("the client ended with %v: %s", err, said)
	}
	awaitDevice(t, dev, "nothing is open", func() bool { return dev.Opens() == 0 && dev.Waiting() == 0 })
}

// Other signals end no I/O, as on a disk; the process can be killed after them.
func TestStall_OtherSignalsEndNothing(t *testing.T) {
	if testTransport() == fs.TransportGoFuse {
		t.Skip("go-fuse ends the wait at any signal")
	}
	for what, wait := range map[string]func(p *process, dev *fstest.Memory){
		"goes on": func(p *process, dev *fstest.Memory) {
			dev.Resume()
			if said, err := p.end(); err != nil {
				t.Errorf("the client ended with %v: %s", err, said)
			}
		},
		"is killed": func(p *process, dev *fstest.Memory) {
			_ = p.Process.Kill()
			_, _ = p.end()
		},
	} {
		for _, op := range []string{"read", "punch"} {
			t.Run(op+" "+what, func(t *testing.T) {
				dev := fstest.NewMemory(1, "vol", 1<<20)
				m := mount(t, dev)
				dev.Suspend()
				p := start(t, nil, op, m.path("vol"))
				awaitDevice(t, dev, "a call waits", func() bool { return dev.Waiting() == 1 })
				for range 3 {
					p.signal(t, unix.SIGURG)   // Go programs handle it
					p.signal(t, unix.SIGWINCH) // nobody does
					p.signal(t, unix.SIGSTOP)
					p.signal(t, unix.SIGCONT)
					time.Sleep(60 * time.Millisecond) // sleep: a wrong end gets the time to happen
					if n := dev.Waiting(); n != 1 {
						t.Fatalf("%d calls wait after signals that end nothing", n)
					}
				}
				wait(p, dev)
				awaitDevice(t, dev, "nothing is open", func() bool { return dev.Opens() == 0 && dev.Waiting() == 0 })
			})
		}
	}
}

// signal sends a signal to every thread: one to the process may be taken by a
// thread that does not wait.
func (p *process) signal(t *testing.T, sig unix.Signal) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p.Process.Pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of the client: %v %v", threads, err)
	}
	for _, path := range threads {
		tid, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Tgkill(p.Process.Pid, tid, sig) // a thread may have ended
	}
}
