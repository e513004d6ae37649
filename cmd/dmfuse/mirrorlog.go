package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mirror"
	"golang.org/x/sys/unix"
)

// mirrorLog is the log of a mirror that is being made.
type mirrorLog struct {
	core    bool
	path    string
	place   place // where it exists already
	exists  bool
	need    int64 // bytes
	regions uint64
	block   int
	keep    bool // a log that fits: what it says counts

	undos []func() error // newest last
}

// planLog chooses the log for a mirror called name of the legs. Nothing is
// changed. What an existing log says is looked at later, with the records.
func (s *session) planLog(wish, name string, legs []place, regions uint64) (*mirrorLog, error) {
	l := &mirrorLog{regions: regions, path: wish}
	switch {
	case wish == "core":
		return &mirrorLog{core: true, regions: regions}, nil
	case wish == "" && (legs[0].device != nil || legs[0].block):
		s.a.note("%s is no regular file, so there is no place beside it for the log: it is kept in memory, and everything is copied again after each restart. To have it on a disk give --log FILE", legs[0].what())
		return &mirrorLog{core: true, regions: regions}, nil
	case wish == "":
		l.path = legs[0].path + "." + name + ".log"
	}
	if err := s.findLog(l); err != nil {
		return nil, err
	}
	l.block = blockOf(l.place)
	l.need = mirror.LogSize(regions, l.block)
	if !l.exists {
		return l, checkDir(l.path, "log")
	}
	return l, s.checkLogFree(l, legs)
}

// findLog looks whether the log exists.
func (s *session) findLog(l *mirrorLog) error {
	p, err := s.find(l.path)
	if err == nil {
		l.place, l.exists, l.path = p, true, p.path
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) && exitCode(err) != exitMissing {
		return err
	}
	l.path, err = cleanAbs(l.path)
	if s.c != nil && within(s.v.Mount, l.path) {
		return failf(exitMissing, "%s is in the mount of the daemon, where files cannot be made; no device has that name", l.path)
	}
	return err
}

// checkLogFree refuses a log that is a leg, too small, or in use.
func (s *session) checkLogFree(l *mirrorLog, legs []place) error {
	p := l.place
	for _, leg := range legs {
		if samePlace(leg, p) {
			return usagef("%s is a leg and cannot be the log as well", p.what())
		}
	}
	if (p.device != nil || p.block) && p.size < l.need {
		return fail(exitFailed, fmt.Errorf("%s is too small for the log: it has %d bytes, %d regions need %d", p.what(), p.size, l.regions, l.need),
			"give a larger one, or larger regions with --region-size")
	}
	for _, u := range s.usesOf(p) {
		return fail(exitBusy, fmt.Errorf("%s cannot be the log: the %s device %s uses it", p.what(), u.role, u.device.Name), "choose another file with --log")
	}
	users, err := s.writersOf(p)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return busy(p, users, "choose another file with --log")
	}
	return nil
}

// logContents is what an existing log holds.
type logContents struct {
	blank  bool
	made   bool // by mirror create
	report mirror.LogReport
}

// contents looks at the log. One that cannot be read as a log has problems in
// its report.
func (l *mirrorLog) contents() (logContents, error) {
	blank, err := isBlank(l.place)
	if err != nil || blank {
		return logContents{blank: blank}, err
	}
	dev, err := blockdev.OpenFile(l.path, blockdev.FileOptions{NoLocks: true})
	if err != nil {
		return logContents{}, err
	}
	defer dev.Close()
	r, err := mirror.CheckLog(dev, 0)
	if err != nil {
		return logContents{}, err
	}
	made, err := mirror.Made(dev)
	return logContents{report: r, made: made}, err
}

// decide says what becomes of a log that exists. fits is whether a record says
// that it is the log of this very mirror.
func (l *mirrorLog) decide(c logContents, fits, force bool) error {
	r := c.report
	switch {
	case c.blank:
		return nil
	case fits && !r.Damaged() && r.Header.Regions == l.regions:
		l.keep = true
		return nil
	case force:
		return nil
	}
	const next = "choose another file with --log, or begin a new log in its place with --force"
	what := l.place.what()
	switch {
	case !r.Header.Known():
		return fail(exitBusy, fmt.Errorf("%s is not empty and no log of a mirror: it holds %s", what, l.place.holds()), next)
	case r.Header.Regions != l.regions:
		return fail(exitBusy, fmt.Errorf("%s is the log of another mirror: it has %d regions, this mirror %d", what, r.Header.Regions, l.regions), next)
	case r.Damaged():
		return fail(exitBusy, fmt.Errorf("%s: %w", l.path, r.Err()), next)
	}
	return fail(exitBusy, fmt.Errorf("%s is a log with %d regions, and no record says that it belongs to these legs", what, r.Header.Regions),
		"if it does, make the device from a table line, as dmsetup would; else "+next)
}

// make brings a new log into being, durably, in sync where clean says so. One
// that is kept stays as it is.
func (l *mirrorLog) make(clean bool) error {
	if l.core || l.keep {
		return nil
	}
	image := mirror.NewLog(l.regions, l.block, clean)
	if !l.exists {
		mirror.MarkMade(image)
		return l.makeNew(image)
	}
	f, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	l.undos = append(l.undos, func() error { return l.wipe() })
	if _, err := f.WriteAt(image, 0); err != nil {
		return fmt.Errorf("the log %s cannot be written: %w", l.path, err)
	}
	return f.Sync()
}

// wipe makes an existing log that was written blank again. What it held before,
// if it was overwritten by force, does not come back.
func (l *mirrorLog) wipe() error {
	f, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if l.place.device != nil || l.place.block {
		return errors.Join(zeroStart(f, l.need), f.Sync())
	}
	return errors.Join(f.Truncate(0), f.Truncate(l.place.size), f.Sync())
}

// makeNew makes the file, for its owner alone. It has all its blocks, so that a
// full disk is noticed now and not at a write, and the mark that lets mirror rm
// delete it.
func (l *mirrorLog) makeNew(image []byte) error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("the log cannot be made: %w", err)
	}
	defer f.Close()
	l.undos = append(l.undos, func() error { return os.Remove(l.path) })
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(len(image))); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("the log %s of %d bytes cannot be made: %w", l.path, len(image), err)
	}
	if _, err := f.WriteAt(image, 0); err != nil {
		return fmt.Errorf("the log %s cannot be written: %w", l.path, err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return blockdev.SyncPath(filepath.Dir(l.path))
}

// undo takes back what was done for the log, newest first.
func (l *mirrorLog) undo() error {
	var errs []error
	for i := len(l.undos) - 1; i >= 0; i-- {
		if err := l.undos[i](); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	l.undos = nil
	return errors.Join(errs...)
}
