package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/spf13/cobra"
)

// Legs that come and go while the mirror is used: another table is loaded and
// brought in by a suspend and a resume, which is one apply. Requests wait
// meanwhile, none is lost.

func newMirrorAddLegCommand(a *app) *cobra.Command {
	var force, wait bool
	cmd := &cobra.Command{
		Use:   "add-leg NAME LEG",
		Short: "Give a mirror another leg",
		Long: `Give a mirror another leg while it is used. Everything is copied to the new leg;
the others stay in sync. A leg that holds other data is refused without --force.`,
		Example: `  dmfuse mirror add-leg data c.img --wait`,
		Args:    asUsage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mirrorAddLeg(cmd.Context(), args[0], args[1], force, wait)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "overwrite a leg that holds other data")
	cmd.Flags().BoolVar(&wait, "wait", false, "return when the new leg is in sync")
	return cmd
}

func newMirrorRmLegCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm-leg NAME LEG",
		Short: "Take a leg from a mirror",
		Long: `Take a leg from a mirror while it is used. The leg stays as it is, a plain image
with what the mirror had until then. The last two legs stay: to take a mirror
apart use dmfuse mirror rm. So does the last leg that has all data.`,
		Example: `  dmfuse mirror rm-leg data /mnt/other/b.img`,
		Args:    asUsage(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mirrorRmLeg(cmd.Context(), args[0], args[1])
		},
	}
}

func newMirrorReplaceLegCommand(a *app) *cobra.Command {
	var force, wait bool
	cmd := &cobra.Command{
		Use:   "replace-leg NAME OLD NEW",
		Short: "Put another leg in the place of one",
		Long: `Put the leg NEW in the place of OLD while the mirror is used.

As long as OLD is in order it stays until all is copied to NEW, so that the data is
never on fewer legs than before: the command waits for that. Ctrl-C leaves both
legs in the mirror. A leg that failed goes at once.`,
		Example: `  dmfuse mirror replace-leg data b.img /mnt/other/c.img`,
		Args:    asUsage(cobra.ExactArgs(3)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.mirrorReplaceLeg(cmd.Context(), args[0], args[1], args[2], force, wait)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "overwrite a leg that holds other data")
	cmd.Flags().BoolVar(&wait, "wait", false, "return when the new leg is in sync, also where OLD goes at once")
	return cmd
}

// changedMirror is the answer of the verbs that change legs.
type changedMirror struct {
	Name    string   `json:"name"`
	Legs    []string `json:"legs"`
	Added   string   `json:"added,omitempty"`
	Removed string   `json:"removed,omitempty"`
}

// mirrorToChange is mirrorCalled for a mirror that is to get another table.
func (a *app) mirrorToChange(ctx context.Context, name string) (*session, mapped, mirrorTable, error) {
	s, m, t, err := a.mirrorCalled(ctx, name)
	switch {
	case err != nil:
	case m.Suspended:
		err = suspendedMirror(m.Name)
	case m.Inactive:
		err = fail(exitBusy, fmt.Errorf("%s has another table waiting", m.Name), "bring it in (dmfuse resume "+shellQuote(m.Name)+") or drop it (dmfuse clear "+shellQuote(m.Name)+") first")
	}
	return s, m, t, err
}

// findNewLeg resolves a leg that a mirror is to get, and checks that it can.
func (a *app) findNewLeg(ctx context.Context, s *session, m mapped, t mirrorTable, word string, force bool) (place, error) {
	if !t.hasRecord() {
		// Its log would say of the new leg that it is in sync.
		return place{}, fail(exitFailed, fmt.Errorf("%s was made from a table line, without a record of its legs: nothing could say that only the new leg lacks the data", m.Name),
			"take it apart with: dmfuse mirror rm "+shellQuote(m.Name)+"; and make it again with all legs: dmfuse mirror create "+shellQuote(m.Name)+" LEG LEG...")
	}
	p, err := s.find(word)
	if err != nil {
		return p, err
	}
	for _, l := range t.legs {
		if s.names(l.word, p) {
			return p, fail(exitBusy, fmt.Errorf("%s is a leg of %s already", p.what(), m.Name), "see its legs with: dmfuse mirror status "+shellQuote(m.Name))
		}
	}
	if p.device != nil && p.device.Name == m.Name {
		return p, usagef("%s cannot be a leg of itself", m.Name)
	}
	if err := s.checkLegFree(p); err != nil {
		return p, err
	}
	if p.sectors() < t.length {
		return p, failf(exitFailed, "%s has %d bytes, fewer than the %d of the mirror %s", p.what(), p.size, m.SizeBytes, m.Name)
	}
	if isFile(p) {
		if err := checkBeside(p.path); err != nil {
			return p, err
		}
	}
	if err := checkForeignSidecar(p, force); err != nil {
		return p, err
	}
	if !force {
		source := place{device: &m.Info, path: m.Path, size: m.SizeBytes, blockSize: 512}
		if err := a.checkOverwrite(ctx, source, p, m.SizeBytes); err != nil {
			return p, withAdvice(err, "choose another leg, or overwrite this one with --force")
		}
	}
	if extra := p.size - m.SizeBytes; extra > 0 {
		a.note("%s is larger than the mirror: its last %d bytes are not used", p.what(), extra)
	}
	return p, nil
}

// checkForeignSidecar refuses a leg that a record says belongs to a mirror.
func checkForeignSidecar(p place, force bool) error {
	if !isFile(p) || force {
		return nil
	}
	side, err := mirror.ReadSidecar(p.path)
	if err != nil {
		if isMissing(err) {
			return nil
		}
		return fail(exitFailed, fmt.Errorf("a file beside the leg is in the way: %w", err), "delete it if it is left over, or use --force")
	}
	return fail(exitBusy, fmt.Errorf("%s belongs to the mirror %s, as %s says", p.what(), side.Name, mirror.SidecarPath(p.path)),
		"take that mirror apart first (dmfuse mirror rm), or overwrite the leg with --force")
}

// withAdvice gives an error other advice, with the code it has.
func withAdvice(err error, next string) error { return fail(exitCode(err), err, next) }

// swapLegs brings a table with other legs in. A leg that is new has its view
// sent along.
func (s *session) swapLegs(ctx context.Context, m mapped, t mirrorTable, added ...place) error {
	t.word = "" // what is in sync is known, and taken over
	key := control.ByName(m.Name)
	load := control.Step{Op: control.OpLoad, Key: key, Table: []control.Line{t.line()}, ReadOnly: m.ReadOnly}
	for _, p := range added {
		if v, ok := p.view(); ok {
			load.Views = append(load.Views, v)
		}
	}
	_, err := s.c.Apply(ctx, load, control.Step{Op: control.OpSuspend, Key: key, NoFlush: true, NoLockFS: true}, control.Step{Op: control.OpResume, Key: key})
	if err != nil {
		return fmt.Errorf("the legs of %s stay as they are: %w", m.Name, stepText(err))
	}
	return nil
}

func (a *app) mirrorAddLeg(ctx context.Context, name, leg string, force, wait bool) error {
	s, m, t, err := a.mirrorToChange(ctx, name)
	if err != nil {
		return err
	}
	if len(t.legs) == maxLegs {
		return failf(exitFailed, "%s has %d legs, as many as a mirror can have", name, maxLegs)
	}
	p, err := a.findNewLeg(ctx, s, m, t, leg, force)
	if err != nil {
		return err
	}
	t.legs = append(t.legs, mirrorLeg{word: wordOf(p)})
	if err := s.swapLegs(ctx, m, t, p); err != nil {
		return err
	}
	if err := a.answerChanged(s, t, changedMirror{Name: name, Added: p.path}); err != nil || !wait {
		return err
	}
	_, err = a.followResync(ctx, s, name)
	return err
}

func (a *app) answerChanged(s *session, t mirrorTable, c changedMirror) error {
	if !a.json {
		return nil
	}
	for _, l := range t.legs {
		c.Legs = append(c.Legs, s.wordText(l.word))
	}
	return a.printJSON(c)
}

func (a *app) mirrorRmLeg(ctx context.Context, name, leg string) error {
	s, m, t, err := a.mirrorToChange(ctx, name)
	if err != nil {
		return err
	}
	i, err := s.legCalled(m, t, leg)
	if err != nil {
		return err
	}
	if len(t.legs) == minLegs {
		return fail(exitFailed, fmt.Errorf("%s has two legs, and a mirror cannot have fewer", name),
			"to exchange the leg: dmfuse mirror replace-leg; to take the mirror apart: dmfuse mirror rm "+shellQuote(name))
	}
	gone := t.legs[i]
	if t, err = s.takeLeg(ctx, m, t, i); err != nil {
		return err
	}
	return a.answerChanged(s, t, changedMirror{Name: name, Removed: s.wordText(gone.word)})
}

// dropLeg makes durable that a leg is not used any more, before it leaves its
// mirror: what is written from then on it lacks.
func (s *session) dropLeg(ctx context.Context, name string, t mirrorTable, i int) error {
	if !t.hasRecord() {
		return nil
	}
	if _, err := s.c.Message(ctx, control.ByName(name), 0, []string{"drop", strconv.Itoa(i)}); err != nil {
		return fmt.Errorf("the legs of %s stay as they are: %w", name, err)
	}
	return nil
}

// takeLeg drops a leg and brings a table without it in, with added in its place
// if there is one.
func (s *session) takeLeg(ctx context.Context, m mapped, t mirrorTable, i int, added ...place) (mirrorTable, error) {
	if err := s.checkNotLast(ctx, m.Name, i); err != nil {
		return t, err
	}
	if err := s.dropLeg(ctx, m.Name, t, i); err != nil {
		return t, err
	}
	gone := t.legs[i]
	left := t
	left.legs = slices.Delete(slices.Clone(t.legs), i, i+1)
	for _, p := range added {
		left.legs = slices.Insert(left.legs, i, mirrorLeg{word: wordOf(p)})
	}
	if err := s.swapLegs(ctx, m, left, added...); err != nil {
		if t.hasRecord() {
			err = withAdvice(err, "the leg is dropped; bring it back with: dmfuse mirror resync "+shellQuote(m.Name)+" "+shellQuote(s.wordText(gone.word)))
		}
		return t, err
	}
	s.forgetLeg(t, gone.word)
	return left, nil
}

// forgetLeg takes the record beside a leg away that left its mirror: it is a
// plain image again.
func (s *session) forgetLeg(t mirrorTable, word string) {
	if !t.hasRecord() {
		return
	}
	p, err := s.findWord(word)
	if err == nil && isFile(p) {
		err = mirror.RemoveSidecar(p.path)
	}
	if err != nil && !isMissing(err) {
		s.a.note("the record beside %s is left: %v", word, err)
	}
}

// checkNotLast refuses to take away the only leg that has all data.
func (s *session) checkNotLast(ctx context.Context, name string, i int) error {
	r, err := s.report(ctx, name)
	if err != nil {
		return err
	}
	for n, l := range r.Legs {
		if n != i && hasAll(r, l) {
			return nil
		}
	}
	return fail(exitFailed, fmt.Errorf("%s is the only leg of %s that has all data", r.Legs[i].Device, name),
		"wait until another is in sync: dmfuse mirror status "+shellQuote(name)+" --wait")
}

func (a *app) mirrorReplaceLeg(ctx context.Context, name, oldLeg, newLeg string, force, wait bool) error {
	s, m, t, err := a.mirrorToChange(ctx, name)
	if err != nil {
		return err
	}
	i, err := s.legCalled(m, t, oldLeg)
	if err != nil {
		return err
	}
	p, err := a.findNewLeg(ctx, s, m, t, newLeg, force)
	if err != nil {
		return err
	}
	r, err := s.report(ctx, name)
	if err != nil {
		return err
	}
	old := t.legs[i]
	if !useful(r.Legs[i]) || len(t.legs) == maxLegs {
		if t, err = s.takeLeg(ctx, m, t, i, p); err != nil {
			return err
		}
		if err := a.answerChanged(s, t, changedMirror{Name: name, Added: p.path, Removed: s.wordText(old.word)}); err != nil || !wait {
			return err
		}
		_, err = a.followResync(ctx, s, name)
		return err
	}
	t.legs = append(t.legs[:len(t.legs):len(t.legs)], mirrorLeg{word: wordOf(p)})
	if err := s.swapLegs(ctx, m, t, p); err != nil {
		return err
	}
	return a.finishReplace(ctx, s, name, old.word)
}

// finishReplace waits until the new leg is in sync and takes the old one away.
func (a *app) finishReplace(ctx context.Context, s *session, name, old string) error {
	later := "when it is, take the old leg away with: dmfuse mirror rm-leg " + shellQuote(name) + " " + shellQuote(s.wordText(old))
	done, err := a.follow(ctx, func(ctx context.Context) (work, error) { return s.resyncWork(ctx, name) })
	switch {
	case err != nil:
		return withAdvice(fmt.Errorf("the new leg is not in sync, and both legs are in %s: %w", name, err), later)
	case !done:
		a.note("both legs are in %s until the new one is in sync; %s", name, later)
		return nil
	}
	s, m, t, err := a.mirrorToChange(ctx, name)
	if err != nil {
		return err
	}
	i := t.legAt(old)
	if i < 0 {
		return a.answerChanged(s, t, changedMirror{Name: name})
	}
	if t, err = s.takeLeg(ctx, m, t, i); err != nil {
		return err
	}
	return a.answerChanged(s, t, changedMirror{Name: name, Added: s.wordText(t.legs[len(t.legs)-1].word), Removed: s.wordText(old)})
}
