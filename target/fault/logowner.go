package fault

import (
	"errors"
	"fmt"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
)

// logOwners knows who writes which log device. When a table is replaced by one
// with the same log device, the old target ends after the new one has begun: it
// must not write its end over the new log.
type logOwners struct {
	mu sync.Mutex
	by map[blockdev.ID]*logWrites // each was resumed and is not closed
	at map[*logWrites]bool        // those that run
}

// claim makes l the one that writes its log. A suspended owner has lost it; one
// that runs is in the way.
func (o *logOwners) claim(l *logWrites) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	id := l.log.ID()
	if old := o.by[id]; old != nil && old != l {
		if o.at[old] {
			return fmt.Errorf("%w: log device %s is that of another log-writes target", blockdev.ErrBusy, l.log.Name())
		}
		old.stop(errors.New("the log device has been given to another table"))
	}
	o.by[id] = l
	if o.at == nil {
		o.at = map[*logWrites]bool{}
	}
	o.at[l] = true
	return nil
}

func (o *logOwners) suspended(l *logWrites) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.at, l)
}

// release gives the log up, and tells whether l had it.
func (o *logOwners) release(l *logWrites) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.at, l)
	if o.by[l.log.ID()] != l {
		return false
	}
	delete(o.by, l.log.ID())
	return true
}

func (l *logWrites) Preresume() error { return l.owners.claim(l) }
func (l *logWrites) Resume()          {}
func (l *logWrites) Presuspend(bool)  {}
func (l *logWrites) Postsuspend()     { l.owners.suspended(l) }
