package mirror

import (
	"math"
	"strconv"
	"strings"
)

// rateUnits are the suffixes of a rate, powers of 1024.
const rateUnits = "kmgt"

// setThrottle takes "50", a percentage, or "10m/s", bytes a second, and tells
// whether it is one of them. One replaces the other.
func (p *Policies) setThrottle(text string) bool {
	if rate, ok := strings.CutSuffix(text, "/s"); ok {
		n, ok := parseRate(rate)
		if ok {
			p.Throttle, p.Rate = 100, n
		}
		return ok
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(text, "%"), 10, 31)
	if err != nil || n > 100 {
		return false
	}
	p.Throttle, p.Rate = int(n), 0
	return true
}

// parseRate reads a number of bytes, at least 1, with one of the suffixes
// k m g t or none.
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

// formatRate is the inverse, with the largest suffix that fits.
func formatRate(n int64) string {
	unit := ""
	for i := 0; i < len(rateUnits) && n%1024 == 0; i++ {
		n, unit = n/1024, rateUnits[i:i+1]
	}
	return strconv.FormatInt(n, 10) + unit + "/s"
}
