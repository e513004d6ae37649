package mapper

import (
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Messages to the core about statistics (kernel: dm_stats_message).

// statsMessage does a message "@stats_..."; ok is false when it is none.
func (d *Device) statsMessage(words []string) (text string, ok bool, err error) {
	name, isStats := strings.CutPrefix(strings.ToLower(words[0]), "@stats_")
	if !isStats {
		return "", false, nil
	}
	args := words[1:]
	switch name {
	case "create":
		text, err = d.statsCreate(args)
	case "delete":
		err = d.statsOne(args, 1, func(r *statsRegion) error {
			if err := d.dropStats(r.id); err != nil {
				return err
			}
			d.record()
			return nil
		})
	case "clear":
		err = d.statsOne(args, 1, func(r *statsRegion) error {
			for i := range r.areas {
				a := &r.areas[i]
				a.mu.Lock()
				a.round(time.Now())
				a.clear()
				a.mu.Unlock()
			}
			return nil
		})
	case "set_aux":
		err = d.statsOne(args, 2, func(r *statsRegion) error {
			r.mu.Lock()
			r.aux = args[1]
			r.mu.Unlock()
			d.record()
			return nil
		})
	case "list":
		text, err = d.statsList(args)
	case "print", "print_clear":
		text, err = d.statsPrint(args, name == "print_clear")
	default:
		return "", false, nil
	}
	return text, true, err
}

// statsOne finds the region that the first of want arguments names.
func (d *Device) statsOne(args []string, want int, do func(*statsRegion) error) error {
	if len(args) != want {
		return invalid("%d arguments, expected %d", len(args), want)
	}
	id, err := strconv.ParseUint(args[0], 10, 31)
	if err != nil {
		return invalid("%q is no number of a region of statistics", args[0])
	}
	r, err := d.statsRegion(int(id))
	if err != nil {
		return err
	}
	return do(r)
}

// statsCreate reads "RANGE STEP [N OPTION...] [PROGRAM [AUX]]" and answers with
// the number of the new region.
func (d *Device) statsCreate(args []string) (string, error) {
	if len(args) < 2 {
		return "", invalid("statistics need a range and a step")
	}
	start, end, err := d.statsRange(args[0])
	if err != nil {
		return "", err
	}
	step, err := statsStep(args[1], end-start)
	if err != nil {
		return "", err
	}
	precise, bounds, rest, err := statsOptions(args[2:])
	if err != nil {
		return "", err
	}
	if len(rest) > 2 {
		return "", invalid("%d words after the options, expected a program and its data", len(rest))
	}
	r, err := newStatsRegion(start, end, step, bounds, precise)
	if err != nil {
		return "", err
	}
	r.program, r.aux = "-", "-"
	if len(rest) > 0 {
		r.program = rest[0]
	}
	if len(rest) > 1 {
		r.aux = rest[1]
	}
	d.addStats(r)
	if err := d.recordErr(); err != nil {
		_ = d.dropStats(r.id)
		return "", err
	}
	return strconv.Itoa(r.id), nil
}

// statsRange reads "-", the whole device, or "START+LENGTH".
func (d *Device) statsRange(text string) (start, end uint64, err error) {
	if text == "-" {
		end = uint64(d.Size()) / blockdev.SectorSize
		if end == 0 {
			return 0, 0, invalid("device %s has no size to count in", d.Name())
		}
		return 0, end, nil
	}
	first, length, ok := strings.Cut(text, "+")
	start, err1 := strconv.ParseUint(first, 10, 64)
	n, err2 := strconv.ParseUint(length, 10, 64)
	if !ok || err1 != nil || err2 != nil || n == 0 || start > math.MaxUint64-n {
		return 0, 0, invalid("range %q of statistics, expected - or START+LENGTH", text)
	}
	return start, start + n, nil
}

// statsStep reads "SECTORS" or "/AREAS".
func statsStep(text string, length uint64) (uint64, error) {
	digits, areas := strings.CutPrefix(text, "/")
	n, err := strconv.ParseUint(digits, 10, 64)
	switch {
	case err != nil || n == 0 || areas && n > math.MaxUint32:
		return 0, invalid("step %q of statistics, expected SECTORS or /AREAS", text)
	case areas:
		return (length-1)/n + 1, nil
	}
	return n, nil
}

// statsOptions reads "N OPTION..." where it stands.
func statsOptions(args []string) (precise bool, bounds []uint64, rest []string, err error) {
	if len(args) == 0 {
		return false, nil, nil, nil
	}
	n, err := strconv.ParseUint(args[0], 10, 31)
	if err != nil {
		return false, nil, args, nil // no options: the program
	}
	args = args[1:]
	if n > uint64(len(args)) {
		return false, nil, nil, invalid("%d options of statistics, there are %d words", n, len(args))
	}
	for _, o := range args[:n] {
		list, histogram := strings.CutPrefix(o, "histogram:")
		switch {
		case strings.EqualFold(o, "precise_timestamps"):
			precise = true
		case histogram && bounds == nil:
			if bounds, err = statsBounds(list); err != nil {
				return false, nil, nil, err
			}
		default:
			return false, nil, nil, invalid("option %q of statistics", o)
		}
	}
	return precise, bounds, args[n:], nil
}

// statsBounds reads ascending numbers.
func statsBounds(list string) (bounds []uint64, err error) {
	for w := range strings.SplitSeq(list, ",") {
		b, err := strconv.ParseUint(w, 10, 64)
		if err != nil || len(bounds) > 0 && b <= bounds[len(bounds)-1] {
			return nil, invalid("histogram %q, expected ascending numbers with commas between", list)
		}
		bounds = append(bounds, b)
	}
	return bounds, nil
}

func (d *Device) statsList(args []string) (string, error) {
	if len(args) > 1 {
		return "", invalid("%d arguments, expected at most a program", len(args))
	}
	var b strings.Builder
	if list := d.stats.Load(); list != nil {
		for _, r := range *list {
			if len(args) == 0 || args[0] == r.program {
				b.WriteString(r.list())
			}
		}
	}
	return b.String(), nil
}

// statsPrint answers with lines of areas: all, or COUNT from number FIRST.
func (d *Device) statsPrint(args []string, wipe bool) (text string, err error) {
	if len(args) != 1 && len(args) != 3 {
		return "", invalid("%d arguments, expected a region, or a region, a line and a number of lines", len(args))
	}
	err = d.statsOne(args[:1], 1, func(r *statsRegion) error {
		first, count := uint64(0), uint64(len(r.areas))
		if len(args) == 3 {
			var err1, err2 error
			first, err1 = strconv.ParseUint(args[1], 10, 64)
			count, err2 = strconv.ParseUint(args[2], 10, 64)
			if err1 != nil || err2 != nil {
				return invalid("lines %q and %q, expected numbers", args[1], args[2])
			}
		}
		first = min(first, uint64(len(r.areas)))
		var b strings.Builder
		now := time.Now()
		for i := range min(count, uint64(len(r.areas))-first) {
			r.print(&b, first+i, now, wipe)
		}
		text = b.String()
		return nil
	})
	return text, err
}
