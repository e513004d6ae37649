package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
)

// openNBD is the copy-on-write filter of nbdkit over the base.
func openNBD(ctx context.Context, p *place, o *opened) error {
	return p.overNBD(ctx, o, "nbdkit", "--exit-with-parent", "--filter=cow", "file", p.base, "cow-block-size=4096")
}

// openQemuNBD is qemu's NBD server for a new overlay over the base.
func openQemuNBD(ctx context.Context, p *place, o *opened) error {
	overlay := p.path("overlay")
	o.end.add(func() error { return os.RemoveAll(overlay) })
	if _, err := command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", "-b", p.base, "-F", "raw", overlay); err != nil {
		return err
	}
	// Four clients at once, as nbdfuse has.
	return p.overNBD(ctx, o, "qemu-nbd", "--format=qcow2", "--cache=writeback", "--shared=0", overlay)
}

// overNBD shows an NBD server by nbdfuse, which mounts over a file.
func (p *place) overNBD(ctx context.Context, o *opened, server ...string) error {
	o.path = p.path("export")
	if err := os.WriteFile(o.path, nil, 0o600); err != nil {
		return err
	}
	o.end.add(func() error { return os.Remove(o.path) })
	s, err := start(exec.Command("nbdfuse", slices.Concat([]string{o.path, "["}, server, []string{"]"})...))
	if err != nil {
		return err
	}
	o.end.add(s.stop)
	o.pid = s.cmd.Process.Pid
	before := deviceOf(p.dir)
	if err := s.until(ctx, func() bool { return mounted(o.path, before) }); err != nil {
		return err
	}
	// nbdfuse passes the requests on to the server that it has started.
	o.behind, err = children(o.pid)
	if err == nil && len(o.behind) == 0 {
		err = fmt.Errorf("nbdfuse has no process of %s", server[0])
	}
	return err
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
	o.end.add(func() error { return unmount(dir) })
	if _, err := command(ctx, "xmount", "--in", "raw", p.base, "--out", "raw", "--cache", cache, dir); err != nil {
		return err
	}
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
