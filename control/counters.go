package control

import (
	"context"
	"io"
	"net/http"
)

// IOCount is what a device has done since it was made, or brought back by a
// restart of the daemon. Requests of a device above count as those of a file do.
type IOCount struct {
	Device    string `json:"device"`
	Minor     int    `json:"minor"`
	Serial    uint64 `json:"serial"` // of no other device: the same serial, the same counters
	Suspended bool   `json:"suspended"`

	Read     OpCount `json:"read"`
	Write    OpCount `json:"write"` // zeroing included
	Flush    OpCount `json:"flush"`
	Discard  OpCount `json:"discard"`
	InFlight int64   `json:"in_flight"` // requests under way, those that wait included
}

// OpCount is the requests of one kind that have ended.
type OpCount struct {
	Requests    uint64 `json:"requests"`
	Bytes       uint64 `json:"bytes"`
	Errors      uint64 `json:"errors"`
	Nanoseconds uint64 `json:"nanoseconds"` // sum of what each took
}

// IOCountList is the counters of all devices, by name.
type IOCountList struct {
	// Uptime is the age of the answer's clock: the difference of two answers is
	// the time between them.
	Uptime  float64   `json:"uptime_seconds"`
	Devices []IOCount `json:"devices"`
}

// IOCounts reads the counters of all devices.
func (c *Client) IOCounts(ctx context.Context) (IOCountList, error) {
	var r IOCountList
	err := c.call(ctx, http.MethodGet, "/v1/io", nil, nil, &r)
	return r, err
}

// Metrics reads all figures in the text format of Prometheus.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	resp, err := c.send(ctx, http.MethodGet, "/metrics", nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.lost(ctx, err)
	}
	return text, nil
}
