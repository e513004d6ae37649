package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

func newOriginCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "origin",
		Short: "Devices whose snapshots stay as they were while the device is written",
		Args:  asUsage(cobra.NoArgs),
		RunE:  needVerb,
	}
	cmd.AddCommand(newOriginCreateCommand(a))
	return cmd
}

// needVerb answers a noun without a verb.
func needVerb(cmd *cobra.Command, _ []string) error {
	return usagef("%s needs a verb; see them with: %s --help", cmd.CommandPath(), cmd.CommandPath())
}

func newOriginCreateCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "create ORIGIN NAME",
		Short: "Make a writable device over ORIGIN that can have snapshots",
		Long: `Make a writable device over ORIGIN, a file, block device or device of dmfuse.
As long as ORIGIN is written through this device only, snapshots of it stay as
they were when they were made. The path of the device is printed.`,
		Example: `  dmfuse origin create disk.img disk
  dmfuse snapshot create disk before-upgrade`,
		Args: asUsage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.originCreate(cmd.Context(), args[0], args[1])
		},
	}
}

// createdDevice is the answer of the verbs that make a device.
type createdDevice struct {
	Name      string `json:"name"`
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
	Origin    string `json:"origin"`
}

func (a *app) originCreate(ctx context.Context, origin, name string) error {
	s, err := a.look(ctx)
	if err != nil {
		return err
	}
	if err := s.load(ctx); err != nil {
		return err
	}
	if err := s.checkFree(name); err != nil {
		return err
	}
	p, err := s.find(origin)
	if err != nil {
		return err
	}
	if err := checkSectors(p); err != nil {
		return err
	}
	if err := s.checkOriginFree(p); err != nil {
		return err
	}
	if err := a.sayOrigin(p); err != nil {
		return err
	}
	if err := s.start(ctx, p.path); err != nil {
		return err
	}
	line := control.Line{Length: p.sectors(), Type: "snapshot-origin", Args: []string{p.path}}
	steps := deviceSteps(name, line, false, p)
	steps[1].Sole = true // somebody may have made one since checkOriginFree
	id := rand.Text()
	r, err := s.c.ApplyAs(ctx, id, steps...)
	switch {
	case err != nil && ctx.Err() != nil:
		return s.giveUp(id, "the origin device", name, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("the origin device %s is not made: %w", name, stepText(err))
	}
	return a.answerDevice(r, p)
}

// deviceSteps makes a device with one table line. The places are the files
// the line names, as this process sees them.
func deviceSteps(name string, line control.Line, readOnly bool, places ...place) []control.Step {
	load := control.Step{Op: control.OpLoad, Key: control.ByName(name), Table: []control.Line{line}, ReadOnly: readOnly}
	for _, p := range places {
		if v, ok := p.view(); ok {
			load.Views = append(load.Views, v)
		}
	}
	return []control.Step{
		{Op: control.OpCreate, Key: control.ByName(name)},
		load,
		{Op: control.OpResume, Key: control.ByName(name)},
	}
}

// answerDevice prints what was made: the path for people, more in JSON.
func (a *app) answerDevice(r control.ApplyReply, origin place) error {
	info := r.Results[len(r.Results)-1].Device
	if a.json {
		return a.printJSON(createdDevice{info.Name, info.Path, info.SizeBytes, origin.path})
	}
	_, err := fmt.Fprintln(a.stdout, info.Path)
	return err
}

// checkOriginFree refuses an origin that others write to, or that already has
// its device: writes past the new device would spoil its snapshots.
func (s *session) checkOriginFree(p place) error {
	for _, u := range s.usesOf(p) {
		switch u.role {
		case "origin":
			return fail(exitBusy, fmt.Errorf("%s has an origin device already: %s", p.what(), u.device.Name), "use that one: "+u.device.Path)
		case "COW":
			return fail(exitBusy, fmt.Errorf("%s is the COW of the snapshot %s", p.what(), u.device.Name), "to snapshot what the snapshot shows, give its name: "+u.device.Name)
		case "base":
			return fail(exitBusy, fmt.Errorf("%s is the frozen base of the snapshot %s and must not be written", p.what(), u.device.Name),
				"remove the snapshots of it first; see them with: dmfuse snapshot ls")
		default:
			if !u.device.ReadOnly {
				return fail(exitBusy, fmt.Errorf("%s is used by the %s device %s, which could write to it", p.what(), u.role, u.device.Name),
					"make the origin device over that one: dmfuse origin create "+shellQuote(u.device.Name)+" NAME")
			}
		}
	}
	users, err := s.writersOf(p)
	if err != nil {
		return err
	}
	if p.device != nil && p.device.OpenCount > 0 && len(users) == 0 {
		users = []string{strconv.Itoa(p.device.OpenCount) + " others that have it open"}
	}
	if len(users) > 0 {
		return busy(p, users, "end this use first: what is written past the origin device spoils its snapshots")
	}
	return nil
}

// checkSectors refuses an origin without a sector.
func checkSectors(p place) error {
	if p.sectors() == 0 {
		return failf(exitFailed, "%s has %d bytes, which is not one sector of 512 bytes", p.what(), p.size)
	}
	return nil
}

// sayOrigin tells what is easily a mistake.
func (a *app) sayOrigin(p place) error {
	c, err := p.probe()
	if err != nil {
		return err
	}
	for _, n := range c.notes(p.path) {
		a.note("%s", n)
	}
	return nil
}
