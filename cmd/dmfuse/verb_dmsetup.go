package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// dmsetupCommands are dmsetup's verbs under the name dmfuse: the same options,
// order of arguments and output, with exit codes and errors of our own.
func dmsetupCommands(a *app) []*cobra.Command {
	var list []*cobra.Command
	for _, c := range dmCommands() {
		if c.short == "" || c.name == "version" {
			continue
		}
		list = append(list, newDmsetupCommand(a, c))
	}
	return list
}

// peopleOptions are the options all verbs of dmfuse have, for getopt.
func peopleOptions() []option {
	own := []option{
		{"json", 'J', false}, {"bytes", 'b', false}, {"no-autostart", 0, false},
		{"run-dir", 0, true}, {"socket", 0, true},
	}
	return slices.Concat(own, dmsetupOptions())
}

func newDmsetupCommand(a *app, c *dmCommand) *cobra.Command {
	return &cobra.Command{
		Use:                c.name + " " + c.usage(),
		Short:              c.short,
		Long:               c.short + ".\n\nOptions, order of arguments and output are those of dmsetup(8).",
		DisableFlagParsing: true, // getopt of our own: options anywhere, shortened ones
		RunE: func(cmd *cobra.Command, args []string) error {
			d := &dm{app: a, ctx: cmd.Context(), argv0: "dmfuse", people: true, cmd: c}
			words, ok := d.parse(args, peopleOptions())
			if !ok {
				return silent(exitUsage)
			}
			if d.o.on("help") {
				return cmd.Help()
			}
			d.takePeopleOptions()
			if code := d.runCommand(words); code != exitDone {
				return silent(code)
			}
			return nil
		},
	}
}

// takePeopleOptions hands the options of dmfuse to the app.
func (d *dm) takePeopleOptions() {
	d.json = d.json || d.o.on("json")
	d.bytes = d.bytes || d.o.on("bytes")
	d.noAutostart = d.noAutostart || d.o.on("no-autostart")
	if d.o.on("run-dir") {
		d.runDirFlag = d.o.value["run-dir"]
	}
	if d.o.on("socket") {
		d.socketFlag = d.o.value["socket"]
	}
}

// usage is the arguments of a verb, from dmsetup's help.
func (c *dmCommand) usage() string {
	for line := range strings.SplitSeq(dmsetupUsage, "\n\t") {
		if rest, ok := strings.CutPrefix(line, c.name+" "); ok {
			return strings.Join(strings.Fields(strings.SplitN(rest, "\n", 2)[0]), " ")
		}
	}
	return ""
}

var errNoVerb = errors.New("no such verb")

// newDmsetupNameCommand is "dmfuse dmsetup ...", for those who cannot make a
// link; run sees it before cobra does.
func newDmsetupNameCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "dmsetup COMMAND ...",
		Short:              "Behave as dmsetup(8), as under a link of that name",
		DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("%w: options of dmfuse do not go before dmsetup", errNoVerb)
		},
	}
}
