package faultrule

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"golang.org/x/sys/unix"
)

// Limits of a rule, against a typing error that takes all memory.
const (
	maxFlips  = 1 << 20
	maxPlaces = 1 << 20
	maxDelay  = 24 * time.Hour
)

// ParseAll reads rules separated by semicolons or line ends; what follows a #
// up to the end of its line is a comment. The error names the rule, the word,
// what was found and what was wanted.
func ParseAll(text string) ([]Rule, error) {
	var rules []Rule
	for line := range strings.SplitSeq(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		for one := range strings.SplitSeq(line, ";") {
			if strings.TrimSpace(one) == "" {
				continue
			}
			r, err := Parse(one)
			if err != nil {
				return nil, err
			}
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// Parse reads one rule. The error is of kind [blockdev.ErrInvalid].
func Parse(text string) (Rule, error) {
	words := strings.Fields(text)
	bad := func(err error) (Rule, error) {
		return Rule{}, fmt.Errorf("%w: fault rule %q: %w", blockdev.ErrInvalid, shorten(strings.Join(words, " ")), err)
	}
	if len(words) == 0 {
		return bad(fmt.Errorf("found nothing; wanted an operation and an action, such as: write errno=EIO"))
	}
	var r Rule
	var err error
	if r.Ops, err = parseOp(words[0]); err != nil {
		return bad(err)
	}
	seen := map[string]bool{}
	for _, w := range words[1:] {
		key, _, _ := strings.Cut(w, "=")
		if seen[key] && key != "sectors" && key != "bytes" {
			return bad(fmt.Errorf("word %q: found %s twice; wanted it once", w, key))
		}
		seen[key] = true
		if err := r.word(w); err != nil {
			return bad(fmt.Errorf("word %q: %w", shorten(w), err))
		}
	}
	if r.Places = merge(r.Places); len(r.Places) > maxPlaces {
		return bad(fmt.Errorf("found %d places; wanted at most %d", len(r.Places), maxPlaces))
	}
	if err := r.check(); err != nil {
		return bad(err)
	}
	return r, nil
}

// shorten keeps a rule of thousands of extents out of messages.
func shorten(text string) string {
	const limit = 200
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "…"
}

// word takes one word after the operations.
func (r *Rule) word(w string) (err error) {
	key, value, has := strings.Cut(w, "=")
	switch key {
	case "hang":
		r.Hang = true
		if has {
			err = wanted(value, "hang without a value")
		}
		return err
	case "drop":
		r.Drop, r.Keep = !has, has
		if has && value != "until-flush" {
			err = wanted(value, "drop, or drop=until-flush")
		}
		return err
	case "corrupt":
		r.Corrupt, err = parseFlips(value, has)
		return err
	}
	if !has {
		return fmt.Errorf("found no known word; wanted sectors=, bytes=, after=, nth=, every=, p=, count=, seed=, errno=, delay=, hang, drop, tear= or corrupt")
	}
	switch key {
	case "sectors":
		return r.places(value, 512)
	case "bytes":
		return r.places(value, 1)
	case "after":
		r.After, err = parseCount(value)
	case "nth":
		r.Nth, err = parseCount(value)
	case "every":
		r.Every, err = parseCount(value)
	case "count":
		r.Count, err = parseCount(value)
	case "seed":
		r.Seed, err = parseCount(value)
	case "p":
		r.P, err = parseP(value)
	case "errno":
		r.Errno, err = parseErrno(value)
	case "delay":
		r.Delay, err = parseDelay(value)
	case "tear":
		r.Tear, err = parseTear(value)
	default:
		err = fmt.Errorf("found %q; wanted sectors, bytes, after, nth, every, p, count, seed, errno, delay, hang, drop, tear or corrupt", key)
	}
	return err
}

func wanted(found, what string) error { return fmt.Errorf("found %q; wanted %s", found, what) }

// parseCount reads a whole number above 0.
func parseCount(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n == 0 {
		return 0, wanted(text, "a whole number from 1 on")
	}
	return n, nil
}

func parseP(text string) (float64, error) {
	p, err := strconv.ParseFloat(text, 64)
	if err != nil || !(p > 0 && p <= 1) {
		return 0, wanted(text, "a probability above 0 and up to 1, such as 0.01")
	}
	return p, nil
}

func parseErrno(text string) (unix.Errno, error) {
	for _, e := range errnos {
		if e.name == text {
			return e.errno, nil
		}
	}
	return 0, wanted(text, "one of "+strings.Join(Errnos(), ", "))
}

func parseTear(text string) (int, error) {
	switch text {
	case "512":
		return 512, nil
	case "4096", "4k":
		return 4096, nil
	}
	return 0, wanted(text, "512 or 4096")
}

func parseFlips(text string, has bool) (Flips, error) {
	if !has {
		return Flips{N: 1}, nil
	}
	unit, number, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(number, 10, 31)
	if err != nil || n == 0 || n > maxFlips || unit != "bits" && unit != "bytes" {
		return Flips{}, wanted(text, fmt.Sprintf("bits:N or bytes:N, with N from 1 to %d", maxFlips))
	}
	return Flips{N: int(n), Bytes: unit == "bytes"}, nil
}

func parseTime(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxDelay {
		return 0, wanted(text, "a time from 0s to 24h, such as 10ms")
	}
	return d, nil
}

func parseDelay(text string) (d Delay, err error) {
	if rest, ok := strings.CutPrefix(text, "normal:"); ok {
		return parseNormal(text, strings.Split(rest, ":"))
	}
	a, b, isRange := strings.Cut(text, "..")
	if d.Min, err = parseTime(a); err != nil {
		return Delay{}, err
	}
	d.Kind, d.Max = Fixed, d.Min
	if isRange {
		d.Kind = Uniform
		if d.Max, err = parseTime(b); err != nil {
			return Delay{}, err
		}
		if d.Max < d.Min {
			return Delay{}, wanted(text, "the shorter time first")
		}
	}
	if d.Max == 0 {
		return Delay{}, wanted(text, "a time above 0")
	}
	return d, nil
}

func parseNormal(text string, parts []string) (Delay, error) {
	if len(parts) != 4 {
		return Delay{}, wanted(text, "normal:MEAN:DEVIATION:MIN:MAX, such as normal:10ms:3ms:1ms:50ms")
	}
	var t [4]time.Duration
	for i, p := range parts {
		var err error
		if t[i], err = parseTime(p); err != nil {
			return Delay{}, err
		}
	}
	d := Delay{Kind: Normal, Mean: t[0], Dev: t[1], Min: t[2], Max: t[3]}
	if d.Max < d.Min || d.Max == 0 {
		return Delay{}, wanted(text, "MIN not above MAX, and MAX above 0")
	}
	return d, nil
}

// places adds START+COUNT, several joined by commas.
func (r *Rule) places(text string, unit int64) error {
	for one := range strings.SplitSeq(text, ",") {
		a, b, ok := strings.Cut(one, "+")
		start, err1 := parseBytes(a, unit)
		count, err2 := parseBytes(b, unit)
		if !ok || err1 != nil || err2 != nil || count == 0 || start > maxEnd-count {
			what := "FIRST+COUNT in sectors, such as 2048+8"
			if unit == 1 {
				what = "OFFSET+LENGTH in bytes, such as 1m+64k"
			}
			return wanted(one, what)
		}
		r.Places = append(r.Places, Span{start, count})
	}
	return nil
}

// parseBytes reads a number of units. Bytes may have a suffix.
func parseBytes(text string, unit int64) (int64, error) {
	if unit == 1 && text != "" {
		i := strings.IndexByte("bskmgt", text[len(text)-1])
		if i >= 0 {
			text, unit = text[:len(text)-1], []int64{1, 512, 1 << 10, 1 << 20, 1 << 30, 1 << 40}[i]
		}
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || int64(n) > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is no number", text)
	}
	return int64(n) * unit, nil
}
