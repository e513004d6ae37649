package fault

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/targettest"
	"pgregory.net/rapid"
)

func TestLogWrites_Suite(t *testing.T) {
	targettest.Suite(t, targettest.Case{
		Types: one(LogWrites), Length: 200,
		Disks: []targettest.Disk{{Name: "a b", Sectors: 200}, {Name: "log", Sectors: 100000}},
		Args:  []string{"a b", "log"}, Table: `a\ b log`,
		Bad: [][]string{{}, {"a b"}},
	})
}

// rawEntry is an entry as the format says: read from the description of
// dm-log-writes, not with the code under test.
type rawEntry struct {
	block, blocks, flags, textLen uint64
	text                          string
	data                          []byte
}

// decode reads a log by the description of the format alone.
func decode(t interface{ Fatalf(string, ...any) }, log []byte) (blockSize uint64, list []rawEntry) {
	le := binary.LittleEndian
	if le.Uint64(log) != 0x6a736677736872 || le.Uint64(log[8:]) != 1 {
		t.Fatalf("the log begins with % x", log[:16])
	}
	count := le.Uint64(log[16:])
	blockSize = uint64(le.Uint32(log[24:]))
	if rest := log[28:blockSize]; len(bytes.Trim(rest, "\x00")) != 0 {
		t.Fatalf("the rest of the super block is not zero: % x", rest)
	}
	at := blockSize
	for range count {
		head := log[at : at+blockSize]
		e := rawEntry{block: le.Uint64(head), blocks: le.Uint64(head[8:]), flags: le.Uint64(head[16:]), textLen: le.Uint64(head[24:])}
		e.text = string(head[32 : 32+e.textLen])
		if len(bytes.Trim(head[32+e.textLen:], "\x00")) != 0 {
			t.Fatalf("the rest of a header is not zero: % x", head)
		}
		at += blockSize
		if e.flags&4 == 0 {
			e.data = log[at : at+e.blocks*blockSize]
			at += e.blocks * blockSize
		}
		list = append(list, e)
	}
	return blockSize, list
}

// short is an entry in words: "w3" one block of data at block 3.
func (e rawEntry) short() string {
	n := ""
	if e.blocks > 1 {
		n = fmt.Sprintf("+%d", e.blocks)
	}
	switch e.flags {
	case 0:
		return fmt.Sprintf("w%d%s", e.block, n)
	case 1:
		return "flush"
	case 2:
		return fmt.Sprintf("fua%d%s", e.block, n)
	case 4:
		return fmt.Sprintf("d%d%s", e.block, n)
	case 8:
		return "mark:" + e.text
	}
	return fmt.Sprintf("%+v", e)
}

// logLab is a lab with a device "a" and a log "log".
type logLab struct {
	*lab
	target.Target
}

func newLogLab(t *testing.T, logSectors int64) *logLab {
	l := newLab(t, 64, "a", "log")
	l.disks["log"] = newLab(t, blockdev.Sector(logSectors), "log").disks["log"]
	return &logLab{l, l.make(LogWrites(), "a log")}
}

func (l *logLab) write(block, blocks int64, fill byte, fua bool) {
	l.t.Helper()
	if err := l.Write(context.Background(), bytes.Repeat([]byte{fill}, int(blocks)*512), block*512, fua); err != nil {
		l.t.Fatal(err)
	}
}

func (l *logLab) flush() {
	l.t.Helper()
	if err := l.Flush(context.Background()); err != nil {
		l.t.Fatal(err)
	}
}

func (l *logLab) discard(block, blocks int64) {
	l.t.Helper()
	if err := l.Target.(target.Discarder).Discard(context.Background(), block*512, blocks*512); err != nil {
		l.t.Fatal(err)
	}
}

func (l *logLab) mark(words ...string) error {
	_, err := l.Target.(target.Messager).Message(context.Background(), append([]string{"mark"}, words...))
	return err
}

func (l *logLab) logged() string {
	l.t.Helper()
	_, list := decode(l.t, l.on("log", 0, int(l.disks["log"].Size())))
	var words []string
	for _, e := range list {
		words = append(words, e.short())
	}
	return strings.Join(words, " ")
}

func (l *logLab) want(log, status string) {
	l.t.Helper()
	if got := l.logged(); got != log {
		l.t.Errorf("the log has %s\nwant %s", got, log)
	}
	if got := l.Status(target.StatusInfo); got != status {
		l.t.Errorf("status %q, want %q", got, status)
	}
}

// end suspends and closes, as a removal does.
func (l *logLab) end() {
	l.t.Helper()
	s := l.Target.(target.Suspender)
	s.Presuspend(false)
	s.Postsuspend()
	if err := l.Close(); err != nil {
		l.t.Error(err)
	}
}

// Each byte of a small log, as dm-log-writes would have written it.
func TestLogWrites_Bytes(t *testing.T) {
	l := newLogLab(t, 64)
	l.write(3, 2, 0xaa, false)
	l.flush()
	l.write(9, 1, 0xbb, true)
	l.discard(20, 4)
	if err := l.mark("half"); err != nil {
		t.Fatal(err)
	}
	l.end()
	want := make([]byte, 64*512)
	at := 0
	put := func(size int, words ...uint64) {
		for i, w := range words {
			binary.LittleEndian.PutUint64(want[at+8*i:], w)
		}
		at += size
	}
	put(512, 0x6a736677736872, 1, 6, 512)
	put(512, 3, 2, 0, 0)
	copy(want[at:], bytes.Repeat([]byte{0xaa}, 1024))
	at += 1024
	put(512, 0, 0, 1, 0)
	put(512, 9, 1, 2, 0)
	copy(want[at:], bytes.Repeat([]byte{0xbb}, 512))
	at += 512
	copy(want[at+32:], "half")
	put(512, 0, 0, 8, 4)
	put(512, 20, 4, 4, 0)
	copy(want[at+32:], "dm-log-writes-end")
	put(512, 0, 0, 8, 17)
	if got := l.on("log", 0, len(want)); !bytes.Equal(got, want) {
		for s := 0; s*512 < len(want); s++ {
			if !bytes.Equal(got[s*512:][:512], want[s*512:][:512]) {
				t.Errorf("sector %d:\n got % x\nwant % x", s, got[s*512:][:64], want[s*512:][:64])
			}
		}
	}
}

// What is answered before a flush is submitted is logged with it, what comes
// while it runs with the next one; in the order of completion.
func TestLogWrites_OrderShowsWhatIsDurable(t *testing.T) {
	l := newLogLab(t, 1000)
	l.wantEmpty()
	l.write(5, 1, 1, false)
	l.write(1, 2, 2, false)
	l.wantEmpty()
	l.disks["a"].SetText("flush hang")
	done := make(chan error, 1)
	go func() { done <- l.Flush(context.Background()) }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := l.disks["a"].AwaitHanging(ctx, 1); err != nil {
		t.Fatal(err)
	}
	l.write(9, 1, 3, false)
	l.disks["a"].Set()
	l.disks["a"].Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	l.want("w5 w1+2 flush", "3 6")
	l.flush()
	l.want("w5 w1+2 flush w9 flush", "5 9")
	l.end()
	l.want("w5 w1+2 flush w9 flush mark:dm-log-writes-end", "6 10")
}

// wantEmpty: nothing is on the log yet.
func (l *logLab) wantEmpty() {
	l.t.Helper()
	if got := l.on("log", 0, 1024); !bytes.Equal(got, make([]byte, 1024)) {
		l.t.Errorf("there is something on the log: % x", got[:64])
	}
	if got := l.Status(target.StatusInfo); got != "0 0" {
		l.t.Errorf("status %q", got)
	}
}

// A durable write is logged at once; older writes to its blocks, and older ones
// to theirs, go before it, so that replay ends with the newest.
func TestLogWrites_DurableWrites(t *testing.T) {
	l := newLogLab(t, 1000)
	l.write(1, 1, 1, false)
	l.write(10, 2, 2, false)
	l.write(20, 1, 3, false)
	l.write(11, 3, 4, false)
	l.write(13, 1, 5, true)
	l.want("w10+2 w11+3 fua13", "3 9")
	l.write(30, 1, 6, true)
	l.want("w10+2 w11+3 fua13 fua30", "4 11")
	l.flush()
	l.want("w10+2 w11+3 fua13 fua30 w1 w20 flush", "7 16")
	l.end()
}

// Writes that are never flushed are logged at the end, without a flush.
func TestLogWrites_EndLogsTheRest(t *testing.T) {
	l := newLogLab(t, 1000)
	l.write(1, 1, 1, false)
	l.end()
	l.want("w1 mark:dm-log-writes-end", "2 3")
}

func TestLogWrites_Marks(t *testing.T) {
	l := newLogLab(t, 1000)
	long := strings.Repeat("x", 600)
	for _, text := range []string{"one", "two words", "", long} {
		if err := l.mark(text); err != nil {
			t.Errorf("mark %q: %v", text, err)
		}
	}
	l.want("mark:one mark:two words mark: mark:"+long[:512-33], "4 4")
	for _, words := range [][]string{{}, {"a", "b"}} {
		if err := l.mark(words...); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("mark %q: %v", words, err)
		}
	}
	if _, err := l.Target.(target.Messager).Message(context.Background(), []string{"nosuch", "x"}); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("another message: %v", err)
	}
	if _, err := l.Target.(target.Messager).Message(context.Background(), []string{"MARK", "x"}); err != nil {
		t.Errorf("letter case: %v", err)
	}
	l.end()
}

// A device without discards takes them and logs them.
func TestLogWrites_Discards(t *testing.T) {
	l := newLogLab(t, 1000)
	l.write(4, 1, 1, false)
	l.disks["a"].SetText("discard errno=EOPNOTSUPP")
	l.discard(4, 8)
	if err := l.Target.(target.Discarder).Discard(context.Background(), 100, 1500); err != nil { // blocks 1 and 2 in full
		t.Fatal(err)
	}
	if err := l.Target.(target.Discarder).Discard(context.Background(), 100, 500); err != nil { // none
		t.Fatal(err)
	}
	z := l.Target.(target.Zeroer)
	if err := z.Zero(context.Background(), 30*512, 1024, true); err != nil {
		t.Fatal(err)
	}
	for _, unmap := range []bool{true, false} { // must be written
		if err := z.Zero(context.Background(), 100, 1024, unmap); !errors.Is(err, blockdev.ErrUnsupported) {
			t.Errorf("zeros that cannot be a discard: %v", err)
		}
	}
	l.flush()
	l.want("w4 d4+8 d1+2 d30+2 flush", "5 6")
	l.disks["a"].SetText("discard errno=EIO")
	if err := l.Target.(target.Discarder).Discard(context.Background(), 0, 512); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("a discard that fails: %v", err)
	}
	l.end()
}

// A failed flush makes nothing durable: what it should have covered stays for
// the next one.
func TestLogWrites_FailedRequests(t *testing.T) {
	l := newLogLab(t, 1000)
	ctx := context.Background()
	l.write(1, 1, 1, false)
	l.disks["a"].SetText("flush count=1 errno=EIO; fua errno=EIO; write 40+1 errno=ENOSPC")
	if err := l.Flush(ctx); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("flush: %v", err)
	}
	if err := l.Write(ctx, make([]byte, 512), 1024, true); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("durable write: %v", err)
	}
	if err := l.Write(ctx, make([]byte, 512), 40*512, false); blockdev.Kind(err) != blockdev.ErrNoSpace {
		t.Errorf("write: %v", err)
	}
	l.wantEmpty()
	l.disks["a"].Set()
	l.flush()
	l.want("w1 w2 w40 flush", "4 7") // those that failed may have changed the device
	l.end()
}

// The last block of the log stays free. What has no room ends the log, and I/O
// goes on.
func TestLogWrites_FullLog(t *testing.T) {
	l := newLogLab(t, 8)
	l.write(1, 2, 1, false)
	l.flush() // blocks 1 to 4
	l.write(2, 1, 2, false)
	l.flush() // 5, 6; the flush would be at 7
	l.want("w1+2 flush w2", "3 7 logging_disabled")
	l.write(3, 1, 3, true)
	l.flush()
	l.discard(5, 1)
	if err := l.mark("x"); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("mark: %v", err)
	}
	l.want("w1+2 flush w2", "3 7 logging_disabled")
	if l.on("a", 3*512, 1)[0] != 3 {
		t.Error("I/O does not go on")
	}
	l.end()
	l.want("w1+2 flush w2", "3 7 logging_disabled")
}

func TestLogWrites_LogFails(t *testing.T) {
	l := newLogLab(t, 1000)
	l.write(1, 1, 1, false)
	l.disks["log"].SetText("write 1+5 errno=EIO")
	l.flush()
	if got := l.Status(target.StatusInfo); !strings.HasSuffix(got, " logging_disabled") {
		t.Errorf("status %q", got)
	}
	l.disks["log"].Set()
	l.write(2, 1, 2, true)
	if err := l.mark("x"); blockdev.Kind(err) != blockdev.ErrIO {
		t.Errorf("mark: %v", err)
	}
	l.end()
}

// Writes that wait for a flush that never comes do not fill the memory.
func TestLogWrites_FlushesByItself(t *testing.T) {
	l := newLogLab(t, 1000)
	l.Target.(*logWrites).limit = 4 * 1024
	for i := range int64(10) {
		l.write(i, 1, 1, false)
	}
	l.want("w0 w1 w2 w3 w4 flush w5 w6 w7 w8 w9 flush", "12 22")
	l.disks["a"].SetText("flush errno=EIO")
	for i := range int64(5) {
		l.write(i, 1, 1, false)
	}
	if got := l.Status(target.StatusInfo); got != "12 22 logging_disabled" {
		t.Errorf("status %q", got)
	}
	l.end()
}

// Requests that begin or end within a block are logged as whole blocks.
func TestLogWrites_BlockSize(t *testing.T) {
	l := newLab(t, 64, "a", "log")
	big := l.disks["a"]
	big.Unwrap().(*disk).block = 4096
	all := bytes.Repeat([]byte("content."), 64*64)
	if _, err := big.WriteAt(all, 0); err != nil {
		t.Fatal(err)
	}
	w := l.make(LogWrites(), "a log")
	if got := w.Status(target.StatusInfo); got != "0 7" {
		t.Errorf("status %q", got)
	}
	if err := w.Write(context.Background(), []byte("text"), 4090+4096, false); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(context.Background(), []byte("overlap"), 4093, true); err != nil {
		t.Fatal(err)
	}
	copy(all[4090+4096:], "text")
	copy(all[4093:], "overlap")
	size, list := decode(t, l.on("log", 0, 64*512))
	if size != 4096 || len(list) != 2 || list[0].short() != "w1" || list[1].short() != "fua0+2" {
		t.Fatalf("%d %v", size, list)
	}
	if !bytes.Equal(list[1].data, all[:8192]) {
		t.Error("the data is not that of whole blocks")
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// Random requests: the log, played back, gives the device as it was at each
// flush, and the reader of the package sees what the decoder of this test sees.
func TestLogWrites_PlayedBackGivesTheDevice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newLab(t, 64, "a", "log")
		l.disks["log"] = newLab(t, 20000, "log").disks["log"]
		w := &logLab{l, l.make(LogWrites(), "a log")}
		var states [][]byte // at each flush
		ctx := context.Background()
		for i := range rapid.IntRange(1, 40).Draw(rt, "requests") {
			off := rapid.Int64Range(0, 64*512-1).Draw(rt, "offset")
			n := rapid.Int64Range(1, min(3000, 64*512-off)).Draw(rt, "length")
			var err error
			switch rapid.IntRange(0, 6).Draw(rt, "kind") {
			case 6:
				off -= off % 512
				n = min((n+511)/512*512, 64*512-off)
				err = w.Target.(target.Zeroer).Zero(ctx, off, n, true)
			case 0:
				err = w.Flush(ctx)
				states = append(states, w.on("a", 0, 64*512))
			case 1:
				err = w.Target.(target.Discarder).Discard(ctx, off, n)
			case 2:
				err = w.mark(fmt.Sprint(i))
			case 3:
				err = w.Write(ctx, bytes.Repeat([]byte{byte(i + 1)}, int(n)), off, true)
			default:
				err = w.Write(ctx, bytes.Repeat([]byte{byte(i + 1)}, int(n)), off, false)
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		w.end()
		states = append(states, w.on("a", 0, 64*512))
		_, list := decode(rt, w.on("log", 0, 20000*512))
		sameAsReader(rt, w.disks["log"], list)
		got := make([]byte, 64*512)
		for _, e := range list {
			switch {
			case e.flags == 1 || e.text == endMark:
				if !bytes.Equal(got, states[0]) {
					rt.Fatalf("flush %d from the end: another content", len(states))
				}
				states = states[1:]
			case e.flags == 4: // in memory a discard leaves zeros
				clear(got[e.block*512 : (e.block+e.blocks)*512])
			default:
				copy(got[e.block*512:], e.data)
			}
		}
		if len(states) != 0 {
			rt.Fatalf("%d flushes are not on the log", len(states))
		}
	})
}

func sameAsReader(t *rapid.T, dev blockdev.Device, want []rawEntry) {
	log, err := OpenLog(dev)
	if err != nil || log.Len() != uint64(len(want)) || log.BlockSize() != 512 {
		t.Fatalf("%+v, %v; want %d entries", log, err, len(want))
	}
	i := 0
	for e, err := range log.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		w := want[i]
		if e.Index != uint64(i) || e.Offset != int64(w.block)*512 || e.Length != int64(w.blocks)*512 || uint64(e.Flags) != w.flags || e.Mark != w.text {
			t.Fatalf("entry %d is %+v, want %+v", i, e, w)
		}
		if len(w.data) > 0 {
			p := make([]byte, len(w.data))
			if err := log.ReadData(e, p, 0); err != nil || !bytes.Equal(p, w.data) {
				t.Fatalf("data of entry %d: %v", i, err)
			}
		}
		i++
	}
}

// A table that replaces one with the same log begins the log anew, and the end
// of the old one does not touch it.
func TestLogWrites_ReplacedTableWithTheSameLog(t *testing.T) {
	typ := LogWrites()
	l := newLab(t, 64, "a", "log")
	old := &logLab{l, l.make(typ, "a log")}
	old.write(1, 1, 1, false)
	old.flush()
	second, err := typ.New(&l.env, []string{"a", "log"})
	if err != nil {
		t.Fatal(err)
	}
	s := second.(target.Suspender)
	if err := s.Preresume(); blockdev.Kind(err) != blockdev.ErrBusy {
		t.Errorf("two targets at work on one log: %v", err)
	}
	old.write(2, 1, 2, false)
	old.Target.(target.Suspender).Presuspend(false)
	old.Target.(target.Suspender).Postsuspend()
	if err := s.Preresume(); err != nil {
		t.Fatal(err)
	}
	s.Resume()
	w := &logLab{l, second}
	w.write(7, 1, 7, true)
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	w.want("fua7", "1 2")
	w.end()
	w.want("fua7 mark:dm-log-writes-end", "2 3")
}

// An older log of more entries is not taken for the new one, at any moment.
func TestLogWrites_NewLogOverAnOldOne(t *testing.T) {
	l := newLab(t, 64, "a", "log")
	w := &logLab{l, l.make(LogWrites(), "a log")}
	for range 5 {
		w.flush()
	}
	w.end()
	w.Target = l.make(LogWrites(), "a log")
	w.want("flush flush flush flush flush mark:dm-log-writes-end", "0 0") // not until something is logged
	l.disks["log"].SetText("write 1+60 errno=EIO")
	w.flush()
	w.want("", "0 1 logging_disabled")
	w.end()
}

// After a kill the log is as the daemon left it.
func TestLogWrites_RestartKeepsTheLog(t *testing.T) {
	l := newLab(t, 64, "a", "log")
	w := &logLab{l, l.make(LogWrites(), "a log")}
	w.write(1, 1, 1, false)
	w.flush()
	w.write(2, 1, 2, false)
	l.env.Restoring = true
	again := &logLab{l, l.make(LogWrites(), "a log")}
	again.write(3, 1, 3, true)
	again.flush()
	again.want("w1 flush", "0 0 logging_disabled")
	again.end()
	again.want("w1 flush", "0 0 logging_disabled")
	l.env.Restoring = false
}

func TestOpenLog_RefusesWhatIsNone(t *testing.T) {
	l := newLogLab(t, 64)
	l.write(1, 4, 1, true)
	l.end()
	log := l.disks["log"]
	change := func(at int64, words ...uint64) {
		p := make([]byte, 8*len(words))
		for i, w := range words {
			binary.LittleEndian.PutUint64(p[8*i:], w)
		}
		if _, err := log.WriteAt(p, at); err != nil {
			t.Fatal(err)
		}
	}
	opens := func() error {
		x, err := OpenLog(log)
		if err != nil {
			return err
		}
		for _, err := range x.Entries() {
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := opens(); err != nil {
		t.Fatal(err)
	}
	super := []uint64{0x6a736677736872, 1, 2, 512}
	for _, c := range []struct {
		at    int64
		words []uint64
	}{
		{0, []uint64{0}}, {8, []uint64{2}}, {24, []uint64{0}}, {24, []uint64{511}}, {24, []uint64{1 << 21}}, {16, []uint64{1 << 40}},
		{512, []uint64{1, 1 << 40}}, {512, []uint64{1 << 63, 1}}, {512, []uint64{0, 0, 8, 481}}, {520, []uint64{62}},
	} {
		change(0, super...)
		change(512, 1, 4, 2, 0)
		if err := opens(); err != nil {
			t.Fatal(err)
		}
		change(c.at, c.words...)
		if err := opens(); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := OpenLog(blockdev.NewMem(100)); blockdev.Kind(err) != blockdev.ErrInvalid {
		t.Errorf("a log of 100 bytes: %v", err)
	}
}
