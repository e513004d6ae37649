package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// report is what a run found.
type report struct {
	SchemaVersion int     `json:"schema_version"`
	Machine       machine `json:"machine"`
	Rounds        int     `json:"rounds"`
	SizeMiB       int64   `json:"size_mib"`
	Rows          []row   `json:"rows"`
	Aims          []aim   `json:"aims"`

	NotJudged []notJudged `json:"aims_not_judged,omitempty"`
}

// row is one load at one place, on all subjects.
type row struct {
	Place string `json:"place"`
	Load  string `json:"load"`
	Unit  string `json:"unit"`
	Base  string `json:"ratio_to"` // the subject that ratios are taken to
	Cells []cell `json:"subjects"`
}

// cell is one subject of a row.
type cell struct {
	Subject string   `json:"subject"`
	Mode    string   `json:"mode,omitempty"`    // its cache, and when a write is durable
	Samples []sample `json:"samples,omitempty"` // one for each round
	Median  float64  `json:"median"`
	P99     float64  `json:"p99_us"`
	CPU     float64  `json:"cpu_us"`
	Ratio   float64  `json:"ratio"`
	Error   string   `json:"error,omitempty"` // why there are no figures
}

func newRow(place string, l load, all []subject) row {
	r := row{Place: place, Load: l.name(), Unit: l.unit(), Base: nameGoFuse}
	if l.origin {
		r.Base = nameOrigin1
	}
	for _, s := range subjectsOf(all, place, l) {
		mode := s.mode
		if l.loop {
			mode = throughLoop + mode
		}
		r.Cells = append(r.Cells, cell{Subject: s.name, Mode: mode})
	}
	return r
}

func (r *row) cell(subject string) *cell {
	i := slices.IndexFunc(r.Cells, func(c cell) bool { return c.Subject == subject })
	if i < 0 {
		return nil
	}
	return &r.Cells[i]
}

// add takes one sample, or the reason why there is none: then the subject is
// left out of the rounds to come.
func (r *row) add(subject string, s sample, err error) {
	c := r.cell(subject)
	if err != nil {
		c.Error, c.Samples = err.Error(), nil
		return
	}
	c.Samples = append(c.Samples, s)
}

func (r *row) failed(subject string) bool { return r.cell(subject).Error != "" }

// sum fills in what follows from the samples.
func (r *row) sum() {
	for i := range r.Cells {
		c := &r.Cells[i]
		c.Median = median(each(c.Samples, func(s sample) float64 { return s.Figure }))
		c.P99 = median(each(c.Samples, func(s sample) float64 { return s.P99 }))
		c.CPU = median(each(c.Samples, func(s sample) float64 { return s.CPU }))
		c.Ratio = median(r.ratios(c.Subject, r.Base))
	}
}

// nameBest stands for the fastest peer of each round.
const nameBest = "fastest peer"

// ratios are those of two subjects, round by round.
func (r *row) ratios(a, b string) []float64 {
	x, y := r.figures(a), r.figures(b)
	if b == nameBest {
		y = r.best()
	}
	var list []float64
	for i := range min(len(x), len(y)) {
		list = append(list, x[i]/y[i])
	}
	return list
}

// best are the figures of the fastest peer, round by round. The file without
// anything between, and the server that does nothing, are no peers.
func (r *row) best() []float64 {
	var list []float64
	for _, c := range r.Cells {
		if strings.Contains(c.Subject, "dmfuse") || c.Subject == nameFile || c.Subject == nameGoFuse {
			continue
		}
		for i, s := range c.Samples {
			if i == len(list) {
				list = append(list, 0)
			}
			list[i] = max(list[i], s.Figure)
		}
	}
	return list
}

// figures are those of one subject, round by round.
func (r *row) figures(subject string) []float64 {
	c := r.cell(subject)
	if c == nil {
		return nil
	}
	return each(c.Samples, func(s sample) float64 { return s.Figure })
}

func each(list []sample, f func(sample) float64) []float64 {
	out := make([]float64, 0, len(list))
	for _, s := range list {
		out = append(out, f(s))
	}
	return out
}

// median is 0 of nothing.
func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	list = slices.Sorted(slices.Values(list))
	m := len(list) / 2
	if len(list)%2 == 1 {
		return list[m]
	}
	return (list[m-1] + list[m]) / 2
}

// text is a row as a table of its own.
func (r *row) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-30s %10s %10s %10s %12s\n", r.Place+"/"+r.Load, r.Unit, "p99 µs", "CPU µs", "of "+strings.Fields(r.Base)[0])
	for _, c := range r.Cells {
		switch {
		case c.Error != "":
			fmt.Fprintf(&b, "  %-28s %s\n", c.Subject, c.Error)
		case len(c.Samples) > 0:
			cpu := "-" // no server
			if c.CPU > 0 {
				cpu = fmt.Sprintf("%.1f", c.CPU)
			}
			p99 := "-" // no requests
			if c.P99 > 0 {
				p99 = fmt.Sprintf("%.0f", c.P99)
			}
			fmt.Fprintf(&b, "  %-28s %10.1f %10s %10s %12.2f  %s\n", c.Subject, c.Median, p99, cpu, c.Ratio, c.Mode)
		}
	}
	return b.String() + "\n"
}

// text is the summary: the aims.
func (rep *report) text() string {
	if len(rep.Aims)+len(rep.NotJudged) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "aims: median ratio over %d rounds, smallest and largest\n", rep.Rounds)
	for _, a := range rep.Aims {
		word := "met"
		if !a.Met {
			word = "MISSED"
		}
		what, aim := a.Subject+" / "+a.Against, fmt.Sprintf("%.2f", a.AtLeast)
		if a.Against == "" {
			what, aim = a.Subject, fmt.Sprintf("at most %.0f", a.AtMost)
		}
		fmt.Fprintf(&b, "  %-22s %-45s %5.2f  (%.2f to %.2f)  aim %s  %s\n", a.Row, what, a.Ratio, a.Low, a.High, aim, word)
	}
	for _, a := range rep.NotJudged {
		what := a.Subject
		if a.Against != "" {
			what += " / " + a.Against
		}
		fmt.Fprintf(&b, "  %-22s %-45s not judged: %s\n", a.Row, what, a.Why)
	}
	return b.String()
}

// write leaves the report in a directory, as text, as JSON and as a chart.
func (rep *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	doc, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	text := rep.Machine.text()
	for i := range rep.Rows {
		text += rep.Rows[i].text()
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "bench.json"), append(doc, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "bench.txt"), []byte(text+rep.text()), 0o644),
		os.WriteFile(filepath.Join(dir, "bench.svg"), []byte(rep.chart()), 0o644))
}
