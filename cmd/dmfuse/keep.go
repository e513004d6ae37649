package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/keeper"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// whyAlone says why serve is one process; empty: it is a keeper with a worker,
// which is so wherever another worker can go on with the requests of a dead one:
// where readers of ours read them from /dev/fuse, and the kernel sends them again.
func (a *app) whyAlone(o serveOptions) (string, error) {
	why := ""
	env := a.env("DMFUSE_KEEPER")
	on, err := strconv.ParseBool(cmp.Or(env, "1"))
	release := cmp.Or(testFaultOf(a.env).value("release"), kernelRelease())
	switch t := fs.Transport(o.transport); {
	case o.keeper && o.noKeeper:
		return "", usagef("--keeper and --no-keeper: expected one of them")
	case o.noKeeper:
		return "--no-keeper", nil
	case err != nil && !o.keeper:
		return "", usagef("DMFUSE_KEEPER=%s: expected 0 or 1", env)
	case !on && !o.keeper:
		return "DMFUSE_KEEPER=" + env, nil
	case t == fs.TransportURing && a.noURing() == nil || t == fs.TransportGoFuse:
		why = fmt.Sprintf("with the transport %s the requests of a process that dies are lost", t)
	case !fs.Resends(release):
		why = fmt.Sprintf("Linux %s does not send the requests of a process that died to the next one, as 6.9 and later do", release)
	}
	if why != "" && o.keeper {
		return "", fail(exitFailed, fmt.Errorf("there can be no keeper: %s", why), "dmfuse serve --no-keeper does without")
	}
	return why, nil
}

// noURing is why requests cannot come over io_uring, if that is known.
func (a *app) noURing() error {
	switch testFaultOf(a.env).value("uring") {
	case "on":
		return nil
	case "off":
		return errors.New("a test has it so")
	}
	return fs.NoURing()
}

// kernelRelease is the version of the kernel, such as 6.12.5-amd64.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// keep is serve as the keeper of a worker: it holds what must outlive a worker,
// see package keeper.
func (a *app) keep(o serveOptions) error {
	level, err := o.check()
	if err != nil {
		return err
	}
	log := logrus.New()
	log.SetOutput(a.stderr)
	log.SetLevel(level)
	prepareProcess(log)
	if fs.Transport(o.transport) == fs.TransportURing {
		log.WithError(a.noURing()).Warn("requests come over /dev/fuse, not over io_uring")
	}

	k := &kept{o: o, env: a.env, log: log, socket: -1}
	if err := k.take(); err != nil {
		return errors.Join(err, k.letGo())
	}
	code, err := keeper.Run(k.options())
	if code != exitDone || err != nil {
		err = cmp.Or(err, silent(code))
		return errors.Join(err, k.letGo())
	}
	notify(a.env, k.storeRemoved())
	return nil
}

// kept is what a keeper holds.
type kept struct {
	o   serveOptions
	env func(string) string
	log *logrus.Logger

	lock   *os.File
	socket int // -1: none
	held   *fs.Held
}

// take takes or makes all of it.
func (k *kept) take() error {
	if err := makeRunDir(k.o.runDir, k.o.allowOther); err != nil {
		return err
	}
	var err error
	if k.lock, err = lockRunDir(k.o.runDir); err != nil {
		return err
	}
	if err := snapshot.DropSaved(filepath.Join(k.o.runDir, "state")); err != nil {
		return fmt.Errorf("what a daemon before saved of its snapshots: %w", err)
	}
	if k.takeStored() {
		return nil
	}
	if err := snapshot.DropTables(filepath.Join(k.o.runDir, "state")); err != nil {
		return fmt.Errorf("what a daemon before left: %w", err)
	}
	if _, err := collectLeftovers(k.o.mount, leftoversFile(k.o.runDir)); err != nil {
		return err
	}
	k.held, err = fs.Hold(fs.Options{Dir: k.o.mount, AllowOther: k.o.allowOther, Log: k.log})
	if err != nil {
		return fmt.Errorf("the device files cannot be shown at %s: %w", k.o.mount, err)
	}
	l, err := bindSocket(k.o.socket)
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // the worker does, at the end
	defer l.Close()
	f, err := l.File()
	if err != nil {
		return err
	}
	defer f.Close()
	k.socket, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return err
}

func (k *kept) options() keeper.Options {
	args := []string{
		workerVerb, "--run-dir", k.o.runDir, "--socket", k.o.socket, "--mount", k.o.mount, "--log-level", k.o.logLevel,
		"--transport", string(fs.TransportDev), fmt.Sprintf("--allow-other=%t", k.o.allowOther), fmt.Sprintf("--direct=%t", k.o.direct),
	}
	if k.o.major != 0 {
		args = append(args, "--major", fmt.Sprint(k.o.major))
	}
	var first []string
	if k.o.noRestore {
		first = append(first, "--no-restore")
	}
	self, err := os.Executable()
	if err != nil {
		self = "/proc/self/exe"
	}
	return keeper.Options{
		Args: args, First: first,
		Env: slices.DeleteFunc(os.Environ(), func(v string) bool {
			return strings.HasPrefix(v, "NOTIFY_SOCKET=") || strings.HasPrefix(v, "LISTEN_") || strings.HasPrefix(v, "WATCHDOG_")
		}),
		Fuse: k.held.Fuse, Memory: k.held.Memory, Socket: k.socket, Lock: int(k.lock.Fd()),
		Binary: self,
		Ready:  k.ready,
		Say: func(problem bool, text string) {
			log := k.log.WithField("keeper", os.Getpid())
			if problem {
				log.Warn(text)
			} else {
				log.Info(text)
			}
		},
		HungLimit: k.o.hungLimit, UpgradeLimit: k.o.upgradeLimit,
	}
}

// ready tells those who wait: the service manager, and the command that started
// us.
func (k *kept) ready(pid int) {
	k.log.WithFields(logrus.Fields{"keeper": os.Getpid(), "worker": pid}).Info("kept: a worker that dies is replaced")
	k.store()
	notify(k.env, fmt.Sprintf("READY=1\nMAINPID=%d\nSTATUS=serving %s", os.Getpid(), k.o.mount))
	writeReady(k.o.readyFD)
}

// letGo takes away what is of no use without a worker.
func (k *kept) letGo() error {
	var err error
	if k.socket >= 0 {
		err = os.Remove(k.o.socket)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if k.held != nil {
		err = errors.Join(err, k.held.Drop())
		notify(k.env, k.storeRemoved())
	}
	if k.lock != nil {
		err = errors.Join(err, k.lock.Close())
	}
	return err
}

// bindSocket makes the control socket, without rights for others: there is no
// moment at which they could connect. Nothing else of this process makes files
// now.
func bindSocket(path string) (*net.UnixListener, error) {
	if err := removeDeadSocket(path); err != nil {
		return nil, err
	}
	old := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("the control socket cannot be made: %w", err)
	}
	return l, nil
}

func leftoversFile(runDir string) string { return filepath.Join(runDir, "leftovers.json") }
