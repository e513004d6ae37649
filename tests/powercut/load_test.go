package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// load is a small fsstress: workers create, write, rename, sync and remove files
// in folders of their own. Files called keepN, from 1 on, are synced and then
// never touched again.
type load struct {
	t    *testing.T
	dir  string // on the file system
	want string // where copies of the kept files go
	mark func(text string)

	mu   sync.Mutex
	kept int
}

// run does ops operations in each of workers, and keeps a file every now and
// then.
func (l *load) run(seed uint64, workers, ops, every int) {
	l.t.Helper()
	errs := make(chan error, workers)
	for w := range workers {
		go func() { errs <- l.worker(harness.Rand(seed+uint64(w)), fmt.Sprintf("w%d", w), ops, every) }()
	}
	for range workers {
		if err := <-errs; err != nil {
			l.t.Error(err)
		}
	}
}

func (l *load) worker(rng *rand.Rand, name string, ops, every int) error {
	dir := filepath.Join(l.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range ops {
		if i%every == every-1 {
			if err := l.keep(rng); err != nil {
				return err
			}
			continue
		}
		a := filepath.Join(dir, fmt.Sprint("f", rng.IntN(8)))
		b := filepath.Join(dir, fmt.Sprint("f", rng.IntN(8)))
		var err error
		switch rng.IntN(6) {
		case 0:
			err = os.Rename(a, b)
		case 1:
			err = os.Remove(a)
		case 2:
			err = os.Truncate(a, rng.Int64N(40000))
		default:
			err = writeSome(a, rng)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// writeSome writes into a file somewhere, and syncs one in four.
func writeSome(path string, rng *rand.Rand) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(20000)), rng.Int64N(60000))
	if err == nil && rng.IntN(4) == 0 {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// keep makes a file that has to be there after every power cut from the mark on
// that follows. One at a time: the marks are in the order of the numbers.
func (l *load) keep(rng *rand.Rand) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := fmt.Sprintf("keep%d", l.kept+1)
	data := bytes.Repeat([]byte(name+"\n"), 1+rng.IntN(2000))
	if err := os.WriteFile(filepath.Join(l.want, name), data, 0o644); err != nil {
		return err
	}
	// By way of another name: the rename has to be durable, too.
	tmp := filepath.Join(l.dir, name+".tmp")
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(l.dir, name)); err != nil {
		return err
	}
	for _, path := range []string{filepath.Join(l.dir, name), l.dir} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = f.Sync()
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	l.kept++
	l.mark(name)
	return nil
}
