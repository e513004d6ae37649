package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/dmfuse/dmfuse/fs/fstest"
)

// Names of the subjects that aims and ratios refer to.
const (
	nameFile     = "the file itself"
	nameGoFuse   = "go-fuse pread/pwrite"
	nameSnap4k   = "dmfuse snapshot 4k"
	nameSnap64k  = "dmfuse snapshot 64k"
	nameLazy     = "dmfuse snapshot 4k, answers first"
	nameRaw      = "qemu raw"
	nameQcow64k  = "qcow2 64k"
	nameQcow4k   = "qcow2 4k"
	nameQcow128k = "qcow2 128k extended_l2"
	nameLinear   = "dmfuse linear"
	nameMirror   = "dmfuse mirror, 2 legs"
	nameMirror1  = "dmfuse mirror, 1 leg read"
	nameOrigin1  = "dmfuse origin, 1 snapshot 4k"
	nameOrigin2  = "dmfuse origin, 2 snapshots 4k"
	nameOrigin4  = "dmfuse origin, 4 snapshots 4k"
	nameOrigin8  = "dmfuse origin, 8 snapshots 4k"
	nameHalf     = "dmfuse snapshot 4k, half"
	nameFull     = "dmfuse snapshot 4k, full"
	nameQcowFull = "qcow2 64k, full"
	nameOrigin0  = "dmfuse origin, 0 snapshots"
	nameBefore   = "qemu copy-before-write"
	// nameBeforeSync saves durably, as an origin does.
	nameBeforeSync = "qemu copy-before-write, O_SYNC"
)

// subject is one of those that are compared.
type subject struct {
	name  string
	bin   string   // the build of dmfuse, if it is that
	needs []string // programs
	// once: a write changes it for good, so that the next round needs another.
	once bool
	// writes: it has nothing of its own to show for a read.
	writes bool
	// reads: likewise for a write.
	reads bool
	// origin: it belongs to the loads of origins; only: to no others.
	origin, only bool
	// disk: likewise in memory.
	disk bool
	// memory: on a disk it would show nothing that others do not.
	memory bool
	// written: everything, or half, was written before. For loads that write
	// again, and for reads that are compared with those of what is untouched.
	written bool
	// whole: of written, everything.
	whole bool
	// loop: it belongs to the loads through a loop device.
	loop bool
	// mode is how it holds what is written: its cache, and when it is durable.
	mode string
	open func(ctx context.Context, p *place, o *opened) error
}

// subjects are all of them, in the order of the table.
func subjects(o options) []subject {
	var list []subject
	for _, s := range peers() {
		if s.name != nameGoFuse && !o.who.MatchString(s.name) {
			continue
		}
		if s.bin == "" {
			list = append(list, s)
			continue
		}
		s.bin = o.bin
		list = append(list, s)
		if o.old != "" {
			s.name, s.bin = oldWord+s.name, o.old
			list = append(list, s)
		}
	}
	return list
}

// oldWord begins the names of the subjects of another build.
const oldWord = "old "

// overURingWord ends the names of those whose requests come over io_uring.
const overURingWord = ", io_uring"

// aloneWord ends the names of those that are served by one process, without a
// keeper.
const aloneWord = ", no keeper"

// ours marks the subjects whose build subjects fills in.
const ours = "dmfuse"

// How subjects hold what is written. Their own cache is the page cache, that is
// none of fio: fio's requests are direct.
const (
	modeDirect   = "O_DIRECT; durable when flushed"
	modeFlushed  = "page cache; durable when flushed"
	modeAnswered = "page cache; first write durable with its metadata when answered, else when flushed"
	modeSaved    = "page cache; what is saved is durable before the write, that when flushed"
	modeNotSaved = "page cache; what is saved is not made durable, the write when flushed"
	modeLogged   = "page cache; the mark in the log is durable before the write, that when flushed"
	modeNever    = "page cache; not made durable by a flush"
)

// modeOf is the mode of the subject of a name, empty if there is none.
func modeOf(name string) string {
	for _, s := range peers() {
		if s.name == name {
			return s.mode
		}
	}
	return ""
}

// throughLoop begins the mode of what lies below a loop device.
const throughLoop = "loop device with direct I/O; "

func peers() []subject {
	fuse := []string{"qemu-storage-daemon", "qemu-img"}
	return []subject{
		{name: nameFile, loop: true, mode: modeDirect, open: openFile},
		{name: nameGoFuse, loop: true, mode: modeFlushed, open: openGoFuse},
		{name: nameLinear, bin: ours, loop: true, mode: modeFlushed, open: openTable(linear)},
		{name: nameLinear + overURingWord, bin: ours, memory: true, mode: modeFlushed, open: served(uring, openTable(linear))},
		{name: nameLinear + aloneWord, bin: ours, memory: true, mode: modeFlushed, open: served(alone, openTable(linear))},
		{name: nameMirror, bin: ours, mode: modeLogged, open: openMirror("load")},
		{name: nameMirror1, bin: ours, reads: true, mode: modeLogged, open: openMirror("default")},
		{name: nameSnap4k, bin: ours, once: true, loop: true, mode: modeAnswered, open: openTable(snapshotTable(8))},
		{name: nameSnap4k + overURingWord, bin: ours, once: true, memory: true, mode: modeAnswered, open: served(uring, openTable(snapshotTable(8)))},
		{name: nameSnap4k + aloneWord, bin: ours, once: true, memory: true, mode: modeAnswered, open: served(alone, openTable(snapshotTable(8)))},
		{name: nameSnap64k, bin: ours, once: true, writes: true, mode: modeAnswered, open: openTable(snapshotTable(128))},
		{name: nameLazy, bin: ours, once: true, writes: true, mode: modeFlushed, open: openLazy(openTable(snapshotTable(8)))},
		{name: nameOrigin0, bin: ours, memory: true, mode: modeFlushed, open: openOrigin(0)},
		{name: nameOrigin1, bin: ours, once: true, origin: true, mode: modeSaved, open: openOrigin(1)},
		{name: nameOrigin2, bin: ours, once: true, origin: true, only: true, mode: modeSaved, open: openOrigin(2)},
		{name: nameOrigin4, bin: ours, once: true, origin: true, only: true, mode: modeSaved, open: openOrigin(4)},
		{name: nameOrigin8, bin: ours, once: true, origin: true, only: true, mode: modeSaved, open: openOrigin(8)},
		{name: nameHalf, bin: ours, memory: true, written: true, mode: modeAnswered, open: openWritten(openTable(snapshotTable(8)), 4<<10, 2)},
		{name: nameFull, bin: ours, written: true, whole: true, mode: modeFlushed, open: openWritten(openTable(snapshotTable(8)), 1<<20, 1)},
		{name: nameFull + overURingWord, bin: ours, writes: true, written: true, whole: true, memory: true, mode: modeFlushed, open: openWritten(served(uring, openTable(snapshotTable(8))), 1<<20, 1)},
		{name: nameBefore, needs: fuse, once: true, writes: true, mode: modeNotSaved, open: openBefore(false)},
		{name: nameBeforeSync, needs: []string{"qemu-storage-daemon", "qemu-img", "chattr"}, once: true, writes: true, disk: true, mode: modeSaved, open: openBefore(true)},
		{name: nameRaw, needs: fuse, memory: true, mode: modeFlushed, open: openRaw},
		{name: nameQcow64k, needs: fuse, once: true, loop: true, mode: modeFlushed, open: openQcow("cluster_size=64k")},
		{name: nameQcow4k, needs: fuse, once: true, loop: true, mode: modeFlushed, open: openQcow("cluster_size=4k")},
		{name: nameQcow128k, needs: fuse, once: true, writes: true, memory: true, mode: modeFlushed, open: openQcow("cluster_size=128k,extended_l2=on")},
		{name: nameQcowFull, needs: fuse, written: true, whole: true, mode: modeFlushed, open: openWritten(openQcow("cluster_size=64k"), 1<<20, 1)},
		{name: "nbdfuse, nbdkit cow", needs: []string{"nbdfuse", "nbdkit"}, once: true, memory: true, mode: modeNever, open: openNBD},
		{name: "nbdfuse, qemu-nbd qcow2 64k", needs: []string{"nbdfuse", "qemu-nbd", "qemu-img"}, once: true, mode: modeFlushed, open: openQemuNBD},
		{name: "xmount --cache", needs: []string{"xmount"}, once: true, memory: true, mode: modeNever, open: openXmount},
	}
}

// subjectsOf are those that a load runs on.
func subjectsOf(all []subject, place string, l load) []subject {
	var list []subject
	for _, s := range all {
		if s.suits(place, l) {
			list = append(list, s)
		}
	}
	return list
}

func (s subject) suits(place string, l load) bool {
	if s.memory && place != "memory" || s.disk && place != "disk" {
		return false
	}
	switch {
	case l.loop && !s.loop:
		return false
	case l.origin || s.only:
		return l.origin && s.origin
	case l.again || l.mixed:
		return s.whole || !s.once && !s.reads && !s.written
	case l.write:
		return !s.reads && !s.written
	}
	return !s.writes
}

// openFile is the file without anything between: the ceiling.
func openFile(ctx context.Context, p *place, o *opened) (err error) {
	o.path, err = p.image(ctx)
	o.end.add(func() error { return os.Remove(o.path) })
	return err
}

// passthroughWord makes this program a FUSE server.
const passthroughWord = "passthrough"

// openGoFuse is a go-fuse server that does nothing but pread and pwrite, in a
// process of its own: the best that go-fuse allows.
func openGoFuse(ctx context.Context, p *place, o *opened) error {
	image, err := p.image(ctx)
	if err != nil {
		return err
	}
	o.end.add(func() error { return os.Remove(image) })
	dir := p.path("plain")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	cmd := exec.Command(p.self, passthroughWord, image, dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	s, err := start(cmd)
	if err != nil {
		return err
	}
	o.end.add(func() error {
		_ = stdin.Close()
		<-s.ended
		if !s.cmd.ProcessState.Success() {
			return errors.New("passthrough: " + lastLine(s.errs.String()))
		}
		return os.Remove(dir)
	})
	before := deviceOf(p.dir)
	o.path, o.pid = dir+"/file", s.cmd.Process.Pid
	return s.until(ctx, func() bool { return mounted(dir, before) })
}

// passthrough is the server: it ends when its standard input does, and so when
// whoever started it is gone.
func passthrough(image, dir string) error {
	signal.Ignore(syscall.SIGTERM)
	f, err := fstest.MountPlain(image, dir)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, f.Close())
}
