package target

// Metric is one figure of a target that monitoring may want to follow.
type Metric struct {
	// Name is in lower case, with its unit at the end and the kind of target in
	// front: "snapshot_allocated_bytes"; that of a counter ends in "_total".
	Name string
	Help string // one sentence without a full stop
	// Counter says that it only grows while the table lives.
	Counter bool
	Value   float64
}

// Meter is a target that has metrics. The names are those of its kind: they do
// not come and go.
type Meter interface {
	Metrics() []Metric
}
