package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"golang.org/x/sys/unix"
)

// Suspend and resume freeze the file system on a device as the kernel's do
// (kernel: lock_fs). On top of the rules of freeze.go:
//
//  1. suspend freezes before the device is suspended. The holder stays behind
//     when the command ends and thaws when the device runs again, whoever resumed
//     it, when the device or the daemon is gone, or when the limit passes.
//  2. Until it thaws, R/frozen/MINOR says what is frozen, locked by the holder.
//     resume returns when the holder has thawed and has nothing of it open; a record without a lock is that
//     of a holder that was killed, and the next resume or suspend thaws.
//  3. A resume that brings in a table while the device runs suspends it for a
//     moment, with the file system frozen around that.

// suspendLimit is how long a file system stays frozen at most, unless the
// environment says otherwise.
const (
	suspendLimit    = time.Hour
	suspendLimitEnv = "DMFUSE_FREEZE_LIMIT"
)

// sayStay is what the command tells the holder before it leaves.
const sayStay = "stay\n"

// resumption is the moment until which a freeze is held that outlives its
// command: the device with that minor number runs again.
type resumption struct {
	socket string
	minor  int
	path   string // of the record

	record *os.File // locked; in the command only
}

const resumptionArgs = 3

func (r *resumption) args() []string {
	if r == nil {
		return nil
	}
	return []string{r.socket, strconv.Itoa(r.minor), r.path}
}

func readResumption(args []string) (r resumption, err error) {
	r.socket, r.path = args[0], args[2]
	r.minor, err = strconv.Atoi(args[1])
	return r, err
}

// forget takes the record away, in the holder that has thawed.
func (r resumption) forget() {
	if r.path != "" {
		_ = os.Remove(r.path)
	}
}

// await returns when the device runs, or nobody knows of it any more.
func (r resumption) await() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := control.NewClient(r.socket)
	look := func() {
		if i, err := c.Info(ctx, control.ByMinor(r.minor), false); err != nil || !i.Suspended {
			cancel()
		}
	}
	for ; ctx.Err() == nil; look() { // a daemon with a keeper may end and go on
		_ = c.Events(ctx, look, func(e control.Event) error {
			if e.Minor == r.minor || e.Missed > 0 {
				look()
			}
			return nil
		})
	}
}

// suspendFreeze is what a suspend or resume has frozen; nil for nothing.
type suspendFreeze struct {
	*frozen
	until *resumption
}

// freezeFor freezes what is mounted from a device that runs, as the kernel does
// before it suspends one; nil when there is nothing, or it is not wanted. With
// stay it can be left behind.
func (d *dm) freezeFor(key control.Key, stay bool) (*suspendFreeze, error) {
	if d.c == nil || d.o.on("noflush") || d.o.on("nolockfs") {
		return nil, nil
	}
	if loops, err := listLoops(); err != nil || len(loops) == 0 {
		return nil, nil // nothing can be mounted from it
	}
	info, err := d.c.Info(d.ctx, key, false)
	if err != nil || info.Suspended || !stay && !info.Inactive {
		return nil, nil // the daemon will say what is wrong
	}
	list, err := fileSystemsOn(info.Path)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	z, err := d.freezeList(info, list, stay)
	if err != nil {
		return nil, fmt.Errorf("%w; with --nolockfs nothing is frozen", withoutAdvice(err))
	}
	return z, nil
}

// withoutAdvice is an error without what to do next: that of the snapshots does
// not fit here.
func withoutAdvice(err error) error {
	var f *failure
	if errors.As(err, &f) && f.err != nil {
		return f.err
	}
	return err
}

func (d *dm) freezeList(info control.Info, list []frozenFS, stay bool) (*suspendFreeze, error) {
	v, err := d.c.Version(d.ctx)
	if err != nil {
		return nil, err
	}
	needed := daemonFiles(v.PID)
	needed[v.RunDir] = "the run directory of the daemon"
	if err := freezeConflict(list, needed); err != nil {
		return nil, err
	}
	limit := suspendLimit
	if text := d.env(suspendLimitEnv); text != "" {
		if limit, err = time.ParseDuration(text); err != nil || limit <= 0 {
			return nil, fmt.Errorf("%s=%s: expected a time as 30s or 10m", suspendLimitEnv, text)
		}
	}
	z := &suspendFreeze{}
	f := freezer{command: []string{"/proc/self/exe", holdVerb}, lock: filepath.Join(v.RunDir, "freeze.lock")}
	if stay {
		if z.until, err = newResumption(d.c.Socket(), v.RunDir, info.Minor, list); err != nil {
			return nil, err
		}
		f.until = z.until
	}
	if z.frozen, err = f.freeze(d.ctx, list, limit); err != nil {
		if z.until != nil {
			z.until.forget()
			z.until.record.Close()
		}
		return nil, err
	}
	return z, nil
}

// newResumption makes the record of what is about to be frozen, and locks it.
func newResumption(socket, runDir string, minor int, list []frozenFS) (*resumption, error) {
	path := frozenRecord(runDir, minor)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := endFreeze(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	var roots []string
	for _, fs := range list {
		roots = append(roots, fs.open)
	}
	text, err := json.Marshal(roots)
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &resumption{socket: socket, minor: minor, path: path, record: f}, nil
}

func frozenRecord(runDir string, minor int) string {
	return filepath.Join(runDir, "frozen", strconv.Itoa(minor))
}

// done ends the freeze when the suspend failed or was for a moment; else it is
// left to the holder.
func (z *suspendFreeze) done(stay bool) {
	if z == nil {
		return
	}
	if stay {
		_, _ = z.stdin.Write([]byte(sayStay)) // a holder that is gone has thawed, or resume does
		_ = z.stdin.Close()
		z.closeDirs()
		_ = z.cmd.Process.Release()
	} else {
		_ = z.thaw() // that the limit passed does no harm
	}
	if z.until != nil {
		z.until.record.Close()
	}
}

// thawLimit bounds the wait of a resume for the thaw: everything that the file
// system wrote meanwhile may have to be written first.
const thawLimit = 30 * time.Second

// endFreeze returns when what the record tells of is thawed: by its holder, or
// here when that is gone.
func endFreeze(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	err = poll(thawLimit, func() (bool, error) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return err == nil, err
	}, func() error {
		return failf(exitTimeout, "the file system on the device was not thawed within %v", thawLimit)
	})
	if err != nil {
		return err
	}
	now, err := os.Stat(path)
	was, err2 := f.Stat()
	if err != nil || err2 != nil || !os.SameFile(now, was) {
		return nil // the holder has done it
	}
	var roots []string
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &roots)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	for _, root := range slices.Backward(roots) { // those below first
		if dir, err := os.Open(root); err == nil { // else it is not mounted any more
			_ = thawFD(dir.Fd())
			dir.Close()
		}
	}
	return os.Remove(path)
}

// suspend holds back I/O, with the file system on the device frozen.
func (d *dm) suspend(args []string) error {
	key, err := d.onlyKey(args)
	if err != nil {
		return err
	}
	z, err := d.freezeFor(key, true)
	if err != nil {
		return failed("suspend", key, err)
	}
	err = d.simpleKey(key, control.Step{Op: control.OpSuspend})
	z.done(err == nil)
	return err
}

// resume brings a loaded table in and lets I/O run.
func (d *dm) resume(args []string) error {
	key, err := d.onlyKey(args)
	if err != nil {
		return err
	}
	return d.resumeKey(key)
}

func (d *dm) resumeKey(key control.Key) error {
	z, err := d.freezeFor(key, false)
	if err != nil {
		return failed("resume", key, err)
	}
	err = d.simpleKey(key, control.Step{Op: control.OpResume})
	z.done(false)
	if err != nil || d.c == nil {
		return err
	}
	return d.awaitThaw(key)
}

// awaitThaw waits for the end of the freeze of a device that runs again.
func (d *dm) awaitThaw(key control.Key) error {
	v, err := d.c.Version(d.ctx)
	if err != nil {
		return nil // it was resumed, and the freeze ends with the daemon
	}
	if records, _ := filepath.Glob(filepath.Join(v.RunDir, "frozen", "*")); len(records) == 0 {
		return nil
	}
	info, err := d.c.Info(d.ctx, key, false)
	if err != nil || info.Suspended {
		return nil
	}
	return endFreeze(frozenRecord(v.RunDir, info.Minor))
}
