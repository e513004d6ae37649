package mirror

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/blockdev/devtest"
)

// TestCheckLog_Kernel: the logs that the kernel wrote are good, and the bits are
// those that the recording tells.
func TestCheckLog_Kernel(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(vectorDir, "mirror", "*", "log*.img.gz"))
	if err != nil || len(files) < 10 {
		t.Fatal(len(files), err)
	}
	for _, f := range files {
		var v struct {
			Logs map[string]struct {
				Regions uint64 `json:"nr_regions"`
				Bits    string `json:"in_sync_bits"`
			}
		}
		readJSON(t, filepath.Join(filepath.Dir(f), "vector.json"), &v)
		want := v.Logs[strings.TrimSuffix(filepath.Base(f), ".gz")]
		r, err := CheckLog(blockdev.NewMemBytes(gunzip(t, f)), want.Regions)
		if err != nil || len(r.Problems) > 0 {
			t.Errorf("%s: %v %v", f, err, r.Problems)
		}
		if n := uint64(strings.Count(want.Bits, "1")); r.Clean != n || r.Dirty != want.Regions-n {
			t.Errorf("%s: %d clean, %d dirty, want %s", f, r.Clean, r.Dirty, want.Bits)
		}
	}
}

func TestCheckLog_Problems(t *testing.T) {
	log := func(h Header, sectors int64, fill byte) blockdev.Device {
		p := make([]byte, sectors*512)
		for i := range p {
			p[i] = fill
		}
		h.encode(p)
		return blockdev.NewMemBytes(p)
	}
	good := Header{logMagic, 2, 70}
	for _, c := range []struct {
		dev     blockdev.Device
		regions uint64
		want    []ProblemKind
		damaged bool
	}{
		{log(good, 3, 0), 70, nil, false},
		{log(Header{logMagic, 1, 70}, 3, 0), 70, nil, false},
		{log(Header{}, 3, 0), 70, []ProblemKind{ProblemBlank}, true},
		{log(Header{1, 2, 70}, 3, 0), 70, []ProblemKind{ProblemMagic}, true},
		{log(Header{logMagic, 3, 70}, 3, 0), 70, []ProblemKind{ProblemVersion}, true},
		{log(good, 3, 0), 71, []ProblemKind{ProblemRegions}, true},
		{log(good, 3, 0xff), 70, []ProblemKind{ProblemPadding}, false},
		{log(good, 2, 0), 70, []ProblemKind{ProblemTooSmall}, true},
		{log(Header{logMagic, 2, 1 << 63}, 3, 0), 0, []ProblemKind{ProblemTooSmall}, true},
		{log(Header{logMagic, 2, ^uint64(0)}, 3, 0), 0, []ProblemKind{ProblemTooSmall}, true},
		{devtest.NewFaultText(log(good, 3, 0), "read 2+1 errno=EIO"), 70, []ProblemKind{ProblemUnreadable}, true},
	} {
		r, err := CheckLog(c.dev, c.regions)
		if err != nil {
			t.Fatal(err)
		}
		var kinds []ProblemKind
		for _, p := range r.Problems {
			kinds = append(kinds, p.Kind)
		}
		if len(kinds) != len(c.want) || len(kinds) > 0 && kinds[0] != c.want[0] || r.Damaged() != c.damaged || (r.Err() != nil) != c.damaged {
			t.Errorf("%v, want %v", r.Problems, c.want)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
	}
	if _, err := CheckLog(blockdev.NewMem(8), 0); err == nil {
		t.Error("a device without a header is no error")
	}
}

func TestDumpLog(t *testing.T) {
	p := make([]byte, 3*512)
	Header{logMagic, 2, 130}.encode(p)
	p[offBits] = 0x0f
	for i := 8; i < 17; i++ {
		p[offBits+i] = 0xff
	}
	var b strings.Builder
	if err := DumpLog(&b, blockdev.NewMemBytes(p)); err != nil {
		t.Fatal(err)
	}
	const want = "magic 0x4d695272 version 2 regions 130\npadding: bits behind region 129 are set\n0..3 clean\n4..63 dirty\n64..129 clean\n"
	if b.String() != want {
		t.Errorf("%q\nwant %q", b.String(), want)
	}
}
