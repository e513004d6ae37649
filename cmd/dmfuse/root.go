package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// version of the program; the linker may set it.
var version = "0.1.0"

// run is the whole program: the arguments, with the name it was called by,
// give an exit code.
func (a *app) run(ctx context.Context, argv []string) int {
	if args, ok := calledDmsetup(argv); ok {
		return a.runDmsetup(ctx, args)
	}
	root := newRootCommand(a)
	root.SetArgs(argv[1:])
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	a.report(err)
	return exitCode(err)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "dmfuse",
		Short:         "device-mapper without the kernel: snapshots and mirrors of disk images as files",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          unknownVerb,

		SuggestionsMinimumDistance: 2,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetIn(a.stdin)
	f := root.PersistentFlags()
	f.BoolVarP(&a.json, "json", "J", false, "answer in JSON")
	f.BoolVarP(&a.noHeadings, "noheadings", "n", false, "tables without headings")
	f.BoolVarP(&a.bytes, "bytes", "b", false, "sizes in bytes")
	f.BoolVar(&a.noAutostart, "no-autostart", false, "never start a daemon")
	f.StringVar(&a.runDirFlag, "run-dir", "", "run directory (DMFUSE_RUN_DIR)")
	f.StringVar(&a.socketFlag, "socket", "", "control socket (DMFUSE_SOCKET)")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%w", err) })
	root.AddCommand(newServeCommand(a), newWorkerCommand(a), newUpgradeCommand(a), newShutdownCommand(a), newVersionCommand(a), newEventsCommand(a), newManCommand(a), newDmsetupNameCommand())
	root.AddCommand(dmsetupCommands(a)...)
	root.AddCommand(peopleCommands(a)...)
	strictCompletion(root)
	addExamples(root)
	addCompletion(a, root)
	return root
}

// strictCompletion makes cobra's verb for completion refuse what it does not
// know: by itself it prints its help and ends well, and a script that sources
// the answer has nothing.
func strictCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	c, _, err := root.Find([]string{"completion"})
	if err != nil {
		return
	}
	var shells []string
	for _, shell := range c.Commands() {
		shell.Args = asUsage(cobra.NoArgs)
		shells = append(shells, shell.Name())
	}
	c.Use = "completion SHELL"
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(*cobra.Command, []string) error {
		return usagef("completion needs one of the shells %s", strings.Join(shells, ", "))
	}
}

// unknownVerb answers words that are no verb, or none at all.
func unknownVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		cmd.SetOut(cmd.ErrOrStderr())
		return errors.Join(cmd.Help(), silent(exitUsage))
	}
	text := fmt.Sprintf("there is no verb %q", args[0])
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		text += "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return fail(exitUsage, errors.New(text), "see the verbs with: dmfuse --help")
}

// asUsage marks an argument error of cobra as a usage error.
func asUsage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			var f *failure
			if errors.As(err, &f) {
				return err
			}
			return usagef("%w\n  usage: %s", err, cmd.UseLine())
		}
		return nil
	}
}
