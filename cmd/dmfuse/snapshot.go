package main

import "github.com/spf13/cobra"

func newSnapshotCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Point-in-time views",
		Args:  asUsage(cobra.NoArgs),
		RunE:  needVerb,
	}
	cmd.AddCommand(
		newSnapshotCreateCommand(a),
		newSnapshotOpenCommand(a),
		newSnapshotLsCommand(a),
		newSnapshotUsageCommand(a),
		newSnapshotDiffCommand(a),
		newSnapshotExportCommand(a),
		newSnapshotApplyCommand(a),
		newSnapshotRmCommand(a),
		newSnapshotMergeCommand(a),
	)
	return cmd
}
