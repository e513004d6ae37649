package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/dmfuse/dmfuse/control"
)

// Names of the ways to make what was written since part of an image.
const (
	nameCommit   = "qemu-img commit"
	nameMerge64k = "dmfuse merge 64k"
	nameMerge4k  = "dmfuse merge 4k"
)

// mergeTask writes the same new data over every second MiB of a copy of the base,
// into an overlay of its own kind, and takes the time until the copy has it.
func mergeTask(with func(ctx context.Context, p *place, o options, image, data string) (time.Duration, error)) func(context.Context, *place, options) (float64, error) {
	return func(ctx context.Context, p *place, o options) (_ float64, err error) {
		var end cleanups
		defer func() { err = errors.Join(err, end.run()) }()
		image, err := p.image(ctx)
		end.add(func() error { return os.Remove(image) })
		if err != nil {
			return 0, err
		}
		data := p.path("data")
		end.add(func() error { return os.Remove(data) })
		if err := p.random2(ctx, data); err != nil {
			return 0, err
		}
		used, err := with(ctx, p, o, image, data)
		if err != nil {
			return 0, err
		}
		if err := p.hasData(image, data); err != nil {
			return 0, err
		}
		return float64(p.size/2) / 1e6 / used.Seconds(), nil
	}
}

// mergeStripe is the length of what is written at a time, and of what is left out.
const mergeStripe = 1 << 20

// random2 writes half as many bytes as the base has, others than those.
func (p *place) random2(ctx context.Context, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{2}), p.size/2)
	return errors.Join(err, ctx.Err(), f.Close())
}

// eachStripe calls fn for each piece of the data and where it goes.
func (p *place) eachStripe(data string, fn func(b []byte, at int64) error) error {
	f, err := os.Open(data)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, mergeStripe)
	for from := int64(0); from+mergeStripe <= p.size/2; from += mergeStripe {
		if _, err := f.ReadAt(b, from); err != nil {
			return err
		}
		if err := fn(b, 2*from); err != nil {
			return err
		}
	}
	return nil
}

// hasData checks that nothing was left out.
func (p *place) hasData(image, data string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	got := make([]byte, mergeStripe)
	return p.eachStripe(data, func(b []byte, at int64) error {
		if _, err := f.ReadAt(got, at); err != nil {
			return err
		}
		if string(got) != string(b) {
			return fmt.Errorf("%s does not have the new data at %d", image, at)
		}
		return nil
	})
}

// withCommit writes into a qcow2 overlay and commits it; the overlay is emptied as
// the store of a snapshot is.
func withCommit(ctx context.Context, p *place, _ options, image, data string) (_ time.Duration, err error) {
	overlay := p.path("overlay")
	defer func() { err = errors.Join(err, os.Remove(overlay)) }()
	if _, err := command(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k", "-b", image, "-F", "raw", overlay); err != nil {
		return 0, err
	}
	args := []string{"-f", "qcow2"}
	n := 0
	flush := func() error {
		_, err := command(ctx, "qemu-io", append(args, overlay)...)
		args, n = args[:2], 0
		return err
	}
	piece := p.path("piece")
	defer func() { err = errors.Join(err, os.Remove(piece)) }()
	if err := os.WriteFile(piece, nil, 0o600); err != nil {
		return 0, err
	}
	from := int64(0)
	err = p.eachStripe(data, func(b []byte, at int64) error {
		// A file for each piece: qemu-io reads its pattern from the start of one.
		part := piece + "." + strconv.FormatInt(from, 10)
		from++
		if err := os.WriteFile(part, b, 0o600); err != nil {
			return err
		}
		args = append(args, "-c", fmt.Sprintf("write -q -s %s %d %d", part, at, len(b)))
		if n++; n < 64 {
			return nil
		}
		return flush()
	})
	if err == nil && n > 0 {
		err = flush()
	}
	for i := range from {
		err = errors.Join(err, os.Remove(piece+"."+strconv.FormatInt(i, 10)))
	}
	if err != nil {
		return 0, err
	}
	if p.name != "memory" {
		if err := syncFile(overlay); err != nil {
			return 0, err
		}
	}
	begin := time.Now()
	if _, err := command(ctx, "qemu-img", "commit", "-q", overlay); err != nil {
		return 0, err
	}
	if p.name != "memory" {
		if err := syncFile(image); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

// withMerge writes to a snapshot and merges it, from the resume of the origin
// device until nothing is left. Something may be done with that meanwhile.
func withMerge(chunk int, beside meanwhile) func(ctx context.Context, p *place, o options, image, data string) (time.Duration, error) {
	return func(ctx context.Context, p *place, o options, image, data string) (_ time.Duration, err error) {
		d, err := p.daemonOf(o.bin)
		if err != nil {
			return 0, err
		}
		var end cleanups
		defer func() { err = errors.Join(err, end.run()) }()
		cow := p.path("cow")
		end.add(func() error { return os.RemoveAll(cow) })
		f, err := os.Create(cow)
		if err == nil {
			err = errors.Join(f.Truncate(2*p.size), f.Close())
		}
		if err != nil {
			return 0, err
		}
		c := control.NewClient(filepath.Join(d.run, "control.sock"))
		end.add(func() error { c.Close(); return nil })
		snap := filepath.Base(p.path("merged"))
		table := func(kind string) string {
			return fmt.Sprintf("0 %d %s %s %s P %d", p.sectors(), kind, image, cow, chunk)
		}
		if err := d.do(ctx, "create", snap, "--table", table("snapshot")); err != nil {
			return 0, err
		}
		end.add(func() error { return d.do(context.WithoutCancel(ctx), "remove", snap) })
		w, err := os.OpenFile(d.file(snap), os.O_RDWR, 0)
		if err != nil {
			return 0, err
		}
		err = p.eachStripe(data, func(b []byte, at int64) error {
			_, err := w.WriteAt(b, at)
			return err
		})
		if err = errors.Join(err, w.Sync(), w.Close()); err != nil {
			return 0, err
		}
		key := control.Key{Name: snap}
		if err := d.do(ctx, "load", snap, "--table", table("snapshot-merge")); err != nil {
			return 0, err
		}
		events := make(chan struct{})
		ready := make(chan struct{})
		watch, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			told := false
			_ = c.Events(watch, func() { close(ready) }, func(e control.Event) error {
				if !told && e.Device == snap && e.Text == "merge finished" {
					told = true
					close(events)
				}
				return nil
			})
		}()
		defer func() { stop(); <-ended }()
		select {
		case <-ready:
		case <-ended:
			return 0, errors.New("no events")
		}
		begin := time.Now()
		if _, err := c.Do(ctx, control.Step{Op: control.OpResume, Key: key}); err != nil {
			return 0, err
		}
		stopBeside := func() error { return nil }
		if beside != nil {
			if stopBeside, err = beside(d.file(snap)); err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, stopBeside()) }()
		}
		select {
		case <-events:
		case <-ended:
			return 0, errors.New("the merge does not end")
		}
		if err := stopBeside(); err != nil {
			return 0, err
		}
		if p.name != "memory" {
			if err := syncFile(image); err != nil {
				return 0, err
			}
		}
		return time.Since(begin), nil
	}
}
