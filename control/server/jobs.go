package server

import (
	"net/http"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
	"github.com/dmfuse/dmfuse/target"
)

// jobs lists the work of all devices, or of one that the query names.
func (s *Server) jobs(r *http.Request) (any, error) {
	key, err := keyOf(r)
	if err != nil {
		return nil, err
	}
	devices := s.opts.Manager.Devices()
	if key != (control.Key{}) {
		d, err := s.device(key)
		if err != nil {
			return nil, err
		}
		devices = []*mapper.Device{d}
	}
	list := control.JobList{Jobs: []control.Job{}}
	for _, d := range devices {
		for _, j := range d.Jobs() {
			list.Jobs = append(list.Jobs, wireJob(d.Name(), j))
		}
	}
	return list, nil
}

// wireJob puts a job on the wire.
func wireJob(device string, j target.Job) control.Job {
	w := control.Job{
		Device: device, Kind: string(j.Kind), State: string(j.State),
		DoneBytes: j.Done, TotalBytes: j.Total, RateBytes: j.Rate, LeftSeconds: -1,
		Started: j.Started, Detail: j.Detail,
	}
	if j.Rate > 0 && j.Total > 0 {
		w.LeftSeconds = j.Left().Seconds()
	}
	return w
}
