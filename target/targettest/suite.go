package targettest

import (
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
)

// Suite runs all checks for one case.
func Suite(t *testing.T, c Case) {
	for _, check := range []struct {
		name string
		run  func(*testing.T, *Case)
	}{
		{"model", checkModel},
		{"life", checkLife},
		{"texts", checkTexts},
		{"devices", checkDevices},
		{"bad arguments", checkBad},
		{"durable", checkDurable},
		{"flush error", checkFlushError},
		{"errors", checkErrors},
		{"context", checkContext},
		{"concurrent", checkConcurrent},
	} {
		t.Run(check.name, func(t *testing.T) { check.run(t, &c) })
	}
}

// checkLife makes targets that never work, and ones that stop in between.
func checkLife(t *testing.T, c *Case) {
	s, err := c.make(t, c.memory(t), c.Args)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close of a target that was never resumed: %v", err)
	}
	s = c.start(t, c.memory(t))
	if u, ok := s.Target.(target.PresuspendUndoer); ok {
		s.Target.(target.Suspender).Presuspend(true)
		u.PresuspendUndo()
	}
	s.suspend()
	s.resume()
	_, err = s.read(t.Context(), 0, 512)
	if (err != nil) != (c.Kind == Fails) {
		t.Errorf("read after a suspend: %v", err)
	}
	s.stop()
}

// checkTexts makes the target again from its own table text.
func checkTexts(t *testing.T, c *Case) {
	s := c.start(t, c.memory(t))
	text := s.Status(target.StatusTable)
	if text != c.table() {
		t.Errorf("table text %q, want %q", text, c.table())
	}
	info := s.Status(target.StatusInfo)
	if again := s.Status(target.StatusInfo); again != info && !c.Moves {
		t.Errorf("status %q, then %q", info, again)
	}
	if strings.ContainsAny(text+info, "\n\x00") {
		t.Errorf("a line break in %q or %q", text, info)
	}
	s.stop()
	two, err := c.make(t, c.memory(t), target.SplitWords(text))
	if err != nil {
		t.Fatalf("the table text is refused: %v", err)
	}
	two.resume()
	defer two.stop()
	if again := two.Status(target.StatusTable); again != text {
		t.Errorf("the text of the text is %q, want %q", again, text)
	}
}

// checkDevices compares the list of lower devices with what was opened.
func checkDevices(t *testing.T, c *Case) {
	s := c.start(t, c.memory(t))
	seen := map[blockdev.ID]bool{}
	for _, u := range s.Devices() {
		seen[u.Lower.ID()] = true
		if size := blockdev.SectorsIn(u.Lower.Size()); u.Area.End() > size || u.Area.End() < u.Area.Start {
			t.Errorf("area %v of %s, which has %d sectors", u.Area, u.Lower.Name(), size)
		}
	}
	for _, o := range s.opened {
		if !seen[o.ID()] {
			t.Errorf("%s was opened and is not listed", o.Name())
		}
	}
	if f, ok := s.Target.(target.DeviceFlusher); ok {
		for _, l := range f.FlushDevices() {
			if !seen[l.ID()] {
				t.Errorf("%s is flushed and is not listed", l.Name())
			}
		}
	}
}

// checkBad gives arguments that must be refused.
func checkBad(t *testing.T, c *Case) {
	for _, args := range c.Bad {
		s, err := c.make(t, c.memory(t), args)
		if err == nil {
			t.Errorf("%q is accepted", args)
			_ = s.Close()
			continue
		}
		if k := blockdev.Kind(err); k != blockdev.ErrInvalid {
			t.Errorf("%q: %v is of kind %v", args, err, k)
		}
	}
	for i, a := range c.Args {
		if _, ok := c.memory(t)[a]; !ok {
			continue
		}
		args := append([]string{}, c.Args...)
		args[i] = "/nosuch"
		s, err := c.make(t, c.memory(t), args)
		if err == nil && len(s.opened) < strings.Count(" "+strings.Join(c.Args, " "), " ") && c.opens(t) {
			t.Errorf("%q is accepted", args)
			_ = s.Close()
		} else if err != nil && blockdev.Kind(err) != blockdev.ErrNoDevice {
			t.Errorf("%q: %v, want the error of opening", args, err)
		}
	}
}

// opens says whether the target opens lower devices at all.
func (c *Case) opens(t *testing.T) bool {
	s := c.start(t, c.memory(t))
	defer s.stop()
	return len(s.opened) > 0
}
