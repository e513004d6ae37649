package main

import (
	"encoding/json"
	"testing"
)

// The text format of Prometheus as JSON: what is escaped there, and what JSON has
// no number for.
func TestMetricsIn(t *testing.T) {
	const text = `# HELP a_total One \\ two\n.
# TYPE a_total counter
a_total{device="d",op="read"} 1.048576e+06
a_total{device="q\"\\\n,}{=",op="x y"} NaN
# HELP b
# TYPE b summary
b{quantile="0.5"} +Inf
b_sum 0.25
b_count 3
`
	list, err := metricsIn(text)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(list)
	const want = `[{"name":"a_total","type":"counter","help":"One \\ two\n.","samples":[` +
		`{"labels":{"device":"d","op":"read"},"value":1048576},` +
		`{"labels":{"device":"q\"\\\n,}{=","op":"x y"},"value":null}]},` +
		`{"name":"b","type":"summary","help":"","samples":[` +
		`{"labels":{"quantile":"0.5"},"value":null},{"suffix":"_sum","labels":{},"value":0.25},{"suffix":"_count","labels":{},"value":3}]}]`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
	for _, bad := range []string{"a 1\n", "# HELP a b\na{x=1} 1\n", "# HELP a b\na one\n", "# HELP a b\na\n", "# HELP a b\nc 1\n", "# HELP a b\na{x=\"1\n"} {
		if list, err := metricsIn(bad); err == nil {
			t.Errorf("%q is taken: %+v", bad, list)
		}
	}
}
