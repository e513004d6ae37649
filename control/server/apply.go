package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/sirupsen/logrus"
)

// undoLimit is how long the undoing of an apply may take in all.
const undoLimit = 60 * time.Second

// single makes the handler of one operation on one device, as the kernel does
// it: what a failing operation changed on its way stays.
func (s *Server) single(op string) handler {
	return func(r *http.Request) (any, error) {
		var st control.Step
		if err := body(r, &st); err != nil {
			return nil, err
		}
		if st.Op != "" && st.Op != op {
			return nil, control.Errorf(control.CodeInvalid, "the body says op %q, the path %q", st.Op, op)
		}
		st.Op = op
		res, _, err := s.step(r.Context(), st, stepMode{})
		if err != nil {
			return nil, stepError(err, -1, st, nil)
		}
		return res, nil
	}
}

// applySteps runs a list of steps, all or nothing.
func (s *Server) applySteps(r *http.Request) (any, error) {
	var req control.ApplyRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	ctx := r.Context()
	if req.ID != "" {
		named, end, err := s.named.begin(ctx, req.ID)
		if err != nil {
			return nil, err
		}
		defer end()
		ctx = named
	}
	return s.Apply(ctx, req.Steps)
}

// Apply runs steps in order, all or nothing, as for a request. Only one list is
// run at a time.
func (s *Server) Apply(ctx context.Context, steps []control.Step) (control.ApplyReply, error) {
	select {
	case s.apply <- struct{}{}:
		defer func() { <-s.apply }()
	case <-ctx.Done():
		return control.ApplyReply{}, ctx.Err()
	}
	run := &applyRun{s: s, all: steps, batch: s.opts.Manager.Batch(), made: map[string]int{}}
	run.reply.Results = []control.StepResult{} // an empty list, not null
	defer run.close(ctx)
	for i := 0; i < len(steps); {
		n := 1
		for i+n < len(steps) && steps[i+n].Together {
			n++
		}
		// The caller may have gone between two steps.
		if err := ctx.Err(); err != nil {
			return run.reply, run.fail(ctx, err, i, steps[i])
		}
		if err := run.together(ctx, i, steps[i:i+n]); err != nil {
			return run.reply, err
		}
		i += n
		step.At("apply-step")
	}
	run.finished = true
	if err := run.batch.End(); err != nil {
		s.log.WithError(err).Error("a daemon that dies now does not bring back what was made")
	}
	return run.reply, nil
}

// applyRun is one apply under way.
type applyRun struct {
	s        *Server
	all      []control.Step
	batch    *mapper.Batch // of what is made
	reply    control.ApplyReply
	undos    []*undo
	made     map[string]int // minors of the devices made by this apply
	stands   string         // the last step that cannot be undone
	finished bool           // all steps done, or undone
	stopped  time.Time      // the first suspend began; zero: there was none
}

// mode is how step i of the request is done. A suspend passes when all that the
// request does to the device afterwards is to resume it.
func (a *applyRun) mode(i int, st control.Step) stepMode {
	m := stepMode{batch: a.batch, undoable: !a.isMade(st.Name)}
	for _, later := range a.all[i+1:] {
		if st.Op == control.OpSuspend && st.Name != "" && later.Name == st.Name {
			m.passing = later.Op == control.OpResume
			break
		}
	}
	return m
}

// outcome is what a step did.
type outcome struct {
	res  control.StepResult
	back *undo
	err  error
}

// together runs steps at the same time; first is the index of the first one.
// When one fails, all are taken back when all have ended.
func (a *applyRun) together(ctx context.Context, first int, steps []control.Step) error {
	began := time.Now()
	done := make([]outcome, len(steps))
	var panics sync.Map
	var wg sync.WaitGroup
	for i, st := range steps[1:] {
		mode := a.mode(first+i+1, st)
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					panics.Store(i, p)
				}
			}()
			o := &done[i+1]
			o.res, o.back, o.err = a.s.step(ctx, st, mode)
		})
	}
	func() {
		defer wg.Wait()
		done[0].res, done[0].back, done[0].err = a.s.step(ctx, steps[0], a.mode(first, steps[0]))
	}()
	failed := -1
	for i, o := range done {
		a.note(steps[i], o.res, o.back, o.err)
		if o.err != nil && failed < 0 {
			failed = i
		}
		a.reply.Results = append(a.reply.Results, o.res)
	}
	panics.Range(func(_, p any) bool { panic(p) })
	a.time(steps[0].Op, began)
	if failed >= 0 {
		return a.fail(ctx, done[failed].err, first+failed, steps[failed])
	}
	return nil
}

// time notes how long devices are suspended.
func (a *applyRun) time(op string, began time.Time) {
	switch {
	case op == control.OpSuspend && a.stopped.IsZero():
		a.stopped = began
	case op == control.OpResume && !a.stopped.IsZero():
		a.reply.SuspendedMillis = float64(time.Since(a.stopped).Microseconds()) / 1000
	}
}

// note keeps how to take back what a step did.
func (a *applyRun) note(st control.Step, res control.StepResult, back *undo, err error) {
	switch {
	case err == nil && (st.Op == control.OpRemove || st.Op == control.OpSetUUID):
		// What came before cannot be taken back without losing more.
		a.stands = st.Op + " of " + keyText(st.Key)
		a.undos = nil
		return
	case st.Op == control.OpCreate && res.Device != nil:
		a.made[st.Name] = res.Device.Minor
	case st.Op != control.OpCreate && a.isMade(st.Name):
		return // the device goes as a whole
	}
	if back != nil {
		a.undos = append(a.undos, back)
	}
}

func (a *applyRun) isMade(name string) bool {
	_, ok := a.made[name]
	return ok
}

// fail takes everything back and says what went wrong in which step.
func (a *applyRun) fail(ctx context.Context, err error, i int, st control.Step) error {
	var minor *int
	if n, ok := a.made[st.Name]; ok && st.Name != "" {
		minor = &n
	}
	e := stepError(err, i, st, minor)
	if minor != nil {
		e.Major = a.s.opts.Manager.Major()
	}
	e.Undo = a.undoAll(ctx)
	return e
}

// undoAll runs the notes in reverse order and says which failed. It goes on
// when the caller is gone.
func (a *applyRun) undoAll(ctx context.Context) string {
	a.finished = true
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	var left []string
	for i := len(a.undos) - 1; i >= 0; i-- {
		if err := a.undos[i].run(ctx); err != nil {
			left = append(left, fmt.Sprintf("%s: %v", a.undos[i].what, err))
			a.s.log.WithFields(logrus.Fields{"step": a.undos[i].what}).WithError(err).Error("a step could not be undone")
		}
	}
	if err := a.batch.End(); err != nil {
		left = append(left, err.Error())
	}
	if a.stands != "" {
		left = append(left, a.stands+" and the steps before it stand")
	}
	return strings.Join(left, "; ")
}

// close takes everything back when the run ended in a panic.
func (a *applyRun) close(ctx context.Context) {
	if !a.finished {
		a.undoAll(ctx)
	}
}

// stepError adds to an error which step of which device it is about.
func stepError(err error, i int, st control.Step, minor *int) *control.Error {
	e := *wireError(err)
	e.Step, e.Op, e.Minor = i, st.Op, minor
	if e.Device == "" {
		e.Device = keyText(st.Key)
	}
	return &e
}
