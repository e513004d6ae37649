package server

import (
	"net/http"

	"github.com/dmfuse/dmfuse/blockdev/faultrule"
	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
)

// allFaults lists the fault rules of all devices that have some.
func (s *Server) allFaults(*http.Request) (any, error) {
	list := control.FaultList{Devices: []control.DeviceFaults{}}
	for _, d := range s.opts.Manager.Devices() {
		if rules := d.Faults(); len(rules) > 0 {
			list.Devices = append(list.Devices, wireFaults(d, rules))
		}
	}
	return list, nil
}

func (s *Server) faults(r *http.Request) (any, error) {
	d, err := s.onDevice(r)
	if err != nil {
		return nil, err
	}
	return wireFaults(d, d.Faults()), nil
}

func (s *Server) changeFaults(r *http.Request) (any, error) {
	d, err := s.onDevice(r)
	if err != nil {
		return nil, err
	}
	var req control.FaultsRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	c := mapper.FaultChange{Clear: req.Clear, ClearAll: req.ClearAll}
	for _, text := range req.Add {
		rules, err := faultrule.ParseAll(text)
		if err != nil {
			return nil, err
		}
		c.Add = append(c.Add, rules...)
	}
	all, added, err := d.ChangeFaults(c)
	if err != nil {
		return nil, err
	}
	reply := wireFaults(d, all)
	reply.Added = added
	return reply, nil
}

func wireFaults(d *mapper.Device, rules []mapper.FaultInfo) control.DeviceFaults {
	w := control.DeviceFaults{Device: d.Name(), Faults: []control.Fault{}}
	for _, f := range rules {
		w.Faults = append(w.Faults, control.Fault{
			ID: f.ID, Rule: f.Rule, Seen: f.Seen, Hits: f.Hits, Hanging: f.Hanging, KeptBytes: f.Kept, Ended: f.Ended,
		})
	}
	return w
}
