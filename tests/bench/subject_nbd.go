package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// openNBD is the copy-on-write filter of nbdkit over the base, shown by nbdfuse,
// which mounts over a file.
func openNBD(ctx context.Context, p *place, o *opened) error {
	o.path = p.path("export")
	if err := os.WriteFile(o.path, nil, 0o600); err != nil {
		return err
	}
	o.end.add(func() error { return os.Remove(o.path) })
	s, err := start(exec.Command("nbdfuse", o.path, "[", "nbdkit", "--exit-with-parent", "--filter=cow", "file", p.base, "cow-block-size=4096", "]"))
	if err != nil {
		return err
	}
	o.end.add(s.stop)
	o.pid = s.cmd.Process.Pid
	before := deviceOf(p.dir)
	return s.until(ctx, func() bool { return mounted(o.path, before) })
}

// openXmount is the overlay of xmount over the base. The program goes to the
// background by itself and ends with its mount.
func openXmount(ctx context.Context, p *place, o *opened) error {
	dir, cache := p.path("xmount"), p.path("cache")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	o.end.add(func() error { return os.Remove(dir) })
	o.end.add(func() error { return os.RemoveAll(cache) })
	if _, err := command(ctx, "xmount", "--in", "raw", p.base, "--out", "raw", "--cache", cache, dir); err != nil {
		return err
	}
	o.end.add(func() error {
		_, err := command(context.WithoutCancel(ctx), "umount", dir)
		return err
	})
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if st, err := e.Info(); err == nil && st.Size() == p.size {
			o.path = dir + "/" + e.Name()
			return nil
		}
	}
	return fmt.Errorf("xmount shows no file of %d bytes", p.size)
}
