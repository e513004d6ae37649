package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

func newMirrorResyncCommand(a *app) *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "resync NAME [LEG]",
		Short: "Copy everything again, to all legs or to one",
		Long: `Copy everything of a mirror from its source, the first leg that is in order, to the
other legs again, or to LEG alone. A leg that was dropped comes back that way.
The mirror is used meanwhile. Where only what differs is to be copied, use
dmfuse mirror scrub --repair.`,
		Example: `  dmfuse mirror resync data
  dmfuse mirror resync data /mnt/other/b.img --wait`,
		Args: asUsage(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			leg := ""
			if len(args) > 1 {
				leg = args[1]
			}
			return a.mirrorResync(cmd.Context(), args[0], leg, wait)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "return when it is done")
	return cmd
}

func (a *app) mirrorResync(ctx context.Context, name, leg string, wait bool) error {
	s, m, t, err := a.mirrorCalled(ctx, name)
	if err != nil {
		return err
	}
	if m.Suspended {
		return suspendedMirror(name)
	}
	words := []string{"resync"}
	if leg != "" {
		i, err := s.legCalled(m, t, leg)
		if err != nil {
			return err
		}
		words = append(words, strconv.Itoa(i))
	}
	if _, err := s.c.Message(ctx, control.ByName(name), 0, words); err != nil {
		return fmt.Errorf("%s is not copied again: %w", name, err)
	}
	return a.answerWork(ctx, s, name, wait)
}

func suspendedMirror(name string) error {
	return fail(exitBusy, fmt.Errorf("%s is suspended", name), "resume it first: dmfuse resume "+shellQuote(name))
}

// answerWork is the answer of a verb that began long work: it may wait for the
// end.
func (a *app) answerWork(ctx context.Context, s *session, name string, wait bool) error {
	if wait {
		_, err := a.followResync(ctx, s, name)
		return err
	}
	if a.json {
		return a.printJSON(struct {
			Name    string `json:"name"`
			Started string `json:"started"`
		}{name, "resync"})
	}
	return nil
}

// followResync shows how a resync gets on until all is in sync. When it is and
// the mirror is degraded all the same, the exit code says so.
func (a *app) followResync(ctx context.Context, s *session, name string) (bool, error) {
	done, err := a.follow(ctx, func(ctx context.Context) (work, error) { return s.resyncWork(ctx, name) })
	if err != nil || !done {
		return done, err
	}
	r, err := s.report(ctx, name)
	if err != nil {
		return false, err
	}
	if bad := reportProblems(r); len(bad) > 0 {
		return true, fail(exitDegraded, fmt.Errorf("%s is degraded: %s", name, strings.Join(bad, "; ")), "see it with: dmfuse mirror status "+shellQuote(name))
	}
	return true, nil
}

// resyncWork is how far the legs of a mirror are in sync.
func (s *session) resyncWork(ctx context.Context, name string) (work, error) {
	// The jobs first: one that ends in between is seen in the report.
	jobs, err := s.c.Jobs(ctx, control.ByName(name))
	if err != nil {
		return work{}, err
	}
	r, err := s.report(ctx, name)
	if err != nil {
		return work{}, err
	}
	w := work{
		Device: name, Kind: "resync", State: "running", LeftSeconds: -1,
		DoneBytes: int64(r.InSync) * r.RegionBytes, TotalBytes: int64(r.Regions) * r.RegionBytes,
	}
	for _, j := range jobs {
		if j.Kind == w.Kind {
			w = workOf(j)
			break
		}
	}
	switch {
	case r.InSync == r.Regions && !legsFilling(r):
		w.State, w.DoneBytes, w.RateBytes = workDone, w.TotalBytes, 0
	case r.Suspended:
		w.State, w.Detail = "paused", "the mirror is suspended"
	case w.State == "waiting" && !r.NextRetry.IsZero(), w.State == workFailed:
		w.State = workFailed
		why := reportProblems(r)
		if w.Detail != "" {
			why = append(why, w.Detail)
		}
		if len(why) == 0 {
			why = append(why, "regions could not be copied")
		}
		w.Detail = strings.Join(why, "; ")
	}
	return w, nil
}
