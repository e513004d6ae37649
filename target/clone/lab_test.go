package clone

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/sirupsen/logrus"
)

const labRegion = 8 // sectors

// lab makes clones of regions of 8 sectors over faulty disks in memory: m, d and
// s. Sector n of the source is full of 's', of the destination of 'd'.
type lab struct {
	t      *testing.T
	o      Options
	length blockdev.Sector
	disks  map[string]target.Lower
	events atomic.Int64
	env    target.Env
}

func newLab(t *testing.T, length blockdev.Sector) *lab {
	t.Helper()
	l := &lab{t: t, length: length, disks: map[string]target.Lower{}}
	for name, content := range map[string][]byte{"m": make([]byte, 8*4096), "d": fill('d', length.Bytes()), "s": fill('s', length.Bytes())} {
		l.disks[name] = devtest.NewFault(named{blockdev.NewMemBytes(content), name})
	}
	return l
}

func fill(b byte, n int64) []byte { return bytes.Repeat([]byte{b}, int(n)) }

// named is a device with a name.
type named struct {
	*blockdev.Mem
	name string
}

func (n named) Name() string { return n.name }

func (l *lab) fault(name string) *devtest.Fault { return l.disks[name].(*devtest.Fault) }

// load makes a clone from the words after the region size.
func (l *lab) load(words string) (*clone, error) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	env := l.env
	env.Length, env.Log = l.length, log
	env.Event = func() { l.events.Add(1) }
	env.Open = func(name string, mode target.Mode) (target.Lower, error) {
		if name == "s" && mode != target.ReadOnly {
			return nil, fmt.Errorf("%w: the source is opened for writing", blockdev.ErrReadOnly)
		}
		return l.disks[name], nil
	}
	c, err := Types(l.o)[0].New(&env, strings.Fields(fmt.Sprintf("m d s %d %s", labRegion, words)))
	if err != nil {
		return nil, err
	}
	return c.(*clone), nil
}

// start makes a clone and resumes it.
func (l *lab) start(words string) *clone {
	l.t.Helper()
	c, err := l.load(words)
	if err != nil {
		l.t.Fatal(err)
	}
	l.resume(c)
	return c
}

func (l *lab) resume(c *clone) {
	l.t.Helper()
	if err := c.Preresume(); err != nil {
		l.t.Fatal(err)
	}
	c.Resume()
}

func suspend(c *clone) {
	c.Presuspend(false)
	c.Postsuspend()
}

func (l *lab) stop(c *clone) {
	l.t.Helper()
	suspend(c)
	if err := c.Close(); err != nil {
		l.t.Error(err)
	}
}

func (l *lab) write(c *clone, sector, n blockdev.Sector, b byte) {
	l.t.Helper()
	if err := c.Write(context.Background(), fill(b, n.Bytes()), sector.Bytes(), false); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) message(c *clone, text string) {
	l.t.Helper()
	if _, err := c.Message(context.Background(), strings.Fields(text)); err != nil {
		l.t.Fatal(err)
	}
}

// content is the first byte of each region, with the fills of its sectors where
// they differ.
func content(t *testing.T, c *clone) string {
	t.Helper()
	all := make([]byte, c.length)
	if err := c.Read(context.Background(), all, 0); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i := int64(0); i < c.length; i += c.region {
		r := all[i:min(i+c.region, c.length)]
		if bytes.Equal(r, fill(r[0], int64(len(r)))) {
			b.WriteByte(r[0])
			continue
		}
		b.WriteByte('(')
		for k := 0; k < len(r); k += 512 {
			b.WriteByte(r[k])
		}
		b.WriteByte(')')
	}
	return b.String()
}

// hydrated is one character a region.
func hydrated(c *clone) string {
	var b strings.Builder
	for r := range c.params.regions {
		if c.bits.get(r) {
			b.WriteByte('+')
		} else {
			b.WriteByte('-')
		}
	}
	return b.String()
}
