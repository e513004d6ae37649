package snapshot

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Overflow says what becomes of a write for which the COW device has no room.
type Overflow string

// What there is to choose from.
const (
	OverflowTable      Overflow = ""           // what the table says: readonly with PO, else invalidate
	OverflowGrow       Overflow = "grow"       // the COW file is made longer, up to a limit
	OverflowPause      Overflow = "pause"      // the write waits
	OverflowReadonly   Overflow = "readonly"   // the snapshot takes no more writes; an origin write makes it invalid
	OverflowInvalidate Overflow = "invalidate" // the snapshot becomes invalid
)

// Policies are what a table line cannot say. They are kept in the sidecar of the
// COW file.
type Policies struct {
	Overflow   Overflow
	AtLimit    Overflow      // what follows where growing ends; "": readonly, or invalidate with the store N
	Limit      int64         // bytes at which growing ends; 0: where the snapshot can never overflow
	Reserve    int64         // most bytes taken beforehand; 0: none; below 0: the default
	PauseTime  time.Duration // after which a pause ends the snapshot; 0: never
	Commit     string        // CommitLazy, CommitStrict; "": lazy for snapshots that a verb made
	Thresholds []int         // percents at which an event tells how full it is, ascending
}

const (
	defaultReserve   = 16 << 20
	defaultPauseTime = 10 * time.Minute
)

var defaultThresholds = []int{50, 75, 90}

func defaultPolicies() Policies {
	return Policies{Reserve: -1, PauseTime: defaultPauseTime, Thresholds: defaultThresholds}
}

// chosen tells whether somebody said what an overflow means: then dmfuse does
// more than the kernel would.
func (p *Policies) chosen() bool { return p.Overflow != OverflowTable }

// reserve is the most that is taken beforehand.
func (p *Policies) reserve() int64 {
	switch {
	case p.Reserve >= 0:
		return p.Reserve
	case p.chosen():
		return defaultReserve
	}
	return 0
}

// end is what becomes of a write when the COW device cannot be given more room.
func (p *Policies) end(t params) Overflow {
	o := p.Overflow
	if o == OverflowGrow {
		if o = p.AtLimit; o == OverflowTable {
			o = OverflowReadonly
		}
	}
	switch {
	case o == OverflowTable && t.overflow:
		return OverflowReadonly
	case o == OverflowTable, o == OverflowReadonly && !t.persistent:
		return OverflowInvalidate
	}
	return o
}

// policyKeys are the keys of messages and of the sidecar, in the order of
// printing.
var policyKeys = [...]string{"overflow", "at-limit", "limit", "reserve", "pause-time", "thresholds", "commit"}

// text prints the policies as words KEY=VALUE, with what the table says where
// nothing was chosen.
func (p *Policies) text(t params) string {
	words := make([]string, len(policyKeys))
	for i, k := range policyKeys {
		words[i] = k + "=" + p.get(k, t)
	}
	return strings.Join(words, " ")
}

func (p *Policies) get(key string, t params) string {
	switch key {
	case "overflow":
		if p.Overflow == OverflowGrow {
			return string(OverflowGrow)
		}
		return string(p.end(t))
	case "at-limit":
		q := *p
		q.Overflow = OverflowGrow
		return string(q.end(t))
	case "limit":
		if p.Limit == 0 {
			return "none"
		}
		return formatBytes(p.Limit)
	case "reserve":
		return formatBytes(p.reserve())
	case "pause-time":
		return p.PauseTime.String()
	case "commit":
		return cmp.Or(p.Commit, commitDefault)
	}
	if len(p.Thresholds) == 0 {
		return "none"
	}
	words := make([]string, len(p.Thresholds))
	for i, n := range p.Thresholds {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}

// set changes one policy.
func (p *Policies) set(key, value string, t params) error {
	want := ""
	switch o := Overflow(value); key {
	case "overflow", "at-limit":
		ends := o == OverflowPause || o == OverflowReadonly || o == OverflowInvalidate
		switch {
		case o == OverflowReadonly && !t.persistent:
			want = "pause or invalidate: a store N that is full is lost"
		case key == "overflow" && (ends || o == OverflowGrow):
			p.Overflow = o
		case key == "overflow":
			want = "grow, pause, readonly or invalidate"
		case ends:
			p.AtLimit = o
		default:
			want = "pause, readonly or invalidate"
		}
	case "limit":
		n, ok := parseBytes(value)
		if value == "none" {
			n, ok = 0, true
		}
		if p.Limit = n; !ok {
			want = "a size like 10g, or none"
		}
	case "reserve":
		n, ok := parseBytes(value)
		if p.Reserve = n; !ok {
			want = "a size like 16m, or 0 for none"
		}
	case "pause-time":
		d, err := time.ParseDuration(value)
		if p.PauseTime = d; err != nil || d < 0 {
			want = "a time like 90s, or 0 for no end"
		}
	case "thresholds":
		var ok bool
		if p.Thresholds, ok = parseThresholds(value); !ok {
			want = "percents from 1 to 100 joined by commas, or none"
		}
	case "commit":
		switch p.Commit = value; value {
		case CommitLazy, CommitStrict:
		case commitDefault:
			p.Commit = ""
		default:
			want = "lazy, strict or default"
		}
	default:
		return fmt.Errorf("%w: unknown policy %q: expected one of %s", blockdev.ErrInvalid, key, strings.Join(policyKeys[:], ", "))
	}
	if want != "" {
		return fmt.Errorf("%w: policy %s is %q: expected %s", blockdev.ErrInvalid, key, value, want)
	}
	return nil
}

// change changes all of them or none.
func (p Policies) change(words []string, t params) (Policies, map[string]string, error) {
	set := make(map[string]string, len(words))
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return p, nil, fmt.Errorf("%w: snapshot: %q is no KEY=VALUE", blockdev.ErrInvalid, w)
		}
		if err := p.set(k, v, t); err != nil {
			return p, nil, err
		}
		set[k] = v
	}
	return p, set, nil
}

// ParsePolicies judges words KEY=VALUE for a snapshot with the store P, PO or N,
// and returns what its sidecar is to hold.
func ParsePolicies(words []string, store string) (map[string]string, error) {
	t := params{persistent: store != "N", overflow: store == "PO"}
	_, set, err := defaultPolicies().change(words, t)
	return set, err
}

func parseThresholds(text string) ([]int, bool) {
	if text == "none" {
		return nil, true
	}
	var list []int
	for w := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSuffix(w, "%"))
		if err != nil || n < 1 || n > 100 {
			return nil, false
		}
		list = append(list, n)
	}
	slices.Sort(list)
	return slices.Compact(list), true
}

// sizeUnits are the suffixes of a size, powers of 1024.
const sizeUnits = "kmgt"

// parseBytes reads a number of bytes with one of the suffixes k m g t or none.
func parseBytes(text string) (int64, bool) {
	shift := 0
	if n := len(text); n > 0 {
		if i := strings.IndexByte(sizeUnits, text[n-1]|0x20); i >= 0 {
			text, shift = text[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, false
	}
	return int64(n) << shift, true
}

// formatBytes is the inverse, with the largest suffix that fits.
func formatBytes(n int64) string {
	unit := ""
	for i := 0; i < len(sizeUnits) && n > 0 && n%1024 == 0; i++ {
		n, unit = n/1024, sizeUnits[i:i+1]
	}
	return strconv.FormatInt(n, 10) + unit
}
