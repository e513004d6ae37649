package server

import (
	"context"
	"net/http"

	"github.com/dmfuse/dmfuse/control"
)

// Merger brings snapshots to the end of their merges.
type Merger interface {
	Begin(ctx context.Context, r control.MergeRequest) (control.Merge, error)
	List() []control.Merge
}

func (s *Server) merge(r *http.Request) (any, error) {
	var req control.MergeRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if s.opts.Merges == nil {
		return nil, control.Errorf(control.CodeUnsupported, "this daemon merges no snapshots")
	}
	return s.opts.Merges.Begin(r.Context(), req)
}

func (s *Server) merges(*http.Request) (any, error) {
	list := control.MergeList{Merges: []control.Merge{}}
	if s.opts.Merges != nil {
		list.Merges = append(list.Merges, s.opts.Merges.List()...)
	}
	return list, nil
}
