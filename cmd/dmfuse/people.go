package main

import "github.com/spf13/cobra"

// peopleCommands are the verbs for people: origin, snapshot, attach, mount and
// the like, one file per noun.
func peopleCommands(a *app) []*cobra.Command {
	return []*cobra.Command{
		newOriginCommand(a),
		newSnapshotCommand(a),
		newMirrorCommand(a),
		newCowCommand(a),
		newLogCommand(a),
		newPolicyCommand(a),
		newJobsCommand(a),
		newMetricsCommand(a),
		newDiscardCommand(a),
		newFaultCommand(a),
		newTopCommand(a),
		newReplayCommand(a),
		newAttachCommand(a),
		newDetachCommand(a),
		newMountCommand(a),
		newUmountCommand(a),
		newHoldFrozenCommand(a),
	}
}

// newHoldFrozenCommand is for dmfuse itself: the process that holds a freeze.
func newHoldFrozenCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: holdVerb, Hidden: true, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return silent(holdFrozen(args, a.stdin, a.stdout))
		},
	}
}
