package snapshot

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Listing is one page of the chunks of a snapshot that have an exception: those
// that differ from the origin, as it was written since or the snapshot was.
type Listing struct {
	Chunk blockdev.Sector `json:"chunk_sectors"`
	Size  blockdev.Sector `json:"size_sectors"` // of the snapshot
	// Runs are the first chunk and the number of chunks of each run, ascending.
	Runs [][2]uint64 `json:"runs"`
	// Next asks for the page behind this one; empty: this is the last.
	Next string `json:"next,omitempty"`
}

// listingRuns is the number of runs on a page.
const listingRuns = 4096

// errListing is the answer to a cursor that does not fit.
var errListing = fmt.Errorf("%w: the store is not the one that the listing began with: begin again", blockdev.ErrInvalid)

// listing gives the page at the cursor, the first one without a cursor, with most
// runs at most. All pages
// are of the instant of the first: what was answered before it is in them, what
// began after it is not, and what was under way may be. That is what the cursor
// keeps: which store it is, the next chunk, and the first COW chunk that was not
// allotted then.
func (s *snapshot) listing(cursor string, most int) (*Listing, error) {
	c := s.core.Load()
	if c == nil {
		return nil, fmt.Errorf("%w: the snapshot waits for a handover", blockdev.ErrBusy)
	}
	if s.health.invalid.Load() {
		return nil, ErrInvalidSnapshot
	}
	var at, below Chunk
	if cursor == "" {
		below = s.allotted(c)
	} else {
		var serial uint64
		if n, err := fmt.Sscanf(cursor, "%x-%x-%x", &serial, &at, &below); n != 3 || err != nil {
			return nil, fmt.Errorf("%w: %q is no cursor of a listing", blockdev.ErrInvalid, cursor)
		}
		if serial != c.serial {
			return nil, errListing
		}
	}
	l := &Listing{Chunk: c.chunk, Size: s.env.Length, Runs: [][2]uint64{}}
	end := c.chunksOver(s.size())
	for {
		first, n, ok := c.table.next(at, end, below)
		if !ok {
			break
		}
		if len(l.Runs) == most {
			l.Next = fmt.Sprintf("%x-%x-%x", c.serial, uint64(first), uint64(below))
			break
		}
		l.Runs = append(l.Runs, [2]uint64{uint64(first), n})
		at = first + Chunk(n)
	}
	if s.health.invalid.Load() { // an origin write may have gone on without an exception
		return nil, ErrInvalidSnapshot
	}
	return l, nil
}

// allotted is the COW chunk behind all that are allotted.
func (s *snapshot) allotted(c *core) Chunk {
	if s.params.damaged { // some exceptions point to nowhere
		return math.MaxUint64
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all, _ := c.store.used()
	return Chunk(all)
}

// listingText is a page as the message answers it.
func (s *snapshot) listingText(words []string) (string, error) {
	cursor := ""
	switch len(words) {
	case 0:
	case 1:
		cursor = words[0]
	default:
		return "", fmt.Errorf("%w: the message \"exceptions\" takes one cursor at most", blockdev.ErrInvalid)
	}
	l, err := s.listing(cursor, listingRuns)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(l)
	return string(b), err
}

// newSerial tells one set of exceptions from another.
func newSerial() uint64 { return rand.Uint64() }
