package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/spf13/cobra"
)

func newSnapshotRmCommand(a *app) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a snapshot, and its COW if snapshot create made it",
		Long: `Remove a snapshot. Its COW file is deleted if snapshot create made it, together
with the changes in it; with --keep-cow, or if it was there before, it stays and
can be opened again with snapshot open.`,
		Args: asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.snapshotRm(cmd.Context(), args[0], keep)
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-cow", false, "keep the COW")
	return cmd
}

// removedSnapshot is the answer of rm.
type removedSnapshot struct {
	Name    string `json:"name"`
	COW     string `json:"cow"`
	Deleted bool   `json:"cow_deleted"`
}

func (a *app) snapshotRm(ctx context.Context, name string, keep bool) error {
	s, m, err := a.snapshotCalled(ctx, name)
	if err != nil {
		return err
	}
	if m.lines[0].Type == "snapshot-merge" {
		return fail(exitBusy, fmt.Errorf("%s is the origin device into which a snapshot is merged: without its COW half of the data would be gone", name),
			"wait for the end: dmfuse snapshot merge "+shellQuote(name)+" --wait")
	}
	p, err := s.findWord(m.lines[0].Args[1])
	if err != nil && !isMissing(err) { // a COW that is gone does not keep its snapshot
		return err
	}
	gone := err != nil
	if err := s.remove(ctx, m); err != nil {
		return err
	}
	answer := removedSnapshot{Name: name, COW: s.wordText(m.lines[0].Args[1])}
	if !keep && !gone {
		if answer.Deleted, err = deleteCow(p); err != nil {
			return fail(exitFailed, fmt.Errorf("the snapshot %s is removed, but its COW is not deleted: %w", name, err), "if it is of no use any more: rm "+shellQuote(p.path))
		}
	}
	switch {
	case gone:
		a.dropSidecar(m, keep)
	case !answer.Deleted:
		a.closeStore(s, m, p)
	}
	if a.json {
		return a.printJSON(answer)
	}
	return nil
}

// dropSidecar deletes what is left beside a COW file of ours that somebody
// deleted: it says nothing without it.
func (a *app) dropSidecar(m mapped, keep bool) {
	path := m.lines[0].Args[1]
	a.note("the COW %s of %s is gone already", path, m.Name)
	side, err := snapshot.ReadSidecar(path)
	if keep || err != nil || !side.CreatedByUs || side.Name != m.Name {
		return
	}
	if _, err := os.Lstat(path); !isMissing(err) { // made again, by somebody else
		return
	}
	if err := snapshot.RemoveSidecar(path); err != nil {
		a.note("what was noted beside it stays: %v", err)
	}
}

// closeStore notes beside a COW that is kept how its origin is now: what is
// written to it from now on is not saved.
func (a *app) closeStore(s *session, m mapped, cow place) {
	origin, err := s.findWord(m.lines[0].Args[0])
	if err == nil {
		err = markClosed(cow, origin)
	}
	if err != nil && !isMissing(err) {
		a.note("%s has no note of when it was closed: %v", cow.path, err)
	}
}

// remove removes a device, and names who holds one that is busy.
func (s *session) remove(ctx context.Context, m mapped) error {
	_, err := s.c.Apply(ctx, control.Step{Op: control.OpRemove, Key: control.ByName(m.Name)})
	if errorCode(err) != control.CodeBusy {
		return err
	}
	who, next := s.holdersOf(m)
	if len(who) == 0 {
		return err
	}
	return fail(exitBusy, fmt.Errorf("%s is in use by %s", m.Name, strings.Join(who, ", ")), next)
}

// holdersOf names who has a device open, and what to do about it.
func (s *session) holdersOf(m mapped) (who []string, next string) {
	next = "end this use first"
	loops, _ := loopsOn(m.Path)
	for _, l := range loops {
		who = append(who, "the loop device "+l.path()+usersText(l))
		next = "for a mount: dmfuse umount DIR; for a loop device: dmfuse detach " + shellQuote(m.Name)
	}
	for _, d := range s.above(m.Name) {
		who = append(who, "the device "+d.Name)
	}
	for _, pid := range pids() {
		if pid != s.v.PID && len(filesBelow(pid, m.Path, anyFile)) > 0 {
			who = append(who, fmt.Sprintf("pid %d (%s)", pid, commandName(pid)))
		}
	}
	return who, next
}

// deleteCow deletes a COW file that snapshot create made, and its sidecar. It
// is false where somebody else made the file.
func deleteCow(p place) (bool, error) {
	if p.device != nil || p.block {
		return false, nil
	}
	side, ok, err := readSidecar(p)
	if err != nil || !ok || !side.CreatedByUs {
		return false, err
	}
	// The file first: a sidecar without its file says nothing, a file without
	// its sidecar would stay for ever.
	if err := os.Remove(p.path); err != nil {
		return false, err
	}
	step.At("cow-deleted")
	return true, snapshot.RemoveSidecar(p.path)
}

// isMissing says whether a file is not there.
func isMissing(err error) bool { return errors.Is(err, os.ErrNotExist) }
