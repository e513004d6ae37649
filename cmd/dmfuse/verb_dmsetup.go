package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
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
		{"check", 0, false},  // status: exit code 6 for what is degraded
		{"timeout", 0, true}, // wait: seconds
	}
	return slices.Concat(own, dmsetupOptions())
}

func newDmsetupCommand(a *app, c *dmCommand) *cobra.Command {
	return &cobra.Command{
		Use:                c.name + " " + c.usage(),
		Short:              c.short,
		Long:               c.short + ".\n\nOptions, order of arguments and output are those of dmsetup(8)." + c.own(),
		DisableFlagParsing: true, // getopt of our own: options anywhere, shortened ones
		RunE: func(cmd *cobra.Command, args []string) error {
			d := &dm{app: a, ctx: cmd.Context(), argv0: "dmfuse", people: true, cmd: c}
			words, ok := d.parse(args, peopleOptions())
			if !ok {
				return silent(exitUsage)
			}
			if err := d.checkOwn(); err != nil {
				return err
			}
			for _, w := range words {
				if err := checkText(w); err != nil {
					return err
				}
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

// checkOwn refuses options of one verb that were given to another.
func (d *dm) checkOwn() error {
	for option, verb := range map[string]string{"check": "status", "timeout": "wait"} {
		if d.o.on(option) && d.cmd.name != verb {
			return usagef("--%s is for %s", option, verb)
		}
	}
	if _, err := strconv.ParseFloat(d.o.value["timeout"], 64); d.o.on("timeout") && err != nil {
		return usagef("--timeout %s: expected seconds", d.o.value["timeout"])
	}
	return nil
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

// own describes the options that dmsetup does not have.
func (c *dmCommand) own() string {
	switch c.name {
	case "status":
		return "\n--check ends with exit code 6 when a device is degraded or invalid."
	case "wait":
		return "\n--timeout SECONDS ends with exit code 124 when nothing happens until then."
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
