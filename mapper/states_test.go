package mapper

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
)

// stateCase is a row of the table of states (doc.go).
type stateCase struct {
	name      string
	live      bool
	inactive  bool
	suspended bool

	resume string // outcome of resume: "nothing", "EINVAL", "resumed", "swapped"
	io     string // "EIO", "runs", "queued"
}

var stateCases = []stateCase{
	{"no tables, active", false, false, false, "nothing", "EIO"},
	{"no tables, suspended", false, false, true, "EINVAL", "EIO"},
	{"live, active", true, false, false, "nothing", "runs"},
	{"live and inactive, active", true, true, false, "swapped", "runs"},
	{"live, suspended", true, false, true, "resumed", "queued"},
	{"live and inactive, suspended", true, true, true, "swapped", "queued"},
	{"inactive only, active", false, true, false, "swapped", "EIO"},
	{"inactive only, suspended", false, true, true, "swapped", "EIO"},
}

// make brings a new device into the state. Its live table is named old, its
// inactive one new.
func (c stateCase) make(t *testing.T, m *Manager, p *probes) *Device {
	t.Helper()
	d := mustCreate(t, m, "d", "")
	if c.live {
		mustLoad(t, d, "0 8 probe old")
		mustResume(t, d)
	}
	if c.suspended {
		if err := d.Suspend(limit(t), SuspendOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if c.inactive {
		mustLoad(t, d, "0 16 probe new")
	}
	c.check(t, d)
	p.take()
	return d
}

func (c stateCase) check(t *testing.T, d *Device) {
	t.Helper()
	i := d.Info(false)
	if i.Live != c.live || i.Inactive != c.inactive || i.Suspended != c.suspended {
		t.Errorf("live %v, inactive %v, suspended %v; want %v, %v, %v",
			i.Live, i.Inactive, i.Suspended, c.live, c.inactive, c.suspended)
	}
}

func TestStates_Load(t *testing.T) {
	for _, c := range stateCases {
		t.Run(c.name, func(t *testing.T) {
			m, p, _ := newProbed(t, nil)
			d := c.make(t, m, p)
			mustLoad(t, d, "0 24 probe third")
			want := "third new"
			if c.inactive {
				want += ", new close" // the older one is destroyed after the new one was built
			}
			wantLog(t, p, want)
			c.inactive = true
			c.check(t, d)
			if got := d.Status(1, true, true); len(got) != 1 || got[0].Params != "third" {
				t.Errorf("inactive table %v", got)
			}
		})
	}
}

func TestStates_LoadThatFailsChangesNothing(t *testing.T) {
	for _, c := range stateCases {
		t.Run(c.name, func(t *testing.T) {
			m, p, _ := newProbed(t, nil)
			d := c.make(t, m, p)
			p.failAt("bad new", blockdev.ErrBusy)
			err := load(t, d, "0 8 probe first\n8 8 probe bad")
			wantKind(t, "load", err, blockdev.ErrBusy)
			wantLog(t, p, "first new, bad new, first close")
			c.check(t, d)
		})
	}
}

func TestStates_Clear(t *testing.T) {
	for _, c := range stateCases {
		t.Run(c.name, func(t *testing.T) {
			m, p, _ := newProbed(t, nil)
			d := c.make(t, m, p)
			if err := d.Clear(); err != nil {
				t.Fatal(err)
			}
			want := ""
			if c.inactive {
				want = "new close"
			}
			wantLog(t, p, want)
			c.inactive = false
			c.check(t, d)
		})
	}
}

func TestStates_Suspend(t *testing.T) {
	for _, c := range stateCases {
		t.Run(c.name, func(t *testing.T) {
			m, p, _ := newProbed(t, nil)
			d := c.make(t, m, p)
			if err := d.Suspend(limit(t), SuspendOptions{}); err != nil {
				t.Fatal(err)
			}
			want := ""
			if c.live && !c.suspended {
				want = "old presuspend, old flush, old flush, old postsuspend"
			}
			wantLog(t, p, want)
			c.suspended = true
			c.check(t, d)
		})
	}
}

func TestStates_Resume(t *testing.T) {
	for _, c := range stateCases {
		t.Run(c.name, func(t *testing.T) {
			m, p, _ := newProbed(t, nil)
			d := c.make(t, m, p)
			err := d.Resume(limit(t), SuspendOptions{})
			want := ""
			switch c.resume {
			case "nothing":
				wantKind(t, "resume", err, nil)
			case "EINVAL":
				wantKind(t, "resume", err, blockdev.ErrInvalid)
			case "resumed":
				wantKind(t, "resume", err, nil)
				want, c.suspended = "old preresume, old resume", false
			case "swapped":
				wantKind(t, "resume", err, nil)
				want = "new preresume, new resume"
				if c.live && !c.suspended {
					want = "old presuspend, old flush, old flush, old postsuspend, " + want
				}
				if c.live {
					want += ", old close"
				}
				c.live, c.inactive, c.suspended = true, false, false
			}
			wantLog(t, p, want)
			c.check(t, d)
			if c.resume == "swapped" && d.Size() != 16*512 {
				t.Errorf("size %d", d.Size())
			}
		})
	}
}

func TestStates_IO(t *testing.T) {
	ops := map[string]func(context.Context, *Device) error{
		"read": func(ctx context.Context, d *Device) error { _, err := d.ReadAt(ctx, make([]byte, 100), 5); return err },
		"write": func(ctx context.Context, d *Device) error {
			_, err := d.WriteAt(ctx, make([]byte, 100), 5, false)
			return err
		},
		"flush":   func(ctx context.Context, d *Device) error { return d.Flush(ctx) },
		"zero":    func(ctx context.Context, d *Device) error { return d.Zero(ctx, 0, 512, true) },
		"discard": func(ctx context.Context, d *Device) error { return d.Discard(ctx, 0, 512) },
		"extent":  func(ctx context.Context, d *Device) error { _, _, err := d.Extent(ctx, 0); return err },
	}
	for _, c := range stateCases {
		for name, op := range ops {
			t.Run(fmt.Sprintf("%s/%s", c.name, name), func(t *testing.T) {
				m, p, _ := newProbed(t, nil)
				d := c.make(t, m, p)
				if c.io == "queued" {
					checkQueued(t, d, op)
					return
				}
				want := map[string]error{"EIO": blockdev.ErrIO, "runs": nil}[c.io]
				wantKind(t, name, op(limit(t), d), want)
			})
		}
	}
}

// checkQueued checks that a request waits, that its context ends the wait, and
// that resume ends it with success.
func checkQueued(t *testing.T, d *Device, op func(context.Context, *Device) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	wantKind(t, "a request whose time is over", op(ctx, d), blockdev.ErrTimeout)

	done := make(chan error, 1)
	go func() { done <- op(limit(t), d) }()
	mustResume(t, d)
	select {
	case err := <-done:
		wantKind(t, "a queued request", err, nil)
	case <-time.After(10 * time.Second):
		t.Fatal("a queued request never came back")
	}
}

func TestStates_Remove(t *testing.T) {
	for _, c := range stateCases {
		t.Run(c.name, func(t *testing.T) {
			m, p, _ := newProbed(t, nil)
			c.make(t, m, p)
			if _, err := m.Remove(limit(t), ByName("d"), RemoveOptions{}); err != nil {
				t.Fatal(err)
			}
			want := ""
			add := func(s string) {
				if want != "" {
					want += ", "
				}
				want += s
			}
			if c.live && !c.suspended {
				add("old presuspend, old flush, old postsuspend") // before the record goes
			}
			if c.inactive {
				add("new close")
			}
			if c.live {
				add("old close")
			}
			wantLog(t, p, want)
			_, err := m.Device(ByName("d"))
			wantKind(t, "lookup", err, blockdev.ErrNoAddress)
		})
	}
}
