package mapper

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

// lowerRef is one lower device that a table has open.
type lowerRef struct {
	target.Lower
	mode   target.Mode
	mapped *Device // nil for a file or block device
	path   string  // the word it was opened by, where that is a path
	undo   func()  // takes back what the graph knows
}

func (l *lowerRef) close() error {
	err := l.Lower.Close()
	l.undo()
	return err
}

// builder makes one table.
type builder struct {
	d        *Device
	t        *table
	restored *recordTable                    // while a restart makes the table: its record
	waiting  bool                            // while a restart makes the table: for the inactive slot
	waits    atomic.Pointer[context.Context] // ends waits on lower devices without a context
	mixed    string                          // name of an immutable type that was seen
	single   string                          // name of a singleton type that was seen
}

// build makes a table or leaves nothing behind.
func (d *Device) build(ctx context.Context, lines []Line, readOnly bool) (*table, error) {
	return d.buildWith(ctx, lines, &builder{d: d, t: &table{dev: d, readOnly: readOnly}})
}

// rebuild is build for a restart, from what was recorded; waiting says that it is
// the inactive table.
func (d *Device) rebuild(ctx context.Context, lines []Line, from *recordTable, waiting bool) (*table, error) {
	return d.buildWith(ctx, lines, &builder{d: d, t: &table{dev: d, readOnly: from.ReadOnly}, restored: from, waiting: waiting})
}

func (d *Device) buildWith(ctx context.Context, lines []Line, b *builder) (*table, error) {
	switch {
	case len(lines) == 0:
		return nil, invalid("a table needs at least one line")
	case len(lines) > maxTargets:
		return nil, invalid("a table of %d lines; at most %d are possible", len(lines), maxTargets)
	}
	b.waits.Store(&ctx)
	for i, l := range lines {
		if err := b.add(l); err != nil {
			_ = b.t.closeAll()
			return nil, &TableError{Line: i + 1, Type: l.Type, Err: err}
		}
	}
	b.waits.Store(&d.m.life)
	b.t.finish()
	return b.t, nil
}

// add makes one target, with the kernel's checks in its order (kernel:
// dm_table_add_target).
func (b *builder) add(l Line) error {
	if l.Length == 0 {
		return invalid("a segment of zero length")
	}
	typ, ok := b.d.m.types.Lookup(l.Type)
	if !ok {
		return invalid("unknown target type %q", l.Type)
	}
	if err := b.mayJoin(typ); err != nil {
		return err
	}
	want := blockdev.Sector(0)
	if n := len(b.t.segs); n > 0 {
		want = blockdev.SectorsIn(b.t.segs[n-1].end)
	}
	if l.Start != want {
		return invalid("the segment starts at sector %d, expected %d (no gaps, no overlap)", l.Start, want)
	}
	if l.Length > maxSectors || l.Start > maxSectors-l.Length {
		return invalid("the segment ends after the largest sector, %d", uint64(maxSectors))
	}
	return b.make(typ, l)
}

// mayJoin refuses a type that must be alone, or cannot be mixed, next to others.
func (b *builder) mayJoin(typ target.Type) error {
	n := len(b.t.segs)
	switch {
	case typ.Singleton && n > 0:
		return invalid("target type %s must be alone in its table", typ.Name)
	case b.single != "":
		return invalid("target type %s must be alone in its table", b.single)
	case b.mixed != "" && b.mixed != typ.Name:
		return invalid("target type %s cannot be mixed with others", b.mixed)
	case typ.Immutable && n > 0 && b.mixed == "":
		return invalid("target type %s cannot be mixed with others", typ.Name)
	}
	if typ.Singleton {
		b.single = typ.Name
	}
	if typ.Immutable {
		b.mixed = typ.Name
	}
	return nil
}

func (b *builder) make(typ target.Type, l Line) error {
	t := b.t
	env := &target.Env{
		Start: l.Start, Length: l.Length, ReadOnly: t.readOnly, Restoring: b.restored != nil, Waiting: b.waiting,
		Broken: b.restored.isBroken(len(t.segs)), Remembered: b.restored.memory(len(t.segs)),
		Record: b.d.record,
		Device: b.d.Name(),
		Open:   b.open,
		Event: func() {
			if t.live.Load() {
				t.dev.targetEvent()
			}
		},
		Tell: func(text string) {
			if t.live.Load() {
				t.dev.report(EventTarget, text)
			}
		},
		Log: b.d.m.log.WithFields(logrus.Fields{"device": b.d.Name(), "target": typ.Name}),
	}
	tgt, err := typ.New(env, l.Args)
	if err != nil {
		return err
	}
	t.segs = append(t.segs, segment{
		start: l.Start.Bytes(), end: (l.Start + l.Length).Bytes(),
		line: l, typ: typ, target: tgt,
	})
	return nil
}

// open opens a lower device for a target. A device that the table has already,
// in a sufficient mode, is given again.
func (b *builder) open(name string, mode target.Mode) (target.Lower, error) {
	l, err := b.d.m.openLower(b, name, mode)
	if err != nil {
		return nil, err
	}
	for _, o := range b.t.lowers {
		if o.ID() == l.ID() && o.mode >= mode {
			return o.Lower, l.close()
		}
	}
	b.t.lowers = append(b.t.lowers, l)
	return l.Lower, nil
}

func (b *builder) wait() context.Context { return *b.waits.Load() }

// openLower finds what a word of a table names and opens it.
func (m *Manager) openLower(b *builder, word string, mode target.Mode) (*lowerRef, error) {
	if major, minor, ok := parseNumber(word); ok {
		return m.openNumber(b, word, major, minor, mode)
	}
	d, in := m.deviceOfWord(word)
	switch {
	case d != nil:
		return m.openMapped(b, d, mode)
	case in:
		return nil, fmt.Errorf("%w: %q leads into the daemon's own mount, and no device has that name", blockdev.ErrNoDevice, word)
	case !filepath.IsAbs(word):
		return nil, fmt.Errorf("%w: %q is neither the name of a device, an absolute path, nor major:minor", blockdev.ErrNoDevice, word)
	case m.o.OpenLower == nil:
		return nil, fmt.Errorf("%w: %q", blockdev.ErrNoDevice, word)
	}
	l, err := m.o.OpenLower(word, mode == target.ReadWrite)
	if err != nil {
		return nil, err
	}
	return m.openOther(b, l, word, mode)
}

// deviceOfWord finds the device that a name, or a path in the mount, stands
// for. in says that the word is a path into the mount.
func (m *Manager) deviceOfWord(word string) (d *Device, in bool) {
	name := word
	if strings.Contains(word, "/") {
		if name, in = m.inMount(word); !in {
			return nil, false
		}
	}
	d, err := m.Device(ByName(name))
	if err != nil {
		return nil, in
	}
	return d, in
}

func (m *Manager) openNumber(b *builder, word string, major, minor uint32, mode target.Mode) (*lowerRef, error) {
	d := m.byMinor(int(major), int(minor))
	switch {
	case d != nil && m.host.hasBlockDevice(major, minor):
		return nil, invalid("%s is a mapped device and a block device of this machine; use a name or path", word)
	case d != nil:
		return m.openMapped(b, d, mode)
	case m.o.OpenNumber == nil:
		return nil, fmt.Errorf("%w: no device has the number %s", blockdev.ErrNoAddress, word)
	}
	l, err := m.o.OpenNumber(major, minor, mode == target.ReadWrite)
	if err != nil {
		return nil, err
	}
	return m.openOther(b, l, word, mode)
}

// openMapped makes a mapped device a lower device of the table.
func (m *Manager) openMapped(b *builder, d *Device, mode target.Mode) (*lowerRef, error) {
	u := b.use(node{dev: d}, d.Name(), mode)
	if err := m.graph.add(u); err != nil {
		return nil, err
	}
	return &lowerRef{
		Lower: &mappedLower{dev: d, ctx: b.wait}, mode: mode, mapped: d,
		undo: func() { m.graph.remove(u) },
	}, nil
}

// openOther makes an open file or block device a lower device of the table. It
// closes it when that would close a loop.
func (m *Manager) openOther(b *builder, l target.Lower, word string, mode target.Mode) (*lowerRef, error) {
	ref := &lowerRef{Lower: l, mode: mode}
	if filepath.IsAbs(word) {
		ref.path = word
	}
	u := b.use(node{id: l.ID()}, word, mode)
	u.hosts = m.hosts(l.ID(), word)
	if err := m.graph.add(u); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	ref.undo = func() { m.graph.remove(u) }
	return ref, nil
}

// use describes a lower device of this table to the graph.
func (b *builder) use(to node, name string, mode target.Mode) use {
	u := use{from: b.d, to: to, name: name, kind: useRead, restoring: b.restored != nil}
	if mode == target.ReadWrite {
		u.kind = useWrite
	}
	for _, o := range b.t.lowers {
		n := node{dev: o.mapped}
		if o.mapped == nil {
			n.id = o.ID()
		}
		u.others = append(u.others, named{n, o.Name()})
	}
	return u
}

// parseNumber reads "major:minor", leading zeros allowed.
func parseNumber(s string) (major, minor uint32, ok bool) {
	a, b, found := strings.Cut(s, ":")
	if !found || !digits(a) || !digits(b) {
		return 0, 0, false
	}
	x, err1 := strconv.ParseUint(a, 10, 32)
	y, err2 := strconv.ParseUint(b, 10, 32)
	return uint32(x), uint32(y), err1 == nil && err2 == nil
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
