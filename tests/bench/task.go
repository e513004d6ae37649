package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"golang.org/x/sys/unix"
)

// task is a row that is no load of fio: something is done once in a round by each
// subject, and the time it takes is the figure.
type task struct {
	name     string
	unit     string // "MB/s", "1/s", "ms" or "KiB"
	places   []string
	subjects []taskSubject
}

// taskSubject is one way to do a task. do prepares what it needs and returns the
// figure.
type taskSubject struct {
	name  string
	ours  bool // a failure ends the run
	needs []string
	do    taskDo
}

type taskDo func(ctx context.Context, p *place, o options) (float64, error)

// Names of the ways to copy a file to another.
const (
	nameDD           = "dd bs=1M"
	nameConvert      = "qemu-img convert"
	nameCp           = "cp"
	nameNBDCopy      = "nbdcopy"
	nameResync       = "dmfuse resync"
	nameSparseResync = "dmfuse resync, sparse"
	nameSparseNew    = "dmfuse resync, sparse, new"
	nameFirstByte    = "dmfuse mirror"
	nameCreate       = "dmfuse create, median"
	nameIdle         = "dmfuse, each device"
)

// tasks are all of them.
func tasks() []task {
	both := []string{"memory", "disk"}
	return slices.Concat(fsTasks(), scaleTasks(), []task{
		{"resync", "MB/s", both, copies(func(do taskDo) taskDo { return do })},
		{"copy-4GiB", "MB/s", []string{"memory"}, copies(of4GiB)},
		{"resync-sparse", "MB/s", both, []taskSubject{
			{nameDD, false, []string{"dd"}, copyTask(true, withDD)},
			{nameConvert, false, []string{"qemu-img"}, copyTask(true, withConvert)},
			{nameResync, true, nil, copyTask(false, withMirror)},
			{nameSparseResync, true, nil, copyTask(true, withMirror)},
			{nameSparseNew, true, nil, copyTask(true, toNew(withMirror))},
		}},
		{"merge", "MB/s", both, []taskSubject{
			{nameCommit, false, []string{"qemu-img", "qemu-io"}, mergeTask(withCommit)},
			{nameMerge64k, true, nil, mergeTask(withMerge(128, nil))},
			{nameMerge4k, true, nil, mergeTask(withMerge(8, nil))},
		}},
		besideTask(),
		{"first-byte-1TiB", "ms", both, []taskSubject{{nameFirstByte, true, nil, firstByte}}},
		{"open-10M", "ms", []string{"memory"}, []taskSubject{
			{nameOpenRandom, true, nil, openStore(false)},
			{nameOpenSequential, true, nil, openStore(true)},
		}},
		{"worker-killed", "ms", []string{"memory"}, []taskSubject{
			{namePauseIdle, true, nil, pause(0, false)},
			{namePauseBusy, true, nil, pause(1_000_000, true)},
		}},
	})
}

// copies are all ways to copy the base, each in its setting.
func copies(in func(taskDo) taskDo) []taskSubject {
	return []taskSubject{
		{nameDD, false, []string{"dd"}, in(copyTask(false, withDD))},
		{nameCp, false, []string{"cp"}, in(copyTask(false, withCp))},
		{nameNBDCopy, false, []string{"nbdcopy"}, in(copyTask(false, withNBDCopy))},
		{nameConvert, false, []string{"qemu-img"}, in(copyTask(false, withConvert))},
		{nameResync, true, nil, in(copyTask(false, withMirror))},
	}
}

// taskMode is the mode of a subject of a task, empty where nothing is written.
func taskMode(place, task, subject string) string {
	switch mode := modeOf(subject); {
	case mode != "": // below a file system
		return throughLoop + mode
	case task == "merge", task == "copy-4GiB", strings.HasPrefix(task, "resync"):
		if place == "disk" {
			return "page cache; until the copy is durable"
		}
		return "page cache"
	}
	return ""
}

// newTaskRow is its row without samples.
func newTaskRow(place string, k task) row {
	r := row{Place: place, Load: k.name, Unit: k.unit, Base: k.subjects[0].name}
	for _, s := range k.subjects {
		r.Cells = append(r.Cells, cell{Subject: s.name, Mode: taskMode(place, k.name, s.name)})
	}
	return r
}

// do runs a task in rounds, the subjects in turn.
func (p *place) do(ctx context.Context, k task, o options) (row row, err error) {
	row = newTaskRow(p.name, k)
	defer row.sum()
	for round := range o.rounds {
		for i := range k.subjects {
			s := k.subjects[(i+round)%len(k.subjects)]
			if row.failed(s.name) {
				continue
			}
			err := errors.Join(installed(s.needs...), p.warm())
			var figure float64
			if err == nil {
				figure, err = s.do(ctx, p, o)
			}
			if ctx.Err() != nil {
				return row, ctx.Err()
			}
			if err != nil && s.ours && !isNotHere(err) {
				return row, fmt.Errorf("%s: %w", s.name, err)
			}
			row.add(s.name, sample{Figure: figure}, err)
		}
	}
	return row, nil
}

// copier copies src to dst, durably where that means something, and returns the
// time it took.
type copier func(ctx context.Context, p *place, o options, src, dst string) (time.Duration, error)

// copyTask copies the base, or a file of its size of which one part in 256 is
// data, over a file that is full of other data.
func copyTask(sparse bool, with copier) taskDo {
	return func(ctx context.Context, p *place, o options) (_ float64, err error) {
		src := p.base
		if sparse {
			src = p.path("sparse")
			defer func() { err = errors.Join(err, os.Remove(src)) }()
			if err := p.sparse(src); err != nil {
				return 0, err
			}
		}
		dst, err := p.image(ctx)
		defer func() { err = errors.Join(err, os.Remove(dst)) }()
		if err != nil {
			return 0, err
		}
		used, err := with(ctx, p, o, src, dst)
		return float64(p.size) / 1e6 / used.Seconds(), err
	}
}

// of4GiB does a task with a base of 4 GiB, whatever the size of the devices is.
func of4GiB(do taskDo) taskDo {
	return func(ctx context.Context, p *place, o options) (float64, error) {
		const size = 4 << 30
		need := int64(size + size/8) // the copy, and what others ask for meanwhile
		if p.larger == nil {
			need += size
		}
		if err := p.room(need); err != nil {
			return 0, err
		}
		if p.larger == nil {
			if _, err := p.daemonOf(o.bin); err != nil { // it ends with p
				return 0, err
			}
			q := &place{name: p.name, dir: filepath.Join(p.dir, "larger"), size: size, each: p.each, self: p.self, daemons: p.daemons}
			q.base = filepath.Join(q.dir, "base")
			if err := os.Mkdir(q.dir, 0o700); err != nil {
				return 0, err
			}
			if err := q.fill(ctx); err != nil {
				return 0, errors.Join(err, os.RemoveAll(q.dir))
			}
			p.larger = q
		}
		return do(ctx, p.larger, o)
	}
}

// toNew copies to a file without any data instead, as a new leg is: the other is
// full, and giving back its blocks takes as long as it takes.
func toNew(with copier) copier {
	return func(ctx context.Context, p *place, o options, src, dst string) (time.Duration, error) {
		if err := errors.Join(os.Truncate(dst, 0), os.Truncate(dst, p.size)); err != nil {
			return 0, err
		}
		return with(ctx, p, o, src, dst)
	}
}

// sparse makes a file with data at its beginning, in the middle and at the end.
func (p *place) sparse(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	data := make([]byte, p.size/768)
	for i := range data {
		data[i] = byte(i) | 1
	}
	err = f.Truncate(p.size)
	for _, at := range []int64{0, p.size / 2, p.size - int64(len(data))} {
		_, werr := f.WriteAt(data, at)
		err = errors.Join(err, werr)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func withDD(ctx context.Context, p *place, _ options, src, dst string) (time.Duration, error) {
	conv := "conv=notrunc"
	if p.name != "memory" {
		conv += ",fdatasync"
	}
	begin := time.Now()
	_, err := command(ctx, "dd", "if="+src, "of="+dst, "bs=1M", conv)
	return time.Since(begin), err
}

func withCp(ctx context.Context, p *place, _ options, src, dst string) (time.Duration, error) {
	begin := time.Now()
	_, err := command(ctx, "cp", "--reflink=never", src, dst)
	if err == nil && p.name != "memory" {
		err = syncFile(dst)
	}
	return time.Since(begin), err
}

func withNBDCopy(ctx context.Context, p *place, _ options, src, dst string) (time.Duration, error) {
	args := []string{src, dst}
	if p.name != "memory" {
		args = append([]string{"--flush"}, args...)
	}
	begin := time.Now()
	_, err := command(ctx, "nbdcopy", args...)
	return time.Since(begin), err
}

func withConvert(ctx context.Context, _ *place, _ options, src, dst string) (time.Duration, error) {
	begin := time.Now()
	_, err := command(ctx, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-t", "writeback", src, dst)
	return time.Since(begin), err
}

var syncCount = regexp.MustCompile(` (\d+)/(\d+) 1 `)

// withMirror makes a mirror of the two files and takes the time from its resume
// until it says that it is in sync; on a disk, until the destination is durable.
func withMirror(ctx context.Context, p *place, o options, src, dst string) (time.Duration, error) {
	return resync(ctx, p, o, src, dst, nil)
}

// resync is withMirror with something done meanwhile, or nil.
func resync(ctx context.Context, p *place, o options, src, dst string, beside meanwhile) (used time.Duration, err error) {
	d, err := p.daemonOf(o.bin)
	if err != nil {
		return 0, err
	}
	c := control.NewClient(filepath.Join(d.run, "control.sock"))
	defer c.Close()
	name := filepath.Base(p.path("resync"))
	key := control.Key{Name: name}
	defer func() { err = errors.Join(err, d.do(context.WithoutCancel(ctx), "remove", name)) }()
	if err := d.do(ctx, "create", name, "--notable"); err != nil {
		return 0, err
	}
	if err := d.do(ctx, "load", name, "--table", fmt.Sprintf("0 %d mirror core 1 1024 2 %s 0 %s 0", p.sectors(), src, dst)); err != nil {
		return 0, err
	}
	if _, err := c.Info(ctx, key, false); err != nil { // connects
		return 0, err
	}
	begin := time.Now()
	if _, err := c.Do(ctx, control.Step{Op: control.OpResume, Key: key}); err != nil {
		return 0, err
	}
	stop := func() error { return nil }
	if beside != nil {
		if stop, err = beside(d.file(name)); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, stop()) }()
	}
	for {
		info, err := c.Info(ctx, key, false)
		if err != nil {
			return 0, err
		}
		st, err := c.Status(ctx, key, false, true)
		if err != nil {
			return 0, err
		}
		if len(st.Targets) != 1 {
			return 0, fmt.Errorf("%d targets", len(st.Targets))
		}
		w := syncCount.FindStringSubmatch(st.Targets[0].Params)
		if w == nil {
			return 0, fmt.Errorf("status %q", st.Targets[0].Params)
		}
		if w[1] == w[2] {
			break
		}
		if _, err := c.Wait(ctx, key, info.EventNr); err != nil {
			return 0, err
		}
	}
	if err := stop(); err != nil {
		return 0, err
	}
	if p.name != "memory" {
		if err := syncFile(dst); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fdatasync(int(f.Fd())), f.Close())
}

// firstByte is the time from the command that makes a mirror of 1 TiB, of sparse
// files that are taken for equal, to the first byte read.
func firstByte(ctx context.Context, p *place, o options) (_ float64, err error) {
	const size = 1 << 40
	d, err := p.daemonOf(o.bin)
	if err != nil {
		return 0, err
	}
	var end cleanups
	defer func() { err = errors.Join(err, end.run()) }()
	var files []string
	for _, word := range []string{"big", "big"} {
		path := p.path(word)
		end.add(func() error { return os.RemoveAll(path) })
		f, err := os.Create(path)
		if err == nil {
			err = errors.Join(f.Truncate(size), f.Close())
		}
		if err != nil {
			return 0, err
		}
		files = append(files, path)
	}
	name := filepath.Base(p.path("big"))
	args := []string{"mirror", "create", name, files[0], files[1], "--nosync"}
	end.add(func() error { return os.RemoveAll(files[0] + "." + name + ".log") })
	begin := time.Now()
	if err := d.do(ctx, args...); err != nil {
		return 0, err
	}
	end.add(func() error { return d.do(context.WithoutCancel(ctx), "remove", name) })
	f, err := os.Open(d.file(name))
	if err != nil {
		return 0, err
	}
	end.add(f.Close)
	if _, err := f.Read(make([]byte, 4096)); err != nil {
		return 0, err
	}
	return float64(time.Since(begin).Microseconds()) / 1000, nil
}
