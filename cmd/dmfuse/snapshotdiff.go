package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/spf13/cobra"
)

func newSnapshotDiffCommand(a *app) *cobra.Command {
	var o shownOptions
	var exact bool
	cmd := &cobra.Command{
		Use:   "diff NAME [OTHER]",
		Short: "List the ranges in which a snapshot differs from its origin, or from another snapshot",
		Long: `List the ranges that changed: in which the snapshot NAME differs from its origin
as it is now, or from OTHER, another snapshot of the same origin. It works while
they are in use; the list is that of the moment when the command began.

The list tells which chunks were saved or written, not what is in them: of
those that were overwritten with what they held before, and of those that
changed since both snapshots, the bytes may be equal. --exact reads them and
lists the chunks that differ.

NAME and OTHER can also be stores without a device, COW files made by dmfuse or
the kernel; then no daemon is needed, and ORIGIN is what they are stores of.`,
		Example: `  dmfuse snapshot diff monday
  dmfuse snapshot diff monday tuesday --exact -J
  dmfuse snapshot diff monday.cow --origin disk.img`,
		Args: asUsage(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.snapshotDiff(cmd.Context(), args, o, exact)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&exact, "exact", false, "compare the bytes, and list only what differs")
	addShownFlags(cmd, &o)
	return cmd
}

// addShownFlags adds the flags of verbs that read snapshots and stores.
func addShownFlags(cmd *cobra.Command, o *shownOptions) {
	cmd.Flags().StringVar(&o.origin, "origin", "", "origin of a store that no device shows (default: as its sidecar says)")
	cmd.Flags().BoolVar(&o.damaged, "damaged", false, "read a store with problems, or of another origin")
}

func (a *app) snapshotDiff(ctx context.Context, names []string, o shownOptions, exact bool) error {
	if len(names) == 2 && names[0] == names[1] {
		return usagef("%s twice: a snapshot does not differ from itself", names[0])
	}
	o.whole = exact
	asOf := time.Now()
	all, err := a.show(ctx, o, names...)
	if err != nil {
		return err
	}
	defer closeShown(all)
	c, err := newCompared(all, exact)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(a.stdout)
	defer w.Flush()
	if a.json {
		err = diffJSON(ctx, w, c, exact, asOf)
	} else {
		err = a.diffText(ctx, w, c)
	}
	if err != nil {
		return err
	}
	return w.Flush()
}

// diffText prints a range a line, and the sum.
func (a *app) diffText(ctx context.Context, w io.Writer, c *compared) error {
	line := func(cells ...string) error {
		_, err := fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%-20s  %-20s  %s", cells[0], cells[1], cells[2]), " "))
		return err
	}
	if !a.noHeadings {
		changed := "CHANGED"
		if c.second() == nil {
			changed = ""
		}
		if err := line("OFFSET", "LENGTH", changed); err != nil {
			return err
		}
	}
	ranges, sum := 0, int64(0)
	err := c.each(ctx, func(x snapshot.Change) error {
		ranges, sum = ranges+1, sum+x.Len
		where := ""
		if two := c.second(); two != nil {
			where = map[snapshot.Sides]string{snapshot.First: c.all[0].name, snapshot.Second: two.name, snapshot.Both: "both"}[x.In]
		}
		return line(fmt.Sprint(x.Off), a.size(x.Len), where)
	})
	if err != nil || a.noHeadings {
		return err
	}
	of := ""
	if size := c.all[0].size; size != snapshot.NoSize {
		of = " of " + a.size(size)
	}
	_, err = fmt.Fprintf(w, "%s, %s%s\n", count(ranges, "range"), a.size(sum), of)
	return err
}

// diffHead is what stands before the ranges in JSON.
type diffHead struct {
	SchemaVersion  int       `json:"schema_version"`
	Name           string    `json:"name"`
	Other          *string   `json:"other"` // null: the origin
	Origin         *string   `json:"origin"`
	SizeBytes      *int64    `json:"size_bytes"`
	ChunkSizeBytes int64     `json:"chunk_size_bytes"` // the smaller one
	Exact          bool      `json:"exact"`
	AsOf           time.Time `json:"as_of"`
}

// diffRange is a range in JSON.
type diffRange struct {
	OffsetBytes int64  `json:"offset_bytes"`
	LengthBytes int64  `json:"length_bytes"`
	Changed     string `json:"changed"` // since or in which snapshot: first, second, both
}

// diffJSON writes one object, a range at a time: there may be many.
func diffJSON(ctx context.Context, w io.Writer, c *compared, exact bool, asOf time.Time) error {
	first := c.all[0]
	head := diffHead{SchemaVersion: control.SchemaVersion, Name: first.name, ChunkSizeBytes: c.block, Exact: exact, AsOf: asOf.UTC()}
	if two := c.second(); two != nil {
		head.Other = &two.name
	}
	if first.origin.path != "" {
		head.Origin = &first.origin.path
	}
	if first.size != snapshot.NoSize {
		head.SizeBytes = &first.size
	}
	b, err := json.Marshal(head)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, `%s,"ranges":[`, b[:len(b)-1])
	count, sum, comma := 0, int64(0), ""
	err = c.each(ctx, func(x snapshot.Change) error {
		r := diffRange{x.Off, x.Len, map[snapshot.Sides]string{snapshot.First: "first", snapshot.Second: "second", snapshot.Both: "both"}[x.In]}
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s\n%s", comma, b)
		count, sum, comma = count+1, sum+x.Len, ","
		return err
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "],\"range_count\":%d,\"changed_bytes\":%d}\n", count, sum)
	return err
}
