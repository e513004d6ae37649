package mirror

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/google/go-cmp/cmp"
)

// onDisk is a setup of two legs and a log that are files.
func onDisk(t *testing.T) Setup {
	t.Helper()
	dir := t.TempDir()
	s := Setup{Name: "m", Length: 64, Region: 8, Log: LogMember{Disk: true, Path: filepath.Join(dir, "log"), File: true}}
	for _, n := range []string{"a", "b"} {
		s.Legs = append(s.Legs, Member{Path: filepath.Join(dir, n), File: true})
	}
	for _, p := range []string{s.Log.Path, s.Legs[0].Path, s.Legs[1].Path} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// writeAll writes a record beside all members.
func writeAll(t *testing.T, s Setup, r Record) {
	t.Helper()
	k := keeper{steps: osSteps{}, setup: s}
	for _, p := range places(r) {
		if err := k.write(r, p); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSidecar(t *testing.T) {
	s := onDisk(t)
	a := s.Legs[0].Path
	if _, err := ReadSidecar(a); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no sidecar: %v", err)
	}
	want := Sidecar{Kind: KindLeg, Self: 1, Record: NewRecord(s, time.Unix(1, 5000))}
	want.Policies = map[string]string{"retry": "5s"}
	if err := WriteSidecar(a, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSidecar(a)
	want.Version, want.Inode = sidecarVersion, got.Inode
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if files, _ := filepath.Glob(SidecarPath(a) + "*"); len(files) != 1 {
		t.Errorf("left behind: %q", files)
	}
	if err := RemoveSidecar(a); err != nil {
		t.Error(err)
	}
	if err := RemoveSidecar(a); err != nil {
		t.Errorf("once more: %v", err)
	}
}

// TestSidecar_Bad: what is damaged, of another version, kind or file.
func TestSidecar_Bad(t *testing.T) {
	s := onDisk(t)
	a, b := s.Legs[0].Path, s.Legs[1].Path
	if err := WriteSidecar(a, Sidecar{Kind: KindLeg, Record: NewRecord(s, time.Now())}); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(SidecarPath(a))
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ text, want string }{
		"empty":            {"", "unexpected end"},
		"cut short":        {string(good[:len(good)/2]), "unexpected end"},
		"another kind":     {strings.Replace(string(good), "mirror-leg", "snapshot-store", 1), "kind"},
		"a newer version":  {strings.Replace(string(good), `"version": 1`, `"version": 2`, 1), "version 2"},
		"no version":       {strings.Replace(string(good), `"version": 1,`, ``, 1), "version 0"},
		"an unknown state": {strings.Replace(string(good), `"filling"`, `"well"`, 1), "state"},
		"no mirror":        {strings.Replace(string(good), `"mirror":`, `"x":`, 1), "mirror"},
	} {
		if err := os.WriteFile(SidecarPath(a), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSidecar(a); !errors.Is(err, blockdev.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A copy of the sidecar, beside a copy of the leg.
	if err := os.WriteFile(SidecarPath(b), good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSidecar(b); !errors.Is(err, blockdev.ErrInvalid) || !strings.Contains(err.Error(), "another file") {
		t.Errorf("copied: %v", err)
	}
	// Fields that nobody knows are no harm.
	more := strings.Replace(string(good), `"version": 1,`, `"version": 1, "later": true,`, 1)
	if err := os.WriteFile(SidecarPath(a), []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSidecar(a); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
}

func TestInspect_Unreadable(t *testing.T) {
	s := onDisk(t)
	if err := os.Mkdir(SidecarPath(s.Legs[1].Path), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Inspect(s); err == nil || !strings.Contains(err.Error(), s.Legs[1].Path) {
		t.Errorf("a sidecar that is there and cannot be read: %v", err)
	}
}

// TestInsist: what is refused and insisted on is no problem afterwards, and what
// has to be filled is.
func TestInsist(t *testing.T) {
	for what, c := range map[string]struct {
		prepare func(t *testing.T, s *Setup)
		want    string
	}{
		"an absent leg": {func(t *testing.T, s *Setup) {
			r := NewRecord(*s, time.Now())
			r.Legs[1].State = LegIn
			writeAll(t, *s, r)
			s.Legs[1].Path = filepath.Join(filepath.Dir(s.Legs[1].Path), "other")
			if err := os.WriteFile(s.Legs[1].Path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "i rf"},
		"a lost copy": {func(t *testing.T, s *Setup) {
			r := NewRecord(*s, time.Now())
			r.Legs[1].State = LegIn
			writeAll(t, *s, r)
			if err := RemoveSidecar(s.Legs[1].Path); err != nil {
				t.Fatal(err)
			}
		}, "i rf"},
		"two histories": {func(t *testing.T, s *Setup) {
			r := NewRecord(*s, time.Now())
			r.Legs[1].State = LegIn
			one, two := r.next(time.Now()), r.next(time.Now())
			one.Legs[1].State, two.Legs[0].State = LegDropped, LegDropped
			k := keeper{steps: osSteps{}, setup: *s}
			for p, r := range map[int]Record{0: one, 1: two.next(time.Now()), placeLog: one} {
				if err := k.write(r, p); err != nil {
					t.Fatal(err)
				}
			}
		}, "rf i"},
		"only a stale leg": {func(t *testing.T, s *Setup) {
			r := NewRecord(*s, time.Now())
			writeAll(t, *s, r)
			if err := RemoveSidecar(s.Legs[0].Path); err != nil {
				t.Fatal(err)
			}
			s.Legs[0].Path = filepath.Join(filepath.Dir(s.Legs[0].Path), "other")
			if err := os.WriteFile(s.Legs[0].Path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "rf i"},
	} {
		t.Run(what, func(t *testing.T) {
			s := onDisk(t)
			c.prepare(t, &s)
			a, err := Inspect(s)
			if err != nil || a.Err() == nil {
				t.Fatalf("not refused: %v, %v", err, a)
			}
			if a, err = Insist(s); err != nil {
				t.Fatal(err)
			}
			if got := meaning(a); got != c.want {
				t.Errorf("insisted on: %q, expected %q", got, c.want)
			}
			if a, err = Inspect(s); err != nil || a.Err() != nil {
				t.Fatalf("afterwards: %v, %v", err, a.Err())
			}
			if got := meaning(a); got != c.want || a.Trusted {
				t.Errorf("afterwards: %q, expected %q; the log is trusted: %v", got, c.want, a.Trusted)
			}
		})
	}
}
