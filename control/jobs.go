package control

import (
	"context"
	"net/http"
	"time"
)

// Job is long work that a device does by itself: a resync, a scrub, a merge.
type Job struct {
	Device string `json:"device"`
	Kind   string `json:"kind"`  // resync, scrub, merge, copy
	State  string `json:"state"` // running, paused, waiting (for another try), failed

	DoneBytes  int64 `json:"done_bytes"`
	TotalBytes int64 `json:"total_bytes"` // 0: not known yet
	RateBytes  int64 `json:"rate_bytes"`  // a second, over the last moments; 0: nothing moves
	// LeftSeconds is what the rest takes at this rate; -1: not known.
	LeftSeconds float64   `json:"left_seconds"`
	Started     time.Time `json:"started"` // of this run: after a restart the restart
	Detail      string    `json:"detail,omitempty"`
}

// JobList is the work of all devices, by name of the device.
type JobList struct {
	Jobs []Job `json:"jobs"`
}

// Jobs lists what all devices have at hand, or one device with that name.
func (c *Client) Jobs(ctx context.Context, key Key) ([]Job, error) {
	var r JobList
	err := c.call(ctx, http.MethodGet, "/v1/jobs", query(key), nil, &r)
	return r.Jobs, err
}
