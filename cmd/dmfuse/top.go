package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newTopCommand(a *app) *cobra.Command {
	var interval time.Duration
	var iterations int
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what the devices are doing",
		Long: `Show what the devices are doing, the busiest first: requests and bytes a second,
how long a request takes, how many are under way (those that wait included), and
how far long work has come. On a terminal it goes on until Ctrl-C; elsewhere it
prints the rates of one interval, or of as many as --iterations says. With -J each
interval is a JSON object on a line of its own.`,
		Example: `  dmfuse top
  dmfuse top --interval 5s --iterations 12 -J`,
		Args: asUsage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 10*time.Millisecond {
				return usagef("--interval %v: expected 10ms or more", interval)
			}
			if iterations < 0 {
				return usagef("--iterations %d: expected 1 or more, or 0 for no end", iterations)
			}
			_, terminal := terminalWidth(a.stdout)
			if !cmd.Flags().Changed("iterations") && !terminal {
				iterations = 1
			}
			return a.top(cmd.Context(), interval, iterations, terminal && !a.json)
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "`TIME` between two looks")
	cmd.Flags().IntVar(&iterations, "iterations", 0, "end after `N` intervals (default: no end on a terminal, else 1)")
	return cmd
}

// topRow is a device in one interval.
type topRow struct {
	Device    string  `json:"device"`
	Suspended bool    `json:"suspended"`
	InFlight  int64   `json:"in_flight"`
	Read      topRate `json:"read"`
	Write     topRate `json:"write"`
	Flush     topRate `json:"flush"`
	Discard   topRate `json:"discard"`
}

// topRate is the requests of one kind in one interval.
type topRate struct {
	Requests float64 `json:"requests"`        // a second
	Bytes    float64 `json:"bytes"`           // a second
	Errors   uint64  `json:"errors"`          // in the interval
	Latency  float64 `json:"latency_seconds"` // mean; 0 without requests
}

// topLook is one interval.
type topLook struct {
	Time    time.Time     `json:"time"`
	Seconds float64       `json:"interval_seconds"`
	Devices []topRow      `json:"devices"`
	Jobs    []control.Job `json:"jobs"`
}

func (a *app) top(ctx context.Context, interval time.Duration, iterations int, screen bool) error {
	s, err := a.session(ctx)
	if err != nil {
		return err
	}
	last, err := s.c.IOCounts(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil // Ctrl-C is how one leaves
		}
		now, err := s.c.IOCounts(ctx)
		if err == nil {
			var jobs []control.Job
			if jobs, err = s.c.Jobs(ctx, control.Key{}); err == nil {
				err = a.showTop(lookAt(last, now, jobs), screen)
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil || n == iterations:
			return err
		}
		last = now
	}
}

// lookAt is the difference of two readings of the counters, the busiest device
// first. A device that is new in the second counts from 0.
func lookAt(last, now control.IOCountList, jobs []control.Job) topLook {
	l := topLook{Time: time.Now(), Seconds: now.Uptime - last.Uptime, Devices: []topRow{}, Jobs: jobs}
	before := map[uint64]control.IOCount{}
	for _, d := range last.Devices {
		before[d.Serial] = d
	}
	for _, d := range now.Devices {
		b := before[d.Serial]
		l.Devices = append(l.Devices, topRow{
			Device: d.Device, Suspended: d.Suspended, InFlight: d.InFlight,
			Read: rateOf(b.Read, d.Read, l.Seconds), Write: rateOf(b.Write, d.Write, l.Seconds),
			Flush: rateOf(b.Flush, d.Flush, l.Seconds), Discard: rateOf(b.Discard, d.Discard, l.Seconds),
		})
	}
	slices.SortStableFunc(l.Devices, func(x, y topRow) int {
		switch a, b := x.load(), y.load(); {
		case a > b:
			return -1
		case a < b:
			return 1
		}
		return 0
	})
	return l
}

// load is what devices are sorted by: bytes a second, each request and each wait
// as 512.
func (r topRow) load() float64 {
	return r.Read.Bytes + r.Write.Bytes + 512*(r.Read.Requests+r.Write.Requests+r.Flush.Requests+r.Discard.Requests+float64(r.InFlight))
}

func rateOf(b, n control.OpCount, seconds float64) topRate {
	requests := n.Requests - b.Requests
	r := topRate{Errors: n.Errors - b.Errors}
	if seconds > 0 {
		r.Requests, r.Bytes = float64(requests)/seconds, float64(n.Bytes-b.Bytes)/seconds
	}
	if requests > 0 {
		r.Latency = float64(n.Nanoseconds-b.Nanoseconds) / float64(requests) / 1e9
	}
	return r
}

func (a *app) showTop(l topLook, screen bool) error {
	if a.json {
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.stdout, `{"schema_version":%d,%s`+"\n", control.SchemaVersion, b[1:])
		return err
	}
	var rows [][]string
	for _, d := range l.Devices {
		rows = append(rows, []string{
			d.Device, perSecond(d.Read.Requests), a.size(int64(d.Read.Bytes)) + "/s", latency(d.Read),
			perSecond(d.Write.Requests), a.size(int64(d.Write.Bytes)) + "/s", latency(d.Write),
			perSecond(d.Flush.Requests), fmt.Sprint(d.InFlight), d.note(l.Jobs),
		})
	}
	if screen {
		rows = fitting(rows, terminalHeight(a.stdout)-4)
		// Home, and the rest of the screen is cleared: nothing flickers.
		if _, err := fmt.Fprintf(a.stdout, "\x1b[H\x1b[J%s  %s, %s\n\n", l.Time.Format("15:04:05"), count(len(l.Devices), "device"), count(len(l.Jobs), "job")); err != nil {
			return err
		}
	}
	return a.printTable([]string{"DEVICE", "READ/s", "BYTES", "TIME", "WRITE/s", "BYTES", "TIME", "FLUSH/s", "QUEUE", ""}, rows)
}

// fitting is the rows that have room on the screen: the busiest come first.
func fitting(rows [][]string, room int) [][]string {
	if room < 2 || len(rows) <= room {
		return rows
	}
	more := fmt.Sprintf("... %d more", len(rows)-room+1)
	return append(rows[:room-1:room-1], []string{more})
}

// terminalHeight is the number of lines of a terminal, 0 where w is none.
func terminalHeight(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Row)
}

func perSecond(n float64) string {
	if n > 0 && n < 10 {
		return fmt.Sprintf("%.1f", n)
	}
	return fmt.Sprintf("%.0f", n)
}

func latency(r topRate) string {
	if r.Requests == 0 {
		return "-"
	}
	d := time.Duration(r.Latency * 1e9)
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%dus", d.Microseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fms", r.Latency*1e3)
	}
	return d.Round(time.Second).String()
}

// note is what else there is to say of a device: its state, errors, jobs.
func (r topRow) note(jobs []control.Job) string {
	var notes []string
	if r.Suspended {
		notes = append(notes, "suspended")
	}
	if n := r.Read.Errors + r.Write.Errors + r.Flush.Errors + r.Discard.Errors; n > 0 {
		notes = append(notes, count(n, "error"))
	}
	for _, j := range jobs {
		if j.Device == r.Device {
			notes = append(notes, fmt.Sprintf("%s %.1f%%", j.Kind, workOf(j).percent()))
		}
	}
	return strings.Join(notes, ", ")
}
