package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// Inspect reads the copies of the leg record beside legs and log and says what
// they mean, and what will happen when the mirror is made: the one way in which
// the target, too, decides. Nothing is written. The error is that of a sidecar
// that is there and cannot be read; what keeps the mirror from being made is in
// [Assembly.Problems].
func Inspect(s Setup) (*Assembly, error) { return inspect(osSteps{}, s, false) }

// Insist makes durable what [Inspect] refuses and a person wants nevertheless:
// absent legs are forgotten, those of another mirror or history are filled, and
// without a leg that has all the newest one counts. Problems that nobody can
// insist on (another shape, a leg that cannot be opened) are its error. No table
// may be at work on the legs. Afterwards Inspect has no problems.
func Insist(s Setup) (*Assembly, error) {
	a, err := inspect(osSteps{}, s, true)
	if err == nil {
		err = a.Err()
	}
	if err != nil {
		return a, err
	}
	if a.Fresh {
		return a, nil
	}
	r, _ := a.record(s, time.Now())
	if s.Log.Disk && !a.Trusted {
		r.Log.Untrusted, r.Log.Why = true, "somebody insisted on an assembly"
	}
	k := keeper{steps: osSteps{}, setup: s}
	for i, l := range a.Legs {
		if l.Refill { // is filled from the beginning when the mirror is made
			r.Legs[i].State = LegDropped
		}
	}
	for i := range r.Legs {
		if !r.Legs[i].NoCopy && s.Legs[i].Missing == nil {
			if err := k.write(r, i); err != nil {
				return a, fmt.Errorf("the record beside %s: %w", s.Legs[i].Path, err)
			}
		}
	}
	if !r.Log.NoCopy {
		if err := k.write(r, placeLog); err != nil {
			return a, fmt.Errorf("the record beside %s: %w", s.Log.Path, err)
		}
	}
	return a, nil
}

// inspect reads the copies and assembles.
func inspect(st steps, s Setup, force bool) (*Assembly, error) {
	legs := make([]found, len(s.Legs))
	for i, m := range s.Legs {
		if m.File && m.Missing == nil {
			f, err := find(st, m.Path, KindLeg)
			if err != nil {
				return nil, err
			}
			legs[i] = f
		}
	}
	var log found
	if s.Log.Disk && s.Log.File {
		var err error
		if log, err = find(st, s.Log.Path, KindLog); err != nil {
			return nil, err
		}
	}
	return assemble(s, legs, log, force), nil
}

// find reads a copy. One that is damaged, or of another file, counts as absent;
// one that exists and cannot be read is an error, for it may be the highest.
func find(st steps, file string, kind Kind) (found, error) {
	side, err := readSidecar(st, file)
	switch {
	case err == nil && side.Kind == kind:
		return found{side: &side}, nil
	case err == nil:
		return found{err: fmt.Errorf("its sidecar is of kind %q, expected %q", side.Kind, kind)}, nil
	case errors.Is(err, fs.ErrNotExist), isInvalid(err):
		return found{err: err}, nil
	}
	return found{}, fmt.Errorf("the leg record beside %s: %w", file, err)
}

func isInvalid(err error) bool { return blockdev.Kind(err) == blockdev.ErrInvalid }
