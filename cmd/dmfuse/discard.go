package main

import (
	"context"
	"fmt"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

func newDiscardCommand(a *app) *cobra.Command {
	offset, length := newSizeFlag("0"), newSizeFlag("")
	cmd := &cobra.Command{
		Use:   "discard NAME",
		Short: "Tell a device that a range is not needed any more",
		Long: `Tell a device that a range is not needed any more, with the kernel's discard:
what the range reads as afterwards depends on the table, and may be the old
data. To make a range read as zeros, punch a hole through the device file
(fallocate -p).`,
		Example: `  dmfuse discard snap --offset 1m --length 64k`,
		Args:    asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			n := int64(-1)
			if length.given {
				n = length.bytes
			}
			return a.discard(cmd.Context(), args[0], offset.bytes, n)
		},
	}
	cmd.Flags().Var(offset, "offset", "where the range begins")
	cmd.Flags().Var(length, "length", "how long it is (default: up to the end)")
	return cmd
}

// discard drops n bytes at off, or up to the end where n is -1.
func (a *app) discard(ctx context.Context, name string, off, n int64) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	m, err := s.device(ctx, name)
	if err != nil {
		return err
	}
	switch {
	case off%512 != 0 || n > 0 && n%512 != 0:
		return usagef("a discard is in whole sectors: offset and length must be multiples of 512 bytes")
	case n == 0:
		return usagef("a length of 0 discards nothing")
	case off > m.SizeBytes || n > m.SizeBytes-off:
		return usagef("the range begins at byte %d of %s and ends after it: the device has %d bytes", off, name, m.SizeBytes)
	case off == m.SizeBytes:
		return nil
	}
	if n < 0 {
		n = m.SizeBytes - off
	}
	if err := s.c.Discard(ctx, control.ByName(name), off, n); err != nil {
		err = fmt.Errorf("%s is not discarded at byte %d, %d bytes: %w", name, off, n, err)
		if errorCode(err) == control.CodeUnsupported {
			return fail(exitFailed, err, "the targets of its table offer no discard; see them with: dmfuse table "+shellQuote(name))
		}
		return err
	}
	if a.json {
		return a.printJSON(struct {
			Name        string `json:"name"`
			OffsetBytes int64  `json:"offset_bytes"`
			LengthBytes int64  `json:"length_bytes"`
		}{name, off, n})
	}
	return nil
}
