package server

import (
	"encoding/json"
	"net/http"

	"github.com/dmfuse/dmfuse/control"
	"github.com/dmfuse/dmfuse/mapper"
)

// events streams what happens from now on, one JSON object a line, until the
// caller goes away or the server is closed.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	if err := s.admit(r); err != nil {
		s.fail(w, r, err)
		return
	}
	ctx, cancel := s.untilClosed(r)
	defer cancel()
	events, stop := s.opts.Manager.Subscribe()
	defer stop()

	// The head of the reply goes out at once: the caller knows that no event
	// after it is missed.
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	if out.Flush() != nil {
		return
	}
	enc := json.NewEncoder(w)
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok || enc.Encode(wireEvent(e)) != nil || out.Flush() != nil {
				return
			}
		}
	}
}

func wireEvent(e mapper.Event) control.Event {
	return control.Event{
		Time: e.Time, Device: e.Device, Minor: e.Minor, Kind: string(e.Kind),
		Number: e.Number, Text: e.Text, Missed: e.Missed,
	}
}
