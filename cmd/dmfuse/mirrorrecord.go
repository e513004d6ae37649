package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mirror"
	"golang.org/x/sys/unix"
)

// The leg record beside legs and log: what it says of a mirror that is to be
// made. The target keeps it; here it is only read, and taken away where a
// mirror begins anew.

// recordPlan is what the records mean.
type recordPlan struct {
	hint   *mirror.Record // the newest copy beside a leg, if there is one
	broken []string       // sidecars beside legs that are no record of them
	found  *mirror.Assembly
	fits   bool // the mirror was made before: it is assembled again
	insist bool // problems are overridden (--force)
	anew   bool // records are taken away (--force)
	undos  []func() error
}

// readHint reads what stands beside the legs, for what the user left to us.
func readHint(legs []place) recordPlan {
	var r recordPlan
	for _, p := range legs {
		if !isFile(p) || p.missing != nil {
			continue
		}
		side, err := mirror.ReadSidecar(p.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			r.broken = append(r.broken, err.Error())
		case r.hint == nil || side.Generation > r.hint.Generation:
			r.hint = &side.Record
		}
	}
	return r
}

// setup is the mirror as the target will see it.
func (p *mirrorPlan) setup() mirror.Setup {
	s := mirror.Setup{Name: p.o.name, Length: blockdev.Sector(p.table.length), Region: blockdev.Sector(p.table.region)}
	for i, l := range p.legs {
		s.Legs = append(s.Legs, mirror.Member{
			Path: p.table.legs[i].word, Offset: blockdev.Sector(p.table.legs[i].offset), Number: l.number(),
			File: isFile(l) && l.missing == nil, Missing: l.missing,
		})
	}
	if p.table.disk {
		s.Log = mirror.LogMember{Disk: true, Path: p.table.log, Number: p.log.place.number(), File: p.log.inFile()}
	}
	return s
}

// number is major:minor of what is no file.
func (p place) number() string {
	switch {
	case p.device != nil:
		return fmt.Sprintf("%d:%d", p.device.Major, p.device.Minor)
	case p.block:
		return devNumOf(p.stat.Rdev).String()
	}
	return ""
}

// inFile says whether the log is, or will be, a regular file.
func (l *mirrorLog) inFile() bool { return !l.core && (!l.exists || isFile(l.place)) }

// isFile says whether a place is a regular file, which can have a sidecar.
func isFile(p place) bool { return p.device == nil && !p.block }

// planRecord reads records and log, and refuses what does not fit.
func (a *app) planRecord(p *mirrorPlan) error {
	p.table.features = []string{recordFeature}
	found, err := mirror.Inspect(p.setup())
	if err != nil {
		return err
	}
	r := &p.record
	r.found = found
	switch {
	case found.Fresh && len(r.broken) > 0 && !p.o.force:
		return fail(exitFailed, fmt.Errorf("a file beside a leg is in the way: %s", strings.Join(r.broken, "; ")),
			"delete it if it is left over, or begin a new mirror with --force")
	case found.Fresh:
		r.anew = len(r.broken) > 0
	case len(found.Problems) == 0:
		r.fits = true
	case !p.o.force:
		return recordRefusal(found)
	default:
		if err := p.insist(); err != nil {
			return err
		}
	}
	if r.fits && p.o.nosync {
		return usagef("--nosync: the mirror was made before, and its record says what is in sync")
	}
	a.sayNoRecord(p)
	if err := p.checkBeside(); err != nil {
		return err
	}
	return p.planKept()
}

// checkBeside refuses files beside which no record can be written: such a leg
// would be dropped at once.
func (p *mirrorPlan) checkBeside() error {
	for _, file := range p.filesWithRecord() {
		if err := checkBeside(file); err != nil {
			return err
		}
	}
	return nil
}

func checkBeside(file string) error {
	dir := filepath.Dir(file)
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fail(exitFailed, fmt.Errorf("the record of the mirror cannot be written beside %s: %s: %w", file, dir, err),
			"make the directory writable, or use a block device or a device of dmfuse over the file: these have no record")
	}
	return nil
}

// filesWithRecord are the files that have a record beside them, or will.
func (p *mirrorPlan) filesWithRecord() []string {
	var files []string
	for _, l := range p.legs {
		if isFile(l) && l.missing == nil {
			files = append(files, l.path)
		}
	}
	if p.log.inFile() {
		files = append(files, p.log.path)
	}
	return files
}

// sayNoRecord tells when a mirror has no place for its record.
func (a *app) sayNoRecord(p *mirrorPlan) {
	for _, l := range p.legs {
		if isFile(l) {
			return
		}
	}
	if !p.log.inFile() {
		a.note("neither a leg nor the log is a regular file, so there is no place for the record of the legs: after a crash everything is copied from the first leg")
	}
}

// recordRefusal says why a record does not fit.
func recordRefusal(found *mirror.Assembly) error {
	var texts []string
	next := "give the legs and the log that the mirror was made with, or insist with --force"
	for _, x := range found.Problems {
		texts = append(texts, x.Text)
		switch x.Kind {
		case mirror.AssemblyHistories:
			next = "look at each leg by itself and decide which one counts; then put that one first, delete the .dmfuse files beside the legs, and use --force"
		case mirror.AssemblyShape:
			next = "give the sizes that the mirror was made with, or begin a new mirror with --force"
		}
	}
	return fail(exitFailed, fmt.Errorf("the record of the mirror does not fit: %s", strings.Join(texts, "; ")), next)
}

// insist decides what --force does with a record that does not fit: the mirror
// is assembled all the same where that can be. It begins anew where it has
// another shape, or where only the log has a record, which is of other legs.
func (p *mirrorPlan) insist() error {
	r := &p.record
	r.anew = true
	for _, l := range r.found.Legs {
		r.anew = r.anew && l.ID >= r.found.Found.NextID
	}
	for _, x := range r.found.Problems {
		switch x.Kind {
		case mirror.AssemblyShape:
			r.anew = true
		case mirror.AssemblyUnreadable, mirror.AssemblyTwice:
			return recordRefusal(r.found)
		}
	}
	if !r.anew {
		r.fits, r.insist = true, true
		return nil
	}
	// The first leg is copied over the others: a stale one must not be.
	if len(r.found.Legs) > 0 && r.found.Found.Mirror != "" {
		for _, l := range r.found.Found.Legs {
			if first := r.found.Legs[0]; l.ID == first.ID && l.State != mirror.LegIn {
				return failf(exitFailed, "the first leg, %s, lacks data that was written to the mirror (%s since %s): put another first", first.Path, l.State, sinceText(l))
			}
		}
	}
	return nil
}

func sinceText(l mirror.LegRecord) string {
	if l.Since == nil {
		return "some time"
	}
	return l.Since.Local().Format("2006-01-02 15:04:05")
}

// planKept decides what becomes of an existing log.
func (p *mirrorPlan) planKept() error {
	if p.log.core || !p.log.exists {
		return nil
	}
	c, err := p.log.contents()
	if err != nil {
		return err
	}
	if p.record.found.Fresh && p.o.log == "" && c.made {
		c.blank = true // left by a mirror create that was killed
	}
	return p.log.decide(c, p.record.fits && p.ownLog(), p.o.force)
}

// ownLog says whether the log is the one of the record: the target decides then
// how far it is to be trusted.
func (p *mirrorPlan) ownLog() bool {
	found := p.record.found.Found
	if found.Log.Path == p.table.log {
		return true
	}
	side, err := mirror.ReadSidecar(p.log.path)
	return err == nil && side.Mirror == found.Mirror && side.Kind == mirror.KindLog
}

// newLegs are the legs that no record knows: what they hold is looked at before
// it is overwritten. source is the leg that is copied to them.
func (p *mirrorPlan) newLegs() (source place, legs []place) {
	if !p.record.fits {
		return p.legs[0], p.legs[1:]
	}
	source = p.legs[0]
	for i := len(p.legs) - 1; i >= 0; i-- {
		l := p.record.found.Legs[i]
		if l.State == mirror.LegIn {
			source = p.legs[i]
		}
		if p.legs[i].missing == nil && l.ID >= p.record.found.Found.NextID {
			legs = append(legs, p.legs[i])
		}
	}
	return source, legs
}

// makeRecord notes what stands beside legs and log, and takes away or changes
// what --force overrides.
func (p *mirrorPlan) makeRecord() error {
	r := &p.record
	for _, file := range p.filesWithRecord() {
		if err := r.keepSidecar(file); err != nil {
			return err
		}
		if !r.anew {
			continue
		}
		if err := mirror.RemoveSidecar(file); err != nil {
			return err
		}
	}
	if !r.insist {
		return nil
	}
	found, err := mirror.Insist(p.setup())
	if err == nil {
		r.found = found
	}
	return err
}

// keepSidecar notes how to bring a sidecar back.
func (r *recordPlan) keepSidecar(file string) error {
	path := mirror.SidecarPath(file)
	old, err := os.ReadFile(path)
	switch {
	case err == nil:
		r.undos = append(r.undos, func() error { return blockdev.ReplaceFile(path, old) })
	case errors.Is(err, fs.ErrNotExist):
		r.undos = append(r.undos, func() error { return mirror.RemoveSidecar(file) })
	default:
		return err
	}
	return nil
}

// undo takes back what was done to the records, newest first.
func (r *recordPlan) undo() error {
	var errs []error
	for i := len(r.undos) - 1; i >= 0; i-- {
		errs = append(errs, r.undos[i]())
	}
	r.undos = nil
	return errors.Join(errs...)
}

// text says what an assembly means, for people.
func (r *recordPlan) text(p *mirrorPlan) []string {
	out := []string{fmt.Sprintf("%s was made before with these legs and is assembled again", p.o.name)}
	filled := false
	for _, l := range r.found.Legs {
		if l.State == mirror.LegIn && l.Why != "" {
			out = append(out, fmt.Sprintf("%s is taken as it is: %s", l.Path, l.Why))
		}
		if l.Refill {
			filled = true
			out = append(out, fmt.Sprintf("%s is filled from the others: %s", l.Path, l.Why))
		}
	}
	switch {
	case !r.found.Trusted && !p.table.disk:
		out = append(out, "its log is in memory, so everything is copied from the first leg that is in order")
	case !r.found.Trusted:
		out = append(out, "everything is copied from the first leg that is in order")
	case !filled:
		out = append(out, "only what its log says is copied")
	}
	return append(out, r.found.Notes...)
}

// legsFilling says whether a leg is being filled.
func legsFilling(r mirror.Report) bool {
	for _, l := range r.Legs {
		if l.State == mirror.LegFilling {
			return true
		}
	}
	return false
}

// legText says how a leg is.
func legText(l mirror.LegReport) string {
	text := healthText(l.Health)
	switch l.State {
	case mirror.LegIn:
		text = "in order"
		if l.Health != "A" {
			text += ", but " + healthText(l.Health)
		}
	case mirror.LegFilling:
		text = "being filled"
	case mirror.LegDropped:
		text = droppedText(l)
	}
	if l.Default {
		text += ", source of copies"
	}
	return text
}

// droppedText says since when a leg is not used, and why.
func droppedText(l mirror.LegReport) string {
	text := "dropped"
	if !l.Since.IsZero() {
		text += " since " + l.Since.Local().Format("2006-01-02 15:04:05")
	}
	if l.Why != "" {
		text += ": " + l.Why
	}
	return text
}

// hasAll says whether a leg has all that was written to the mirror.
func hasAll(r mirror.Report, l mirror.LegReport) bool {
	if l.State != "" {
		return l.State == mirror.LegIn
	}
	return useful(l) && (l.Default || r.InSync == r.Regions)
}

// useful says whether a leg adds to the safety of the data, or will.
func useful(l mirror.LegReport) bool {
	if l.State != "" {
		return l.State != mirror.LegDropped
	}
	return l.Health == "A"
}
