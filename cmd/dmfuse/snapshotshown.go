package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/snapshot"
)

// shown is a snapshot that a verb reads: a device of the daemon, or a store
// without one.
type shown struct {
	name   string // as it was given
	live   bool
	origin place // without a path: not known
	chunk  int64 // bytes
	size   int64 // bytes; snapshot.NoSize where the origin is not known
	ranges snapshot.Ranges

	openData   func() (io.ReaderAt, error)
	openOrigin func() (io.ReaderAt, error)
	opened     []blockdev.Device
}

// shownOptions say where the origin of a store is, and how a store is read.
type shownOptions struct {
	origin  string // of a store; empty: as its sidecar says
	damaged bool   // read a store with problems
	whole   bool   // the origin must be known
}

// lookShown is look that keeps why there is no daemon.
func (a *app) lookShown(ctx context.Context) (s *session, none error, err error) {
	s, err = a.session(ctx)
	if err != nil && exitCode(err) == exitNoDaemon && !isOtherProtocol(err) {
		return &session{a: a}, err, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return s, nil, s.loadAll(ctx, true)
}

// show finds the snapshots with these names, of the daemon or stores. What it
// returns is to be closed.
func (a *app) show(ctx context.Context, o shownOptions, words ...string) (all []*shown, err error) {
	s, none, err := a.lookShown(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeShown(all)
			all = nil
		}
	}()
	for _, w := range words {
		p, err := s.find(w)
		if err != nil {
			if none != nil && exitCode(err) == exitMissing {
				err = none
			}
			return all, err
		}
		if len(all) > 0 && s.isOriginOf(p, all[0]) {
			return all, usagef("%s is the origin of %s, and no other snapshot: leave it out, and the origin is what is compared with", w, all[0].name)
		}
		one, err := s.showPlace(ctx, p, w, o)
		if err != nil {
			return all, err
		}
		all = append(all, one)
	}
	return all, sameOrigin(all)
}

// showPlace decides what the place is: a snapshot that runs, or a store.
func (s *session) showPlace(ctx context.Context, p place, word string, o shownOptions) (*shown, error) {
	if p.device != nil {
		m, _ := s.deviceOf(p.device.Name)
		switch {
		case m.isSnapshot() && o.origin != "":
			return nil, usagef("--origin is for a store that no device shows; the origin of %s is known", m.Name)
		case m.isSnapshot():
			return s.showDevice(ctx, m)
		case o.origin == "":
			_, _, err := s.a.snapshotCalled(ctx, m.Name) // says what it is instead
			return nil, err
		}
	}
	return s.showStore(p, word, o)
}

// isOriginOf says whether a place is what a snapshot is of: below its origin
// device, or that device.
func (s *session) isOriginOf(p place, one *shown) bool {
	o := one.origin
	if p.device != nil {
		m, _ := s.deviceOf(p.device.Name)
		if args, ok := m.only("snapshot-origin", "snapshot-merge"); ok && s.names(args[0], o) {
			return true
		}
		return o.device != nil && o.device.Name == p.device.Name
	}
	return o.path != "" && o.device == nil && sameFile(p.path, o)
}

// merging finds the device that merges into an origin.
func (s *session) merging(origin string) (name string, ok bool) {
	for _, m := range s.devices {
		if len(m.lines) == 1 && m.lines[0].Type == "snapshot-merge" && m.lines[0].Args[0] == origin {
			return m.Name, true
		}
	}
	return "", false
}

// showDevice lists a snapshot that runs; the list is of this moment.
func (s *session) showDevice(ctx context.Context, m mapped) (*shown, error) {
	info, err := s.snapshotInfo(m)
	if err != nil {
		return nil, err
	}
	switch {
	case m.lines[0].Type != "snapshot":
		return nil, fail(exitBusy, fmt.Errorf("%s is being merged into its origin", m.Name), "see how far it is with: dmfuse jobs")
	case info.State == "invalid":
		return nil, fail(exitFailed, fmt.Errorf("the snapshot %s is invalid: what it showed is lost", m.Name), "")
	}
	if by, ok := s.merging(m.lines[0].Args[0]); ok {
		// The origin shows what is not below it yet, and its file changes.
		return nil, fail(exitBusy, fmt.Errorf("another snapshot of the origin of %s is being merged into it, as %s", m.Name, by), "wait for the end: dmfuse jobs "+by)
	}
	r := &deviceRanges{s: s, name: m.Name}
	if err := r.fetch(ctx, ""); err != nil {
		return nil, err
	}
	one := &shown{name: m.Name, live: true, chunk: r.page.Chunk.Bytes(), size: r.page.Size.Bytes(), ranges: r}
	if one.origin, err = s.findWord(m.lines[0].Args[0]); err != nil {
		return nil, err
	}
	one.openData = func() (io.ReaderAt, error) { return one.open(m.Info) }
	one.openOrigin = func() (io.ReaderAt, error) {
		if over, ok := s.originOver(one.origin); ok {
			return one.open(over.Info)
		}
		if one.origin.device != nil {
			return one.open(*one.origin.device)
		}
		return one.keep(blockdev.OpenFile(one.origin.path, blockdev.FileOptions{NoLocks: true}))
	}
	return one, nil
}

// open opens a device of the daemon for reading, as any program would.
func (v *shown) open(info control.Info) (io.ReaderAt, error) {
	if info.Suspended {
		return nil, fail(exitBusy, fmt.Errorf("the device %s is suspended", info.Name), "resume it first: dmfuse resume "+shellQuote(info.Name))
	}
	return v.keep(blockdev.OpenFile(info.Path, blockdev.FileOptions{NoLocks: true}))
}

func (v *shown) keep(f *blockdev.File, err error) (io.ReaderAt, error) {
	if err != nil {
		return nil, err
	}
	v.opened = append(v.opened, f)
	return f, nil
}

func closeShown(all []*shown) {
	for _, v := range all {
		for _, d := range v.opened {
			_ = d.Close() // only read from
		}
	}
}

// deviceRanges asks the daemon for a page after the other.
type deviceRanges struct {
	s    *session
	name string
	page snapshot.Listing
	at   int
}

func (r *deviceRanges) fetch(ctx context.Context, cursor string) error {
	words := []string{"exceptions"}
	if cursor != "" {
		words = append(words, cursor)
	}
	text, err := r.s.c.Message(ctx, control.ByName(r.name), 0, words)
	if err == nil {
		r.page, r.at = snapshot.Listing{}, 0
		err = json.Unmarshal([]byte(text), &r.page)
	}
	if err != nil {
		return fmt.Errorf("the changed chunks of %s cannot be listed: %w", r.name, err)
	}
	return nil
}

// Next is the next range.
func (r *deviceRanges) Next(ctx context.Context) (snapshot.Extent, error) {
	for r.at == len(r.page.Runs) {
		if r.page.Next == "" {
			return snapshot.Extent{}, io.EOF
		}
		if err := r.fetch(ctx, r.page.Next); err != nil {
			return snapshot.Extent{}, err
		}
	}
	run, chunk := r.page.Runs[r.at], r.page.Chunk.Bytes()
	r.at++
	off, size := int64(run[0])*chunk, r.page.Size.Bytes()
	return snapshot.Extent{Off: off, Len: min(int64(run[1])*chunk, size-off)}, nil
}

// showStore reads a store that no device shows.
func (s *session) showStore(p place, word string, o shownOptions) (*shown, error) {
	if err := s.checkStoreFree(p, true); err != nil {
		return nil, err
	}
	b, err := s.storeOrigin(p, o)
	if err != nil {
		return nil, err
	}
	one := &shown{name: word, origin: b.lower}
	cow, err := one.openPlace(p)
	if err == nil {
		err = s.judgeStore(p, cow, b, o)
	}
	var origin blockdev.Device
	if err == nil && b.lower.path != "" {
		origin, err = one.openPlace(b.lower)
	}
	var v *snapshot.View
	if err == nil {
		if v, err = snapshot.OpenView(cow, origin, o.damaged); err != nil {
			err = fmt.Errorf("%s cannot be read: %w", p.what(), err)
		}
	}
	if err != nil {
		closeShown([]*shown{one})
		return nil, err
	}
	one.chunk, one.size, one.ranges = v.ChunkBytes(), v.Size(), v.Ranges()
	one.openData = func() (io.ReaderAt, error) { return v, nil }
	one.openOrigin = func() (io.ReaderAt, error) { return origin, nil }
	return one, nil
}

func (v *shown) openPlace(p place) (blockdev.Device, error) {
	d, err := readable(p)
	if err != nil {
		return nil, err
	}
	v.opened = append(v.opened, d)
	return d, nil
}

// storeOrigin finds the origin of a store: as the user says, or its sidecar.
// Without a path: it is not known.
func (s *session) storeOrigin(p place, o shownOptions) (b baseOf, err error) {
	word := o.origin
	if word == "" {
		side, ok, err := readSidecar(p)
		if err == nil && ok && side.Origin != nil {
			word = side.Origin.Path
		}
	}
	if word != "" {
		b.lower, err = s.find(word)
	}
	switch {
	case word == "" || err != nil && o.origin == "":
		if o.whole {
			return b, usagef("the origin of %s is not known: say what it is with --origin ORIGIN", p.what())
		}
		return baseOf{}, nil
	case err != nil:
		return b, err
	}
	if p.device == nil && b.lower.device == nil && sameFile(p.path, b.lower) {
		return b, usagef("the store and its origin are both %s", p.path)
	}
	b.size = int64(b.lower.sectors()) * 512
	return b, s.checkQuiet(b.lower, p)
}

// checkQuiet refuses to read, for a store, an origin that others write.
func (s *session) checkQuiet(p, store place) error {
	for _, u := range s.usesOf(p) {
		if u.role == "base" || u.device.ReadOnly {
			continue
		}
		next := "remove that device first: dmfuse remove " + shellQuote(u.device.Name)
		if u.device.lines[0].Type == "snapshot-origin" {
			next = fmt.Sprintf("open the store as a snapshot of it, and name that: dmfuse snapshot open %s %s", shellQuote(store.path), shellQuote(u.device.Name))
		}
		return fail(exitBusy, fmt.Errorf("%s is used by the %s device %s, which could write to it", p.what(), u.role, u.device.Name), next)
	}
	users, err := s.writersOf(p)
	if err == nil && len(users) > 0 {
		err = busy(p, users, "end this use first")
	}
	return err
}

// judgeStore refuses a store with problems, or of another origin, unless the
// user insists.
func (s *session) judgeStore(p place, cow blockdev.Device, b baseOf, o shownOptions) error {
	report, err := snapshot.CheckStore(cow, blockdev.SectorsIn(b.size))
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", p.what(), err)
	}
	if report.Chunk == 0 {
		return failf(exitFailed, "%s cannot be read: %v", p.what(), report.Err())
	}
	problems := listProblems(report)
	if left, err := hasSession(p); err != nil || left {
		problems = append(problems, "a daemon was killed while it used it, and the last writes may be in its note only: a daemon that starts where that one ran puts them into the store")
	}
	if b.lower.path != "" {
		problems = append(problems, sidecarProblems(p, b)...)
	}
	if len(problems) == 0 {
		return nil
	}
	if !o.damaged {
		return fail(exitFailed, fmt.Errorf("the store on %s is refused:\n  - %s", p.what(), strings.Join(problems, "\n  - ")),
			"to read what can be read, give --damaged")
	}
	for _, text := range problems {
		s.a.note("%s: %s", p.path, text)
	}
	return nil
}

// hasSession tells whether a daemon was killed while it used a store in a file.
func hasSession(p place) (bool, error) {
	if p.device != nil || p.block {
		return false, nil
	}
	return snapshot.HasSession(p.path)
}

// sameOrigin refuses to compare snapshots that have not one origin.
func sameOrigin(all []*shown) error {
	if len(all) < 2 {
		return nil
	}
	x, y := all[0], all[1]
	switch {
	case x.live != y.live:
		dead := x
		if x.live {
			dead = y
		}
		return fail(exitUsage, fmt.Errorf("%s is a store that no device shows, and the other is a device", dead.name), "open it first: dmfuse snapshot open")
	case x.origin.path != "" && y.origin.path != "" && x.origin.path != y.origin.path:
		return failf(exitFailed, "%s and %s are not of one origin: one is of %s, the other of %s", x.name, y.name, x.origin.what(), y.origin.what())
	case x.size != y.size:
		return failf(exitFailed, "%s has %d bytes and %s has %d: only snapshots of one size are compared", x.name, x.size, y.name, y.size)
	}
	return nil
}

// compared is what a diff goes through: the first snapshot against the second,
// or against its origin.
type compared struct {
	all         []*shown
	data, other io.ReaderAt // nil where nothing has to be read
	block       int64       // the smaller chunk size
}

// second is the second snapshot, nil without.
func (c *compared) second() *shown {
	if len(c.all) > 1 {
		return c.all[1]
	}
	return nil
}

// newCompared makes ready to go through the changes; with exact only those whose
// bytes differ.
func newCompared(all []*shown, exact bool) (c *compared, err error) {
	c = &compared{all: all, block: all[0].chunk}
	if two := c.second(); two != nil {
		c.block = min(c.block, two.chunk)
	}
	if !exact {
		return c, nil
	}
	if c.data, err = all[0].openData(); err != nil {
		return nil, err
	}
	if two := c.second(); two != nil {
		c.other, err = two.openData()
	} else {
		c.other, err = all[0].openOrigin()
	}
	return c, err
}

// each calls visit for each change.
func (c *compared) each(ctx context.Context, visit func(snapshot.Change) error) error {
	if c.other != nil {
		visit = snapshot.Exact(c.data, c.other, c.block, visit)
	}
	var second snapshot.Ranges
	if two := c.second(); two != nil {
		second = two.ranges
	}
	err := snapshot.Compare(ctx, c.all[0].ranges, second, visit)
	if errors.Is(err, context.Canceled) {
		return failf(exitFailed, "interrupted")
	}
	return err
}
