package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

// createOptions is what the command line of snapshot create says.
type createOptions struct {
	origin, name  string
	cow           cowWish
	readOnly      bool
	noFreeze      bool
	freezeLimit   time.Duration
	willNotChange bool
}

func newSnapshotCreateCommand(a *app) *cobra.Command {
	var o createOptions
	var group bool
	chunk, size, limit := newSizeFlag("4k"), newSizeFlag(""), newSizeFlag("")
	cmd := &cobra.Command{
		Use:   "create ORIGIN NAME [ORIGIN NAME...]",
		Short: "Make a point-in-time view of ORIGIN, and print its path",
		Long: `Make a view of ORIGIN as it is now, writable unless told otherwise, and print
the path of its file.

ORIGIN is an origin device (see: dmfuse origin create), which may go on being
written: file systems mounted on it are frozen for the moment, so that the view
is clean. Or it is a file or block device that nobody writes any more, a frozen
base; then it is watched, and a writer that appears makes the snapshot invalid.

With --group several snapshots are made at one instant, or none: what was
written before it, to whichever ORIGIN, is in them, and what was written later
is not. The other options hold for each.

What changes is kept in the COW, a sparse file beside ORIGIN unless told
otherwise, in the format of the kernel's dm-snapshot.`,
		Example: `  dmfuse snapshot create disk before-upgrade
  dmfuse snapshot create base.img scratch --temporary --cow-size 1g
  dmfuse snapshot create --group data data-monday log log-monday`,
		Args: asUsage(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !group && len(args) != 2 {
				return usagef("%d words: expected ORIGIN NAME; several snapshots at one instant are made with --group", len(args))
			}
			o.origin, o.name = args[0], args[1]
			o.cow.chunk, o.cow.size, o.cow.limit = chunk.bytes, size.bytes, limit.bytes
			if limit.given && limit.bytes == 0 {
				return usagef("--cow-limit 0: a COW needs room")
			}
			if size.given && size.bytes == 0 {
				return usagef("--cow-size 0: a COW needs room")
			}
			if group {
				return a.snapshotGroup(cmd.Context(), args, o)
			}
			return a.snapshotCreate(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.cow.path, "cow", "", "file, block device or device that keeps the changes (default: FILE.NAME.cow beside the origin)")
	f.StringVar(&o.cow.dir, "cow-dir", "", "folder for the COW, which is called NAME.cow there")
	f.BoolVar(&group, "group", false, "several snapshots, ORIGIN NAME ORIGIN NAME ..., at one instant, or none")
	f.Var(chunk, "chunk-size", "unit of copying, a power of two from 512 to 1g")
	f.Var(size, "cow-size", "room for changes (default: enough for all)")
	f.Var(limit, "cow-limit", "let the COW grow up to that (default with --overflow grow: enough for all)")
	f.StringVar(&o.cow.overflow, "overflow", "", "when it is full: grow, pause (writes wait), readonly (no more writes to the snapshot) or invalidate")
	f.BoolVar(&o.readOnly, "read-only", false, "a view that refuses writes")
	f.BoolVar(&o.cow.temp, "temporary", false, "faster; the changes are lost when the daemon ends, and the COW goes with the snapshot")
	f.BoolVar(&o.noFreeze, "no-freeze", false, "do not freeze mounted file systems: the view is as after a power cut")
	f.DurationVar(&o.freezeLimit, "freeze-limit", 30*time.Second, "thaw after that time, whatever happens")
	f.BoolVar(&o.willNotChange, "origin-will-not-change", false, "use a base that others have open for writing; what they write spoils the snapshot")
	f.BoolVar(&o.cow.force, "force", false, "overwrite a COW that is not empty")
	return cmd
}

// baseOf is what a snapshot is made of.
type baseOf struct {
	lower  place   // what the table names
	origin *mapped // the origin device over it; nil: a frozen base
	size   int64   // bytes
}

// resolveBase finds out whether ORIGIN is, or has, an origin device.
func (s *session) resolveBase(p place) (baseOf, error) {
	if m, ok := s.originOver(p); ok {
		return baseOf{p, &m, m.SizeBytes}, nil
	}
	for _, u := range s.usesOf(p) {
		if u.role == "origin" && u.device.isMerge() {
			return baseOf{}, mergeUnderWay(u.device)
		}
	}
	if p.device == nil {
		return baseOf{p, nil, int64(p.sectors()) * 512}, nil
	}
	m, _ := s.deviceOf(p.device.Name)
	if m.isMerge() {
		return baseOf{}, mergeUnderWay(m)
	}
	args, ok := m.only("snapshot-origin")
	if !ok || len(args) != 1 {
		return baseOf{p, nil, p.size}, nil
	}
	lower, err := s.findWord(args[0])
	return baseOf{lower, &m, p.size}, err
}

// mergeUnderWay is why an origin has no new snapshot for now.
func mergeUnderWay(m mapped) error {
	return fail(exitBusy, fmt.Errorf("a snapshot is being merged into %s, which has no new snapshots until that is done", m.Name),
		"wait for it: dmfuse snapshot merge "+shellQuote(m.Name)+" --wait; see how far it is: dmfuse jobs "+shellQuote(m.Name))
}

// checkFreezeLimit refuses a limit that is over before anything is frozen.
func (o *createOptions) checkFreezeLimit() error {
	if o.freezeLimit <= 0 {
		return usagef("--freeze-limit %v: expected a time longer than nothing, as 30s or 2m; --no-freeze freezes nothing", o.freezeLimit)
	}
	return nil
}

func (a *app) snapshotCreate(ctx context.Context, o createOptions) error {
	s, err := a.lookCreate(ctx, o)
	if err != nil {
		return err
	}
	m, err := s.planMember(o)
	if err != nil {
		return err
	}
	if err := s.start(ctx, m.base.lower.path, m.cow.path); err != nil {
		return err
	}
	r, frozen, err := s.makeSnapshots(ctx, []member{m})
	if err != nil {
		return err
	}
	return a.answerSnapshot(resultOf(r, o.name), m.base, m.cow, frozen)
}

// lookCreate checks the options by themselves and finds out which devices there
// are.
func (a *app) lookCreate(ctx context.Context, o createOptions) (*session, error) {
	if err := o.checkFreezeLimit(); err != nil {
		return nil, err
	}
	if err := o.cow.check(); err != nil {
		return nil, err
	}
	s, err := a.look(ctx)
	if err != nil {
		return nil, err
	}
	return s, s.load(ctx)
}

// planMember checks that the snapshot can be made, and how. Nothing is changed.
func (s *session) planMember(o createOptions) (m member, err error) {
	m.o = o
	if err := s.checkFree(o.name); err != nil {
		return m, err
	}
	p, err := s.find(o.origin)
	if err != nil {
		return m, err
	}
	if m.base, err = s.resolveBase(p); err != nil {
		return m, err
	}
	if err := s.a.checkBase(s, m.base, o); err != nil {
		return m, err
	}
	file, _ := s.lowestFile(m.base.lower)
	m.cow, err = s.planCow(o.cow, o.name, m.base.lower, m.base.size, file)
	return m, err
}

// checkBase refuses an origin that cannot have this snapshot, and tells what is
// easily a mistake.
func (a *app) checkBase(s *session, b baseOf, o createOptions) error {
	if b.origin != nil {
		if !b.origin.Live || b.size == 0 {
			return failf(exitFailed, "the origin device %s has no live table", b.origin.Name)
		}
		return nil
	}
	if err := checkSectors(b.lower); err != nil {
		return err
	}
	for _, u := range s.usesOf(b.lower) {
		if u.role == "COW" {
			return fail(exitBusy, fmt.Errorf("%s is the COW of the snapshot %s", b.lower.what(), u.device.Name), "to snapshot what the snapshot shows, give its name: "+u.device.Name)
		}
	}
	if !o.willNotChange {
		if err := s.checkFrozen(b.lower); err != nil {
			return err
		}
	}
	return a.sayOrigin(b.lower)
}

// checkFrozen refuses a base that somebody could write.
func (s *session) checkFrozen(p place) error {
	const insist = "; or give --origin-will-not-change if it really does not"
	if p.device != nil && !p.device.ReadOnly {
		return fail(exitFailed, fmt.Errorf("%s is writable and no origin device: what is written to it would show up in the snapshot", p.what()),
			"make an origin device over it, and use that instead: dmfuse origin create "+shellQuote(p.device.Name)+" NAME"+insist)
	}
	for _, u := range s.usesOf(p) {
		if u.role != "base" && !u.device.ReadOnly {
			return fail(exitBusy, fmt.Errorf("%s is used by the %s device %s, which could write to it", p.what(), u.role, u.device.Name),
				"remove that device, or snapshot it instead"+insist)
		}
	}
	users, err := s.writersOf(p)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return busy(p, users, "end this use, or put an origin device under it: dmfuse origin create "+shellQuote(p.path)+" NAME"+insist)
	}
	return nil
}

// makeSnapshots makes the COWs and the devices. When it fails, everything is as
// before.
func (s *session) makeSnapshots(ctx context.Context, all []member) (_ control.ApplyReply, frozen []string, err error) {
	defer func() {
		var undone []error
		for _, m := range slices.Backward(all) {
			if err != nil && !outcomeUnknown(err) {
				undone = append(undone, m.cow.undo())
			}
			m.cow.close()
		}
		err = withUndo(err, errors.Join(undone...))
	}()
	for _, m := range all {
		if err := m.cow.make(func() error { return s.madeMeanwhile(m) }); err != nil {
			return control.ApplyReply{}, nil, err
		}
		if err := m.cow.writeSidecar(m.base, m.o.name); err != nil {
			return control.ApplyReply{}, nil, err
		}
		if err := context.Cause(ctx); err != nil {
			return control.ApplyReply{}, nil, s.explain(err, all)
		}
	}
	r, frozen, err := s.applyMembers(ctx, all)
	for _, m := range all {
		if err == nil && m.cow.isDevice() && len(m.cow.policy) > 0 {
			s.setPolicies(ctx, m.o.name, m.cow.policy)
		}
	}
	return r, frozen, err
}

// setPolicies gives policies to a snapshot whose COW has no place for them. The
// snapshot is there: what fails is said and no more.
func (s *session) setPolicies(ctx context.Context, name string, policy []string) {
	_, err := s.c.Message(ctx, control.ByName(name), 0, append([]string{"policy"}, policy...))
	if err != nil {
		s.a.note("%s is made, but without %s: %v", name, strings.Join(policy, " "), err)
		return
	}
	s.a.note("%s: only a COW file has a place for %s: it is forgotten when the daemon ends", name, strings.Join(policy, " "))
}

// createdSnapshot is the answer of snapshot create and open.
type createdSnapshot struct {
	createdDevice
	COW            string   `json:"cow"`
	COWSizeBytes   int64    `json:"cow_size_bytes"`
	ChunkSizeBytes int64    `json:"chunk_size_bytes"`
	Store          string   `json:"store"`
	ReadOnly       bool     `json:"read_only"`
	Frozen         []string `json:"frozen,omitempty"` // mount points that were frozen for it
}

func (a *app) answerSnapshot(info *control.Info, b baseOf, cow *cowFile, frozen []string) error {
	if a.json {
		made := describeSnapshot(info, b, cow)
		made.Frozen = frozen
		return a.printJSON(made)
	}
	_, err := fmt.Fprintln(a.stdout, info.Path)
	return err
}

func describeSnapshot(info *control.Info, b baseOf, cow *cowFile) createdSnapshot {
	return createdSnapshot{
		createdDevice: createdDevice{info.Name, info.Path, info.SizeBytes, b.lower.path},
		COW:           cow.path, COWSizeBytes: cow.size, ChunkSizeBytes: cow.chunk, Store: cow.store, ReadOnly: info.ReadOnly,
	}
}
