package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/fs/fstest"
)

// daemon is the program under test.
type daemon struct {
	bin string
	run string // run directory
	pid int

	transport string // how its requests arrive
	missing   error  // a notHere: it cannot be had with its flag
}

// daemonOf is the daemon of a place that runs a build.
func (p *place) daemonOf(bin string) (*daemon, error) { return p.daemonWith(bin, "") }

// daemonWith is the one with a flag of serve. Its run directory is not there but in the
// ordinary directory for temporary files, whose name is short.
func (p *place) daemonWith(bin, flag string) (*daemon, error) {
	key := bin + " " + flag
	if d := p.daemons[key]; d != nil {
		return d, d.missing
	}
	if flag == uring {
		if err := p.enableURing(); err != nil {
			p.daemons[key] = &daemon{missing: notHere("not offered here: " + err.Error())}
			return nil, p.daemons[key].missing
		}
	}
	run, err := os.MkdirTemp("", "dmfuse-bench-")
	if err != nil {
		return nil, err
	}
	p.end.add(func() error { return os.RemoveAll(run) })
	d, err := p.startDaemon(bin, flag, filepath.Join(run, "run"))
	if err != nil {
		return nil, err
	}
	p.daemons[key] = d
	// Where the kernel does not offer io_uring the daemon serves without.
	if flag == uring && d.transport != "uring" {
		d.missing = notHere(fmt.Sprintf("not offered here: with %s the requests come by %q", uring, d.transport))
	}
	return d, d.missing
}

// startDaemon starts a daemon that ends with the place.
func (p *place) startDaemon(bin, flag, run string) (*daemon, error) {
	d := &daemon{bin: bin, run: run}
	ready, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	args := []string{"serve", "--run-dir", d.run, "--ready-fd", "3"}
	if flag != "" {
		args = append(args, flag)
	}
	cmd := exec.Command(d.bin, args...)
	cmd.ExtraFiles = []*os.File{end}
	s, err := start(cmd)
	_ = end.Close()
	if err != nil {
		return nil, err
	}
	p.end.add(s.stop)
	_ = ready.SetReadDeadline(time.Now().Add(stopLimit))
	if word, _ := io.ReadAll(ready); len(word) == 0 {
		return nil, errors.Join(errors.New("the daemon does not get ready"), s.stop(), errors.New(s.errs.String()))
	}
	// The process that serves need not be the one that was started.
	c := control.NewClient(filepath.Join(d.run, "control.sock"))
	defer c.Close()
	v, err := c.Version(context.Background())
	d.pid, d.transport = v.PID, v.Transport
	return d, err
}

func (d *daemon) do(ctx context.Context, args ...string) error {
	_, err := command(ctx, d.bin, append([]string{"--run-dir", d.run}, args...)...)
	return err
}

// create makes a device that is removed when the subject ends.
func (d *daemon) create(ctx context.Context, o *opened, name, table string) error {
	if err := d.do(ctx, "create", name, "--table", table); err != nil {
		return err
	}
	o.end.add(func() error { return d.do(context.WithoutCancel(ctx), "remove", name) })
	return nil
}

// file is the file of a device.
func (d *daemon) file(name string) string { return filepath.Join(d.run, "dev", name) }

// Flags of daemons that have subjects of their own.
const (
	uring = "--transport=uring"
	alone = "--no-keeper"
)

// served opens a device of a daemon with a flag.
func served(flag string, open func(context.Context, *place, *opened) error) func(context.Context, *place, *opened) error {
	return func(ctx context.Context, p *place, o *opened) error {
		o.flag = flag
		return open(ctx, p, o)
	}
}

// enableURing lets the kernel offer it until the place is closed.
func (p *place) enableURing() error {
	restore, err := fstest.EnableURing()
	if err != nil {
		return err
	}
	p.end.add(func() error {
		restore()
		return nil
	})
	return nil
}

// tableOf makes what a table line needs and returns it.
type tableOf func(ctx context.Context, p *place, o *opened) (string, error)

// openTable is a device with one table line.
func openTable(table tableOf) func(context.Context, *place, *opened) error {
	return func(ctx context.Context, p *place, o *opened) error {
		d, err := p.daemonWith(o.bin, o.flag)
		if err != nil {
			return err
		}
		line, err := table(ctx, p, o)
		if err != nil {
			return err
		}
		name := filepath.Base(p.path("dev"))
		o.path, o.pid = d.file(name), d.pid
		return d.create(ctx, o, name, line)
	}
}

// openLazy opens a snapshot that answers writes before it commits them.
func openLazy(open func(context.Context, *place, *opened) error) func(context.Context, *place, *opened) error {
	return func(ctx context.Context, p *place, o *opened) error {
		if err := open(ctx, p, o); err != nil {
			return err
		}
		d, err := p.daemonWith(o.bin, o.flag)
		if err != nil {
			return err
		}
		return d.do(ctx, "policy", filepath.Base(o.path), "commit=lazy")
	}
}

// linear is a device that passes a file through.
func linear(ctx context.Context, p *place, o *opened) (string, error) {
	image, err := p.image(ctx)
	o.end.add(func() error { return os.Remove(image) })
	return fmt.Sprintf("0 %d linear %s 0", p.sectors(), image), err
}

// snapshotTable is a persistent snapshot of the base with a new COW file.
func snapshotTable(chunk int) tableOf {
	return func(ctx context.Context, p *place, o *opened) (string, error) {
		cow, err := p.cow(o)
		return fmt.Sprintf("0 %d snapshot %s %s P %d", p.sectors(), p.base, cow, chunk), err
	}
}

// cow is a new sparse file with room for every chunk and its exception.
func (p *place) cow(o *opened) (string, error) {
	path := p.path("cow")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	o.end.add(func() error {
		if err := os.Remove(path + ".dmfuse"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.Remove(path)
	})
	return path, errors.Join(f.Truncate(p.size+p.size/8+(16<<20)), f.Close())
}

// openOrigin is an origin device with n snapshots.
func openOrigin(n int) func(context.Context, *place, *opened) error {
	return func(ctx context.Context, p *place, o *opened) error {
		d, err := p.daemonOf(o.bin)
		if err != nil {
			return err
		}
		image, err := p.image(ctx)
		if err != nil {
			return err
		}
		o.end.add(func() error { return os.Remove(image) })
		name := filepath.Base(p.path("origin"))
		o.path, o.pid = d.file(name), d.pid
		if err := d.create(ctx, o, name, fmt.Sprintf("0 %d snapshot-origin %s", p.sectors(), image)); err != nil {
			return err
		}
		for range n {
			cow, err := p.cow(o)
			if err != nil {
				return err
			}
			table := strings.Join([]string{"0", fmt.Sprint(p.sectors()), "snapshot", image, cow, "P", "8"}, " ")
			if err := d.create(ctx, o, filepath.Base(p.path("snap")), table); err != nil {
				return err
			}
		}
		return nil
	}
}
