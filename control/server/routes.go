package server

import (
	"net/http"

	"github.com/dmfuse/dmfuse/control"
)

// routes is the whole API; docs/control.md has an example of each.
func (s *Server) routes() http.Handler {
	m := http.NewServeMux()
	for pattern, h := range s.handlers() {
		m.HandleFunc(pattern, s.answer(h))
	}
	m.HandleFunc(eventsRoute, s.events)
	m.HandleFunc(metricsRoute, s.metrics)
	m.HandleFunc("/", s.answer(func(r *http.Request) (any, error) {
		return nil, control.Errorf(control.CodeUnsupported, "there is no %s %s", r.Method, r.URL.Path)
	}))
	return m
}

// eventsRoute is the one that answers with a stream.
const eventsRoute = "GET /v1/events"

func (s *Server) handlers() map[string]handler {
	all := map[string]handler{
		"GET /v1/version":        s.version,
		"GET /v1/targets":        s.targets,
		"GET /v1/devices":        s.devices,
		"GET /v1/jobs":           s.jobs,
		"GET /v1/merges":         s.merges,
		"POST /v1/merges":        s.merge,
		"POST /v1/apply":         s.applySteps,
		"POST /v1/apply/abandon": s.abandonApply,
		"POST /v1/remove-all":    s.removeAll,
		"POST /v1/shutdown":      s.shutdown,
		"POST /v1/upgrade":       s.upgrade,

		"GET /v1/device":          s.info,
		"GET /v1/device/table":    s.table,
		"GET /v1/device/status":   s.status,
		"GET /v1/device/deps":     s.deps,
		"GET /v1/device/wait":     s.wait,
		"POST /v1/device/message": s.message,
		"POST /v1/device/discard": s.discard,
		"POST /v1/device/flush":   s.flush,

		"GET /v1/io":             s.ioCounts,
		"GET /v1/faults":         s.allFaults,
		"GET /v1/device/faults":  s.faults,
		"POST /v1/device/faults": s.changeFaults,
	}
	for _, op := range []string{
		control.OpCreate, control.OpLoad, control.OpClear, control.OpSuspend, control.OpResume,
		control.OpRename, control.OpSetUUID, control.OpRemove, control.OpAttr,
	} {
		all["POST /v1/device/"+op] = s.single(op)
	}
	return all
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

func (s *Server) upgrade(r *http.Request) (any, error) {
	var req control.UpgradeRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if s.opts.Upgrade == nil {
		return nil, control.Errorf(control.CodeUnsupported, "this daemon cannot be replaced while it runs")
	}
	return nil, s.opts.Upgrade(req.Binary)
}
