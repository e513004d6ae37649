package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
)

// session is what the verbs for people know of the daemon: who it is, and the
// devices with their tables. Without a daemon there are no devices.
type session struct {
	a       *app
	c       *control.Client // nil without a daemon
	v       control.Version
	devices []mapped
	byWord  map[string]int // index into devices of each word that stands for one in a table
}

// mapped is a device with its live table.
type mapped struct {
	control.Info
	lines  []mapper.Line
	status []control.TargetStatus // by loadAll, if asked for
}

// session finds the daemon that runs; exit code 5 when none does.
func (a *app) session(ctx context.Context) (*session, error) {
	c, err := a.client(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{a: a, c: c}
	s.v, err = c.Version(ctx)
	return s, err
}

// look is session for verbs that start a daemon only once all is checked: one
// without a daemon when none runs.
func (a *app) look(ctx context.Context) (*session, error) {
	s, err := a.session(ctx)
	if err != nil && exitCode(err) == exitNoDaemon && !isOtherProtocol(err) {
		return &session{a: a}, nil
	}
	return s, err
}

func isOtherProtocol(err error) bool {
	var e *control.Error
	return errors.As(err, &e) && e.Code == control.CodeProtocol
}

// start starts a daemon when there is none; not for paths that it cannot be told.
func (s *session) start(ctx context.Context, paths ...string) error {
	for _, p := range paths {
		if err := checkText(p); err != nil {
			return err
		}
	}
	if s.c != nil {
		return nil
	}
	c, err := s.a.start(ctx)
	if err != nil {
		return err
	}
	s.c = c
	s.v, err = c.Version(ctx)
	return err
}

// load reads all devices with their tables, in one request.
func (s *session) load(ctx context.Context) error { return s.loadAll(ctx, false) }

// loadAll is load, with the status lines if asked for.
func (s *session) loadAll(ctx context.Context, statuses bool) error {
	if s.c == nil || s.devices != nil {
		return nil
	}
	list, err := s.c.Tables(ctx, statuses)
	if err != nil {
		return err
	}
	if len(list.Tables) != len(list.Devices) || statuses && len(list.Statuses) != len(list.Devices) {
		return fail(exitNoDaemon, control.Errorf(control.CodeProtocol, "the daemon with pid %d is too old to list tables", s.v.PID), "end it and start the present one")
	}
	s.byWord = make(map[string]int, 3*len(list.Devices))
	for i, info := range list.Devices {
		m := mapped{Info: info}
		if m.lines, err = tableLines(list.Tables[i]); err != nil {
			return err
		}
		if statuses {
			m.status = list.Statuses[i]
		}
		for _, word := range []string{info.Name, info.Path, fmt.Sprintf("%d:%d", info.Major, info.Minor)} {
			s.byWord[word] = i
		}
		s.devices = append(s.devices, m)
	}
	return nil
}

// device reads one device with its table; exit code 3 when there is none.
func (s *session) device(ctx context.Context, name string) (mapped, error) {
	if name == "" {
		return mapped{}, errEmptyName()
	}
	if s.c == nil {
		return mapped{}, noSuchDevice(name)
	}
	r, err := s.c.Table(ctx, control.ByName(name), false)
	if errorCode(err) == control.CodeNotFound {
		return mapped{}, fail(exitMissing, &notFound{name, err}, "see which devices there are with: dmfuse ls")
	}
	if err != nil {
		return mapped{}, err
	}
	m := mapped{Info: r.Device}
	m.lines, err = tableLines(r.Targets)
	return m, err
}

// notFound says that there is no device of that name.
type notFound struct {
	name  string
	cause error
}

func (e *notFound) Error() string { return fmt.Sprintf("there is no device %q", e.name) }

func (e *notFound) Unwrap() error { return e.cause }

func noSuchDevice(name string) error {
	return fail(exitMissing, &notFound{name: name}, "see which devices there are with: dmfuse ls")
}

// errorCode is the code of an error of the daemon, empty for others.
func errorCode(err error) control.Code {
	var e *control.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// tableLines splits the lines of a table into words.
func tableLines(targets []control.TargetStatus) ([]mapper.Line, error) {
	var text strings.Builder
	for _, t := range targets {
		fmt.Fprintf(&text, "%d %d %s %s\n", t.Start, t.Length, t.Type, t.Params)
	}
	return mapper.ParseTable(text.String(), mapper.GrammarDmfuse)
}

// only gives the words of the one line of a device whose table is a single
// target of one of the types.
func (m mapped) only(types ...string) ([]string, bool) {
	if len(m.lines) != 1 {
		return nil, false
	}
	for _, t := range types {
		if m.lines[0].Type == t {
			return m.lines[0].Args, true
		}
	}
	return nil, false
}

// isSnapshot says whether the device is a snapshot and nothing else.
func (m mapped) isSnapshot() bool {
	args, ok := m.only(snapshotTypes...)
	return ok && len(args) >= 4
}

// isMerge says whether the device is an origin that a snapshot is merged into.
func (m mapped) isMerge() bool {
	_, ok := m.only("snapshot-merge")
	return ok
}

// snapshotTypes are the targets that show a view of an origin with a COW.
var snapshotTypes = []string{"snapshot", "snapshot-merge"}

// deviceOf finds the device that a word of a table stands for: a name, a path
// in the mount, or a number. It needs load.
func (s *session) deviceOf(word string) (mapped, bool) {
	i, ok := s.byWord[word]
	if !ok {
		return mapped{}, false
	}
	return s.devices[i], true
}

// called finds a device by its name. It needs load.
func (s *session) called(name string) (mapped, bool) {
	m, ok := s.deviceOf(name)
	return m, ok && m.Name == name
}

// originOver finds the live origin device whose lower device is the place. It
// needs load.
func (s *session) originOver(p place) (mapped, bool) {
	for _, m := range s.devices {
		if args, ok := m.only("snapshot-origin"); ok && len(args) == 1 && s.names(args[0], p) {
			return m, true
		}
	}
	return mapped{}, false
}

// names says whether a word of a table stands for the place.
func (s *session) names(word string, p place) bool {
	if m, ok := s.deviceOf(word); ok {
		return p.device != nil && p.device.Name == m.Name
	}
	if p.device != nil {
		return false
	}
	return word == p.path || p.block && word == devNumOf(p.stat.Rdev).String() || filepath.IsAbs(word) && sameFile(word, p)
}

// use is what a device of the daemon does with a place.
type use struct {
	device mapped
	role   string // "origin" (served for writing), "base", "COW", or the type of another target
}

// usesOf lists the devices of the daemon whose tables name the place. It needs
// load.
func (s *session) usesOf(p place) []use {
	var all []use
	for _, m := range s.devices {
		for _, l := range m.lines {
			for i, word := range l.Args {
				if !s.names(word, p) {
					continue
				}
				role := l.Type
				switch {
				case l.Type == "snapshot-origin":
					role = "origin"
				case l.Type == "snapshot-merge" && i == 0:
					role = "origin"
				case m.isSnapshot() && i == 0:
					role = "base"
				case m.isSnapshot() && i == 1:
					role = "COW"
				}
				all = append(all, use{m, role})
			}
		}
	}
	return all
}

// above lists the devices that stand on the device, directly or not, tops
// first. It needs load.
func (s *session) above(name string) []mapped {
	var found []mapped
	seen := map[string]bool{name: true}
	var walk func(name string)
	walk = func(name string) {
		for _, m := range s.devices {
			if seen[m.Name] {
				continue
			}
			for _, l := range m.lines {
				for _, word := range l.Args {
					if d, ok := s.deviceOf(word); ok && d.Name == name && !seen[m.Name] {
						seen[m.Name] = true
						walk(m.Name)
						found = append(found, m)
					}
				}
			}
		}
	}
	walk(name)
	return found
}

// lowestFile is the regular file that a place ends in, following the first
// lower device of each table; false when it ends in something else.
func (s *session) lowestFile(p place) (string, bool) {
	for range 64 { // tables have no loops, but what we read may be changing
		if p.block {
			return "", false
		}
		if p.device == nil {
			return p.path, true
		}
		m, ok := s.deviceOf(p.device.Name)
		if !ok || len(m.lines) == 0 {
			return "", false
		}
		word, ok := firstLower(m.lines[0])
		if !ok {
			return "", false
		}
		next, err := s.findWord(word)
		if err != nil {
			return "", false
		}
		p = next
	}
	return "", false
}

// firstLower is the word of a table line that names its first lower device.
func firstLower(l mapper.Line) (string, bool) {
	at, ok := map[string]int{
		"linear": 0, "snapshot-origin": 0, "snapshot": 0, "snapshot-merge": 0, "striped": 2,
		"flakey": 0, "delay": 0, "dust": 0, "log-writes": 0,
	}[l.Type]
	if !ok || at >= len(l.Args) {
		return "", false
	}
	return l.Args[at], true
}
