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

	discardZeroes   bool // discard_zeroes_cow
	discardPassdown bool // discard_passdown_origin
}

// parseParams reads what does not depend on the devices, in the kernel's
// order: features first, store and chunk size last. The store words are kept
// for parseStore, as the kernel opens the devices before it looks at them.
func parseParams(words []string) (params, error) {
	var p params
	if len(words) < 4 {
		return p, &target.ArgError{Want: fmt.Sprintf("%d arguments found, expected 4 or more: %s", len(words), usageSnapshot)}
	}
	p.origin, p.cow = words[0], words[1]
	return p, p.parseFeatures(words)
}

func (p *params) parseFeatures(words []string) error {
	if len(words) == 4 {
		return nil
	}
	a := target.NewArgs(words)
	for range 4 {
		if _, err := a.Word(""); err != nil {
			return err
		}
	}
	n, err := a.Number("a number of features, at most 2", 2)
	if err != nil {
		return err
	}
	if int(n) > a.Left() {
		return a.Bad(fmt.Sprintf("at most %d features, as many as words follow", a.Left()))
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
		default:
			return a.Bad("discard_zeroes_cow or discard_passdown_origin")
		}
	}
	if p.discardPassdown && !p.discardZeroes {
		return a.Bad("discard_zeroes_cow too, which discard_passdown_origin needs")
	}
	return nil
}

// parseStore reads the store and the chunk size. blocks are the logical block
// sizes of origin and COW, in bytes.
func (p *params) parseStore(words []string, blocks [2]int) error {
	a := target.NewArgs(words)
	for range 2 {
		if _, err := a.Word(""); err != nil {
			return err
		}
	}
	w, err := a.Word("a store: P, PO or N")
	if err != nil {
		return err
	}
	const want = "a store: P, PO or N"
	switch {
	case w == "":
		return a.Bad(want)
	case w[0] == 'N' || w[0] == 'n': // the kernel ignores what follows
	case w[0] == 'P' || w[0] == 'p':
		p.persistent = true
		if len(w) > 1 {
			if w[1] != 'O' && w[1] != 'o' {
				return a.Bad(want)
			}
			p.overflow = true
		}
	default:
		return a.Bad(want)
	}
	n, err := a.Number("a chunk size in sectors", math.MaxUint32)
	if err != nil {
		return err
	}
	p.chunk = blockdev.Sector(n)
	if n == 0 {
		if !p.persistent {
			return a.Bad("a chunk size, which the store N has no default for")
		}
		return nil
	}
	if err := checkChunk(n, blocks); err != nil {
		return a.Bad(err.Error())
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

// String prints the arguments with the chunk size as given: the inverse of
// parsing.
func (p params) String() string { return p.line(p.origin, p.cow, p.chunk) }

// line prints the table line with the names of the devices and the chunk size
// in use.
func (p params) line(origin, cow string, chunk blockdev.Sector) string {
	s := fmt.Sprintf("%s %s %s %d", origin, cow, p.store(), uint64(chunk))
	switch {
	case p.discardZeroes && p.discardPassdown:
		s += " 2 discard_zeroes_cow discard_passdown_origin"
	case p.discardZeroes:
		s += " 1 discard_zeroes_cow"
	}
	return s
}
