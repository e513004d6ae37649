package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/keeper"
	"github.com/spf13/cobra"
)

func newUpgradeCommand(a *app) *cobra.Command {
	binary := ""
	cmd := &cobra.Command{
		Use:   "upgrade [--binary FILE]",
		Short: "Replace a daemon that has a keeper by another program, with its devices in use",
		Args:  asUsage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if binary == "" {
				binary, err = os.Executable()
			} else {
				binary, err = filepath.Abs(binary)
			}
			if err != nil {
				return err
			}
			return a.upgrade(cmd.Context(), binary)
		},
	}
	cmd.Flags().StringVar(&binary, "binary", "", "the program that goes on (default: this one)")
	return cmd
}

// upgrade returns when the daemon that goes on answers, whichever that is.
func (a *app) upgrade(ctx context.Context, binary string) error {
	c, before, err := a.connect(ctx)
	if err != nil {
		return err
	}
	if err := c.Upgrade(ctx, binary); err != nil {
		return err
	}
	c.Close() // its connection ends with the daemon
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		now, err := c.Version(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("after the upgrade: %w", err)
		case now.PID == before.PID: // it still answers what it has
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(10 * time.Millisecond):
			}
			continue
		case now.After != string(keeper.Upgraded):
			return fail(exitFailed, fmt.Errorf("the program %s did not take over; the old one goes on (dmfuse %s, pid %d)", binary, now.Version, now.PID),
				"the log of the daemon says why")
		}
		return a.printUpgrade(now)
	}
}

func (a *app) printUpgrade(v control.Version) error {
	if a.json {
		return a.printJSON(map[string]any{"daemon": v})
	}
	_, err := fmt.Fprintf(a.stdout, "dmfuse %s goes on, pid %d\n", v.Version, v.PID)
	return err
}
