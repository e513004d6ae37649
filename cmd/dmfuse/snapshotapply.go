package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/delta"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// applyOptions is what the command line of snapshot apply says.
type applyOptions struct {
	file, target string
	dryRun       bool
	force        bool
}

func newSnapshotApplyCommand(a *app) *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use:   "apply FILE TARGET",
		Short: "Write an exported file over a copy of the origin, which becomes the snapshot",
		Long: `Write the ranges in FILE, made by snapshot export, to TARGET: a file, a block
device or a device, that holds a copy of the origin (or, for an export with
--base, of that snapshot). TARGET then holds what the snapshot held.

Before anything is written all of FILE is checked, and TARGET: its size, that
nobody uses it, and at up to a hundred places that did not change, what it
holds. When the command was killed, give it again: doing it twice does no harm.`,
		Example: `  dmfuse snapshot apply monday.ranges copy.img --dry-run
  dmfuse snapshot apply monday.ranges copy.img`,
		Args: asUsage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.file, o.target = args[0], args[1]
			return a.snapshotApply(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "check everything and write nothing")
	f.BoolVar(&o.force, "force", false, "write also to a TARGET that is larger, or does not hold what it should")
	return cmd
}

// applied is the answer of apply.
type applied struct {
	File      string    `json:"file"`
	Target    string    `json:"target"`
	Name      string    `json:"name"` // of the snapshot
	Base      string    `json:"base,omitempty"`
	Created   time.Time `json:"created"`
	SizeBytes int64     `json:"size_bytes"`
	DataBytes int64     `json:"data_bytes"`
	ZeroBytes int64     `json:"zero_bytes"`
	Checked   int       `json:"checked"` // places of the target that were compared
	DryRun    bool      `json:"dry_run"`
}

func (a *app) snapshotApply(ctx context.Context, o applyOptions) error {
	s, err := a.look(ctx)
	if err != nil {
		return err
	}
	if err := s.load(ctx); err != nil {
		return err
	}
	f, err := a.openExport(o.file)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := s.find(o.target)
	if err != nil {
		return err
	}
	if fi, err := f.Stat(); err == nil && p.device == nil && os.SameFile(fi, statOf(p.path)) {
		return usagef("FILE and TARGET are both %s", p.path)
	}
	if err := s.checkTarget(p); err != nil {
		return err
	}
	done := applied{File: o.file, Target: p.path, DryRun: o.dryRun}
	checked, err := done.check(ctx, f)
	if err != nil {
		return fmt.Errorf("%s is not applied, and nothing is written: %w", o.file, err)
	}
	t, err := blockdev.OpenFile(p.path, blockdev.FileOptions{Write: !o.dryRun})
	if err != nil {
		return err
	}
	defer t.Close()
	if err := done.checkContents(ctx, t, p, checked, o.force); err != nil {
		return err
	}
	if !o.dryRun {
		if err := done.write(ctx, f, t); err != nil {
			return fail(exitFailed, fmt.Errorf("%s is changed in part: %w", p.what(), err), "it is whole when the same command has succeeded")
		}
	}
	return a.answerApply(done)
}

// openExport opens a file that can be read twice.
func (a *app) openExport(path string) (*os.File, error) {
	f, ok := a.stdin.(*os.File)
	if path != "-" || !ok {
		return openRegular(path)
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, usagef("standard input is no file: FILE is read twice, to check all of it before anything is written; save it first")
	}
	return f, nil
}

// openRegular opens a regular file. Opening another kind may wait, or do
// something.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		_ = f.Close()
		return nil, usagef("%s is no regular file: FILE is read twice; save it first", path)
	}
	return f, nil
}

func statOf(path string) os.FileInfo {
	fi, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return fi
}

// checkTarget refuses a target that is in use or cannot be written.
func (s *session) checkTarget(p place) error {
	if d := p.device; d != nil {
		switch {
		case d.ReadOnly:
			return failf(exitFailed, "the device %s is read-only", d.Name)
		case d.Suspended:
			return fail(exitBusy, fmt.Errorf("the device %s is suspended", d.Name), "resume it first: dmfuse resume "+shellQuote(d.Name))
		}
	}
	for _, u := range s.usesOf(p) {
		return fail(exitBusy, fmt.Errorf("%s is in use: it is the %s of the device %s", p.what(), u.role, u.device.Name),
			"write to that device, or remove it first: dmfuse remove "+shellQuote(u.device.Name))
	}
	users, err := s.writersOf(p)
	if err == nil && len(users) > 0 {
		err = busy(p, users, "end this use first")
	}
	return err
}

// check reads all of the file and gives its witnesses.
func (done *applied) check(ctx context.Context, f *os.File) (same []delta.Record, err error) {
	err = done.records(ctx, f, func(r delta.Record) error {
		switch r.Kind {
		case delta.Data:
			done.DataBytes += r.Len
		case delta.Zero:
			done.ZeroBytes += r.Len
		case delta.Same:
			if len(same) == maxWitnesses {
				return fmt.Errorf("%w: more than %d places to compare", blockdev.ErrInvalid, maxWitnesses)
			}
			same = append(same, r)
		}
		return nil
	})
	return same, err
}

// maxWitnesses bounds the memory that a file can take.
const maxWitnesses = 1 << 16

// records reads the file from its beginning.
func (done *applied) records(ctx context.Context, f *os.File, visit func(delta.Record) error) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	r, err := delta.NewReader(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return err
	}
	h := r.Header()
	done.Name, done.Base, done.SizeBytes, done.Created = h.Name, h.Base, h.Size, h.Created
	for {
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = visit(rec)
		}
		if err != nil {
			return err
		}
	}
}

// checkContents refuses a target of another size, or that is no copy of the
// origin.
func (done *applied) checkContents(ctx context.Context, t *blockdev.File, p place, same []delta.Record, force bool) error {
	size := int64(blockdev.SectorsIn(t.Size())) * blockdev.SectorSize
	switch {
	case size < done.SizeBytes:
		return failf(exitFailed, "%s has %d bytes, the snapshot has %d", p.what(), t.Size(), done.SizeBytes)
	case size > done.SizeBytes && !force:
		return fail(exitFailed, fmt.Errorf("%s has %d bytes, the snapshot has only %d", p.what(), t.Size(), done.SizeBytes),
			"if its beginning is the copy, give --force")
	}
	if force {
		return nil
	}
	for _, r := range same {
		if ctx.Err() != nil {
			return failf(exitFailed, "interrupted")
		}
		b := make([]byte, r.Len)
		if _, err := t.ReadAt(b, r.Off); err != nil {
			return err
		}
		if delta.Sum(b) != r.Sum {
			of := "the origin of " + done.Name
			if done.Base != "" {
				of = done.Base
			}
			return fail(exitFailed, fmt.Errorf("%s is no copy of %s: the %d bytes at byte %d did not change, and are others there", p.what(), of, r.Len, r.Off),
				"to write to it all the same, give --force")
		}
		done.Checked++
	}
	return nil
}

// write writes the ranges, and makes them durable.
func (done *applied) write(ctx context.Context, f *os.File, t *blockdev.File) error {
	err := done.records(ctx, f, func(r delta.Record) error {
		switch r.Kind {
		case delta.Data:
			_, err := t.WriteAt(r.Data, r.Off)
			return err
		case delta.Zero:
			return blockdev.Zero(t, r.Off, r.Len, true)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return t.Flush()
}

func (a *app) answerApply(done applied) error {
	if a.json {
		return a.printJSON(done)
	}
	verb := "holds"
	if done.DryRun {
		verb = "would hold"
	}
	_, err := fmt.Fprintf(a.stdout, "%s %s %s: %s of data and %s of zeros\n", done.Target, verb, done.Name, a.size(done.DataBytes), a.size(done.ZeroBytes))
	return err
}
