package snapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// policy sets policies by message.
func (tb *table) policy(words ...string) {
	tb.l.t.Helper()
	tb.message(append([]string{"policy"}, words...)...)
}

// told are the texts that a table told, and forgets them.
func (tb *table) told() []string {
	tb.l.mu.Lock()
	defer tb.l.mu.Unlock()
	list := tb.texts
	tb.texts = nil
	return list
}

func telling(tb **table) change {
	return func(e *target.Env) {
		e.Tell = func(text string) {
			(*tb).l.mu.Lock()
			defer (*tb).l.mu.Unlock()
			(*tb).texts = append((*tb).texts, text)
		}
	}
}

// overflowCase is a cell of the table in docs/targets/snapshot.md: what there is
// no room for, under which policy.
type overflowCase struct {
	name   string
	store  string
	policy []string
	room   string // what ends: "size" of the COW device, "disk", "quota", "limit" of the file system on the size of a file
	plain  bool   // no space can be taken beforehand
	origin bool   // a write to the origin, else to the snapshot

	waits bool
	kind  error  // of the write; nil: it succeeds
	state string // afterwards
}

func overflowCases() []overflowCase {
	var list []overflowCase
	pol := func(words string) []string { return strings.Fields(words) }
	for _, room := range []string{"size", "disk", "quota", "limit"} {
		for _, plain := range []bool{false, true} {
			for _, origin := range []bool{false, true} {
				full := room == "size" // the device, not what is below it
				errno := map[string]error{"size": blockdev.ErrIO, "disk": blockdev.ErrNoSpace, "quota": blockdev.ErrNoSpace, "limit": blockdev.ErrTooBig}[room]
				add := func(name, store, policy string, c overflowCase) {
					c.name = fmt.Sprintf("%s, %s, %s origin=%v plain=%v", name, room, store, origin, plain)
					c.store, c.policy, c.room, c.plain, c.origin = store, pol(policy), room, plain, origin
					list = append(list, c)
				}
				lost := overflowCase{state: "invalid"} // the origin goes on, the snapshot is lost
				for _, store := range []string{"P", "PO", "N"} {
					add("pause", store, "overflow=pause", overflowCase{waits: true, state: "active"})
					add("grow then pause", store, "overflow=grow at-limit=pause limit=24k", overflowCase{waits: true, state: "active"})
					for _, policy := range []string{"overflow=invalidate", "overflow=grow at-limit=invalidate limit=24k"} {
						switch {
						case origin:
							add(policy, store, policy, lost)
						case full:
							add(policy, store, policy, overflowCase{kind: errno, state: "invalid"})
						default:
							add(policy, store, policy, overflowCase{kind: errno, state: "active"})
						}
					}
					if store == "N" {
						continue
					}
					for _, policy := range []string{"overflow=readonly", "overflow=grow limit=24k"} {
						switch {
						case origin:
							add(policy, store, policy, lost)
						case full:
							add(policy, store, policy, overflowCase{kind: errno, state: "overflow"})
						default:
							add(policy, store, policy, overflowCase{kind: errno, state: "active"})
						}
					}
				}
			}
		}
	}
	return list
}

// Each policy in each situation. Nothing is lost on the origin, and where the
// snapshot lives on, room that is given back is used.
func TestOverflow(t *testing.T) {
	for _, c := range overflowCases() {
		t.Run(c.name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testOverflow(t, c) }) })
	}
}

func testOverflow(t *testing.T, c overflowCase) {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 256), 1)
	const chunks = 6 // with a header and an area: four for data, and no next area is needed
	cow := l.disk("c", chunks*8, 1000)
	cow.plain = c.plain
	var snap *table
	snap = l.live("0 256 snapshot o c "+c.store+" 8", telling(&snap))
	org := l.live("0 256 snapshot-origin o")
	defer func() { snap.close(); org.close() }()
	snap.policy(c.policy...)
	room := chunks - 2
	if c.store == "N" {
		room = chunks
	}
	switch c.room {
	case "size":
	case "quota", "disk", "limit":
		if err := cow.Mem.Grow(64 * 4096); err != nil {
			t.Fatal(err)
		}
		snap.policy("limit=none")
		if c.room == "quota" {
			cow.errno = syscall.EDQUOT
		}
		if c.room == "limit" {
			cow.errno, cow.most = syscall.EFBIG, chunks*4096
		} else {
			cow.give(room - 1000)
			if c.plain {
				cow.give(chunks - room) // header and area are written only later
			}
		}
	}
	write := func(tb *table, seed uint64, chunk int) error { return tb.write(seed, blockdev.Sector(chunk)*8, 8) }
	tb := snap
	if c.origin {
		tb = org
	}
	n := 0 // chunks that were written
	for ; n < 20; n++ {
		before := cow.fullWrites()
		done := make(chan error, 1)
		go func() { done <- write(tb, 2, n) }()
		synctest.Wait()
		select {
		case err := <-done:
			if err == nil && snap.snap().Usage().State == "active" {
				continue
			}
			if c.waits {
				t.Fatalf("chunk %d: %v, %s: expected to wait", n, err, snap.snap().Usage().State)
			}
			if (err == nil) != (c.kind == nil) || err != nil && blockdev.Kind(err) != c.kind {
				t.Errorf("chunk %d: %v, expected %v", n, err, c.kind)
			}
		default:
			if !c.waits {
				t.Fatalf("chunk %d waits", n)
			}
			if u := snap.snap().Usage(); u.State != "paused" || u.PausedSince == nil {
				t.Errorf("state while it waits: %+v", u)
			}
			time.Sleep(time.Minute) // sleep: of the clock of the test
			if text := strings.Join(snap.told(), "; "); strings.Count(text, "writes wait for room") != 1 {
				t.Errorf("told %q", text)
			}
			c.giveBack(t, snap, cow)
			if err := <-done; err != nil {
				t.Errorf("a write that waited: %v", err)
			}
			if text := strings.Join(snap.told(), "; "); strings.Count(text, "writes go on") != 1 {
				t.Errorf("told %q", text)
			}
			n++
		}
		if !c.plain && c.room != "size" && cow.fullWrites() > before {
			t.Error("a full disk was met when a chunk was written, not before")
		}
		break
	}
	if n < 2 || n > room+1 {
		t.Errorf("%d chunks were written, expected about %d", n, room)
	}
	u := snap.snap().Usage()
	if u.State != c.state {
		t.Errorf("state %q, expected %q", u.State, c.state)
	}
	switch {
	case c.origin:
		org.want(2, 0, blockdev.Sector(n)*8)
		if c.state == "active" {
			snap.want(1, 0, 256)
		}
	case c.state != "invalid":
		snap.want(2, 0, blockdev.Sector(n)*8)
		snap.want(1, blockdev.Sector(n)*8, 64)
	}
	if !c.waits {
		c.giveBack(t, snap, cow)
	}
	err := write(tb, 3, 25)
	switch goesOn := c.origin || c.state == "active" || c.state == "overflow"; {
	case goesOn && err != nil:
		t.Errorf("after there is room again: %v", err)
	case !goesOn && blockdev.Kind(err) != blockdev.ErrIO:
		t.Errorf("a lost snapshot: %v", err)
	}
	if c.state != "invalid" {
		if got := snap.snap().Usage().State; got != "active" {
			t.Errorf("after there is room again: %s", got)
		}
	} else if got := snap.Status(0); got != "Invalid" {
		t.Errorf("status %q", got)
	}
}

// giveBack makes room where it was missing.
func (c *overflowCase) giveBack(t *testing.T, snap *table, cow *disk) {
	if c.room == "size" {
		if err := cow.Mem.Grow(64 * 4096); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.Join(c.policy, " "), "limit") {
			snap.policy("limit=none")
		}
		return
	}
	cow.mu.Lock()
	cow.most = 1 << 40
	cow.mu.Unlock()
	cow.give(1000)
}

// A pause has an end, to the second.
func TestPause_TimeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, Options{})
		fill(t, l.mem("o", 256), 1)
		l.mem("c", 24)
		snap, org := l.live("0 256 snapshot o c P 8"), l.live("0 256 snapshot-origin o")
		snap.policy("overflow=pause", "pause-time=90s")
		if err := org.write(2, 0, 8); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := snap.write(3, 8, 8); blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("a write to the snapshot: %v", err)
		}
		if d := time.Since(start); d != 90*time.Second {
			t.Errorf("it waited %v", d)
		}
		snap.want(1, 0, 256)
		start = time.Now()
		if err := org.write(2, 8, 8); err != nil {
			t.Errorf("a write to the origin: %v", err)
		}
		if d := time.Since(start); d != 90*time.Second {
			t.Errorf("it waited %v", d)
		}
		wantStatus(t, snap, "Invalid")
		org.want(2, 0, 16)
		snap.close()
		org.close()
	})
}

// paused is a snapshot without room, and a write that waits for some.
type paused struct {
	*lab
	snap, org *table
	cow       *blockdev.Mem
	look      *looked // the COW device
	cancel    context.CancelFunc
	done      chan error
}

func newPaused(t *testing.T, throughOrigin bool) *paused {
	l := newLab(t, Options{})
	fill(t, l.mem("o", 256), 1)
	p := &paused{lab: l, cow: l.mem("c", 16), done: make(chan error, 1)}
	p.look = &looked{Lower: l.devs["c"]}
	l.devs["c"] = p.look
	p.snap, p.org = l.live("0 256 snapshot o c P 8"), l.live("0 256 snapshot-origin o")
	p.snap.policy("overflow=pause", "pause-time=0")
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	tb := p.snap
	if throughOrigin {
		tb = p.org
	}
	go func() { p.done <- tb.Write(ctx, make([]byte, 512), 0, false) }()
	synctest.Wait()
	time.Sleep(time.Hour) // sleep: of the clock of the test
	p.waits()
	return p
}

func (p *paused) waits() {
	p.t.Helper()
	select {
	case err := <-p.done:
		p.t.Fatalf("the write does not wait: %v", err)
	default:
	}
}

func (p *paused) end() {
	p.snap.close()
	p.org.close()
	p.cancel()
}

// Who waits can be interrupted, and nothing is lost by it.
func TestPause_Interrupted(t *testing.T) {
	for _, org := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPaused(t, org)
			p.cancel()
			if err := <-p.done; blockdev.Kind(err) != blockdev.ErrInterrupted {
				t.Error(err)
			}
			p.snap.want(1, 0, 256)
			p.org.want(1, 0, 256)
			p.end()
		})
	}
}

// A suspend gives the write back at once; it is the mapper that does it again.
func TestPause_Suspend(t *testing.T) {
	for _, org := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPaused(t, org)
			tb := p.snap
			if org {
				tb = p.org
			}
			start := time.Now()
			tb.suspend()
			if err := <-p.done; !errors.Is(err, target.ErrPostponed) {
				t.Error(err)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("after %v", d)
			}
			if err := tb.resume(); err != nil {
				t.Fatal(err)
			}
			go func() { p.done <- tb.write(2, 0, 8) }()
			synctest.Wait()
			p.waits()
			if err := p.cow.Grow(1 << 20); err != nil {
				t.Fatal(err)
			}
			if err := <-p.done; err != nil {
				t.Error(err)
			}
			tb.want(2, 0, 8)
			p.end()
		})
	}
}

// looked calls a function once when somebody asks for the size.
type looked struct {
	target.Lower
	then atomic.Pointer[func()]
}

func (l *looked) Size() int64 {
	if do := l.then.Swap(nil); do != nil {
		(*do)()
	}
	return l.Lower.Size()
}

// Who waits for room and has looked hears what happens before he waits on.
func TestPause_HearsAtOnce(t *testing.T) {
	for name, do := range map[string]func(p *paused) (ends error){
		"suspend of the snapshot": func(p *paused) error { p.snap.suspend(); return target.ErrPostponed },
		"suspend of the origin":   func(p *paused) error { p.org.suspend(); return target.ErrPostponed },
		"other policies":          func(p *paused) error { p.snap.policy("overflow=invalidate"); return nil },
		"the snapshot is lost":    func(p *paused) error { p.snap.snap().invalidate(errors.New("on purpose")); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPaused(t, name != "suspend of the snapshot")
				var at time.Time
				var ends error
				then := func() { at, ends = time.Now(), do(p) }
				p.look.then.Store(&then)
				if err := <-p.done; !errors.Is(err, ends) {
					t.Errorf("%v, want %v", err, ends)
				}
				if d := time.Since(at); d != 0 {
					t.Errorf("after %v", d)
				}
				p.end()
			})
		})
	}
}

// A suspend that is given up lets the write wait again.
func TestPause_SuspendGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPaused(t, true)
		p.org.Target.(target.Suspender).Presuspend(false)
		if err := <-p.done; !errors.Is(err, target.ErrPostponed) {
			t.Error(err)
		}
		p.org.Target.(target.PresuspendUndoer).PresuspendUndo()
		go func() { p.done <- p.org.write(2, 0, 8) }()
		synctest.Wait()
		p.waits()
		p.snap.policy("overflow=invalidate")
		if err := <-p.done; err != nil {
			t.Error(err)
		}
		wantStatus(t, p.snap, "Invalid")
		p.end()
	})
}

// Neither the end of the snapshot, nor a new one, nor the end of another, nor a
// table that takes over waits for an origin write that waits.
func TestPause_StopsNobody(t *testing.T) {
	for name, do := range map[string]func(p *paused) (goesOn bool){
		"its snapshot ends": func(p *paused) bool {
			p.snap.close()
			p.snap = p.live("0 256 snapshot-origin o") // something to close in the end
			return true
		},
		"another begins and ends": func(p *paused) bool {
			p.mem("c2", 200)
			other := p.live("0 256 snapshot o c2 P 8")
			synctest.Wait()
			p.waits()
			other.want(1, 0, 256)
			other.close()
			return false
		},
		"a table takes over": func(p *paused) bool {
			next, err := p.load("0 256 snapshot o c P 8")
			if err != nil {
				p.t.Fatal(err)
			}
			p.snap.suspend()
			if err := next.resume(); err != nil {
				p.t.Fatal(err)
			}
			p.snap.close()
			p.snap = next
			synctest.Wait()
			p.waits()
			if err := p.cow.Grow(1 << 20); err != nil {
				p.t.Fatal(err)
			}
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPaused(t, true)
				start := time.Now()
				if do(p) {
					if err := <-p.done; err != nil {
						t.Error(err)
					}
					p.org.want(0, 0, 1)
				} else {
					p.waits()
					p.cancel()
					<-p.done
				}
				if d := time.Since(start); d > 2*spaceEvery {
					t.Errorf("it took %v", d)
				}
				p.end()
			})
		})
	}
}
