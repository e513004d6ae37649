package delta

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func header() Header {
	return Header{
		Size: 1 << 20, Chunk: 4096, Created: time.Unix(1_700_000_000, 0).UTC(), Exact: true, ID: [16]byte{1, 2, 15: 9},
		Origin: Origin{Kind: OriginFile, A: 7, B: 8, Path: "/srv/disk.img"}, Name: "tuesday", Base: "monday",
	}
}

// write makes a file of records.
func write(t interface{ Fatalf(string, ...any) }, h Header, records ...Record) []byte {
	var b bytes.Buffer
	w, err := NewWriter(&b, h)
	for _, r := range records {
		if err == nil {
			err = w.record(r)
		}
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	return b.Bytes()
}

// read reads a file to its end.
func read(b []byte) (h Header, all []Record, err error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return h, nil, err
	}
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r.Header(), all, nil
		}
		if err != nil {
			return h, nil, err
		}
		rec.Data = bytes.Clone(rec.Data)
		all = append(all, rec)
	}
}

func sample() []Record {
	p := []byte("some bytes of data")
	return []Record{
		{Kind: Same, Off: 0, Len: 4, Sum: Sum([]byte("same"))},
		{Kind: Data, Off: 512, Len: int64(len(p)), Sum: Sum(p), Data: p},
		{Kind: Zero, Off: 4096, Len: 1<<20 - 4096},
	}
}

// TestDelta_RoundTrip: what is written is read again.
func TestDelta_RoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := header()
		h.Size = 512 * rapid.Int64Range(0, 1<<20).Draw(rt, "sectors")
		h.Exact = rapid.Bool().Draw(rt, "exact")
		h.Name, h.Base = rapid.StringN(0, 200, 800).Draw(rt, "name"), rapid.StringN(0, 200, 800).Draw(rt, "base")
		var want []Record
		for at := int64(0); at < h.Size && len(want) < 20; {
			r := Record{Off: at + rapid.Int64Range(0, 5000).Draw(rt, "gap"), Kind: rapid.SampledFrom([]Kind{Data, Zero, Same}).Draw(rt, "kind")}
			if r.Off >= h.Size {
				break
			}
			r.Len = min(rapid.SampledFrom([]int64{1, 512, 4095, 20000}).Draw(rt, "len"), h.Size-r.Off)
			switch r.Kind {
			case Data:
				r.Data = bytes.Repeat([]byte{byte(at)}, int(r.Len))
				r.Sum = Sum(r.Data)
			case Same:
				r.Sum = uint32(at)
			}
			at = r.End()
			want = append(want, r)
		}
		gotHeader, got, err := read(write(rt, h, want...))
		if err != nil {
			rt.Fatal(err)
		}
		if d := cmp.Diff(h, gotHeader) + cmp.Diff(want, got); d != "" {
			rt.Fatal(d)
		}
	})
}

// TestDelta_Golden pins every byte.
func TestDelta_Golden(t *testing.T) {
	got := hex.EncodeToString(write(t, header(), sample()...))
	const want = `` +
		// header
		`444d4652414e4745` + `01000000` + `80000000` + `0000100000000000` + `0010000000000000` + `00f1536500000000` + `0100000000000000` +
		`01020000000000000000000000000009` + `01000000` + `00000000` + `0700000000000000` + `0800000000000000` +
		`0700` + `0600` + `0d00` + `0000` + `74756573646179` + `6d6f6e646179` + `2f7372762f6469736b2e696d67`
	if !strings.HasPrefix(got, want[:24]) {
		t.Errorf("begins with %s", got[:24])
	}
	size := 96 + 7 + 6 + 13 + 4
	wantHeader := strings.Replace(want, "80000000", fmt.Sprintf("%02x000000", size), 1)
	if got[:len(wantHeader)] != wantHeader {
		t.Errorf("header\n%s, want\n%s", got[:len(wantHeader)], wantHeader)
	}
	rest := got[2*size:]
	for _, part := range []string{
		"53414d45" + "00000000" + "0000000000000000" + "0400000000000000",
		"44415441" + "00000000" + "0002000000000000" + "1200000000000000",
	} {
		if !strings.HasPrefix(rest, part) {
			t.Errorf("record %s, want %s", rest[:64], part)
		}
		rest = rest[64:]
	}
	if data := hex.EncodeToString([]byte("some bytes of data")); !strings.HasPrefix(rest, data) {
		t.Errorf("data %s", rest)
	}
	rest = rest[2*18:]
	if part := "5a45524f" + "00000000" + "0010000000000000" + "00f00f0000000000" + "00000000"; !strings.HasPrefix(rest, part) {
		t.Errorf("record %s, want %s", rest[:64], part)
	}
	rest = rest[64:]
	if part := "444f4e45" + "00000000" + "0300000000000000" + "12f00f0000000000"; !strings.HasPrefix(rest, part) || len(rest) != 64+64 {
		t.Errorf("end %s, want %s", rest, part)
	}
}

// TestDelta_DamageIsFound: no file that was cut off, changed in a bit, or made
// longer is read to its end.
func TestDelta_DamageIsFound(t *testing.T) {
	good := write(t, header(), sample()...)
	for n := range good {
		if _, _, err := read(good[:n]); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Fatalf("cut off after %d bytes: %v", n, err)
		}
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if _, _, err := read(bad); blockdev.Kind(err) != blockdev.ErrInvalid {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
	}
	if _, _, err := read(append(bytes.Clone(good), 0)); err == nil || !strings.Contains(err.Error(), "goes on behind its end") {
		t.Errorf("longer: %v", err)
	}
	if _, _, err := read(append(bytes.Clone(good), good...)); err == nil {
		t.Error("twice the same file is read")
	}
	// A record that was taken out, with all checksums of its own right.
	size := 96 + 7 + 6 + 13 + 4
	without := append(bytes.Clone(good[:size]), good[size+recordSize:]...)
	if _, _, err := read(without); err == nil || !strings.Contains(err.Error(), "the end tells of 3 records") {
		t.Errorf("a record less: %v", err)
	}
}

// TestDelta_LargestRecord has as much data as a record can have.
func TestDelta_LargestRecord(t *testing.T) {
	p := bytes.Repeat([]byte("x"), MaxData)
	_, got, err := read(write(t, header(), Record{Kind: Data, Len: MaxData, Sum: Sum(p), Data: p}))
	if err != nil || len(got) != 1 || !bytes.Equal(got[0].Data, p) {
		t.Errorf("%v, %d records", err, len(got))
	}
}

// TestDelta_WriterRefuses what a reader would.
func TestDelta_WriterRefuses(t *testing.T) {
	for name, records := range map[string][]Record{
		"backwards": {{Kind: Zero, Off: 4096, Len: 512}, {Kind: Zero, Off: 0, Len: 512}},
		"overlap":   {{Kind: Zero, Off: 0, Len: 513}, {Kind: Zero, Off: 512, Len: 512}},
		"past":      {{Kind: Zero, Off: 1 << 20, Len: 1}},
		"over":      {{Kind: Zero, Off: 1<<20 - 1, Len: 2}},
		"overflow":  {{Kind: Zero, Off: 512, Len: 1<<63 - 1}},
		"empty":     {{Kind: Zero, Off: 0, Len: 0}},
		"negative":  {{Kind: Zero, Off: -1, Len: 1}},
		"long":      {{Kind: Data, Off: 0, Len: MaxData + 1, Data: make([]byte, MaxData+1)}},
	} {
		h := header()
		if name == "long" {
			h.Size *= 4
		}
		w, err := NewWriter(io.Discard, h)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range records {
			if err = w.record(r); err == nil && i == len(records)-1 {
				t.Errorf("%s: taken", name)
			}
		}
		if w.Close() == nil {
			t.Errorf("%s: the file is ended all the same", name)
		}
	}
	for _, h := range []Header{{Size: 1, Chunk: 512}, {Size: -512, Chunk: 512}, {Chunk: 0}, {Chunk: 513}, {Chunk: 512, Name: strings.Repeat("x", maxText+1)}} {
		if _, err := NewWriter(io.Discard, h); blockdev.Kind(err) != blockdev.ErrInvalid {
			t.Errorf("%+v: %v", h, err)
		}
	}
}

// FuzzReader: no bytes are a panic, and what is read to its end is written again
// as the same bytes.
func FuzzReader(f *testing.F) {
	f.Add(write(f, header(), sample()...))
	f.Add(write(f, Header{Chunk: 512}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, all, err := read(b)
		if err != nil {
			return
		}
		if again := write(t, h, all...); !bytes.Equal(again, b) {
			t.Errorf("%x is written as %x", b, again)
		}
	})
}
