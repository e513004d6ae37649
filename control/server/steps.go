package server

import (
	"context"
	"fmt"

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

// step does one step. The undo it returns may be nil: there is nothing to take
// back, or it cannot be taken back. A step that fails after it changed
// something returns an undo as well as the error.
func (s *Server) step(ctx context.Context, st control.Step) (control.StepResult, *undo, error) {
	if err := s.checkViews(st); err != nil {
		return control.StepResult{}, nil, err
	}
	if st.Op == control.OpCreate {
		return s.create(st)
	}
	d, err := s.device(st.Key)
	if err != nil {
		return control.StepResult{}, nil, err
	}
	if st.Op == control.OpRemove {
		deferred, err := s.opts.Manager.Remove(ctx, mapper.ByName(d.Name()), mapper.RemoveOptions{Deferred: st.Deferred})
		return control.StepResult{Deferred: deferred}, nil, err
	}
	back, err := s.change(ctx, d, st)
	if err != nil {
		return control.StepResult{}, back, err
	}
	info := s.infoOf(d, false)
	return control.StepResult{Device: &info}, back, nil
}

// change does a step that leaves the device where it is.
func (s *Server) change(ctx context.Context, d *mapper.Device, st control.Step) (*undo, error) {
	switch st.Op {
	case control.OpLoad:
		return s.load(ctx, d, st)
	case control.OpClear:
		return s.clear(d)
	case control.OpSuspend:
		return s.suspend(ctx, d, st)
	case control.OpResume:
		return s.resume(ctx, d, st)
	case control.OpRename:
		return s.rename(d, st)
	case control.OpSetUUID:
		return nil, s.opts.Manager.SetUUID(d.Name(), st.NewUUID)
	case control.OpAttr:
		return s.setAttr(d, st.Attr)
	}
	return nil, control.Errorf(control.CodeInvalid, "there is no operation %q", st.Op)
}

func (s *Server) create(st control.Step) (control.StepResult, *undo, error) {
	minor := -1
	if st.Minor != nil {
		minor = *st.Minor
	}
	d, err := s.opts.Manager.Create(st.Name, st.NewUUID, minor)
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

// tables notes what is in a slot of a device, to load it again.
func (s *Server) tables(d *mapper.Device, inactive bool) ([]mapper.Line, bool, error) {
	i := d.Info(inactive)
	if !i.Live && !inactive || !i.Inactive && inactive {
		return nil, false, nil
	}
	var text string
	for _, t := range d.Status(target.StatusTable, inactive, true) {
		text += fmt.Sprintf("%d %d %s %s\n", t.Start, t.Length, t.Type, t.Params)
	}
	lines, err := mapper.ParseTable(text, mapper.GrammarDmfuse)
	return lines, i.ReadOnly, err
}

// fill puts what was noted back into the inactive slot.
func fill(ctx context.Context, d *mapper.Device, lines []mapper.Line, readOnly bool) error {
	if len(lines) == 0 {
		return d.Clear()
	}
	return d.Load(ctx, lines, readOnly)
}

func (s *Server) load(ctx context.Context, d *mapper.Device, st control.Step) (*undo, error) {
	old, ro, err := s.tables(d, true)
	if err != nil {
		return nil, err
	}
	lines := make([]mapper.Line, 0, len(st.Table))
	for _, l := range st.Table {
		lines = append(lines, mapper.Line{
			Start: blockdev.Sector(l.Start), Length: blockdev.Sector(l.Length), Type: l.Type, Args: l.Args,
		})
	}
	if err := d.Load(ctx, lines, st.ReadOnly); err != nil {
		return nil, err
	}
	return &undo{"drop the table loaded into " + d.Name(), func(ctx context.Context) error {
		return fill(ctx, d, old, ro)
	}}, nil
}

func (s *Server) clear(d *mapper.Device) (*undo, error) {
	old, ro, err := s.tables(d, true)
	if err != nil {
		return nil, err
	}
	if err := d.Clear(); err != nil {
		return nil, err
	}
	return &undo{"load the inactive table of " + d.Name() + " again", func(ctx context.Context) error {
		return fill(ctx, d, old, ro)
	}}, nil
}

func (s *Server) suspend(ctx context.Context, d *mapper.Device, st control.Step) (*undo, error) {
	was := d.Info(false).Suspended
	o := mapper.SuspendOptions{NoFlush: st.NoFlush, NoLockFS: st.NoLockFS}
	if err := d.Suspend(ctx, o); err != nil || was {
		return nil, err
	}
	return &undo{"resume " + d.Name(), func(ctx context.Context) error {
		return d.Resume(ctx, mapper.SuspendOptions{})
	}}, nil
}

// resume may swap tables, so its undo brings back the one that was live, the
// one that was waiting, and the state.
func (s *Server) resume(ctx context.Context, d *mapper.Device, st control.Step) (*undo, error) {
	was := d.Info(false)
	live, liveRO, err := s.tables(d, false)
	if err != nil {
		return nil, err
	}
	waiting, waitingRO, err := s.tables(d, true)
	if err != nil {
		return nil, err
	}
	o := mapper.SuspendOptions{NoFlush: st.NoFlush, NoLockFS: st.NoLockFS}
	if !was.Inactive && !was.Suspended {
		return nil, d.Resume(ctx, o)
	}
	err = d.Resume(ctx, o)
	swapped := err == nil && was.Inactive
	return &undo{"bring " + d.Name() + " back to the table and state it had", func(ctx context.Context) error {
		if swapped {
			if !was.Live {
				return fmt.Errorf("%s had no live table before", d.Name())
			}
			if err := fill(ctx, d, live, liveRO); err != nil {
				return err
			}
		}
		// After a failed resume the device is left suspended with its old
		// table, and the new one is gone: resuming brings the old one back.
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
		return fill(ctx, d, waiting, waitingRO)
	}}, err
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
		dev, ino, err := s.opts.Stat(v.Path)
		if err == nil && dev == v.Dev && ino == v.Ino {
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
