package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

// merges brings what snapshot merge began to its end, whoever is still there to
// see it: when the last chunk is merged the device gets its plain table back, and
// the store is tidied up. A merge by a table line is left alone: it stays as the
// kernel's does until somebody loads another table.
//
// What is to be done is found out from the devices, not remembered: a record only
// says that a merge is ours. So a daemon that was killed at any moment goes on.
type merges struct {
	manager *mapper.Manager
	apply   func(context.Context, []control.Step) (control.ApplyReply, error)
	dir     string
	log     logrus.FieldLogger

	turn sync.Mutex // one merge begins or ends at a time; held across I/O

	mu      sync.Mutex
	records []*mergeRecord // replaced, never changed, as the records are; guarded by mu

	stop  context.CancelFunc
	ended chan struct{}
}

func newMerges(manager *mapper.Manager, dir string, log logrus.FieldLogger) *merges {
	m := &merges{manager: manager, dir: dir, log: log}
	var problems []error
	m.records, problems = readMergeRecords(dir)
	slices.SortFunc(m.records, func(a, b *mergeRecord) int { return a.Time.Compare(b.Time) })
	if err := errors.Join(problems...); err != nil {
		log.WithError(err).Error("not all merges are known")
	}
	return m
}

// start takes care of the merges there are, and of those to come.
func (m *merges) start(apply func(context.Context, []control.Step) (control.ApplyReply, error)) {
	m.apply = apply
	ctx, stop := context.WithCancel(context.Background())
	m.stop, m.ended = stop, make(chan struct{})
	events, leave := m.manager.Subscribe()
	m.settle(ctx)
	go func() {
		defer close(m.ended)
		defer leave()
		m.watch(ctx, events)
	}()
}

// close ends what start began. Merges that are not at their end are said.
func (m *merges) close() {
	if m.stop == nil {
		return
	}
	m.stop()
	<-m.ended
	for _, r := range m.list() {
		m.log.WithFields(logrus.Fields{"snapshot": r.Name, "cow": r.COW}).
			Warn("a merge is not at its end, and the origin alone is half of the data: open the COW again as a snapshot and merge that")
	}
}

// lookEvery is how often the devices are looked at without an event.
const lookEvery = 5 * time.Second

func (m *merges) watch(ctx context.Context, events <-chan mapper.Event) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			switch e.Kind {
			case mapper.EventTarget, mapper.EventResume, mapper.EventSwap, mapper.EventRemove:
			default:
				if e.Missed == 0 {
					continue
				}
			}
		case <-tick.C:
		}
		m.settle(ctx)
	}
}

// list is a copy of the records.
func (m *merges) list() []*mergeRecord {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.records
}

// put replaces the record of a device, or takes it away if next is nil.
func (m *merges) put(old, next *mergeRecord) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := slices.Clone(m.records)
	i := slices.Index(list, old)
	switch {
	case i < 0 && next != nil:
		list = append(list, next)
	case i >= 0 && next != nil:
		list[i] = next
	case i >= 0:
		list = slices.Delete(list, i, i+1)
	}
	m.records = list
}

// List is what the API tells.
func (m *merges) List() []control.Merge {
	var list []control.Merge
	for _, r := range m.list() {
		if r.Begun {
			list = append(list, m.wire(r))
		}
	}
	return list
}

func (m *merges) wire(r *mergeRecord) control.Merge {
	w := control.Merge{Snapshot: r.Name, COW: r.COW, KeepCOW: r.KeepCOW, Begun: r.Time, Waits: r.waits}
	if d, ok := m.manager.BySerial(r.Device); ok {
		w.Device = d.Name()
	}
	return w
}

// settle brings each merge as far as it can go.
func (m *merges) settle(ctx context.Context) {
	if len(m.list()) == 0 {
		return
	}
	m.turn.Lock()
	defer m.turn.Unlock()
	for _, r := range m.list() {
		if ctx.Err() != nil {
			return
		}
		m.settleOne(ctx, r)
	}
}

// settleOne looks where a merge is.
func (m *merges) settleOne(ctx context.Context, r *mergeRecord) {
	d, ok := m.manager.BySerial(r.Device)
	if !ok {
		why := ""
		if r.Begun {
			why = "its device is gone, and what is not merged is in the COW: open that again as a snapshot"
		}
		m.over(r, why)
		return
	}
	line, _ := onlyLine(d, false)
	merging := line.Type == "snapshot-merge" && r.owns(line)
	switch {
	case !r.Begun && !merging:
		m.takeBack(ctx, r)
	case merging:
		if r = m.begun(ctx, r); mergeState(ctx, d) == "merged" {
			m.finish(ctx, r, d, line)
		}
	case line.Type == "snapshot-origin":
		m.tidy(r, d, line) // from before a kill
	default:
		d.Tell(mapper.EventProblem, "the merge of "+r.Name+" is broken off: the device has another table")
		m.over(r, "the device has another table")
	}
}

// owns says whether a merge is that of the record.
func (r *mergeRecord) owns(line mapper.Line) bool {
	return len(line.Args) >= 2 && (line.Args[1] == r.COW || !filepath.IsAbs(r.COW))
}

// mergeState is what a merge says of itself.
func mergeState(ctx context.Context, d *mapper.Device) string {
	text, err := d.Message(ctx, 0, []string{"usage"})
	var u snapshot.Usage
	if err != nil || json.Unmarshal([]byte(text), &u) != nil {
		return ""
	}
	return u.State
}

// onlyLine is the one line of a table that has no more.
func onlyLine(d *mapper.Device, inactive bool) (mapper.Line, bool) {
	var text strings.Builder
	for _, t := range d.Status(target.StatusTable, inactive, true) {
		fmt.Fprintf(&text, "%d %d %s %s\n", t.Start, t.Length, t.Type, t.Params)
	}
	lines, err := mapper.ParseTable(text.String(), mapper.GrammarDmfuse)
	if err != nil || len(lines) != 1 {
		return mapper.Line{}, false
	}
	return lines[0], true
}

// begun notes that a merge is under way, and removes the device of its snapshot.
func (m *merges) begun(ctx context.Context, r *mergeRecord) *mergeRecord {
	if !r.Begun {
		next := *r
		next.Begun, next.Base, next.Guarded = true, "", nil
		if err := next.write(m.dir); err != nil {
			m.log.WithError(err).Error("the record of a merge cannot be written")
		}
		m.put(r, &next)
		r = &next
	}
	step.At("merge-begun")
	s, ok := m.manager.BySerial(r.Snapshot)
	if !ok || r.Snapshot == r.Device {
		return r
	}
	_, err := m.manager.Remove(ctx, mapper.ByName(s.Name()), mapper.RemoveOptions{Wait: -1})
	if err != nil && ctx.Err() == nil { // opened in the last moment: it answers EIO
		_ = s.Resume(ctx, mapper.SuspendOptions{})
		_, err = m.manager.Remove(ctx, mapper.ByName(s.Name()), mapper.RemoveOptions{Deferred: true})
	}
	if err != nil {
		m.log.WithError(err).WithField("device", s.Name()).Warn("a snapshot that was merged is not removed")
	}
	return r
}

// finish gives the device its plain table. One that somebody suspended, or into
// which somebody loaded a table, is theirs for now.
func (m *merges) finish(ctx context.Context, r *mergeRecord, d *mapper.Device, line mapper.Line) {
	info := d.Info(false)
	switch {
	case info.Suspended:
		m.wait(r, "the device is suspended")
		return
	case info.Inactive && !m.isPlain(d, line): // else it is ours, from before a kill
		m.wait(r, "the device has an inactive table")
		return
	}
	plain := mapper.Line{Length: line.Length, Type: "snapshot-origin", Args: line.Args[:1]}
	err := d.Load(ctx, []mapper.Line{plain}, false)
	step.At("merge-end-loaded")
	if err == nil {
		if err = d.Resume(ctx, mapper.SuspendOptions{}); err != nil {
			err = errors.Join(err, d.Clear())
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			m.wait(r, err.Error())
		}
		return
	}
	step.At("merge-replaced")
	m.tidy(r, d, plain)
}

// isPlain says whether the inactive table is the one that the end of a merge loads.
func (m *merges) isPlain(d *mapper.Device, merge mapper.Line) bool {
	line, ok := onlyLine(d, true)
	return ok && line.Type == "snapshot-origin" && line.Length == merge.Length && slices.Equal(line.Args, merge.Args[:1])
}

// wait notes why the end has to wait, and says it once.
func (m *merges) wait(r *mergeRecord, why string) {
	if r.waits == why {
		return
	}
	next := *r
	next.waits = why
	m.put(r, &next)
	m.log.WithFields(logrus.Fields{"snapshot": r.Name, "why": why}).Warn("the end of a merge has to wait")
}

// tidy deals with the store when the device has its plain table.
func (m *merges) tidy(r *mergeRecord, d *mapper.Device, line mapper.Line) {
	text := "the merge of " + r.Name + " is done: this is a plain origin device again"
	deleted, err := r.tidyStore(line.Args[0])
	step.At("merge-tidied")
	if err != nil {
		m.log.WithError(err).WithField("cow", r.COW).Error("the COW of a merge is not tidied up")
		text += "; " + err.Error()
	}
	m.log.WithFields(logrus.Fields{"device": d.Name(), "snapshot": r.Name, "cow": r.COW, "cow_deleted": deleted}).Info("a merge is done")
	d.Tell(mapper.EventTarget, text)
	m.over(r, "")
}

// over forgets a merge.
func (m *merges) over(r *mergeRecord, why string) {
	if why != "" {
		m.log.WithFields(logrus.Fields{"snapshot": r.Name, "cow": r.COW}).Warn("a merge is left alone: " + why)
	}
	if err := r.remove(m.dir); err != nil {
		m.log.WithError(err).Error("the record of a merge stays")
	}
	m.put(r, nil)
}

// takeBack undoes what was done for a merge that had not begun when the daemon
// was killed.
func (m *merges) takeBack(ctx context.Context, r *mergeRecord) {
	if d, ok := m.manager.BySerial(r.Device); ok {
		if line, ok := onlyLine(d, true); ok && line.Type == "snapshot-merge" && r.owns(line) {
			if err := d.Clear(); err != nil {
				m.log.WithError(err).Error("the table of a merge that had not begun stays")
			}
		}
	}
	if s, ok := m.manager.BySerial(r.Snapshot); ok && s.Info(false).Suspended {
		if err := s.Resume(ctx, mapper.SuspendOptions{}); err != nil {
			m.log.WithError(err).WithField("device", s.Name()).Error("a snapshot whose merge had not begun stays suspended")
		}
	}
	m.undo(r)
	m.over(r, "")
}

// undo gives back what a merge that does not begin had taken: the guards of a
// frozen base, the note in the sidecar.
func (m *merges) undo(r *mergeRecord) {
	for _, serial := range r.Guarded {
		d, ok := m.manager.BySerial(serial)
		if !ok || m.manager.Guards(d, r.Base) {
			continue
		}
		if err := m.manager.GuardBase(d, r.Base); err != nil {
			m.log.WithError(err).WithField("device", d.Name()).Error("a frozen base is not watched any more")
		}
	}
	if cow, err := fileAt(r.COW); err == nil && filepath.IsAbs(r.COW) && !cow.block {
		if err := unmarkMerging(cow); err != nil {
			m.log.WithError(err).Warn("the sidecar still says that a merge is under way")
		}
	}
}
