package faultrule

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Rule{
		"write errno=EIO":                            {Ops: Write, Errno: unix.EIO},
		"any sectors=8+8,0+2 errno=ENOSPC":           {Ops: Any, Places: []Span{{0, 1024}, {4096, 4096}}, Errno: unix.ENOSPC},
		"read,flush nth=3 hang":                      {Ops: Read | Flush, Nth: 3, Hang: true},
		"read bytes=1k+3,1027+1 corrupt":             {Ops: Read, Places: []Span{{1024, 4}}, Corrupt: Flips{N: 1}},
		"write corrupt=bytes:7 seed=5":               {Ops: Write, Corrupt: Flips{N: 7, Bytes: true}, Seed: 5},
		"write p=0.25 seed=9 tear=4k errno=EIO":      {Ops: Write, P: 0.25, Seed: 9, Tear: 4096, Errno: unix.EIO},
		"flush after=2 every=3 count=4 drop":         {Ops: Flush, After: 2, Every: 3, Count: 4, Drop: true},
		"write drop=until-flush":                     {Ops: Write, Keep: true},
		"discard delay=10ms":                         {Ops: Discard, Delay: Delay{Kind: Fixed, Min: 10 * time.Millisecond, Max: 10 * time.Millisecond}},
		"read delay=1ms..20ms":                       {Ops: Read, Delay: Delay{Kind: Uniform, Min: time.Millisecond, Max: 20 * time.Millisecond}},
		"read delay=normal:10ms:3ms:1ms:50ms hang":   {Ops: Read, Hang: true, Delay: Delay{Kind: Normal, Mean: 10 * time.Millisecond, Dev: 3 * time.Millisecond, Min: time.Millisecond, Max: 50 * time.Millisecond}},
		"write bytes=1s+1m sectors=1+1 errno=EROFS ": {Ops: Write, Places: []Span{{512, 1 << 20}}, Errno: unix.EROFS},
	} {
		got, err := Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q:\n%s", text, d)
		}
	}
}

// An error is of kind invalid and names the word, what was found and what was
// wanted.
func TestParse_Refuses(t *testing.T) {
	for text, says := range map[string]string{
		"":                                     "found nothing; wanted an operation",
		"wirte errno=EIO":                      `"wirte" is no operation`,
		"write":                                "found no action; wanted one of",
		"write errno=EFOO":                     `word "errno=EFOO": found "EFOO"; wanted one of EIO, ENOSPC`,
		"write errno=":                         `found ""; wanted one of EIO`,
		"write sectors=8 errno=EIO":            `word "sectors=8": found "8"; wanted FIRST+COUNT in sectors`,
		"write sectors=8+0 errno=EIO":          `found "8+0"`,
		"write sectors=1k+1 errno=EIO":         `found "1k+1"`,
		"write bytes=8g+9000000000g errno=EIO": `wanted OFFSET+LENGTH in bytes`,
		"write p=1.5 errno=EIO":                `found "1.5"; wanted a probability`,
		"write p=NaN errno=EIO":                `found "NaN"; wanted a probability`,
		"write nth=0 errno=EIO":                `found "0"; wanted a whole number from 1 on`,
		"write nth=1 every=2 errno=EIO":        "more than one of nth, every and p",
		"write nth=1 count=2 errno=EIO":        "nth together with after or count",
		"write errno=EIO errno=EIO":            "found errno twice",
		"write delay=fast":                     `found "fast"; wanted a time`,
		"write delay=0s":                       "wanted a time above 0",
		"write delay=5ms..1ms":                 "wanted the shorter time first",
		"write delay=normal:1ms:1ms":           "normal:MEAN:DEVIATION:MIN:MAX",
		"read drop":                            "found drop for read",
		"any drop":                             "found drop for any",
		"write,flush drop=until-flush":         "wanted write alone",
		"write drop=never":                     `found "never"; wanted drop, or drop=until-flush`,
		"write drop errno=EIO":                 "errno together with drop",
		"write drop tear=512":                  "more than one of drop",
		"read tear=512":                        "found tear for read",
		"write tear=1000":                      "wanted 512 or 4096",
		"flush corrupt":                        "found corrupt for flush",
		"read corrupt errno=EIO":               "corrupt together with errno",
		"read corrupt=bits":                    "wanted bits:N or bytes:N",
		"write hang=5s":                        "wanted hang without a value",
		"write speed=9 hang":                   `found "speed"; wanted sectors`,
		"write EIO":                            `word "EIO": found no known word`,
	} {
		_, err := Parse(text)
		if !errors.Is(err, blockdev.ErrInvalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v\nwant: %s", text, err, says)
		}
	}
}

func TestParseAll(t *testing.T) {
	rules, err := ParseAll("read errno=EIO; write hang # not this; one\n\n# nor this\nflush drop\n")
	if err != nil || len(rules) != 3 || rules[2].Ops != Flush {
		t.Errorf("%v, %v", rules, err)
	}
	if _, err := ParseAll("read errno=EIO; bad"); err == nil {
		t.Error("a bad second rule is taken")
	}
}

// What a rule prints is read as the same rule.
func TestString_RoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRule(t)
		got, err := Parse(r.String())
		if err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		if d := cmp.Diff(r, got); d != "" {
			t.Fatalf("%s:\n%s", r, d)
		}
	})
}

// drawRule makes a rule that check accepts.
func drawRule(t *rapid.T) Rule {
	n := func(label string) uint64 { return rapid.Uint64Range(0, 9).Draw(t, label) }
	r := Rule{Ops: rapid.SampledFrom([]Op{Read, Write, Flush, Discard, Any, Read | Write}).Draw(t, "ops"), Seed: n("seed")}
	for range n("places") % 4 {
		r.Places = append(r.Places, Span{rapid.Int64Range(0, 1<<20).Draw(t, "off"), rapid.Int64Range(1, 1<<16).Draw(t, "len")})
	}
	r.Places = merge(r.Places)
	switch n("way") % 4 {
	case 1:
		r.Nth = 1 + n("nth")
	case 2:
		r.Every = 1 + n("every")
	case 3:
		r.P = rapid.Float64Range(1e-9, 1).Draw(t, "p")
	}
	if r.Nth == 0 {
		r.After, r.Count = n("after"), n("count")
	}
	ms := func(label string) time.Duration {
		return time.Duration(rapid.IntRange(0, 50).Draw(t, label)) * time.Millisecond
	}
	switch a := ms("min"); n("delay") % 4 {
	case 1:
		r.Delay = Delay{Kind: Fixed, Min: a + 1, Max: a + 1}
	case 2:
		r.Delay = Delay{Kind: Uniform, Min: a, Max: a + 1 + ms("more")}
	case 3:
		r.Delay = Delay{Kind: Normal, Min: a, Max: a + 1 + ms("more"), Mean: ms("mean"), Dev: ms("dev")}
	}
	switch action := n("action") % 6; {
	case action == 1 && r.Ops == Write:
		r.Tear = 512
	case action == 2 && r.Ops == Write:
		r.Keep = true
	case action == 3 && r.Ops&Read == 0:
		r.Drop = true
	case action == 4 && r.Ops&^(Read|Write) == 0:
		r.Corrupt = Flips{N: int(1 + n("flips")), Bytes: n("bytes")%2 == 0}
	case action == 5:
		r.Hang = true
	default:
		r.Errno = unix.EIO
	}
	return r
}

func FuzzParse(f *testing.F) {
	f.Add("write sectors=1+2,5+1 p=0.5 seed=3 errno=EIO; read delay=normal:1ms:1ms:0s:9ms corrupt=bits:3")
	f.Fuzz(func(t *testing.T, text string) {
		rules, err := ParseAll(text)
		if err != nil {
			return
		}
		for _, r := range rules {
			if again, err := Parse(r.String()); err != nil || !cmp.Equal(r, again) {
				t.Fatalf("%q: %q: %v", text, r, err)
			}
		}
	})
}
