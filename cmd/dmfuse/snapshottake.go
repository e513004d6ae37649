package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
)

// The second half of snapshot create and open: the file systems on the origins
// are frozen, the daemon applies the steps, the file systems are thawed.

// applySnapshot makes the device while the file systems on its origin are
// frozen. When it fails, no device is left.
func (s *session) applySnapshot(ctx context.Context, b baseOf, cow *cowFile, o createOptions) (*control.Info, []string, error) {
	r, frozen, err := s.applyMembers(ctx, []member{{b, cow, o}})
	return resultOf(r, o.name), frozen, err
}

// member is one of the snapshots that are made at one instant.
type member struct {
	base baseOf
	cow  *cowFile
	o    createOptions
}

// applyMembers makes the devices while the file systems on all their origins are
// frozen. When it fails, no device is left.
func (s *session) applyMembers(ctx context.Context, all []member) (control.ApplyReply, []string, error) {
	steps, err := s.memberSteps(all)
	if err != nil {
		return control.ApplyReply{}, nil, err
	}
	z, err := s.freezeFor(ctx, all)
	if err != nil {
		return control.ApplyReply{}, nil, err
	}
	id := rand.Text()
	if z == nil {
		r, err := s.applyGuarded(ctx, id, steps)
		if ctx.Err() != nil && err != nil {
			err = s.gaveUp(id, all, err)
		}
		r, err = s.ask(ctx, r, all, err)
		return r, nil, s.explain(err, all)
	}
	limited, cancel := context.WithTimeout(ctx, all[0].o.freezeLimit)
	defer cancel()
	r, err := s.applyGuarded(limited, id, steps)
	if limited.Err() != nil && err != nil {
		_ = z.thaw() // the daemon may wait for what is frozen
		return r, z.mountPoints(), s.explain(s.gaveUp(id, all, err), all)
	}
	r, err = s.ask(ctx, r, all, err)
	if terr := z.thaw(); terr != nil && err == nil {
		err = s.takeBack(terr, namesOf(all)...)
	}
	return r, z.mountPoints(), s.explain(err, all)
}

// applyGuarded applies the steps; where the file system of a frozen base cannot
// tell of writers, it does without being told, and says so.
func (s *session) applyGuarded(ctx context.Context, id string, steps []control.Step) (control.ApplyReply, error) {
	var untold []string
	for {
		r, err := s.c.ApplyAs(ctx, id, steps...)
		i := failedStep(err)
		if errorCode(err) != control.CodeUnsupported || i < 0 || i >= len(steps) || steps[i].GuardBase == "" {
			for _, base := range untold {
				if err == nil {
					s.a.note("the file system of %s cannot tell when somebody opens it for writing: see to it that nobody does", base)
				}
			}
			return r, err
		}
		untold = append(untold, steps[i].GuardBase)
		steps[i].GuardBase = ""
	}
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
func (s *session) explain(err error, all []member) error {
	switch {
	case err == nil:
		return nil
	case errorCode(err) == control.CodeNoDaemon:
		return fail(exitNoDaemon, fmt.Errorf("%w: %w", errUnknownOutcome, err), "start a daemon and see: dmfuse serve, dmfuse snapshot ls; the COW is kept until then")
	case errors.Is(err, context.Canceled) && !outcomeUnknown(err):
		return fail(exitFailed, fmt.Errorf("%s not made: %w", namesAre(all), err), nothingLeft)
	case errors.Is(err, context.DeadlineExceeded):
		err = errFreezeExpired
		fallthrough
	case errors.Is(err, errFreezeExpired):
		return fail(exitTimeout, fmt.Errorf("%s not made: %w before %s taken", namesAre(all), err, wasOrWere(all)), "try again with a longer --freeze-limit, or with --no-freeze")
	}
	var e *control.Error
	if errors.As(err, &e) && e.Code == control.CodeBusy && e.Op == control.OpCreate { // somebody was faster
		return fail(exitBusy, fmt.Errorf("%s not made: %w", namesAre(all), err), "choose another name, or see what it is with: dmfuse table "+shellQuote(e.Device))
	}
	if errorCode(err) == control.CodeInvalid {
		if other := s.madeMeanwhile(all...); other != nil {
			err = other
		}
	}
	return fmt.Errorf("%s not made: %w", namesAre(all), stepText(err))
}

// madeMeanwhile refuses a COW with which another command made a device after this
// one had looked.
func (s *session) madeMeanwhile(all ...member) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now := &session{a: s.a, c: s.c, v: s.v}
	if err := now.load(ctx); err != nil {
		return err
	}
	for _, m := range all {
		for _, u := range now.usesOf(m.cow.place) {
			return fail(exitBusy, fmt.Errorf("%s has just been taken by the device %s", m.cow.place.what(), u.device.Name), "see it with: dmfuse snapshot ls; or choose another COW")
		}
	}
	return nil
}

// namesAre begins a sentence about the snapshots.
func namesAre(all []member) string {
	if len(all) == 1 {
		return "the snapshot " + all[0].o.name + " is"
	}
	return "the snapshots " + strings.Join(namesOf(all), ", ") + " are"
}

func namesOf(all []member) (names []string) {
	for _, m := range all {
		names = append(names, m.o.name)
	}
	return names
}

func wasOrWere(all []member) string {
	if len(all) == 1 {
		return "it was"
	}
	return "they were"
}

// stepText adds to an error of an apply what failed on which device.
func stepText(err error) error {
	var e *control.Error
	if errors.As(err, &e) && e.Op != "" {
		return fmt.Errorf("%s of %s: %w", e.Op, e.Device, err)
	}
	return err
}

// takeBack removes devices that were made after all, as snapshots that were taken
// when their freeze had ended.
func (s *session) takeBack(why error, names ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if len(names) == 0 {
		return why
	}
	var steps []control.Step
	for _, name := range names {
		steps = append(steps, control.Step{Op: control.OpRemove, Key: control.ByName(name)})
	}
	if _, err := s.c.Apply(ctx, steps...); err != nil {
		return errors.Join(errUnknownOutcome, why, err)
	}
	return why
}

// gaveUp sees to it that no snapshot is left when the wait for the daemon was
// given up: it may have been done before it noticed.
func (s *session) gaveUp(id string, all []member, why error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.c.Abandon(ctx, id); err != nil {
		return errors.Join(errUnknownOutcome, why, err)
	}
	var made []string
	for _, name := range namesOf(all) {
		_, err := s.c.Info(ctx, control.ByName(name), false)
		switch {
		case err == nil:
			made = append(made, name)
		case errorCode(err) != control.CodeNotFound:
			return errors.Join(errUnknownOutcome, why, err)
		}
	}
	return s.takeBack(why, made...)
}

// ask finds out what became of snapshots when the daemon died over them: the next
// one, if there is a keeper, has all of them or none.
func (s *session) ask(ctx context.Context, r control.ApplyReply, all []member, why error) (control.ApplyReply, error) {
	if errorCode(why) != control.CodeNoDaemon {
		return r, why
	}
	for _, name := range namesOf(all) {
		info, err := s.c.Info(ctx, control.ByName(name), false)
		switch {
		case errorCode(err) == control.CodeNotFound:
			return r, errors.New("the daemon died over it, and another one goes on: try again")
		case err != nil:
			return r, why
		}
		r.Results = append(r.Results, control.StepResult{Device: &info})
	}
	return r, nil
}

// withUndo adds to an error what could not be taken back.
func withUndo(err, undo error) error {
	if undo == nil {
		return err
	}
	return fmt.Errorf("%w; not undone: %w", err, undo)
}

// memberSteps makes the snapshots while their origins stand still, all of them at
// once. The devices are built before, so that this takes no longer than needed;
// they begin to count when they are resumed. What stands on another origin is
// suspended before it and resumed after it.
func (s *session) memberSteps(all []member) (steps []control.Step, err error) {
	var begin, suspend, resume []control.Step
	for i, m := range all {
		own, err := snapshotSteps(m)
		if err != nil {
			return nil, err
		}
		last := len(own) - 1
		own[last].Together = i > 0
		steps, begin = append(steps, own[:last]...), append(begin, own[last])
	}
	levels := s.toSuspend(all)
	for _, names := range levels {
		suspend = append(suspend, together(control.OpSuspend, names)...)
	}
	for _, names := range slices.Backward(levels) {
		resume = append(resume, together(control.OpResume, names)...)
	}
	return slices.Concat(steps, suspend, begin, resume), nil
}

// together does the same to several devices at the same time.
func together(op string, names []string) (steps []control.Step) {
	for i, name := range names {
		steps = append(steps, control.Step{Op: op, Key: control.ByName(name), Together: i > 0})
	}
	return steps
}

// toSuspend lists the origin devices that run, tops first: those of one list do
// not stand on each other.
func (s *session) toSuspend(all []member) (levels [][]string) {
	var names []string
	above := map[string]int{} // what stands on another has fewer above it
	for _, m := range all {
		if o := m.base.origin; o != nil && !o.Suspended && !slices.Contains(names, o.Name) {
			names = append(names, o.Name)
			above[o.Name] = len(s.above(o.Name))
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(above[a], above[b]) })
	for i, name := range names {
		if i == 0 || above[name] != above[names[i-1]] {
			levels = append(levels, nil)
		}
		last := len(levels) - 1
		levels[last] = append(levels[last], name)
	}
	return levels
}

// snapshotSteps makes one snapshot: a device, its table, and its beginning.
func snapshotSteps(m member) ([]control.Step, error) {
	b, cow, o := m.base, m.cow, m.o
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
	return steps, nil
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

// freezeFor freezes the file systems on the origin devices and on what stands on
// them; nil when there is nothing to freeze.
func (s *session) freezeFor(ctx context.Context, all []member) (*frozen, error) {
	var names []string
	for _, m := range all {
		if m.base.origin != nil && !m.o.noFreeze && !slices.Contains(names, m.base.origin.Name) {
			names = append(names, m.base.origin.Name)
		}
	}
	list, err := s.mountedOn(names)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	needed := daemonFiles(s.v.PID)
	for _, m := range all {
		needed[m.cow.path] = "the COW file"
	}
	needed[s.v.RunDir] = "the run directory of the daemon"
	if err := freezeConflict(list, needed); err != nil {
		return nil, err
	}
	return (freezer{command: []string{"/proc/self/exe", holdVerb}, lock: filepath.Join(s.v.RunDir, "freeze.lock")}).freeze(ctx, list, all[0].o.freezeLimit)
}

// mountedOn lists the file systems on these devices and on what stands on them,
// tops first.
func (s *session) mountedOn(names []string) (list []frozenFS, err error) {
	var devices []mapped // tops first
	for _, name := range names {
		m, _ := s.called(name)
		devices = append(devices, append(s.above(name), m)...)
	}
	slices.SortStableFunc(devices, func(a, b mapped) int { return cmp.Compare(len(s.above(a.Name)), len(s.above(b.Name))) })
	for _, m := range devices {
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
	return list, nil
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
