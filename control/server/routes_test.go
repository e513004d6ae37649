package server

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/dmfuse/dmfuse/blockdev"
	"github.com/dmfuse/dmfuse/control"
)

// TestEveryRouteIsDescribed: docs/control.md has a heading and an example for
// each route, and none for what is not there.
func TestEveryRouteIsDescribed(t *testing.T) {
	text, err := os.ReadFile("../../docs/control.md")
	if err != nil {
		t.Fatal(err)
	}
	var described []string
	for part := range strings.SplitSeq(string(text), "\n### ") {
		heading, rest, _ := strings.Cut(part, "\n")
		if !strings.HasPrefix(heading, "GET ") && !strings.HasPrefix(heading, "POST ") {
			continue
		}
		described = append(described, heading)
		_, path, _ := strings.Cut(heading, " ")
		if !strings.Contains(rest, "curl -s") || !strings.Contains(rest, "http://d"+path) {
			t.Errorf("%s has no example", heading)
		}
	}
	want := slices.Sorted(maps.Keys((&Server{}).handlers()))
	want = append(want, eventsRoute, metricsRoute)
	slices.Sort(want)
	slices.Sort(described)
	if !slices.Equal(want, described) {
		t.Errorf("routes:    %q\ndescribed: %q", want, described)
	}
}

// TestEveryKindHasACode: every kind of error has a code, and docs/control.md
// knows them all.
func TestEveryKindHasACode(t *testing.T) {
	text, err := os.ReadFile("../../docs/control.md")
	if err != nil {
		t.Fatal(err)
	}
	for kind, code := range kindCode {
		e := wireError(kind)
		if e.Code != code || e.Errno == 0 || e.Step != -1 || e.Message != kind.Error() {
			t.Errorf("%v: %+v", kind, e)
		}
		if !strings.Contains(string(text), "`"+string(code)+"`") {
			t.Errorf("docs/control.md does not know the code %s", code)
		}
	}
	for _, code := range []control.Code{control.CodeView, control.CodeProtocol, control.CodeNoDaemon} {
		if !strings.Contains(string(text), "`"+string(code)+"`") {
			t.Errorf("docs/control.md does not know the code %s", code)
		}
	}
	if e := wireError(&blockdev.Error{Op: "read", Device: "x", Err: os.ErrPermission}); e.Code != control.CodePermission {
		t.Errorf("%+v", e)
	}
}
