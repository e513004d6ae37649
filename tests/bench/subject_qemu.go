package main

import (
	"context"
	"os"
	"os/exec"
)

// openRaw is qemu's FUSE export of a plain file.
func openRaw(ctx context.Context, p *place, o *opened) error {
	image, err := p.image(ctx)
	if err != nil {
		return err
	}
	o.end.add(func() error { return os.Remove(image) })
	return p.export(ctx, o,
		"driver=file,node-name=f,filename="+image,
		"driver=raw,node-name=e,file=f")
}

// openQcow is qemu's FUSE export of a new overlay over the base.
func openQcow(layout string) func(context.Context, *place, *opened) error {
	return func(ctx context.Context, p *place, o *opened) error {
		overlay := p.path("overlay")
		o.end.add(func() error { return os.RemoveAll(overlay) })
		if _, err := command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-o", layout, "-b", p.base, "-F", "raw", overlay); err != nil {
			return err
		}
		return p.export(ctx, o,
			"driver=file,node-name=f,filename="+overlay,
			"driver=qcow2,node-name=e,file=f")
	}
}

// openBefore is qemu's peer of an origin with a snapshot: the filter
// copy-before-write saves what is overwritten to a new qcow2 file. It never makes
// the saved data durable by itself, and a flush reaches the image only. With sync
// the file system makes each write to the qcow2 file durable (chattr +S): then what
// is saved is as durable as with dmfuse, where a load flushes after each write.
func openBefore(sync bool) func(context.Context, *place, *opened) error {
	return func(ctx context.Context, p *place, o *opened) error {
		image, err := p.image(ctx)
		if err != nil {
			return err
		}
		o.end.add(func() error { return os.Remove(image) })
		saved := p.path("saved")
		o.end.add(func() error { return os.RemoveAll(saved) })
		if _, err := command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", saved); err != nil {
			return err
		}
		if sync {
			if _, err := command(ctx, "chattr", "+S", saved); err != nil {
				return err
			}
		}
		return p.export(ctx, o,
			"driver=file,node-name=f,filename="+image,
			"driver=file,node-name=s,filename="+saved,
			"driver=qcow2,node-name=q,file=s,backing=f",
			"driver=copy-before-write,node-name=e,file=f,target=q")
	}
}

// export starts qemu-storage-daemon, which mounts node e over a file.
func (p *place) export(ctx context.Context, o *opened, nodes ...string) error {
	o.path = p.path("export")
	f, err := os.Create(o.path)
	if err != nil {
		return err
	}
	_ = f.Close()
	o.end.add(func() error { return os.Remove(o.path) })
	var args []string
	for _, n := range nodes {
		args = append(args, "--blockdev", n)
	}
	args = append(args, "--export", "type=fuse,id=x,node-name=e,writable=on,mountpoint="+o.path)
	s, err := start(exec.Command("qemu-storage-daemon", args...))
	if err != nil {
		return err
	}
	o.end.add(s.stop)
	o.pid = s.cmd.Process.Pid
	before := deviceOf(p.dir)
	return s.until(ctx, func() bool { return mounted(o.path, before) })
}
