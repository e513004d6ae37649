package lifetimes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/snapshot"
	"github.com/dmfuse/dmfuse/tests/harness/cowfile"
)

// take takes a snapshot, as a script does: the origin is suspended meanwhile.
func (w *world) take() {
	w.t.Helper()
	w.taken++
	v := &volume{
		name: fmt.Sprintf("snap%d", w.taken), store: pick(w, "P", "P", "PO", "N"), chunk: pick(w, 1, 2, 8, 8, 16, 128),
		want: bytes.Clone(w.origin.want),
	}
	v.cow = filepath.Join(w.dir, v.name+".cow")
	size := int64(64 << 20)
	if w.rng.IntN(4) == 0 {
		v.small = true
		size = int64(v.chunk) * sectorSize * int64(2+w.rng.IntN(60))
	}
	w.must("COW file", os.WriteFile(v.cow, nil, 0o600))
	w.must("COW file", os.Truncate(v.cow, size))
	was := w.origin.suspended
	w.note("take %s: %s, %d bytes", v.name, v.line(w), size)
	if !was {
		w.suspend(w.origin)
	}
	w.make(v)
	if v.store != "N" && w.rng.IntN(3) > 0 { // what is written is answered before it is committed
		w.message(v, "policy", "commit=lazy")
	}
	if !was {
		w.resume(w.origin)
	}
	w.snaps = append(w.snaps, v)
}

// drop removes a snapshot and its COW file.
func (w *world) drop(v *volume) {
	w.t.Helper()
	w.note("remove %s", v.name)
	w.remove(v)
	w.must("COW file", os.Remove(v.cow))
}

// merge makes the origin what a snapshot is. The device of the snapshot ends
// when its exceptions have gone over.
func (w *world) merge(v *volume) {
	w.t.Helper()
	w.note("merge %s", v.name)
	if !v.suspended {
		w.suspend(v)
	}
	w.merging = v
	w.load(w.origin)
	w.resume(w.origin)
	if w.rng.IntN(2) == 0 {
		w.pause("pause") // somewhere in the middle
	}
	w.origin.want = bytes.Clone(v.want)
	w.remove(v)
}

// pause and let go on.
func (w *world) pause(word string) {
	w.note("merge: %s", word)
	w.message(w.origin, word)
}

func (w *world) message(v *volume, words ...string) string {
	w.t.Helper()
	ctx, cancel := limited()
	defer cancel()
	text, err := v.dev.Message(ctx, 0, words)
	w.must(fmt.Sprintf("message %q to %s", words, v.name), err)
	return text
}

// mergeState is what a merge says of itself.
func (w *world) mergeState() string {
	text := w.message(w.origin, "usage")
	var u snapshot.Usage
	w.must("usage of the merge", json.Unmarshal([]byte(text), &u))
	return u.State
}

// settleMerge ends a merge that is done: the origin becomes plain again, and
// the store is empty.
func (w *world) settleMerge() {
	w.t.Helper()
	if w.origin.suspended {
		return
	}
	switch state := w.mergeState(); state {
	case "merging":
		w.pause("continue")
		return
	case "merged":
	default:
		w.fatalf("the merge is %q", state)
	}
	v := w.merging
	w.merging = nil
	w.note("%s is merged", v.name)
	w.load(w.origin)
	w.resume(w.origin)
	if list := w.witness(v); len(list) != 0 {
		w.fatalf("%s has %d exceptions after its merge", v.name, len(list))
	}
	w.must("COW file", os.Remove(v.cow))
}

// witness reads a store by other code than the project's.
func (w *world) witness(v *volume) []cowfile.Pair {
	w.t.Helper()
	b, err := os.ReadFile(v.cow)
	w.must("COW file", err)
	list, err := cowfile.Read(b, v.chunk)
	w.must("the store of "+v.name, err)
	return list
}

// inspect compares what lies on the disk with what must be there. Nobody uses
// it.
func (w *world) inspect() {
	w.t.Helper()
	origin, err := os.ReadFile(w.file)
	w.must("origin", err)
	if w.merging == nil && !bytes.Equal(origin, w.origin.want) {
		w.fatalf("on the disk the origin differs: %s", difference(origin, w.origin.want))
	}
	if v := w.merging; v != nil {
		w.inspectStore(origin, v, w.origin.want)
	}
	for _, s := range w.snaps {
		if s.store != "N" && s.usable() {
			w.inspectStore(origin, s, s.want)
		}
	}
}

func (w *world) inspectStore(origin []byte, v *volume, want []byte) {
	w.t.Helper()
	list := w.witness(v)
	cow, err := os.ReadFile(v.cow)
	w.must("COW file", err)
	got, size := bytes.Clone(origin), v.chunk*sectorSize
	for _, e := range list {
		at := int(e.Old) * size
		copy(got[at:min(at+size, len(got))], cow[int(e.New)*size:])
	}
	if !bytes.Equal(got, want) {
		w.fatalf("on the disk %s (%s) differs: %s", v.name, v.line(w), difference(got, want))
	}
	pool := blockdev.NewPool(blockdev.PoolOptions{})
	h, err := pool.Open(v.cow, false)
	w.must("COW file", err)
	defer h.Close()
	if rep, err := snapshot.CheckStore(h, sectors); err != nil || rep.Damaged() {
		w.fatalf("the store of %s: %v %v", v.name, err, rep.Err())
	}
}

// step does one random thing.
func (w *world) step() {
	w.t.Helper()
	any := func() *volume { return w.volumes()[w.rng.IntN(1+len(w.snaps))] }
	var beside func(context.Context) error
	switch k := w.rng.IntN(200); {
	case k < 150:
	case k < 157:
		// A merge takes over from no merge (kernel: __validate_exception_handover).
		if v := any(); !v.suspended && (v != w.origin || w.merging == nil) {
			w.note("swap %s", v.name)
			beside = w.swap(v)
		}
	case k < 164:
		if v := any(); !v.suspended {
			w.note("suspend and resume %s", v.name)
			beside = w.blink(v)
		}
	case k < 170:
		v := any()
		w.ops++
		if v.suspended {
			w.note("resume %s", v.name)
			w.resume(v)
		} else {
			w.note("suspend %s", v.name)
			w.suspend(v)
		}
	case k < 181:
		// A snapshot taken while another is merged would be one of the device
		// below, where not all is yet that the origin shows.
		if len(w.snaps) < maxSnapshots && w.merging == nil {
			w.ops++
			w.take()
		}
	case k < 184:
		if len(w.snaps) > 0 {
			w.ops++
			w.drop(pick(w, w.snaps...))
		}
	case k < 190:
		w.ops++
		if w.merging != nil {
			w.settleMerge()
		} else if i := slices.IndexFunc(w.snaps, func(s *volume) bool { return s.state == "" && s.store != "N" }); i >= 0 && !w.origin.suspended {
			w.merge(w.snaps[i])
		}
	case k < 193:
		w.ops++
		w.note("restart")
		w.restart()
	case k < 196:
		w.ops++
		w.check()
	}
	w.batch(w.rng.IntN(7), beside)
}
