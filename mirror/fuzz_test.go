package mirror

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
)

// FuzzLog: any bytes are looked at as a log without a panic and in bounded
// time, and the runs that are found cover each region once.
func FuzzLog(f *testing.F) {
	b := make([]byte, 2048)
	Header{logMagic, logVersion, 70}.encode(b)
	b[offBits] = 0x0f
	f.Add(b, uint64(70))
	f.Add(b, uint64(0))
	Header{logMagic, 1, 1 << 60}.encode(b)
	f.Add(b, uint64(70))
	f.Fuzz(func(t *testing.T, image []byte, regions uint64) {
		dev := blockdev.NewMemBytes(image[:min(len(image), 64<<10)])
		_, _ = Made(dev)
		_ = DumpLog(io.Discard, dev)
		r, err := CheckLog(dev, regions)
		if err != nil || r.Need == 0 || r.Need > dev.Size() {
			return
		}
		next := uint64(0)
		err = EachRun(dev, r.Header.Regions, func(x LogRun) {
			if x.First != next || x.Count == 0 {
				t.Fatalf("a run of %d from %d, expected one from %d", x.Count, x.First, next)
			}
			next += x.Count
		})
		if err != nil || next != r.Header.Regions || r.Clean+r.Dirty != next {
			t.Fatalf("%d of %d regions, %v; %+v", next, r.Header.Regions, err, r)
		}
	})
}

// FuzzSidecar: what stands beside a leg makes no panic; what is accepted is
// written and comes back.
func FuzzSidecar(f *testing.F) {
	leg := filepath.Join(f.TempDir(), "leg")
	if err := os.WriteFile(leg, nil, 0o600); err != nil {
		f.Fatal(err)
	}
	ino, err := osSteps{}.inode(leg)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(Sidecar{Version: sidecarVersion, Kind: KindLeg, Inode: ino, Record: Record{Mirror: "m", Generation: 1, Tag: "t"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(strings.Replace(string(good), `"generation":1`, `"generation":18446744073709551615`, 1)))
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(SidecarPath(leg), text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := ReadSidecar(leg)
		if err != nil {
			if blockdev.Kind(err) != blockdev.ErrInvalid {
				t.Fatal(err)
			}
			return
		}
		if err := WriteSidecar(leg, s); err != nil {
			t.Fatal(err)
		}
		if again, err := ReadSidecar(leg); err != nil || again.Mirror != s.Mirror || again.Generation != s.Generation || len(again.Legs) != len(s.Legs) {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}

// FuzzParams: any mirror line is refused or understood.
func FuzzParams(f *testing.F) {
	for _, line := range []string{"core 1 1024 2 /a 0 /b 0", "disk 2 /l 64 3 /a 0 /b 8 /c 0 2 handle_errors keep_log", "core 2 1024 nosync 2 /a 0 /b 0 1 handle_errors", "core 18446744073709551615 1 2"} {
		f.Add(line, uint64(4096))
	}
	f.Fuzz(func(_ *testing.T, line string, length uint64) {
		_, _ = parseParams(strings.Fields(line), blockdev.Sector(length))
	})
}
