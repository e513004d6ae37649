package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dmfuse/dmfuse/delta"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// exportOptions is what the command line of snapshot export says.
type exportOptions struct {
	shownOptions
	name, file string
	format     string
	base       string
	exact      bool
	force      bool
}

func newSnapshotExportCommand(a *app) *cobra.Command {
	var o exportOptions
	cmd := &cobra.Command{
		Use:   "export NAME FILE",
		Short: "Write what is different in a snapshot to a file",
		Long: `Write to FILE what a snapshot has that its origin has not: the chunks that were
saved or written since. With --base OTHER, what it has that OTHER has not,
another snapshot of the same origin.

In the format ranges, snapshot apply turns a copy of the origin, made at any time
between the snapshot and the export, into the snapshot; with --base, a copy of
OTHER. FILE can be "-" then, for standard output. In the format raw it is a
sparse file of the size of the origin, with holes where nothing changed; what
changed to zeros is written as zeros, and only the file system tells it from a
hole.

FILE is made as a whole or not at all. NAME must not be written to meanwhile,
nor OTHER; the origin may. Both can be stores without a device, as for
snapshot diff.`,
		Example: `  dmfuse snapshot export monday monday.ranges
  dmfuse snapshot export tuesday - --base monday | ssh backup 'cat > tuesday.ranges'`,
		Args: asUsage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name, o.file = args[0], args[1]
			return a.snapshotExport(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "ranges", "ranges, for snapshot apply; or raw, a sparse file")
	f.StringVar(&o.base, "base", "", "write what differs from that snapshot, not from the origin")
	f.BoolVar(&o.exact, "exact", false, "with --base: compare the bytes, and leave out what is equal")
	f.BoolVar(&o.force, "force", false, "overwrite FILE")
	addShownFlags(cmd, &o.shownOptions)
	return cmd
}

func (o *exportOptions) check(a *app) error {
	switch {
	case o.format != "ranges" && o.format != "raw":
		return usagef("--format %s: expected ranges or raw", o.format)
	case o.file == "":
		return usagef("an empty FILE")
	case o.exact && o.base == "":
		return usagef("--exact is for --base: a chunk that is now as in the snapshot may be another in a copy of the origin made before")
	case o.base != "" && o.base == o.name:
		return usagef("--base %s: a snapshot does not differ from itself", o.base)
	case o.file == "-" && o.format == "raw":
		return usagef("the format raw needs a file: a stream has no holes")
	case o.file == "-" && a.json:
		return usagef("-J and FILE \"-\" both write to standard output")
	case o.file == "-" && isTerminal(a.stdout):
		return usagef("standard output is a terminal: give a file, or send it on")
	}
	return nil
}

// isTerminal says whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// exported is the answer of export.
type exported struct {
	Name       string `json:"name"`
	Base       string `json:"base,omitempty"`
	File       string `json:"file"`
	Format     string `json:"format"`
	SizeBytes  int64  `json:"size_bytes"` // of the snapshot
	RangeCount int64  `json:"range_count"`
	DataBytes  int64  `json:"data_bytes"`
	ZeroBytes  int64  `json:"zero_bytes"` // changed, and zeros now
}

func (a *app) snapshotExport(ctx context.Context, o exportOptions) error {
	if err := o.check(a); err != nil {
		return err
	}
	o.whole = true
	names := []string{o.name}
	if o.base != "" {
		names = append(names, o.base)
	}
	all, err := a.show(ctx, o.shownOptions, names...)
	if err != nil {
		return err
	}
	defer closeShown(all)
	c, err := newCompared(all, o.exact)
	if err != nil {
		return err
	}
	if c.data == nil {
		if c.data, err = all[0].openData(); err != nil {
			return err
		}
	}
	done := exported{Name: o.name, Base: o.base, File: o.file, Format: o.format, SizeBytes: all[0].size}
	if o.file == "-" {
		w := bufio.NewWriterSize(a.stdout, 1<<20)
		if err := done.writeRanges(ctx, c, o, w); err != nil {
			return fmt.Errorf("the export of %s is not whole: %w", o.name, err)
		}
		return w.Flush()
	}
	if err := a.exportFile(ctx, c, o, &done); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(done)
	}
	if o.format == "raw" && done.ZeroBytes > 0 {
		a.note("%s of %s changed to zeros, and are written as zeros: a tool that makes files sparse takes them for unchanged", a.size(done.ZeroBytes), done.File)
	}
	_, err = fmt.Fprintln(a.stdout, done.File)
	return err
}

// exportFile writes a file, as a whole or not at all.
func (a *app) exportFile(ctx context.Context, c *compared, o exportOptions, done *exported) error {
	s, _, err := a.lookShown(ctx)
	if err != nil {
		return err
	}
	if done.File, err = s.checkNewFile(o.file, "file", o.force); err != nil {
		return err
	}
	for _, v := range c.all {
		for _, d := range v.opened {
			if f, ok := d.(interface{ Name() string }); ok && f.Name() == done.File {
				return usagef("%s is what is exported", done.File)
			}
		}
	}
	f, err := makeNewFile(done.File, o.force)
	if err != nil {
		return err
	}
	defer f.drop()
	if o.format == "raw" {
		err = done.writeRaw(ctx, c, f.File)
	} else {
		w := bufio.NewWriterSize(f, 1<<20)
		if err = done.writeRanges(ctx, c, o, w); err == nil {
			err = w.Flush()
		}
	}
	if err == nil {
		err = f.keep()
	}
	if err != nil {
		return fmt.Errorf("%s is not written: %w", done.File, err)
	}
	return nil
}

// writeRaw writes what changed to its place in a sparse file.
func (done *exported) writeRaw(ctx context.Context, c *compared, f *os.File) error {
	if err := f.Truncate(done.SizeBytes); err != nil {
		return err
	}
	return done.pieces(ctx, c, func(piece) error { return nil }, func(p piece) error {
		b := p.data
		if b == nil {
			b = make([]byte, p.Len)
		}
		_, err := f.WriteAt(b, p.Off)
		return err
	})
}

// writeRanges writes the format of package delta.
func (done *exported) writeRanges(ctx context.Context, c *compared, o exportOptions, to io.Writer) error {
	h := delta.Header{
		Size: done.SizeBytes, Chunk: c.block, Created: time.Now(), Exact: o.exact, Name: o.name, Base: o.base,
		Origin: delta.Origin{Path: c.all[0].origin.path},
	}
	switch p := c.all[0].origin; {
	case p.device != nil:
		h.Origin.Kind = delta.OriginMapped
	case p.block:
		h.Origin.Kind, h.Origin.A = delta.OriginBlock, p.stat.Rdev
	default:
		h.Origin.Kind, h.Origin.A, h.Origin.B = delta.OriginFile, p.stat.Dev, p.stat.Ino
	}
	_, _ = rand.Read(h.ID[:]) // never fails
	w, err := delta.NewWriter(to, h)
	if err != nil {
		return err
	}
	same := func(p piece) error { return w.Same(p.Off, p.data) }
	err = done.pieces(ctx, c, same, func(p piece) error {
		if p.data == nil {
			return w.Zero(p.Off, p.Len)
		}
		return w.Data(p.Off, p.data)
	})
	if err != nil {
		return err
	}
	return w.Close()
}

// piece is a part of a snapshot; without data it is zeros.
type piece struct {
	snapshot.Extent
	data []byte
}

// pieces reads what changed and calls visit for each piece of data, or of zeros,
// in ascending order; same for parts in between that did not change.
func (done *exported) pieces(ctx context.Context, c *compared, same, visit func(piece) error) error {
	w := witnesses{data: c.data, step: max(witnessBytes, done.SizeBytes/witnessCount), visit: same}
	buf := make([]byte, delta.MaxData)
	err := c.each(ctx, func(x snapshot.Change) error {
		if err := w.before(x.Off); err != nil {
			return err
		}
		w.at = x.End()
		done.RangeCount++
		for pos := x.Off; pos < x.End(); {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			n := min(int64(len(buf)), x.End()-pos)
			if k, err := c.data.ReadAt(buf[:n], pos); int64(k) < n {
				return fmt.Errorf("%s cannot be read at byte %d: %w", done.Name, pos+int64(k), err)
			}
			if err := done.split(pos, buf[:n], visit); err != nil {
				return err
			}
			pos += n
		}
		return nil
	})
	if err != nil {
		return err
	}
	return w.before(done.SizeBytes)
}

// zeroUnit is the shortest run of zeros, aligned, that is told from data.
const zeroUnit = 4096

// split cuts the bytes at off into data and zeros.
func (done *exported) split(off int64, b []byte, visit func(piece) error) error {
	for len(b) > 0 {
		n, zero := unitAt(off, b)
		for n < len(b) {
			k, z := unitAt(off+int64(n), b[n:])
			if z != zero {
				break
			}
			n += k
		}
		p := piece{Extent: snapshot.Extent{Off: off, Len: int64(n)}}
		if zero {
			done.ZeroBytes += int64(n)
		} else {
			p.data = b[:n]
			done.DataBytes += int64(n)
		}
		if err := visit(p); err != nil {
			return err
		}
		off, b = off+int64(n), b[n:]
	}
	return nil
}

// unitAt is the length of the unit that begins b, and whether it is zeros.
func unitAt(off int64, b []byte) (n int, zero bool) {
	n = int(min(int64(len(b)), zeroUnit-off%zeroUnit))
	return n, isZero(b[:n])
}

const (
	witnessCount = 128  // about so many in all
	witnessBytes = 4096 // in each
)

// witnesses picks parts that did not change, spread over the device and not
// zeros, by which a wrong target is found.
type witnesses struct {
	data  io.ReaderAt
	step  int64
	at    int64 // end of what was looked at
	next  int64 // where the next one is wanted
	visit func(piece) error
}

// before looks at the gap that ends at byte end.
func (w *witnesses) before(end int64) error {
	for at := max(w.at, w.next); at < end; at = max(at+1, w.next) {
		b := make([]byte, min(witnessBytes, end-at))
		if k, err := w.data.ReadAt(b, at); k < len(b) {
			return fmt.Errorf("byte %d: %w", at+int64(k), err)
		}
		w.next = (at/w.step + 1) * w.step
		if isZero(b) {
			continue
		}
		if err := w.visit(piece{snapshot.Extent{Off: at, Len: int64(len(b))}, b}); err != nil {
			return err
		}
		w.at = at + int64(len(b))
		w.next = max(w.next, w.at)
	}
	return nil
}
