package snapshot

import (
	"fmt"
	"math"
	"strings"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Usage strings of the targets.
const (
	usageSnapshot = "<origin> <COW> <P|PO|N> <chunk sectors> [<#features> [discard_zeroes_cow] [discard_passdown_origin]]"
	usageOrigin   = "<origin>"
)

// params are the arguments of a snapshot line (kernel: snapshot_ctr,
// dm_exception_store_create).
type params struct {
	origin, cow string
	persistent  bool            // store P or PO, else N
	overflow    bool            // store PO: a full COW keeps the snapshot readable
	chunk       blockdev.Sector // 0: default

	discardZeroes   bool
	discardPassdown bool

	// damaged is a feature of our own, taken in read-only tables only, where
	// the kernel knows no third one: the store is served as far as it can be
	// read, and never written.
	damaged bool
}

// feature is a feature of a snapshot line.
type feature struct {
	name string
	on   bool
}

// features lists the features in the order in which they are printed.
func (p params) features() []feature {
	return []feature{
		{"discard_zeroes_cow", p.discardZeroes},
		{"discard_passdown_origin", p.discardPassdown},
		{"damaged", p.damaged},
	}
}

// parseParams reads what does not depend on the devices. The kernel looks at
// the features before it opens the devices, and at the store after.
func parseParams(words []string, readOnly bool) (params, error) {
	var p params
	if len(words) < 4 {
		return p, &target.ArgError{Want: fmt.Sprintf("%d arguments found, expected 4 or more: %s", len(words), usageSnapshot)}
	}
	p.origin, p.cow = words[0], words[1]
	return p, p.parseFeatures(words, readOnly)
}

// skip is a cursor behind the first n words.
func skip(words []string, n int) *target.Args {
	a := target.NewArgs(words)
	for range n {
		_, _ = a.Word("")
	}
	return a
}

func (p *params) parseFeatures(words []string, readOnly bool) error {
	if len(words) == 4 {
		return nil
	}
	a := skip(words, 4)
	most := uint64(2)
	if readOnly {
		most = 3
	}
	n, err := a.Number(fmt.Sprintf("a number of features, at most %d", most), most)
	if err != nil {
		return err
	}
	if int(n) > a.Left() {
		return a.Bad(fmt.Sprintf("at most %d, as many features as words follow", a.Left()))
	}
	for range n {
		w, err := a.Word("a feature")
		if err != nil {
			return err
		}
		switch strings.ToLower(w) {
		case "discard_zeroes_cow":
			p.discardZeroes = true
		case "discard_passdown_origin":
			p.discardPassdown = true
		case "damaged":
			if readOnly {
				p.damaged = true
				break
			}
			return a.Bad("discard_zeroes_cow or discard_passdown_origin (damaged only in a read-only table)")
		default:
			return a.Bad("discard_zeroes_cow or discard_passdown_origin")
		}
	}
	if p.discardPassdown && !p.discardZeroes {
		return a.Bad("discard_zeroes_cow too, which discard_passdown_origin needs")
	}
	return nil
}

const wantStore = "a store: P, PO or N"

// parseStore reads the store and the chunk size. blocks are the logical block
// sizes of origin and COW device, in bytes. After a restart a store N may have no
// chunk size, as it has in the record of a table that was about to take over
// from another: it comes back invalid.
func (p *params) parseStore(words []string, blocks [2]int, restoring bool) error {
	a := skip(words, 2)
	w, err := a.Word(wantStore)
	if err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(w, "N"), strings.HasPrefix(w, "n"): // the kernel ignores what follows
	case strings.HasPrefix(w, "P"), strings.HasPrefix(w, "p"):
		p.persistent = true
		if len(w) > 1 { // only the first letter of the options counts
			if w[1] != 'O' && w[1] != 'o' {
				return a.Bad(wantStore)
			}
			p.overflow = true
		}
	default:
		return a.Bad(wantStore)
	}
	n, err := a.Number("a chunk size in sectors", math.MaxUint32)
	if err != nil {
		return err
	}
	p.chunk = blockdev.Sector(n)
	if n == 0 {
		if !p.persistent && !restoring {
			return a.Bad("a chunk size: the store N has no default")
		}
		return nil
	}
	if err := checkChunk(n, blocks); err != nil {
		return a.Bad(fmt.Sprintf("a chunk size (%v)", err))
	}
	return nil
}

// checkChunk applies all rules for a chunk size.
func checkChunk(n uint64, blocks [2]int) error {
	if err := checkChunkSize(n); err != nil {
		return err
	}
	for _, b := range blocks {
		if n%uint64(b>>blockdev.SectorShift) != 0 {
			return fmt.Errorf("%w: chunk size %d is not a multiple of the block size of a device, %d bytes", blockdev.ErrInvalid, n, b)
		}
	}
	return nil
}

// store is the word for the store in a table line.
func (p params) store() string {
	switch {
	case !p.persistent:
		return "N"
	case p.overflow:
		return "PO"
	}
	return "P"
}

// String prints the arguments with the devices and the chunk size as given:
// the inverse of parsing.
func (p params) String() string { return p.line(target.Quote(p.origin), target.Quote(p.cow), p.chunk) }
