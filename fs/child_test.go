package fs_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// child is what the test binary does as another process: what a client does
// that would hang with the server (page faults), or that is killed.
func child(what string, args []string) error {
	switch what {
	case "serve":
		return childServe(args[0])
	case "serve-rings":
		return childServeRings(args[0], args[1])
	case "serve-load":
		return childServeLoad(args[0])
	case "read-many":
		return childReadMany(args[0])
	case "read":
		return childRead(args[0])
	case "punch":
		return childPunch(args[0])
	case "mmap-read":
		return childMmapRead(args[0], args[1])
	case "mmap-write":
		return childMmapWrite(args[0])
	}
	return fmt.Errorf("unknown")
}

// childPunch punches a hole.
func childPunch(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
}

// childServe serves a device "vol" until its stdin ends.
func childServe(dir string) error {
	s, err := fs.Mount(fstest.NewList(fstest.NewMemory(1, "vol", 1<<20)), fs.Options{Dir: dir, Transport: testTransport()})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	return s.Unmount(ctx)
}

// childRead opens a file for reading and writing and reads from it. SIGTERM does
// not end it.
func childRead(path string) error {
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM)
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = unix.Pread(fd, make([]byte, 4096), 0)
	return err
}

// childMmapRead compares a mapped file, shared and private, with another file.
func childMmapRead(path, like string) error {
	want, err := os.ReadFile(like)
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	for _, flag := range []int{unix.MAP_PRIVATE, unix.MAP_SHARED} {
		b, err := unix.Mmap(fd, 0, len(want), unix.PROT_READ, flag)
		if err != nil {
			return fmt.Errorf("mmap with flag %d: %w", flag, err)
		}
		if !bytes.Equal(b, want) {
			return fmt.Errorf("mmap with flag %d: other content", flag)
		}
		if err := unix.Munmap(b); err != nil {
			return err
		}
	}
	return nil
}

// childMmapWrite writes "mapped" at byte 5000 through a shared mapping.
func childMmapWrite(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	b, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(b[5000:], "mapped")
	if err := unix.Msync(b, unix.MS_SYNC); err != nil {
		return err
	}
	return unix.Munmap(b)
}

// process is a running child.
type process struct {
	*exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs bytes.Buffer
	wait chan error
}

// start starts the test binary as a child and waits for its "ready".
func start(t testing.TB, as *syscall.Credential, what string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return startBinary(t, as, self, what, args...)
}

func startBinary(t testing.TB, as *syscall.Credential, binary, what string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(binary, args...), wait: make(chan error, 1)}
	p.Env = append(os.Environ(), childEnv+"="+what)
	p.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	p.Stderr = &p.errs
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.in, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	onHang(t, "process "+strconv.Itoa(p.Process.Pid), func() { _ = p.Process.Kill() })
	t.Cleanup(func() { _ = p.Process.Kill(); _, _ = p.end() })
	p.out = bufio.NewReader(out)
	line, err := p.out.ReadString('\n')
	if line != "ready\n" {
		_, _ = p.end()
		t.Fatalf("%s: said %q, %v; %s", what, line, err, p.errs.String())
	}
	return p
}

// end waits for the end of the child. It may be called again.
func (p *process) end() (string, error) {
	if p.ProcessState == nil {
		timer := time.AfterFunc(waitLimit, func() { _ = p.Process.Kill() })
		defer timer.Stop()
		_, _ = io.Copy(io.Discard, p.out)
		p.wait <- p.Wait()
	}
	err := <-p.wait
	p.wait <- err
	return p.errs.String(), err
}

// runChild runs a child to its end.
func runChild(t *testing.T, what string, args ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", what, errors.Join(err, ctx.Err()), out)
	}
}
