package main

import "github.com/spf13/cobra"

// peopleCommands are the verbs for people: origin, snapshot, attach, mount and
// the like, one file per noun.
func peopleCommands(a *app) []*cobra.Command {
	return []*cobra.Command{}
}
