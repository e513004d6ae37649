package mirror

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// placeLog is the number of the place beside the log; the others are those of
// the legs.
const placeLog = -1

// keeper keeps the leg record durable: on the places beside the legs that are
// not dropped and beside the log. Places are written one after the other.
type keeper struct {
	steps steps
	setup Setup
	hooks Hooks

	// mu makes changes follow each other. It is held during the I/O of the
	// places, and taken before mirror.mu.
	mu  sync.Mutex
	rec Record // as it is durable; guarded by mu
	top uint64 // the highest generation that was tried; guarded by mu
	// tried are generations that were written nowhere as far as anybody knows: if
	// one is found later it is no history of its own. Guarded by mu.
	tried []PastRecord
}

// write writes the copy of one place.
func (k *keeper) write(r Record, place int) error {
	s := Sidecar{Kind: KindLog, Self: -1, Record: r}
	path := k.setup.Log.Path
	if place != placeLog {
		s.Kind, s.Self = KindLeg, r.Legs[place].ID
		path = k.setup.Legs[place].Path
	}
	return writeSidecar(k.steps, path, s, k.hooks)
}

// places are those of the legs that are not dropped and of the log, in the order
// of writing: the legs that are in come first, as the first copy of a new mirror
// must not call a leg in that has none.
func places(r Record) (list []int) {
	for _, state := range []LegState{LegIn, LegFilling} {
		for i, l := range r.Legs {
			if !l.NoCopy && l.State == state {
				list = append(list, i)
			}
		}
	}
	if !r.Log.NoCopy {
		list = append(list, placeLog)
	}
	return list
}

// everPlaced tells whether the mirror has any place at all. One without keeps
// its record in memory.
func everPlaced(s Setup) bool {
	return s.Log.Disk && s.Log.File || slices.ContainsFunc(s.Legs, func(m Member) bool { return m.File })
}

// commitLocked makes a record durable everywhere. A place that cannot be written
// is given up: its leg is dropped, in another generation. What it gives is the
// record as it is then. With no place left nothing has changed, and that is an
// error. The caller holds k.mu.
func (k *keeper) commitLocked(n Record, now time.Time) (Record, error) {
	for _, p := range k.tried {
		n.addPast(p)
	}
	for {
		n.Generation = max(n.Generation, k.top+1)
		k.top = n.Generation
		var bad []int
		var why error
		list := places(n)
		errs := make(map[int]error, len(list))
		for _, p := range list {
			if err := k.write(n, p); err != nil {
				bad = append(bad, p)
				errs[p], why = err, err
			}
		}
		switch {
		case len(bad) == 0 && (len(list) > 0 || !everPlaced(k.setup)):
			k.rec = n
			return n, nil
		case len(bad) == len(list):
			if k.lastResort(n) {
				k.rec = n
				return n, nil
			}
			k.tried = append(k.tried, PastRecord{n.Generation, n.Tag})
			return k.rec, fmt.Errorf("%w: mirror: the leg record can be written nowhere: %v", blockdev.ErrIO, why)
		}
		n = giveUp(n.next(now), bad, errs)
	}
}

// giveUp drops the legs whose places could not be written, the last one that is
// in excepted: its place is not counted on any more.
func giveUp(n Record, bad []int, errs map[int]error) Record {
	at := n.Changed
	slices.Sort(bad)
	for _, p := range slices.Backward(bad) {
		why := fmt.Sprintf("its leg record could not be written: %v", errs[p])
		switch {
		case p == placeLog:
			n.Log.NoCopy = true
		case n.Legs[p].State == LegIn && n.in() == 1:
			n.Legs[p].NoCopy, n.Legs[p].Why = true, why
		default:
			n.Legs[p].State, n.Legs[p].Why, n.Legs[p].Since = LegDropped, why, &at
		}
	}
	return n
}

// in counts the legs that are.
func (r Record) in() (n int) {
	for _, l := range r.Legs {
		if l.State == LegIn {
			n++
		}
	}
	return n
}

// lastResort writes beside the legs that are dropped: better there than nowhere.
func (k *keeper) lastResort(n Record) bool {
	ok := false
	for i, l := range n.Legs {
		if l.State == LegDropped && k.setup.Legs[i].File && k.setup.Legs[i].Missing == nil {
			ok = k.write(n, i) == nil || ok
		}
	}
	return ok
}
