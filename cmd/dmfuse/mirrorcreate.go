package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
)

// mirrorOptions is what the command line of mirror create says.
type mirrorOptions struct {
	name   string
	legs   []string
	region *sizeFlag
	log    string
	nosync bool
	force  bool
	wait   bool
}

func newMirrorCreateCommand(a *app) *cobra.Command {
	o := mirrorOptions{region: newSizeFlag("512k")}
	cmd := &cobra.Command{
		Use:   "create NAME LEG LEG...",
		Short: "Make a mirror, and print its path",
		Long: `Make a device that keeps the same data on 2 to 9 legs: files, block devices or
devices of dmfuse. The first leg is copied over the others, which goes on while
the device is used. The path of the device is printed.

A log says which regions may differ, so that after a crash only these are copied:
a file beside the first leg unless told otherwise. A record beside the legs and
the log says which leg lacks data, so that a stale leg never wins. A mirror that
was made with the same legs and log before is assembled again, without a copy.

A leg that holds data other than the first leg's is refused without --force.`,
		Example: `  dmfuse mirror create data a.img b.img
  dmfuse mirror create data a.img /mnt/other/b.img --log /var/lib/data.log --wait
  dmfuse mirror create fresh a.img b.img --nosync      # both are new and empty`,
		Args: asUsage(cobra.MinimumNArgs(3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name, o.legs = args[0], args[1:]
			return a.mirrorCreate(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.Var(o.region, "region-size", "unit of the log and of copying, a power of two from 1k on")
	f.StringVar(&o.log, "log", "", "file, block device or device for the log, or core: in memory (default: FILE.NAME.log beside the first leg)")
	f.BoolVar(&o.nosync, "nosync", false, "the legs are equal, or what is in them does not matter: copy nothing")
	f.BoolVar(&o.force, "force", false, "overwrite legs that hold other data, and a log or record that does not fit")
	f.BoolVar(&o.wait, "wait", false, "return when all legs are in sync")
	return cmd
}

// mirrorPlan is a mirror that is to be made, found possible.
type mirrorPlan struct {
	o      mirrorOptions
	legs   []place
	log    *mirrorLog
	table  mirrorTable
	record recordPlan
}

func (a *app) mirrorCreate(ctx context.Context, o mirrorOptions) error {
	s, err := a.look(ctx)
	if err != nil {
		return err
	}
	if err := s.load(ctx); err != nil {
		return err
	}
	p, err := a.planMirror(ctx, s, o)
	if err != nil {
		return err
	}
	paths := []string{p.log.path}
	for _, l := range p.legs {
		paths = append(paths, l.path)
	}
	if err := s.start(ctx, paths...); err != nil {
		return err
	}
	info, err := s.makeMirror(ctx, p)
	if err != nil {
		return err
	}
	if err := a.answerMirror(info, p); err != nil {
		return err
	}
	if !o.wait {
		a.sayDropped(ctx, s, o.name)
		return nil
	}
	_, err = a.followResync(ctx, s, o.name)
	return err
}

// planMirror checks everything that can be checked. Nothing is changed.
func (a *app) planMirror(ctx context.Context, s *session, o mirrorOptions) (*mirrorPlan, error) {
	if err := s.checkFree(o.name); err != nil {
		return nil, err
	}
	p := &mirrorPlan{o: o}
	var err error
	if p.legs, err = s.findLegs(o.legs); err != nil {
		return nil, err
	}
	p.record = readHint(p.legs)
	if err := checkMissing(p.legs, p.record.hint); err != nil {
		return nil, err
	}
	sectors, notes, err := mirrorSize(p.legs, p.record.hint)
	if err != nil {
		return nil, err
	}
	p.takeHint()
	region, err := regionFor(p.o.region, sectors)
	if err != nil {
		return nil, err
	}
	if p.log, err = s.planLog(p.o.log, o.name, p.legs, regionsOf(sectors, region)); err != nil {
		return nil, err
	}
	p.table = mirrorTable{length: sectors, region: region, disk: !p.log.core, log: p.log.word()}
	for _, l := range p.legs {
		p.table.legs = append(p.table.legs, mirrorLeg{word: wordOf(l)})
	}
	if err := a.planRecord(p); err != nil {
		return nil, err
	}
	if !p.record.fits {
		for _, n := range notes {
			a.note("%s", n)
		}
	}
	return p, a.checkLegData(ctx, p)
}

// takeHint settles what the user left to us as the record says: a mirror that
// is assembled again has its old region size and log.
func (p *mirrorPlan) takeHint() {
	h := p.record.hint
	if h == nil {
		return
	}
	if !p.o.region.given && h.Region > 0 {
		p.o.region = newSizeFlag(fmt.Sprintf("%ds", uint64(h.Region)))
		p.o.region.given = true
	}
	if p.o.log == "" && h.Log.Type == "core" {
		p.o.log = "core"
	}
	if _, err := os.Stat(h.Log.Path); p.o.log == "" && h.Log.Path != "" && err == nil {
		p.o.log = h.Log.Path
	}
}

// word is the log in a table line.
func (l *mirrorLog) word() string {
	if l.place.device != nil {
		return l.place.device.Name
	}
	return l.path
}

// checkLegData refuses to overwrite data of a leg, and tells what of the first
// leg is easily a mistake.
func (a *app) checkLegData(ctx context.Context, p *mirrorPlan) error {
	source, others := p.newLegs()
	if !p.record.fits {
		if err := a.sayOrigin(source); err != nil {
			return err
		}
	}
	if p.o.nosync || p.o.force {
		return nil
	}
	for _, l := range others {
		err := a.checkOverwrite(ctx, source, l, int64(p.table.length)*512)
		if err == nil {
			continue
		}
		if exitCode(err) != exitBusy {
			return err
		}
		next := "put that leg first if its data is what counts, or overwrite it with --force"
		if empty, berr := isBlank(source); berr == nil && empty && !p.record.fits {
			next = "the first leg, " + source.path + ", is empty: put the leg with the data first, or overwrite it with --force"
		}
		return fail(exitCode(err), err, next)
	}
	return nil
}

// makeMirror makes the log and the device. When it fails, everything is as
// before.
func (s *session) makeMirror(ctx context.Context, p *mirrorPlan) (_ *control.Info, err error) {
	defer func() {
		if err != nil && errorCode(err) != control.CodeNoDaemon && !outcomeUnknown(err) {
			err = withUndo(err, errors.Join(p.record.undo(), p.log.undo()))
		}
	}()
	if err := p.log.make(p.o.nosync); err != nil {
		return nil, err
	}
	if err := p.makeRecord(); err != nil {
		return nil, err
	}
	t := p.table
	if p.o.nosync && p.log.core {
		t.word = "nosync"
	}
	var places []place
	for _, l := range p.legs {
		if l.missing == nil {
			places = append(places, l)
		}
	}
	if !p.log.core {
		at := p.log.place
		if !p.log.exists { // it does now
			if at, err = fileAt(p.log.path); err != nil {
				return nil, err
			}
		}
		places = append(places, at)
	}
	id := rand.Text()
	r, err := s.c.ApplyAs(ctx, id, deviceSteps(p.o.name, t.line(), false, places...)...)
	switch {
	case errorCode(err) == control.CodeNoDaemon:
		return nil, fail(exitNoDaemon, fmt.Errorf("whether the mirror %s was made is not known: %w", p.o.name, err), "start a daemon and see: dmfuse serve, dmfuse mirror ls; its log is kept until then")
	case ctx.Err() != nil:
		return nil, s.giveUp(id, "the mirror", p.o.name, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("the mirror %s is not made: %w", p.o.name, stepText(err))
	}
	if p.o.nosync && !p.record.fits {
		s.readOneLeg(ctx, p.o.name)
	}
	return resultOf(r, p.o.name), nil
}

// readOneLeg makes reads take one leg: nobody has made the legs equal, and two
// reads of the same block must not differ.
func (s *session) readOneLeg(ctx context.Context, name string) {
	if _, err := s.c.Message(ctx, control.ByName(name), 0, []string{"policy", "read-balance=default"}); err != nil {
		s.a.note("reads of %s are spread over legs that may differ: %v", name, err)
	}
}

// giveUp sees to it that no device is left when its maker was interrupted: the
// daemon may have been done before it noticed.
func (s *session) giveUp(id, what, name string, why error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := s.c.Abandon(ctx, id)
	if err == nil {
		_, err = s.c.Info(ctx, control.ByName(name), false)
	}
	switch {
	case errorCode(err) == control.CodeNotFound:
		return fail(exitCode(why), fmt.Errorf("%s %s is not made: %w", what, name, why), nothingLeft)
	case err != nil:
		return errors.Join(errUnknownOutcome, why, err)
	}
	return fmt.Errorf("%s %s is not made: %w", what, name, s.takeBack(why, name))
}

// nothingLeft is what to do when a command that makes something was interrupted.
const nothingLeft = "nothing is left of it: give the command again"

// sayDropped tells of legs that do not serve from the beginning.
func (a *app) sayDropped(ctx context.Context, s *session, name string) {
	r, err := s.report(ctx, name)
	if err != nil {
		return // gone again
	}
	for _, bad := range reportProblems(r) {
		a.note("%s is degraded: %s", name, bad)
	}
}

// createdMirror is the answer of mirror create.
type createdMirror struct {
	Name            string   `json:"name"`
	Path            string   `json:"path"`
	SizeBytes       int64    `json:"size_bytes"`
	Legs            []string `json:"legs"`
	Log             string   `json:"log"` // "core", or where it is
	RegionSizeBytes int64    `json:"region_size_bytes"`
	Regions         uint64   `json:"regions"`
	Assembled       bool     `json:"assembled"` // it was made before, and is there again
}

func (a *app) answerMirror(info *control.Info, p *mirrorPlan) error {
	if p.record.fits {
		for _, text := range p.record.text(p) {
			a.note("%s", text)
		}
	}
	if a.json {
		m := createdMirror{
			Name: info.Name, Path: info.Path, SizeBytes: info.SizeBytes, Log: "core",
			RegionSizeBytes: int64(p.table.region) * 512, Regions: regionsOf(p.table.length, p.table.region), Assembled: p.record.fits,
		}
		if p.table.disk {
			m.Log = p.log.path
		}
		for _, l := range p.legs {
			m.Legs = append(m.Legs, l.path)
		}
		return a.printJSON(m)
	}
	_, err := fmt.Fprintln(a.stdout, info.Path)
	return err
}
