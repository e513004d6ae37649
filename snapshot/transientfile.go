package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/internal/notefile"
	"github.com/sirupsen/logrus"
)

// The exceptions of a transient store end with the daemon. A worker of a keeper
// that dies is not the daemon: for the next one they stand in a file too, of
// which the kernel keeps what was written. It has an entry of 8 bytes for each
// chunk of the COW device, in the order in which they are handed out, and zero
// for one without an exception: a chunk is recorded by one write of its entry,
// before the request that waits for it goes on, and after its data is there. A
// kill leaves an entry written or not.
//
// The file is right as a whole or not at all: with one entry that cannot be the
// snapshot comes back invalid.

const (
	tablePrefix   = "transient-"
	tableMagic    = "dmfuse transient"
	tableHeader   = 64
	tableEntry    = 8
	tableReadSize = 1 << 20
)

// DropTables removes the tables of transient stores in a directory: for a daemon
// that starts anew. Origins may have been written since without a copy.
func DropTables(dir string) error {
	_, err := notefile.Drop(dir, tablePrefix, nil)
	return err
}

// tableFile is the file of one store.
type tableFile struct {
	log  logrus.FieldLogger
	path string

	mu sync.Mutex
	f  *os.File // nil: nothing is kept any more; guarded by mu

	forgets bool // a fault for tests: nothing is recorded
}

// tableID says what a table is of.
type tableID struct {
	chunk       blockdev.Sector
	origin, cow blockdev.ID
}

// header is what the file begins with.
func (id tableID) header() []byte {
	b := make([]byte, 0, tableHeader)
	b = append(b, tableMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(id.chunk))
	for _, d := range []blockdev.ID{id.origin, id.cow} {
		b = append(b, byte(d.Kind))
		b = binary.LittleEndian.AppendUint64(b, d.A)
		b = binary.LittleEndian.AppendUint64(b, d.B)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))[:tableHeader]
}

func (id tableID) path(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("%s%d-%x-%x", tablePrefix, id.cow.Kind, id.cow.A, id.cow.B))
}

// entryOf is the entry of an exception: the chunk of the origin plus one in 48
// bits, and a sum of both chunks.
func entryOf(e exception) uint64 {
	old := uint64(e.old) + 1
	return old | tableSum(old, uint64(e.new))<<48
}

func tableSum(old, to uint64) uint64 {
	return (old*0x9e3779b97f4a7c15 ^ (to+1)*0xc2b2ae3d27d4eb4f) >> 48
}

// makeTable makes an empty table in place of one that was there. A table that
// cannot be made is done without; one that cannot be taken away is an error, as
// the next worker would take it for this one's.
func makeTable(dir string, id tableID, log logrus.FieldLogger) (*tableFile, error) {
	path := id.path(dir)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("an old table of the store: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		t := &tableFile{log: log, path: path, f: f}
		if _, err = f.WriteAt(id.header(), 0); err == nil {
			return t, nil
		}
		if derr := t.drop(); derr != nil {
			return nil, derr
		}
	}
	log.WithError(err).Warn("the exceptions are in memory only: the snapshot would come back invalid if the worker died")
	return nil, nil
}

// record writes the entries of exceptions, which count from then on for the next
// worker. An error says that the table is there and not as it should be.
func (t *tableFile) record(es []exception) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.f == nil || t.forgets {
		return nil
	}
	var buf []byte
	for i := 0; i < len(es); {
		first := es[i].new
		buf = buf[:0]
		for ; i < len(es) && es[i].new == first+Chunk(len(buf)/tableEntry); i++ {
			buf = binary.LittleEndian.AppendUint64(buf, entryOf(es[i]))
		}
		if _, err := t.f.WriteAt(buf, tableHeader+int64(first)*tableEntry); err != nil {
			t.log.WithError(err).Warn("the exceptions are in memory only from now on: the snapshot would come back invalid if the worker died")
			return t.dropLocked()
		}
	}
	return nil
}

// drop ends the table. An error says that it is there and must not be used.
func (t *tableFile) drop() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dropLocked()
}

func (t *tableFile) dropLocked() error {
	if t.f == nil {
		return nil
	}
	err := os.Remove(t.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		_, werr := t.f.WriteAt(make([]byte, len(tableMagic)), 0) // as good
		if werr != nil {
			return fmt.Errorf("the table of the store for the next worker: %w", errors.Join(err, werr))
		}
	}
	_ = t.f.Close()
	t.f = nil
	return nil
}

// errTable says that what a table has cannot be.
var errTable = errors.New("the table of exceptions that the last worker left is damaged")

// takeTable reads what the last worker recorded into to. next is the chunk of the
// COW device that comes next. chunks and origin bound the numbers.
func takeTable(dir string, id tableID, chunks, origin Chunk, to *exceptions, log logrus.FieldLogger) (_ *tableFile, next Chunk, err error) {
	path := id.path(dir)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	t := &tableFile{log: log, path: path, f: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.drop())
		}
	}()
	head := make([]byte, tableHeader)
	if _, err := f.ReadAt(head, 0); err != nil || string(head) != string(id.header()) {
		return nil, 0, fmt.Errorf("%w: it is of another store, or its header is not whole", errTable)
	}
	b, count := bulk{t: to}, uint64(0)
	buf := make([]byte, tableReadSize)
	for at := Chunk(0); ; at += Chunk(len(buf) / tableEntry) {
		n, err := f.ReadAt(buf, tableHeader+int64(at)*tableEntry)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		if n%tableEntry != 0 {
			return nil, 0, fmt.Errorf("%w: its last entry is not whole", errTable)
		}
		for i := 0; i < n; i += tableEntry {
			v := binary.LittleEndian.Uint64(buf[i:])
			if v == 0 {
				continue
			}
			e := exception{old: Chunk(v&(1<<48-1)) - 1, new: at + Chunk(i/tableEntry)}
			if entryOf(e) != v || e.old >= origin || e.new >= chunks {
				return nil, 0, fmt.Errorf("%w: its entry for chunk %d is %#x", errTable, e.new, v)
			}
			b.add(e)
			count++
			next = e.new + 1
		}
		if n < len(buf) {
			break
		}
	}
	b.flush()
	if to.chunks() != count {
		return nil, 0, fmt.Errorf("%w: a chunk of the origin is there twice", errTable)
	}
	return t, next, nil
}
