package mapper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
)

// RestoreProblem is something that a restart could not bring back.
type RestoreProblem struct {
	Device string // name, when it is known
	Path   string // the state file
	Err    error
}

func (p RestoreProblem) Error() string {
	if p.Device == "" {
		return p.Err.Error()
	}
	return fmt.Sprintf("device %s: %v", p.Device, p.Err)
}

// Restore brings back the devices of a daemon that was killed in this boot
// (promise 9). It is called once, before anything is served: all tables are
// made and resumed first, those of lower devices before those above them, so
// that every snapshot is there before the first write to its origin.
//
// A device whose removal waited for its last close is removed when no table
// uses it. A device that cannot be brought back exists, has its size and its table line,
// and answers every request with an I/O error; the others are not affected. The
// error of Restore is for a state directory that cannot be read at all, or a
// context that ended.
func (m *Manager) Restore(ctx context.Context) ([]RestoreProblem, error) {
	s := m.state
	if s.dir == "" {
		return nil, nil
	}
	problems := s.problems
	s.problems = nil
	serials, err := s.recordSerials()
	if err != nil {
		return problems, err
	}
	r := &restorer{m: m, problems: problems}
	for _, n := range serials {
		r.read(s.recordPath(n), n)
	}
	if err := s.dropBatches(); err != nil {
		return r.problems, err
	}
	r.sort()
	for _, e := range r.entries {
		r.begin(e)
		r.live(ctx, e)
	}
	for _, e := range r.entries {
		r.begin(e)
		r.inactive(ctx, e)
	}
	for i := len(r.entries) - 1; i >= 0; i-- { // tops first
		r.begin(r.entries[i])
		r.suspend(ctx, r.entries[i])
	}
	for _, e := range r.entries {
		r.begin(e)
		if e.spoiled == nil {
			r.restoreGuards(e)
		}
		r.finish(e)
	}
	for _, e := range r.entries { // whoever had it open may be gone with the old daemon
		e.dev.mu.Lock()
		e.dev.closedLocked()
		e.dev.mu.Unlock()
	}
	return r.problems, ctxError(ctx)
}

// restorer is one run of Restore.
type restorer struct {
	m        *Manager
	entries  []*restoreEntry
	problems []RestoreProblem
}

type restoreEntry struct {
	path   string
	rec    record
	dev    *Device
	lowers map[*restoreEntry]bool // mapped devices that its tables name
	words  map[string]bool        // all words of its tables
	own    error                  // a word leads to where nobody may look now, see onOwn

	spoiled error // it is left alone
}

func (r *restorer) problem(e *restoreEntry, err error) {
	r.problems = append(r.problems, RestoreProblem{Device: string(e.rec.Name), Path: e.path, Err: err})
	e.dev.mu.Lock()
	e.dev.problem = errors.Join(e.dev.problem, err)
	e.dev.mu.Unlock()
	r.m.log.WithField("device", e.dev.Name()).WithError(err).Error("not restored")
}

// read makes the device of one record, without tables.
func (r *restorer) read(path string, serial uint64) {
	e := &restoreEntry{path: path}
	data, err := os.ReadFile(path)
	if err == nil {
		err = decodeState(data, &e.rec)
	}
	if err == nil && e.rec.Boot != r.m.state.boot {
		_ = os.Remove(path) // a reboot forgets, as the kernel does
		return
	}
	if err == nil {
		err = e.rec.check()
	}
	if err == nil && r.m.state.isOpen(e.rec.Batch) {
		r.m.log.WithField("device", string(e.rec.Name)).Warn("it was being made, alone or with others, when the daemon died: none of them stays")
		if err = os.Remove(path); err == nil {
			return
		}
	}
	if err == nil && e.rec.Serial != serial {
		err = invalid("the record is of serial number %d", e.rec.Serial)
	}
	if err == nil {
		e.dev, err = r.m.register(string(e.rec.Name), string(e.rec.UUID), e.rec.Minor, serial)
	}
	if err != nil {
		p := r.m.state.setAside(path, err)
		p.Device = string(e.rec.Name)
		r.problems = append(r.problems, p)
		r.m.log.WithError(p.Err).Error("not restored")
		return
	}
	d := e.dev
	d.recordMu.Lock()
	d.restoring = true
	d.recordMu.Unlock()
	d.events.set(e.rec.EventNr)
	d.keepEvents()
	d.mu.Lock()
	d.loaded = e.rec.Loaded
	d.fileOpens = r.m.o.Opens[serial]
	d.deferredRemove = e.rec.DeferredRemove
	d.attr = Attr{Mode: e.rec.Attr.Mode & 0o7777, UID: e.rec.Attr.UID, GID: e.rec.Attr.GID, Mtime: e.rec.Attr.Mtime, ReadAhead: e.rec.Attr.ReadAhead}
	d.mu.Unlock()
	r.entries = append(r.entries, e)
	r.m.hub.global.raise()
	d.report(EventCreate, "restored")
}

// tableLines are the lines of a recorded table. Where the major number is
// another one now, numbers of mapped devices in them are changed.
func (r *restorer) tableLines(e *restoreEntry, t *recordTable) []Line {
	lines := t.lines()
	if e.rec.Major == r.m.major {
		return lines
	}
	numbers := map[string]string{}
	for _, o := range r.entries {
		numbers[fmt.Sprintf("%d:%d", o.rec.Major, o.rec.Minor)] = o.dev.number()
	}
	for i := range lines {
		for j, a := range lines[i].Args {
			if now, ok := numbers[a]; ok {
				lines[i].Args[j] = now
			}
		}
	}
	return lines
}

// sort orders the entries for restoring: lower devices before those above them,
// and every device before those above one that it shares a lower device with.
// The second rule brings back a snapshot before anything that could write to
// its origin device when it is resumed; so does the third, by which a mover
// ([target.Type]) comes after all that it shares a lower device with.
func (r *restorer) sort() {
	sort.Slice(r.entries, func(i, j int) bool { return r.entries[i].rec.Serial < r.entries[j].rec.Serial })
	byDevice := map[*Device]*restoreEntry{}
	for _, e := range r.entries {
		byDevice[e.dev] = e
	}
	mounts := r.m.host.mounts()
	for _, e := range r.entries {
		e.lowers, e.words = map[*restoreEntry]bool{}, map[string]bool{}
		for _, t := range []*recordTable{e.rec.Live, e.rec.Inactive} {
			for _, l := range r.tableLines(e, t) {
				for _, w := range l.Args {
					e.words[w] = true
					if err := r.m.onOwn(mounts, w); err != nil {
						e.own = err
						continue
					}
					if o := byDevice[r.m.deviceNamed(w)]; o != nil && o != e {
						e.lowers[o] = true
					}
				}
			}
		}
	}
	var out []*restoreEntry
	seen := map[*restoreEntry]bool{}
	var visit func(e *restoreEntry)
	visit = func(e *restoreEntry) {
		if seen[e] {
			return
		}
		seen[e] = true
		for _, low := range r.entries {
			if e.lowers[low] {
				visit(low)
			}
		}
		for _, o := range r.entries {
			if !seen[o] && (e.above(o) || r.moves(e) && !o.lowers[e] && e.shares(o)) {
				visit(o)
			}
		}
		out = append(out, e)
	}
	for _, e := range r.entries {
		visit(e)
	}
	r.entries = out
}

// moves says whether the live table of e has a mover.
func (r *restorer) moves(e *restoreEntry) bool {
	return slices.ContainsFunc(e.rec.Live.lines(), func(l Line) bool {
		typ, ok := r.m.types.Lookup(l.Type)
		return ok && typ.Mover
	})
}

// above says whether e uses a device that shares a lower device with o.
func (e *restoreEntry) above(o *restoreEntry) bool {
	for low := range e.lowers {
		if low != o && low.shares(o) {
			return true
		}
	}
	return false
}

// shares says whether the tables of e and o name the same device.
func (e *restoreEntry) shares(o *restoreEntry) bool {
	for w := range o.words {
		if e.words[w] && looksLikeDevice(w) {
			return true
		}
	}
	return false
}

func looksLikeDevice(w string) bool {
	_, _, number := parseNumber(w)
	return number || strings.Contains(w, "/")
}

// deviceNamed is the mapped device that a word of a table stands for, nil if
// there is none.
func (m *Manager) deviceNamed(word string) *Device {
	if major, minor, ok := parseNumber(word); ok {
		return m.byMinor(int(major), int(minor))
	}
	d, _ := m.deviceOfWord(word)
	return d
}

// begin says which device comes next.
func (r *restorer) begin(e *restoreEntry) {
	var err error
	if f := r.m.o.Restoring; f != nil {
		err = f(e.rec.Serial, e.dev.Name())
	}
	if err == nil && r.m.o.KeepFailed && e.rec.Failed != "" {
		err = errors.New(string(e.rec.Failed))
	}
	if err == nil || e.spoiled != nil {
		return
	}
	e.spoiled = fmt.Errorf("%w: %w", blockdev.ErrIO, err)
	e.dev.mu.Lock()
	e.dev.failed = err
	e.dev.mu.Unlock()
}

// live brings back the live table and lets its I/O run, as lower devices are
// read while those above are made.
func (r *restorer) live(ctx context.Context, e *restoreEntry) {
	if e.rec.Live == nil {
		return
	}
	d, lines := e.dev, r.tableLines(e, e.rec.Live)
	_ = d.turn.lock(context.Background()) // nobody else knows the device yet
	defer d.turn.unlock()
	var t *table
	err := e.spoiled
	if err == nil {
		step.At("restore-device")
		t, err = r.rebuild(ctx, e, lines, e.rec.Live, false)
	}
	if err == nil {
		if err = t.checkLimits(); err != nil {
			_ = t.destroy(ctx)
		}
	}
	if err == nil {
		if err = d.restoreTable(t); err != nil {
			d.live.Store(nil)
			_ = t.destroy(ctx)
			d.gate.open()
		}
	}
	if err != nil {
		r.problem(e, err)
		if err := d.restoreTable(d.lostTable(lines, e.rec.Live, e.spoiled != nil || e.own != nil, err)); err != nil {
			panic("mapper: a lost table refuses to be resumed: " + err.Error())
		}
	}
}

// rebuild makes a table of a record again.
func (r *restorer) rebuild(ctx context.Context, e *restoreEntry, lines []Line, from *recordTable, waiting bool) (*table, error) {
	if e.own != nil {
		return nil, e.own
	}
	return e.dev.rebuild(ctx, lines, from, waiting)
}

// restoreTable makes t the live table of a device without one and resumes it.
// On an error the gate is shut.
func (d *Device) restoreTable(t *table) error {
	mtime := d.Attr().Mtime
	d.gate.shut()
	d.setLive(t, mtime)
	if err := t.preresume(); err != nil {
		return err
	}
	t.resume()
	d.gate.open()
	return nil
}

func (r *restorer) inactive(ctx context.Context, e *restoreEntry) {
	if e.rec.Inactive == nil {
		return
	}
	d := e.dev
	_ = d.turn.lock(context.Background())
	defer d.turn.unlock()
	var t *table
	err := e.spoiled
	if err == nil {
		t, err = r.rebuild(ctx, e, r.tableLines(e, e.rec.Inactive), e.rec.Inactive, true)
	}
	if err != nil {
		r.problem(e, fmt.Errorf("the inactive table is lost: %w", err))
		return
	}
	d.mu.Lock()
	d.inactive = t
	d.mu.Unlock()
}

func (r *restorer) suspend(ctx context.Context, e *restoreEntry) {
	if !e.rec.Suspended {
		return
	}
	_ = e.dev.turn.lock(context.Background())
	defer e.dev.turn.unlock()
	if err := e.dev.suspend(ctx, SuspendOptions{NoLockFS: true}); err != nil {
		r.problem(e, err)
	}
}

// finish lets the device write its record again, and arms its fault rules: what
// a restart itself reads and writes meets none.
func (r *restorer) finish(e *restoreEntry) {
	if err := e.dev.restoreFaults(e.rec.Faults, e.rec.NextFault); err != nil {
		r.problem(e, err)
	}
	e.dev.restoreStats(e.rec.Stats)
	e.dev.recordMu.Lock()
	e.dev.restoring = false
	e.dev.recordMu.Unlock()
	e.dev.record()
}
