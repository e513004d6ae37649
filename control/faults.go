package control

import (
	"context"
	"net/http"
)

// Fault is a fault rule on a device, with its counts since it was armed: by the
// request that set it, or by the start of the daemon after a kill.
type Fault struct {
	ID        int    `json:"id"`         // never used twice while the device lives
	Rule      string `json:"rule"`       // see docs/faults.md
	Seen      uint64 `json:"seen"`       // requests that matched
	Hits      uint64 `json:"hits"`       // of these, how many were hit
	Hanging   uint64 `json:"hanging"`    // requests that wait until it is cleared
	KeptBytes int64  `json:"kept_bytes"` // held back until a flush
	Ended     bool   `json:"ended"`      // it had its last hit
}

// FaultsRequest clears rules and then adds others, all or nothing.
type FaultsRequest struct {
	Clear    []int    `json:"clear,omitempty"` // by ID
	ClearAll bool     `json:"clear_all,omitempty"`
	Add      []string `json:"add,omitempty"` // each one rule, or several separated by semicolons or line ends
}

// DeviceFaults is the rules on one device, in the order in which requests meet
// them.
type DeviceFaults struct {
	Device string  `json:"device"`
	Faults []Fault `json:"faults"`
	Added  []int   `json:"added,omitempty"` // IDs of the rules that this request added
}

// FaultList is the devices that have rules, by name.
type FaultList struct {
	Devices []DeviceFaults `json:"devices"`
}

// Faults lists the fault rules of all devices that have some.
func (c *Client) Faults(ctx context.Context) (FaultList, error) {
	var r FaultList
	err := c.call(ctx, http.MethodGet, "/v1/faults", nil, nil, &r)
	return r, err
}

// DeviceFaults lists the fault rules of one device.
func (c *Client) DeviceFaults(ctx context.Context, key Key) (DeviceFaults, error) {
	var r DeviceFaults
	err := c.call(ctx, http.MethodGet, "/v1/device/faults", query(key), nil, &r)
	return r, err
}

// ChangeFaults clears and adds fault rules. When it returns they are on disk,
// and every request that begins meets them.
func (c *Client) ChangeFaults(ctx context.Context, key Key, change FaultsRequest) (DeviceFaults, error) {
	var r DeviceFaults
	err := c.call(ctx, http.MethodPost, "/v1/device/faults", query(key), change, &r)
	return r, err
}
