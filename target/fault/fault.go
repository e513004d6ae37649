package fault

import (
	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Types lists the targets of this package.
func Types() []target.Type { return []target.Type{Flakey(), Delay(), Dust(), LogWrites()} }

// place is a run of a lower device to which a segment is mapped as by linear.
type place struct {
	dev   target.Lower
	area  blockdev.Range
	shift int64 // byte of dev minus byte of the mapped device
	end   int64 // first byte of the mapped device after the segment
}

// openPlace opens a lower device; start is the word taken last.
func openPlace(env *target.Env, name string, start blockdev.Sector) (place, error) {
	dev, err := env.Open(name, env.Mode())
	if err != nil {
		return place{}, err
	}
	return place{
		dev:   dev,
		area:  blockdev.Range{Start: start, Count: env.Length},
		shift: start.Bytes() - env.Start.Bytes(),
		end:   (env.Start + env.Length).Bytes(),
	}, nil
}

// startSector takes a sector from which the segment fits a device of any size.
func startSector(env *target.Env, a *target.Args) (blockdev.Sector, error) {
	start, err := a.Sector("a start sector")
	if err == nil && start > blockdev.MaxSector-env.Length {
		err = a.Bad("a start sector that the segment's length can be added to")
	}
	return start, err
}

func (p place) use() target.DeviceUse { return target.DeviceUse{Lower: p.dev, Area: p.area} }
