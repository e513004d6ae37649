package mirror

import "time"

// meter tells how fast something went in the last seconds. The time is an input.
type meter struct {
	samples [meterSamples]sample // a ring
	n       int                  // taken so far
}

type sample struct {
	at    time.Time
	bytes int64 // since the beginning
}

const (
	meterSamples = 16
	meterStep    = 500 * time.Millisecond // between samples
	meterSpan    = 5 * time.Second        // what a rate looks back at
)

func (m *meter) at(back int) *sample { return &m.samples[(m.n-1-back)%meterSamples] }

// add notes how far the work has come. Samples that come close upon each other
// are one.
func (m *meter) add(now time.Time, bytes int64) {
	if m.n > 1 && now.Sub(m.at(1).at) < meterStep {
		*m.at(0) = sample{now, bytes}
		return
	}
	m.n++
	*m.at(0) = sample{now, bytes}
}

// rate is bytes a second up to now: over the last five seconds, or over less as
// long as the work is younger.
func (m *meter) rate(now time.Time) int64 {
	if m.n < 2 {
		return 0
	}
	last, first := m.at(0), m.at(1)
	for k := 2; k < min(m.n, meterSamples) && now.Sub(first.at) < meterSpan; k++ {
		first = m.at(k)
	}
	d := now.Sub(first.at)
	if d <= 0 || now.Sub(last.at) > meterSpan || last.bytes <= first.bytes {
		return 0
	}
	return int64(float64(last.bytes-first.bytes) / d.Seconds())
}
