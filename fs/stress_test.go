package fs_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// stderrLog is a log that a child's parent can read.
func stderrLog() *logrus.Logger {
	l := logrus.New()
	l.SetLevel(logrus.WarnLevel)
	return l
}

// slow is a device that sometimes waits, so that no transport may answer it where
// all requests pass.
type slow struct {
	fs.Device
	waits time.Duration
}

func (s slow) pause(ctx context.Context) error {
	if rand.IntN(4) > 0 {
		return nil
	}
	wait := time.NewTimer(time.Duration(rand.Int64N(int64(s.waits))))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return nil // a wait that is given up, of a request that goes on
	}
}

func (s slow) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	_ = s.pause(ctx)
	return s.Device.ReadAt(ctx, p, off)
}

func (s slow) WriteAt(ctx context.Context, p []byte, off int64, fua bool) (int, error) {
	_ = s.pause(ctx)
	return s.Device.WriteAt(ctx, p, off, fua)
}

func (s slow) Flush(ctx context.Context) error {
	_ = s.pause(ctx)
	return s.Device.Flush(ctx)
}

// childServeLoad serves three devices, with the garbage collector forced every 50
// ms and the third suspended now and then, until its stdin ends.
func childServeLoad(dir string) error {
	halting := fstest.NewMemory(3, "halting", 16<<20)
	list := fstest.NewList(fstest.NewMemory(1, "prompt", 32<<20), slow{fstest.NewMemory(2, "slow", 32<<20), 2 * time.Millisecond}, halting)
	s, err := fs.Mount(list, fs.Options{Dir: dir, Transport: testTransport(), Log: stderrLog()})
	if err != nil {
		return err
	}
	if want := testTransport(); want != "" && s.Transport() != want {
		return fmt.Errorf("transport %s: expected %s", s.Transport(), want)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-stop:
				halting.Resume()
				return
			case <-tick.C:
			}
			runtime.GC()
			if n%4 == 0 {
				halting.Suspend()
			} else {
				halting.Resume()
			}
		}
	})
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	close(stop)
	wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	return s.Unmount(ctx)
}

// loadTime is how long a mixed load runs with each number of processors.
// DMFUSE_LOAD_TIME says otherwise.
func loadTime() time.Duration {
	d, err := time.ParseDuration(os.Getenv("DMFUSE_LOAD_TIME"))
	switch {
	case err == nil:
		return d
	case os.Getenv("DMFUSE_LONG") != "":
		return 20 * time.Minute
	case testing.Short():
		return time.Second
	}
	return 2 * time.Second
}

// A mixed load goes on without a hang and without a wrong byte, whatever the
// number of processors, while the garbage collector stops the world and a device
// is suspended again and again.
func TestStress_MixedLoad(t *testing.T) {
	needFuse(t)
	need(t, "fio")
	for _, procs := range []int{1, 2, 8} {
		t.Run(fmt.Sprintf("GOMAXPROCS=%d", procs), func(t *testing.T) {
			each := loadTime()
			bounded(t, each+testLimit)
			dir := t.TempDir() + "/dev"
			t.Setenv("GOMAXPROCS", strconv.Itoa(procs))
			p := start(t, nil, "serve-load", dir)
			onHang(t, dir, func() { _ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) })
			ctx, cancel := context.WithTimeout(context.Background(), each+waitLimit)
			defer cancel()
			fio := exec.CommandContext(ctx, "fio", "--time_based", fmt.Sprintf("--runtime=%dms", each.Milliseconds()),
				"--allow_file_create=0", "--fallocate=none", "--direct=1", "--verify_fatal=1", "--size=16M",
				"--name=prompt", "--filename="+dir+"/prompt", "--rw=randrw", "--bsrange=512-64k", "--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--verify_backlog=64",
				"--name=large", "--filename="+dir+"/prompt", "--offset=16M", "--rw=rw", "--bs=1M", "--ioengine=libaio", "--iodepth=8",
				"--name=slow", "--filename="+dir+"/slow", "--rw=randrw", "--bs=4k", "--ioengine=libaio", "--iodepth=32", "--verify=crc32c", "--verify_backlog=64", "--fsync=32",
				"--name=one", "--filename="+dir+"/slow", "--offset=16M", "--rw=randrw", "--bs=4k", "--ioengine=psync", "--numjobs=4",
				"--name=halting", "--filename="+dir+"/halting", "--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--iodepth=64")
			ended := make(chan error, 1)
			var said strings.Builder
			fio.Stdout, fio.Stderr = &said, &said
			fio.Dir = t.TempDir() // it leaves the state of its verification where it runs
			begin := time.Now()
			go func() { ended <- fio.Run() }()
			// Clients that are killed while they wait, and names.
			for time.Since(begin) < each {
				k := exec.Command("dd", "if="+dir+"/halting", "of=/dev/null", "bs=4k", "iflag=direct")
				if err := k.Start(); err != nil {
					t.Fatal(err)
				}
				run(t, "ls", "-l", dir)
				_ = k.Process.Kill()
				_ = k.Wait()
			}
			if err := <-ended; err != nil {
				t.Errorf("fio: %v\n%s", err, said.String())
			}
			if err := p.in.Close(); err != nil {
				t.Error(err)
			}
			if said, err := p.end(); err != nil || said != "" {
				t.Errorf("server: %v\n%s", err, said)
			}
		})
	}
}
