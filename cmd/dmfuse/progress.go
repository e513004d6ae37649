package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// work is how far a job of a device has come.
type work struct {
	Device      string  `json:"device"`
	Kind        string  `json:"kind"`  // resync, scrub, merge
	State       string  `json:"state"` // running, paused, waiting, failed, done
	DoneBytes   int64   `json:"done_bytes"`
	TotalBytes  int64   `json:"total_bytes"`
	RateBytes   int64   `json:"rate_bytes"`   // a second; 0: nothing moves, or not known yet
	LeftSeconds float64 `json:"left_seconds"` // -1: not known
	Detail      string  `json:"detail,omitempty"`
	next        string  // what to do when it failed
}

// The states in which nobody need wait any longer.
const (
	workDone   = "done"
	workFailed = "failed"
)

// percent is how much is done, 0 to 100.
func (w work) percent() float64 {
	switch {
	case w.State == workDone:
		return 100
	case w.TotalBytes <= 0:
		return 0
	}
	return min(100, float64(w.DoneBytes)*100/float64(w.TotalBytes))
}

const (
	askEvery  = 200 * time.Millisecond // how often the daemon is asked
	tellEvery = 10 * time.Second       // how often a line is printed where there is no terminal
)

// follow shows how a job gets on until it is done: a bar on a terminal, a line
// every 10 s elsewhere, JSON lines under -J. A job that failed is an error.
// Ctrl-C ends the watching and not the work: it is no error, and finished is
// false.
func (a *app) follow(ctx context.Context, ask func(context.Context) (work, error)) (finished bool, err error) {
	v := a.newProgress()
	defer v.end()
	var last work
	var r rate
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		w, err := ask(ctx)
		if err == nil {
			last = w
		}
		switch {
		case ctx.Err() != nil:
			v.end()
			if last.Device != "" {
				a.note("the %s of %s goes on; see it with: dmfuse jobs", last.Kind, last.Device)
			}
			return false, nil
		case err != nil:
			return false, err
		}
		r.fill(&w, time.Now())
		v.show(w, time.Now())
		switch w.State {
		case workDone:
			return true, nil
		case workFailed:
			v.end()
			return false, fail(exitFailed, fmt.Errorf("the %s of %s does not go on: %s", w.Kind, w.Device, w.Detail), cmp.Or(w.next, "see the device with: dmfuse mirror status "+shellQuote(w.Device)))
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// rate works out what a job does not tell: its speed over the last seconds.
type rate struct {
	at   []time.Time
	done []int64
}

// rateSpan is the time over which a speed is taken.
const rateSpan = 5 * time.Second

// fill adds speed and time left where they are missing.
func (r *rate) fill(w *work, now time.Time) {
	if n := len(r.done); n > 0 && w.DoneBytes < r.done[n-1] { // it began again
		r.at, r.done = nil, nil
	}
	r.at, r.done = append(r.at, now), append(r.done, w.DoneBytes)
	for len(r.at) > 2 && now.Sub(r.at[1]) >= rateSpan {
		r.at, r.done = r.at[1:], r.done[1:]
	}
	if w.RateBytes == 0 {
		if d := now.Sub(r.at[0]); d > 0 {
			w.RateBytes = int64(float64(w.DoneBytes-r.done[0]) / d.Seconds())
		}
		w.LeftSeconds = -1
		if w.RateBytes > 0 {
			w.LeftSeconds = float64(max(0, w.TotalBytes-w.DoneBytes)) / float64(w.RateBytes)
		}
	}
}

// progress is the way in which the user is told.
type progress interface {
	show(w work, now time.Time)
	end() // more than once is harmless
}

func (a *app) newProgress() progress {
	if a.json {
		return &jsonProgress{a: a}
	}
	if width, ok := terminalWidth(a.stderr); ok {
		return &barProgress{a: a, w: a.stderr, width: width}
	}
	return &lineProgress{a: a}
}

// terminalWidth is the number of columns of a terminal; false when w is none.
func terminalWidth(w io.Writer) (int, bool) {
	f, ok := w.(*os.File)
	if !ok {
		return 0, false
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	if ws.Col == 0 {
		return 80, true
	}
	return int(ws.Col), true
}

// workText is a job in one line.
func (a *app) workText(w work) string {
	text := fmt.Sprintf("%s of %s: %.1f%%", w.Kind, w.Device, w.percent())
	if w.TotalBytes > 0 {
		text += fmt.Sprintf(", %s of %s", a.size(w.DoneBytes), a.size(w.TotalBytes))
	}
	return text + a.speedText(w)
}

// speedText is what follows: speed, time left, and why it waits.
func (a *app) speedText(w work) string {
	text := ""
	if w.State == workDone {
		return text
	}
	if w.RateBytes > 0 {
		text += ", " + a.size(w.RateBytes) + "/s"
		if w.LeftSeconds >= 0 {
			text += ", " + timeText(w.LeftSeconds) + " left"
		}
	}
	if w.State != "running" {
		text += ", " + w.State
	}
	return text
}

// timeText is a duration as people read it: "12 s", "3:07 min", "2:05 h".
func timeText(seconds float64) string {
	switch s := int64(seconds + 0.5); {
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return fmt.Sprintf("%d:%02d min", s/60, s%60)
	case s < 100*3600:
		return fmt.Sprintf("%d:%02d h", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%d days", s/86400)
	}
}

// lineProgress prints a line now and then, on stderr.
type lineProgress struct {
	a    *app
	last time.Time
	told bool
}

func (p *lineProgress) show(w work, now time.Time) {
	if p.last.IsZero() {
		p.last = now
	}
	over := w.State == workDone || w.State == workFailed
	if now.Sub(p.last) < tellEvery && !(over && p.told) {
		return
	}
	p.last, p.told = now, true
	fmt.Fprintln(p.a.stderr, p.a.workText(w))
}

func (p *lineProgress) end() {}

// jsonProgress prints an object a line on stdout whenever something is new.
type jsonProgress struct {
	a    *app
	last work
	at   time.Time
	err  error
}

func (p *jsonProgress) show(w work, now time.Time) {
	over := w.State == workDone || w.State == workFailed
	if !over && w.State == p.last.State && now.Sub(p.at) < time.Second {
		return
	}
	p.last, p.at = w, now
	p.err = errors.Join(p.err, p.a.printJSON(struct {
		Progress work    `json:"progress"`
		Percent  float64 `json:"percent"`
	}{w, w.percent()}))
}

func (p *jsonProgress) end() {}

// barProgress draws one line again and again.
type barProgress struct {
	a     *app
	w     io.Writer
	width int
	drawn bool
}

func (p *barProgress) show(w work, _ time.Time) {
	p.drawn = true
	fmt.Fprint(p.w, "\r"+p.line(w)+"\x1b[K")
}

// line is the bar with what belongs to it, no longer than the terminal is wide.
func (p *barProgress) line(w work) string {
	head := fmt.Sprintf("%s %s ", w.Kind, w.Device)
	tail := fmt.Sprintf(" %5.1f%%%s", w.percent(), p.a.speedText(w))
	room := min(40, p.width-1-len(head)-len(tail)-2)
	if room < 5 {
		return cutText(head+tail, p.width-1)
	}
	full := int(float64(room) * w.percent() / 100)
	return head + "[" + strings.Repeat("#", full) + strings.Repeat(".", room-full) + "]" + tail
}

func cutText(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:max(0, n)])
	}
	return s
}

func (p *barProgress) end() {
	if p.drawn {
		p.drawn = false
		fmt.Fprintln(p.w)
	}
}
