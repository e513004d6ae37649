package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// compareWord makes this program compare two reports.
const compareWord = "compare"

// compare prints how the ratios of two runs differ. Figures of different runs
// mean nothing side by side, their ratios do: each was taken inside its run.
func compare(w io.Writer, oldPath, newPath string) error {
	was, err := readReport(oldPath)
	if err != nil {
		return err
	}
	now, err := readReport(newPath)
	if err != nil {
		return err
	}
	if was.Machine.CPU != now.Machine.CPU || was.Machine.CPUs != now.Machine.CPUs || was.Machine.Kernel != now.Machine.Kernel {
		fmt.Fprintf(w, "note: not the same machine: %d × %s, Linux %s, and %d × %s, Linux %s\n",
			was.Machine.CPUs, was.Machine.CPU, was.Machine.Kernel, now.Machine.CPUs, now.Machine.CPU, now.Machine.Kernel)
	}
	fmt.Fprintf(w, "%-30s %-30s %8s %8s %8s\n", "row", "subject", "old", "new", "new/old")
	n := 0
	for i := range now.Rows {
		r := &now.Rows[i]
		before := was.row(r.Place, r.Load)
		if before == nil || before.Base != r.Base {
			continue
		}
		for _, c := range r.Cells {
			b := before.cell(c.Subject)
			if b == nil || b.Ratio == 0 || c.Ratio == 0 || c.Subject == r.Base {
				continue
			}
			fmt.Fprintf(w, "%-30s %-30s %8.2f %8.2f %8.2f\n", r.Place+"/"+r.Load, c.Subject, b.Ratio, c.Ratio, c.Ratio/b.Ratio)
			n++
		}
	}
	if n == 0 {
		return fmt.Errorf("%s and %s have no row in common", oldPath, newPath)
	}
	return nil
}

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
