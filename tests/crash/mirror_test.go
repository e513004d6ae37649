package crash

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/mirror"
	"github.com/dmfuse/dmfuse/tests/harness"
	"github.com/dmfuse/dmfuse/tests/harness/logfile"
	"github.com/dmfuse/dmfuse/tests/harness/model"
)

// mirrorRig is a mirror in a daemon that gets killed.
type mirrorRig struct {
	t       *testing.T
	d       *harness.Daemon
	rng     *rand.Rand
	sectors int64
	region  int64
	legs    []string
	log     string
	m       *model.Model
	seed    atomic.Uint64
	files   []*os.File // of writers that do not end with the daemon
	partial int        // rounds that were killed with regions out of sync
}

// TestMirrorKillUnderLoad: writers on a mirror, kill -9, restart, again and again.
// What was answered is on every leg, also before the restart; the log claims
// nothing that is not so; when the mirror is in sync again all legs are equal.
// Some of the kills come in the midst of a resync.
func TestMirrorKillUnderLoad(t *testing.T) {
	for name, make := range map[string]func(r *mirrorRig){"table line": (*mirrorRig).createByTable, "mirror create": (*mirrorRig).createByVerb} {
		t.Run(name, func(t *testing.T) {
			rounds := harness.Pick(10, 100)
			if harness.Race() {
				rounds = 3
			}
			r := newMirrorRig(t, 6<<20/sector+5)
			make(r)
			r.inSync()
			answered := 0
			for round := range rounds {
				answered += r.killRound(round)
				if t.Failed() {
					t.Fatalf("stopped in round %d", round)
				}
			}
			t.Logf("%d kills, %d of them with regions out of sync, %d answered writes, none lost", rounds, r.partial, answered)
			if r.partial == 0 {
				t.Error("no kill left anything to copy: this tried nothing")
			}
			r.d.Stop()
		})
	}
}

func newMirrorRig(t *testing.T, sectors int64, args ...string) *mirrorRig {
	t.Helper()
	r := &mirrorRig{t: t, rng: harness.Rand(harness.Seed(t)), sectors: sectors, region: 64, m: model.New(sectors, 1), d: harness.Start(t, args...)}
	r.seed.Store(1000)
	for i := range 3 {
		path := r.d.Path(fmt.Sprintf("leg%d", i))
		content := r.m.Bytes()
		if i > 0 {
			content = model.Pattern(uint64(100+i), 0, sectors)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		r.legs = append(r.legs, path)
	}
	r.log = r.d.Image("log", 64<<10)
	return r
}

func (r *mirrorRig) createByTable() {
	table := fmt.Sprintf("0 %d mirror disk 2 %s %d %d", r.sectors, r.log, r.region, len(r.legs))
	for _, l := range r.legs {
		table += " " + l + " 0"
	}
	r.d.Must("create", "m", "--table", table)
}

func (r *mirrorRig) createByVerb() {
	args := append([]string{"mirror", "create", "m"}, r.legs...)
	r.d.Must(append(args, "--log", r.log, "--region-size", fmt.Sprint(r.region*sector), "--force")...)
}

var mirrorCount = regexp.MustCompile(` (\d+)/(\d+) 1 (A+) `)

// inSync waits until the mirror says that its legs are equal.
func (r *mirrorRig) inSync() {
	r.t.Helper()
	last := ""
	if !harness.Poll(30*time.Second, func() bool {
		last = r.d.Must("status", "m")
		w := mirrorCount.FindStringSubmatch(last)
		return w != nil && w[1] == w[2]
	}) {
		r.t.Fatalf("not in sync within 30 s: %s", last)
	}
}

// killRound writes until the kill, looks at the files, restarts and compares. It
// returns how many writes were answered.
func (r *mirrorRig) killRound(round int) int {
	r.t.Helper()
	var answered atomic.Int64
	var writers sync.WaitGroup
	const parts = 4
	busy := make(chan struct{}, parts)
	for part := range int64(parts) {
		w := writer{
			path: r.d.Dev("m"), m: r.m, rng: rand.New(rand.NewPCG(r.rng.Uint64(), uint64(part))), seed: &r.seed,
			part: part, parts: parts, sectors: r.sectors, sync: (round+int(part))%3 == 0, direct: (round+int(part))%2 == 0,
		}
		writers.Go(func() {
			n, err := w.run(busy)
			answered.Add(int64(n))
			if err != nil {
				r.t.Error(err)
			}
		})
	}
	for range parts {
		select {
		case <-busy:
		case <-time.After(30 * time.Second):
			r.t.Fatal("the writers write nothing")
		}
	}
	if round%3 == 2 { // in the midst of a resync
		r.d.Must("message", "m", "0", "throttle", "20")
		r.d.Must("message", "m", "0", "resync")
	}
	<-time.After(time.Duration(r.rng.Int64N(int64(60 * time.Millisecond))))
	r.d.Kill()
	writers.Wait()
	r.checkFiles(round%3 != 2)
	r.d.Start()
	r.inSync()
	r.checkEqual()
	return int(answered.Load())
}

// checkFiles looks at log and legs while no daemon has them. Where all legs were
// in sync each of them has what was answered, else the first.
func (r *mirrorRig) checkFiles(all bool) {
	r.t.Helper()
	regions := (r.sectors + r.region - 1) / r.region
	bits, err := logfile.Read(readFile(r.t, r.log), regions)
	if err != nil {
		r.t.Fatalf("the log after kill -9: %v", err)
	}
	if err := r.ownLogCheck(regions); err != nil {
		r.t.Errorf("the log after kill -9, by our checker: %v", err)
	}
	var legs [][]byte
	for i, l := range r.legs {
		legs = append(legs, readFile(r.t, l))
		if i > 0 && !all {
			continue
		}
		if err := r.m.Check(legs[i], 0); err != nil {
			r.t.Errorf("leg %d after kill -9: %v", i, err)
		}
	}
	if err := logfile.Check(bits, r.region, legs...); err != nil {
		r.t.Error(err)
	}
	if logfile.Count(bits) < int(regions) {
		r.partial++
	}
}

func (r *mirrorRig) ownLogCheck(regions int64) error {
	f, err := blockdev.OpenFile(r.log, blockdev.FileOptions{})
	if err != nil {
		return err
	}
	defer f.Close()
	report, err := mirror.CheckLog(f, uint64(regions))
	if err != nil {
		return err
	}
	return report.Err()
}

// checkEqual: the device shows what was answered, and all legs are what it
// shows.
func (r *mirrorRig) checkEqual() {
	r.t.Helper()
	content := readFile(r.t, r.d.Dev("m"))
	if err := r.m.Check(content, 0); err != nil {
		r.t.Errorf("after the restart: %v", err)
	}
	for i, l := range r.legs {
		if !bytes.Equal(readFile(r.t, l), content) {
			r.t.Errorf("leg %d differs from the mirror, which is in sync: %s", i, strings.TrimSpace(r.d.Must("status", "m")))
		}
	}
	r.m.Settle(content)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
