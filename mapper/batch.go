package mapper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/dmfuse/dmfuse/internal/step"
)

// Batch makes devices of which a restart brings back all or none: none, if the
// daemon dies before [Batch.End].
//
// Each record of a device names its batch, and a file stands for the batch
// while it is not at its end: to remove that file is what makes all of them count
// at once.
type Batch struct {
	m *Manager

	mu sync.Mutex
	id uint64 // 0: no device yet
}

// batchPrefix begins the names of files that stand for batches, by number.
const batchPrefix = "batch-"

// Batch is a batch without devices yet.
func (m *Manager) Batch() *Batch { return &Batch{m: m} }

// Create is [Manager.Create] for a device of the batch.
func (b *Batch) Create(name, uuid string, minor int) (*Device, error) {
	id, err := b.begin()
	if err != nil {
		return nil, err
	}
	return b.m.create(name, uuid, minor, id)
}

// begin puts the file in its place before the first device.
func (b *Batch) begin() (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.id != 0 || b.m.state.dir == "" {
		return b.id, nil
	}
	id, err := b.m.state.nextSerial()
	if err != nil {
		return 0, err
	}
	f, err := os.OpenFile(b.m.state.batchPath(id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, fmt.Errorf("state directory: %w", err)
	}
	b.id = id
	return id, f.Close()
}

// End says that all that was to be made is made, or taken back.
func (b *Batch) End() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.id == 0 {
		return nil
	}
	step.At("batch-made")
	err := os.Remove(b.m.state.batchPath(b.id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state directory: %w", err)
	}
	b.id = 0
	step.At("batch-ended")
	return nil
}

func (s *stateDir) batchPath(id uint64) string {
	return filepath.Join(s.dir, batchPrefix+strconv.FormatUint(id, 10))
}

// isOpen says that the daemon died before the end of a batch.
func (s *stateDir) isOpen(batch uint64) bool {
	if batch == 0 {
		return false
	}
	_, err := os.Lstat(s.batchPath(batch))
	return err == nil
}

// dropBatches forgets batches that were not at their end, when nothing is left of
// their devices.
func (s *stateDir) dropBatches() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), batchPrefix) {
			err = errors.Join(err, os.Remove(filepath.Join(s.dir, e.Name())))
		}
	}
	return err
}
