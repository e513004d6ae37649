package kcopyd

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is how long a test waits for anything.
const limit = time.Minute

// Seeds of the patterns on sources and destinations before a copy.
const (
	sourceSeed  = 1
	garbageSeed = 99
)

// within fails the test when fn does not return in time.
func within(t testing.TB, what string, fn func()) {
	t.Helper()
	ended := make(chan struct{})
	go func() { defer close(ended); fn() }()
	select {
	case <-ended:
	case <-time.After(limit):
		t.Fatalf("%s: still waiting after %v", what, limit)
	}
}

func await[T any](t fataler, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(limit):
		t.Fatalf("nothing after %v", limit)
	}
	return v
}

// awaitHanging waits until n requests of f hang.
func awaitHanging(t testing.TB, f *devtest.Fault, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := f.AwaitHanging(ctx, n); err != nil {
		t.Fatalf("%d requests do not hang: %v", n, err)
	}
}

func newClient(t testing.TB, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { within(t, "Close", func() { c.Close() }) })
	return c
}

// newManual makes a client whose steps the test takes.
func newManual(t testing.TB, o Options) *Client {
	t.Helper()
	o.manual = true
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { within(t, "Close", func() { run(c); c.Close() }) })
	return c
}

// run takes steps while there are any.
func run(c *Client) {
	for c.step() {
	}
}

// filled makes a device full of a pattern: without holes.
func filled(t testing.TB, seed uint64, sectors blockdev.Sector) *blockdev.Mem {
	t.Helper()
	m := blockdev.NewMem(sectors.Bytes())
	check(t, devtest.Fill(m, seed, 0, sectors))
	return m
}

// newFile makes a file that is one hole.
func newFile(t testing.TB, name string, sectors blockdev.Sector) *blockdev.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	check(t, os.WriteFile(path, nil, 0o600))
	check(t, os.Truncate(path, sectors.Bytes()))
	f, err := blockdev.OpenFile(path, blockdev.FileOptions{Write: true})
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type result struct {
	readErr  bool
	writeErr uint64
}

// notifier returns a Notify and the channel of its result.
func notifier() (Notify, <-chan result) {
	ch := make(chan result, 1)
	return func(r bool, w uint64) { ch <- result{r, w} }, ch
}

// copyWait copies and waits for the callback.
func copyWait(t testing.TB, c *Client, from Region, dests []Region, flags Flags) (result, *Job) {
	t.Helper()
	fn, ch := notifier()
	j := c.Copy(from, dests, flags, fn)
	return await(t, ch), j
}

// mustCopy copies and fails the test when the copy fails.
func mustCopy(t testing.TB, c *Client, from Region, dests ...Region) {
	t.Helper()
	if res, j := copyWait(t, c, from, dests, 0); res != (result{}) || j.Err() != nil {
		t.Fatalf("got %+v, %v", res, j.Err())
	}
}

// fataler is a test, or a property that is tested.
type fataler interface {
	Helper()
	Fatalf(string, ...any)
}
