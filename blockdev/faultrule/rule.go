package faultrule

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Span is a place on a device, in bytes. Its length is above 0.
type Span struct{ Off, Len int64 }

// End is the first byte after the span.
func (s Span) End() int64 { return s.Off + s.Len }

// Rule says which requests go wrong, and how; see the package comment. The zero
// value of a field is that the word is not there.
type Rule struct {
	Ops    Op
	Places []Span // in order, not touching each other; none is the whole device

	After, Nth, Every, Count uint64
	P                        float64
	Seed                     uint64

	Errno   unix.Errno
	Delay   Delay
	Hang    bool
	Drop    bool
	Keep    bool // drop=until-flush
	Tear    int  // 512 or 4096
	Corrupt Flips
}

// Delay is a time to wait, or a distribution of such times.
type Delay struct {
	Kind     DelayKind
	Min, Max time.Duration // of Fixed both are the time
	Mean     time.Duration // of Normal, with Dev
	Dev      time.Duration
}

// DelayKind is the shape of a distribution.
type DelayKind uint8

// The shapes.
const (
	NoDelay DelayKind = iota
	Fixed
	Uniform
	Normal
)

// Flips are changes to data: N bits are flipped, or N bytes get another value.
type Flips struct {
	N     int // 0: nothing is changed
	Bytes bool
}

// errnos are the errors a rule can give: those that reach the caller of a
// device file as they are.
var errnos = []struct {
	errno unix.Errno
	name  string
}{
	{unix.EIO, "EIO"}, {unix.ENOSPC, "ENOSPC"}, {unix.EROFS, "EROFS"}, {unix.EFBIG, "EFBIG"}, {unix.EBUSY, "EBUSY"},
	{unix.EINVAL, "EINVAL"}, {unix.EOPNOTSUPP, "EOPNOTSUPP"}, {unix.ENODEV, "ENODEV"}, {unix.ENXIO, "ENXIO"},
	{unix.EACCES, "EACCES"}, {unix.EINTR, "EINTR"}, {unix.ETIMEDOUT, "ETIMEDOUT"},
}

// Errnos are the names of the errors that a rule can give.
func Errnos() []string {
	var names []string
	for _, e := range errnos {
		names = append(names, e.name)
	}
	return names
}

func errnoName(e unix.Errno) string {
	for _, k := range errnos {
		if k.errno == e {
			return k.name
		}
	}
	return strconv.Itoa(int(e))
}

// Random says whether the rule leaves something to chance, so that its seed
// counts.
func (r Rule) Random() bool {
	return r.P != 0 || r.Delay.Kind == Uniform || r.Delay.Kind == Normal || r.Tear != 0 || r.Corrupt.N != 0
}

// decides says whether a hit settles what becomes of a request.
func (r *Rule) decides() bool { return r.Errno != 0 || r.Drop || r.Keep || r.Tear != 0 }

// touches says whether a request is one of the operations and lies, at least in
// part, in the places of the rule.
func (r *Rule) touches(op Op, off, n int64) bool {
	if r.Ops&op == 0 {
		return false
	}
	if len(r.Places) == 0 || op == Flush {
		return true
	}
	i := sort.Search(len(r.Places), func(i int) bool { return r.Places[i].End() > off })
	return i < len(r.Places) && r.Places[i].Off < off+n
}

// check refuses words that do not go together.
func (r *Rule) check() error {
	ways := 0
	for _, set := range []bool{r.Nth != 0, r.Every != 0, r.P != 0} {
		if set {
			ways++
		}
	}
	fates := 0
	for _, set := range []bool{r.Drop, r.Keep, r.Tear != 0} {
		if set {
			fates++
		}
	}
	switch {
	case ways > 1:
		return fmt.Errorf("found more than one of nth, every and p; wanted one: each says which matches are hit")
	case r.Nth != 0 && (r.After != 0 || r.Count != 0):
		return fmt.Errorf("found nth together with after or count; wanted nth alone: it is a single match")
	case fates > 1:
		return fmt.Errorf("found more than one of drop, drop=until-flush and tear; wanted one")
	case fates == 0 && r.Errno == 0 && r.Delay.Kind == NoDelay && !r.Hang && r.Corrupt.N == 0:
		return fmt.Errorf("found no action; wanted one of errno=, delay=, hang, drop, tear= and corrupt")
	case r.Errno != 0 && (r.Drop || r.Keep):
		return fmt.Errorf("found errno together with drop; wanted one: what is dropped is answered as done")
	case r.Drop && r.Ops&Read != 0:
		return fmt.Errorf("found drop for %s; wanted write, flush or discard: a read cannot be answered without data", r.Ops)
	case r.Keep && r.Ops != Write:
		return fmt.Errorf("found drop=until-flush for %s; wanted write alone", r.Ops)
	case r.Tear != 0 && r.Ops != Write:
		return fmt.Errorf("found tear for %s; wanted write alone", r.Ops)
	case r.Corrupt.N != 0 && r.Ops&^(Read|Write) != 0:
		return fmt.Errorf("found corrupt for %s; wanted read, write or both: other requests have no data", r.Ops)
	case r.Corrupt.N != 0 && r.Drop:
		return fmt.Errorf("found corrupt together with drop; wanted one: what is dropped has no data")
	case r.Errno != 0 && r.Corrupt.N != 0 && r.Tear == 0:
		return fmt.Errorf("found corrupt together with errno; wanted one: a request that fails has no data")
	}
	return nil
}

// String is the text that [Parse] reads.
func (r Rule) String() string {
	words := []string{r.Ops.String()}
	add := func(ok bool, format string, args ...any) {
		if ok {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(len(r.Places) > 0, "%s", placesText(r.Places))
	add(r.After != 0, "after=%d", r.After)
	add(r.Nth != 0, "nth=%d", r.Nth)
	add(r.Every != 0, "every=%d", r.Every)
	add(r.P != 0, "p=%s", strconv.FormatFloat(r.P, 'g', -1, 64))
	add(r.Count != 0, "count=%d", r.Count)
	add(r.Seed != 0, "seed=%d", r.Seed)
	add(r.Delay.Kind != NoDelay, "delay=%s", r.Delay)
	add(r.Hang, "hang")
	add(r.Corrupt.N != 0, "corrupt=%s", r.Corrupt)
	add(r.Drop, "drop")
	add(r.Keep, "drop=until-flush")
	add(r.Tear != 0, "tear=%d", r.Tear)
	add(r.Errno != 0, "errno=%s", errnoName(r.Errno))
	return strings.Join(words, " ")
}

// placesText is the word of the places, in sectors where all are whole ones.
func placesText(places []Span) string {
	word, unit := "sectors", int64(512)
	for _, s := range places {
		if s.Off%512 != 0 || s.Len%512 != 0 {
			word, unit = "bytes", 1
		}
	}
	texts := make([]string, len(places))
	for i, s := range places {
		texts[i] = fmt.Sprintf("%d+%d", s.Off/unit, s.Len/unit)
	}
	return word + "=" + strings.Join(texts, ",")
}

// String is the value of the word delay.
func (d Delay) String() string {
	switch d.Kind {
	case Fixed:
		return d.Min.String()
	case Uniform:
		return d.Min.String() + ".." + d.Max.String()
	case Normal:
		return fmt.Sprintf("normal:%v:%v:%v:%v", d.Mean, d.Dev, d.Min, d.Max)
	}
	return ""
}

// String is the value of the word corrupt.
func (f Flips) String() string {
	if f.Bytes {
		return fmt.Sprintf("bytes:%d", f.N)
	}
	return fmt.Sprintf("bits:%d", f.N)
}

// merge puts places in order and joins those that touch each other.
func merge(places []Span) []Span {
	sort.Slice(places, func(i, j int) bool { return places[i].Off < places[j].Off })
	var out []Span
	for _, s := range places {
		if n := len(out); n > 0 && s.Off <= out[n-1].End() {
			out[n-1].Len = max(out[n-1].End(), s.End()) - out[n-1].Off
			continue
		}
		out = append(out, s)
	}
	return out
}

// maxEnd is the end of the largest device.
const maxEnd = math.MaxInt64
