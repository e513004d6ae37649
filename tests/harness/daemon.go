package harness

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// StartLimit is how long a daemon may take to be ready.
const StartLimit = 30 * time.Second

// Daemon is a run directory and the daemon that serves it, which may be killed
// and started again.
type Daemon struct {
	t    testing.TB
	bin  string
	Dir  string // of the test: run directory, images, mount points
	Run  string // run directory R
	args []string

	// ServeEnv is added to the environment of the daemon.
	ServeEnv []string

	log        *os.File
	workersDie bool // the test kills workers, or has them die

	mu    sync.Mutex
	cmd   *exec.Cmd     // nil: none is running
	ended chan struct{} // closed when cmd has ended
	state *os.ProcessState
}

// New makes a run directory without a daemon. What is still mounted, attached
// or running when the test ends is cleared away.
func New(t testing.TB, args ...string) *Daemon {
	t.Helper()
	RequireRoot(t)
	RequireFUSE(t)
	dir := TempDir(t)
	d := &Daemon{t: t, bin: Binary(t), Dir: dir, Run: filepath.Join(dir, "run"), args: args}
	log, err := os.Create(filepath.Join(dir, "daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	d.log = log
	t.Cleanup(d.cleanup)
	d.watchDeadline()
	return d
}

// watchDeadline ends the daemon shortly before "go test" gives up on the test:
// a panic of the time limit runs no cleanup, so its mount and loop devices would
// stay. What it was doing is printed, and requests that hang come to an end.
func (d *Daemon) watchDeadline() {
	const before = 20 * time.Second
	t, ok := d.t.(interface{ Deadline() (time.Time, bool) })
	if !ok {
		return
	}
	deadline, ok := t.Deadline()
	if !ok || time.Until(deadline) < 2*before {
		return
	}
	late := time.AfterFunc(time.Until(deadline)-before, func() {
		d.dump()
		fmt.Fprintf(os.Stderr, "%s: the time limit is near, the daemon is killed; its log:\n%s\n", d.t.Name(), d.Log())
		worker := d.watchWorker()
		d.signal(syscall.SIGKILL)
		d.gone(5 * time.Second)
		worker.ended(5 * time.Second)
		for _, m := range mountsBelow(d.Dir) {
			_ = syscall.Unmount(m.dir, syscall.MNT_DETACH)
		}
		detachBelow(d.Dir)
	})
	d.t.Cleanup(func() { late.Stop() })
}

// SetArgs has the next daemon started with other flags of serve.
func (d *Daemon) SetArgs(args ...string) { d.args = args }

// UseBinary has the daemon, and the commands that talk to it, run another program.
func (d *Daemon) UseBinary(path string) { d.bin = path }

// Binary is the program of the daemon.
func (d *Daemon) Binary() string { return d.bin }

// Start is New with a daemon running.
func Start(t testing.TB, args ...string) *Daemon {
	t.Helper()
	d := New(t, args...)
	d.Start()
	return d
}

// Start starts the daemon and waits until it is ready.
func (d *Daemon) Start() {
	d.t.Helper()
	if err := d.TryStart(); err != nil {
		d.t.Fatalf("%v\nlog of the daemon:\n%s", err, d.Log())
	}
}

// TryStart is Start where a daemon may refuse to run.
func (d *Daemon) TryStart() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil {
		return errors.New("a daemon is running already")
	}
	ready, readyEnd, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(d.bin, append([]string{"serve", "--run-dir", d.Run, "--ready-fd", "3"}, d.args...)...)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	cmd.ExtraFiles = []*os.File{readyEnd}
	cmd.Env = slices.Concat(os.Environ(), []string{"GORACE=halt_on_error=1 exitcode=66"}, d.ServeEnv)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	_ = readyEnd.Close()
	if err != nil {
		return err
	}
	d.cmd, d.ended, d.state = cmd, make(chan struct{}), nil
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait()
		d.mu.Lock()
		if d.cmd == cmd {
			d.cmd, d.state = nil, cmd.ProcessState
		}
		d.mu.Unlock()
		close(ended)
	}(cmd, d.ended)
	if err := ready.SetReadDeadline(time.Now().Add(StartLimit)); err != nil {
		return err
	}
	word, err := io.ReadAll(ready)
	if len(word) > 0 {
		return nil
	}
	if err == nil {
		return errors.New("the daemon ended before it was ready")
	}
	_ = cmd.Process.Signal(syscall.SIGQUIT)
	return fmt.Errorf("the daemon was not ready after %v: %w", StartLimit, err)
}

// PID is the process that was started, the keeper where there is one; 0 when
// none runs.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// Kill ends the daemon as kill -9 does, a keeper and its worker, and waits until
// both are gone.
func (d *Daemon) Kill() {
	d.t.Helper()
	worker := d.watchWorker()
	d.signal(syscall.SIGKILL)
	if !d.gone(10*time.Second) || !worker.ended(10*time.Second) {
		d.t.Fatal("the daemon is there 10 s after kill -9")
	}
}

// Stop shuts the daemon down in order, and fails when it does not end well.
func (d *Daemon) Stop() {
	d.t.Helper()
	d.Must("shutdown")
	if !d.gone(30 * time.Second) {
		d.dump()
		d.t.Fatalf("the daemon is there 30 s after shutdown\nlog:\n%s", d.Log())
	}
	if s := d.exitState(); s != nil && s.ExitCode() != 0 {
		d.t.Fatalf("the daemon ended with %v\nlog:\n%s", s, d.Log())
	}
}

func (d *Daemon) exitState() *os.ProcessState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

func (d *Daemon) signal(s syscall.Signal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil {
		_ = d.cmd.Process.Signal(s)
	}
}

// gone waits for the end of the daemon, and tells whether it came in time.
func (d *Daemon) gone(limit time.Duration) bool {
	d.mu.Lock()
	running, ended := d.cmd != nil, d.ended
	d.mu.Unlock()
	if !running {
		return true
	}
	select {
	case <-ended:
		return true
	case <-time.After(limit):
		return false
	}
}

// dump has the daemon write its goroutines to the log.
func (d *Daemon) dump() {
	before := strings.Count(d.Log(), "\ngoroutine ")
	d.signal(syscall.SIGQUIT)
	Poll(3*time.Second, func() bool { return d.PID() == 0 || strings.Count(d.Log(), "\ngoroutine ") > before })
}

// Log is the log so far.
func (d *Daemon) Log() string {
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	const tail = 200 << 10
	return string(b[max(0, len(b)-tail):])
}

// T is the test that the daemon belongs to.
func (d *Daemon) T() testing.TB { return d.t }

// Env names the run directory to a client.
func (d *Daemon) Env() []string { return []string{"DMFUSE_RUN_DIR=" + d.Run} }

// CLI runs a verb of dmfuse. A verb that takes too long has the daemon print
// its goroutines.
func (d *Daemon) CLI(args ...string) Result {
	d.t.Helper()
	return d.command("dmfuse", "", args).Run(d.t)
}

// Input is CLI with text on standard input.
func (d *Daemon) Input(stdin string, args ...string) Result {
	d.t.Helper()
	return d.command("dmfuse", stdin, args).Run(d.t)
}

// Must runs a verb that has to succeed.
func (d *Daemon) Must(args ...string) string {
	d.t.Helper()
	return d.command("dmfuse", "", args).Must(d.t)
}

// Dmsetup runs the program under the name dmsetup.
func (d *Daemon) Dmsetup(args ...string) Result {
	d.t.Helper()
	return d.command("dmsetup", "", args).Run(d.t)
}

func (d *Daemon) command(name, stdin string, args []string) Command {
	return Command{
		Args:      slices.Concat([]string{filepath.Join(filepath.Dir(d.bin), name)}, args),
		Env:       d.Env(),
		Stdin:     stdin,
		OnTimeout: d.dump,
	}
}

// Dev is the file of a device.
func (d *Daemon) Dev(name string) string { return filepath.Join(d.Run, "dev", name) }

// Path is a path in the directory of the test.
func (d *Daemon) Path(elem ...string) string {
	return filepath.Join(append([]string{d.Dir}, elem...)...)
}

// Image makes a sparse file of so many bytes in the directory of the test.
func (d *Daemon) Image(name string, size int64) string {
	d.t.Helper()
	path := d.Path(name)
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return path
}

// Unmount takes away the mount of a daemon that was killed.
func (d *Daemon) Unmount() {
	_ = syscall.Unmount(filepath.Join(d.Run, "dev"), syscall.MNT_DETACH)
}

// cleanup runs after the cleanups of everything that used the daemon.
func (d *Daemon) cleanup() {
	if d.t.Failed() {
		// What it was doing, then why.
		if d.PID() != 0 {
			d.dump()
		}
		d.t.Logf("log of the daemon:\n%s", d.Log())
	}
	for _, m := range mountsBelow(d.Dir) {
		if m.kind != "fuse.dmfuse" {
			_ = syscall.Unmount(m.dir, syscall.MNT_DETACH)
		}
	}
	detachBelow(d.Dir)
	if d.PID() != 0 {
		d.signal(syscall.SIGTERM)
		if !d.gone(20 * time.Second) {
			d.dump()
			d.t.Errorf("the daemon did not end on SIGTERM\nlog:\n%s", d.Log())
			d.signal(syscall.SIGKILL)
			d.gone(10 * time.Second)
		}
	}
	for _, m := range mountsBelow(d.Dir) {
		_ = syscall.Unmount(m.dir, syscall.MNT_DETACH)
	}
	d.checkLog()
	_ = d.log.Close()
}

// checkLog fails the test when a daemon had a data race, or a worker died that the
// test did not kill: its clients need not have noticed.
func (d *Daemon) checkLog() {
	text, err := os.ReadFile(d.log.Name())
	if err != nil {
		d.t.Error(err)
	}
	started, _ := os.ReadFile(filepath.Join(d.Run, "dmfuse.log")) // by a verb, if it was
	text = append(text, started...)
	switch died := workerDied.FindString(string(text)); {
	case strings.Contains(string(text), "DATA RACE"):
		d.t.Errorf("data race in the daemon:\n%s", d.Log())
	case died != "" && !d.workersDie:
		d.t.Errorf("%s\nlog of the daemon:\n%s", died, d.Log())
	}
}
