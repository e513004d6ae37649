package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/spf13/cobra"
)

func newSnapshotOpenCommand(a *app) *cobra.Command {
	var o openOptions
	cmd := &cobra.Command{
		Use:   "open COW ORIGIN [NAME]",
		Short: "Open a store that exists already, made by dmfuse, dmsetup or LVM",
		Long: `Open a snapshot store that exists already. Chunk size and the like are read from
its header. A store that is damaged, or was made for another origin, is refused
with every reason; --damaged opens it all the same, best with --read-only.`,
		Example: `  dmfuse snapshot open disk.img.before.cow disk.img before --read-only`,
		Args:    asUsage(cobra.RangeArgs(2, 3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.cow, o.create.origin = args[0], args[1]
			if len(args) == 3 {
				if args[2] == "" {
					return errEmptyName()
				}
				o.create.name = args[2]
			}
			return a.snapshotOpen(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.create.readOnly, "read-only", false, "a view that refuses writes")
	f.BoolVar(&o.damaged, "damaged", false, "open a store with problems, and one of another origin")
	f.BoolVar(&o.create.noFreeze, "no-freeze", false, "do not freeze mounted file systems")
	f.DurationVar(&o.create.freezeLimit, "freeze-limit", 30*time.Second, "thaw after that time, whatever happens")
	f.BoolVar(&o.create.willNotChange, "origin-will-not-change", false, "use a base that others have open for writing; what they write spoils the snapshot")
	return cmd
}

// openOptions is what the command line of snapshot open says.
type openOptions struct {
	create  createOptions // what it has in common with snapshot create
	cow     string
	damaged bool
}

func (a *app) snapshotOpen(ctx context.Context, o openOptions) error {
	if err := o.create.checkFreezeLimit(); err != nil {
		return err
	}
	s, err := a.look(ctx)
	if err != nil {
		return err
	}
	if err := s.load(ctx); err != nil {
		return err
	}
	p, err := s.find(o.cow)
	if err != nil {
		return err
	}
	if o.create.name == "" {
		o.create.name = defaultName(p)
	}
	if err := s.checkFree(o.create.name); err != nil {
		return err
	}
	origin, err := s.find(o.create.origin)
	if err != nil {
		return err
	}
	b, err := s.resolveBase(origin)
	if err != nil {
		return err
	}
	if err := s.checkStoreFree(p, o.create.readOnly); err != nil {
		return err
	}
	if err := a.checkBase(s, b, o.create); err != nil {
		return err
	}
	cow, err := a.checkStore(p, b, o)
	if err != nil {
		return err
	}
	if err := s.start(ctx, p.path, b.lower.path); err != nil {
		return err
	}
	info, frozen, err := s.applySnapshot(ctx, b, cow, o.create)
	if err != nil {
		return err
	}
	if side, ok, _ := readSidecar(p); ok && side.Merging != nil {
		a.note("a merge of it into %s was under way: the origin alone is half of the data; go on with: dmfuse snapshot merge %s", side.Merging.Device, shellQuote(o.create.name))
	}
	if err := markOpen(p); err != nil {
		a.note("the sidecar of %s still says that it is closed: %v", p.path, err)
	}
	return a.answerSnapshot(info, b, cow, frozen)
}

// defaultName is the name of a snapshot whose store is opened without one: the
// name it had, or that of the file.
func defaultName(p place) string {
	if side, ok, err := readSidecar(p); err == nil && ok && side.Name != "" {
		return side.Name
	}
	return baseName(p.path, ".cow", ".img")
}

// checkStoreFree refuses a store that is in use.
func (s *session) checkStoreFree(p place, readOnly bool) error {
	for _, u := range s.usesOf(p) {
		if u.role == "COW" {
			return fail(exitBusy, fmt.Errorf("%s is open already, as the snapshot %s", p.what(), u.device.Name), "use that one: "+u.device.Path)
		}
		if u.role == "base" {
			return fail(exitBusy, fmt.Errorf("%s is no store of a snapshot: it is the base of the snapshot %s", p.what(), u.device.Name), "see the snapshots there are, with their COWs: dmfuse snapshot ls")
		}
		if u.role == "origin" {
			return fail(exitBusy, fmt.Errorf("%s is no store of a snapshot: it is the origin below the device %s", p.what(), u.device.Name), "see the snapshots there are, with their COWs: dmfuse snapshot ls")
		}
		if !u.device.ReadOnly {
			return fail(exitBusy, fmt.Errorf("%s is used by the %s device %s, which could write to it", p.what(), u.role, u.device.Name), "remove that device first: dmfuse remove "+shellQuote(u.device.Name))
		}
	}
	users, err := s.writersOf(p)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return busy(p, users, "end this use first")
	}
	return nil
}

// checkStore looks through a store, and refuses one with problems or of
// another origin unless the user insists.
func (a *app) checkStore(p place, b baseOf, o openOptions) (*cowFile, error) {
	if p.device == nil && b.lower.device == nil && sameFile(p.path, b.lower) {
		return nil, usagef("COW and ORIGIN are both %s", p.path)
	}
	dev, err := readable(p)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	report, err := snapshot.CheckStore(dev, blockdev.SectorsIn(b.size))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", p.what(), err)
	}
	if report.Chunk == 0 && !o.damaged { // nothing else is known then
		return nil, fail(exitFailed, fmt.Errorf("%s cannot be opened: %v", p.what(), report.Err()), noStoreAdvice(report))
	}
	c := &cowFile{path: p.path, place: p, exists: true, size: p.size, chunk: report.Chunk.Bytes(), store: "P"}
	if side, ok, _ := readSidecar(p); ok && side.Store == "PO" {
		c.store = "PO"
	}
	problems := listProblems(report)
	c.damaged = report.Damaged() && o.create.readOnly
	problems = append(problems, sidecarProblems(p, b)...)
	if p.device == nil && !p.block {
		if err := unfinishedStore(p.path); err != nil {
			problems = append(problems, err.Error()+": start a daemon where that one ran, which puts them into the store (dmfuse serve), or do without them (--damaged)")
		}
	}
	if len(problems) == 0 {
		return c, nil
	}
	if !o.damaged {
		return nil, fail(exitFailed, fmt.Errorf("the store on %s is refused:\n  - %s", p.what(), strings.Join(problems, "\n  - ")),
			"to read what can be read: dmfuse snapshot open --damaged --read-only")
	}
	for _, text := range problems {
		a.note("%s: %s", p.path, text)
	}
	return c, nil
}

// noStoreAdvice says what to do with a file that holds no store.
func noStoreAdvice(r snapshot.Report) string {
	if r.Header.Blank() {
		return "a new snapshot is made with: dmfuse snapshot create"
	}
	return ""
}

// shownProblems is how many problems of one store are printed.
const shownProblems = 20

// listProblems gives what stands against opening a store; the warnings do not.
func listProblems(r snapshot.Report) []string {
	var problems []string
	more := r.More
	for _, x := range r.Problems {
		switch {
		case x.Severity != snapshot.Damage:
		case len(problems) == shownProblems:
			more++
		default:
			problems = append(problems, x.String())
		}
	}
	if more > 0 {
		problems = append(problems, fmt.Sprintf("and %d more", more))
	}
	return problems
}

// readable opens a place for reading. A file of our own mount is read as any
// program would read it.
func readable(p place) (blockdev.Device, error) {
	if p.device != nil && p.device.Suspended {
		return nil, fail(exitBusy, fmt.Errorf("%s is suspended", p.what()), "resume it first: dmfuse resume "+shellQuote(p.device.Name))
	}
	f, err := blockdev.OpenFile(p.path, blockdev.FileOptions{})
	if errors.Is(err, os.ErrPermission) {
		return nil, fail(exitFailed, err, "it needs the rights of its owner")
	}
	return f, err
}
