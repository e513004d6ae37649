// Command guest is the first and only process inside the user-mode Linux that
// the kernel tests boot: it loads the device-mapper modules, runs the steps of a
// plan, writes down what happened and halts. The root file system is that of the
// host, so the plan and its report are files both sides see.
//
// It is built by the tests as a static binary and takes the plan from the kernel
// command line, which hands unknown NAME=VALUE words to init as environment:
//
//	dmfuse_plan=/tmp/.../plan.json
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/dmfuse/dmfuse/tests/kernel/plan"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Getenv("dmfuse_plan")); err != nil {
		fmt.Fprintf(os.Stderr, "guest: %v\n", err)
	}
	unix.Sync()
	// Halting ends the process on the host; a first process must not return.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
}

// run does the whole plan and writes the report beside it.
func run(path string) error {
	if os.Getpid() != 1 {
		return errors.New("to be run as the first process of a user-mode Linux")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := json.Unmarshal(text, &p); err != nil {
		return err
	}
	var report plan.Report
	if err := prepare(p); err != nil {
		report.Error = err.Error()
	}
	for i := 0; report.Error == "" && i < len(p.Steps); i++ {
		report.Results = append(report.Results, do(p.Steps[i]))
	}
	out, err := json.Marshal(report)
	if err != nil {
		return err
	}
	return os.WriteFile(p.Report, out, 0o644)
}

// prepare mounts what dmsetup needs and loads the modules.
func prepare(p plan.Plan) error {
	for _, m := range []struct{ dir, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for _, name := range p.Modules {
		if err := loadModule(filepath.Join(p.ModuleDir, name+".ko")); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	// A first process begins without a PATH. Device nodes are dmsetup's business:
	// there is no udev here.
	return errors.Join(os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), os.Setenv("DM_DISABLE_UDEV", "1"))
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// do runs one step. A step that fails is an answer, not the end of the plan.
func do(s plan.Step) plan.Result {
	var r plan.Result
	var err error
	switch s.Op {
	case "run":
		r, err = command(s.Args)
	case "write":
		err = write(s)
	case "begin":
		go func() { _ = write(s) }()
	case "until":
		r, err = until(s)
	case "sha":
		r.Stdout, err = sum(s)
	case "discard":
		err = discard(s)
	default:
		err = fmt.Errorf("unknown step %q", s.Op)
	}
	if err != nil {
		r.Error = err.Error()
		var errno syscall.Errno
		if errors.As(err, &errno) {
			r.Error = unix.ErrnoName(errno)
		}
	}
	return r
}

func command(args []string) (plan.Result, error) {
	if len(args) == 0 {
		return plan.Result{}, errors.New("no command")
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := plan.Result{Stdout: stdout.String(), Stderr: stderr.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.Code, err = exit.ExitCode(), nil
	}
	return r, err
}

func write(s plan.Step) error {
	return eachPiece(s, os.O_RDWR, func(f *os.File, buf []byte, off int64) error {
		plan.Fill(buf, s.Seed, uint64(off)/plan.SectorSize)
		_, err := f.WriteAt(buf, off)
		return err
	})
}

func sum(s plan.Step) (string, error) {
	sum := plan.NewSum()
	err := eachPiece(s, os.O_RDONLY, func(f *os.File, buf []byte, off int64) error {
		if _, err := f.ReadAt(buf, off); err != nil {
			return err
		}
		sum.Write(buf)
		return nil
	})
	return sum.Text(), err
}

// until does the step again and again; it returns what came out last.
func until(s plan.Step) (r plan.Result, err error) {
	const limit, pause = time.Minute, 5 * time.Millisecond
	want, err := regexp.Compile(s.Want)
	if err != nil {
		return r, err
	}
	for end := time.Now().Add(limit); ; time.Sleep(pause) { // sleep: the kernel tells of nothing that a recovery does
		if len(s.Args) > 0 {
			r, err = command(s.Args)
		} else {
			r.Stdout, err = sum(s)
		}
		switch {
		case err != nil || want.MatchString(r.Stdout):
			return r, err
		case time.Now().After(end):
			return r, fmt.Errorf("not %s within %v: %q", s.Want, limit, r.Stdout)
		}
	}
}

// eachPiece opens the device of s for direct I/O and calls fn for the range of
// s, a piece at a time, in aligned memory.
func eachPiece(s plan.Step, flags int, fn func(f *os.File, buf []byte, off int64) error) error {
	f, err := os.OpenFile(s.Dev, flags|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	count := s.Count
	if count == 0 { // to the end
		size, err := f.Seek(0, 2)
		if err != nil {
			return err
		}
		count = size/plan.SectorSize - s.Start
	}
	const piece = 2048
	mem, err := unix.Mmap(-1, 0, piece*plan.SectorSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(mem) }()
	for at := s.Start; at < s.Start+count; {
		n := min(piece, s.Start+count-at)
		if err := fn(f, mem[:n*plan.SectorSize], at*plan.SectorSize); err != nil {
			return err
		}
		at += n
	}
	return nil
}

func discard(s plan.Step) error {
	f, err := os.OpenFile(s.Dev, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	span := [2]uint64{uint64(s.Start) * plan.SectorSize, uint64(s.Count) * plan.SectorSize}
	return plan.Discard(f.Fd(), span)
}
