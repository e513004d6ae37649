package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

// addCompletion has the shell complete the words after each verb by what its
// usage line calls them: NAME is a device, which the daemon is asked for, other
// words are files. No daemon is started for it.
func addCompletion(a *app, root *cobra.Command) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for name, values := range flagValues {
			if c.Flags().Lookup(name) != nil {
				_ = c.RegisterFlagCompletionFunc(name, oneOf(values)) // fails only for a flag that is not there, or twice
			}
		}
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
	policyWord                // KEY=VALUE: a policy of the device named before
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
	"RULE": ruleWord, "N": ruleID, "KEY=VALUE": policyWord,
	"ORIGIN": either, "LEG": either, "OLD": either, "NEW": either, "DEV": either, "TARGET": either,
}

// flagValues are the flags that take one of a few words. It is never changed.
var flagValues = map[string][]string{
	"format":    {"ranges", "raw"},
	"overflow":  {"grow", "pause", "readonly", "invalidate"},
	"transport": {"auto", "uring", "dev", "gofuse"},
	"log-level": {"error", "warning", "info", "debug", "trace"},
}

// policyValues are the policies that take one of a few words. It is never changed.
var policyValues = map[string][]string{
	"overflow":     flagValues["overflow"],
	"commit":       {"lazy", "strict"},
	"paused":       {"yes", "no"},
	"read-balance": {"load", "default"},
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

// oneOf proposes some words.
func oneOf(words []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		fits := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return !strings.HasPrefix(w, word) })
		return fits, cobra.ShellCompDirectiveNoFileComp
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
			return a.deviceNames(cmd.Context(), args, typesOf(cmd)), cobra.ShellCompDirectiveNoFileComp
		case policyWord:
			return a.policyWords(cmd.Context(), args, word)
		case either:
			return a.deviceNames(cmd.Context(), args, nil), cobra.ShellCompDirectiveDefault
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

// typesOf are the targets of the devices that a verb is for; nil: any.
func typesOf(cmd *cobra.Command) []string {
	switch cmd.Parent().Name() {
	case "snapshot":
		return snapshotTypes
	case "mirror":
		return []string{"mirror"}
	}
	return nil
}

// deviceNames are the devices there are, of the types, but those named already,
// with their sizes; none without a daemon.
func (a *app) deviceNames(ctx context.Context, given, types []string) []string {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completeLimit)
	defer cancel()
	s, err := a.session(ctx)
	if err != nil {
		return nil
	}
	defer s.c.Close()
	if err := s.load(ctx); err != nil {
		return nil
	}
	var names []string
	for _, d := range s.devices {
		if _, fits := d.only(types...); slices.Contains(given, d.Name) || types != nil && !fits {
			continue
		}
		names = append(names, cobra.CompletionWithDesc(d.Name, fmt.Sprintf("%s, minor %d", formatSize(d.SizeBytes), d.Minor)))
	}
	return names
}

// policyWords proposes the policies of the device that is the first word, and the
// values of one that takes a few words.
func (a *app) policyWords(ctx context.Context, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if key, _, ok := strings.Cut(word, "="); ok {
		var all []string
		for _, v := range policyValues[key] {
			all = append(all, key+"="+v)
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
	const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	ctx, cancel := context.WithTimeout(ctx, completeLimit)
	defer cancel()
	s, err := a.session(ctx)
	if err != nil {
		return nil, directive
	}
	defer s.c.Close()
	text, err := s.c.Message(ctx, control.ByName(args[0]), 0, []string{"policy"})
	if err != nil {
		return nil, directive // it has none
	}
	var all []string
	for _, p := range policiesIn(text) {
		given := slices.ContainsFunc(args[1:], func(w string) bool { return strings.HasPrefix(w, p.Key+"=") })
		if !given && p.Key != "kept" {
			all = append(all, p.Key+"=")
		}
	}
	return all, directive
}
