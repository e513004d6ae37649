package main

import (
	"strings"
	"testing"
)

// TestWhyAlone: a keeper is what one gets, wherever it is of use and not refused.
func TestWhyAlone(t *testing.T) {
	const now, old = "release:6.9.0-rc1 uring:on", "release:6.8.12-generic"
	for _, c := range []struct {
		o       serveOptions
		env     string
		machine string
		want    string // why there is none; "": there is one
		refused string
	}{
		{machine: now},
		{machine: "release:7.0.1"},
		{machine: "release:10"}, // nobody knows; it will say so
		{machine: now, env: "1"},
		{machine: now, o: serveOptions{keeper: true}, env: "0"},
		{machine: now, o: serveOptions{keeper: true}, env: "no idea"},
		{machine: now, o: serveOptions{transport: "dev"}},
		{machine: now, o: serveOptions{transport: "wrong"}}, // found later

		{machine: "release:6.9.1 uring:off", o: serveOptions{transport: "uring"}}, // dev, therefore
		{machine: "release:6.9.1 uring:off", o: serveOptions{transport: "uring", keeper: true}},

		{machine: now, o: serveOptions{noKeeper: true}, want: "--no-keeper"},
		{machine: now, o: serveOptions{noKeeper: true}, env: "1", want: "--no-keeper"},
		{machine: now, env: "0", want: "DMFUSE_KEEPER=0"},
		{machine: now, env: "false", want: "DMFUSE_KEEPER=false"},
		{machine: now, o: serveOptions{transport: "uring"}, want: "the transport uring"},
		{machine: now, o: serveOptions{transport: "gofuse"}, env: "1", want: "the transport gofuse"},
		{machine: old, want: "Linux 6.8.12-generic does not"},
		{machine: "release:5.10.0-33-amd64", want: "Linux 5.10.0-33-amd64 does not"},
		{machine: old, env: "1", want: "Linux 6.8.12-generic does not"},

		{machine: now, env: "perhaps", refused: "DMFUSE_KEEPER=perhaps: expected 0 or 1"},
		{machine: now, o: serveOptions{keeper: true, noKeeper: true}, refused: "--keeper and --no-keeper"},
		{machine: now, o: serveOptions{keeper: true, transport: "uring"}, refused: "there can be no keeper"},
		{machine: old, o: serveOptions{keeper: true}, refused: "there can be no keeper"},
	} {
		a := &app{env: func(name string) string {
			return map[string]string{"DMFUSE_KEEPER": c.env, "DMFUSE_TEST_FAULT": c.machine}[name]
		}}
		why, err := a.whyAlone(c.o)
		switch {
		case c.refused != "":
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%+v: %q, %v, want the error %q", c, why, err, c.refused)
			}
		case err != nil || !strings.Contains(why, c.want) || (c.want == "") != (why == ""):
			t.Errorf("%+v: %q, %v", c, why, err)
		}
	}
}
