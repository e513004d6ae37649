package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// place is a directory with everything a run needs in it.
type place struct {
	name     string
	dir      string
	base     string // the image that snapshots and overlays stand on; never changed
	size     int64
	each     time.Duration
	self     string // this program
	subjects []subject

	larger *place // within this one, with a base of 4 GiB; nil: not needed yet

	daemons map[string]*daemon // by the program they run and its flag; started when first needed
	images  int
	end     cleanups
}

func newPlace(ctx context.Context, o options, name, parent string) (p *place, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, "dmfuse-bench-")
	if err != nil {
		return nil, err
	}
	p = &place{name: name, dir: dir, base: filepath.Join(dir, "base"), size: o.size, each: o.each, self: self,
		subjects: subjects(o), daemons: map[string]*daemon{}}
	p.end.add(func() error { return os.RemoveAll(dir) })
	if err := p.fill(ctx); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *place) close() error { return p.end.run() }

// fill makes the base: no block of it is zero, none like another. It is a copy
// as the images are: how a file was written decides how its pages lie in memory,
// and a tenth of the speed of large reads.
func (p *place) fill(ctx context.Context) error {
	seed := p.path("seed")
	err := p.random(ctx, seed)
	if err == nil {
		err = p.copyOf(ctx, seed, p.base)
	}
	return errors.Join(err, os.RemoveAll(seed))
}

// random writes a file of random bytes, the same in every run.
func (p *place) random(ctx context.Context, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	src := rand.NewChaCha8([32]byte{1})
	for left := p.size; left > 0 && err == nil; {
		var n int64
		if n, err = io.CopyN(f, src, min(left, 16<<20)); err == nil {
			err = ctx.Err()
		}
		left -= n
	}
	return errors.Join(err, f.Close())
}

// copyOf copies a file, durably where that means something.
func (p *place) copyOf(ctx context.Context, from, to string) error {
	if _, err := command(ctx, "cp", "--reflink=never", from, to); err != nil || p.name == "memory" {
		return err
	}
	_, err := command(ctx, "sync", to)
	return err
}

// warm sees to it that new pages of files in memory are pages the machine has. A virtual machine
// may give what has been free for seconds back to its host (free page reporting of
// virtio_balloon): then the first touch of a page takes ten times as long, and which
// subject pays for it depends on its turn only. What was freed last is given out first.
func (p *place) warm() error {
	if p.name != "memory" {
		return nil
	}
	f, err := os.Create(p.path("warm"))
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, 2*p.size)
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// image is a copy of the base that may be written.
func (p *place) image(ctx context.Context) (string, error) {
	path := p.path("image")
	return path, p.copyOf(ctx, p.base, path)
}

// path is a name that was not used before.
func (p *place) path(word string) string {
	p.images++
	return filepath.Join(p.dir, fmt.Sprintf("%s%d", word, p.images))
}

// sectors is the size of the devices.
func (p *place) sectors() int64 { return p.size / 512 }

// opened is a subject that is ready to be loaded.
type opened struct {
	path string
	bin  string // the build of dmfuse that serves it
	pid  int    // the process that serves it; 0 none
	loop string // the loop device over path that is loaded instead; empty: none
	// behind are others that a request goes through.
	behind []int
	end    cleanups

	flag string // of the daemon that serves it; empty: none
}

// measure runs one load on all its subjects, round by round.
func (p *place) measure(ctx context.Context, l load, rounds int) (row row, err error) {
	row = newRow(p.name, l, p.subjects)
	defer row.sum()
	open := map[string]*opened{}
	defer func() {
		for _, o := range open {
			err = errors.Join(err, o.end.run())
		}
	}()
	for round := range rounds {
		subjects := subjectsOf(p.subjects, p.name, l)
		for i := range subjects {
			s := subjects[(i+round)%len(subjects)]
			if row.failed(s.name) {
				continue
			}
			sample, err := p.once(ctx, s, l, open)
			if ctx.Err() != nil {
				return row, ctx.Err()
			}
			if err != nil && s.bin != "" && !isNotHere(err) {
				return row, fmt.Errorf("%s: %w", s.name, err)
			}
			row.add(s.name, sample, err)
		}
	}
	return row, nil
}

// once is one cell: a fresh subject if it needs to be, else the one of the round
// before.
func (p *place) once(ctx context.Context, s subject, l load, open map[string]*opened) (_ sample, err error) {
	needs := s.needs
	if l.loop {
		needs = append(slices.Clone(needs), "losetup")
	}
	if err := installed(needs...); err != nil {
		return sample{}, err
	}
	o := open[s.name]
	if o == nil {
		o = &opened{bin: s.bin}
		err := s.open(ctx, p, o)
		if err == nil && l.loop {
			o.loop, err = attach(ctx, o)
		}
		if err != nil {
			return sample{}, errors.Join(err, o.end.run())
		}
		if s.once && l.write {
			defer func() { err = errors.Join(err, o.end.run()) }()
		} else {
			open[s.name] = o
		}
	}
	if l.write {
		if err := p.warm(); err != nil {
			return sample{}, err
		}
	}
	return l.run(ctx, o, p.size, p.each)
}

// notHere says why something cannot be had on this machine, which is no failure of
// who needs it.
type notHere string

func (n notHere) Error() string { return string(n) }

func isNotHere(err error) bool {
	_, is := errors.AsType[notHere](err)
	return is
}

// mounted tells whether a file is the root of a mount.
func mounted(path string, before uint64) bool {
	var st syscall.Stat_t
	return syscall.Stat(path, &st) == nil && st.Dev != before
}

// deviceOf is the file system that path lies on.
func deviceOf(path string) uint64 {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return 0
	}
	return st.Dev
}
