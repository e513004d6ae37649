package fault

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
	"github.com/dmfuse/dmfuse/target"
	"github.com/dmfuse/dmfuse/target/targettest"
)

func TestDust_Suite(t *testing.T) {
	typ := Dust()
	open := typ.New
	typ.New = func(env *target.Env, args []string) (target.Target, error) {
		tgt, err := open(env, args)
		if errors.Is(err, blockdev.ErrNoDevice) && blockdev.Kind(err) == blockdev.ErrInvalid {
			err = blockdev.ErrNoDevice // as the suite wants it; dust is to hide it
		}
		return tgt, err
	}
	c := targettest.Case{
		Types: func() []target.Type { return []target.Type{typ} }, Start: 40, Length: 200, KeepsOnError: true,
		Disks:   []targettest.Disk{{Name: "a", Sectors: 300, Seed: 7}},
		Content: func(s blockdev.Sector) []byte { return devtest.Pattern(7, s+17, 1) },
		Args:    []string{"a", "17", "4096"},
	}
	for _, bad := range []string{
		"", "a", "a 0", "a 0 512 x", "a x 512", "a -1 512", "a 0 x", "a 0 0", "a 0 256", "a 0 513", "a 0 131072", "a 0 2147483648",
		"a 18014398509481983 512",
	} {
		c.Bad = append(c.Bad, strings.Fields(bad))
	}
	targettest.Suite(t, c)
}

// say sends a message and wants an answer; "EINVAL" an error of that kind.
func say(t *testing.T, tgt target.Target, message, want string) {
	t.Helper()
	got, err := tgt.(target.Messager).Message(context.Background(), strings.Fields(message))
	if err != nil && blockdev.Kind(err) == blockdev.ErrInvalid {
		got = "EINVAL"
	} else if err != nil {
		t.Errorf("%s: %v", message, err)
	}
	if got != want {
		t.Errorf("%s: %q, want %q", message, got, want)
	}
}

// What is recorded is what a restart finds; each change is recorded before it is
// answered, that of a write, too.
func TestDust_OutlivesAKill(t *testing.T) {
	l := newLab(t, 64, "a")
	records := 0
	l.env.Record = func() { records++ }
	d := l.make(Dust(), "a 0 512")
	recorded := func(what, want string) {
		t.Helper()
		if got := d.(target.Rememberer).Remember(); got != want || records != 1 {
			t.Errorf("%s: %q, recorded %d times; want %q, once", what, got, records, want)
		}
		records = 0
	}
	for _, m := range [][2]string{
		{"quiet", "quiet"}, {"enable", "enabled quiet"}, {"quiet", "enabled"}, {"addbadblock 7", "enabled 7"},
		{"addbadblock 8", "enabled 7-8"}, {"addbadblock 9 2", "enabled 7-8 9:2"}, {"addbadblock 10 2", "enabled 7-8 9-10:2"},
		{"addbadblock 64 255", "enabled 7-8 9-10:2 64:255"}, {"removebadblock 8", "enabled 7 9-10:2 64:255"},
	} {
		say(t, d, m[0], "")
		recorded(m[0], m[1])
	}
	for _, m := range []string{"addbadblock 7", "removebadblock 8", "nosuch"} {
		say(t, d, m, "EINVAL")
	}
	if err := d.Read(context.Background(), make([]byte, 512), 7*512); blockdev.Kind(err) != blockdev.ErrIO || records != 0 {
		t.Errorf("a read of a bad block: %v, recorded %d times", err, records)
	}
	_ = d.Write(context.Background(), make([]byte, 4*512), 7*512, false)
	recorded("a write to bad blocks", "enabled 9-10:1 64:255")

	again := func(text string) string {
		l := newLab(t, 64, "a")
		l.env.Restoring, l.env.Remembered = true, text
		return l.make(Dust(), "a 0 512").(target.Rememberer).Remember()
	}
	for _, text := range []string{"", "quiet", "enabled 9-10:1 64:255", "0-64"} {
		if got := again(text); got != text {
			t.Errorf("recorded %q, found %q", text, got)
		}
	}
	for _, text := range []string{
		"enabled 65", "enabled 7 x", "7:256", "7:", "8-7", "-1", "7-", "7-8-9", "0-18446744073709551615", "\xff\x00", "enabled\x00",
	} {
		if got := again(text); got != "" {
			t.Errorf("damaged record %q: found %q, want nothing", text, got)
		}
	}
	say(t, d, "clearbadblocks", "dust_clear_badblocks: badblocks cleared")
	recorded("clearbadblocks", "enabled")
}

func TestDust_Messages(t *testing.T) {
	d := newLab(t, 64, "a").make(Dust(), "a 0 1024")
	for _, m := range [][2]string{
		{"countbadblocks", "countbadblocks: 0 badblock(s) found"},
		{"listbadblocks", "No blocks in badblocklist"},
		{"clearbadblocks", "dust_clear_badblocks: no badblocks found"},
		{"queryblock 7", "dust_query_block: block 7 not found in badblocklist"},
		{"addbadblock 7", ""}, {"AddBadBlock 3 255", ""}, {"addbadblock 32", ""},
		{"addbadblock 7", "EINVAL"}, {"addbadblock 33", "EINVAL"}, {"addbadblock 4 256", "EINVAL"}, {"addbadblock 4 x", "EINVAL"},
		{"addbadblock", "EINVAL"}, {"addbadblock x", "EINVAL"}, {"addbadblock 1 2 3", "EINVAL"}, {"addbadblock 1k", "EINVAL"},
		{"queryblock 7", "dust_query_block: block 7 found in badblocklist"},
		{"queryblock", "EINVAL"}, {"queryblock 7 8", "EINVAL"}, {"queryblock 33", "EINVAL"},
		{"countbadblocks", "countbadblocks: 3 badblock(s) found"},
		{"listbadblocks", "3\n7\n32\n"},
		{"removebadblock 7", ""}, {"removebadblock 7", "EINVAL"}, {"removebadblock", "EINVAL"}, {"removebadblock 3 1", "EINVAL"},
		{"clearbadblocks", "dust_clear_badblocks: badblocks cleared"},
		{"countbadblocks", "countbadblocks: 0 badblock(s) found"},
		{"countbadblocks 1", "EINVAL"}, {"nosuch", "EINVAL"}, {"", "EINVAL"},
	} {
		say(t, d, m[0], m[1])
	}
	for _, s := range [][2]string{
		{"disable", "a bypass verbose"}, {"enable", "a fail_read_on_bad_block verbose"}, {"quiet", "a fail_read_on_bad_block quiet"},
		{"Disable", "a bypass quiet"}, {"quiet", "a bypass verbose"},
	} {
		say(t, d, s[0], "")
		if got := d.Status(target.StatusInfo); got != s[1] {
			t.Errorf("status after %s: %q, want %q", s[0], got, s[1])
		}
	}
}

// Reads of a bad block fail; a write fails as often as was said, then makes the
// block good. In bypass mode the list is not looked at.
func TestDust_BadBlocks(t *testing.T) {
	l := newLab(t, 64, "a")
	d := l.make(Dust(), "a 0 1024")
	ctx := context.Background()
	say(t, d, "addbadblock 3 2", "")
	try := func(what string, err error, want bool) {
		t.Helper()
		if (err == nil) != want || err != nil && blockdev.Kind(err) != blockdev.ErrIO {
			t.Errorf("%s: %v", what, err)
		}
	}
	p := make([]byte, 1024)
	one := bytes.Repeat([]byte{1}, 1024)
	try("read in bypass mode", d.Read(ctx, p, 3072), true)
	try("write in bypass mode", d.Write(ctx, one, 3072, false), true)
	say(t, d, "enable", "")
	try("read", d.Read(ctx, p, 3072), false)
	try("read of its end", d.Read(ctx, p[:1], 4095), false)
	try("read beside it", d.Read(ctx, p, 2048), true)
	try("read behind it", d.Read(ctx, p, 4096), true)
	try("read over it", d.Read(ctx, make([]byte, 8192), 0), false)
	try("write 1", d.Write(ctx, one, 3072, false), false)
	try("discard, the second write", d.(target.Discarder).Discard(ctx, 3072, 512), false)
	try("read between", d.Read(ctx, p, 3072), false)
	try("flush", d.Flush(ctx), true)
	try("write 3", d.Write(ctx, p[:512], 3584, true), true)
	try("read after it", d.Read(ctx, p, 3072), true)
	say(t, d, "countbadblocks", "countbadblocks: 0 badblock(s) found")
	if !bytes.Equal(p[:512], one[:512]) || p[512] != 0 {
		t.Error("the block holds something else")
	}
}

// A large write is one for each block: the good ones arrive.
func TestDust_PiecesOfARequest(t *testing.T) {
	l := newLab(t, 64, "a")
	d := l.make(Dust(), "a 0 512")
	say(t, d, "addbadblock 2 1", "")
	say(t, d, "addbadblock 5", "")
	say(t, d, "enable", "")
	l.disks["a"].SetText("write,fua")
	if err := d.Write(context.Background(), bytes.Repeat([]byte{1}, 8*512), 0, false); blockdev.Kind(err) != blockdev.ErrIO || !strings.Contains(err.Error(), "block 2") {
		t.Error(err)
	}
	if n := l.disks["a"].Hits(0); n != 2 {
		t.Errorf("%d writes for the runs 0-1 and 3-7", n)
	}
	for s, want := range []byte{1, 1, 0, 1, 1, 1, 1, 1, 0} {
		if got := l.on("a", int64(s)*512, 1)[0]; got != want {
			t.Errorf("block %d holds %d, want %d", s, got, want)
		}
	}
	say(t, d, "listbadblocks", "2\n")
	if err := d.(target.Zeroer).Zero(context.Background(), 0, 4096, true); !errors.Is(err, blockdev.ErrUnsupported) {
		t.Errorf("zeros must be written where blocks may be bad: %v", err)
	}
	if _, hole, err := d.(target.Extenter).Extent(context.Background(), 10*512); hole || err != nil {
		t.Errorf("a hole where blocks may be bad: %v %v", hole, err)
	}
}

// Blocks are counted on the device; a request is cut where blocks of the segment
// end, and each piece counts for the block of its first sector.
func TestDust_StartOfTheArea(t *testing.T) {
	l := newLab(t, 128, "a")
	l.env.Start, l.env.Length = 1000, 64
	d := l.make(Dust(), "a 10 2048") // block 3 has sectors 12 to 15 of the device: 2 to 5 of the segment
	say(t, d, "addbadblock 3", "")
	say(t, d, "enable", "")
	got := ""
	for s := range int64(8) {
		if d.Read(context.Background(), make([]byte, 512), (1000+s)*512) != nil {
			got += "x"
		} else {
			got += "."
		}
	}
	if got != "..xxxx.." {
		t.Errorf("sectors: %s", got)
	}
	// From sector 0 of the segment: a piece of sectors 0 to 3, which counts for
	// block 2, and one from 4 on, for block 3.
	if err := d.Read(context.Background(), make([]byte, 4*512), 1000*512); err != nil {
		t.Error(err)
	}
	if err := d.Read(context.Background(), make([]byte, 5*512), 1000*512); err == nil {
		t.Error("sector 4 is not in block 3?")
	}
}
