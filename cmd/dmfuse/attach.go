package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func newAttachCommand(a *app) *cobra.Command {
	var o loopOptions
	cmd := &cobra.Command{
		Use:   "attach NAME",
		Short: "Make a loop device on a device, with direct I/O (root)",
		Long: `Make a loop device on a device of dmfuse, with direct I/O, and print its path.
With --partscan the partitions get devices too (/dev/loopNpM).`,
		Args: asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.attach(cmd.Context(), args[0], o)
		},
	}
	cmd.Flags().BoolVar(&o.partScan, "partscan", false, "make devices for the partitions")
	cmd.Flags().BoolVar(&o.readOnly, "read-only", false, "refuse writes")
	return cmd
}

// attached is the answer of attach.
type attached struct {
	Name       string          `json:"name"`
	Loop       string          `json:"loop"`
	ReadOnly   bool            `json:"read_only"`
	DirectIO   bool            `json:"direct_io"`
	Partitions []attachedParts `json:"partitions,omitempty"`
}

type attachedParts struct {
	Number     int    `json:"number"`
	Path       string `json:"path"`
	StartBytes int64  `json:"start_bytes"`
	SizeBytes  int64  `json:"size_bytes"`
}

func (a *app) attach(ctx context.Context, name string, o loopOptions) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	m, err := s.device(ctx, name)
	if err != nil {
		return err
	}
	l, parts, err := attachDevice(m, o)
	if err != nil {
		return err
	}
	answer := attached{Name: name, Loop: l.path(), ReadOnly: l.readOnly, DirectIO: l.directIO}
	for _, p := range parts {
		answer.Partitions = append(answer.Partitions, attachedParts{p.number, p.path, p.start, p.size})
	}
	if a.json {
		return a.printJSON(answer)
	}
	_, err = fmt.Fprintln(a.stdout, l.path())
	return err
}

// attachDevice makes a loop device on a device, with its partitions if asked
// for. On an error nothing is left attached.
func attachDevice(m mapped, o loopOptions) (loopDevice, []loopPart, error) {
	if err := attachable(m); err != nil {
		return loopDevice{}, nil, err
	}
	o.readOnly = o.readOnly || m.ReadOnly
	var found contents
	if o.partScan {
		p, err := deviceAt(m)
		if err != nil {
			return loopDevice{}, nil, err
		}
		if found, err = p.probe(); err != nil {
			return loopDevice{}, nil, notReadable(m, err)
		}
		o.blockSize = found.SectorSize
	}
	l, err := attachLoop(m.Path, o)
	if err != nil {
		return l, nil, notReadable(m, err)
	}
	if !o.partScan {
		return l, nil, nil
	}
	parts, err := providePartitions(l, found.Partitions)
	if err != nil {
		return l, nil, errors.Join(err, detachLoop(l, false))
	}
	return l, parts, nil
}

// attachable refuses devices on which a loop device would be of no use, or
// would wait for ever.
func attachable(m mapped) error {
	switch {
	case !m.Live:
		return failf(exitFailed, "%s has no live table, so there is nothing to attach", m.Name)
	case m.Suspended:
		return fail(exitBusy, fmt.Errorf("%s is suspended: a loop device on it would wait until it is resumed", m.Name), "resume it first: dmfuse resume "+shellQuote(m.Name))
	}
	return nil
}

// notReadable explains why the file of a device cannot be opened: the mount of
// another user's daemon is closed even to root.
func notReadable(m mapped, err error) error {
	if errors.Is(err, os.ErrPermission) && os.Geteuid() == 0 {
		return fail(exitFailed, fmt.Errorf("%s: %w", m.Path, err), "the daemon belongs to another user; it must run with: dmfuse serve --allow-other")
	}
	return err
}
