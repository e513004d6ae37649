package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

func newShutdownCommand(a *app) *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use:   "shutdown [--force]",
		Short: "End the daemon: flush, unmount, forget the devices",
		Args:  asUsage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			pid := 0
			if dir, err := a.runDir(); err == nil {
				pid = lockHolder(dir)
			}
			merges := a.mergesUnderWay(cmd.Context(), c)
			if err := c.Shutdown(cmd.Context(), force); err != nil {
				return err
			}
			waitEnd(cmd.Context(), pid)
			a.sayBrokenOff(merges, nil)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "though devices are in use: their users get errors")
	return cmd
}

// waitEnd waits a while for a daemon that has answered to be gone, so that the
// next command can start another one.
func waitEnd(ctx context.Context, pid int) {
	for late := time.Now().Add(dyingLimit); pid != 0 && !over(pid) && ctx.Err() == nil && time.Now().Before(late); {
		time.Sleep(2 * time.Millisecond)
	}
}
