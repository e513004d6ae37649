package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/kcopyd"
	"github.com/spf13/cobra"
)

// mergeOptions is what the command line of snapshot merge says.
type mergeOptions struct {
	name        string
	wait        bool
	keepCOW     bool
	originInUse bool
	force       bool
	throttle    string
}

func newSnapshotMergeCommand(a *app) *cobra.Command {
	var o mergeOptions
	cmd := &cobra.Command{
		Use:   "merge NAME",
		Short: "Make a snapshot part of its origin, which becomes what the snapshot is",
		Long: `Make the origin of a snapshot what the snapshot is, and remove the snapshot. The
origin device shows the data of the snapshot at once and is used meanwhile; the
data is moved in the background, also when this command is gone or the daemon was
killed. In the end there is a plain origin device, and the COW file is deleted if
snapshot create made it. Other snapshots of the origin stay as they are.

A snapshot of a frozen base, which has no origin device, becomes one itself: its
device stays, in use or not, and is a plain origin device over the base in the end.

What was changed in the origin since the snapshot was made is gone. A snapshot in
use is refused, and so is an origin device in use: what is mounted from it would
see its data change and write old data over it.

With the name of the origin device, or the snapshot again, a merge under way is
followed, and one that has failed is tried again.`,
		Example: `  dmfuse snapshot merge before-upgrade --wait
  dmfuse policy disk throttle=20m/s
  dmfuse jobs disk`,
		Args: asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			if _, ok := kcopyd.ParseLimit(o.throttle); !ok && o.throttle != "" {
				return usagef("--throttle %s: expected a percentage, 0 to 100, or bytes a second, like 20m/s", o.throttle)
			}
			return a.snapshotMerge(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.wait, "wait", false, "return when it is done")
	f.BoolVar(&o.keepCOW, "keep-cow", false, "keep the COW, which is an empty store then")
	f.StringVar(&o.throttle, "throttle", "", "share of the time in percent, or bytes a second, like 20m/s (later: dmfuse policy)")
	f.BoolVar(&o.originInUse, "origin-in-use", false, "the origin device may be open: its users see its data change")
	f.BoolVar(&o.force, "force", false, "merge a snapshot that is read-only, or whose COW was full")
	return cmd
}

// mergeAnswer is the answer of snapshot merge.
type mergeAnswer struct {
	Snapshot string `json:"snapshot"`
	Device   string `json:"device"` // that has the data now
	Path     string `json:"path"`
	COW      string `json:"cow"`
	KeepCOW  bool   `json:"keep_cow"`
	Done     bool   `json:"done"`
}

func (a *app) snapshotMerge(ctx context.Context, o mergeOptions) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	// The merges first: one that ends in between is seen in its device.
	list, err := s.c.Merges(ctx)
	if err != nil {
		return err
	}
	if err := s.loadAll(ctx, true); err != nil {
		return err
	}
	merge, running := s.mergeCalled(list, o.name)
	d, ok := s.called(o.name)
	if ok {
		_, ok = d.only("snapshot-origin")
	}
	switch {
	case running:
		err = a.mergeAgain(ctx, s, merge, o)
	case ok && o.wait: // who waits for the end of a merge may come late
		a.note("no snapshot is being merged into %s", o.name)
		if a.json {
			err = a.printJSON(mergeAnswer{Device: d.Name, Path: d.Path, Done: true})
		}
		return err
	default:
		merge, err = a.beginMerge(ctx, s, o)
	}
	if err != nil {
		return err
	}
	answer := mergeAnswer{Snapshot: merge.Snapshot, Device: merge.Device, COW: merge.COW, KeepCOW: merge.KeepCOW}
	if d, ok := s.called(merge.Device); ok {
		answer.Path = d.Path
	}
	if o.wait {
		var total int64 // at the end there is no job that tells
		answer.Done, err = a.follow(ctx, func(ctx context.Context) (work, error) {
			w, err := s.mergeWork(ctx, merge)
			total = max(total, w.TotalBytes)
			if w.State == workDone {
				w.DoneBytes, w.TotalBytes = total, total
			}
			return w, err
		})
		if err != nil {
			return err
		}
	}
	if a.json {
		return a.printJSON(answer)
	}
	return nil
}

// mergeCalled finds the merge of that snapshot, or into that device.
func (s *session) mergeCalled(list []control.Merge, name string) (control.Merge, bool) {
	_, there := s.called(name)
	i := slices.IndexFunc(list, func(m control.Merge) bool { return m.Device == name || m.Snapshot == name && !there })
	if i < 0 {
		return control.Merge{}, false
	}
	return list[i], true
}

// mergeAgain is for a merge that is under way: one that has failed is tried again,
// and a throttle counts from now on.
func (a *app) mergeAgain(ctx context.Context, s *session, m control.Merge, o mergeOptions) error {
	if o.keepCOW && !m.KeepCOW {
		return fail(exitBusy, fmt.Errorf("the merge of %s into %s is under way, without --keep-cow", m.Snapshot, m.Device),
			"it goes on as it began; follow it with: dmfuse snapshot merge "+shellQuote(m.Device)+" --wait")
	}
	if o.throttle != "" {
		text, err := s.c.Message(ctx, control.ByName(m.Device), 0, []string{"policy", "throttle=" + o.throttle})
		if err != nil {
			return fmt.Errorf("the merge of %s into %s is under way, and its throttle stays as it is: %w", m.Snapshot, m.Device, err)
		}
		if strings.HasSuffix(text, "kept=no") {
			a.note("the throttle counts until the daemon ends: it could not be kept beside the COW")
		}
	}
	jobs, err := s.c.Jobs(ctx, control.ByName(m.Device))
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Kind == "merge" && j.State == "failed" {
			_, err := s.c.Message(ctx, control.ByName(m.Device), 0, []string{"continue"})
			return err
		}
	}
	if !o.wait {
		a.note("the merge of %s into %s is under way; see it with: dmfuse jobs", m.Snapshot, m.Device)
	}
	return nil
}

func (a *app) beginMerge(ctx context.Context, s *session, o mergeOptions) (control.Merge, error) {
	m, err := s.snapshotAmong(o.name)
	if err != nil {
		return control.Merge{}, err
	}
	if err := s.checkMergeable(m, o); err != nil {
		return control.Merge{}, err
	}
	device, err := s.mergeDevice(m, o)
	if err != nil {
		return control.Merge{}, err
	}
	merge, err := s.c.Merge(ctx, control.MergeRequest{Snapshot: m.Name, Device: device.Name, KeepCOW: o.keepCOW, Throttle: o.throttle})
	switch code := errorCode(err); {
	case code == control.CodeNoDaemon:
		return merge, fail(exitNoDaemon, fmt.Errorf("whether the merge of %s has begun is not known: %w", m.Name, err), "start a daemon and see: dmfuse serve, dmfuse jobs")
	case err != nil:
		return merge, fmt.Errorf("the merge of %s does not begin, and nothing is changed: %w", m.Name, stepText(err))
	}
	if device.Name == m.Name && !a.json {
		a.note("%s has no origin device: %s becomes that", s.wordText(m.lines[0].Args[0]), m.Name)
	}
	return merge, nil
}

// checkMergeable refuses a snapshot that cannot be merged, or that somebody has
// open.
func (s *session) checkMergeable(m mapped, o mergeOptions) error {
	i, err := s.snapshotInfo(m)
	if err != nil {
		return err
	}
	refuse := func(why, next string) error {
		return fail(exitFailed, fmt.Errorf("%s cannot be merged: %s", m.Name, why), next)
	}
	remove := "remove it: dmfuse snapshot rm " + shellQuote(m.Name)
	switch {
	case m.lines[0].Type == "snapshot-merge":
		return fail(exitBusy, fmt.Errorf("%s is a merge already, by its table", m.Name), "see it with: dmfuse jobs; when it is done, load the table of a plain origin device")
	case i.State == "invalid":
		return refuse("it is invalid, and what it held is lost", remove)
	case i.State == "waiting" || i.State == "merge-failed":
		return refuse("another table has its store", "see which: dmfuse table")
	case i.Store == "N":
		return refuse("it is temporary, and only a store with metadata on the disk can be merged", "copy its data: dd if="+shellQuote(m.Path)+" of=FILE")
	case m.Suspended:
		return fail(exitBusy, fmt.Errorf("%s is suspended", m.Name), "resume it first: dmfuse resume "+shellQuote(m.Name))
	case slices.Contains(m.lines[0].Args, "damaged"):
		return refuse("its store is damaged, and would leave the origin as damaged", "see what is wrong: dmfuse snapshot open")
	case i.State == "overflow" && !o.force:
		return refuse("its COW was full, and writes to it failed", "check what it shows, then merge it with --force")
	case m.ReadOnly && !o.force:
		return refuse("it was made to stay as it is, read-only", "to make the origin what it was then all the same: --force")
	}
	return nil
}

// mergeDevice is the device that the merge goes to: the origin device, or the
// snapshot itself where its base has none.
func (s *session) mergeDevice(m mapped, o mergeOptions) (mapped, error) {
	base, err := s.findWord(m.lines[0].Args[0])
	if err != nil {
		return m, err
	}
	d, ok := s.originOver(base)
	if !ok {
		return m, s.checkBaseOfMerge(m, base)
	}
	for _, u := range s.usesOf(base) {
		switch {
		case u.device.Name == d.Name || u.role == "base" || u.role == "COW":
		case u.role == "origin" && u.device.lines[0].Type == "snapshot-merge":
			return d, fail(exitBusy, fmt.Errorf("the origin of %s is being merged by %s", m.Name, u.device.Name), "wait for that: dmfuse jobs "+shellQuote(u.device.Name))
		case !u.device.ReadOnly:
			return d, fail(exitBusy, fmt.Errorf("%s has the %s device %s beside %s, which could write to it", base.what(), u.role, u.device.Name, d.Name), "remove that device first")
		}
	}
	if who, next := s.holdersOf(m); len(who) > 0 {
		return d, fail(exitBusy, fmt.Errorf("the snapshot %s is in use by %s", m.Name, strings.Join(who, ", ")), next)
	}
	switch who, next := s.holdersOf(d); {
	case d.Suspended:
		return d, fail(exitBusy, fmt.Errorf("the origin device %s is suspended", d.Name), "resume it first: dmfuse resume "+shellQuote(d.Name))
	case d.ReadOnly:
		return d, failf(exitFailed, "the origin device %s is read-only", d.Name)
	case len(who) > 0 && !o.originInUse:
		return d, fail(exitBusy, fmt.Errorf("the origin device %s is in use by %s, and its data is going to change", d.Name, strings.Join(who, ", ")),
			next+"; or, if its users can stand it: --origin-in-use")
	}
	return d, nil
}

// checkBaseOfMerge refuses a frozen base that others use: the merge writes to it.
// Other snapshots of it are no hindrance, they are looked after.
func (s *session) checkBaseOfMerge(m mapped, base place) error {
	for _, u := range s.usesOf(base) {
		if u.device.Name == m.Name || u.role == "base" {
			continue
		}
		if u.role == "origin" {
			return fail(exitBusy, fmt.Errorf("%s is being merged by %s", base.what(), u.device.Name), "wait for that: dmfuse jobs "+shellQuote(u.device.Name))
		}
		return fail(exitBusy, fmt.Errorf("%s is used by the %s device %s, which would see it change", base.what(), u.role, u.device.Name), "remove that device first")
	}
	users, err := s.writersOf(base)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return busy(base, users, "end this use first")
	}
	return nil
}

// mergeWork is how far a merge is.
func (s *session) mergeWork(ctx context.Context, m control.Merge) (work, error) {
	w := work{Device: m.Device, Kind: "merge", State: "running", LeftSeconds: -1, next: "when the cause is gone: dmfuse snapshot merge " + shellQuote(m.Device)}
	// The jobs first: one that ends in between is seen in the list.
	jobs, err := s.c.Jobs(ctx, control.ByName(m.Device))
	if errorCode(err) == control.CodeNotFound {
		w.State, w.Detail, w.next = workFailed, "the device was removed", "open the COW as a snapshot again: dmfuse snapshot open "+shellQuote(m.COW)+" ORIGIN"
		return w, nil
	}
	if err != nil {
		return w, err
	}
	for _, j := range jobs {
		if j.Kind == w.Kind {
			next := w.next
			w = workOf(j)
			w.next = next
		}
	}
	list, err := s.c.Merges(ctx)
	if err != nil {
		return w, err
	}
	i := slices.IndexFunc(list, func(x control.Merge) bool { return x.Device == m.Device && x.Begun.Equal(m.Begun) })
	switch {
	case i >= 0 && list[i].Waits != "":
		w.State, w.Detail = "waiting", list[i].Waits
	case i < 0:
		return s.mergeEnded(ctx, w)
	}
	return w, nil
}

// mergeEnded tells an end from a merge that somebody broke off.
func (s *session) mergeEnded(ctx context.Context, w work) (work, error) {
	d, err := s.device(ctx, w.Device)
	if err != nil {
		return w, err
	}
	if _, ok := d.only("snapshot-origin"); ok {
		w.State, w.RateBytes = workDone, 0
		return w, nil
	}
	w.State, w.Detail, w.next = workFailed, "the device has another table", "see it with: dmfuse table "+shellQuote(w.Device)
	return w, nil
}
