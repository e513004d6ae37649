package main

import (
	"fmt"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this program and of the daemon",
		Args:  asUsage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			// A daemon of another version is what one wants to see here, and
			// without one there is still this program.
			socket, err := a.socket()
			if err != nil {
				return err
			}
			v, err := control.NewClient(socket).Version(cmd.Context())
			var daemon *control.Version
			if err == nil {
				daemon = &v
			} else if exitCode(err) != exitNoDaemon {
				return err
			}
			return a.printVersion(daemon)
		},
	}
}

func (a *app) printVersion(v *control.Version) error {
	if a.json {
		return a.printJSON(map[string]any{
			"version": version, "protocol": control.Protocol,
			"library_version": libraryVersion, "driver_version": driverVersion, "daemon": v,
		})
	}
	fmt.Fprintf(a.stdout, "dmfuse %s\n", version)
	fmt.Fprintf(a.stdout, "Library version:   %s\nDriver version:    %s\n", libraryVersion, driverVersion)
	if v == nil {
		_, err := fmt.Fprintln(a.stdout, "daemon:            none")
		return err
	}
	fmt.Fprintf(a.stdout, "daemon:            %s, pid %d, since %s\n", v.Version, v.PID, v.Started.Local().Format("2006-01-02 15:04:05"))
	switch {
	case v.KeeperPID != 0 && v.After != "first":
		fmt.Fprintf(a.stdout, "keeper:            pid %d, the daemon before: %s\n", v.KeeperPID, v.After)
	case v.KeeperPID != 0:
		fmt.Fprintf(a.stdout, "keeper:            pid %d\n", v.KeeperPID)
	case v.NoKeeper != "":
		fmt.Fprintf(a.stdout, "keeper:            none (%s)\n", v.NoKeeper)
	}
	fmt.Fprintf(a.stdout, "mount:             %s, transport %s\n", v.Mount, v.Transport)
	for _, p := range v.Restored {
		if p.Device != "" {
			p.Text = p.Device + ": " + p.Text
		}
		fmt.Fprintf(a.stdout, "not brought back:  %s\n", p.Text)
	}
	for _, l := range v.Leftovers {
		fmt.Fprintf(a.stdout, "dead:              %s %s over %s; clear it with: %s\n", l.What, l.Where, l.Over, l.Clear)
	}
	return nil
}
