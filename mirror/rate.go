package mirror

import "github.com/dmfuse/dmfuse/kcopyd"

// setThrottle takes "50", a percentage, or "10m/s", bytes a second, and tells
// whether it is one of them. One replaces the other.
func (p *Policies) setThrottle(text string) bool {
	l, ok := kcopyd.ParseLimit(text)
	if ok {
		p.Throttle, p.Rate = l.Percent, l.Rate
	}
	return ok
}
