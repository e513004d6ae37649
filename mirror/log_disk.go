package mirror

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"encoding/binary"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/step"
	"github.com/dmfuse/dmfuse/target"
)

var errVersion = fmt.Errorf("%w: incompatible version of the log", blockdev.ErrInvalid)

// openDisk gives the log a device, which it does not read yet: an older table
// may be at work on it.
func (l *dirtyLog) openDisk(dev target.Lower, event func(), readOnly bool) error {
	block := blockdev.BlockSize(dev)
	need := LogSize(uint64(l.n), block)
	if size := dev.Size(); size < need {
		return fmt.Errorf("%w: log device %s is too small: it has %d bytes, %d regions need %d", blockdev.ErrInvalid, dev.Name(), size, uint64(l.n), need)
	}
	l.dev, l.event, l.ro = dev, event, readOnly
	l.block = int64(block)
	l.image = make([]byte, need)
	l.changed = make(map[int64]struct{})
	return nil
}

// resumeDisk reads the log and writes it back as it is from now on
// (kernel: disk_resume). No request is under way.
func (l *dirtyLog) resumeDisk() error {
	readErr := l.read()
	l.mu.Lock()
	if readErr != nil {
		l.failLocked(false)
	}
	h := decodeHeader(l.image)
	switch {
	case readErr != nil && !errors.Is(readErr, errVersion):
		h = Header{Magic: logMagic, Version: logVersion}
	case readErr != nil:
		h.Regions = 0 // the version is not repaired: the log is of no use next time either
	case l.word != syncDefault || h.Magic != logMagic:
		h = Header{Magic: logMagic, Version: logVersion}
	default:
		h.Version = logVersion
	}
	l.settle(h.Regions)
	h.Regions = uint64(l.n)
	h.encode(l.image)
	image := slices.Clone(l.image)
	clear(l.changed)
	l.resumed = true
	l.mu.Unlock()
	if l.ro {
		return readErr
	}

	step.At("mirror-log-read")
	err := target.WriteLower(context.Background(), l.dev, image, 0, false)
	flush := false
	if err == nil {
		err = target.FlushLower(context.Background(), l.dev)
		flush = err != nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failLocked(flush)
		for b := range int64(len(l.image)) / l.block {
			l.changed[b] = struct{}{}
		}
		l.seq++
		return err
	}
	l.durable = l.seq
	step.At("mirror-log-resumed")
	return readErr
}

// read fills the image. A log of an unknown version is an error.
func (l *dirtyLog) read() error {
	image := make([]byte, len(l.image))
	if err := target.ReadLower(context.Background(), l.dev, image, 0); err != nil {
		return fmt.Errorf("reading the log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.image = image
	if h := decodeHeader(image); l.word == syncDefault && h.Magic == logMagic && !h.Known() {
		return errVersion
	}
	return nil
}

// settle makes the bits those of the beginning of a life, when the first known
// of them are on the disk, and the in-sync set equal to them. The caller holds
// l.mu.
func (l *dirtyLog) settle(known uint64) {
	var count int64
	for i := range l.sync {
		at := l.image[offBits+8*i:]
		w := binary.LittleEndian.Uint64(at)
		first := uint64(i) * 64
		switch {
		case known >= first+64:
		case known > first:
			w &= 1<<(known-first) - 1
			if l.word == syncNone {
				w |= ^uint64(0) << (known - first)
			}
		case l.word == syncNone:
			w = ^uint64(0)
		default:
			w = 0
		}
		if left := uint64(l.n) - first; left < 64 {
			w &= 1<<left - 1
		}
		// The kernel forgets here what fell out of sync in this life (rule 7).
		if l.resumed && l.word == syncNone {
			w &= l.sync[i].Load()
		}
		if l.forget != nil {
			l.forget[i].Or(w)
			w = 0
		}
		if l.stuck {
			binary.LittleEndian.PutUint64(at, 0)
		} else {
			binary.LittleEndian.PutUint64(at, w)
		}
		l.sync[i].Store(w)
		count += int64(bits.OnesCount64(w))
	}
	l.count.Store(count)
}

// failLocked notes that the log device failed.
func (l *dirtyLog) failLocked(flush bool) {
	l.noFlush = l.noFlush || flush
	if !l.failed {
		l.failed = true
		l.event()
	}
}

// commit returns when the changes up to seq are on the device; changes to
// dirty are durable then (rule 1). Whoever comes first writes for all who came
// meanwhile.
func (l *dirtyLog) commit(seq uint64) error {
	if l.dev == nil || l.ro {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.durable < seq {
		if l.writing {
			l.done.Wait()
			continue
		}
		if err := l.writeLocked(); err != nil {
			return err
		}
	}
	return nil
}

// writeLocked writes the blocks that changed. The lock is dropped meanwhile.
func (l *dirtyLog) writeLocked() error {
	upTo, dirtied := l.seq, l.dirtied > l.durable
	runs := l.takeLocked()
	l.writing = true
	l.mu.Unlock()
	flush, err := l.writeRuns(runs, dirtied && !l.hooks.NoLogFlush)
	l.mu.Lock()
	l.writing = false
	l.done.Broadcast()
	if err != nil {
		for _, r := range runs {
			for b := int64(0); b < int64(len(r.data)); b += l.block {
				l.changed[(r.off+b)/l.block] = struct{}{}
			}
		}
		l.failLocked(flush)
		return err
	}
	l.durable = upTo
	return nil
}

// logRun is a run of blocks of the log.
type logRun struct {
	off  int64
	data []byte
}

// takeLocked copies the blocks that changed, neighbours together.
func (l *dirtyLog) takeLocked() []logRun {
	blocks := make([]int64, 0, len(l.changed))
	for b := range l.changed {
		blocks = append(blocks, b)
	}
	clear(l.changed)
	slices.Sort(blocks)
	var runs []logRun
	for i := 0; i < len(blocks); {
		j := i + 1
		for j < len(blocks) && blocks[j] == blocks[j-1]+1 {
			j++
		}
		from, to := blocks[i]*l.block, (blocks[j-1]+1)*l.block
		runs = append(runs, logRun{from, slices.Clone(l.image[from:to])})
		i = j
	}
	return runs
}

// writeRuns writes runs, durably if that is asked for, and says whether an
// error is that of a flush.
func (l *dirtyLog) writeRuns(runs []logRun, durable bool) (flush bool, err error) {
	ctx := context.Background()
	if durable && len(runs) == 1 && target.WriteLower(ctx, l.dev, runs[0].data, runs[0].off, true) == nil {
		return false, nil
	}
	// After an error of a durable write this tells what it is that fails.
	for _, r := range runs {
		if err := target.WriteLower(ctx, l.dev, r.data, r.off, false); err != nil {
			return false, err
		}
	}
	if durable {
		err = target.FlushLower(ctx, l.dev)
	}
	return err != nil, err
}
