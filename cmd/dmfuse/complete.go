package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// addCompletion has the shell complete the words after each verb by what its
// usage line calls them: NAME is a device, which the daemon is asked for, other
// words are files. No daemon is started for it.
func addCompletion(a *app, root *cobra.Command) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Runnable() && c.ValidArgsFunction == nil && !c.HasAvailableSubCommands() {
			c.ValidArgsFunction = a.completeWords(usageWords(c.Use))
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// argKind is what a word on the command line is.
type argKind int

const (
	anyWord    argKind = iota // nothing is known: no proposals
	deviceName                // a device
	fileName                  // a file
	either                    // a device or a file
	ruleWord                  // a word of a fault rule
	ruleID                    // the number of a fault rule of the device named before
)

// usageWord is a word of a usage line; one that repeats stands for the rest.
type usageWord struct {
	kind    argKind
	repeats bool
}

// argKinds are the words of usage lines. It is never changed.
var argKinds = map[string]argKind{
	"NAME": deviceName, "OTHER": deviceName, "device": deviceName,
	"FILE": fileName, "COW": fileName, "DIR": fileName, "table_file": fileName, "LOG": fileName,
	"RULE": ruleWord, "N": ruleID,
	"ORIGIN": either, "LEG": either, "OLD": either, "NEW": either, "DEV": either, "TARGET": either,
}

// makes are the verbs whose NAME is that of a device that is not there yet.
func makes(use string) bool {
	return strings.HasPrefix(use, "create ") || strings.HasPrefix(use, "open ")
}

// usageWords reads the words after the verb of a usage line.
func usageWords(use string) []usageWord {
	var words []usageWord
	for _, w := range strings.Fields(use)[1:] {
		if strings.HasPrefix(w, "[-") || strings.HasPrefix(w, "-") {
			continue
		}
		repeats := strings.HasSuffix(strings.TrimSuffix(w, "]"), "...")
		w = strings.Trim(strings.ReplaceAll(w, "...", ""), "[]<>")
		words = append(words, usageWord{kindOf(w, makes(use)), repeats})
	}
	return words
}

// kindOf finds the first of the alternatives of a word that is known.
func kindOf(word string, makes bool) argKind {
	for one := range strings.SplitSeq(word, "|") {
		one, _, _ = strings.Cut(strings.Trim(one, "[]<>"), "[")
		if kind, ok := argKinds[one]; ok && !(makes && one == "NAME") {
			return kind
		}
	}
	return anyWord
}

// completeWords proposes what can stand at a place of the command line.
func (a *app) completeWords(words []usageWord) cobra.CompletionFunc {
	all := a.proposals(words)
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		list, directive := all(cmd, args, word)
		return slices.DeleteFunc(list, func(p string) bool { return !strings.HasPrefix(p, word) }), directive
	}
}

// proposals are what can stand there, whatever was typed of it.
func (a *app) proposals(words []usageWord) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		args = withoutOptions(cmd, args)
		if cmd.DisableFlagParsing && strings.HasPrefix(word, "-") {
			return dmsetupFlags(), cobra.ShellCompDirectiveNoFileComp
		}
		kind := anyWord
		switch {
		case len(args) < len(words):
			kind = words[len(args)].kind
		case len(words) > 0 && words[len(words)-1].repeats:
			kind = words[len(words)-1].kind
		}
		switch kind {
		case deviceName:
			return a.deviceNames(cmd.Context(), args), cobra.ShellCompDirectiveNoFileComp
		case either:
			return a.deviceNames(cmd.Context(), args), cobra.ShellCompDirectiveDefault
		case fileName:
			return nil, cobra.ShellCompDirectiveDefault
		case ruleWord:
			return ruleWords(args[1:], word)
		case ruleID:
			return a.ruleIDs(cmd.Context(), args), cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// withoutOptions drops the options of the verbs of dmsetup, which cobra does not
// parse.
func withoutOptions(cmd *cobra.Command, args []string) []string {
	if !cmd.DisableFlagParsing {
		return args
	}
	var words []string
	for _, w := range args {
		if !strings.HasPrefix(w, "-") {
			words = append(words, w)
		}
	}
	return words
}

// dmsetupFlags are the long options of the verbs of dmsetup.
func dmsetupFlags() []string {
	var flags []string
	for _, o := range peopleOptions() {
		if o.long != "" {
			flags = append(flags, "--"+o.long)
		}
	}
	return flags
}

// completeLimit bounds how long a shell waits for the daemon.
const completeLimit = 2 * time.Second

// deviceNames are the devices there are but those named already, with their
// sizes; none without a daemon.
func (a *app) deviceNames(ctx context.Context, given []string) []string {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeLimit)
	defer cancel()
	c, _, err := a.connect(ctx)
	if err != nil {
		return nil
	}
	defer c.Close()
	devices, err := c.Devices(ctx)
	if err != nil {
		return nil
	}
	var names []string
next:
	for _, d := range devices {
		for _, g := range given {
			if g == d.Name {
				continue next
			}
		}
		names = append(names, cobra.CompletionWithDesc(d.Name, fmt.Sprintf("%s, minor %d", formatSize(d.SizeBytes), d.Minor)))
	}
	return names
}
