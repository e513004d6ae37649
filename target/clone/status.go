package clone

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Status is the text of the kernel (kernel: clone_status). The info form commits
// nothing: the contract has it wait for no I/O.
func (c *clone) Status(form target.StatusForm) string {
	if form == target.StatusTable {
		words := []string{target.DeviceWord(c.meta.dev), target.DeviceWord(c.dest), target.DeviceWord(c.source)}
		for _, w := range c.params.rest {
			words = append(words, target.Quote(w))
		}
		return strings.Join(words, " ")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mode == modeFail {
		return "Fail"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %d/%d %d %d/%d %d", metaBlock/blockdev.SectorSize, metaBlocks(c.meta.regions), c.meta.dev.Size()/metaBlock,
		uint64(c.params.region), c.bits.set.Load(), c.params.regions, c.hydratingLocked())
	var flags []string
	if !c.hyd.enabled {
		flags = append(flags, "no_hydration")
	}
	if c.params.noPassdown {
		flags = append(flags, "no_discard_passdown")
	}
	fmt.Fprintf(&b, " %s", strings.Join(append([]string{strconv.Itoa(len(flags))}, flags...), " "))
	fmt.Fprintf(&b, " 4 hydration_threshold %d hydration_batch_size %d %v", c.hyd.threshold, c.hyd.batch, c.mode)
	return b.String()
}

// hydratingLocked is how many regions are being copied.
func (c *clone) hydratingLocked() (n uint64) {
	for k := range c.claims {
		if k.copying {
			n += k.n
		}
	}
	return n
}

// Message knows those of the kernel (kernel: clone_message).
func (c *clone) Message(_ context.Context, words []string) (string, error) {
	const known = "enable_hydration, disable_hydration, hydration_threshold N or hydration_batch_size N"
	bad := func() (string, error) {
		return "", fmt.Errorf("%w: clone: unknown message %q: expected %s", blockdev.ErrInvalid, strings.Join(words, " "), known)
	}
	if len(words) == 0 || len(words) > 2 {
		return bad()
	}
	verb := strings.ToLower(words[0])
	switch {
	case len(words) == 1 && (verb == "enable_hydration" || verb == "disable_hydration"):
		c.mu.Lock()
		defer c.mu.Unlock()
		c.hyd.enabled = verb == "enable_hydration"
		c.hyd.pos, c.hyd.failed, c.hyd.next = 0, false, time.Time{}
		c.loops.wake(loopHydrate)
		return "", nil
	case len(words) == 2 && (verb == "hydration_threshold" || verb == "hydration_batch_size"):
		a := target.NewArgs(words)
		_, _ = a.Word("")
		n, err := a.Number("a number of regions", 1<<32-1)
		if err != nil {
			return "", err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if verb == "hydration_threshold" {
			c.hyd.threshold = uint32(n)
		} else {
			c.hyd.batch = uint32(n)
		}
		c.loops.wake(loopHydrate)
		return "", nil
	}
	return bad()
}

func (c *clone) doneLocked() int64 {
	return min(int64(c.bits.set.Load())*c.region, c.length)
}

// Jobs is the copy, until all is hydrated.
func (c *clone) Jobs() []target.Job {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.hyd
	if c.bits.full() || c.env.ReadOnly {
		return nil
	}
	j := target.Job{Kind: target.JobCopy, State: target.JobRunning, Done: c.doneLocked(), Total: c.length, Started: h.started}
	switch {
	case c.mode != modeWrite:
		j.State, j.Detail = target.JobFailed, fmt.Sprintf("metadata is %v: %v", c.mode, h.why)
	case !h.on:
		j.State, j.Detail = target.JobPaused, "suspended"
	case !h.enabled:
		j.State, j.Detail = target.JobPaused, "hydration is disabled"
	case h.threshold == 0:
		j.State, j.Detail = target.JobPaused, "hydration_threshold is 0"
	case !h.next.IsZero():
		j.State, j.Detail = target.JobWaiting, fmt.Sprintf("for another try: %v", h.why)
	default:
		j.Rate = c.meter.rate(time.Now(), j.Done)
	}
	return []target.Job{j}
}

// meter knows how fast something grows.
type meter struct {
	at   [2]time.Time // when it was looked at, oldest first
	done [2]int64
}

// add is called from time to time.
func (m *meter) add(now time.Time, done int64) {
	if now.Sub(m.at[1]) < time.Second {
		return
	}
	m.at[0], m.done[0] = m.at[1], m.done[1]
	m.at[1], m.done[1] = now, done
}

// rate is in bytes a second.
func (m *meter) rate(now time.Time, done int64) int64 {
	if m.at[0].IsZero() {
		return 0
	}
	d := now.Sub(m.at[0])
	if d <= 0 {
		return 0
	}
	return int64(float64(done-m.done[0]) / d.Seconds())
}
