package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev/faultrule"
	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

// ruleWords proposes the words of a fault rule that are not there yet: first the
// operations, then the rest. After one that ends in "=" no blank follows.
func ruleWords(given []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(given) == 0 {
		return []string{"read", "write", "read,write", "flush", "discard", "any"}, cobra.ShellCompDirectiveNoFileComp
	}
	if strings.HasPrefix(word, "errno=") {
		var all []string
		for _, name := range faultrule.Errnos() {
			all = append(all, "errno="+name)
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
	words := []string{
		"errno=", "delay=", "hang", "drop", "drop=until-flush", "tear=512", "tear=4096", "corrupt", "corrupt=bits:", "corrupt=bytes:",
		"sectors=", "bytes=", "after=", "nth=", "every=", "p=", "count=", "seed=",
	}
	words = slices.DeleteFunc(words, func(w string) bool {
		key, _, _ := strings.Cut(w, "=")
		return slices.ContainsFunc(given, func(g string) bool { have, _, _ := strings.Cut(g, "="); return have == key })
	})
	directive := cobra.ShellCompDirectiveNoFileComp
	if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, word) }); i < 0 || strings.HasSuffix(words[i], "=") {
		directive |= cobra.ShellCompDirectiveNoSpace
	}
	return words, directive
}

// ruleIDs are the numbers of the rules of the device that is the first word.
func (a *app) ruleIDs(ctx context.Context, args []string) []string {
	ctx, cancel := context.WithTimeout(ctx, completeLimit)
	defer cancel()
	c, _, err := a.connect(ctx)
	if err != nil {
		return nil
	}
	defer c.Close()
	list, err := c.DeviceFaults(ctx, control.ByName(args[0]))
	if err != nil {
		return nil
	}
	var ids []string
	for _, f := range list.Faults {
		if id := strconv.Itoa(f.ID); !slices.Contains(args[1:], id) {
			ids = append(ids, cobra.CompletionWithDesc(id, shortText(f.Rule)))
		}
	}
	return ids
}
