package mapper

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/dmfuse/dmfuse/target"
)

// hasBlockDevice says whether this machine has a block device of that number.
func (h *Host) hasBlockDevice(major, minor uint32) bool {
	_, err := os.Lstat(filepath.Join(h.Sys, "dev/block", fmt.Sprintf("%d:%d", major, minor)))
	return err == nil
}

func (m *Manager) hosted(b *builder, l target.Lower, name string, mode target.Mode) (*lowerRef, error) {
	ref := &lowerRef{Lower: l, mode: mode, undo: func() {}}
	if filepath.IsAbs(name) {
		ref.path = name
	}
	return ref, nil
}
