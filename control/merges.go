package control

import (
	"context"
	"net/http"
	"time"
)

// MergeRequest asks for the merge of a snapshot into its origin.
type MergeRequest struct {
	// Snapshot is the device that goes.
	Snapshot string `json:"snapshot"`
	// Device is the origin device that shows what the snapshot showed from now on;
	// the snapshot itself where its origin has none.
	Device string `json:"device"`
	// KeepCOW keeps a COW file that snapshot create made.
	KeepCOW bool `json:"keep_cow,omitempty"`
	// Throttle limits the merge from its beginning: a percentage of the time, or
	// bytes a second, like 10m/s. Empty: no limit.
	Throttle string `json:"throttle,omitempty"`
}

// Merge is a merge that the daemon brings to its end. How far it is the list of
// jobs says.
type Merge struct {
	Snapshot string    `json:"snapshot"` // as it was called when the merge began
	Device   string    `json:"device"`
	COW      string    `json:"cow"`
	KeepCOW  bool      `json:"keep_cow"`
	Begun    time.Time `json:"begun"`
	Waits    string    `json:"waits,omitempty"` // why the end has to wait
}

// MergeList is all of them, the oldest first.
type MergeList struct {
	Merges []Merge `json:"merges"`
}

// Merge begins a merge, all or nothing. It returns when the device shows the data
// of the snapshot.
func (c *Client) Merge(ctx context.Context, r MergeRequest) (Merge, error) {
	var m Merge
	err := c.call(ctx, http.MethodPost, "/v1/merges", nil, r, &m)
	return m, err
}

// Merges lists the merges that are not at their end.
func (c *Client) Merges(ctx context.Context) ([]Merge, error) {
	var l MergeList
	err := c.call(ctx, http.MethodGet, "/v1/merges", nil, nil, &l)
	return l.Merges, err
}
