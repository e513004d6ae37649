package snapshot

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/dmfuse/dmfuse/blockdev"
)

// restore brings a snapshot back after the daemon was started again (promise
// 9). What cannot be brought back comes as an invalid snapshot, so that the
// table is there and says so; the disk says so too before New returns, and with
// it before the origin takes a write. lost is the error of opening the COW
// device.
func (s *snapshot) restore(lost error) {
	switch err := s.tryRestore(lost); {
	case err == nil:
	case s.merging && !errors.Is(err, errMarked) && !errors.Is(err, errBroken):
		// The device answers nothing until the store is there again: the origin is
		// not written, and nothing is lost.
		s.health.setInvalid()
		s.core.Store(nil)
		s.log().WithError(err).Error("the store of the merge cannot be used: the device answers with errors until it can, and the daemon is started again")
	case errors.Is(err, errMarked), errors.Is(err, errBroken):
		s.health.setInvalid()
		s.markInvalid(err) // the header too, now that it can be reached
	case !s.params.persistent:
		s.health.setInvalid()
		s.log().WithError(err).Warn("the snapshot comes back invalid")
	default:
		s.health.setInvalid()
		s.log().WithError(err).Error("the snapshot comes back invalid")
		s.markUnread(err)
	}
}

// errMarked says that a sidecar calls the snapshot invalid.
var errMarked = errors.New("the sidecar says that the snapshot is invalid")

// errBroken says that the daemon before knew the snapshot to be invalid.
var errBroken = errors.New("the snapshot was invalid before the restart, which could not be noted on the disk")

func (s *snapshot) tryRestore(lost error) error {
	switch {
	case lost != nil:
		return lost
	case !s.params.persistent && s.group.o.TransientDir == "":
		return errors.New("a transient store does not outlive the daemon")
	case !s.params.persistent && s.env.Broken:
		return errors.New("the snapshot was invalid before the restart")
	case !s.params.persistent:
		err := s.takeTransient()
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("there is no table of its exceptions: a transient store does not outlive a keeper, nor a worker when there was no room for the table")
		}
		return err
	}
	mark := s.sidecarMark()
	if err := s.checkMerging(); err != nil {
		return err
	}
	if err := s.openStore(false); err != nil {
		return err
	}
	if mark == nil && s.env.Broken {
		mark = errBroken
	}
	return mark
}

// checkMerging refuses a store that was damaged while its merge was cut off: a
// merge goes on by itself, and what it takes for exceptions goes to the origin.
func (s *snapshot) checkMerging() error {
	if !s.merging {
		return nil
	}
	if h, err := ReadHeader(s.cow); err != nil || h.Validate() != nil || !h.Usable() {
		return nil // that is not for the check to say
	}
	rep, err := CheckStore(s.cow, blockdev.SectorsIn(s.source.Size()))
	if err == nil && rep.Damaged() {
		err = rep.Err()
	}
	return err
}

// sidecarMark is errMarked, with the reason, if the sidecar says that the
// snapshot is invalid. A sidecar that cannot be read says nothing.
func (s *snapshot) sidecarMark() error {
	file := s.cowFile()
	if file == "" {
		return nil
	}
	side, err := ReadSidecar(file)
	switch {
	case err != nil:
		if !errors.Is(err, fs.ErrNotExist) {
			s.log().WithError(err).Warn("the sidecar cannot be read")
		}
		return nil
	case !s.sidecarFits(side):
		return nil
	case side.Invalid != nil:
		return fmt.Errorf("%w: %s", errMarked, side.Invalid.Reason)
	}
	return nil
}

// markUnread marks a store that could not be loaded: in its header if there is
// one of ours, in the sidecar otherwise. A device without a store of ours is
// not written to.
func (s *snapshot) markUnread(why error) {
	if s.cow != nil {
		h, err := ReadHeader(s.cow)
		if err == nil && h.Magic == magic {
			if h.Valid == 0 || invalidateHeader(s.cow, h) == nil {
				return
			}
		}
	}
	s.markSidecar(why)
}
