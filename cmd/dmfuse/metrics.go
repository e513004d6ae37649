package main

import (
	"context"

	"github.com/spf13/cobra"
)

func newMetricsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print all figures of the daemon for monitoring",
		Long: `Print what the daemon counts, of itself and of all devices, in the text format of
Prometheus. The same is at /metrics on the control socket.`,
		Example: `  dmfuse metrics > /var/lib/node_exporter/dmfuse.prom
  curl -s --unix-socket /run/dmfuse/control.sock http://d/metrics`,
		Args: asUsage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.metrics(cmd.Context()) },
	}
}

func (a *app) metrics(ctx context.Context) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	text, err := s.c.Metrics(ctx)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(text)
	return err
}
