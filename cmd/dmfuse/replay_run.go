package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/replay"
)

// replayed counts what was done.
type replayed struct {
	Device   string        `json:"device"`
	From     int           `json:"from"`
	Entries  int           `json:"entries"`
	Writes   int           `json:"writes"`
	Bytes    int64         `json:"write_bytes"`
	Discards int           `json:"discards"`
	Flushes  int           `json:"flushes"`
	Marks    int           `json:"marks"`
	Checks   []checkResult `json:"checks,omitempty"`
	Failed   int           `json:"failed"`
}

// run does the entries on DEV.
func (r *replayer) run(ctx context.Context) error {
	from, end, err := r.span()
	if err != nil {
		return err
	}
	p, err := fileAt(r.path)
	if err != nil {
		return err
	}
	if err := r.fits(p, from, end); err != nil {
		return err
	}
	dev, err := r.pool.Open(r.path, true)
	if err != nil {
		return err
	}
	defer func() { _ = dev.Close() }()
	sum := replayed{Device: r.path, From: from}
	mark := ""
	for i := from; i < end; i++ {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("stopped before entry %d; %s is as it was after the entry before: %w", i, r.path, err)
		}
		if err := r.log.Apply(dev, i); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		e := r.log.Entries()[i]
		sum.count(replay.KindOf(e), e.Length)
		if replay.KindOf(e) == replay.KindMark {
			mark = e.Mark
		}
		if r.o.fsck == "" || !replay.Stops(e) {
			continue
		}
		// The command has the device for itself.
		if err := closeFlushed(dev); err != nil {
			return err
		}
		goOn, err := r.checkHere(ctx, i, mark)
		if err != nil {
			return err
		}
		if dev, err = r.pool.Open(r.path, true); err != nil {
			return err
		}
		if !goOn {
			break
		}
	}
	if err := dev.Flush(); err != nil {
		return err
	}
	sum.Checks, sum.Failed = r.checks, r.failed
	return r.report(sum, sum.text())
}

// closeFlushed makes a device durable and closes it.
func closeFlushed(dev *blockdev.Handle) error {
	err := dev.Flush()
	if cerr := dev.Close(); err == nil {
		err = cerr
	}
	return err
}

func (s *replayed) count(k replay.Kind, n int64) {
	s.Entries++
	switch k {
	case replay.KindWrite:
		s.Writes++
		s.Bytes += n
	case replay.KindDiscard:
		s.Discards++
	case replay.KindFlush:
		s.Flushes++
	case replay.KindMark:
		s.Marks++
	}
}

func (s *replayed) text() string {
	return fmt.Sprintf("%d entries replayed on %s: %d writes of %d bytes, %d discards, %d flushes, %d marks", s.Entries, s.Device, s.Writes, s.Bytes, s.Discards, s.Flushes, s.Marks)
}

// checkHere checks DEV after entry i, or a copy of it. It says whether to go on.
func (r *replayer) checkHere(ctx context.Context, i int, mark string) (bool, error) {
	res := checkResult{Entry: i, Mark: mark}
	if r.o.scratch == "" {
		return r.check(ctx, r.path, res)
	}
	dev, err := r.pool.Open(r.path, false)
	if err != nil {
		return false, err
	}
	defer dev.Close()
	path, err := r.copyOf(dev, r.o.scratch)
	if err != nil {
		return false, err
	}
	return r.checkCopy(ctx, path, res)
}

// checkCopy checks a copy and removes it, unless it is to be kept.
func (r *replayer) checkCopy(ctx context.Context, path string, res checkResult) (bool, error) {
	keep := false
	defer func() {
		if !keep {
			_ = os.Remove(path)
		}
	}()
	goOn, err := r.check(ctx, path, res)
	if err == nil && !goOn {
		keep = true
		r.checks[len(r.checks)-1].Kept = path
		r.a.note("what the check failed on is kept: %s", path)
	}
	return goOn, err
}

// report prints the end, and makes failed checks an error.
func (r *replayer) report(v any, text string) error {
	if r.a.json {
		if err := r.a.printJSON(v); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintln(r.a.stdout, text+r.checkText()); err != nil {
		return err
	}
	if r.failed == 0 {
		return nil
	}
	return failf(exitFailed, "%d of %d checks failed", r.failed, len(r.checks))
}

func (r *replayer) checkText() string {
	if len(r.checks) == 0 {
		return ""
	}
	return "; " + strconv.Itoa(len(r.checks)) + " checks, " + strconv.Itoa(r.failed) + " failed"
}

// printable is text for one line.
func printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return strings.TrimSpace(s)
}
