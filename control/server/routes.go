package server

import (
	"net/http"

	"github.com/dmfuse/dmfuse/control"
)

// routes is the whole API; docs/control.md has an example of each line.
func (s *Server) routes() http.Handler {
	m := http.NewServeMux()
	handle := func(pattern string, h handler) { m.HandleFunc(pattern, s.answer(h)) }

	handle("GET /v1/version", s.version)
	handle("GET /v1/targets", s.targets)
	handle("GET /v1/devices", s.devices)
	handle("POST /v1/apply", s.applySteps)
	handle("POST /v1/remove-all", s.removeAll)
	handle("POST /v1/shutdown", s.shutdown)
	m.HandleFunc("GET /v1/events", s.events)

	handle("GET /v1/device", s.info)
	handle("GET /v1/device/table", s.table)
	handle("GET /v1/device/status", s.status)
	handle("GET /v1/device/deps", s.deps)
	handle("GET /v1/device/wait", s.wait)
	handle("POST /v1/device/message", s.message)
	handle("POST /v1/device/discard", s.discard)
	handle("POST /v1/device/flush", s.flush)

	for _, op := range []string{
		control.OpCreate, control.OpLoad, control.OpClear, control.OpSuspend, control.OpResume,
		control.OpRename, control.OpSetUUID, control.OpRemove, control.OpAttr,
	} {
		handle("POST /v1/device/"+op, s.single(op))
	}

	m.HandleFunc("/", s.answer(func(r *http.Request) (any, error) {
		return nil, control.Errorf(control.CodeUnsupported, "there is no %s %s", r.Method, r.URL.Path)
	}))
	return m
}

func (s *Server) version(*http.Request) (any, error) {
	v := s.opts.Version()
	v.Protocol = control.Protocol
	return v, nil
}

func (s *Server) targets(*http.Request) (any, error) {
	return control.TargetsReply{Targets: s.opts.Targets}, nil
}

func (s *Server) removeAll(r *http.Request) (any, error) {
	return control.RemoveAllReply{Skipped: s.opts.Manager.RemoveAll(r.Context())}, nil
}

func (s *Server) shutdown(r *http.Request) (any, error) {
	var req control.ShutdownRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if s.opts.Shutdown == nil {
		return nil, control.Errorf(control.CodeUnsupported, "this daemon cannot be shut down from outside")
	}
	return nil, s.opts.Shutdown(r.Context(), peerOf(r.Context()).pid(), req.Force)
}
