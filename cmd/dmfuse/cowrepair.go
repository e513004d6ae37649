package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/spf13/cobra"
)

// repairOptions is what the command line of cow repair says.
type repairOptions struct {
	output, backup, restore, origin string
	markValid, compact, force, dry  bool
	chunk, assume                   *sizeFlag
}

func newCowRepairCommand(a *app) *cobra.Command {
	o := repairOptions{chunk: newSizeFlag(""), assume: newSizeFlag("")}
	c := &cobra.Command{
		Use:   "repair FILE",
		Short: "Repair a snapshot store, into a new one or in place with a backup",
		Long: `Repair a snapshot store, so that a check has nothing to say and everything that could
be read reads the same. Entries that cannot be right are dropped; what may read wrong
afterwards is listed, as ranges of the origin.

With --output the store is made anew in another file and FILE is only read: without chunks
of no use, and with --chunk-size with chunks of another size. Otherwise FILE is repaired in
place, after a backup of the blocks that change; --restore takes that back.

A store that is in use is refused. One that was marked invalid is made valid only with
--mark-valid: what was written to the origin since the mark is not in it.`,
		Example: "  dmfuse cow repair disk.img.monday.cow --dry-run\n  dmfuse cow repair disk.img.monday.cow\n  dmfuse cow repair disk.img.monday.cow --restore disk.img.monday.cow.repair-backup\n  dmfuse cow repair old.cow --output new.cow --chunk-size 64k --origin disk.img",
		Args:    asUsage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if o.restore != "" {
				return a.cowRestore(args[0], o)
			}
			return a.cowRepair(args[0], o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.output, "output", "", "make a new store in this file or on this block device; FILE is only read")
	f.StringVar(&o.backup, "backup", "", "where the backup of a repair in place goes (default: FILE.repair-backup; needed for a block device)")
	f.StringVar(&o.restore, "restore", "", "take back the repair that made this backup")
	f.StringVar(&o.origin, "origin", "", "the origin: its size, and its data for larger chunks (default for the size: as the record beside FILE says)")
	f.BoolVar(&o.markValid, "mark-valid", false, "make a store valid that was marked invalid")
	f.BoolVar(&o.compact, "compact", false, "with --output: a new store without chunks of no use, also of a store that is in order (as --output alone does)")
	f.Var(o.chunk, "chunk-size", "with --output: chunk size of the new store")
	f.Var(o.assume, "assume-chunk-size", "chunk size to go by where the header's is of no use")
	f.BoolVar(&o.dry, "dry-run", false, "say what would be done and change nothing")
	f.BoolVar(&o.force, "force", false, "replace an output that is there; make a further backup beside one that is there; restore a store that was written to since; do without what a killed daemon has in its note")
	return c
}

func (o repairOptions) check() error {
	switch {
	case o.restore != "" && (o.output != "" || o.backup != "" || o.markValid || o.compact || o.chunk.given || o.assume.given || o.dry):
		return usagef("--restore goes with --force only")
	case o.output != "" && o.backup != "":
		return usagef("--backup goes with a repair in place; with --output FILE is not changed")
	case o.output == "" && o.chunk.given:
		return usagef("--chunk-size needs --output: the chunk size of a store cannot be changed in place")
	case o.output == "" && o.compact:
		return usagef("--compact needs --output: a store is not made smaller in place")
	}
	return nil
}

// options are those of the repair of a store with these facts.
func (o repairOptions) options(f *cowFacts) (snapshot.RepairOptions, error) {
	chunk, err := chunkFlag("--assume-chunk-size", o.assume)
	return snapshot.RepairOptions{OriginSize: blockdev.SectorsIn(f.originSize), MarkValid: o.markValid, AssumeChunk: chunk}, err
}

// repairAnswer is what cow repair answers.
type repairAnswer struct {
	Path     string          `json:"path"`
	Done     bool            `json:"done"` // false: --dry-run, or nothing to do
	Output   string          `json:"output,omitempty"`
	Backup   string          `json:"backup,omitempty"`
	Changed  int64           `json:"changed_bytes"` // blocks of FILE, in place
	Size     int64           `json:"file_bytes"`    // afterwards
	Chunk    int64           `json:"chunk_size_bytes"`
	Kept     uint64          `json:"exceptions"`
	Dropped  uint64          `json:"dropped"`
	Copied   uint64          `json:"unshared"` // chunks
	Losses   snapshot.Losses `json:"may_read_wrong"`
	Problems int             `json:"problems_before"`
}

// cowRepair repairs FILE, in place or into another.
func (a *app) cowRepair(path string, o repairOptions) error {
	f, err := a.openRepair(path, o.origin, o.output == "" && !o.dry)
	if err != nil {
		return err
	}
	defer f.dev.Close()
	if err := f.check(); err != nil {
		return err
	}
	if err := f.unfinished(); err != nil && !o.force && !o.dry {
		return fail(exitBusy, fmt.Errorf("%s is not repaired: %w", f.path, err), "start a daemon where that one ran, which puts them into the store: dmfuse serve; after a power cut, or to do without them: --force")
	}
	if h, err := snapshot.ReadHeader(f.dev); err == nil && o.assume.given && !o.force && h.Validate() == nil {
		return fail(exitUsage, fmt.Errorf("%s has a header that is in order, with chunks of %d sectors: nothing has to be assumed", f.path, h.ChunkSize), "leave --assume-chunk-size out, or insist with --force")
	}
	if o.output != "" {
		return a.repairInto(f, o)
	}
	return a.repairInPlace(f, o)
}

// openRepair opens a store for a repair; one that is in use is refused.
func (a *app) openRepair(path, origin string, write bool) (f cowFacts, err error) {
	if f.path, err = cleanAbs(path); err != nil {
		return f, err
	}
	p, err := fileAt(f.path)
	if err != nil {
		return f, err
	}
	if write {
		if users := lastingWriters(f.path, 0); len(users) > 0 {
			return f, busy(p, users, "end this use first")
		}
	}
	if f.dev, err = blockdev.OpenFile(f.path, blockdev.FileOptions{Write: write}); err != nil {
		if errors.Is(err, blockdev.ErrBusy) {
			return f, fail(exitBusy, err, "end this use first: a store in use is not repaired")
		}
		return f, fail(exitFailed, fmt.Errorf("the store cannot be opened: %w", err), "")
	}
	if err = f.findOrigin(origin); err == nil {
		err = f.freeOfKernel()
	}
	if err != nil {
		_ = f.dev.Close()
	}
	return f, err
}

// explainRepair adds what to do to the refusals of a repair.
func explainRepair(f cowFacts, err error) error {
	err = fmt.Errorf("%s is not repaired: %w", f.path, err)
	switch {
	case errors.Is(err, snapshot.ErrNeedsOrigin), errors.Is(err, snapshot.ErrNeedsSize):
		return fail(exitUsage, err, "give it with --origin ORIGIN")
	case f.report.Header.Valid == 0 && f.report.Chunk != 0 && blockdev.Kind(err) == blockdev.ErrInvalid:
		return fail(exitFailed, err, "if you know that its origin was not written since, or can live with what may read wrong: --mark-valid")
	case f.report.Chunk == 0:
		return fail(exitFailed, err, "if it was a store, say so: --assume-chunk-size 4k --mark-valid, with the chunk size it had")
	case blockdev.Kind(err) == blockdev.ErrIO, blockdev.Kind(err) == blockdev.ErrNoSpace, blockdev.Kind(err) == blockdev.ErrUnsupported:
		return fail(exitFailed, err, "make a new store: --output NEW")
	}
	return fail(exitFailed, err, "")
}

// repairInPlace changes FILE, behind a backup.
func (a *app) repairInPlace(f cowFacts, o repairOptions) error {
	opts, err := o.options(&f)
	if err != nil {
		return err
	}
	r, err := snapshot.PlanRepair(f.dev, opts)
	if err != nil {
		return explainRepair(f, err)
	}
	marked := f.side != nil && f.side.Invalid != nil
	if marked && !o.markValid {
		return fail(exitFailed, fmt.Errorf("%s is not repaired: its record says that the snapshot is invalid: %s", f.path, f.side.Invalid.Reason), "if you know better: --mark-valid")
	}
	ans := repairAnswer{Path: f.path, Size: max(f.dev.Size(), r.GrowTo), Chunk: r.Chunk().Bytes(), Kept: r.Kept(), Dropped: r.Dropped, Copied: r.Copied, Losses: r.Losses, Problems: problemCount(f.report)}
	for _, step := range r.Steps() {
		for _, c := range step {
			ans.Changed += int64(len(c.After))
		}
	}
	if r.Nothing() && !marked || o.dry {
		return a.printRepair(ans)
	}
	if ans.Backup, err = o.backupPath(f); err != nil {
		return err
	}
	if err := f.endSession(); err != nil {
		return err
	}
	var side *snapshot.Sidecar
	if marked {
		side = f.side
	}
	if err := snapshot.WriteBackup(ans.Backup, r.Backup(f.path, side)); err != nil {
		return fail(exitFailed, fmt.Errorf("the backup cannot be written, so nothing was changed: %w", err), "a backup is never replaced: choose another file with --backup, or have a further one made with --force")
	}
	undo := "take it back with: dmfuse cow repair " + shellQuote(f.path) + " --restore " + shellQuote(ans.Backup)
	if err := r.Apply(); err != nil {
		return fail(exitFailed, fmt.Errorf("the repair of %s stopped half way: %w", f.path, err), undo)
	}
	if marked {
		clean := *f.side
		clean.Invalid = nil
		if err := snapshot.WriteSidecar(f.path, clean); err != nil {
			return fail(exitFailed, fmt.Errorf("the store is repaired, its record still says invalid: %w", err), undo)
		}
	}
	ans.Done = true
	if err := f.check(); err != nil {
		return fail(exitFailed, err, undo)
	}
	if err := a.printRepair(ans); err != nil {
		return err
	}
	if f.report.Damaged() {
		return fail(exitDegraded, fmt.Errorf("after the repair a check still finds: %w", f.report.Err()), undo)
	}
	return nil
}

// backupPath is where the backup goes.
func (o repairOptions) backupPath(f cowFacts) (string, error) {
	switch {
	case o.backup != "":
		path, err := cleanAbs(o.backup)
		if err != nil {
			return "", err
		}
		st, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return path, checkDir(path, "backup")
		}
		if err != nil {
			return "", err
		}
		for _, taken := range []string{f.path, f.originPath} {
			if in, err := os.Stat(taken); taken != "" && err == nil && os.SameFile(st, in) {
				return "", usagef("--backup %s: it is FILE, or the origin", o.backup)
			}
		}
		if !st.Mode().IsRegular() {
			return "", usagef("--backup %s: there is something that is no regular file", o.backup)
		}
		return path, nil // it may be the only one there is: writing says that it exists
	case f.dev.ID().Kind == blockdev.IDBlock:
		return "", usagef("%s is a block device, so there is no place beside it for the backup: give --backup FILE, or make a new store with --output", f.path)
	}
	path := f.path + ".repair-backup"
	for n := 2; o.force; n++ {
		if _, err := os.Lstat(path); err != nil {
			break
		}
		path = fmt.Sprintf("%s.repair-backup.%d", f.path, n)
	}
	return path, nil
}

func problemCount(r snapshot.Report) int { return len(r.Problems) + r.More }

// printRepair prints what was done, or would be.
func (a *app) printRepair(ans repairAnswer) error {
	if ans.Losses.Ranges == nil {
		ans.Losses.Ranges = []snapshot.Lost{}
	}
	if a.json {
		return a.printJSON(ans)
	}
	var b strings.Builder
	what := "would be changed"
	switch {
	case ans.Output != "" && ans.Done:
		fmt.Fprintf(&b, "new store: %s, %s of %s\n", ans.Output, count(ans.Kept, "chunk"), a.size(ans.Chunk))
	case ans.Output != "":
		fmt.Fprintf(&b, "a new store would have %s of %s\n", count(ans.Kept, "chunk"), a.size(ans.Chunk))
	case ans.Changed == 0 && !ans.Done:
		fmt.Fprintf(&b, "%s needs no repair\n", ans.Path)
	default:
		if ans.Done {
			what = "changed"
		}
		fmt.Fprintf(&b, "%s: %s bytes %s\n", ans.Path, fmt.Sprint(ans.Changed), what)
	}
	if ans.Dropped > 0 {
		fmt.Fprintf(&b, "entries dropped: %d\n", ans.Dropped)
	}
	if ans.Copied > 0 {
		fmt.Fprintf(&b, "shared chunks given a place of their own: %d\n", ans.Copied)
	}
	for _, l := range ans.Losses.Ranges {
		fmt.Fprintf(&b, "may read wrong: %d bytes at byte %d of the origin: %s: %s\n", l.Length, l.Offset, l.Kind, l.Text)
	}
	if ans.Losses.More > 0 {
		fmt.Fprintf(&b, "and %d more ranges\n", ans.Losses.More)
	}
	if ans.Losses.Anywhere != "" {
		fmt.Fprintf(&b, "may read wrong: whatever the store has no chunk of: %s\n", ans.Losses.Anywhere)
	}
	if ans.Backup != "" {
		fmt.Fprintf(&b, "backup: %s\n", ans.Backup)
	}
	_, err := a.stdout.Write([]byte(b.String()))
	return err
}

// cowRestore takes a repair in place back.
func (a *app) cowRestore(path string, o repairOptions) error {
	b, err := snapshot.ReadBackup(o.restore)
	if err != nil {
		return fail(exitFailed, fmt.Errorf("%s is not restored: %w", path, err), "give the file that cow repair named as its backup; by default FILE.repair-backup")
	}
	f, err := a.openRepair(path, "", true)
	if err != nil {
		return err
	}
	defer f.dev.Close()
	if b.Path != f.path {
		a.note("the backup is that of %s", b.Path)
	}
	if err := b.Check(f.dev); err != nil && !(o.force && errors.Is(err, snapshot.ErrChangedSince)) {
		return fail(exitFailed, fmt.Errorf("%s is not restored: %w", f.path, err), "to restore it all the same: --force")
	}
	if err := f.endSession(); err != nil {
		return err
	}
	if err := b.Restore(f.dev, func(size int64) error { return os.Truncate(f.path, size) }); err != nil {
		return fail(exitFailed, fmt.Errorf("%s is restored in part: %w", f.path, err), "do it again")
	}
	if b.Sidecar != nil {
		if err := snapshot.WriteSidecar(f.path, *b.Sidecar); err != nil {
			return err
		}
	}
	if a.json {
		return a.printJSON(struct {
			Path   string `json:"path"`
			Backup string `json:"backup"`
		}{f.path, filepath.Clean(o.restore)})
	}
	return nil
}
