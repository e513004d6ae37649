package main

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestJSON_EveryPrintingVerb: under -J a verb that prints answers one JSON
// object with the version of the schema.
func TestJSON_EveryPrintingVerb(t *testing.T) {
	m := newMachine(t, nil, nil)
	for _, verb := range []string{"ls", "info", "table", "mangle"} {
		got := m.run("", "dmfuse", verb, "-J")
		if want := `{"schema_version":1,"devices":[]}` + "\n"; got != (answer{Stdout: want}) {
			t.Errorf("%s without devices: %+v", verb, got)
		}
	}
	if got := m.run("0 8 zero", "dmfuse", "create", "a b", "-J"); got.Code != 0 {
		t.Fatal(got)
	}
	for _, argv := range [][]string{
		{"ls"}, {"info"}, {"info", "-c"}, {"deps"}, {"table"}, {"status"}, {"targets"}, {"target-version", "zero", "linear"},
		{"version"}, {"splitname", "vg-lv"}, {"ls", "--tree"}, {"snapshot", "ls"}, {"mangle"}, {"mangle", `a\x20b`},
	} {
		got := m.run("", slices.Concat([]string{"dmfuse"}, argv, []string{"-J"})...)
		var answer struct {
			Schema  int `json:"schema_version"`
			Targets []struct {
				Name    string
				Version [3]int
			}
			Devices []map[string]any
		}
		if err := json.Unmarshal([]byte(got.Stdout), &answer); err != nil || answer.Schema != 1 || got.Code != 0 || got.Stderr != "" {
			t.Errorf("%v: %+v, %v", argv, got, err)
		}
		switch {
		case argv[0] == "target-version":
			if n := answer.Targets; len(n) != 2 || n[0].Name != "zero" || n[1].Name != "linear" || n[1].Version == [3]int{} {
				t.Errorf("%+v", n)
			}
		case argv[0] == "mangle" && len(argv) == 1:
			if d := cmp.Diff([]map[string]any{{"name": `a\x20b`, "old_name": "a b", "uuid": "", "renamed": true}}, answer.Devices); d != "" {
				t.Error(d)
			}
		case argv[0] == "mangle":
			if d := cmp.Diff([]map[string]any{{"name": `a\x20b`, "old_name": `a\x20b`, "uuid": "", "renamed": false}}, answer.Devices); d != "" {
				t.Error(d)
			}
		}
	}
}
