package mapper

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/basic"
)

// reminded is a linear target that remembers the words of its last message.
type reminded struct {
	target.Target
	record func()
	words  string
}

func (r *reminded) Message(_ context.Context, words []string) (string, error) {
	was := r.words
	if words[0] != "recall" {
		r.words = strings.Join(words, " ")
		r.record()
	}
	return was, nil
}

func (r *reminded) Remember() string { return r.words }

func remindedType() target.Type {
	typ := basic.Linear()
	open := typ.New
	typ.Name = "reminded"
	typ.New = func(env *target.Env, args []string) (target.Target, error) {
		tgt, err := open(env, args)
		return &reminded{tgt, env.Record, env.Remembered}, err
	}
	return typ
}

// What a target remembers comes back after a kill, that of each target of a table
// its own; also after a restart that could not make the table. Another table begins
// without it, and a resume of this one does not.
func TestRestore_WhatTargetsRemember(t *testing.T) {
	x := newMachine(t)
	x.opts = func(o *Options) { o.Types = target.NewSet(append(basic.Types(), remindedType())...) }
	m, _ := x.start()
	const lines = "0 64 reminded 7:0 0\n64 64 linear 7:1 0\n128 64 reminded 7:1 64"
	d := mustCreate(t, m, "d", lines)
	say := func(sector blockdev.Sector, words, want string) {
		t.Helper()
		got, err := d.Message(limit(t), sector, strings.Fields(words))
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", words, got, err, want)
		}
	}
	restart := func() (problems []RestoreProblem) {
		t.Helper()
		kill(m)
		m, problems = x.start()
		var err error
		if d, err = m.Device(ByName("d")); err != nil {
			t.Fatal(err)
		}
		return problems
	}
	const odd = "\xff\x01 \"}"
	say(0, odd, "")
	say(128, "seventy", "")
	for range 2 {
		restart()
		say(0, "recall", odd)
		say(64+64, "recall", "seventy")
	}
	away := x.disks.mem["7:1"]
	delete(x.disks.mem, "7:1")
	if problems := restart(); len(problems) == 0 {
		t.Fatal("restored without its disk")
	}
	x.disks.mem["7:1"] = away
	restart()
	say(0, "recall", odd)
	say(128, "recall", "seventy")
	if err := d.Suspend(limit(t), SuspendOptions{}); err != nil {
		t.Fatal(err)
	}
	mustResume(t, d)
	restart()
	say(0, "recall", odd)

	mustLoad(t, d, lines)
	mustResume(t, d)
	restart()
	say(0, "recall", "")
}

// rewriteRecord changes the record of a device as damage would that the checksum does
// not find, when the manager is killed.
func rewriteRecord(t *testing.T, m *Manager, d *Device, from, to string) {
	t.Helper()
	path := m.state.recordPath(d.serial)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(data), "\n")
	if !strings.Contains(body, from) {
		t.Fatalf("no %s in %s", from, body)
	}
	if err := os.WriteFile(path, withHead([]byte(strings.Replace(body, from, to, 1))), 0o600); err != nil {
		t.Fatal(err)
	}
}
