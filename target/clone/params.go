package clone

import (
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

const usage = "<metadata device> <destination> <source> <region sectors> " +
	"[<#features> [no_hydration] [no_discard_passdown] [<#core args> [hydration_threshold <regions>] [hydration_batch_size <regions>]]]"

// Limits of a region, in sectors (MIN_REGION_SIZE, MAX_REGION_SIZE) and of the
// number of regions (kernel: dm-clone-target.c).
const (
	minRegion  = 8
	maxRegion  = 2097152
	maxRegions = 1 << 31
)

const (
	defaultThreshold = 1
	defaultBatch     = 1
)

// params are the arguments of a clone line.
type params struct {
	meta, dest, source string
	rest               []string // from the region size on, as given
	region             blockdev.Sector
	regions            uint64

	noHydration, noPassdown bool
	threshold, batch        uint32
}

// parseParams reads a line in the order of the kernel (kernel: clone_ctr). Words
// after the core arguments are ignored, as there.
func parseParams(words []string, length blockdev.Sector) (params, error) {
	p := params{threshold: defaultThreshold, batch: defaultBatch}
	if len(words) < 4 {
		return p, &target.ArgError{Want: fmt.Sprintf("%d arguments found, expected at least 4: %s", len(words), usage)}
	}
	p.rest = append(p.rest, words[3:]...)
	a := target.NewArgs(words)
	p.meta, _ = a.Word("a metadata device")
	p.dest, _ = a.Word("a destination")
	p.source, _ = a.Word("a source")
	if err := p.parseRegion(a, length); err != nil {
		return p, err
	}
	if a.Left() == 0 {
		return p, nil
	}
	if err := p.parseFeatures(a); err != nil || a.Left() == 0 {
		return p, err
	}
	return p, p.parseCore(a)
}

func (p *params) parseRegion(a *target.Args, length blockdev.Sector) error {
	want := fmt.Sprintf("a region size in sectors, a power of two from %d to %d", minRegion, maxRegion)
	n, err := a.Number(want, maxRegion)
	if err != nil {
		return err
	}
	if n < minRegion || bits.OnesCount64(n) != 1 {
		return a.Bad(want)
	}
	p.region = blockdev.Sector(n)
	p.regions = (uint64(length) + n - 1) / n
	if p.regions > maxRegions {
		return a.Bad(fmt.Sprintf("a region size with which the segment has at most %d regions, not %d", uint64(maxRegions), p.regions))
	}
	return nil
}

func (p *params) parseFeatures(a *target.Args) error {
	n, err := group(a, "features", 2)
	if err != nil {
		return err
	}
	for range n {
		const want = "no_hydration or no_discard_passdown"
		w, _ := a.Word(want)
		switch strings.ToLower(w) {
		case "no_hydration":
			p.noHydration = true
		case "no_discard_passdown":
			p.noPassdown = true
		default:
			return a.Bad(want)
		}
	}
	return nil
}

func (p *params) parseCore(a *target.Args) error {
	n, err := group(a, "core arguments", 4)
	if err != nil {
		return err
	}
	if n%2 != 0 {
		return a.Bad("an even number of core arguments, 0 to 4")
	}
	for range n / 2 {
		const want = "hydration_threshold or hydration_batch_size"
		w, _ := a.Word(want)
		to := &p.threshold
		switch strings.ToLower(w) {
		case "hydration_threshold":
		case "hydration_batch_size":
			to = &p.batch
		default:
			return a.Bad(want)
		}
		v, err := a.Number("a number of regions", math.MaxUint32)
		if err != nil {
			return err
		}
		*to = uint32(v)
	}
	return nil
}

// group takes the number of words that follow; there are that many.
func group(a *target.Args, what string, limit uint64) (uint64, error) {
	n, err := a.Number(fmt.Sprintf("a number of %s, 0 to %d", what, limit), limit)
	if err != nil {
		return 0, err
	}
	if n > uint64(a.Left()) {
		return 0, a.Bad(fmt.Sprintf("at most %d, as many words as follow", a.Left()))
	}
	return n, nil
}
