package server

import (
	"net/http"
	"time"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
)

// ioCounts reads the counters of all devices.
func (s *Server) ioCounts(*http.Request) (any, error) {
	list := control.IOCountList{Uptime: time.Since(s.made).Seconds(), Devices: []control.IOCount{}}
	for _, d := range s.opts.Manager.Devices() {
		i, c := d.Info(false), d.IOCount()
		list.Devices = append(list.Devices, control.IOCount{
			Device: i.Name, Minor: i.Minor, Serial: i.Serial, Suspended: i.Suspended,
			Read: wireOps(c.Read), Write: wireOps(c.Write), Flush: wireOps(c.Flush), Discard: wireOps(c.Discard),
			InFlight: c.InFlight,
		})
	}
	return list, nil
}

func wireOps(c mapper.OpCount) control.OpCount {
	return control.OpCount{Requests: c.Requests, Bytes: c.Bytes, Errors: c.Errors, Nanoseconds: uint64(c.Time)}
}
