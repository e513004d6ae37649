package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev/faultrule"
	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

func newFaultCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Make a live device fail, wait or lie, by rules",
		Args:  asUsage(cobra.NoArgs),
		RunE:  needVerb,
	}
	cmd.AddCommand(newFaultSetCommand(a), newFaultListCommand(a), newFaultClearCommand(a))
	return cmd
}

func newFaultSetCommand(a *app) *cobra.Command {
	var file string
	var replace bool
	cmd := &cobra.Command{
		Use:   "set NAME RULE...",
		Short: "Add fault rules to a device",
		Long: `Add fault rules to a live device, without a change of its table. When the
command returns, every request that begins meets them. The numbers of the rules
are printed. Rules stay when the table is swapped and when the device is renamed;
they go with the device.

A rule is words: operations, then in any order a place, an occurrence, actions.
Several rules are separated by semicolons; "-" reads them from standard input,
one a line.

  operations  read, write, flush, discard, several joined by commas, or any
  place       sectors=FIRST+COUNT[,...]  bytes=OFFSET+LENGTH[,...]
              default: the whole device; --file: the extents of a file
  occurrence  after=N  nth=N  every=N  p=PROBABILITY  count=N  seed=N
  action      errno=` + strings.Join(faultrule.Errnos()[:4], "|") + `|...
              delay=TIME  delay=MIN..MAX  delay=normal:MEAN:DEVIATION:MIN:MAX
              hang                      until the rule is cleared
              drop  drop=until-flush    answered, and not done
              tear=512  tear=4096       only a part of a write lands
              corrupt  corrupt=bits:N  corrupt=bytes:N

docs/faults.md says what each does exactly.`,
		Example: `  dmfuse fault set disk write errno=EIO count=1
  dmfuse fault set disk read p=0.01 seed=7 delay=1ms..20ms
  dmfuse fault set disk 'write sectors=2048+8 errno=ENOSPC; flush nth=3 hang'
  dmfuse fault set disk --file /mnt/db/wal read corrupt=bits:1
  dmfuse fault set disk --replace - < rules`,
		Args: asUsage(cobra.MinimumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.faultSet(cmd.Context(), args[0], args[1:], file, replace)
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "place: the extents of this file, on a file system mounted from the device")
	cmd.Flags().BoolVar(&replace, "replace", false, "clear the rules that are there first")
	return cmd
}

func newFaultListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list [NAME]",
		Short: "List the fault rules of a device, or of all, with their hits",
		Long: `List the fault rules of a device, or of all devices. SEEN is how many requests
matched a rule since it was armed, HITS how many of them were hit. Both begin at
0 again when the daemon was killed and started anew.`,
		Example: `  dmfuse fault list disk`,
		Args:    asUsage(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.faultList(cmd.Context(), args)
		},
	}
}

func newFaultClearCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "clear NAME [N...]",
		Short: "Clear fault rules of a device by their numbers, or all",
		Long: `Clear fault rules of a device by their numbers, or all of them. Requests that wait
by a rule go on. What a rule with drop=until-flush keeps back is lost.`,
		Example: `  dmfuse fault clear disk
  dmfuse fault clear disk 2 3`,
		Args: asUsage(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.faultClear(cmd.Context(), args[0], args[1:])
		},
	}
}

func (a *app) faultSet(ctx context.Context, name string, words []string, file string, replace bool) error {
	text := strings.Join(words, " ")
	if text == "-" {
		b, err := io.ReadAll(a.stdin)
		if err != nil {
			return err
		}
		text = string(b)
	}
	rules, err := faultrule.ParseAll(text)
	if err != nil {
		return usagef("%w", err)
	}
	if len(rules) == 0 {
		return usagef("there is no rule; give one, such as: write errno=EIO")
	}
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	m, err := s.device(ctx, name)
	if err != nil {
		return err
	}
	if file != "" {
		if err := placeOnFile(rules, m, file); err != nil {
			return err
		}
	}
	if err := fits(rules, m); err != nil {
		return err
	}
	change := control.FaultsRequest{ClearAll: replace}
	for _, r := range rules {
		change.Add = append(change.Add, r.String())
	}
	reply, err := s.c.ChangeFaults(ctx, control.ByName(name), change)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(reply)
	}
	for _, id := range reply.Added {
		if _, err := fmt.Fprintln(a.stdout, id); err != nil {
			return err
		}
	}
	return nil
}

// placeOnFile puts the rules on the extents of a file.
func placeOnFile(rules []faultrule.Rule, m mapped, file string) error {
	spans, err := fileOnDevice(m, file)
	if err != nil {
		return err
	}
	for i := range rules {
		if len(rules[i].Places) > 0 {
			return usagef("the rule %q has a place, and so has --file: give one of them", rules[i])
		}
		rules[i].Places = spans
	}
	return nil
}

// fits refuses a place that no request to the device can touch.
func fits(rules []faultrule.Rule, m mapped) error {
	for _, r := range rules {
		for _, p := range r.Places {
			if p.Off >= m.SizeBytes && m.Live {
				return usagef("the rule %q is about byte %d and those after it; %s has %d bytes", r, p.Off, m.Name, m.SizeBytes)
			}
		}
	}
	return nil
}

func (a *app) faultList(ctx context.Context, names []string) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	var list control.FaultList
	if len(names) == 0 {
		list, err = s.c.Faults(ctx)
	} else {
		if _, err := s.device(ctx, names[0]); err != nil {
			return err
		}
		var one control.DeviceFaults
		one, err = s.c.DeviceFaults(ctx, control.ByName(names[0]))
		list.Devices = []control.DeviceFaults{one}
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(list)
	}
	var rows [][]string
	for _, d := range list.Devices {
		for _, f := range d.Faults {
			rows = append(rows, []string{
				d.Device, strconv.Itoa(f.ID), strconv.FormatUint(f.Seen, 10), strconv.FormatUint(f.Hits, 10),
				a.faultState(f), shortText(f.Rule),
			})
		}
	}
	return a.printTable([]string{"DEVICE", "ID", "SEEN", "HITS", "STATE", "RULE"}, rows)
}

func (a *app) faultState(f control.Fault) string {
	state := "armed"
	if f.Ended {
		state = "ended"
	}
	if f.Hanging > 0 {
		state += fmt.Sprintf(", %d hang", f.Hanging)
	}
	if f.KeptBytes > 0 {
		state += fmt.Sprintf(", %s kept", a.size(f.KeptBytes))
	}
	return state
}

// shortText keeps a rule on a file of a thousand extents on its line; -J has it
// whole.
func shortText(rule string) string {
	const limit = 120
	if len(rule) <= limit {
		return rule
	}
	return rule[:limit] + "..."
}

func (a *app) faultClear(ctx context.Context, name string, ids []string) error {
	change := control.FaultsRequest{ClearAll: len(ids) == 0}
	for _, text := range ids {
		id, err := strconv.Atoi(text)
		if err != nil || id < 1 {
			return usagef("%q is no number of a rule; see them with: dmfuse fault list %s", text, shellQuote(name))
		}
		change.Clear = append(change.Clear, id)
	}
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	if _, err := s.device(ctx, name); err != nil {
		return err
	}
	reply, err := s.c.ChangeFaults(ctx, control.ByName(name), change)
	if errorCode(err) == control.CodeInvalid {
		return fail(exitMissing, err, "see the rules with: dmfuse fault list "+shellQuote(name))
	}
	if err == nil && a.json {
		return a.printJSON(reply)
	}
	return err
}
