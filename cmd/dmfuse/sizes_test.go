package main

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSize_UnitsArePowersOf1024(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "512b": 512, "8s": 4096, "4k": 4096, "4K": 4096, "64m": 64 << 20,
		"3g": 3 << 30, "2T": 2 << 40, "9223372036854775807": math.MaxInt64, "007k": 7 << 10,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}

func TestParseSize_RefusesWhatIsNoSize(t *testing.T) {
	for _, text := range []string{
		"", "k", "-1", "+1", "1.5g", "4kb", "4 k", "0x10", "1e3", "4p", "٣", "9223372036854775808", "9007199254740992k", "99999999999999999999",
	} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		} else if !strings.Contains(err.Error(), text) {
			t.Errorf("parseSize(%q): the error does not name the text: %v", text, err)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 bytes", 511: "511 bytes", 1024: "1 KiB", 4096: "4 KiB", 1536: "1.5 KiB", 3 << 29: "1.5 GiB", 5 << 40: "5 TiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

// The figures lvm2's own tests rely on (snapshot-usage.sh) and hand-counted
// ones at the borders of an area.
func TestCowSizeFor_CountsMetadata(t *testing.T) {
	const k = 1 << 10
	for _, c := range []struct {
		origin, chunk int64
		transient     bool
		chunks        int64
	}{
		{1, 4 * k, false, 1 + 1 + 1},
		{4 * k, 4 * k, false, 1 + 1 + 1},
		{255 * 4 * k, 4 * k, false, 1 + 255 + 1},
		{256 * 4 * k, 4 * k, false, 1 + 256 + 2}, // a full area needs the next one
		{257*4*k - 1, 4 * k, false, 1 + 257 + 2},
		{32 * 512, 512, false, 1 + 32 + 2},
		{32 * 512, 512, true, 32},
		{33, 512, true, 1},
	} {
		got, err := cowSizeFor(c.origin, c.chunk, c.transient)
		if err != nil || got != c.chunks*c.chunk {
			t.Errorf("cowSizeFor(%d, %d, %v) = %d, %v; want %d chunks", c.origin, c.chunk, c.transient, got, err, c.chunks)
		}
	}
	if _, err := cowSizeFor(math.MaxInt64, 512, false); err == nil {
		t.Error("a size beyond the largest offset was answered")
	}
}

// The size is enough for every chunk, laid out as the format places them.
func TestCowSizeFor_HoldsEveryChunk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chunk := int64(512) << rapid.IntRange(0, 6).Draw(t, "shift")
		origin := rapid.Int64Range(1, 4000*chunk).Draw(t, "origin")
		size, err := cowSizeFor(origin, chunk, false)
		if err != nil {
			t.Fatal(err)
		}
		perArea := chunk / 16
		next := int64(2)
		for i := int64(0); i < (origin+chunk-1)/chunk; i++ {
			next++
			if next%(perArea+1) == 1 {
				next++ // a metadata area, which must fit too
			}
		}
		if need := next * chunk; size < need {
			t.Fatalf("origin %d, chunk %d: %d bytes, but %d are used when everything has changed", origin, chunk, size, need)
		}
	})
}

func TestCheckChunkSize(t *testing.T) {
	for _, c := range []struct {
		chunk  int64
		blocks []int
		ok     bool
	}{
		{512, nil, true}, {4096, []int{512, 4096}, true}, {1 << 30, nil, true}, {2048, []int{512, 4096}, false},
		{0, nil, false}, {256, nil, false}, {3 << 10, nil, false}, {2 << 30, nil, false}, {-4096, nil, false},
	} {
		if err := checkChunkSize(c.chunk, c.blocks...); (err == nil) != c.ok {
			t.Errorf("checkChunkSize(%d, %v) = %v", c.chunk, c.blocks, err)
		}
	}
}
