package server

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/target"
)

// undo takes back what a step did.
type undo struct {
	what string // for people, when it fails
	run  func(ctx context.Context) error
}

// stepMode says how a step is done.
type stepMode struct {
	batch    *mapper.Batch // of a device that is made; nil: of its own
	undoable bool          // note how to take it back
	passing  bool          // a suspend that a later step of the same request ends
}

// step does one step; if undoable it notes how to take it back. The undo may
// be nil all the same: there is nothing to take back, or it cannot be. A step
// that fails after it changed something returns an undo as well as the error.
func (s *Server) step(ctx context.Context, st control.Step, mode stepMode) (control.StepResult, *undo, error) {
	if err := s.checkViews(st); err != nil {
		return control.StepResult{}, nil, err
	}
	if st.Op == control.OpCreate {
		return s.create(st, mode.batch)
	}
	d, err := s.device(st.Key)
	if err != nil {
		return control.StepResult{}, nil, err
	}
	if st.Op == control.OpRemove {
		deferred, err := s.opts.Manager.Remove(ctx, mapper.ByName(d.Name()), mapper.RemoveOptions{Deferred: st.Deferred})
		return control.StepResult{Deferred: deferred}, nil, err
	}
	back, err := s.change(ctx, d, st, mode)
	if err != nil {
		return control.StepResult{}, back, err
	}
	info := s.infoOf(d, false)
	return control.StepResult{Device: &info}, back, nil
}

// change does a step that leaves the device where it is.
func (s *Server) change(ctx context.Context, d *mapper.Device, st control.Step, mode stepMode) (*undo, error) {
	var old tables
	if mode.undoable {
		var err error
		if old, err = tablesOf(d); err != nil {
			return nil, err
		}
	}
	switch st.Op {
	case control.OpLoad:
		back, err := load(ctx, d, st, old)
		if err == nil && st.Sole {
			err = s.sole(d, st)
		}
		return back, err
	case control.OpClear:
		return clear(d, old)
	case control.OpSuspend:
		return suspend(ctx, d, st, old, mode.passing)
	case control.OpResume:
		return resume(ctx, d, st, old)
	case control.OpRename:
		return s.rename(d, st)
	case control.OpSetUUID:
		return nil, s.opts.Manager.SetUUID(d.Name(), st.NewUUID)
	case control.OpAttr:
		return s.setAttr(d, st.Attr)
	}
	return nil, control.Errorf(control.CodeInvalid, "there is no operation %q", st.Op)
}

func (s *Server) create(st control.Step, batch *mapper.Batch) (control.StepResult, *undo, error) {
	minor := -1
	if st.Minor != nil {
		minor = *st.Minor
	}
	create := s.opts.Manager.Create
	if batch != nil {
		create = batch.Create
	}
	d, err := create(st.Name, st.NewUUID, minor)
	if err != nil {
		return control.StepResult{}, nil, err
	}
	back := &undo{"remove " + st.Name, func(ctx context.Context) error {
		_, err := s.opts.Manager.Remove(ctx, mapper.ByName(d.Name()), mapper.RemoveOptions{})
		return err
	}}
	if st.Attr != nil {
		d.SetAttr(mergeAttr(d.Attr(), st.Attr))
	}
	if st.GuardBase != "" {
		if err := s.opts.Manager.GuardBase(d, st.GuardBase); err != nil {
			return control.StepResult{}, back, err
		}
	}
	info := s.infoOf(d, false)
	return control.StepResult{Device: &info}, back, nil
}

func mergeAttr(a mapper.Attr, c *control.Attr) mapper.Attr {
	if c.Mode != nil {
		a.Mode = *c.Mode
	}
	if c.UID != nil {
		a.UID = *c.UID
	}
	if c.GID != nil {
		a.GID = *c.GID
	}
	if c.ReadAhead != nil {
		a.ReadAhead = *c.ReadAhead
	}
	return a
}

func (s *Server) setAttr(d *mapper.Device, c *control.Attr) (*undo, error) {
	if c == nil {
		return nil, control.Errorf(control.CodeInvalid, "attr names neither mode nor owner")
	}
	old := d.Attr()
	d.SetAttr(mergeAttr(old, c))
	return &undo{"give " + d.Name() + " its old mode and owner", func(context.Context) error {
		d.SetAttr(old)
		return nil
	}}, nil
}

// slot is the table in one of the slots of a device; no lines: it is empty.
type slot struct {
	lines    []mapper.Line
	readOnly bool
}

// tables are both slots of a device, to load them again.
type tables struct{ live, waiting slot }

func tablesOf(d *mapper.Device) (t tables, err error) {
	if t.live, err = slotOf(d, false); err != nil {
		return t, err
	}
	t.waiting, err = slotOf(d, true)
	return t, err
}

func slotOf(d *mapper.Device, inactive bool) (slot, error) {
	var text strings.Builder
	for _, t := range d.Status(target.StatusTable, inactive, true) {
		fmt.Fprintf(&text, "%d %d %s %s\n", t.Start, t.Length, t.Type, t.Params)
	}
	lines, err := mapper.ParseTable(text.String(), mapper.GrammarDmfuse)
	return slot{lines, d.Info(inactive).ReadOnly}, err
}

// fill puts what was noted back into the inactive slot.
func (t slot) fill(ctx context.Context, d *mapper.Device) error {
	if len(t.lines) == 0 {
		return d.Clear()
	}
	return d.Load(ctx, t.lines, t.readOnly)
}

// same says whether two slots hold the same table.
func (t slot) same(o slot) bool {
	return t.readOnly == o.readOnly && slices.EqualFunc(t.lines, o.lines, func(a, b mapper.Line) bool {
		return a.Start == b.Start && a.Length == b.Length && a.Type == b.Type && slices.Equal(a.Args, b.Args)
	})
}

func load(ctx context.Context, d *mapper.Device, st control.Step, old tables) (*undo, error) {
	lines := make([]mapper.Line, 0, len(st.Table))
	for _, l := range st.Table {
		lines = append(lines, mapper.Line{
			Start: blockdev.Sector(l.Start), Length: blockdev.Sector(l.Length), Type: l.Type, Args: l.Args,
		})
	}
	if err := d.Load(ctx, lines, st.ReadOnly); err != nil {
		return nil, lowerMissing(err)
	}
	return &undo{"drop the table loaded into " + d.Name(), func(ctx context.Context) error {
		return old.waiting.fill(ctx, d)
	}}, nil
}

// sole refuses the table loaded into d when another device has one like it. Of two
// that are loaded at the same moment one at least is refused: each looks after it
// can be seen.
func (s *Server) sole(d *mapper.Device, st control.Step) error {
	mine := d.Deps(true)
	for _, other := range s.opts.Manager.Devices() {
		if other == d {
			continue
		}
		for _, inactive := range []bool{false, true} {
			like := slices.ContainsFunc(other.Status(target.StatusTable, inactive, true), func(t mapper.TargetStatus) bool {
				return slices.ContainsFunc(st.Table, func(l control.Line) bool { return l.Type == t.Type })
			})
			if !like {
				continue
			}
			for _, dep := range other.Deps(inactive) {
				if slices.Contains(mine, dep) {
					return control.Errorf(control.CodeBusy, "%s has a device of the type %s already: %s", cmp.Or(dep.Name, dep.Path), st.Table[0].Type, other.Name())
				}
			}
		}
	}
	return nil
}

// lowerMissing tells a device that a table names and that is not there from
// the device the table is for: the errno is the same.
func lowerMissing(err error) error {
	e := wireError(err)
	if e.Code != control.CodeNotFound {
		return err
	}
	other := *e
	other.Code = control.CodeNoDevice
	return &other
}

func clear(d *mapper.Device, old tables) (*undo, error) {
	if err := d.Clear(); err != nil {
		return nil, err
	}
	return &undo{"load the inactive table of " + d.Name() + " again", func(ctx context.Context) error {
		return old.waiting.fill(ctx, d)
	}}, nil
}

func suspend(ctx context.Context, d *mapper.Device, st control.Step, old tables, passing bool) (*undo, error) {
	was := d.Info(false).Suspended
	o := mapper.SuspendOptions{NoFlush: st.NoFlush, NoLockFS: st.NoLockFS, Passing: passing}
	if err := d.Suspend(ctx, o); err != nil || was {
		return nil, err
	}
	return &undo{"resume " + d.Name(), func(ctx context.Context) error {
		if len(old.waiting.lines) == 0 {
			return d.Resume(ctx, mapper.SuspendOptions{})
		}
		// The table that waits would come in.
		if err := d.Clear(); err != nil {
			return err
		}
		if err := d.Resume(ctx, mapper.SuspendOptions{}); err != nil {
			return err
		}
		return old.waiting.fill(ctx, d)
	}}, nil
}

// resume may swap tables, so its undo brings back the one that was live, the
// one that was waiting, and the state.
func resume(ctx context.Context, d *mapper.Device, st control.Step, old tables) (*undo, error) {
	was := d.Info(false)
	err := d.Resume(ctx, mapper.SuspendOptions{NoFlush: st.NoFlush, NoLockFS: st.NoLockFS})
	if err == nil && !was.Inactive && !was.Suspended {
		return nil, nil
	}
	return &undo{"bring " + d.Name() + " back to the table and state it had", func(ctx context.Context) error {
		return restore(ctx, d, was, old)
	}}, err
}

// restore brings a device back after a resume, or one that failed on its way.
func restore(ctx context.Context, d *mapper.Device, was mapper.Info, old tables) error {
	now, err := slotOf(d, false)
	if err != nil {
		return err
	}
	// A resume that was refused by the new table has swapped it in all the
	// same; one that failed before has thrown it away.
	swapped := !now.same(old.live)
	if swapped && !was.Live {
		return fmt.Errorf("%s had no live table before", d.Name())
	}
	if swapped {
		if err := old.live.fill(ctx, d); err != nil {
			return err
		}
	}
	if swapped || d.Info(false).Suspended && !was.Suspended {
		if err := d.Resume(ctx, mapper.SuspendOptions{}); err != nil {
			return err
		}
	}
	if was.Suspended {
		if err := d.Suspend(ctx, mapper.SuspendOptions{}); err != nil {
			return err
		}
	}
	return old.waiting.fill(ctx, d)
}

func (s *Server) rename(d *mapper.Device, st control.Step) (*undo, error) {
	// The kernel renames by name only.
	if st.Name == "" {
		e := control.Errorf(control.CodeNotFound, "a device is renamed by its name only, not by %s", keyText(st.Key))
		e.Device = keyText(st.Key)
		return nil, e
	}
	old := d.Name()
	if err := s.opts.Manager.Rename(old, st.NewName); err != nil {
		return nil, err
	}
	return &undo{"rename " + st.NewName + " back to " + old, func(context.Context) error {
		return s.opts.Manager.Rename(d.Name(), old)
	}}, nil
}

// checkViews refuses a step when the caller saw other files than we do.
func (s *Server) checkViews(st control.Step) error {
	for _, v := range st.Views {
		ours, err := s.opts.View(v.Path)
		if err == nil && ours.Same(v) {
			continue
		}
		why := "another file"
		if err != nil {
			why = "no file (" + err.Error() + ")"
		}
		e := control.Errorf(control.CodeView, "under %s the daemon sees %s, as it runs in another mount namespace or root than the command", v.Path, why)
		e.Next = "run the command where the daemon runs, or a daemon of its own (--run-dir) where the command runs"
		return e
	}
	return nil
}
