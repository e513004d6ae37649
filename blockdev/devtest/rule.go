package devtest

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"golang.org/x/sys/unix"
)

// Rule says which requests fail and how. As text, with every part but the
// first optional and in any order:
//
//	OPS [START+COUNT] [after=N] [every=N] [p=P] [seed=N] [count=N] ACTION…
//
// OPS are names joined by commas (read, write, fua, flush, zero, discard), or
// any. Actions: errno=NAME, delay=TIME, short=BYTES, torn=BYTES, hang.
//
//	write 100+8 after=2 count=1 errno=EIO     the third write that touches sectors 100–107
//	flush every=2 delay=5ms                   every second flush takes 5 ms
//	read p=0.1 seed=7 errno=EIO               one in ten reads
//	write torn=512                            of each write only a part of its sectors arrives
//
// A rule without an action does nothing but count.
type Rule struct {
	Ops   Op
	Range blockdev.Range // requests that touch it; a Count of 0 is the whole device. A flush touches everything.

	After int     // this many matching requests pass first
	Every int     // then each Every-th one is hit, beginning with the first; 0 is 1
	P     float64 // with this probability; 0 is always
	Seed  uint64  // of the probability, and of what is torn
	Count int     // this many are hit at most; 0 is no limit

	Errno unix.Errno    // the error; with Short and Torn EIO if 0
	Delay time.Duration // wait first
	Hang  bool          // wait until [Fault.Release]
	Short int           // the first Short bytes are done and counted, then the error
	Torn  int           // units of Torn bytes are done or not, by Seed; none is counted
}

// errnoNames are the errors that rules know by name.
var errnoNames = map[unix.Errno]string{
	unix.EIO: "EIO", unix.ENOSPC: "ENOSPC", unix.EDQUOT: "EDQUOT", unix.EFBIG: "EFBIG", unix.EROFS: "EROFS",
	unix.EOPNOTSUPP: "EOPNOTSUPP", unix.EBUSY: "EBUSY", unix.ENODEV: "ENODEV", unix.ENXIO: "ENXIO", unix.EACCES: "EACCES",
	unix.EINVAL: "EINVAL", unix.EINTR: "EINTR", unix.ETIMEDOUT: "ETIMEDOUT", unix.ENOMEM: "ENOMEM", unix.EILSEQ: "EILSEQ",
}

func parseErrno(name string) (unix.Errno, error) {
	for e, n := range errnoNames {
		if n == name {
			return e, nil
		}
	}
	return 0, fmt.Errorf("%q is no known errno", name)
}

// String is the text that [ParseRule] takes.
func (r Rule) String() string {
	b := []string{r.Ops.String()}
	add := func(ok bool, format string, v any) {
		if ok {
			b = append(b, fmt.Sprintf(format, v))
		}
	}
	add(r.Range.Count != 0, "%v", r.Range)
	add(r.After != 0, "after=%d", r.After)
	add(r.Every != 0, "every=%d", r.Every)
	add(r.P != 0, "p=%s", strconv.FormatFloat(r.P, 'g', -1, 64))
	add(r.Seed != 0, "seed=%d", r.Seed)
	add(r.Count != 0, "count=%d", r.Count)
	add(r.Delay != 0, "delay=%v", r.Delay)
	add(r.Short != 0, "short=%d", r.Short)
	add(r.Torn != 0, "torn=%d", r.Torn)
	add(r.Errno != 0, "errno=%s", errnoNames[r.Errno])
	if r.Hang {
		b = append(b, "hang")
	}
	return strings.Join(b, " ")
}

// ParseRule reads one rule.
func ParseRule(text string) (Rule, error) {
	var r Rule
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return r, fmt.Errorf("%w: an empty rule", blockdev.ErrInvalid)
	}
	var err error
	if r.Ops, err = ParseOp(fields[0]); err != nil {
		return Rule{}, fmt.Errorf("%w: rule %q: %w", blockdev.ErrInvalid, text, err)
	}
	for _, f := range fields[1:] {
		if err := r.parseField(f); err != nil {
			return Rule{}, fmt.Errorf("%w: rule %q: %w", blockdev.ErrInvalid, text, err)
		}
	}
	return r, nil
}

func (r *Rule) parseField(f string) (err error) {
	key, value, ok := strings.Cut(f, "=")
	if !ok {
		if f == "hang" {
			r.Hang = true
			return nil
		}
		r.Range, err = parseRange(f)
		return err
	}
	switch key {
	case "after":
		r.After, err = parseCount(value)
	case "every":
		r.Every, err = parseCount(value)
	case "count":
		r.Count, err = parseCount(value)
	case "short":
		r.Short, err = parseCount(value)
	case "torn":
		r.Torn, err = parseCount(value)
	case "seed":
		r.Seed, err = strconv.ParseUint(value, 10, 64)
	case "delay":
		if r.Delay, err = time.ParseDuration(value); err == nil && r.Delay < 0 {
			err = fmt.Errorf("a delay of %v", r.Delay)
		}
	case "errno":
		r.Errno, err = parseErrno(value)
	case "p":
		if r.P, err = strconv.ParseFloat(value, 64); err == nil && !(r.P > 0 && r.P <= 1) {
			err = fmt.Errorf("p=%s is no probability above 0", value)
		}
	default:
		err = fmt.Errorf("unknown word %q", f)
	}
	return err
}

func parseCount(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	return int(n), err
}

func parseRange(text string) (blockdev.Range, error) {
	a, b, ok := strings.Cut(text, "+")
	start, err1 := strconv.ParseUint(a, 10, 64)
	count, err2 := strconv.ParseUint(b, 10, 64)
	limit := uint64(blockdev.MaxSector)
	if !ok || err1 != nil || err2 != nil || count == 0 || count > limit || start > limit-count {
		return blockdev.Range{}, fmt.Errorf("%q is no range START+COUNT", text)
	}
	return blockdev.Range{Start: blockdev.Sector(start), Count: blockdev.Sector(count)}, nil
}

// ParseRules reads rules separated by line ends or semicolons. Empty lines and
// what follows a # are skipped.
func ParseRules(text string) ([]Rule, error) {
	var rules []Rule
	for line := range strings.SplitSeq(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		for one := range strings.SplitSeq(line, ";") {
			if strings.TrimSpace(one) == "" {
				continue
			}
			r, err := ParseRule(one)
			if err != nil {
				return nil, err
			}
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// touches says whether a request meets the rule's operations and range.
func (r *Rule) touches(op Op, off, n int64) bool {
	if r.Ops&op == 0 {
		return false
	}
	if r.Range.Count == 0 || op == OpFlush {
		return true
	}
	return off < r.Range.End().Bytes() && off+n > r.Range.Start.Bytes()
}
