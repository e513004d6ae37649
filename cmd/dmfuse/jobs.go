package main

import (
	"context"
	"fmt"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

func newJobsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "jobs [NAME]",
		Short: "List the resyncs, scrubs and merges under way",
		Long: `List the long work that devices do by themselves: resyncs and scrubs of mirrors,
merges of snapshots. A job that is done is not in the list.`,
		Example: `  dmfuse jobs
  dmfuse jobs -J | jq '.jobs[] | select(.state != "running")'`,
		Args: asUsage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.jobs(cmd.Context(), args) },
	}
}

func (a *app) jobs(ctx context.Context, args []string) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	key := control.Key{}
	if len(args) > 0 {
		if _, err := s.device(ctx, args[0]); err != nil {
			return err
		}
		key = control.ByName(args[0])
	}
	list, err := s.c.Jobs(ctx, key)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(control.JobList{Jobs: list})
	}
	rows := [][]string{}
	for _, j := range list {
		rate, left, done := "-", "-", "-"
		if j.RateBytes > 0 {
			rate = a.size(j.RateBytes) + "/s"
		}
		if j.LeftSeconds >= 0 {
			left = timeText(j.LeftSeconds)
		}
		if j.TotalBytes > 0 {
			done = fmt.Sprintf("%.1f%%", workOf(j).percent())
		}
		rows = append(rows, []string{j.Device, j.Kind, j.State, done, rate, left, j.Detail})
	}
	return a.printTable([]string{"DEVICE", "KIND", "STATE", "DONE", "RATE", "LEFT", "DETAIL"}, rows)
}

// workOf is a job of the daemon as the progress shows it.
func workOf(j control.Job) work {
	return work{
		Device: j.Device, Kind: j.Kind, State: j.State, DoneBytes: j.DoneBytes, TotalBytes: j.TotalBytes,
		RateBytes: j.RateBytes, LeftSeconds: j.LeftSeconds, Detail: j.Detail,
	}
}
