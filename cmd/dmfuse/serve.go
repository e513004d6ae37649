package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/control/server"
	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/keeper"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

// serveOptions are the flags of serve.
type serveOptions struct {
	runDir, socket, mount string
	allowOther            bool
	major                 int
	noRestore             bool
	direct                bool
	transport             string
	logLevel              string
	readyFD               int // written to when ready, for a command that started us

	keeper, noKeeper        bool   // asked for: a process that outlives the one that serves; none
	alone                   string // why there is none; empty: there is
	kept                    string // of a worker: what its keeper hands down
	stored                  bool   // a service manager gives back what a dead keeper left
	hungLimit, upgradeLimit time.Duration
}

func newServeCommand(a *app) *cobra.Command {
	cmd, o := serveCommand(a, "serve", func(o serveOptions) error {
		var err error
		if o.alone, err = a.whyAlone(o); err != nil {
			return err
		}
		if o.alone != "" {
			return a.serve(o)
		}
		o.stored = isStored(a.env)
		return a.keep(o)
	})
	f := cmd.Flags()
	f.BoolVar(&o.noKeeper, "no-keeper", false, "one process, and its clients get errors when it dies; otherwise a small one, the keeper, holds the mount, and replaces the one that serves when that dies")
	f.BoolVar(&o.keeper, "keeper", false, "do not start where there can be no keeper")
	f.DurationVar(&o.hungLimit, "hung-limit", 30*time.Second, "after how long without a sign of life the worker of a keeper is replaced")
	f.DurationVar(&o.upgradeLimit, "upgrade-limit", 20*time.Second, "how long a new program may take to be ready before the old one goes on")
	return cmd
}

// serveCommand is a verb with the flags that a daemon has.
func serveCommand(a *app, verb string, run func(serveOptions) error) (*cobra.Command, *serveOptions) {
	o := &serveOptions{readyFD: -1}
	cmd := &cobra.Command{
		Use:   verb,
		Short: "Run the daemon in the foreground",
		Args:  asUsage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.runDir, err = a.runDir(); err != nil {
				return err
			}
			if o.socket, err = a.socket(); err != nil {
				return err
			}
			return run(*o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.mount, "mount", "", "where the device files appear (default: dev in the run directory)")
	f.BoolVar(&o.allowOther, "allow-other", false, "let other users open the device files")
	f.IntVar(&o.major, "major", 0, "major number of the devices (default: the highest free one below 255)")
	f.BoolVar(&o.noRestore, "no-restore", false, "do not bring back the devices of a daemon that was killed")
	f.BoolVar(&o.direct, "direct", false, "open backing files with O_DIRECT")
	f.StringVar(&o.transport, "transport", cmp.Or(a.env("DMFUSE_TRANSPORT"), string(fs.TransportAuto)), "how requests arrive: auto (dev), uring (io_uring, Linux 6.14), dev (/dev/fuse, several readers) or gofuse (go-fuse's server)")
	f.StringVar(&o.logLevel, "log-level", "info", "error, warning, info, debug or trace")
	f.IntVar(&o.readyFD, "ready-fd", -1, "file descriptor to write to when ready")
	_ = f.MarkHidden("ready-fd")
	return cmd, o
}

// check finds what is wrong with the flags before anything is done.
func (o *serveOptions) check() (logrus.Level, error) {
	level, err := logrus.ParseLevel(o.logLevel)
	if err != nil {
		return 0, usagef("--log-level %s: expected error, warning, info, debug or trace", o.logLevel)
	}
	if _, err := fs.ParseTransport(o.transport); err != nil {
		return 0, usagef("--transport %s: expected auto, uring, dev or gofuse", o.transport)
	}
	if o.major < 0 || o.major > 4095 {
		return 0, usagef("--major %d: expected 1 to 4095", o.major)
	}
	if o.mount == "" {
		o.mount = filepath.Join(o.runDir, "dev")
	}
	if o.kept != "" {
		return level, nil // the keeper checked it; a path in the mount is not to be looked at
	}
	if o.stored {
		// It is mounted, and nobody serves it: only what is above may be looked at.
		dir, err := cleanAbs(filepath.Dir(o.mount))
		if err != nil {
			return 0, err
		}
		o.mount = filepath.Join(dir, filepath.Base(o.mount))
	} else if o.mount, err = cleanAbs(o.mount); err != nil {
		return 0, err
	}
	for _, p := range []string{o.runDir, o.socket} {
		if within(o.mount, p) {
			return 0, usagef("--mount %s: the mount would cover %s, which the daemon needs", o.mount, p)
		}
	}
	if len(o.socket) > maxSocketPath {
		return 0, usagef("the path of the control socket, %s, has %d bytes, and the kernel takes %d: choose a shorter one with --socket or --run-dir",
			o.socket, len(o.socket), maxSocketPath)
	}
	return level, nil
}

// serve runs a daemon until it is shut down.
func (a *app) serve(o serveOptions) error {
	level, err := o.check()
	if err != nil {
		return err
	}
	log := logrus.New()
	log.SetOutput(a.stderr)
	log.SetLevel(level)
	prepareProcess(log)
	stopDumps := dumpGoroutines()
	defer stopDumps()

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)

	d := &daemon{o: o, env: a.env, log: log, ended: make(chan struct{}), replace: make(chan struct{}, 1)}
	if o.kept != "" {
		if d.worker, err = keeper.Inherit(o.kept); err != nil {
			return err
		}
		signal.Notify(signals, syscall.SIGUSR2)
		// Else it has the name of the descriptor by which the program was started.
		_ = os.WriteFile("/proc/self/comm", []byte("dmfuse"), 0)
	}
	if err := d.start(); err != nil {
		if d.worker != nil {
			return err // the next one finds all as it is
		}
		return errors.Join(err, d.cleanup())
	}
	d.ready()
	if d.worker != nil {
		go d.proveLife()
	}
	if d.loop(signals) {
		return silent(keeper.ExitHandOver)
	}
	return d.finish()
}

// daemon is one running daemon: what serve puts together.
//
// The order of the end is in shutdown and finish, and nowhere else: refuse
// when something is in use → unmount → suspend and flush every device, tops
// first, and close them → answer the one who asked → take the socket away →
// give the lock back.
type daemon struct {
	o   serveOptions
	env func(string) string
	log *logrus.Logger

	worker    *keeper.Worker // nil without a keeper
	held      *fs.Held       // with one
	restoring *restoring     // with one, until the devices are there
	lock      *os.File
	set       *target.Set // see types
	snapshots *snapshot.Group
	ps        processors
	manager   *mapper.Manager
	mount     *fs.Server
	mountDev  devNum // of the file system that mount is
	server    *server.Server
	merges    *merges
	listener  net.Listener
	serving   chan error
	leftovers []control.Leftover
	problems  []control.RestoreProblem
	started   time.Time

	ending sync.Mutex // held by the one shutdown that runs
	over   bool       // guarded by ending

	replace chan struct{} // another program is to go on
	ended   chan struct{} // closed when a shutdown is done
}

// start brings everything up in order; on an error cleanup takes down what is
// there.
func (d *daemon) start() error {
	d.started = time.Now()
	var err error
	if d.worker != nil {
		err = d.inherit()
	} else {
		err = d.own()
	}
	if err != nil {
		return err
	}
	if d.manager, err = d.newManager(); err != nil {
		return err
	}
	if err := d.restore(); err != nil {
		return err
	}
	if d.restoring != nil {
		if err := d.restoring.end(); err != nil {
			return err
		}
	}
	if err := d.trial(); err != nil {
		return err
	}
	if d.mount, err = d.newMount(); err != nil {
		return fmt.Errorf("the device files cannot be shown at %s: %w", d.o.mount, err)
	}
	if d.mountDev, err = fileSystemAt(d.o.mount); err != nil && d.worker == nil {
		return err
	} // while no worker ran somebody may have taken it away, which the readers find
	return d.listen()
}

// own takes what is a daemon's alone.
func (d *daemon) own() error {
	if err := makeRunDir(d.o.runDir, d.o.allowOther); err != nil {
		return err
	}
	lock, err := lockRunDir(d.o.runDir)
	if err != nil {
		return err
	}
	d.lock = lock
	d.leftovers, err = collectLeftovers(d.o.mount, leftoversFile(d.o.runDir))
	return err
}

// restore brings back the devices of a daemon that was killed (promise 9).
// What cannot be brought back is said; it never keeps the others away.
func (d *daemon) restore() error {
	if d.o.noRestore {
		return errors.Join(d.manager.DropRecords(), d.dropNotes(), mirror.DropNotes(d.stateDir()))
	}
	problems, err := d.manager.Restore(context.Background())
	if err != nil {
		return fmt.Errorf("the devices of the last daemon cannot be brought back (--no-restore starts without them): %w", err)
	}
	for _, p := range problems {
		text := p.Err.Error()
		if p.Path != "" {
			text += " (" + p.Path + ")"
		}
		d.problems = append(d.problems, control.RestoreProblem{Device: p.Device, Text: text})
		d.log.WithField("device", p.Device).WithError(p.Err).Error("not brought back as it was")
	}
	return d.dropNotes()
}

// dropNotes removes the notes and saved tables of the last daemon's snapshots that
// nobody took: from now on their stores may be used without them.
func (d *daemon) dropNotes() error {
	n, err := snapshot.DropNotes(d.stateDir())
	if n > 0 {
		d.log.Warnf("%d notes of snapshots that are not brought back are gone: what was answered last and not flushed is as before there", n)
	}
	return errors.Join(err, d.snapshots.DropSaved())
}

// listen puts the control socket in place. It comes last: who gets an answer
// finds the devices restored and their files in place.
func (d *daemon) listen() error {
	l, err := d.controlSocket()
	if err != nil {
		return err
	}
	d.listener = l
	d.merges = newMerges(d.manager, filepath.Join(d.o.runDir, "merges"), d.log)
	d.server = server.New(server.Options{
		Manager: d.manager, Targets: targetTypes(d.types()), Version: d.version, Log: d.log,
		Path:     func(name string) string { return filepath.Join(d.o.mount, name) },
		Shutdown: d.shutdown, Upgrade: d.upgrade, Merges: d.merges,
	})
	d.merges.start(d.server.Apply)
	d.serving = make(chan error, 1)
	go func() { d.serving <- d.server.Serve(l) }()
	return nil
}

// controlSocket makes the control socket, or takes that of the keeper.
func (d *daemon) controlSocket() (*net.UnixListener, error) {
	if d.worker == nil {
		return bindSocket(d.o.socket)
	}
	l, err := net.FileListener(d.worker.Socket)
	if err != nil {
		return nil, fmt.Errorf("the control socket of the keeper: %w", err)
	}
	unixl, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("the control socket of the keeper is a %T", l)
	}
	unixl.SetUnlinkOnClose(true) // closed at the end of all, not when the next worker goes on
	return unixl, nil
}

func (d *daemon) version() control.Version {
	return control.Version{
		Version: version, Protocol: control.Protocol, PID: os.Getpid(), Started: d.started,
		RunDir: d.o.runDir, Mount: d.o.mount, Major: d.manager.Major(), AllowOther: d.o.allowOther,
		Transport: string(d.mount.Transport()), KeeperPID: d.keeperPID(), NoKeeper: d.o.alone, After: d.after(),
		Leftovers: stillThere(d.leftovers, nil), Restored: d.problems,
	}
}

// ready says that requests are answered: to a person, to the service manager,
// and to the command that started us.
func (d *daemon) ready() {
	for _, l := range d.leftovers {
		d.log.WithFields(logrus.Fields{"what": l.What, "where": l.Where, "over": l.Over}).
			Warnf("left over from a daemon that died, and dead for ever; clear it with: %s", l.Clear)
	}
	fields := logrus.Fields{
		"pid": os.Getpid(), "mount": d.o.mount, "socket": d.o.socket, "devices": len(d.manager.Devices()),
		"transport": d.mount.Transport(),
	}
	if d.o.alone != "" {
		d.log.WithField("keeper", "none").Infof("one process (%s): if it dies, the users of the devices get errors", d.o.alone)
	}
	if d.worker != nil {
		fields["keeper"] = d.keeperPID()
		if !d.mount.CanResend() {
			d.worker.Report("once")
		}
		d.worker.Report("ready")
	}
	d.log.WithFields(fields).Infof("dmfuse %s is ready", version)
	notify(d.env, "READY=1\nSTATUS=serving "+d.o.mount)
	writeReady(d.o.readyFD)
}

// writeReady tells a command that started us.
func writeReady(fd int) {
	if fd < 0 {
		return
	}
	f := os.NewFile(uintptr(fd), "ready")
	_, _ = f.WriteString(readyWord)
	_ = f.Close()
}

// loop waits for the end: a shutdown by request, a signal, or a mount that
// somebody took away. It tells whether the next worker is to go on.
func (d *daemon) loop(signals <-chan os.Signal) (handOver bool) {
	unmounted := make(chan struct{})
	go func() {
		d.mount.Wait()
		close(unmounted)
	}()
	for {
		select {
		case <-d.ended:
			return false
		case <-d.replace:
			d.handOver()
			return true
		case sig := <-signals:
			if sig == syscall.SIGUSR2 {
				d.handOver()
				return true
			}
			d.log.WithField("signal", sig).Info("asked to end")
			if err := d.shutdown(context.Background(), 0, false); err != nil {
				d.notEnded(err)
			}
		case err := <-d.serving:
			d.serving <- err
			d.log.WithError(err).Error("the control socket is gone")
			return false
		case <-unmounted:
			unmounted = nil
			d.unmountedByOther()
		}
	}
}
