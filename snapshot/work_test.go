package snapshot

import (
	"context"
	"encoding/json"
	"testing"
)

// TestWork: what first writes cost is counted, and a handover passes it on.
func TestWork(t *testing.T) {
	l := newLab(t, Options{})
	o := l.mem("o", 4096)
	put(t, o, make([]byte, 512), 0)
	fill(t, l.devs["o"], 1)
	if err := o.Zero(64*512, 16*512, true); err != nil {
		t.Fatal(err)
	}
	l.mem("a", 9000)
	l.mem("b", 9000)
	a, b, org := l.live("0 4096 snapshot o a P 16"), l.live("0 4096 snapshot o b P 16"), l.live("0 4096 snapshot-origin o")
	want := func(tb *table, w Work) {
		t.Helper()
		got := tb.snap().Usage().Work
		w.Amplified = got.Amplified
		if got != w || (w.Asked > 0 && got.Amplified != float64(w.Written)/float64(w.Asked)) {
			t.Errorf("%+v, wanted %+v", got, w)
		}
	}
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const entries = 512 // bytes of metadata for a commit
	want(a, Work{})
	step(org.write(2, 4, 8))
	want(a, Work{Asked: 4096, Copied: 8192, Written: 8192 + entries})
	step(org.write(2, 0, 16)) // no first write
	step(org.write(2, 64, 1)) // zeros
	want(b, Work{Asked: 4096 + 512, Copied: 16384, Zero: 8192, Written: 8192 + 2*entries})
	step(a.write(3, 160, 16)) // the whole chunk
	want(a, Work{Asked: 4096 + 512 + 8192, Copied: 16384, Zero: 8192, Written: 16384 + 3*entries})
	step(a.write(3, 177, 1)) // a part
	want(a, Work{Asked: 4096 + 512 + 8192 + 512, Copied: 16384 + 7680, Zero: 8192, Written: 24576 + 4*entries})
	step(b.snap().Zero(context.Background(), 320*512, 32*512, true)) // whole chunks of zeros, on a COW device that was a hole
	want(b, Work{Asked: 4096 + 512 + 16384, Copied: 16384, Zero: 8192, Written: 8192 + 3*entries})
	step(org.write(2, 1024, 1024)) // large: a commit of 64
	want(b, Work{Asked: 4096 + 512 + 16384 + 1024*512, Copied: 16384 + 1024*512, Zero: 8192, Written: 8192 + 1024*512 + 3*entries + 1536})
	before := a.snap().Usage().Work
	next, err := l.load("0 4096 snapshot o a P 16")
	step(err)
	a.suspend()
	step(next.resume())
	want(next, before)
	text, err := next.snap().Message(context.Background(), []string{"usage"})
	step(err)
	var doc map[string]any
	step(json.Unmarshal([]byte(text), &doc))
	for _, key := range []string{"first_write_bytes", "copied_bytes", "zero_bytes", "written_bytes", "write_amplification"} {
		if n, ok := doc[key].(float64); !ok || n <= 0 {
			t.Errorf("%s is %v in the answer to usage", key, doc[key])
		}
	}
	for _, tb := range []*table{a, next, b, org} {
		tb.close()
	}
}
