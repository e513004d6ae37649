package model

import "testing"

func TestModelFindsWhatIsWrong(t *testing.T) {
	m := New(8, 1)
	m.Write(2, 2, 3)
	m.Begin(3, 4, 2) // sectors 4 and 5: perhaps
	good := m.Bytes()
	if err := m.Check(good, 0); err != nil {
		t.Error(err)
	}
	perhaps := m.Bytes()
	copy(perhaps[5*SectorSize:], Pattern(3, 5, 1))
	if err := m.Check(perhaps, 0); err != nil {
		t.Errorf("half of an unanswered write: %v", err)
	}
	for name, change := range map[string]func(b []byte){
		"lost write":       func(b []byte) { Fill(b[2*SectorSize:3*SectorSize], 1, 2) },
		"zeros":            func(b []byte) { clear(b[:SectorSize]) },
		"torn":             func(b []byte) { Fill(b[SectorSize-8:SectorSize], 3, 0) },
		"astray":           func(b []byte) { Fill(b[3*SectorSize:4*SectorSize], 2, 2) },
		"never sent there": func(b []byte) { Fill(b[6*SectorSize:7*SectorSize], 3, 6) },
	} {
		b := m.Bytes()
		change(b)
		if m.Check(b, 0) == nil {
			t.Errorf("%s: not found", name)
		}
	}
	m.Settle(perhaps)
	if m.Check(good, 0) == nil {
		t.Error("what was found once may not change back")
	}
	if got := m.Seed(5); got != 3 {
		t.Errorf("settled seed %d", got)
	}
}
