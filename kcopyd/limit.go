package kcopyd

import (
	"math"
	"strconv"
	"strings"
)

// Limit is what a [Throttle] lets through, as people write it.
type Limit struct {
	Percent int   // share of the time, 100 for no limit
	Rate    int64 // bytes a second; 0: no limit
}

// NoLimit lets everything through.
var NoLimit = Limit{Percent: 100}

// ParseLimit reads "50", a share in percent, or "10m/s", bytes a second with one
// of the suffixes k m g t or none, and tells whether it is one of them. One
// replaces the other.
func ParseLimit(text string) (Limit, bool) {
	if rate, ok := strings.CutSuffix(text, "/s"); ok {
		n, ok := parseRate(rate)
		return Limit{Percent: 100, Rate: n}, ok
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(text, "%"), 10, 31)
	return Limit{Percent: int(n)}, err == nil && n <= 100
}

// String is the inverse of [ParseLimit], with the largest suffix that fits.
func (l Limit) String() string {
	if l.Rate <= 0 {
		return strconv.Itoa(l.Percent)
	}
	n, unit := l.Rate, ""
	for i := 0; i < len(rateUnits) && n%1024 == 0; i++ {
		n, unit = n/1024, rateUnits[i:i+1]
	}
	return strconv.FormatInt(n, 10) + unit + "/s"
}

const rateUnits = "kmgt"

// parseRate reads a number of bytes, at least 1.
func parseRate(text string) (int64, bool) {
	shift := 0
	if n := len(text); n > 0 {
		if i := strings.IndexByte(rateUnits, text[n-1]|0x20); i >= 0 {
			text, shift = text[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n == 0 || n > math.MaxInt64>>shift {
		return 0, false
	}
	return int64(n) << shift, true
}

// Limit sets share and rate together.
func (t *Throttle) Limit(l Limit) {
	t.Set(l.Percent)
	t.SetRate(l.Rate)
}
