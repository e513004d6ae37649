package main

import "github.com/spf13/cobra"

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
			return c.Shutdown(cmd.Context(), force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "though devices are in use: their users get errors")
	return cmd
}
