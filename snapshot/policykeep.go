package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"

	"github.com/dmfuse/dmfuse/blockdev"
)

// loadPolicies takes the policies from the sidecar of the COW file. One that
// makes no sense is left out: a sidecar is never needed (promise 6).
func (s *snapshot) loadPolicies() {
	file := s.cowFile()
	if file == "" || s.cow == nil || s.params.damaged {
		return
	}
	side, err := ReadSidecar(file)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log().WithError(err).Warn("the sidecar cannot be read: the policies are those of the table")
		}
		return
	}
	if !s.sidecarFits(side) {
		return
	}
	p := *s.space.policies.Load()
	for _, k := range policyKeys { // others are those of a merge
		v, ok := side.Policies[k]
		if !ok {
			continue
		}
		q := p
		if err := q.set(k, v, s.params); err != nil {
			s.log().WithError(err).Warn("a policy in the sidecar is not understood")
			continue
		}
		p = q
	}
	s.space.policies.Store(&p)
}

// sidecarFits tells whether a sidecar belongs to the COW file, and was not left
// beside another one.
func (s *snapshot) sidecarFits(side Sidecar) bool {
	return s.cow == nil || s.cow.ID().Kind != blockdev.IDFile || side.Inode == 0 || side.Inode == s.cow.ID().B
}

// changePolicies changes policies, all of them or none, and puts them into the
// sidecar. kept is false where that cannot be: they count until the daemon ends.
// So writes that wait because a disk is full can be let go.
func (s *snapshot) changePolicies(words []string) (kept bool, err error) {
	if s.params.damaged {
		return false, fmt.Errorf("%w: snapshot: a damaged store takes no writes, so it has no policies", blockdev.ErrInvalid)
	}
	s.sidecar.Lock()
	defer s.sidecar.Unlock()
	p, set, err := s.space.policies.Load().change(words, s.params)
	if err != nil || len(set) == 0 {
		return true, err
	}
	err = s.keepPolicies(set)
	if err != nil {
		s.log().WithError(err).Warn("the policies cannot be kept: they count until the daemon ends")
	}
	s.usePolicies(&p)
	return err == nil, nil
}

// keepPolicies puts policies into the sidecar. The caller holds s.sidecar.
func (s *snapshot) keepPolicies(set map[string]string) error {
	file := s.cowFile()
	if file == "" || s.cow == nil {
		return fmt.Errorf("%w: only beside a file is there a place for them", blockdev.ErrUnsupported)
	}
	side, err := ReadSidecar(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !s.sidecarFits(side) {
		side = Sidecar{}
	}
	if id := s.cow.ID(); id.Kind == blockdev.IDFile {
		side.Inode = id.B
	}
	if side.Policies == nil {
		side.Policies = map[string]string{}
	}
	maps.Copy(side.Policies, set)
	return WriteSidecar(file, side)
}

// usePolicies has new policies count: writes that wait look again.
func (s *snapshot) usePolicies(p *Policies) {
	s.space.policies.Store(p)
	if c := s.core.Load(); c != nil && s.cow != nil {
		size := s.cow.Size()
		s.mu.Lock()
		s.space.size = size
		if used, _, _ := c.store.bounds(); s.reserves(p) {
			s.space.end = min(s.space.end, used) // the next chunk has its space taken
		}
		s.setMarksLocked(c, p, size)
		s.mu.Unlock()
	}
	if p.chosen() {
		s.health.overflowed.Store(false) // found out again by the next write
	}
	s.useCommit(p.Commit)
	s.o.gate.bell.ring()
}
