package main

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/spf13/cobra"
)

// A snapshot store, looked at and mended without a daemon.

// cowTool is what the command line of the verbs of cow says in common.
type cowTool struct {
	origin string
}

func newCowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cow",
		Short: "Look at a snapshot store and repair it, without a daemon",
		Long: `Look at a snapshot store (a COW) in a file or on a block device, made by dmfuse or
by the kernel, and repair it. No daemon is needed; only repair writes.`,
		Args: asUsage(cobra.NoArgs),
		RunE: needVerb,
	}
	for _, v := range []struct {
		name, short, long, example string
		shared                     bool // may look while others use the store
		run                        func(cowFacts) error
	}{
		{"info", "Show what a snapshot store says in all", "Show the header of a snapshot store, how many chunks it keeps, the room it takes, and\nwhat the record beside it says.", "  dmfuse cow info disk.img.monday.cow", true, a.cowInfo},
		{"check", "Find what is wrong with a snapshot store", "Find what is wrong with a snapshot store: every problem with its kind, its place, what\nwas found and what was wanted there. Exit code 6 when there is damage; warnings and notes\nare none. A store in use is refused, as it changes under the check.", "  dmfuse cow check disk.img.monday.cow\n  dmfuse cow check /dev/vg/snap-cow --origin /dev/vg/root -J", false, a.cowCheck},
		{"dump", "Print every exception of a snapshot store", "Print the header and every exception in the order of the log: which chunk of the origin\nis kept in which chunk of the store. Goes on behind what cannot be read, and reads a store\nwhose header is of no use with --assume-chunk-size.", "  dmfuse cow dump disk.img.monday.cow -n", true, nil},
	} {
		var t cowTool
		assume := newSizeFlag("")
		run := v.run
		c := &cobra.Command{
			Use: v.name + " FILE", Short: v.short, Long: v.long, Example: v.example, Args: asUsage(cobra.ExactArgs(1)),
			RunE: func(_ *cobra.Command, args []string) error {
				f, err := a.openCow(args[0], t.origin, v.shared)
				if err != nil {
					return err
				}
				defer f.dev.Close()
				if run == nil {
					return a.cowDump(f, assume)
				}
				if err := f.check(); err != nil {
					return err
				}
				if err := f.unfinished(); err != nil && !f.shared {
					a.note("%v: a daemon that starts where that one ran puts them into the store", err)
				}
				return run(f)
			},
		}
		if run == nil {
			c.Flags().Var(assume, "assume-chunk-size", "chunk size to go by, in place of the header's")
		} else {
			c.Flags().StringVar(&t.origin, "origin", "", "the origin, for its size (default: as the record beside FILE says)")
		}
		cmd.AddCommand(c)
	}
	cmd.AddCommand(newCowRepairCommand(a))
	return cmd
}

// cowFacts is a store with what else is known of it.
type cowFacts struct {
	path       string
	dev        *blockdev.File
	side       *snapshot.Sidecar // of this file; nil: none
	originPath string
	originSize int64 // bytes; 0: not known
	report     snapshot.Report
	shared     bool // others use it at this moment
}

// openCow opens the store for reading and gathers what is known of it. One that
// is in use is refused, or with shared read all the same.
func (a *app) openCow(path, origin string, shared bool) (f cowFacts, err error) {
	if f.path, err = cleanAbs(path); err != nil {
		return f, err
	}
	f.dev, err = blockdev.OpenFile(f.path, blockdev.FileOptions{})
	if shared && errors.Is(err, blockdev.ErrBusy) {
		a.note("%v: what is shown may be old when you read it", err)
		f.dev, err = blockdev.OpenFile(f.path, blockdev.FileOptions{NoLocks: true})
		f.shared = true
	}
	switch {
	case errors.Is(err, blockdev.ErrBusy):
		return f, fail(exitBusy, err, "end this use first: a store that changes cannot be checked")
	case err != nil:
		return f, fail(exitFailed, fmt.Errorf("the store cannot be read: %w", err), "")
	}
	if err = f.findOrigin(origin); err == nil && !shared {
		err = f.freeOfKernel()
	}
	if err != nil {
		_ = f.dev.Close()
	}
	return f, err
}

// freeOfKernel refuses a block device that the kernel uses: a device of its
// device-mapper, a mount. Those know no locks.
func (f *cowFacts) freeOfKernel() error {
	p, err := fileAt(f.path)
	if err != nil || !p.block {
		return err
	}
	users, err := blockUsers(devNumOf(p.stat.Rdev))
	if err == nil && len(users) > 0 {
		err = busy(p, users, "end this use first: a store that changes cannot be checked or repaired")
	}
	return err
}

// findOrigin learns the size of the origin from the flag or from the sidecar.
func (f *cowFacts) findOrigin(origin string) error {
	p, err := fileAt(f.path)
	if err != nil {
		return err
	}
	if side, ok, _ := readSidecar(p); ok {
		f.side = &side
		if o := side.Origin; o != nil {
			f.originPath, f.originSize = o.Path, o.Size
		}
	}
	if origin == "" {
		return nil
	}
	if f.originPath, err = cleanAbs(origin); err != nil {
		return err
	}
	o, err := fileAt(f.originPath)
	switch {
	case err != nil:
		return fmt.Errorf("the origin: %w", err)
	case sameFile(f.path, o):
		return usagef("FILE and --origin are both %s", f.path)
	case o.sectors() == 0:
		return failf(exitFailed, "the origin %s is empty", f.originPath)
	}
	f.originSize = o.size
	return nil
}

// unfinished says in words that a daemon was killed while it used the store,
// nil if none was. What the store says of that moment may not be all.
func (f *cowFacts) unfinished() error {
	if f.dev.ID().Kind != blockdev.IDFile {
		return nil
	}
	return unfinishedStore(f.path)
}

// unfinishedStore tells why the store in a file may lack the last writes.
func unfinishedStore(path string) error {
	left, err := snapshot.HasSession(path)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case left:
		return fmt.Errorf("a daemon was killed while it used %s, and the last writes may be in its note only", path)
	}
	return nil
}

// endSession makes every note void: none fits a store that was changed.
func (f *cowFacts) endSession() error {
	if f.dev.ID().Kind != blockdev.IDFile {
		return nil
	}
	if err := snapshot.EndSession(f.path); err != nil {
		return fail(exitFailed, fmt.Errorf("nothing was changed: %w", err), "")
	}
	return nil
}

// check looks through the store.
func (f *cowFacts) check() (err error) {
	if f.dev.Size() == 0 {
		return failf(exitFailed, "%s is empty: there is no snapshot store", f.path)
	}
	if f.report, err = snapshot.CheckStore(f.dev, blockdev.SectorsIn(f.originSize)); err != nil {
		return fmt.Errorf("%s cannot be checked: %w", f.path, err)
	}
	if id := f.dev.ID(); id.Kind == blockdev.IDFile {
		f.report.CheckSidecar(f.path, id.B, blockdev.SectorsIn(f.originSize))
	}
	return nil
}

// cowAnswer is what info and check answer.
type cowAnswer struct {
	Path       string             `json:"path"`
	Valid      bool               `json:"valid"` // no damage
	Version    uint32             `json:"version"`
	ChunkSize  int64              `json:"chunk_size_bytes"`
	Exceptions uint64             `json:"exceptions"`
	Areas      uint64             `json:"areas"`
	Allocated  int64              `json:"allocated_bytes"`
	Metadata   int64              `json:"metadata_bytes"`
	Leaked     int64              `json:"leaked_bytes"`
	File       int64              `json:"file_bytes"`
	Needed     *int64             `json:"needed_bytes,omitempty"` // never overflows; where the origin is known
	Name       string             `json:"name,omitempty"`
	Store      string             `json:"store,omitempty"`
	Closed     *time.Time         `json:"closed,omitempty"` // when its snapshot was removed; absent: it was not
	Origin     string             `json:"origin,omitempty"`
	OriginSize int64              `json:"origin_size_bytes,omitempty"`
	Problems   []snapshot.Problem `json:"problems"`
	More       int                `json:"more_problems"`
	Counts     map[string]int     `json:"counts"`
}

func (f *cowFacts) answer() cowAnswer {
	r := f.report
	ans := cowAnswer{
		Path: f.path, Valid: !r.Damaged(), Version: r.Header.Version, ChunkSize: r.Chunk.Bytes(), Exceptions: r.Exceptions, Areas: r.Areas,
		Allocated: r.Allocated.Bytes(), Metadata: r.Metadata.Bytes(), Leaked: r.Leaked.Bytes(), File: f.dev.Size(),
		Origin: f.originPath, OriginSize: f.originSize, Problems: r.Problems, More: r.More, Counts: map[string]int{},
	}
	for kind, n := range r.Counts {
		ans.Counts[string(kind)] = n
	}
	if n, err := r.Needed.CheckedBytes(); err == nil && r.Needed > 0 {
		ans.Needed = &n
	}
	if f.side != nil {
		ans.Name, ans.Store = f.side.Name, f.side.Store
		if c := f.side.Closed; c != nil {
			t := c.Time.UTC()
			ans.Closed = &t
		}
	}
	return ans
}

func (a *app) cowInfo(f cowFacts) error {
	ans := f.answer()
	if ans.ChunkSize == 0 {
		return failf(exitFailed, "%s is no snapshot store that can be read: %s", f.path, ans.Problems[0].Text)
	}
	if a.json {
		return a.printJSON(ans)
	}
	rows := [][]string{
		{"Store:", f.path}, {"Version:", fmt.Sprint(ans.Version)}, {"Chunk size:", a.size(ans.ChunkSize)},
		{"Chunks kept:", fmt.Sprintf("%d, in %s", ans.Exceptions, count(ans.Areas, "area"))},
		{"Room taken:", fmt.Sprintf("%s of %s, %s of it metadata, %s of no use", a.size(ans.Allocated), a.size(ans.File), a.size(ans.Metadata), a.size(ans.Leaked))},
	}
	if ans.Needed != nil {
		rows = append(rows, []string{"Never overflows:", fmt.Sprintf("with %s", a.size(*ans.Needed))})
	}
	if ans.Origin != "" {
		rows = append(rows, []string{"Origin:", ans.Origin + ", " + a.size(ans.OriginSize)})
	}
	if ans.Name != "" {
		rows = append(rows, []string{"Device:", ans.Name})
	}
	if ans.Closed != nil {
		rows = append(rows, []string{"Closed:", ans.Closed.Format("2006-01-02 15:04:05")})
	}
	for i, p := range ans.Problems {
		if i == shownProblems {
			rows = append(rows, []string{"Problems:", fmt.Sprintf("and %d more", len(ans.Problems)-i+ans.More)})
			break
		}
		rows = append(rows, []string{strings.ToUpper(string(p.Severity[:1])) + string(p.Severity[1:]) + ":", p.String()})
	}
	return writeColumns(a.stdout, rows)
}

// count is a number with a word, which takes an s for all but one.
func count[N int | int64 | uint32 | uint64](n N, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

func (a *app) cowCheck(f cowFacts) error {
	ans := f.answer()
	if a.json {
		if err := a.printJSON(ans); err != nil {
			return err
		}
	} else if err := a.printProblems(f.report); err != nil {
		return err
	}
	if ans.Valid {
		return nil
	}
	var kinds []string
	for _, p := range ans.Problems {
		if text := string(p.Kind); p.Severity == snapshot.Damage && !strings.Contains(" "+strings.Join(kinds, " ")+" ", " "+text+" ") {
			kinds = append(kinds, text)
		}
	}
	return fail(exitDegraded, fmt.Errorf("the store %s is damaged: %s", f.path, strings.Join(kinds, ", ")), "see what a repair can do: dmfuse cow repair --dry-run "+shellQuote(f.path))
}

// printProblems prints one line for each problem.
func (a *app) printProblems(r snapshot.Report) error {
	for _, p := range r.Problems {
		at := p.Where
		if p.Offset != nil {
			at += fmt.Sprintf(" (byte %d)", *p.Offset)
		}
		if _, err := fmt.Fprintf(a.stdout, "%s: %s: %s: %s\n", p.Severity, p.Kind, at, p.Text); err != nil {
			return err
		}
	}
	if r.More > 0 {
		_, err := fmt.Fprintf(a.stdout, "and %d more\n", r.More)
		return err
	}
	return nil
}

// chunkFlag is the chunk size that a flag gives, 0 for none.
func chunkFlag(name string, f *sizeFlag) (blockdev.Sector, error) {
	if !f.given {
		return 0, nil
	}
	if err := checkChunkSize(f.bytes); err != nil || bits.OnesCount64(uint64(f.bytes)) != 1 {
		return 0, fail(exitUsage, fmt.Errorf("%s: %w", name, err), "")
	}
	return blockdev.SectorsIn(f.bytes), nil
}
