package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/dmfuse/dmfuse/control"
)

// The second half of snapshot create and open: the file systems on the origin
// are frozen, the daemon applies the steps, the file systems are thawed.

// applySnapshot makes the device while the file systems on its origin are
// frozen. When it fails, no device is left.
func (s *session) applySnapshot(ctx context.Context, b baseOf, cow *cowFile, o createOptions) (*control.Info, []string, error) {
	steps, err := snapshotSteps(b, cow, o)
	if err != nil {
		return nil, nil, err
	}
	z, err := s.freezeFor(ctx, b, cow, o)
	if err != nil {
		return nil, nil, err
	}
	if z == nil {
		r, err := s.applyGuarded(ctx, steps)
		return resultOf(r, o.name), nil, s.explain(err, o.name)
	}
	limited, cancel := context.WithTimeout(ctx, o.freezeLimit)
	defer cancel()
	r, err := s.c.Apply(limited, steps...)
	if terr := z.thaw(); terr != nil && err == nil {
		err = s.takeBack(o.name, terr)
	}
	return resultOf(r, o.name), z.mountPoints(), s.explain(err, o.name)
}

// applyGuarded applies the steps; where the file system of a frozen base cannot
// tell of writers, it does without being told, and says so.
func (s *session) applyGuarded(ctx context.Context, steps []control.Step) (control.ApplyReply, error) {
	r, err := s.c.Apply(ctx, steps...)
	base := steps[0].GuardBase
	if base == "" || errorCode(err) != control.CodeUnsupported || failedStep(err) != 0 {
		return r, err
	}
	steps[0].GuardBase = ""
	r, err = s.c.Apply(ctx, steps...)
	if err == nil {
		s.a.note("the file system of %s cannot tell when somebody opens it for writing: see to it that nobody does", base)
	}
	return r, err
}

// failedStep is the step of an apply that failed, -1 when that is not known.
func failedStep(err error) int {
	var e *control.Error
	if errors.As(err, &e) {
		return e.Step
	}
	return -1
}

// errUnknownOutcome means that the daemon went away while it worked: the
// snapshot may exist, so its COW must stay.
var errUnknownOutcome = errors.New("whether the device was made is not known")

func outcomeUnknown(err error) bool { return errors.Is(err, errUnknownOutcome) }

// explain puts the error of an apply into words.
func (s *session) explain(err error, name string) error {
	switch {
	case err == nil:
		return nil
	case errorCode(err) == control.CodeNoDaemon:
		return fail(exitNoDaemon, fmt.Errorf("%w: %w", errUnknownOutcome, err), "start a daemon and see: dmfuse serve, dmfuse snapshot ls; the COW is kept until then")
	case errors.Is(err, context.DeadlineExceeded):
		err = errFreezeExpired
		fallthrough
	case errors.Is(err, errFreezeExpired):
		return fail(exitTimeout, fmt.Errorf("the snapshot %s is not made: %w before it was taken", name, err), "try again with a longer --freeze-limit, or with --no-freeze")
	}
	return fmt.Errorf("the snapshot %s is not made: %w", name, stepText(err))
}

// stepText adds to an error of an apply what failed on which device.
func stepText(err error) error {
	var e *control.Error
	if errors.As(err, &e) && e.Op != "" {
		return fmt.Errorf("%s of %s: %w", e.Op, e.Device, err)
	}
	return err
}

// takeBack removes a snapshot that was taken after its freeze had ended.
func (s *session) takeBack(name string, why error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := s.c.Apply(ctx, control.Step{Op: control.OpRemove, Key: control.ByName(name)})
	if err != nil {
		return errors.Join(errUnknownOutcome, why, err)
	}
	return why
}

// withUndo adds to an error what could not be taken back.
func withUndo(err, undo error) error {
	if undo == nil {
		return err
	}
	return fmt.Errorf("%w; not undone: %w", err, undo)
}

// snapshotSteps makes the snapshot while its origin stands still. It is built
// before the origin is suspended, so that this takes no longer than needed; it
// begins to count when it is resumed.
func snapshotSteps(b baseOf, cow *cowFile, o createOptions) ([]control.Step, error) {
	line := control.Line{
		Length: uint64(b.size / 512), Type: "snapshot",
		Args: []string{b.lower.path, cow.path, cow.store, fmt.Sprint(cow.chunk / 512)},
	}
	if cow.damaged {
		line.Args = append(line.Args, "1", "damaged")
	}
	cowNow := cow.place
	if !cow.exists { // it does now
		var err error
		if cowNow, err = fileAt(cow.path); err != nil {
			return nil, err
		}
	}
	steps := deviceSteps(o.name, line, o.readOnly, b.lower, cowNow)
	if b.origin == nil && b.lower.device == nil && !b.lower.block && !o.willNotChange {
		steps[0].GuardBase = b.lower.path
	}
	if b.origin == nil || b.origin.Suspended {
		return steps, nil
	}
	origin := control.ByName(b.origin.Name)
	last := len(steps) - 1
	return append(steps[:last:last],
		control.Step{Op: control.OpSuspend, Key: origin}, steps[last], control.Step{Op: control.OpResume, Key: origin}), nil
}

// resultOf is the device called name after the last step about it.
func resultOf(r control.ApplyReply, name string) *control.Info {
	for i := len(r.Results) - 1; i >= 0; i-- {
		if d := r.Results[i].Device; d != nil && d.Name == name {
			return d
		}
	}
	return &control.Info{Name: name}
}

// freezeFor freezes the file systems on the origin device and on what stands
// on it; nil when there is nothing to freeze.
func (s *session) freezeFor(ctx context.Context, b baseOf, cow *cowFile, o createOptions) (*frozen, error) {
	if b.origin == nil || o.noFreeze {
		return nil, nil
	}
	var list []frozenFS
	for _, m := range append(s.above(b.origin.Name), *b.origin) {
		on, err := fileSystemsOn(m.Path)
		if err != nil {
			return nil, err
		}
		if len(on) > 0 && m.Suspended {
			return nil, fail(exitBusy, fmt.Errorf("%s is suspended, so the file system on it (%s) cannot be frozen", m.Name, on[0].point),
				"resume it first, or take a crash-consistent snapshot with --no-freeze")
		}
		list = appendNew(list, on)
	}
	if len(list) == 0 {
		return nil, nil
	}
	needed := daemonFiles(s.v.PID)
	needed[cow.path] = "the COW file"
	needed[s.v.RunDir] = "the run directory of the daemon"
	if err := freezeConflict(list, needed); err != nil {
		return nil, err
	}
	z, err := (freezer{command: []string{"/proc/self/exe", holdVerb}, lock: filepath.Join(s.v.RunDir, "freeze.lock")}).freeze(ctx, list, o.freezeLimit)
	if err != nil {
		return nil, err
	}
	return z, nil
}

// appendNew adds the file systems that are not in the list.
func appendNew(list, more []frozenFS) []frozenFS {
next:
	for _, fs := range more {
		for _, have := range list {
			if have.dev == fs.dev {
				continue next
			}
		}
		list = append(list, fs)
	}
	return list
}
