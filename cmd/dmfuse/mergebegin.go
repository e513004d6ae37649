package main

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/target"
)

// Begin begins a merge, all or nothing:
//
//	record: not begun → the merge is loaded into the device → the snapshot is
//	suspended → the device is resumed with it → record: begun → the snapshot is
//	removed
//
// A kill before the device's resume is recorded leaves everything as it was
// ([merges.takeBack]); after it the merge goes on, with the snapshot's exceptions
// in whichever order the two come back.
func (m *merges) Begin(ctx context.Context, req control.MergeRequest) (control.Merge, error) {
	m.turn.Lock()
	defer m.turn.Unlock()
	s, d, line, err := m.check(ctx, req)
	if err != nil {
		return control.Merge{}, err
	}
	if err := ctx.Err(); err != nil { // gone while it waited for its turn
		return control.Merge{}, err
	}
	// From here on a caller that goes away changes nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), beginLimit)
	defer cancel()
	r := &mergeRecord{
		Device: d.Serial(), Snapshot: s.Serial(), Name: s.Name(), COW: line.Args[1], KeepCOW: req.KeepCOW,
		Time: time.Now().UTC(),
	}
	if err := m.prepare(r, s, d, line, req.Throttle); err != nil {
		return control.Merge{}, err
	}
	step.At("merge-prepared")
	if _, err := m.apply(ctx, mergeSteps(s, d, line)); err != nil {
		m.undo(r)
		m.over(r, "")
		return control.Merge{}, err
	}
	if req.Throttle != "" { // where no sidecar said it
		_, _ = d.Message(ctx, 0, []string{"throttle", req.Throttle})
	}
	step.At("merge-live")
	r = m.begun(ctx, r)
	m.log.WithFields(map[string]any{"device": d.Name(), "snapshot": r.Name}).Info("a merge begins")
	d.Tell(mapper.EventTarget, "the merge of "+r.Name+" begins")
	return m.wire(r), nil
}

// beginLimit is how long the two devices may take to be suspended.
const beginLimit = time.Minute

// prepare writes down what is going to happen, and ends what would be in its way.
// When it fails all is as before.
func (m *merges) prepare(r *mergeRecord, s, d *mapper.Device, line mapper.Line, throttle string) error {
	var cow place
	if filepath.IsAbs(r.COW) {
		var err error
		if cow, err = fileAt(r.COW); err != nil {
			return err
		}
		if !cow.block {
			r.Inode = cow.stat.Ino
		}
	}
	if s == d && filepath.IsAbs(line.Args[0]) {
		r.Base = line.Args[0]
		for _, x := range m.manager.Devices() {
			if m.manager.Guards(x, r.Base) {
				r.Guarded = append(r.Guarded, x.Serial())
			}
		}
	}
	if err := r.write(m.dir); err != nil {
		return control.Errorf(control.CodeIO, "the record of the merge cannot be written: %v", err)
	}
	m.put(nil, r)
	step.At("merge-planned")
	var err error
	if len(r.Guarded) > 0 { // the daemon is going to write the base
		err = m.manager.EndGuards(r.Base)
	}
	if err == nil && r.Inode != 0 {
		if err = markMerging(cow, d.Name(), throttle); err != nil {
			err = control.Errorf(control.CodeIO, "the sidecar of the COW cannot be written: %v", err)
		}
	}
	if err != nil {
		m.undo(r)
		m.over(r, "")
	}
	return err
}

// mergeSteps makes the device a merge. The resume comes last: when it is done
// there is no way back, and nothing is left that could fail.
func mergeSteps(s, d *mapper.Device, line mapper.Line) []control.Step {
	key := control.ByName(d.Name())
	length := line.Length
	if s != d {
		length = d.Info(false).Size
	}
	steps := []control.Step{{Op: control.OpLoad, Key: key, Table: []control.Line{
		{Length: uint64(length), Type: "snapshot-merge", Args: line.Args[:4]},
	}}}
	if s != d {
		steps = append(steps, control.Step{Op: control.OpSuspend, Key: control.ByName(s.Name())})
	}
	return append(steps, control.Step{Op: control.OpResume, Key: key})
}

// check refuses what cannot be merged. The command has looked at who uses the
// devices; here is what must be so in any case.
func (m *merges) check(ctx context.Context, req control.MergeRequest) (s, d *mapper.Device, line mapper.Line, err error) {
	if _, ok := kcopyd.ParseLimit(req.Throttle); !ok && req.Throttle != "" {
		return nil, nil, line, control.Errorf(control.CodeInvalid, "throttle %q: expected a percentage, 0 to 100, or bytes a second, like 10m/s", req.Throttle)
	}
	if s, err = m.manager.Device(mapper.ByName(req.Snapshot)); err != nil {
		return nil, nil, line, err
	}
	if d, err = m.manager.Device(mapper.ByName(req.Device)); err != nil {
		return nil, nil, line, err
	}
	if s != d {
		s.AwaitClosed(ctx)
	}
	line, ok := onlyLine(s, false)
	if !ok || line.Type != "snapshot" || len(line.Args) < 4 {
		return nil, nil, line, control.Errorf(control.CodeInvalid, "%s is no snapshot", s.Name())
	}
	if err := checkStoreOfMerge(s, line); err != nil {
		return nil, nil, line, err
	}
	for _, x := range []*mapper.Device{s, d} {
		switch i := x.Info(false); {
		case i.Suspended:
			return nil, nil, line, control.Errorf(control.CodeBusy, "%s is suspended", i.Name)
		case i.Inactive:
			return nil, nil, line, control.Errorf(control.CodeBusy, "%s has an inactive table, which its next resume would bring in", i.Name)
		case x == s && x != d && i.OpenCount > 0:
			return nil, nil, line, control.Errorf(control.CodeBusy, "%s is open, %s", i.Name, count(i.OpenCount, "time"))
		case x == d && i.ReadOnly && x != s:
			return nil, nil, line, control.Errorf(control.CodeReadOnly, "%s is read-only", i.Name)
		}
	}
	if s == d {
		return s, d, line, nil
	}
	origin, ok := onlyLine(d, false)
	if ok && origin.Type == "snapshot-merge" {
		return nil, nil, line, control.Errorf(control.CodeBusy, "a snapshot is being merged into %s; see: dmfuse jobs %s", d.Name(), d.Name())
	}
	if !ok || origin.Type != "snapshot-origin" || !slices.Equal(origin.Args, line.Args[:1]) {
		return nil, nil, line, control.Errorf(control.CodeInvalid, "%s is not the origin device of %s", d.Name(), s.Name())
	}
	return s, d, line, nil
}

// checkStoreOfMerge refuses a store that cannot be merged, or has lost something.
func checkStoreOfMerge(s *mapper.Device, line mapper.Line) error {
	state := ""
	for _, t := range s.Status(target.StatusInfo, false, true) {
		state = t.Params
	}
	switch {
	case strings.HasPrefix(strings.ToUpper(line.Args[2]), "N"):
		return control.Errorf(control.CodeInvalid, "%s is temporary: a store without metadata cannot be merged", s.Name())
	case slices.Contains(line.Args, "damaged"):
		return control.Errorf(control.CodeInvalid, "the store of %s is damaged", s.Name())
	case state == "Invalid", state == "Unknown":
		return control.Errorf(control.CodeInvalid, "%s is %s", s.Name(), strings.ToLower(state))
	}
	return nil
}
