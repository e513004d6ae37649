package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

func newEventsCommand(a *app) *cobra.Command {
	follow := false
	cmd := &cobra.Command{
		Use:   "events [--follow]",
		Short: "Print what happens to the devices",
		Long: "Print what happens to the devices from now on, one line each: the next event, or with --follow all of them\n" +
			"until the daemon ends or Ctrl-C. With -J each line is a JSON object.",
		Args: asUsage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.events(cmd.Context(), follow) },
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	return cmd
}

// enough ends a stream of events.
type enough struct{}

func (enough) Error() string { return "enough" }

func (a *app) events(ctx context.Context, follow bool) error {
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	err = c.Events(ctx, nil, func(e control.Event) error {
		if err := a.printEvent(e); err != nil {
			return err
		}
		if !follow {
			return enough{}
		}
		return nil
	})
	switch {
	case err == (enough{}) || ctx.Err() != nil:
		return nil // Ctrl-C is how one leaves
	case err == nil && follow && a.goesOn(ctx):
		fmt.Fprintln(a.stderr, "dmfuse: the daemon was replaced; events may have been missed")
		return a.events(ctx, follow)
	case err == nil:
		return failf(exitNoDaemon, "the daemon has ended")
	}
	return err
}

// goesOn says whether a daemon answers that a keeper put in the place of one that
// died.
func (a *app) goesOn(ctx context.Context) bool {
	_, v, err := a.connect(ctx)
	return err == nil && v.KeeperPID != 0
}

func (a *app) printEvent(e control.Event) error {
	if a.json {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.stdout, `{"schema_version":%d,%s`+"\n", control.SchemaVersion, b[1:])
		return err
	}
	if e.Missed > 0 {
		fmt.Fprintf(a.stderr, "dmfuse: %d events were missed\n", e.Missed)
	}
	line := fmt.Sprintf("%s %-8s %s", e.Time.Local().Format("15:04:05.000"), e.Kind, e.Device)
	if e.Text != "" {
		line += ": " + e.Text
	}
	_, err := fmt.Fprintf(a.stdout, "%s (event %d)\n", line, e.Number)
	return err
}
