package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/notefile"
	"github.com/dmfuse/dmfuse/internal/step"
)

// Answer first: a write to the snapshot that gives chunks to it is answered when
// the data is on the COW device, unflushed, and its exceptions stand in the note
// of the store. They are in the table and count for readers; they do not count
// for the origin, whose writes have them committed first (rule 2). They are
// committed at the next flush or durable write, after commitAfter at the latest,
// when there are commitAt of them, and before the table changes hands.
//
// After a power cut such a write has not happened. After a kill the next daemon
// takes the exceptions from the note (recover.go).

const (
	commitAfter = 500 * time.Millisecond
	commitAt    = 1024
)

// Values of the policy "commit".
const (
	CommitLazy   = "lazy"   // answer first, where the store can have a note
	CommitStrict = "strict" // commit first
)

// commitDefault stands for neither in a message.
const commitDefault = "default"

// early is the part of a snapshot that answers first.
type early struct {
	mu    sync.Mutex            // held while a note is made; across I/O on the note and the mark only
	tried atomic.Bool           // stored under mu
	why   atomic.Pointer[error] // why every write is committed first

	background sync.WaitGroup // the goroutine that commits later
	kick       chan struct{}  // makes it begin; capacity 1

	// The rest is guarded by mu of the snapshot.

	running bool   // the goroutine is there
	want    uint64 // somebody waits for the commit of the units with lower tickets, or has
	last    *unit  // answered, with the highest ticket; nil: all are committed
	commits uint64 // begun so far
	lost    error  // what was answered and is lost; told to the next flush
}

// openNote makes the note of the store when it is first wanted. It returns nil
// where every write has to be committed first.
func (s *snapshot) openNote(c *core) *note {
	if n := c.note.Load(); n != nil {
		return n
	}
	if s.early.tried.Load() || s.group.o.Notes.Dir == "" || c.disk == nil || s.merging || !s.early.mu.TryLock() {
		return nil
	}
	defer s.early.mu.Unlock()
	if s.early.tried.Swap(true) {
		return nil
	}
	n, err := s.makeNote(c)
	if err != nil {
		s.early.why.Store(&err)
		if !errors.Is(err, errChosen) {
			s.log().WithError(err).Warn("every write is committed before it is answered")
		}
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c.note.Store(n)
	if !s.leading && len(s.queue) == 0 { // else whoever commits next says what the store has
		_ = n.rebase(c.tickets, c.disk.entries(), c.disk.sum)
	}
	return n
}

// errChosen says that committing first is what was asked for.
var errChosen = errors.New("the policy says so")

func (s *snapshot) makeNote(c *core) (*note, error) {
	o := s.group.o.Notes
	h := o.machine()
	path, dev, inode, ok := h.file(s.cow)
	switch {
	case !ok && s.space.policies.Load().Commit == CommitLazy:
		return nil, fmt.Errorf("%w: the COW device %s is no file, and has no place for the mark of a session", blockdev.ErrUnsupported, s.cow.Name())
	case !ok:
		return nil, errChosen
	}
	if err := s.wantsNote(path); err != nil {
		return nil, err
	}
	if c.disk.rewound {
		return nil, fmt.Errorf("%w: the store was merged in part", blockdev.ErrUnsupported)
	}
	session := notefile.NewSession()
	f, err := h.create(o.path(dev, inode))
	if err != nil {
		return nil, err
	}
	id := noteID{session: session, boot: bootMark(o.Boot), dev: dev, inode: inode, chunk: uint32(c.chunk)}
	step.At("note-made")
	n, err := newNote(f, id)
	if err == nil {
		err = f.place()
	}
	step.At("note-placed")
	if err == nil {
		err = h.setSession(path, id.mark())
	}
	if err != nil {
		_ = f.close()
		return nil, err
	}
	if o.watch != nil {
		n.stepped = func() { o.watch(n.mem) }
	}
	return n, nil
}

// wantsNote decides where nobody has said so: the verbs for people make a
// sidecar, and their snapshots answer first; a table line is the kernel's, whose
// stores have what was answered.
func (s *snapshot) wantsNote(file string) error {
	policy := s.space.policies.Load().Commit
	switch {
	case policy == CommitStrict:
		return errChosen
	case policy == CommitLazy, s.group.o.Notes.lazy:
		return nil
	}
	side, err := ReadSidecar(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || side.Created == nil || !s.sidecarFits(side) {
		return errChosen
	}
	return nil
}

// useCommit has another policy count. What was answered is committed by the next
// flush, or soon.
func (s *snapshot) useCommit(policy string) {
	s.early.mu.Lock()
	defer s.early.mu.Unlock()
	c := s.core.Load()
	if c == nil {
		return
	}
	n := c.note.Load()
	switch {
	case n == nil:
		s.early.why.Store(nil)
		s.early.tried.Store(false)
	case policy == CommitStrict:
		n.paused.Store(true)
		s.kickCommit()
	default:
		n.paused.Store(false)
	}
}

// answer makes the exceptions of u, whose chunks are filled, visible, and leaves
// their commit for later. It does nothing and reports false where they have to be
// committed first.
func (s *snapshot) answer(c *core, u *unit) bool {
	n := c.note.Load()
	if n == nil || n.paused.Load() || !n.holds(u.ticket, len(u.es)) || c.disk.ensure(s.cow, u.until) != nil {
		return false
	}
	if !s.group.o.Hooks.NoNoteRecord {
		if err := n.put(u.ticket, u.es, u.sums[:]); err != nil {
			s.giveUpNote(n, err)
			return false
		}
	}
	step.At("note-put")
	u.noted = true
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.health.invalid.Load() {
		return false
	}
	u.ready, u.answered = true, true
	all := s.uncommitted.Add(int64(len(u.es))) // before they can be seen
	c.table.insert(u.es)
	u.showLocked()
	if s.early.last == nil || s.early.last.ticket < u.ticket {
		s.early.last = u
	}
	s.wakeLeaderLocked(c)
	if !s.early.running {
		s.early.running = true
		s.early.background.Go(func() { s.commitLater(c) })
	}
	if all >= commitAt {
		s.kickCommit()
	}
	return true
}

// wakeLeaderLocked has somebody lead for requests that wait for a commit and found
// the units before theirs not ready.
func (s *snapshot) wakeLeaderLocked(c *core) {
	if s.leading || (s.waiting == 0 && s.queue[0].ticket >= s.early.want) {
		return
	}
	batch := s.readyLocked()
	if slices.ContainsFunc(batch, func(u *unit) bool { return !u.answered || u.ticket < s.early.want }) {
		s.leading = true
		s.handOverLocked(c, batch)
	}
}

func (s *snapshot) kickCommit() {
	select {
	case s.early.kick <- struct{}{}:
	default:
	}
}

// commitLater commits what was answered, and ends when there is nothing left.
func (s *snapshot) commitLater(c *core) {
	t := time.NewTimer(commitAfter)
	defer t.Stop()
	for {
		if after := s.group.o.Notes.after; after != nil {
			select {
			case <-after():
			case <-s.early.kick:
			}
		} else {
			select {
			case <-t.C:
			case <-s.early.kick:
			}
		}
		s.commitNow(c)
		s.watchNote(c)
		s.lookName()
		s.mu.Lock()
		if s.early.last == nil {
			s.early.running = false
			s.mu.Unlock()
			s.endSession(c)
			return
		}
		s.mu.Unlock()
		t.Reset(commitAfter)
	}
}

// commitNow commits what was answered, or has it committed by who leads. It keeps
// nobody from being answered meanwhile.
func (s *snapshot) commitNow(c *core) {
	s.mu.Lock()
	u := s.early.last
	if u != nil {
		s.early.want = max(s.early.want, u.ticket+1)
	}
	lead := u != nil && !s.leading
	s.leading = s.leading || lead
	s.mu.Unlock()
	if lead {
		s.lead(c, u)
	}
}

// watchNote gives a note up that nobody could find after a kill.
func (s *snapshot) watchNote(c *core) {
	n := c.note.Load()
	if n == nil || n.broken.Load() || n.file.linked() {
		return
	}
	s.giveUpNote(n, errors.New("the note was removed or cut off"))
}

// endSession takes the mark away when nothing is answered that is not in the store,
// and nothing will be: it would make the next daemon miss the note.
func (s *snapshot) endSession(c *core) {
	n := c.note.Load()
	if n == nil || !n.broken.Load() || n.unmarked.Swap(true) {
		return
	}
	h := s.group.o.Notes.machine()
	if path, _, _, ok := h.file(s.cow); ok {
		if err := h.removeSession(path); err != nil {
			s.log().WithError(err).Warn("the mark of the session stays")
		}
	}
}

// giveUpNote says that from now on every write is committed first.
func (s *snapshot) giveUpNote(n *note, why error) {
	n.giveUp()
	s.kickCommit() // what was answered stands nowhere else
	if s.early.why.Swap(&why) == nil {
		s.log().WithError(why).Error("every write is committed before it is answered from now on")
	}
}

// commitAnswered returns when every exception that was answered before the call
// is durable, or lost ([snapshot.takeLost]). flushed tells that the COW device
// was flushed since. The error is that of a wait that was given up.
func (s *snapshot) commitAnswered(ctx context.Context, c *core) (flushed bool, err error) {
	if s.uncommitted.Load() == 0 {
		return false, nil
	}
	s.mu.Lock()
	u, commits := s.early.last, s.early.commits
	s.mu.Unlock()
	if u == nil {
		return false, nil
	}
	err = s.waitCommitted(ctx, c, []*unit{u})
	return err == nil && u.err == nil && u.commit > commits, err
}

// waitCommitted has units committed that may be answered, with all that were
// allotted before them, and returns when they are.
func (s *snapshot) waitCommitted(ctx context.Context, c *core, us []*unit) error {
	if len(us) == 0 {
		return nil
	}
	last := us[0]
	for _, u := range us {
		if u.ticket > last.ticket {
			last = u
		}
	}
	s.mu.Lock()
	s.early.want = max(s.early.want, last.ticket+1)
	lead := !s.leading
	s.leading = true
	s.mu.Unlock()
	if lead {
		s.lead(c, last)
	}
	return waitUnits(ctx, us)
}

// uncommittedIn tells whether any chunk of the range has an exception that is in
// the table and not durable.
func (s *snapshot) uncommittedIn(first, last Chunk) bool {
	if s.uncommitted.Load() == 0 || s.group.o.Hooks.NoNoteCommit {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if uint64(len(s.pending)) < uint64(last-first) {
		for at, u := range s.pending {
			if u.answered && first <= at && at <= last {
				return true
			}
		}
		return false
	}
	for at := first; at <= last; at++ {
		if u := s.pending[at]; u != nil && u.answered {
			return true
		}
	}
	return false
}

// spoilSums is called before chunks that have an exception are written to: what the
// note says of their data counts no more.
func (s *snapshot) spoilSums(c *core, first, last Chunk) {
	n := c.note.Load()
	if n == nil || s.uncommitted.Load() == 0 || s.group.o.Hooks.NoNoteForget {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := first; at <= last; at++ {
		u := s.pending[at]
		if u == nil || !u.answered {
			continue
		}
		for i := range min(len(u.es), len(u.sums)) {
			if u.es[i].old == at && u.sums[i] != 0 {
				u.sums[i] = 0
				_ = n.forget(u.ticket + uint64(i)) // a note that is broken off says nothing
			}
		}
	}
}

// endAnsweredLocked notes the end of a unit that was answered. What is lost of it
// is told to the next flush.
func (s *snapshot) endAnsweredLocked(u *unit) {
	s.uncommitted.Add(-int64(len(u.es)))
	if s.early.last == u {
		s.early.last = nil
	}
	if u.err != nil && s.early.lost == nil {
		s.early.lost = fmt.Errorf("writes that were answered are lost: %w", u.err)
	}
}

// takeLost is the error for a flush, if anything that was answered is lost: once,
// or for ever when the snapshot is invalid.
func (s *snapshot) takeLost() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.early.lost
	if !s.health.invalid.Load() {
		s.early.lost = nil
	}
	return err
}

// beginNote writes what the note lacks before a batch is committed.
func (s *snapshot) beginNote(c *core, batch []*unit) {
	n := c.note.Load()
	if n == nil || n.limit.Load() == 0 {
		return
	}
	for _, u := range batch {
		if u.noted || u.gone != nil || !n.holds(u.ticket, len(u.es)) {
			continue
		}
		if err := n.put(u.ticket, u.es, nil); err != nil {
			s.giveUpNote(n, err)
			return
		}
		u.noted = true
	}
	last := batch[len(batch)-1]
	if err := n.begin(last.ticket + uint64(len(last.es))); err != nil {
		s.giveUpNote(n, err)
	}
	step.At("note-begun")
}

// endNote writes what the store has after a commit. After a failure that is not
// known: nothing is answered first until a commit succeeds.
func (s *snapshot) endNote(c *core, batch []*unit, done int, failed error) {
	n := c.note.Load()
	if n == nil {
		return
	}
	for _, u := range batch {
		k := 0
		if u.gone == nil {
			k = min(done, len(u.es))
			done -= k
		}
		if k < len(u.es) && u.noted {
			_ = n.clear(u.ticket+uint64(k), len(u.es)-k)
		}
	}
	if failed != nil {
		n.limit.Store(0)
		return
	}
	if n.broken.Load() {
		return
	}
	last := batch[len(batch)-1]
	if err := n.rebase(last.ticket+uint64(len(last.es)), c.disk.entries(), c.disk.sum); err != nil {
		s.giveUpNote(n, err)
	}
}

// closeNote ends the session: all is committed, and nobody writes.
func (s *snapshot) closeNote(c *core) {
	n := c.note.Swap(nil)
	if n == nil {
		return
	}
	h := s.group.o.Notes.machine()
	if path, _, _, ok := h.file(s.cow); ok {
		if err := h.removeSession(path); err != nil {
			s.log().WithError(err).Warn("the mark of the session stays")
		}
	}
	if err := n.file.close(); err != nil {
		s.log().WithError(err).Warn("the note stays")
	}
}

// settle commits all that was answered and ends the goroutine that would have.
func (s *snapshot) settle() {
	if c := s.core.Load(); c != nil {
		_, _ = s.commitAnswered(context.Background(), c)
	}
	s.kickCommit()
	s.early.background.Wait()
}

// commitMode tells when writes are answered, and what keeps them from being
// answered first where that was asked for.
func (s *snapshot) commitMode(c *core) (mode, why string) {
	if n := c.note.Load(); n != nil && n.limit.Load() > 0 && !n.paused.Load() {
		return CommitLazy, ""
	}
	if err := s.early.why.Load(); err != nil && !errors.Is(*err, errChosen) {
		why = (*err).Error()
	}
	return CommitStrict, why
}
