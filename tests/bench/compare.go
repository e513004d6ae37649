package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// compareWord makes this program compare two reports.
const compareWord = "compare"

// compare prints how two runs differ. Figures of different runs mean little side by
// side, their ratios do: each was taken inside its run. Only where a row has no
// ratio are figures compared.
func compare(w io.Writer, args []string) error {
	if len(args) != 2 {
		return usageError(strings.TrimSpace(fmt.Sprintf("compare: expected two reports, OLD.json NEW.json, found %d %s", len(args), strings.Join(args, " "))))
	}
	was, err := readReport(args[0])
	if err != nil {
		return err
	}
	now, err := readReport(args[1])
	if err != nil {
		return err
	}
	c := comparison{was: &was, now: &now}
	c.printf("old: %s\nnew: %s\n", was.Machine.short(), now.Machine.short())
	c.notes()
	c.printf("better: how many times as good as the old the new is; in ms and KiB less is better\n\n")
	c.printf("%-30s %-47s %10s %10s %8s\n", "row", "subject, and the unit where it is no ratio", "old", "new", "better")
	for i := range now.Rows {
		c.row(&now.Rows[i])
	}
	for _, r := range was.Rows {
		if now.row(r.Place, r.Load) == nil {
			c.only("the old", r.Place+"/"+r.Load, "", "")
		}
	}
	c.aims()
	if c.n == 0 {
		return fmt.Errorf("%s and %s have no figures in common", args[0], args[1])
	}
	_, err = io.WriteString(w, c.text.String())
	return err
}

// comparison is what is to be said about two reports.
type comparison struct {
	was, now *report
	text     strings.Builder
	n        int // lines with figures
}

func (c *comparison) printf(format string, args ...any) { fmt.Fprintf(&c.text, format, args...) }

// notes tells what else differs between the runs.
func (c *comparison) notes() {
	a, b := c.was.Machine, c.now.Machine
	for _, n := range []struct{ what, was, now string }{
		{"processors", fmt.Sprintf("%d × %s", a.CPUs, a.CPU), fmt.Sprintf("%d × %s", b.CPUs, b.CPU)},
		{"memory", fmt.Sprintf("%d GiB", a.Memory), fmt.Sprintf("%d GiB", b.Memory)},
		{"kernel", a.Kernel, b.Kernel},
		{"place in memory", orNone(a.Mem), orNone(b.Mem)},
		{"place on a disk", orNone(a.Disk), orNone(b.Disk)},
		{"other programs", strings.Join(a.Tools, "; "), strings.Join(b.Tools, "; ")},
		{"size of the devices", fmt.Sprintf("%d MiB", c.was.SizeMiB), fmt.Sprintf("%d MiB", c.now.SizeMiB)},
		{"rounds", fmt.Sprint(c.was.Rounds), fmt.Sprint(c.now.Rounds)},
	} {
		if n.was != n.now {
			c.printf("note: not the same %s: %s, and %s\n", n.what, n.was, n.now)
		}
	}
}

// row compares the subjects of a row.
func (c *comparison) row(now *row) {
	name := now.Place + "/" + now.Load
	was := c.was.row(now.Place, now.Load)
	switch {
	case was == nil:
		c.only("the new", name, "", "")
		return
	case was.Unit != now.Unit:
		c.printf("%-30s not compared: in %s, and in %s\n", name, was.Unit, now.Unit)
		return
	case was.Base != now.Base && !now.absolute():
		c.printf("%-30s not compared: ratios to %s, and to %s\n", name, was.Base, now.Base)
		return
	}
	for _, n := range now.Cells {
		w := was.cell(n.Subject)
		switch {
		case w == nil:
			w = &cell{Error: "no such subject"}
		case n.Subject == now.Base && !now.absolute():
			continue // the measure itself
		}
		switch hadFigures, has := len(w.Samples) > 0, len(n.Samples) > 0; {
		case hadFigures && !has:
			c.only("the old", name, n.Subject, n.Error)
		case has && !hadFigures:
			c.only("the new", name, n.Subject, w.Error)
		case has && now.absolute():
			c.line(name, n.Subject+", "+now.Unit, w.Median, n.Median, lessIsBetter(now.Unit))
		case has && w.Ratio > 0 && n.Ratio > 0:
			c.line(name, n.Subject, w.Ratio, n.Ratio, false)
		}
	}
	for _, w := range was.Cells {
		if len(w.Samples) > 0 && now.cell(w.Subject) == nil {
			c.only("the old", name, w.Subject, "no such subject")
		}
	}
}

// aims compares the ratios of the aims, which are taken to the peers.
func (c *comparison) aims() {
	c.printf("\nratios of the aims\n")
	for _, a := range aims() {
		place, load, _ := strings.Cut(a.Row, "/")
		was, now := c.was.row(place, load), c.now.row(place, load)
		if a.Against == "" || was == nil || now == nil {
			continue // above
		}
		w, n := median(was.ratios(a.Subject, a.Against)), median(now.ratios(a.Subject, a.Against))
		if w > 0 && n > 0 {
			c.line(a.Row, strings.TrimPrefix(a.Subject, "dmfuse ")+" / "+strings.TrimPrefix(a.Against, "dmfuse "), w, n, false)
		}
	}
}

func (c *comparison) line(row, what string, was, now float64, less bool) {
	better := now / was
	if less {
		better = was / now
	}
	c.printf("%-30s %-47s %10.2f %10.2f %8.2f\n", row, what, was, now, better)
	c.n++
}

// only tells what one of the two runs has alone, and why the other has not.
func (c *comparison) only(which, row, subject, why string) {
	if why != "" {
		why = ": " + why
	}
	c.printf("%-30s %-47s only in %s%s\n", row, subject, which, why)
}

// absolute tells that the figures of a row count, not ratios: it has one subject, or
// its subjects are no peers of each other.
func (r *row) absolute() bool { return len(r.Cells) == 1 || lessIsBetter(r.Unit) }

// lessIsBetter tells it of the figures in a unit.
func lessIsBetter(unit string) bool { return unit == "ms" || unit == "KiB" }

func readReport(path string) (report, error) {
	var rep report
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &rep)
	}
	switch {
	case err != nil:
		return rep, fmt.Errorf("%s: %w", path, err)
	case rep.SchemaVersion != 1:
		return rep, fmt.Errorf("%s: version %d of a report, expected 1", path, rep.SchemaVersion)
	}
	return rep, nil
}

// row finds a row, nil if there is none.
func (rep *report) row(place, load string) *row {
	for i := range rep.Rows {
		if r := &rep.Rows[i]; r.Place == place && r.Load == load {
			return r
		}
	}
	return nil
}
