package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/spf13/cobra"
)

// scrubOptions is what the command line of scrub says.
type scrubOptions struct {
	repair bool
	from   string
	wait   bool
	stop   bool
	report bool
}

func newMirrorScrubCommand(a *app) *cobra.Command {
	var o scrubOptions
	cmd := &cobra.Command{
		Use:   "scrub NAME",
		Short: "Compare the legs of a mirror",
		Long: `Read all legs of a mirror and compare them, while it is used. What differs is
reported as ranges of bytes; with --repair it is copied from the source, or from the
leg named by --from, to the others.

The scrub goes on by itself: --report shows how far it is and what it found, --stop
ends it, --wait waits for its end. Exit code 6 means that legs differ, or could not
be read, and that this was not repaired.`,
		Example: `  dmfuse mirror scrub data --wait
  dmfuse mirror scrub data --repair --from a.img --wait
  dmfuse mirror scrub data --report -J`,
		Args: asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mirrorScrub(cmd.Context(), args[0], o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.repair, "repair", false, "copy what differs from the source to the other legs")
	f.StringVar(&o.from, "from", "", "the leg whose data counts (with --repair; default: the source of the mirror)")
	f.BoolVar(&o.wait, "wait", false, "return at the end, with what was found")
	f.BoolVar(&o.stop, "stop", false, "end the scrub that is under way")
	f.BoolVar(&o.report, "report", false, "show how far the last scrub is and what it found")
	return cmd
}

// check finds flags that do not go together.
func (o scrubOptions) check() error {
	switch {
	case o.from != "" && !o.repair:
		return usagef("--from says what --repair copies: give that, too")
	case o.stop && o.report, (o.stop || o.report) && (o.repair || o.wait):
		return usagef("--stop and --report stand alone")
	}
	return nil
}

func (a *app) mirrorScrub(ctx context.Context, name string, o scrubOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	s, m, t, err := a.mirrorCalled(ctx, name)
	if err != nil {
		return err
	}
	words := []string{"scrub", "start"}
	switch {
	case o.report:
		return a.answerScrub(ctx, s, name, t)
	case m.Suspended:
		return suspendedMirror(name)
	case o.stop:
		words = []string{"scrub", "stop"}
	case o.repair:
		words = append(words, "repair")
		if o.from != "" {
			i, err := s.legCalled(m, t, o.from)
			if err != nil {
				return err
			}
			words = append(words, strconv.Itoa(i))
		}
	}
	if _, err := s.c.Message(ctx, control.ByName(name), 0, words); err != nil {
		return fmt.Errorf("%s is not scrubbed: %w", name, err)
	}
	if !o.wait {
		if !a.json {
			return nil
		}
		return a.printJSON(struct {
			Name  string `json:"name"`
			Scrub string `json:"scrub"`
		}{name, map[bool]string{true: "stopped", false: "started"}[o.stop]})
	}
	done, err := a.follow(ctx, func(ctx context.Context) (work, error) { return s.scrubWork(ctx, name) })
	if err != nil || !done {
		return err
	}
	return a.answerScrub(ctx, s, name, t)
}

// scrubReport asks a mirror for its last scrub.
func (s *session) scrubReport(ctx context.Context, name string) (mirror.ScrubReport, error) {
	var r mirror.ScrubReport
	text, err := s.c.Message(ctx, control.ByName(name), 0, []string{"scrub", "report"})
	if err != nil {
		return r, err
	}
	if text == "" {
		return r, failf(exitFailed, "%s has no live table any more", name)
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return r, fmt.Errorf("the report of the scrub of %s is not understood: %w", name, err)
	}
	return r, nil
}

// scrubWork is how far a scrub is.
func (s *session) scrubWork(ctx context.Context, name string) (work, error) {
	r, err := s.scrubReport(ctx, name)
	if err != nil {
		return work{}, err
	}
	w := work{
		Device: name, Kind: "scrub", State: string(r.State), DoneBytes: r.Done, TotalBytes: r.Total,
		RateBytes: r.Rate, LeftSeconds: -1,
	}
	if r.Rate > 0 {
		w.LeftSeconds = float64(r.Total-r.Done) / float64(r.Rate)
	}
	switch r.State {
	case mirror.ScrubStopped:
		w.State, w.Detail = workFailed, "it was stopped"
	case mirror.ScrubNone:
		w.State, w.Detail = workFailed, "the table was replaced, which ends a scrub"
	}
	return w, nil
}

// scrubAnswer is what a scrub found.
type scrubAnswer struct {
	Name  string             `json:"name"`
	Clean bool               `json:"clean"` // nothing differs that was not repaired
	Legs  []string           `json:"legs"`  // by their numbers
	Scrub mirror.ScrubReport `json:"scrub"`
}

func (a *app) answerScrub(ctx context.Context, s *session, name string, t mirrorTable) error {
	r, err := s.scrubReport(ctx, name)
	if err != nil {
		return err
	}
	if r.State == mirror.ScrubNone {
		return fail(exitFailed, fmt.Errorf("%s was not scrubbed since its table is live", name), "begin with: dmfuse mirror scrub "+shellQuote(name))
	}
	ans := scrubAnswer{Name: name, Clean: r.Clean(), Scrub: r}
	for _, l := range t.legs {
		ans.Legs = append(ans.Legs, s.wordText(l.word))
	}
	if a.json {
		err = a.printJSON(ans)
	} else {
		err = a.printScrub(ans)
	}
	if err != nil || ans.Clean {
		return err
	}
	next := "copy what differs from the leg whose data counts with: dmfuse mirror scrub " + shellQuote(name) + " --repair --from LEG"
	return fail(exitDegraded, fmt.Errorf("the legs of %s are not all equal: %s", name, scrubFindings(r)), next)
}

// scrubFindings is what was found, in one line.
func scrubFindings(r mirror.ScrubReport) string {
	var parts []string
	if r.DifferingBytes > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes differ in %s", r.DifferingBytes, count(r.DifferingRanges, "range")))
	}
	if r.UnreadableBytes > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes in %s could not be read on every leg", r.UnreadableBytes, count(r.UnreadableRanges, "range")))
	}
	if r.Repaired > 0 {
		parts = append(parts, fmt.Sprintf("%d bytes were repaired", r.Repaired))
	}
	if r.Problem != "" {
		parts = append(parts, r.Problem)
	}
	if len(parts) == 0 {
		return "no differences"
	}
	return strings.Join(parts, "; ")
}

func (a *app) printScrub(ans scrubAnswer) error {
	r := ans.Scrub
	w := work{State: string(r.State), DoneBytes: r.Done, TotalBytes: r.Total, RateBytes: r.Rate, LeftSeconds: -1}
	state := string(r.State)
	if r.State == mirror.ScrubRunning || r.State == mirror.ScrubPaused {
		state = fmt.Sprintf("%s, %.1f%%%s", state, w.percent(), a.speedText(work{State: "running", RateBytes: r.Rate, LeftSeconds: -1}))
	}
	rows := [][]string{
		{"Scrub of:", ans.Name}, {"State:", state},
		{"Compared:", a.size(r.Done-r.Skipped) + " of " + a.size(r.Total)},
		{"Found:", scrubFindings(r)},
	}
	if r.Skipped > 0 {
		rows = append(rows, []string{"Not compared:", a.size(r.Skipped) + ", out of sync or being written"})
	}
	if err := writeColumns(a.stdout, rows); err != nil {
		return err
	}
	list := [][]string{}
	for _, of := range []struct {
		what  string
		found []mirror.ScrubRange
	}{{"differs", r.Differing}, {"unreadable", r.Unreadable}} {
		for _, x := range of.found {
			var legs []string
			for _, l := range x.Legs {
				legs = append(legs, strconv.Itoa(l))
			}
			list = append(list, []string{strconv.FormatInt(x.Offset, 10), strconv.FormatInt(x.Length, 10), of.what, strings.Join(legs, ",")})
		}
	}
	if len(list) == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout)
	if err := a.printTable([]string{"OFFSET", "BYTES", "WHAT", "LEGS"}, list); err != nil {
		return err
	}
	if more := r.DifferingRanges + r.UnreadableRanges - int64(len(list)); more > 0 {
		a.note("%d more ranges are not shown", more)
	}
	return nil
}
