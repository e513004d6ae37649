package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/fs"
	"github.com/dmfuse/dmfuse/keeper"
	"github.com/spf13/cobra"
)

// workerVerb is the hidden verb under which the program runs as the worker of a
// keeper, with the flags of serve.
const workerVerb = "worker"

func newWorkerCommand(a *app) *cobra.Command {
	cmd, o := serveCommand(a, workerVerb, a.serve)
	cmd.Hidden = true
	cmd.Flags().StringVar(&o.kept, "kept", "", "what the keeper hands down")
	return cmd
}

// inherit is own for the worker of a keeper, which has all of it.
func (d *daemon) inherit() error {
	var err error
	d.held, err = fs.TakeOver(fs.Held{
		Dir: d.o.mount, Fuse: d.worker.Fuse, Memory: d.worker.Memory, Crashed: d.worker.Why == keeper.Crashed,
		NoResend: d.testFault().has("no-resend"),
	})
	d.lock = d.worker.Lock
	d.leftovers = stillThere(readLeftovers(leftoversFile(d.o.runDir)), nil)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.stateDir(), 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	d.missState()
	d.restoring, err = d.beginRestoring()
	return err
}

// missState says when what the worker before had written is gone: its devices are
// not brought back, and their users get ENOENT.
func (d *daemon) missState() {
	if d.worker == nil || d.worker.Why == keeper.First {
		return
	}
	dir := d.stateDir()
	if list, err := os.ReadDir(dir); len(list) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		return
	}
	text := "somebody took away " + dir + ": the devices of the worker before are not brought back; what was written last to their snapshots may be lost"
	d.problems = append(d.problems, control.RestoreProblem{Text: text})
	d.log.Error(text)
}

// trial is the check of a program that is to replace another: it must find all
// devices as they are. It may end here with nothing lost.
func (d *daemon) trial() error {
	if d.worker == nil || d.worker.Why != keeper.Upgraded {
		return nil
	}
	fault := d.testFault()
	switch {
	case fault.has("exit"):
		return errors.New("a test wants this program to fail")
	case fault.has("hang"):
		select {}
	case len(d.problems) > 0:
		return fmt.Errorf("device %s: %s", d.problems[0].Device, d.problems[0].Text)
	}
	return nil
}

// handOverLimit is how long the requests under way have to end before the next
// worker goes on. Those that wait on a suspended device never do; it has them
// sent again.
const handOverLimit = 2 * time.Second

// upgrade has the keeper start another program next.
func (d *daemon) upgrade(binary string) error {
	switch {
	case d.worker == nil:
		e := control.Errorf(control.CodeUnsupported, "this daemon has no keeper, which could put another program in its place")
		e.Next = "end it with: dmfuse shutdown, and start the new one; without --no-keeper the next time goes without"
		return e
	case !d.mount.CanResend():
		return control.Errorf(control.CodeUnsupported, "this kernel cannot resend requests (Linux 6.9 can): nothing can go on in place of this daemon")
	case !filepath.IsAbs(binary):
		return control.Errorf(control.CodeInvalid, "the program %q: expected an absolute path", binary)
	}
	if fi, err := os.Stat(binary); err != nil {
		return control.Errorf(control.CodeInvalid, "the program: %v", err)
	} else if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0 {
		return control.Errorf(control.CodeInvalid, "the program %s: expected a file that can be run", binary)
	}
	if strings.ContainsAny(binary, "\n\r") {
		return control.Errorf(control.CodeInvalid, "the program %q: the path has more than one line", binary)
	}
	d.worker.Report("upgrade " + binary)
	select {
	case d.replace <- struct{}{}:
	default: // it is under way
	}
	return nil
}

// after is what became of the worker before this one.
func (d *daemon) after() string {
	if d.worker == nil {
		return ""
	}
	return string(d.worker.Why)
}

// handOver stops reading and answers what there is. All that the next worker
// needs is in place at any time: there is nothing else to write.
func (d *daemon) handOver() {
	d.log.Info("making place for another worker")
	ctx, cancel := context.WithTimeout(context.Background(), handOverLimit)
	defer cancel()
	d.mount.HandOver(ctx.Done())
}

// proveLife tells the keeper again and again that requests are answered: one of
// our own goes through the file system and the list of devices, one through the
// control socket. It ends with the process.
func (d *daemon) proveLife() {
	c := control.NewClient(d.o.socket)
	for {
		err := d.mount.Check()
		if err == nil {
			_, err = c.Version(context.Background())
		}
		select {
		case <-d.ended:
			return
		case <-time.After(lifeInterval):
		}
		if err != nil {
			d.log.WithError(err).Warn("the check of the daemon by itself failed")
			continue
		}
		d.worker.Report("alive")
	}
}

// lifeInterval is how often a worker looks at itself.
const lifeInterval = time.Second

// keeperPID is the process of the keeper, 0 without one.
func (d *daemon) keeperPID() int {
	if d.worker == nil {
		return 0
	}
	return os.Getppid()
}
