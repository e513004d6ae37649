package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/spf13/cobra"
)

func newMirrorStatusCommand(a *app) *cobra.Command {
	var wait, check bool
	cmd := &cobra.Command{
		Use:   "status NAME",
		Short: "Show legs, health and resync of a mirror",
		Long: `Show the legs of a mirror and how they are, how much is in sync, what is being
copied, and writes that are held back.

--wait returns when all of it is in sync, and shows how that gets on. --check ends
with exit code 6 when a leg or the log is not as it should be; a mirror that is
being copied is as it should be.`,
		Example: `  dmfuse mirror status data
  dmfuse mirror status data --wait && echo in sync`,
		Args: asUsage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mirrorStatus(cmd.Context(), args[0], wait, check)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "return when all legs are in sync")
	cmd.Flags().BoolVar(&check, "check", false, "exit code 6 when the mirror is degraded")
	return cmd
}

// report asks a mirror for all that its status line has no room for.
func (s *session) report(ctx context.Context, name string) (mirror.Report, error) {
	var r mirror.Report
	text, err := s.c.Message(ctx, control.ByName(name), 0, []string{"report"})
	if err != nil {
		return r, err
	}
	if text == "" {
		return r, failf(exitFailed, "%s has no live table any more", name)
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return r, fmt.Errorf("the report of %s is not understood: %w", name, err)
	}
	return r, nil
}

// mirrorStatusAnswer is the answer of mirror status.
type mirrorStatusAnswer struct {
	Name       string        `json:"name"`
	Path       string        `json:"path"`
	SizeBytes  int64         `json:"size_bytes"`
	State      string        `json:"state"` // in-sync, resync, degraded
	Degraded   []string      `json:"degraded"`
	ReadOnly   bool          `json:"read_only"`
	OpenCount  int           `json:"open_count"`
	Mirror     mirror.Report `json:"mirror"`
	Jobs       []control.Job `json:"jobs"`
	EventNr    uint32        `json:"event_nr"`
	DeviceNote string        `json:"problem,omitempty"`
}

func (a *app) mirrorStatus(ctx context.Context, name string, wait, check bool) error {
	s, m, _, err := a.mirrorCalled(ctx, name)
	if err != nil {
		return err
	}
	if wait {
		done, err := a.followResync(ctx, s, name)
		if err != nil || !done {
			return err
		}
		if s, m, _, err = a.mirrorCalled(ctx, name); err != nil {
			return err
		}
	}
	st := mirrorStatusAnswer{
		Name: m.Name, Path: m.Path, SizeBytes: m.SizeBytes, ReadOnly: m.ReadOnly, OpenCount: m.OpenCount,
		EventNr: m.EventNr, DeviceNote: m.Problem,
	}
	if st.Mirror, err = s.report(ctx, name); err != nil {
		return err
	}
	if st.Jobs, err = s.c.Jobs(ctx, control.ByName(name)); err != nil {
		return err
	}
	st.judge()
	if a.json {
		err = a.printJSON(st)
	} else {
		err = a.printMirrorStatus(st)
	}
	if err == nil && check && len(st.Degraded) > 0 {
		return fail(exitDegraded, fmt.Errorf("%s is degraded: %s", name, strings.Join(st.Degraded, "; ")), "")
	}
	return err
}

// judge says what is not as it should be.
func (st *mirrorStatusAnswer) judge() {
	r := st.Mirror
	st.Degraded = reportProblems(r)
	if st.DeviceNote != "" {
		st.Degraded = append(st.Degraded, st.DeviceNote)
	}
	switch {
	case len(st.Degraded) > 0:
		st.State = "degraded"
	case r.InSync < r.Regions || legsFilling(r):
		st.State = "resync"
	default:
		st.State = "in-sync"
	}
}

// reportProblems lists what of a mirror is not as it should be.
func reportProblems(r mirror.Report) []string {
	bad := []string{}
	for i, l := range r.Legs {
		switch {
		case l.State == mirror.LegDropped:
			bad = append(bad, fmt.Sprintf("leg %d (%s) is %s", i, l.Device, droppedText(l)))
		case l.Health != "A":
			bad = append(bad, fmt.Sprintf("leg %d (%s): %s", i, l.Device, healthText(l.Health)))
		}
	}
	if r.LogHealth != "" && r.LogHealth != "A" {
		bad = append(bad, fmt.Sprintf("the log (%s): %s", r.LogDevice, healthText(r.LogHealth)))
	}
	if r.Record != nil && r.Record.LogUntrusted != "" {
		bad = append(bad, "the log is not to be trusted, and after a crash everything is copied: "+r.Record.LogUntrusted)
	}
	if r.Held > 0 {
		bad = append(bad, fmt.Sprintf("%d writes are held back, the oldest for %s", r.Held, timeText(r.HeldSeconds)))
	}
	return bad
}

// healthText says what a letter of the status means.
func healthText(letter string) string {
	switch letter {
	case "A":
		return "alive"
	case "D":
		return "a write failed"
	case "F":
		return "a flush failed"
	case "S":
		return "the copy to it failed"
	case "R":
		return "a read failed"
	}
	return "state " + letter
}

func (a *app) printMirrorStatus(st mirrorStatusAnswer) error {
	r := st.Mirror
	state := st.State
	if st.ReadOnly {
		state += ", read-only"
	}
	if r.Suspended {
		state += ", suspended"
	}
	log := "in memory: everything is copied after a restart"
	if r.Log == "disk" {
		log = r.LogDevice + " (" + healthText(r.LogHealth) + ")"
	}
	percent := 100.0
	if r.Regions > 0 {
		percent = float64(r.InSync) * 100 / float64(r.Regions)
	}
	rows := [][]string{
		{"Name:", st.Name}, {"Path:", st.Path}, {"Size:", a.size(st.SizeBytes)}, {"State:", state}, {"Log:", log},
		{"Region size:", a.size(r.RegionBytes)},
		{"In sync:", fmt.Sprintf("%d of %s (%.2f %%)", r.InSync, count(r.Regions, "region"), percent)},
	}
	if r.Dirty > 0 {
		rows = append(rows, []string{"Dirty:", count(r.Dirty, "region") + ": being written, or not yet clean in the log"})
	}
	if r.Held > 0 {
		rows = append(rows, []string{"Held writes:", fmt.Sprintf("%d, the oldest for %s", r.Held, timeText(r.HeldSeconds))})
	}
	for _, j := range st.Jobs {
		w := workOf(j)
		text := fmt.Sprintf("%.1f%%%s", w.percent(), a.speedText(w))
		if w.Detail != "" {
			text += " (" + w.Detail + ")"
		}
		rows = append(rows, []string{strings.ToUpper(j.Kind[:1]) + j.Kind[1:] + ":", text})
	}
	if !r.NextRetry.IsZero() && len(st.Jobs) == 0 {
		rows = append(rows, []string{"Next try:", "in " + timeText(max(0, time.Until(r.NextRetry).Seconds()))})
	}
	if x := r.Record; x != nil {
		rows = append(rows, []string{"Record:", fmt.Sprintf("generation %d, in %s", x.Generation, count(x.Copies, "place"))})
	}
	rows = append(rows, []string{"Policies:", r.Policies})
	if err := writeColumns(a.stdout, rows); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	return a.printLegs(r)
}

func (a *app) printLegs(r mirror.Report) error {
	rows := [][]string{}
	for i, l := range r.Legs {
		rows = append(rows, []string{strconv.Itoa(i), l.Device, legText(l), strconv.FormatUint(uint64(l.Errors), 10)})
	}
	return a.printTable([]string{"LEG", "DEVICE", "STATE", "ERRORS"}, rows)
}
