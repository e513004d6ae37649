package main

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mirror"
)

// What mirror create and add-leg want of a leg.

const (
	minLegs = 2
	maxLegs = 9 // kernel: MAX_NR_MIRRORS, dm-raid1.c
)

// findLegs resolves the legs of a new mirror and checks that they are
// different ones that nobody uses.
func (s *session) findLegs(words []string) ([]place, error) {
	if len(words) < minLegs || len(words) > maxLegs {
		return nil, usagef("a mirror has %d to %d legs, %d were given", minLegs, maxLegs, len(words))
	}
	legs := make([]place, 0, len(words))
	for _, w := range words {
		p, err := s.findLeg(w)
		if err != nil {
			return nil, err
		}
		for i, l := range legs {
			if samePlace(l, p) {
				return nil, usagef("the legs %q and %q are the same: %s", words[i], w, p.what())
			}
		}
		legs = append(legs, p)
	}
	for _, p := range legs {
		if p.missing != nil {
			continue
		}
		if err := s.checkLegFree(p); err != nil {
			return nil, err
		}
	}
	return legs, nil
}

// findLeg resolves a leg. A file that is not there may be one that a record
// knows: that is looked at when all legs are found.
func (s *session) findLeg(word string) (place, error) {
	p, err := s.find(word)
	if err == nil {
		return p, checkSectors(p)
	}
	if word == "" || !isMissing(err) && exitCode(err) != exitMissing {
		return p, err
	}
	path, perr := cleanAbs(word)
	return place{path: path, missing: err}, perr
}

// checkMissing refuses legs that are not there, but for those that the record
// of the mirror knows.
func checkMissing(legs []place, known *mirror.Record) error {
	for _, p := range legs {
		if p.missing == nil {
			continue
		}
		if known == nil || !slices.ContainsFunc(known.Legs, func(l mirror.LegRecord) bool { return l.Path == p.path }) {
			return p.missing
		}
	}
	return nil
}

// samePlace says whether two places are one file, block device or device.
func samePlace(a, b place) bool {
	switch {
	case a.device != nil || b.device != nil:
		return a.device != nil && b.device != nil && a.device.Name == b.device.Name
	case a.missing != nil || b.missing != nil:
		return a.path == b.path
	case a.block != b.block:
		return false
	}
	return sameFile(a.path, b)
}

// checkLegFree refuses a leg that somebody else has in use.
func (s *session) checkLegFree(p place) error {
	if uses := s.usesOf(p); len(uses) > 0 {
		u := uses[0]
		if u.role == "mirror" {
			return fail(exitBusy, fmt.Errorf("%s cannot be a leg: the mirror %s uses it", p.what(), u.device.Name), "see it with: dmfuse mirror status "+shellQuote(u.device.Name))
		}
		return fail(exitBusy, fmt.Errorf("%s cannot be a leg: the device %s uses it as its %s", p.what(), u.device.Name, u.role),
			"remove that device first, or use it as the leg: "+u.device.Name)
	}
	users, err := s.writersOf(p)
	if err != nil {
		return err
	}
	if p.device != nil && p.device.OpenCount > 0 && len(users) == 0 {
		users = []string{strconv.Itoa(p.device.OpenCount) + " others that have it open"}
	}
	if len(users) > 0 {
		return busy(p, users, "end this use first: what is written past the mirror reaches this leg only")
	}
	if p.device != nil && p.device.ReadOnly {
		return failf(exitFailed, "%s cannot be a leg: it is read-only", p.what())
	}
	return nil
}

// mirrorSize is the number of sectors of a mirror of the legs: those of the
// first, whose data counts, or those that the mirror had when it was made
// before. A smaller leg cannot hold it. The notes say what of a leg is not used.
func mirrorSize(legs []place, known *mirror.Record) (sectors uint64, notes []string, err error) {
	sectors = legs[0].sectors()
	if known != nil {
		sectors = uint64(known.Length)
	}
	for _, p := range legs {
		if p.missing == nil && p.sectors() < sectors {
			return 0, nil, fail(exitFailed, fmt.Errorf("%s has %d bytes, fewer than the %d of %s, whose data it is to hold",
				p.what(), p.size, int64(sectors)*512, ofWhat(legs, known)), "make it as large, or put the smaller one first if its data is what counts")
		}
	}
	for _, p := range legs {
		if p.missing != nil {
			continue
		}
		switch used := int64(sectors) * 512; {
		case p.size-used >= 512:
			notes = append(notes, fmt.Sprintf("%s is larger than the mirror: its last %d bytes are not used", p.what(), p.size-used))
		case p.size != used:
			notes = append(notes, fmt.Sprintf("the last %d bytes of %s are no whole sector of 512 bytes: the mirror ends before them", p.size-used, p.path))
		}
	}
	return sectors, notes, nil
}

func ofWhat(legs []place, known *mirror.Record) string {
	if known != nil {
		return "the mirror " + known.Name + ", as its record says"
	}
	return "the first leg " + legs[0].path
}

// regionFor settles the region size in sectors. One that was not asked for
// shrinks to fit a small device.
func regionFor(flag *sizeFlag, sectors uint64) (uint64, error) {
	n := flag.bytes / 512
	switch {
	case flag.bytes%512 != 0 || n < 2 || n&(n-1) != 0:
		return 0, usagef("--region-size %s: expected a power of two from 1k on; 512k suits most uses", flag.text)
	case n > 1<<31: // the line has an unsigned number of 32 bits
		return 0, usagef("--region-size %s: at most 1t is possible", flag.text)
	case sectors < 2:
		return 0, failf(exitFailed, "a mirror of one sector is not possible: a region has two at least")
	}
	for !flag.given && uint64(n) > sectors {
		n /= 2
	}
	if uint64(n) > sectors {
		return 0, usagef("--region-size %s is larger than the mirror, which has %s", flag.text, formatSize(int64(sectors)*512))
	}
	return uint64(n), nil
}

// regionsOf is the number of regions of a mirror.
func regionsOf(sectors, region uint64) uint64 { return (sectors + region - 1) / region }

// wordOf is how a place stands in a table line.
func wordOf(p place) string {
	if p.device != nil {
		return p.device.Name
	}
	return p.path
}

// blockOf is the block size of a log on that place, or on a new file.
func blockOf(p place) int { return max(p.blockSize, blockdev.SectorSize) }
