package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/spf13/cobra"
)

// The log of a mirror, looked at without a daemon. Nothing is written.

// logTool is what the command line of log info, check and dump says.
type logTool struct {
	region, length *sizeFlag
}

func newLogCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Look at the log of a mirror, without a daemon",
		Long: `Look at the log of a mirror in a file or on a block device, made by dmfuse or by
the kernel. No daemon is needed and nothing is written. A log does not say how large
a region is: that comes from the record beside it, or from --region-size.`,
		Args: asUsage(cobra.NoArgs),
		RunE: needVerb,
	}
	for _, v := range []struct {
		name, short, long, example string
		run                        func(logFacts) error
	}{
		{"info", "Show what the log of a mirror says in all", "Show the header of a log, and how many regions it says are clean: in sync, with no\nwrite under way.", "  dmfuse log info a.img.data.log", a.logInfo},
		{"check", "Find what is wrong with the log of a mirror", "Find what is wrong with a log, every problem by its name. Exit code 6 when there is one\nthat is more than a warning. With a region size and --length, or a record, the number\nof regions is checked, too.", "  dmfuse log check log.img --region-size 512k --length 10g", a.logCheck},
		{"dump", "Print which regions the log of a mirror says are clean", "Print the regions as runs that are clean or dirty, with their place in the mirror where\nthe size of a region is known.", "  dmfuse log dump a.img.data.log -n", a.logDump},
	} {
		t := logTool{newSizeFlag(""), newSizeFlag("")}
		c := &cobra.Command{
			Use: v.name + " FILE", Short: v.short, Long: v.long, Example: v.example, Args: asUsage(cobra.ExactArgs(1)),
			RunE: func(_ *cobra.Command, args []string) error {
				f, err := t.look(args[0])
				if err != nil {
					return err
				}
				defer f.dev.Close()
				return v.run(f)
			},
		}
		c.Flags().Var(t.region, "region-size", "size of a region (default: as the record beside FILE says)")
		c.Flags().Var(t.length, "length", "size of the mirror (default: as the record beside FILE says)")
		cmd.AddCommand(c)
	}
	return cmd
}

// logFacts is a log with what else is known of it.
type logFacts struct {
	path   string
	dev    *blockdev.File
	report mirror.LogReport
	region int64 // bytes; 0: not known
	length int64 // of the mirror, bytes; 0: not known
	record *mirror.Sidecar
	made   bool
	notes  []string
}

// look reads a log and what is known of it.
func (t logTool) look(path string) (f logFacts, err error) {
	if n := t.region.bytes; t.region.given && (n < 1024 || n&(n-1) != 0) {
		return f, usagef("--region-size %s: expected a power of two from 1k on", t.region.text)
	}
	if t.length.given && t.length.bytes < 512 {
		return f, usagef("--length %s: expected one sector at least", t.length.text)
	}
	if f.path, err = cleanAbs(path); err != nil {
		return f, err
	}
	if f.dev, err = blockdev.OpenFile(f.path, blockdev.FileOptions{NoLocks: true}); err != nil {
		return f, fail(exitFailed, fmt.Errorf("the log cannot be read: %w", err), "")
	}
	defer func() {
		if err != nil {
			_ = f.dev.Close()
		}
	}()
	f.readRecord()
	if t.region.given {
		f.region = t.region.bytes
	}
	if t.length.given {
		f.length = t.length.bytes
	}
	if f.dev.Size() < mirror.LogSize(1, blockdev.SectorSize) {
		return f, failf(exitFailed, "%s has %d bytes, too few for any log: the smallest has %d", f.path, f.dev.Size(), mirror.LogSize(1, blockdev.SectorSize))
	}
	if f.report, err = mirror.CheckLog(f.dev, f.expected()); err != nil {
		return f, fmt.Errorf("%s: %w", f.path, err)
	}
	f.made, _ = mirror.Made(f.dev)
	return f, nil
}

// readRecord looks for the leg record beside the log.
func (f *logFacts) readRecord() {
	side, err := mirror.ReadSidecar(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		f.notes = append(f.notes, err.Error())
	case side.Kind != mirror.KindLog:
		f.notes = append(f.notes, fmt.Sprintf("%s is a leg of the mirror %s, not its log", f.path, side.Name))
	default:
		f.record = &side
		f.region, f.length = side.Region.Bytes(), side.Length.Bytes()
	}
}

// expected is the number of regions of the mirror, 0 if it is not known.
func (f *logFacts) expected() uint64 {
	if f.region == 0 || f.length == 0 {
		return 0
	}
	return regionsOf(uint64(f.length), uint64(f.region))
}

// isLog says whether there is a log at all.
func (f *logFacts) isLog() bool {
	for _, p := range f.report.Problems {
		if p.Kind == mirror.ProblemBlank || p.Kind == mirror.ProblemMagic {
			return false
		}
	}
	return true
}

// logAnswer is what info and check answer.
type logAnswer struct {
	Path       string           `json:"path"`
	Valid      bool             `json:"valid"` // no problem that is more than a warning
	Version    uint32           `json:"version"`
	Regions    uint64           `json:"regions"`
	Clean      uint64           `json:"regions_clean"`
	Dirty      uint64           `json:"regions_dirty"`
	NeedBytes  int64            `json:"need_bytes"`
	FileBytes  int64            `json:"file_bytes"`
	RegionSize int64            `json:"region_size_bytes,omitempty"`
	Length     int64            `json:"mirror_size_bytes,omitempty"`
	Mirror     string           `json:"mirror,omitempty"` // name of the device, by the record
	Made       bool             `json:"made_by_dmfuse"`
	Problems   []mirror.Problem `json:"problems"`
	Notes      []string         `json:"notes,omitempty"`
}

func (f *logFacts) answer() logAnswer {
	r := f.report
	ans := logAnswer{
		Path: f.path, Valid: !r.Damaged(), Version: r.Header.Version, Regions: r.Header.Regions, Clean: r.Clean, Dirty: r.Dirty,
		NeedBytes: r.Need, FileBytes: r.Device, RegionSize: f.region, Length: f.length, Made: f.made, Problems: r.Problems, Notes: f.notes,
	}
	if f.record != nil {
		ans.Mirror = f.record.Name
	}
	return ans
}

func (a *app) logInfo(f logFacts) error {
	if !f.isLog() {
		return failf(exitFailed, "%s is no log of a mirror: %s", f.path, f.report.Problems[0].Text)
	}
	if a.json {
		return a.printJSON(f.answer())
	}
	r := f.report
	rows := [][]string{
		{"Log:", f.path}, {"Version:", fmt.Sprint(r.Header.Version)},
		{"Regions:", fmt.Sprintf("%d, %d clean, %d dirty or out of sync", r.Header.Regions, r.Clean, r.Dirty)},
		{"Size:", fmt.Sprintf("%s needed of %s", a.size(r.Need), a.size(r.Device))},
	}
	if f.region > 0 {
		rows = append(rows, []string{"Region size:", a.size(f.region)},
			[]string{"To be copied:", "at most " + a.size(int64(min(r.Dirty, 1<<32))*f.region)})
	} else {
		rows = append(rows, []string{"Region size:", "not known (--region-size)"})
	}
	if f.record != nil {
		rows = append(rows, []string{"Mirror:", f.record.Name + ", " + a.size(f.length)})
	}
	for _, p := range r.Problems {
		rows = append(rows, []string{"Problem:", p.Text})
	}
	for _, n := range f.notes {
		rows = append(rows, []string{"Note:", n})
	}
	return writeColumns(a.stdout, rows)
}

func (a *app) logCheck(f logFacts) error {
	ans := f.answer()
	if a.json {
		if err := a.printJSON(ans); err != nil {
			return err
		}
	} else {
		for _, p := range ans.Problems {
			text := string(p.Kind) + ": " + p.Text
			if p.Warning {
				text += " (harmless)"
			}
			if _, err := fmt.Fprintln(a.stdout, text); err != nil {
				return err
			}
		}
	}
	for _, n := range f.notes {
		a.note("%s", n)
	}
	if ans.Valid {
		return nil
	}
	var kinds []string
	for _, p := range ans.Problems {
		if !p.Warning {
			kinds = append(kinds, string(p.Kind))
		}
	}
	return failf(exitDegraded, "the log %s is not in order: %s", f.path, strings.Join(kinds, ", "))
}

// logRunInfo is a run of regions in an answer.
type logRunInfo struct {
	mirror.LogRun
	Offset *int64 `json:"offset_bytes,omitempty"`
	Length *int64 `json:"length_bytes,omitempty"`
}

func (a *app) logDump(f logFacts) error {
	if f.report.Need == 0 {
		return failf(exitFailed, "%s cannot be printed: %s", f.path, f.report.Problems[0].Text)
	}
	runs := []logRunInfo{}
	err := mirror.EachRun(f.dev, f.report.Header.Regions, func(x mirror.LogRun) {
		i := logRunInfo{LogRun: x}
		if f.region > 0 {
			off, n := int64(x.First)*f.region, int64(x.Count)*f.region
			if f.length > 0 {
				n = min(n, max(0, f.length-off))
			}
			i.Offset, i.Length = &off, &n
		}
		runs = append(runs, i)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	if a.json {
		return a.printJSON(struct {
			Path    string       `json:"path"`
			Regions uint64       `json:"regions"`
			Runs    []logRunInfo `json:"runs"`
		}{f.path, f.report.Header.Regions, runs})
	}
	return a.printRuns(runs, f.region > 0)
}

func (a *app) printRuns(runs []logRunInfo, placed bool) error {
	heads := []string{"FIRST", "LAST", "STATE"}
	if placed {
		heads = append(heads, "OFFSET", "BYTES")
	}
	rows := [][]string{}
	for _, x := range runs {
		row := []string{fmt.Sprint(x.First), fmt.Sprint(x.First + x.Count - 1), map[bool]string{true: "clean", false: "dirty"}[x.Clean]}
		if placed {
			row = append(row, fmt.Sprint(*x.Offset), fmt.Sprint(*x.Length))
		}
		rows = append(rows, row)
	}
	return a.printTable(heads, rows)
}
