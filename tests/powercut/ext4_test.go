package powercut

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/tests/harness"
)

// check is what every content has to stand: the journal can be replayed and the
// file system repaired as after a crash, nothing is wrong then, and all files
// that were kept up to the last mark are there.
const check = `#!/bin/sh
fsck.ext4 -fy "$DEV" >"$DEV.out" 2>&1
test $? -le 1 || { cat "$DEV.out"; exit 21; }
fsck.ext4 -fn "$DEV" >"$DEV.out" 2>&1 || { cat "$DEV.out"; exit 22; }
rm "$DEV.out"
case "$DMFUSE_MARK" in
keep*) n=${DMFUSE_MARK#keep} ;;
'') n=0 ;;
*) n=$KEPT ;;
esac
i=1
while [ $i -le $n ]; do
	debugfs -R "cat /keep$i" "$DEV" 2>/dev/null | cmp -s - "$WANT/keep$i" || { echo "keep$i is lost"; exit 23; }
	i=$((i + 1))
done
`

// recorded is the log of a load on ext4.
type recorded struct {
	t               *testing.T
	d               *harness.Daemon
	base, live, log string
	env             []string
	kept            int
}

// record runs a load on ext4 on a loop device on a log-writes device.
func record(t *testing.T, features string, size int64, workers, ops, every int) *recorded {
	t.Helper()
	harness.RequireLoop(t)
	harness.RequireTool(t, "mkfs.ext4", "fsck.ext4", "debugfs")
	seed := harness.Seed(t)
	d := harness.Start(t)
	r := &recorded{t: t, d: d, base: d.Image("base.img", size), live: d.Path("live.img"), log: d.Image("log.img", 1<<30)}
	harness.Must(t, "mkfs.ext4", "-q", "-F", "-J", "size=1", "-O", features, r.base)
	harness.Must(t, "cp", "--sparse=always", r.base, r.live)
	want := d.Path("want")
	if err := os.Mkdir(want, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.Path("check"), []byte(check), 0o755); err != nil {
		t.Fatal(err)
	}
	d.Must("create", "lw", "--table", fmt.Sprintf("0 %d log-writes %s %s", size/512, r.live, r.log))
	loop := harness.Losetup(t, d.Dev("lw"))
	mnt := harness.Mount(t, d.Dir, loop, "ext4", "discard")
	l := &load{t: t, dir: mnt, want: want, mark: func(text string) { d.Must("message", "lw", "0", "mark", text) }}
	l.run(seed, workers, ops, every)
	harness.Umount(t, mnt)
	harness.Detach(t, loop)
	d.Must("remove", "lw")
	r.kept = l.kept
	r.env = []string{"WANT=" + want, fmt.Sprint("KEPT=", l.kept), "TMPDIR=" + d.Dir, "PATH=/usr/sbin:/sbin:" + os.Getenv("PATH")}
	return r
}

// summary is what replay says under -J.
type summary struct {
	Entries, Flushes, Marks, Cuts, States, Failed int
	Checks                                        []struct {
		Entry, Exit        int
		Seed, Mark, Output string
	}
}

// replay runs the verb on a copy of the base.
func (r *recorded) replay(log string, args ...string) (summary, harness.Result) {
	r.t.Helper()
	harness.Must(r.t, "cp", "--sparse=always", r.base, r.d.Path("again.img"))
	argv := append([]string{harness.Binary(r.t), "replay", "-J", log, r.d.Path("again.img"), "--scratch", r.d.Dir}, args...)
	res := harness.Command{Args: argv, Env: r.env, Limit: 4 * time.Minute}.Run(r.t)
	var s summary
	if res.Stdout != "" {
		if err := json.Unmarshal([]byte(res.Stdout), &s); err != nil {
			r.t.Fatalf("%v\n%s", err, res.Stdout)
		}
	}
	return s, res
}

func (r *recorded) mustPass(s summary, res harness.Result) {
	r.t.Helper()
	if res.Code == 0 && s.Failed == 0 {
		return
	}
	for _, c := range s.Checks {
		if c.Exit != 0 {
			r.t.Errorf("entry %d, mark %q, seed %q: exit %d\n%s", c.Entry, c.Mark, c.Seed, c.Exit, c.Output)
			break
		}
	}
	r.t.Fatalf("exit %d, %d failed: %s", res.Code, s.Failed, res.Stderr)
}

// At every flush and mark the file system is sound and has what was synced; at
// the end the device is what it was.
func TestExt4_IsSoundAtEveryFlush(t *testing.T) {
	r := record(t, "^resize_inode", 8<<20, 2, harness.Pick(12, 300), 4)
	s, res := r.replay(r.log, "--fsck", r.d.Path("check"))
	r.mustPass(s, res)
	if s.Flushes < 10 || len(s.Checks) < s.Flushes || s.Marks != r.kept+1 || r.kept < 6 {
		t.Errorf("%d flushes, %d checks, %d marks, %d files kept: too few to prove anything", s.Flushes, len(s.Checks), s.Marks, r.kept)
	}
	harness.Must(t, "cmp", r.live, r.d.Path("again.img"))
	left, _ := filepath.Glob(r.d.Path("dmfuse-replay-*"))
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	r.ontoBlockDevice()
}

// ontoBlockDevice replays onto a loop device, which is refused while it is
// mounted.
func (r *recorded) ontoBlockDevice() {
	t := r.t
	t.Helper()
	harness.Must(t, "cp", "--sparse=always", r.base, r.d.Path("block.img"))
	loop := harness.Losetup(t, r.d.Path("block.img"))
	mnt := harness.Mount(t, r.d.Dir, loop, "ext4", "")
	for _, dev := range []string{loop, r.d.Path("block.img")} {
		if res := harness.Run(t, harness.Binary(t), "replay", r.log, dev); res.Code != 4 || !strings.Contains(res.Stderr, "in use") {
			t.Errorf("replay onto %s, which is mounted: %v", dev, res)
		}
	}
	harness.Umount(t, mnt)
	harness.Must(t, harness.Binary(t), "replay", r.log, loop)
	harness.Must(t, "cmp", r.live, loop)
	harness.Detach(t, loop)
}

// After every power cut, too. The super block of ext4 has two sectors, and with a
// checksum over both a torn one cannot be opened: with sectors of 512 bytes ext4
// has to do without.
func TestExt4_IsSoundAfterEveryPowerCut(t *testing.T) {
	for tear, features := range map[string]string{"512": "^resize_inode,^metadata_csum", "4096": "^resize_inode"} {
		t.Run(tear, func(t *testing.T) {
			r := record(t, features, 8<<20, 2, harness.Pick(8, 100), 4)
			s, res := r.replay(r.log, "--enumerate", "--bound", fmt.Sprint(harness.Pick(3, 12)), "--tear", tear, "--fsck", r.d.Path("check"))
			r.mustPass(s, res)
			if s.Cuts < 10 || s.States < 2*s.Cuts || len(s.Checks) != s.States {
				t.Errorf("%d power cuts, %d contents, %d checks", s.Cuts, s.States, len(s.Checks))
			}
			t.Logf("%d power cuts, %d contents, %d files kept", s.Cuts, s.States, r.kept)
		})
	}
}

// A logger that forgets flushes is found out, and the seed makes the content again
// that it was found out with.
func TestExt4_NoticesALogWithoutFlushes(t *testing.T) {
	r := record(t, "^resize_inode", 8<<20, 2, 8, 4)
	broken := r.d.Path("broken.img")
	r.dropFlushes(broken)
	s, res := r.replay(broken, "--enumerate", "--fsck", r.d.Path("check"), "--first")
	if res.Code != 1 || s.Failed != 1 {
		t.Fatalf("a log without flushes: exit %d, %d failed of %d", res.Code, s.Failed, s.States)
	}
	bad := s.Checks[len(s.Checks)-1]
	again, res := r.replay(broken, "--seed", bad.Seed, "--fsck", r.d.Path("check"))
	if res.Code != 1 || len(again.Checks) != 1 || again.Checks[0].Exit != bad.Exit || stable(again.Checks[0].Output) != stable(bad.Output) {
		t.Errorf("seed %s again: %v, was exit %d\n%s", bad.Seed, res, bad.Exit, bad.Output)
	}
}

// stable is the output of a check without names of scratch files.
func stable(s string) string {
	words := strings.Fields(s)
	for i, w := range words {
		if strings.Contains(w, "dmfuse-replay-") {
			words[i] = "FILE"
		}
	}
	return strings.Join(words, " ")
}

// dropFlushes writes a copy of the log in which nothing is a flush or durable:
// what was only a flush becomes a write of nothing.
func (r *recorded) dropFlushes(to string) {
	r.t.Helper()
	harness.Must(r.t, "cp", "--sparse=always", r.log, to)
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 512)
	if _, err := f.ReadAt(head, 0); err != nil {
		r.t.Fatal(err)
	}
	le := binary.LittleEndian
	entries, block := le.Uint64(head[16:]), int64(le.Uint32(head[24:]))
	at := block
	dropped := 0
	for range entries {
		if _, err := f.ReadAt(head, at); err != nil {
			r.t.Fatal(err)
		}
		blocks, flags := le.Uint64(head[8:]), le.Uint64(head[16:])
		if flags&3 != 0 {
			dropped++
			flags &^= 3
			le.PutUint64(head[16:], flags)
			if _, err := f.WriteAt(head, at); err != nil {
				r.t.Fatal(err)
			}
		}
		at += block
		if flags&4 == 0 {
			at += int64(blocks) * block
		}
	}
	if dropped < 10 {
		r.t.Fatalf("%d flushes were dropped", dropped)
	}
}
