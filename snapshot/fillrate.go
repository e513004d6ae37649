package snapshot

import "time"

// fillRate is how fast chunks are given out, over the last seconds and the last
// minutes. It is guarded by mu of the snapshot.
type fillRate struct {
	at    [rateSamples]time.Time
	n     [rateSamples]uint64 // chunks given out by then
	next  int                 // the oldest sample, or one that is not set
	count int
	last  uint64
}

const (
	rateSpacing = 5 * time.Second
	rateSamples = 61
	rateLong    = (rateSamples - 1) * rateSpacing
	rateShort   = 6 * rateSpacing
)

// note takes down that n chunks are given out now. A sample is taken with the
// first change after rateSpacing, and says what was before it: so all that came
// between two samples came within rateSpacing of the first.
func (r *fillRate) note(now time.Time, n uint64) {
	if r.count == 0 || now.Sub(r.at[r.newest()]) >= rateSpacing {
		r.at[r.next], r.n[r.next] = now, n
		if r.count > 0 {
			r.n[r.next] = r.last
		}
		r.next = (r.next + 1) % rateSamples
		r.count = min(r.count+1, rateSamples)
	}
	r.last = n
}

func (r *fillRate) newest() int { return (r.next + rateSamples - 1) % rateSamples }

// perSecond is the number of chunks a second: the higher of what the last half
// minute and the last five minutes say, so that a forecast is rather too early.
// known is false when it was not watched for a second yet.
func (r *fillRate) perSecond(now time.Time) (rate float64, known bool) {
	if r.count == 0 {
		return 0, false
	}
	oldest := (r.next + rateSamples - r.count) % rateSamples
	if now.Sub(r.at[oldest]) < time.Second {
		return 0, false
	}
	return max(r.over(now, rateShort), r.over(now, rateLong)), true
}

// over is the mean of the time d before now, or of what is known of it.
func (r *fillRate) over(now time.Time, d time.Duration) float64 {
	since, was := now.Add(-d), r.last
	for i := range r.count {
		k := (r.next + rateSamples - 1 - i) % rateSamples
		if !r.at[k].Add(rateSpacing).After(since) {
			break // all that came after this sample came within its spacing
		}
		was = r.n[k]
		if !r.at[k].After(since) {
			break
		}
		if i == r.count-1 {
			since = r.at[k]
		}
	}
	if t := now.Sub(since).Seconds(); t > 0 {
		return float64(r.last-min(was, r.last)) / t
	}
	return 0
}
